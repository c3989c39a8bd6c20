"""
The answer in what a model wrote: the number of GSM8K, the letter of CommonsenseQA.
"""

import re
from collections import Counter
from decimal import Decimal

NUMBER = re.compile(r"(?<![\w.)])[-−]?(?:\$\s?)?[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+")


def number_in(text):
    """The number that a text gives as its answer, a Decimal, or None: the one behind its last "####" or "answer is",
    else the last one. $, %, and commas between thousands are no part of it."""
    marked = re.split(r"####|answer is|answer:", text, flags=re.IGNORECASE)
    behind = NUMBER.search(marked[-1]) if len(marked) > 1 else None
    found = behind[0] if behind else next(reversed(NUMBER.findall(text)), None)
    return found and Decimal(re.sub(r"[$,\s]", "", found).replace("−", "-"))


def letter_in(text):
    """The letter A to E that a text gives as its answer, or None. "A" that could be the article does not count."""
    marked = re.search(r"answer(?: is|:)?\s*\(?([A-E])\b", text)
    first = re.match(r"\W*?(?:\(([A-E])\)|([A-E])(?=\s*(?:[.,:;)\]]|\n|$)))", text)
    alone = re.search(r"\(([A-E])\)", text)
    found = marked or first or alone
    return found and next(letter for letter in found.groups() if letter)


def first_line(text):
    return text.lstrip().split("\n")[0]


def before_next_question(text):
    """What was written before the model went on to a question of its own."""
    return re.split(r"\n\s*Q:", text)[0]


def majority(answers):
    """The most frequent answer, of equals the one given first; None if all are None."""
    counted = Counter(a for a in answers if a is not None)
    return counted.most_common(1)[0][0] if counted else None
