r"""
The number that a model gives as its answer, in what it wrote freely. Three rules:

  1. What follows an invented next question, or the paragraph of a marked answer, does not count.
  2. A mark, such as "####" or "the answer is", says where the answer stands: it is the first number
     of the clause behind the last mark, or what an equation there comes to ("12 + 6 = 18").
  3. Without a mark it is the last number.

A number may have a sign, a fraction or an exponent ("minus 18", "3 1/2", "1e3"). What looks like a
number and cannot be read, such as 10:30, has no value: no part of it is taken for the answer.
"""

import re
from contextlib import suppress
from fractions import Fraction
from unicodedata import normalize

REWRITES = [  # other ways to write a number, and how NUMBER wants it
    (r"(?<=\d)(?=\\[dt]?frac|[¼-¾⅐-⅞])", " "),  # 3½ is 3 1/2
    (r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"),
    (r"[¼-¾⅐-⅞]", lambda found: normalize("NFKC", found[0]).replace("⁄", "/")),
    (r"(?<=\d) / (?=\d)", "/"),
    (r"\s?(?:[x×*]|\\times|\\cdot)\s?10\^\{?([-−+]?\d+)\}?", r"e\1"),
    # a minus of its own is a sign where nothing stands that it could be subtracted from
    (r"((?:^|[=:#({\[*]|\b(?:is|are|was|be|to|of)\b)[ \t]*)[-−–][ \t]+(?=[\d.\\$€£])", r"\1-"),
    (r"(?<![\d)%][ \t])\b(?:minus|negative)[ \t]+(?=[\d.\\$€£])", "-"),
]
NUMBER = re.compile(  # -$1,234.50, but neither the 2 of "m^2" and "x2" nor the minus of "10-3"
    r"(?<![\w^])(?<!\d[.,:/'’])((?<!\))[-−–](?:\\?[$€£] ?)?|\\?[$€£] ?[-−–]?)?"  # sign, currency
    r"(\d+ (?:and )?(?=\d+/\d))?"  # the 3 of 3 1/2
    r"(\.?\d+(?:[.,:/^_'’]\d+)*[⁰-⁹²³]*(?:[eE][-−+]?\d+)?)"  # what looks like a number
)
VALUE = re.compile(r"(\d+|\d{1,3}(,\d{3})+)?(\.\d+)?([eE][-+]?\d{1,3})?|\d+/\d+")
MARK = re.compile(
    r"####|\\boxed\{|\bans(?:wer)?\b[^.\n:=\d]{0,60}?(?:\b(?:is|are|was|be)\b(?! not)|[:=])", re.I
)
CLAUSE_END = re.compile(r"\n|[.!?,](?:\s|$)|\s(?:because|since|as)\s")
NEXT_QUESTION = re.compile(  # at the beginning of a line; or an end of text that is spelled out
    r"\n[ \t#*]{0,9}(?:Q|Question|Problem|Exercise|Example|Human|User|Instruction)\b"
    r"[\s\d*]{0,9}[:.)\n]|\bQ:|</s>|<\|\w{1,40}\|>"
)


def plain(text):
    for pattern, written in REWRITES:
        text = re.sub(pattern, written, text)
    return text


def marked_number(text):
    """The match of the number behind the last mark of a plain text that has one, or None."""
    for behind in reversed(MARK.split(text)[1:]):
        clause = CLAUSE_END.split(behind.lstrip())[0]
        if found := NUMBER.search(clause.rpartition("=")[2]) or NUMBER.search(clause):
            return found


def own_answer(text):
    """What a text holds up to its answer's end (rule 1)."""
    paragraphs = NEXT_QUESTION.split(text)[0].rstrip("\n").split("\n\n")
    marked = [n for n, paragraph in enumerate(paragraphs) if marked_number(plain(paragraph))]
    return "\n\n".join(paragraphs[: marked[0] + 1] if marked else paragraphs)


def is_over(text, seen):
    """Is the answer in a text over, if it was not yet after `seen` characters? Only what is new is
    looked at, and 64 characters before it: NEXT_QUESTION matches no more."""
    end = text.find("\n\n", max(0, seen - 1))
    paragraph = text[text.rfind("\n\n", 0, end) + 1 : end] if end >= 0 else ""
    return bool(NEXT_QUESTION.search(text, max(0, seen - 64)) or marked_number(plain(paragraph)))


def number_in(text):
    """The number that a text gives as its answer, a Fraction, or None."""
    text = plain(own_answer(text))
    found = marked_number(text) or next(reversed([*NUMBER.finditer(text)]), None)
    sign, whole, number = found.groups(default="") if found else ("", "", "")
    number = number.replace("−", "-")
    with suppress(ValueError, ZeroDivisionError):  # too many digits for an int; 1/0
        if VALUE.fullmatch(number):
            value = Fraction(number.replace(",", "")) + int("0" + whole.partition(" ")[0])
            return -value if re.search("[-−–]", sign) else value


def majority(answers):
    """The most frequent answer that is not None, of equals the one given first."""
    return max(answers, key=lambda answer: (answer is not None, answers.count(answer)))
