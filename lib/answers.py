"""
The answer in what a model wrote: the number of GSM8K, the letter of CommonsenseQA. A mark, such as "the answer is" or
"####", says where it stands; the same marks serve for both.
"""

import re
from collections import Counter
from decimal import Decimal

SIGN = r"(?:(?<![-−])[-−](?![-−]))"
NUMBER = re.compile(
    rf"(?<![\w.)])(?:{SIGN}?\$\s?{SIGN}?|{SIGN})?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
)
IS = (
    r"(?:\s+(?:to|for|of)\b[^.\n:=]{0,80}?)?[\s*_,]*\b(?:is|was|are|(?:must|should|will|would|has to) be)\b[\s*_]*[:=]?"
)
MARK = re.compile(rf"####|\\boxed\s*\{{|\banswers?\b(?:{IS}|[\s*_]*[:=])", re.IGNORECASE)
NEXT = re.compile(  # a question of the model's own, or an end of text spelled out
    r"\n[\s#*_>-]*(?:Q|Question|Problem|Exercise|Example|Human|User|Instruction)\b[\s\d*_]*[:.)]"
    r"|\b(?:Q|Question):|</s>|<\|\w+\|>"
)
OPERATOR = r"\s*[-−+*/×÷^x]\s*"
EXPRESSION = re.compile(rf"(?:{NUMBER.pattern})(?:\s*%)?{OPERATOR}\(?\$?\d")


def own_answer(text):
    """What was written before the model went on to a question of its own: to what looks like one, and behind a marked
    answer to a blank line, or to a line that asks something."""
    text = text[: found.start()] if (found := NEXT.search(text)) else text
    mark = MARK.search(text)
    answered = mark and re.compile(r"\d|\b[A-Ea-e]\b").search(text, mark.end())
    over = answered and re.compile(r"\n\s*\n|\n(?=[^\n]*\?)").search(text, answered.end())
    return text[: over.start()] if over else text


def marked(text):
    """What stands behind the last mark, or None."""
    ends = [mark.end() for mark in MARK.finditer(text)]
    return text[ends[-1] :] if ends else None


def number_in(text):
    """The number that a text gives as its answer, a Decimal, or None: behind the mark the first one, or what an equation
    there comes to; without a mark the last one. $, %, and commas between thousands are no part of it."""
    text = own_answer(text)
    behind = marked(text)
    if behind and (first := NUMBER.search(behind)):
        sentence = re.split(r"(?<=[.!?])\s+(?=\D)|(?<=\S)\s*\n", behind.lstrip())[0]
        return value(in_sentence(sentence) or first[0])
    found = [match[0] for match in NUMBER.finditer(text)]
    return value(found[-1]) if found else None


def in_sentence(sentence):
    """The number that a sentence such as "12 + 6 = 18, not 20" comes to, as it is written there, or None."""
    for side in reversed(sentence.split("=")) if "=" in sentence else ():
        first, expression = NUMBER.search(side), EXPRESSION.search(side)
        if first and not (expression and expression.start() == first.start()):
            return first[0]
    found = [match[0] for match in NUMBER.finditer(sentence)]
    return (found[-1] if EXPRESSION.match(sentence.lstrip(" *_(")) else found[0]) if found else None


def value(written):
    """-$1,234.50 -> Decimal("-1234.50")"""
    sign = "-" if re.search("[-−]", written) else ""
    return Decimal(sign + re.sub(r"[^\d.]", "", written))


WRAP = r"[\s*_\"'`]*"
BEFORE = rf"{WRAP}(?:(?:the\s+)?(?:option|choice|letter)\b{WRAP}:?{WRAP})?"
AFTER = r"(?=[\s*_\"'`]*(?:[.,:;!)\]}]|$|\n|[-–—]\s|(?:because|since|as|for|but|so|which|is|and|with)\b))"
LETTER = re.compile(rf"{BEFORE}(?:[(\[]\s*([A-E])\s*[)\]]|([A-E])(?![\w'’]){AFTER})", re.IGNORECASE)
NO_ARTICLE = re.compile(rf"{BEFORE}([B-E])(?![\w'’.])(?=\s+\w)")


def letter_in(text, choices=()):
    """The letter A to E that a text gives as its answer, or None: behind the mark, at the beginning, or the first in
    brackets; else that of the only one of the choices that it names. "A" that could be the article does not count."""
    text = own_answer(text)
    behind = marked(text) or ""
    if found := LETTER.match(behind) or NO_ARTICLE.match(behind) or LETTER.match(text):
        return next(letter for letter in found.groups() if letter).upper()
    if found := re.search(r"[(\[]\s*([A-Ea-e])\s*[)\]]", text):
        return found[1].upper()
    named = [
        n for n, choice in enumerate(choices) if re.search(rf"\b{re.escape(choice.strip())}\b", text, re.IGNORECASE)
    ]
    return "ABCDE"[named[0]] if len(named) == 1 else None


def first_line(text):
    return text.lstrip().split("\n")[0]


def right(answer, true):
    """Is an answer that was found the true one? None is never right."""
    return float(answer is not None and answer == true)


def majority(answers):
    """The most frequent answer, of equals the one given first; None if all are None."""
    counted = Counter(a for a in answers if a is not None)
    return counted.most_common(1)[0][0] if counted else None
