"""
The number that a model gives as its answer, in what it wrote freely. Three rules:

  1. What follows an invented next question, or the paragraph of a marked answer, does not count.
  2. A mark, such as "####" or "the answer is", says where the answer stands: it is the first number
     of the clause behind the last mark, or what an equation there comes to ("12 + 6 = 18").
  3. Without a mark it is the last number. (Numbers in words and fractions are not read.)
"""

import re
from decimal import Decimal

NUMBER = re.compile(  # -$1,234.50, but neither the 2 of "m^2" and "x2" nor the minus of "10-3"
    r"(?<![\w^])(?:(?<!\))[-−]\$?|\$[-−]?)?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
MARK = re.compile(
    r"####|\\boxed\{|\bans(?:wer)?\b[^.\n:=\d]{0,60}?(?:\b(?:is|are|was|be)\b(?! not)|[:=])", re.I
)
CLAUSE_END = re.compile(r"\n|[.!?,](?:\s|$)|\s(?:because|since|as)\s")
NEXT_QUESTION = re.compile(  # at the beginning of a line; or an end of text that is spelled out
    r"\n[\s#*]*(?:Q|Question|Problem|Exercise|Example|Human|User|Instruction)\b[\s\d*]*[:.)\n]"
    r"|\bQ:|</s>|<\|\w+\|>"
)


def marked_number(text):
    """The number behind the last mark that has one, as it is written there, or None."""
    for behind in reversed(MARK.split(text)[1:]):
        clause = CLAUSE_END.split(behind.lstrip())[0]
        if found := NUMBER.search(clause.rpartition("=")[2]) or NUMBER.search(clause):
            return found[0]


def own_answer(text):
    """What a text holds up to its answer's end (rule 1)."""
    paragraphs = NEXT_QUESTION.split(text)[0].split("\n\n")
    marked = [n for n, paragraph in enumerate(paragraphs) if marked_number(paragraph)]
    return "\n\n".join(paragraphs[: marked[0] + 1] if marked else paragraphs)


def number_in(text):
    """The number that a text gives as its answer, a Decimal, or None."""
    text = own_answer(text)
    written = marked_number(text) or (NUMBER.findall(text) or [None])[-1]
    return written and Decimal(re.sub(r"[^\d.−-]", "", written).replace("−", "-"))


def majority(answers):
    """The most frequent answer that is not None, of equals the one given first."""
    return max(answers, key=lambda answer: (answer is not None, answers.count(answer)))
