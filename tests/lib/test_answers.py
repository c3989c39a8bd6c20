"""Answers as models write them, to "A: Let's think step by step.", and the number they give."""

from decimal import Decimal

import pytest

from lib.answers import is_over, majority, number_in, own_answer

READ = [
    # a mark says where the answer stands
    ("Half of 120 is 60.\n#### 60", "60"),
    ("THE ANSWER IS $1,200, as 12 * 100 is that.", "1200"),
    ("**Answer:** 18 dollars", "18"),
    ("Therefore, the final answer is $\\boxed{18}$, for 9 * 2 is 18", "18"),
    ("The answer is 36 since 3 * 10 = 30 and 30 + 6 is 36.", "36"),
    ("So the answer is\n\n16. That is 2 * 8 = 4 * 4.", "16"),
    # of an equation there, what it comes to
    ("The answer is 12 eggs + 6 eggs = 18 eggs (2 cups a day).", "18"),
    # the last mark that has a number; a denied one is no mark
    ("I thought that the answer is 12. But 3 were broken, so the answer is 9.", "9"),
    ("The answer is unknown, though 4 is a guess", "4"),
    ("The answer is not 20 but 18.", "18"),
    # without a mark, the last number
    ("1. He has 20 coins.\n2. He spends 6.\n3. 20 - 6 = 14.\n\nHe has 14 coins left.", "14"),
    # how numbers are written
    ("x2 is -$1,234.50", "-1234.50"),
    ("now −5", "-5"),
    ("10-3", "3"),
    ("(4)-3", "3"),
    ("3 * 100 = 300 m^2", "300"),
    ("It costs Rs.18, 25% less", "25"),
    ("It is -.5", "-.5"),
    ("The total – 18 coins", "18"),
    # what cannot be read has no value: a part of it is none
    ("So 5 of them, at 10:30", None),
    ("now 1e3", None),
    ("So " + "9" * 5000, None),
    # what follows a question of the model's own, or the paragraph of a marked answer
    ("It is 302\n\nQ: What is 7 plus 7?\nA: 14", "302"),
    ("5 * 10 = 50.\n## Problem 2: What is 8 * 8?\nSolution: 64", "50"),
    ("So it is 12.</s> 5 apples cost $7", "12"),
    ("The answer is 24.\n\nTom has 7 apples. The answer is 5.", "24"),
    ("The answer is 9.\nThere are 18 socks.\n\n[1] Smith, 1998", "9"),
    # nothing is given
    ("", None),
    ("Q: Tom has 5 apples", None),
]


@pytest.mark.parametrize("text, number", READ)
def test_the_number_that_a_text_gives(text, number):
    """Catches a right answer that is not found, and a wrong one that is."""
    assert number_in(text) == (None if number is None else Decimal(number))


def test_an_answer_is_over_where_it_cannot_change_any_more():
    """Catches generation that is left in the middle of an answer, or never."""
    text = "So 5.\n\nThe answer is 18."
    for behind, over in (("", False), ("\n", False), ("\n\n", True), ("\nQ: ", True)):
        assert is_over(text + behind) == over
        assert own_answer(text + behind).strip() == text


def test_the_majority_leaves_out_what_is_no_answer():
    """Catches None that wins the vote, and a tie that depends on the order of a set."""
    assert majority([None, 3, 2, 2, 3]) == 3, "of equals the one given first"
    assert majority([1, Decimal("2.0"), 2, None, None, None]) == 2
    assert majority([None, None]) is None
