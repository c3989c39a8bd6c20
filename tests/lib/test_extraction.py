"""
Answers as base and instruct models write them, read by lib/answers.py and by the published filters of
lm-evaluation-harness, whose patterns stand below. The right answer is what a careful reader would say is given. A
heading names the filters that are right about its texts, and says why others are not.

Known not to be read rightly, so in no table: numbers in words or in parts (eighteen, 1/2, 4 dollars and 50 cents), an
answer that a later paragraph takes back, and a text broken off before its answer, whose last number is taken.
"""

import random
import re
import unicodedata
from decimal import Decimal

from lib.answers import letter_in, number_in

# written after "Q: ...\nA:"; `answer | text`, where "-" is no answer and \n a line end
DIRECT = r"""
[strict flexible] "####" and the number, as the training set has it
24 | Ben reads 8 pages a day for 3 days: 8 * 3 = <<8*3=24>>24.\n#### 24 || 7 | 21 / 3 = 7 bags.\n\n#### 7
1350 | Rent is 450 a month, so 3 months are 450*3=<<450*3=1350>>1350 dollars.\n#### 1,350 || 96 | #### 96
15 | There were 40 seats and 25 were taken.\n40 - 25 = 15\n#### 15\n || 12 | 5 + 7 = 12 marbles in all\n#### 12</s>
-4 | It was 6 degrees and fell by 10.\n6 - 10 = -4\n#### -4 || 60 | Half of 120 is 60.\n#### 60<|im_end|>
36 | 9 * 4 = 36\n#### 36\n\nQuestion: A box has 4 rows of 5 eggs. How many eggs are there?\nAnswer: 20\n#### 20
2500 | 5 * 500 = 2,500\n#### 2,500. || 110 | He walks 55 * 2 = 110 minutes.\n#### 110 minutes
[strict flexible] nothing is given
- | || - | I don't know. || - | It cannot be determined from the information given. || - | How many apples are left?
- | The answer is unknown. || - | \n\n\n || - | _____ || - | Yes || - | Janet sells eggs at the market.
[flexible] the number without "####": strict finds nothing
18 | 18 || 18 | $18 || 18 | $18. || 18 | $18 per day || 42 | 42. || 7 | \n7 || 13 | \n\n13\n || 1234 | 1,234 || 25 | 25%
6 | 6 apples || 6 | It's 6! || 5 | 5</s> || 0 | 0 || 100 | 100<|endoftext|> || 35 | **35** || 30 | It takes 30 minutes.
12 | Tom has 12 more marbles than Ann. || 240 | Rs. 240 || 15 | £15 || -20 | -$20 || -3 | It fell from 4 to -3 degrees.
88 | 88 km/h || 13 | 13 years old\nQ: How old is Bob? || 20 | 18... no, 20
[flexible] "####" with more than a space before the number: strict finds nothing
18 | #### $18 || 150 | 3 * 50 = 150\n#### $150. || 33 | 3 * 11 = 33\n####33 || 1500 | 3 * 500 = 1500\n#### Answer: 1500
[flexible] a mark that strict does not know
45 | Answer: 45 || 45 | Answer: $45 || 31 | answer: 31 marbles || 18 | **Answer:** 18 || 18 | **Answer: 18 dollars**
26 | ANSWER: 26 || 16 | Answer = 16 || 18 | Answer:- 18 || 81 | The answer is 81 || 81 | The answer is 81.
1000 | The answer is $1,000. || 20 | The answer is: 20 || 14 | The answer is **14**.
70 | 70 pounds\n\nThe answer is 70.
[flexible] an equation without a mark
18 | 9 * 2 = 18 || 13 | 5 + 8 = 13. || 40 | 5 x 8 = 40 chairs || 72 | 12 * 6 = $72 || 27 | (4 + 5) * 3 = 27
6 | 48/8=6 || 260 | 4 × 65 = 260 || 12 | x = 12 || 16 | 4^2 = 16
30 | In total she spent 12 + 18 = 30 dollars on books.
[strict] a run-on, to a new question: flexible reads the new one's numbers
72 | 6 * 12 = 72\n#### 72\n\nQ: A pack has 10 pens. How many pens are in 7 packs?\nA: 7 * 10 = 70\n#### 70
24 | 4 * 6 = 24\n#### 24\n\nTom has 7 apples and eats 2. How many are left?\n7 - 2 = 5\n#### 5
[none] a run-on behind an answer whose form strict does not know
18 | 18\n\nA train has 7 cars with 40 seats each. How many seats are there?\n280
14 | 14\n\n## Problem 2\n\nA farmer has 20 cows and sells 4. How many has he now?
8 | 8\n\nThe perimeter of a square is 36. Find the length of its side.\n\n9
12 | 12\nThe sum of two numbers is 50 and their difference is 8. || 19 | 10 + 9 = 19\n\nQ: What is 4 + 4?\nA: 8
75 | 75\n\n\nHuman: A shirt costs $20 and is 10% off. What does it cost?\n\nAssistant: $18
50 | 50\n\n1. What is 20% of 80?\n2. What is 30% of 90?
[none] the answer first, then how it comes about: flexible reads the last number of the explanation
24 | 24\n\nExplanation: Each of the 3 boxes holds 8 pens. || 6 | 6. There are 3 red and 3 blue ones.
40 | 40 (5 rows of 8) || 55 | $55 (the coat is $40 and the hat $15) || 30 | 30, because each of the 6 friends gets 5.
16 | **16**\n\nHere is why: 4 friends get 4 sweets each, and 2 are left over. || 11 | 11\nB: 12\nC: 13
[none] a dash that is no minus, a minus that is no hyphen
18 | Ans-18 || 25 | Answer-25 apples || 90 | Total cost-$90 || 7 | 7 (10-3) || 7 | The answer is 7 = 10-3.
-5 | The temperature is now −5 degrees.
[none] 18.0 is 18
18 | $18.00 || 18 | 18.0 || 7.5 | $7.50 || 350 | The total cost is $350.00. || 9 | 3.0 * 3.0 = 9.0
1200 | 1,200.00 dollars || 8 | 40 / 5 = 8\n#### 8.00
[none] dots and exponents are read as the answer
18 | Rs.18 || 18 | The area is 6 * 3 = 18 m^2 || 18 | So she makes $18 a day...
[strict] nothing is given: flexible reads a number all the same
- | \nQ: Tom has 5 apples and eats 2. How many are left?\nA: 3
- | Step 1: Read the problem carefully.\nStep 2: Decide what is asked.
"""

# written after "Q: ...\nA: Let's think step by step."
CHAIN = r"""
[strict flexible] "The answer is 24."
24 | Each box holds 8 pens. 3 boxes hold 3 * 8 = 24 pens. The answer is 24. || 10 | The answer is 10, as 50 / 5 is 10.
1200 | He saves 100 a month, and a year has 12 months. 12 * 100 = 1,200. The answer is 1,200.
6 | She ate 4 of 10, so 10 - 4 = 6. The answer is 6.\n\nQ: Bob has 3 bags of 5 marbles. How many?\nA: The answer is 15.
0 | All 12 muffins were sold, so 12 - 12 = 0 are left. The answer is 0. || 18 | The answer is 18 (12 + 6 = 18).
37 | \n\nFirst, 4 * 8 = 32.\nThen, 32 + 5 = 37.\n\nThe answer is 37. || 12.5 | Half of 25 is 12.5. The answer is 12.5.
-8 | The balance was 12 dollars. He spent 20. 12 - 20 = -8. The answer is -8.
56 | \nLet x be the number of pens. Then 2x + 8 = 120, so 2x = 112 and x = 56.\nThe answer is 56 pens.
36 | The answer is 36, since 3 * 10 = 30 and 30 + 6 is 36.
3 | So there are 3 left. The answer is 3.Q: There are 9 pens in 3 boxes. A: The answer is 27.
12 | The answer is 12.<|im_end|>\n<|im_start|>user\nWhat is 5 + 5?<|im_end|>
[strict flexible] nothing is given
- | Let's break this problem down. || - | First, we need to find out how many eggs she sells. || - | \n\nThe answer is:
- | I cannot solve this problem. || - | The answer is not given in the problem.
- | \n\nTo find the answer, we use the formula for the area.
[flexible] no full stop: strict loses the last digit
18 | She makes 9 * 2 = 18 dollars. The answer is 18 || 42 | 6 * 7 = 42. The answer is 42\n
5 | 15 / 3 = 5. The answer is 5
[flexible] a form of the mark that strict does not know
18 | So 9 eggs are sold at $2. The answer is $18. || 18 | Therefore, the answer is 18. || 18 | So the answer must be 18.
18 | The correct answer is 18. || 18 | Hence the answer would be $18. || 18 | the Answer Is 18 || 18 | Ans: 18
18 | The answer to the question is 18. || 18 | So the answer is: 18 eggs. || 18 | The answer, therefore, is 18.
110 | The answer is approximately 110 miles. || 60 | The answer is that Kim drives 60 miles. || 45 | My final answer: 45
20 | 25% of 80 is 20. The answer is (20). || 20 | 25% of 80 is 20. The answer is "20". || 45 | I get 45 as the answer.
100 | The answer we are looking for is 100. || 75 | So 3 / 4 of 100 is 75. So the answer is 75%.
16 | So the answer is\n\n16. || 8 | She gives 1/3 of 12, which is 4, to Bob. 12 - 4 = 8. Thus, Mia has 8 left. #### 8
[flexible] no mark at all
350 | Step 1: 5 boxes cost 5 * 50 = 250.\nStep 2: Add 100 for shipping: 250 + 100 = 350.
14 | 1. He has 20 coins.\n2. He spends 6.\n3. 20 - 6 = 14.\n\nHe has 14 coins left.
90 | \n1) Price of 2 shirts: 2 * 30 = 60\n2) Price of the shoes: 30\n3) Total: 60 + 30 = 90
12 | Let's denote the price by p.\n3p + 4 = 40\n3p = 36\np = 12\n\nThe price is $12.
18 | So Ann earns 18 dollars.\n\nQ: If a pen costs 3 dollars, what do 7 pens cost?\nA: 21 dollars.
8 | So, 5 + 3 = 8. I hope this helps! || 4 | He has 20 dollars and each pack costs 5 dollars, so he can buy 20/5=4 packs
[flexible] "Answer:", and then how it comes about
18 | Answer: Janet has 16 eggs. She eats 3 and bakes with 4, so 16 - 3 - 4 = 9 are left. She makes 9 * 2 = $18.
21 | Answer:\nStep 1: 4 * 3 = 12\nStep 2: 12 + 9 = 21 || 72 | Answer: 24 + 48 = 72 miles.\n\nSo he ran 72 miles.
18 | Let's work out the answer:\n1. 16 - 3 = 13\n2. 13 - 4 = 9\n3. 9 * 2 = 18\nSo she makes $18.
[flexible] an equation behind the mark: strict reads its first number
18 | The answer is 12 + 6 = 18. || 18 | The answer is 9 * 2 = $18. || 36 | The answer is 3 * 10 + 6 = 36 apples.
18 | Thus, the answer is 16 - 3 - 4 = 9, 9 * 2 = 18. || 45 | The answer is $5 x 9 = $45. || 18 | The answer is x = 18.
18 | The answer is 12 eggs + 6 eggs = 18 eggs. || 22 | The answer is 2 * (5 + 6) = 22.
15 | The answer is 5 times 3 = 15.
[none] the same, and flexible reads a number behind what it comes to
70 | The answer is 100 - 30 = 70 dollars, not 130.
14 | A week has 7 days, so the answer is 2 * 7 = 14 cups of food (2 cups per day).
[strict] an equation that begins with what it comes to: flexible reads its last number
18 | The answer is 18 = 12 + 6.
[none] LaTeX and Markdown, of which strict knows none: "$." or "$$" is flexible's last number
18 | Therefore, the final answer is $\boxed{18}$. || 18 | $$\boxed{18}$$ || 1800 | The answer is $\boxed{1{,}800}$.
[flexible] LaTeX and Markdown without those
18 | \[ 9 \times 2 = 18 \]\n\nSo she makes $\boxed{18}$ dollars. || 18 | The answer is \(\boxed{18}\).
18 | The final answer is: $\boxed{\$18}$ || 250 | So the total is \boxed{250 \text{ dollars}}.
12 | Thus $3x = 36$, so $x = 12$. || 18 | So, Janet makes **$18** every day at the market.
4 | To solve this, we divide 20 by 5:\n\n\[\n\frac{20}{5} = 4\n\]\n\nHe can buy \(\boxed{4}\) packs.
40 | ### Final Answer\n\n**40** || 33 | **Step 1:** 3 bags of 8 are 24.\n**Step 2:** 24 + 9 = 33.\n\n**Answer: 33**
7 | <think>\n14 / 2 = 7\n</think>\n\nThe answer is **7**.
[strict] a run-on, to a new question: flexible reads the new one's numbers
24 | The answer is 24.\n\nTom has 7 apples and eats 2. How many apples are left?\n7 - 2 = 5. The answer is 5.
24 | The answer is 24.\nTom has 7 apples and eats 2. How many apples are left? 7 - 2 = 5. The answer is 5.
28 | 7 * 4 = 28. The answer is 28.\n\nProblem: A rope of 60 feet is cut into 5 pieces.\nSolution: 12. The answer is 12.
12 | The answer is 12.\n### Instruction:\nAdd 5 and 5.\n### Response:\n10
21 | The answer is 21.\n2. Bob buys 5 pens at $3 each. What does he pay?\nThe answer is 15.
[none] a run-on behind an answer whose form strict does not know
21 | The answer is: 3 * 7 = 21\n\nThe question is: how many days are in 4 weeks?\nThe answer is: 4 * 7 = 28
50 | 5 * 10 = 50.\nQuestion: What is 8 * 8?\nAnswer: 64
[strict] numbers in what follows the answer: flexible reads the last
10 | 30 / 3 = 10. The answer is 10.\n\nComment: I think this is right, but it took me 25 minutes.
9 | 18 / 2 = 9. The answer is 9.\n\nExplanation: there are 18 socks, and a pair is 2 socks.
20 | The answer is 20, which is 4 * 5. || 6 | The answer is 6 (3 pairs of 2).
[none] the same behind an answer whose form strict does not know
80 | Therefore the answer is 80.\n\nReferences:\n[1] Smith, Word Problems, 1998 || 300 | Total: 3 * 100 = 300 m^2
28 | The answer is $28.\n\nHope that helps. Feel free to ask about 5 other things!
600 | So the answer is $600.\n\n\nTags: math, percent, 6th grade
[flexible] what is denied or taken back: strict reads that, or nothing
18 | The answer is not 20 but 18. || 18 | The answer isn't 20, it's 18.
7 | The answer is not 10. 10 - 3 = 7, so it is 7.
9 | I first thought that the answer is 12. But 3 were broken, so the answer is 9.
18 | The answer is 20. Wait, she also eats 1. Let me redo that: 9 * 2 = 18. The answer is 18.
[strict] what is denied: flexible reads that
18 | The answer is 18, not 20.
[none] what is denied: flexible reads that, and strict nothing
19 | 12 - 5 = 7 and 7 + 12 = 19, so the answer is 19 (not 24). || 15 | So the hat costs $15, not $12.
[none] 18.0 is 18, and dots are no number
18 | The answer is 18.0. || 18 | The answer is $18.00. || 18 | 4.5 * 4 = 18.0 || 18 | The answer is 18...
2450 | The answer is $2,450.00, as 35 * 70 is that. || 8 | So, 5 + 3 = 8. I hope this helps...
"""

# written after "Q: ...\n(A) ...\n(E) ...\nA:"
LETTERS = r"""
choices: bank, river, wallet, department store, mall
[filter] in brackets
B | (B) || B | (B). || C | (C) wallet || A | (A) bank, because that is where money is kept. || D | The answer is (D).
E | The answer is (E) mall. || B | I think it is (B), not (C). || C | Answer: (C) || D | **(D) department store**
E | The best answer would be (E). || B | (B)\nQ: What do people do at night?\n(A) sleep\n(B) run\nA: (A)
C | It has to be (C). || C | Most people carry money with them, so the answer is (C) wallet.
[filter] behind a colon
B | Answer: B || B | Answer:\nB || B | ### Answer: B || A | Answer: A || A | The correct option is: A || C | Answer: C.
C | The answer is: C || D | **Answer: D** || D | Ans: D || E | Final answer: E
[filter] the letter and its text
A | A. bank || A | A - bank || A | a) bank || B | b. river || B | B - river || C | C: wallet || C | **C. wallet**
C | C wallet || D | D) department store || E | Option E: mall || C | (c) wallet || B | The correct answer is B) river.
D | The answer is D, department store.
[filter] the text alone
A | bank || C | wallet || C | a wallet || B | River. || A | The answer is bank. || A | The answer is a bank.
A | The answer is a bank, not a mall. || A | The answer is bank because a mall has no safe.
D | People buy clothes at the department store.
[filter] nothing is given, and "A" is the article
- | || - | A person || - | The answer is A person. || - | A person who is rich. || - | Because people like it. || - | F
- | I don't know. || - | None of the above. || - | To buy things. || - | The answer is not known.
- | \nQ: Where do people swim?\n(A) river\n(B) bank\nA: (A)
[none] the letter alone, with neither brackets nor a colon right before it: nothing is found
B | B || B | **B** || B | `B` || B | [B] || B | ( B ) || A | A || A | A. || A | \nA\n || C | C. || C | C\n\n || C | "C"
D | D) || E | E || E | E</s> || B | Option B || B | option B || C | Choice C || D | Letter D || B | The answer is B.
B | The answer is B || C | The answer is **C**. || A | The answer is A. || A | So the answer is A! || D | **Answer:** D
A | The answer is A because money is kept there. || E | The answer is option E. || B | The answer should be B.
C | Answer: **C** || B | B is the correct answer. || A | A is correct. || D | D, because it sells everything.
C | C. Because it is carried along. || E | I choose E. || C | I would say C. || D | It's D. || B | I'd go with B.
A | I pick A. || D | The letter is D. || C | The correct option is C. || C | Probably C || B | $\boxed{B}$ || B | #### B
B | Based on the choices, the most fitting one is B.
[none] a small letter: nothing is found
B | b || C | c) || D | d. || B | (b) || B | answer: b || D | the answer is (d) || D | The answer is d.
[none] a word behind a colon is read as a letter
- | Answer: Because people are busy. || - | Answer: An island. || - | Answer: Everyone needs money.
- | Answer: Different people say different things. || - | Explanation: A person needs money every day.
[none] (F) is none of the five
- | (F)
[none] a choice's text inside a word: "mall" in "small"
C | The answer is C, as it is small and fits a pocket. || A | A, since the smallest sums are safe there.
B | B. It is smaller than the sea.
[none] another choice's text, in the reason
D | D\nExplanation: a mall is not one store. || B | The answer is B, as a mall has no water.
C | I'd go with C, because a bank is closed at night.
[none] a run-on, to a new question: its first choice is read, or nothing is found
B | B\n\nWhat do people do when they are tired?\n(A) sleep\n(B) run\n(C) eat
C | C\n\nQ: Where is a fish?\n(A) bank\n(B) river
E | The answer is E.\n\nWhere would you find a boat?\n(A) bank (B) river
[none] what is denied is read, or nothing is found
B | Not (A) but (B). || C | It is not (A), it is (C). || E | The answer is not (D) but (E).
E | (A) is wrong. The answer is (E). || B | The answer isn't A, it's B. || D | The answer is not B, but D.
choices: person, dog house, house, park, parking lot
[filter] a text that is part of another's
B | dog house || B | The answer is dog house. || E | parking lot || E | in the parking lot || A | a person
A | A person || A | The answer is A person || D | Answer: D park || E | (E), since a park has no cars.
C | The answer is (C) house, because (B) is too small.
[none] another choice's text, in the reason or in a word
A | The answer is A, as a house is too big. || B | B. A house is for people and a park is for play.
D | D. A dog runs there, and the parking lot is dangerous. || D | The answer is D, not E. || - | Personal reasons.
choices: relief, anxiety, fall asleep, become cold, headache
[filter] letters and texts
C | You might fall asleep if you are tired. || B | Anxiety || B | The correct answer is:\n\n(B) anxiety || - | Death
B | The correct answer is:\n\nB. anxiety || D | The answer is D) become cold || E | I would choose option E, headache.
B | The answer is: **B) anxiety** || C | The answer is C fall asleep. || - | It depends on the person.
[none] a word behind a colon, or a letter alone
- | Answer: Actually it depends on the person. || D | d
"""


NEXT = {"direct": "Question:", "chain": "Q:"}  # what the model is stopped at


def rows(table):
    """(right answer, text, names of the filters that are right, the choices)"""
    names, choices = None, ()
    for line in table.strip().split("\n"):
        if line.startswith("choices: "):
            choices = line.removeprefix("choices: ").split(", ")
        elif heading := re.match(r"\[(strict|flexible|strict flexible|filter|none)\] ", line):
            names = heading[1].replace("none", "").split()
        else:
            for item in line.split(" || "):
                answer, text = item.split(" |", 1)
                yield (
                    None if answer == "-" else answer,
                    " " + text.strip().replace("\\n", "\n"),
                    names,
                    choices,
                )


def cut(text, next_question):
    return re.split(rf"{next_question}|</s>|<\|im_end\|>", text)[0]


def compared(found):
    """As exact_match of GSM8K compares it."""
    for ignored in (",", r"\$", "(?s).*#### ", r"\.$"):
        found = re.sub(ignored, "", found)
    return found.lower()


def strict(text, kind):
    pattern = {"direct": r"#### (\-?[0-9\.\,]+)", "chain": r"The answer is (\-?[0-9\.\,]+)."}[kind]
    found = re.search(pattern, cut(text, NEXT[kind]))
    return compared(found[1].strip()) if found else None


def flexible(text, kind):
    found = [
        match[0] for match in re.finditer(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", cut(text, NEXT[kind]))
    ]
    return compared(found[-1].strip()) if found else None


def letter_filter(text, choices):
    """multi_choice_regex as MMLU's generative task has it; its cut at the first line end is left out."""

    def plain(s):
        return "".join(c for c in s.lower() if not unicodedata.category(c).startswith("P"))

    text, names = cut(text, "Q:"), [plain(choice.strip()) for choice in choices]
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    if found := re.search(r"\([A-Z]\)", text):
        return found[0][1]
    if found := re.search(longest_first, plain(text)):
        return "ABCDE"[names.index(found[0])]
    return found[1] if (found := re.search(r":[\s]*(A|B|C|D|E)", text)) else None


NUMBERS = [
    (*row[:3], kind)
    for kind, table in (("direct", DIRECT), ("chain", CHAIN))
    for row in rows(table)
]
LETTERS = list(rows(LETTERS))


def test_every_answer_is_read():
    """So wherever a filter is right, so are we."""
    assert len(NUMBERS) >= 140 and len(LETTERS) >= 80 and len(NUMBERS) + len(LETTERS) >= 220
    assert len({(text, kind) for _, text, _, kind in NUMBERS}) == len(NUMBERS), (
        "a text stands there twice"
    )
    found = [(answer, number_in(text), text) for answer, text, *_ in NUMBERS]
    assert [row for row in found if row[1] != (row[0] and Decimal(row[0]))] == []
    found = [(answer, letter_in(text, choices), text) for answer, text, _, choices in LETTERS]
    assert [row for row in found if row[1] != row[0]] == []


def test_the_filters_are_right_where_the_tables_say_so():
    for answer, text, names, kind in NUMBERS:
        right = [
            name
            for name, read in (("strict", strict), ("flexible", flexible))
            if read(text, kind) == answer
        ]
        assert right == names, (answer, text)
    for answer, text, names, choices in LETTERS:
        assert (letter_filter(text, choices) == answer) == (names == ["filter"]), (answer, text)


def test_nothing_that_is_written_raises():
    pieces = [
        *"5$=²½.,-−+*/%():{}?A^x \n\0",
        "9" * 3000,
        "\n\n",
        " A ",
        " b ",
        "not ",
        "n't ",
        "answer is",
        "Step 1",
    ]
    pieces += "--5 -$-5 #### (B) Q: Answer: because </s> ٣٤ १ 𝟙 1,234 1{,}000 0.5 1. NaN Infinity bank İ ==".split()
    random.seed(0)
    for _ in range(3000):
        text = "".join(random.choices(pieces, k=random.randrange(12)))
        number, letter = (
            number_in(text),
            letter_in(text, random.choice([(), ("bank", "A", "(", "", "five")])),
        )
        assert number is None or isinstance(number, Decimal) and number.is_finite(), text
        assert letter in (None, *"ABCDE"), text
