"""
The answer in what a model wrote: the number of GSM8K, the letter of CommonsenseQA. A mark, such as "the answer is" or
"####", says where it stands; the same marks serve for both, and what is denied ("not 20", "not (A)") is not read.
"""

import re
from collections import Counter
from decimal import Decimal

SIGN = r"(?:(?<![-−])[-−](?![-−]))"
NUMBER = (
    rf"(?<![\w)^])(?<!\d\.)(?:{SIGN}?\$\s?{SIGN}?|{SIGN})?(?:\d{{1,3}}(?:\{{?,\}}?\d{{3}})+(?!\d)|\d+)(?:\.\d+)?"
    r"|(?<![\w.])\.\d+"
)
EXPRESSION = re.compile(rf"(?:{NUMBER})(?:\s*%)?\s*[-−+*/×÷^x]\s*\(?\$?\d")
EQUATION = re.compile(
    r"(?:[^,;(=\n]|,(?=\d)|\([^()=\n]*\))*="
)  # what follows a number that is part of one
WRAP = r"[\s*_\"'`]*"
ALONE = re.compile(  # a number and an end: "18", "6. There are", "40 (5 rows of 8)"
    rf"{WRAP}({NUMBER})[%*_`]*(?:\s*\([^()\n]*\)?)?(?:[.!]?\s*(?:\n|$)|[.!]\s|,?\s+(?:because|since|as)\b)"
)
COUNT = re.compile(
    r"\bstep\s+\d+|(?:\n|^\s*(?=1))[\s*>-]*\d[.)](?=[ \t]+\S)", re.IGNORECASE
)  # the numbers of a list

IS = r"(?:\s+(?:to|for|of)\b[^.\n:=]{0,80}?)?[\s*_,]*\b(?:is|was|are|(?:must|should|will|would|has to) be)\b[\s*_]*[:=]?"
MARK = re.compile(rf"####|\\boxed\s*\{{|\bans(?:wers?)?\b(?:{IS}|[\s*_]*[:=])", re.IGNORECASE)
NEXT = re.compile(  # a question of the model's own, or an end of text spelled out
    r"\n[\s#*_>-]*(?:Q|Question|Problem|Exercise|Example|Human|User|Instruction)\b[\s\d*_]*(?:[:.)]|\n)"
    r"|\b(?:Q|Question):|</s>|<\|\w+\|>"
)


def own_answer(text):
    """What was written before the model went on to a question of its own: to what looks like one, and behind a marked
    answer to a blank line, or to a line that asks something."""
    text = text[: found.start()] if (found := NEXT.search(text)) else text
    mark = MARK.search(text)
    answered = mark and re.compile(r"\d|\b[A-Ea-e]\b").search(text, mark.end())
    over = answered and re.compile(r"\n\s*\n|\n(?=[^\n]*\?)").search(text, answered.end())
    return text[: over.start()] if over else text


def without_denied(text, choices=()):
    things = "|".join(
        [NUMBER, r"[(\[]?[A-E]\b[)\]]?", *(re.escape(choice.strip()) for choice in choices)]
    )
    return re.sub(
        rf"(?:\bnot|n['’]t)\s+(?:(?:the|an?|option)\s+)?(?:{things})", "", text, flags=re.IGNORECASE
    )


def marked(text):
    """What stands behind the last mark: behind a colon all of it, else its sentence without the reason; or nothing."""
    *_, mark = [None, *MARK.finditer(text)]
    behind = text[mark.end() :].lstrip() if mark else ""
    end = r"(?<=[.!?])\s+(?=\D)|(?<=\S)\s*\n|,?\s+(?:because|since|as)\b"
    return behind if mark and mark[0].endswith(":") else re.split(end, behind)[0]


def number_in(text):
    """The number that a text gives as its answer, a Decimal, or None: behind the mark the first one, or what an
    equation there comes to; without a mark the one it begins with, if that stands alone, else the last one. $, %, and
    commas between thousands are no part of it."""
    text = COUNT.sub("\n", without_denied(own_answer(text)))
    alone, numbers = ALONE.match(text), [match[0] for match in re.finditer(NUMBER, text)]
    found = in_sentence(marked(text)) or (alone and alone[1]) or (numbers and numbers[-1])
    return value(found) if found else None


def in_sentence(sentence):
    """The number that a sentence such as "18 eggs" or "12 + 6 = 18" comes to, as it is written there, or None: the one
    it begins with, if that is no part of an equation, else the one behind the last "="."""
    first = re.search(NUMBER, sentence)
    if (
        first
        and not re.search(r"\w\w", sentence[: first.start()])
        and not EQUATION.match(sentence, first.end())
    ):
        return first[0]
    for side in reversed(sentence.split("=")):
        if (found := re.search(NUMBER, side)) and not EXPRESSION.match(side, found.start()):
            return found[0]
    return first and first[0]


def value(written):
    """-$1,234.50 -> Decimal("-1234.50")"""
    sign = "-" if re.search("[-−]", written) else ""
    return Decimal(sign + re.sub(r"[^\d.]", "", written))


BEFORE = rf"{WRAP}(?:(?:the\s+)?(?:option|choice|letter)\b{WRAP}:?{WRAP})?"
AFTER = r"(?=[\s*_\"'`]*(?:[.,:;!)\]}](?!\w)|$|\n|[-–—]\s|(?:because|since|as|for|but|so|which|is|and|with)\b))"
LETTER = re.compile(
    rf"{BEFORE}(?:[(\[]\s*([A-E])\s*[)\]]|([A-E])(?!['’]?\w){AFTER})", re.IGNORECASE
)
NO_ARTICLE = re.compile(rf"{BEFORE}([B-E])(?![\w'’.])(?=\s+\w)")
LONE = re.compile(  # not at the beginning: in brackets, or a capital at the end of a clause
    rf"[(\[]\s*([A-Ea-e])\s*[)\]]|(?<![\w.'’])([A-E])(?={WRAP}(?:[.,;!)](?!\w)|$|\n|because\b))"
)


def letter_in(text, choices=()):
    """The letter A to E that a text gives as its answer, or None: behind the mark or else anywhere, the one at the
    beginning or the first that stands alone; else that of the only one of the choices that it names. "A" that could be
    the article does not count."""
    text = without_denied(own_answer(text), choices)
    names = {
        choice.strip().lower(): letter for choice, letter in zip(choices, "ABCDE", strict=False)
    }
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    for place in (marked(text), text):
        if found := LETTER.match(place) or NO_ARTICLE.match(place) or LONE.search(place):
            return next(letter for letter in found.groups() if letter).upper()
        named = set(re.findall(rf"(?<!\w)(?:{longest_first})(?!\w)", place.lower())) - {""}
        if len(named) == 1:
            return names[named.pop()]
    return None


def first_line(text):
    return text.lstrip().split("\n")[0]


def right(answer, true):
    """Is an answer that was found the true one? None is never right."""
    return float(answer is not None and answer == true)


def majority(answers):
    """The most frequent answer, of equals the one given first; None if all are None."""
    counted = Counter(a for a in answers if a is not None)
    return counted.most_common(1)[0][0] if counted else None
