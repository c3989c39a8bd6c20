"""Answers as models write them, to "A: Let's think step by step.", and the number they give."""

from decimal import Decimal
from time import process_time

import pytest

from lib.answers import is_over, majority, number_in, own_answer

READ = [
    # a mark says where the answer stands
    ("Half of 120 is 60.\n#### 60", "60"),
    ("3 boxes hold 3 * 8 = 24 pens. The answer is 24.", "24"),
    ("THE ANSWER IS $1,200, as 12 * 100 is that.", "1200"),
    ("**Answer:** 18 dollars", "18"),
    ("So the answer to the question must be: **14**.", "14"),
    ("Therefore, the final answer is $\\boxed{18}$, for 9 * 2 is 18", "18"),
    ("The answer is 36 since 3 * 10 = 30 and 30 + 6 is 36.", "36"),
    ("So the answer is\n\n16. That is 2 * 8 = 4 * 4.", "16"),
    # of an equation there, what it comes to
    ("The answer is 12 + 6 = 18.", "18"),
    ("The answer is 12 eggs + 6 eggs = 18 eggs (2 cups a day).", "18"),
    ("The answer is 100 - 30 = 70 dollars, not 130.", "70"),
    # the last mark that has a number; a denied one is no mark
    ("I thought that the answer is 12. But 3 were broken, so the answer is 9.", "9"),
    ("The answer is unknown, though 4 is a guess", "4"),
    ("The answer is not 20 but 18.", "18"),
    # without a mark, the last number
    ("1. He has 20 coins.\n2. He spends 6.\n3. 20 - 6 = 14.\n\nHe has 14 coins left.", "14"),
    ("So she makes **$18** every day at the market...", "18"),
    # how numbers are written
    ("It fell to -3 degrees.", "-3"),
    ("He owes -$1,234.50", "-1234.50"),
    ("now −5", "-5"),
    ("10-3", "3"),
    ("(4)-3", "3"),
    ("half is .5", ".5"),
    ("3 * 100 = 300 m^2", "300"),
    ("It costs Rs.18, 25% less", "25"),
    # signs, fractions, exponents, and other ways to write them
    ("It is -.5", "-.5"),
    ("–18", "-18"),
    ("The answer is - $ 18.", "-18"),
    ("20 minus 6 is minus 1,400 percent", "-1400"),
    ("The total – 18 coins", "18"),
    ("A half is 1/2.", ".5"),
    ("He needs 3 1/2 cups", "3.5"),
    ("The answer is minus 2 and 3/4.", "-2.75"),
    ("The answer is 2½, not 5", "2.5"),
    ("It is $\\boxed{-\\frac{1}{4}}$", "-.25"),
    ("now 1e3", "1000"),
    ("The answer is 2.5 x 10^-1.", ".25"),
    # what cannot be read has no value: a part of it is none
    ("The answer is 1/0.", None),
    ("So 5 of them, at 10:30", None),
    ("He has 1e99999", None),
    ("So " + "9" * 5000, None),
    # what follows a question of the model's own, or the paragraph of a marked answer
    ("It is 302\n\nQ: What is 7 plus 7?\nA: 14", "302"),
    ("5 * 10 = 50.\n## Problem 2: What is 8 * 8?\nSolution: 64", "50"),
    ("So it is 12.</s> 5 apples cost $7", "12"),
    ("The answer is 24.\n\nTom has 7 apples. The answer is 5.", "24"),
    ("So 5.\n\nThe answer is 18.", "18"),
    ("The answer is 9.\nThere are 18 socks.\n\n[1] Smith, 1998", "9"),
    # nothing is given
    ("", None),
    ("x2 = y", None),
    ("Q: Tom has 5 apples", None),
]


@pytest.mark.parametrize("text, number", READ)
def test_the_number_that_a_text_gives(text, number):
    """Catches a right answer that is not found, and a wrong one that is."""
    assert number_in(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize("text", [text for text, _ in READ if "\n" in text])
def test_an_answer_that_grows_is_over_where_the_whole_text_says_so(text):
    """Catches an end that is seen too late, or where there is none."""
    over = [n for n in range(1, len(text) + 1) if is_over(text[:n], n - 1)]
    assert own_answer(text[: over[0]] if over else text) == own_answer(text)
    assert over or own_answer(text) == text


@pytest.mark.parametrize("piece", ["\n", "\n ", "a", "1 ", "The answer is ", "Q", "\n\n#"])
def test_to_look_for_the_end_takes_time_that_grows_with_the_text(piece):
    """Catches a look at the whole text for each new token, and a pattern that is quadratic."""
    text, start = piece * 20000, process_time()
    for n in range(0, len(text), len(piece)):
        assert not is_over(text[: n + len(piece)], n)
    own_answer(text)
    assert process_time() - start < 10


def test_the_majority_leaves_out_what_is_no_answer():
    """Catches None that wins the vote, and a tie that depends on the order of a set."""
    assert majority([None, 3, 2, 2, 3]) == 3, "of equals the one given first"
    assert majority([1, Decimal("2.0"), 2, None, None, None]) == 2
    assert majority([None, None]) is None
