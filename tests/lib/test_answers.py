"""The answer in what a model wrote: tables of texts and what they say."""

from decimal import Decimal

import pytest

from lib.answers import letter_in, majority, number_in


@pytest.mark.parametrize(
    "text, expected",
    [
        ("18", "18"),
        (" 18\n", "18"),
        ("$18.", "18"),
        ("She makes $ 1,234.50 a day", "1234.50"),
        ("16 - 3 - 4 = 9, and 9 * 2 = 18 dollars", "18"),
        ("#### 18", "18"),
        ("9 * 2 = 18\n#### 18\n\n20", "18"),
        ("The answer is 18, as 2 * 9 is 18 and not 20.", "18"),
        ("The answer is $1,000,000", "1000000"),
        ("the Answer Is: -5 degrees", "-5"),
        ("answer: 7 apples out of 9", "7"),
        ("10-3", "3"),
        ("10 - 3", "3"),
        ("it fell to -3", "-3"),
        ("it fell to −3", "-3"),
        ("-$20", "-20"),
        ("$-20", "-20"),
        ("5%", "5"),
        (".5", ".5"),
        ("0.50", ".5"),
        ("18.0", "18"),
        ("1,2,3", "3"),
        ("12,34", "34"),
        ("3.", "3"),
        ("x2", None),
        ("two", None),
        ("", None),
        ("The answer is unknown, though 4 is a guess", "4"),
        (
            "The answer is 24.\n\nTom has 7 apples and eats 2. How many are left?\nThe answer is 5.",
            "24",
        ),
        ("The answer is 12 + 6 = 18.", "18"),
        ("The answer is 36, since 3 * 10 = 30 and 30 + 6 is 36.", "36"),
        ("The answer is 18, not 20.", "18"),
        ("The answer is not 20 but 18.", "18"),
        ("18\n\nTom has 7 apples. How many are left if he eats 2?", "18"),
        ("1. She has 9 eggs.\n2. 9 * 2 = 18", "18"),
        ("$\\boxed{1{,}800}$", "1800"),
        ("Rs.18", "18"),
        ("6 * 3 = 18 m^2", "18"),
        ("--5", "5"),
        ("-$-5", "-5"),
    ],
)
def test_numbers_are_found(text, expected):
    found = number_in(text)
    assert found == (expected and Decimal(expected))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("B", "B"),
        ("B\nQ: next", "B"),
        ("(C) far away", "C"),
        ("D. at sea", "D"),
        ("E) nowhere", "E"),
        ("A", "A"),
        ("A: here", "A"),
        ("A bank is where", None),
        ("The answer is C", "C"),
        ("The answer is (D) at sea", "D"),
        ("I think it is (B), not (C)", "B"),
        ("**B**", "B"),
        ("Because", None),
        ("b", "B"),
        ("Answer: B", "B"),
        ("The answer is: B", "B"),
        ("THE ANSWER IS B", "B"),
        ("Option B", "B"),
        ("B - bank", "B"),
        ("I choose B.", "B"),
        ("It is not (A), it is (C).", "C"),
        ("The answer is A person", None),
        ("Answer: Because it is", None),
        ("F", None),
        ("", None),
    ],
)
def test_letters_are_found(text, expected):
    assert letter_in(text) == expected


def test_a_choice_that_is_named_is_its_letter():
    choices = ["bank", "dog house", "house", "small", "mall"]
    for text, expected in (
        ("The answer is bank.", "A"),
        ("a dog house", "B"),
        ("Small", "D"),
        ("A bank, not a mall", "A"),
        ("The answer is C, as a mall is too far", "C"),
        ("a bank or a mall", None),
    ):
        assert letter_in(text, choices) == expected, text


def test_majority():
    assert majority([None, 3, 2, 2, 3]) == 3, "of equals the one given first"
    assert majority([1, 2, 2, None, None, None]) == 2 and majority([None, None]) is None
