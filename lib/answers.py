r"""
The number that a model gives as its answer, in what it wrote freely. Three rules:

  1. What follows an invented next question, or the paragraph of a marked answer, does not count.
  2. A mark, such as "####" or "the answer is", says where the answer stands: it is the first number
     of the clause behind the last mark, or what an equation there comes to ("12 + 6 = 18").
  3. Without a mark it is the last number.

What looks like a number and cannot be read, such as 10:30 or 1/2, has no value: no part is taken.
"""

import re
from fractions import Fraction

NUMBER = re.compile(  # -$1,234.50, but neither the 2 of "m^2" and "x2" nor the minus of "10-3"
    r"(?<![\w^])(?<!\d[.,:/])((?<!\))[-−–]\\?[$€£]?|\\?[$€£][-−–]?)?"  # sign, currency
    r"(\.?\d+(?:[.,:/e]\d+)*[¼-¾]?)"  # what looks like a number
)
VALUE = re.compile(r"(\d{1,99}|\d{1,3}(,\d{3})+)?(\.\d{1,99})?")
MARK = re.compile(
    r"####|\\boxed\{|\bans(?:wer)?\b[^.\n:=\d]{0,60}?(?:\b(?:is|are|was|be)\b(?! not)|[:=])", re.I
)
CLAUSE_END = re.compile(r"\n|[.!?,](?:\s|$)|\s(?:because|since|as)\s")
NEXT_QUESTION = re.compile(  # at the beginning of a line; or an end of text that is spelled out
    r"\n[ \t#*]{0,9}(?:Q|Question|Problem|Exercise|Example|Human|User|Instruction)\b"
    r"[\s\d*]{0,9}[:.)\n]|\bQ:|</s>|<\|\w{1,40}\|>"
)


def marked_number(text):
    """The match of the number behind the last mark of a text that has one, or None."""
    for behind in reversed(MARK.split(text)[1:]):
        clause = CLAUSE_END.split(behind.lstrip())[0]
        if found := NUMBER.search(clause.rpartition("=")[2]) or NUMBER.search(clause):
            return found


def own_answer(text):
    """What a text holds up to its answer's end (rule 1)."""
    paragraphs = NEXT_QUESTION.split(text)[0].split("\n\n")
    marked = [n for n, paragraph in enumerate(paragraphs) if marked_number(paragraph)]
    return "\n\n".join(paragraphs[: marked[0] + 1] if marked else paragraphs)


def is_over(text):
    """Is the answer in a text over, whatever is written next?"""
    return own_answer(text) != text


def number_in(text):
    """The number that a text gives as its answer, a Fraction, or None."""
    text = own_answer(text)
    found = marked_number(text) or next(reversed([*NUMBER.finditer(text)]), None)
    if found and VALUE.fullmatch(found[2]):
        value = Fraction(found[2].replace(",", ""))
        return -value if re.search("[-−–]", found[1] or "") else value


def majority(answers):
    """The most frequent answer that is not None, of equals the one given first."""
    return max(answers, key=lambda answer: (answer is not None, answers.count(answer)))
