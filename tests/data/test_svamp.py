"""Word problems become a text of calculations, written or left out."""

import json

import pytest
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import as_typed

from data.dataset import open_dataset
from data.svamp.prepare import calculation, held_out_problem, plain, training_problem

COLUMNS = "Question,Numbers,Equation,Answer"
ROW = {"Question": "Bo has number0 books , and number1 more .  How many ?", "Numbers": "6.0 9.5"}
SVAMP = {"Body": "Dan had $ 3 left", "Question": "What did it cost?"}
EQUATIONS = [("- number0 number1", "22-14", 8), ("* + number0 number1 2.0", "(22+14)*2", 72)]
EQUATIONS += [("- number0 / number1 4.0", "22-(14/4)", 18.5), ("number1", "14", 14)]


@pytest.mark.parametrize("equation, text, value", EQUATIONS)
def test_an_equation_in_prefix_form_is_written_as_people_do(equation, text, value):
    """Catches operands that change places, and parentheses that are lost."""
    assert calculation(equation.split(), ["22.0", "14.0"]) == (text, value, [])


def test_held_out_problems_are_written_with_their_calculation_or_refused():
    """Catches an equation that does not give the answer, and 15.5 written as 15.500."""
    right = ROW | {"Equation": "+ number0 number1", "Answer": "15.5"}
    wanted = {"question": "Bo has 6 books, and 9.5 more. How many?", "answer": "<<6+9.5=15.5>>15.5"}
    assert training_problem(right) == wanted
    for wrong in ({"Answer": "15"}, {"Equation": "+ number0 number1 number1"}, {"Answer": "-1"}):
        with pytest.raises(ValueError):
            training_problem(right | wrong)
    found = held_out_problem(SVAMP | {"Equation": "( ( 4.0 + 1.0 ) - 3.0 )", "Answer": 2.0})
    assert found["question"] == "Dan had $ 3 left. What did it cost?"
    assert found["answer"] == "<<(4+1)-3=2>>2"
    assert [plain(x) for x in ("504.0", "0.25", "1000000")] == ["504", "0.25", "1000000"]


def test_both_sources_become_a_text_with_marked_answers(tmp_path, capsys):
    """Catches held-out calculations that are written, and answers without a mark."""
    rows = [f"Has number0 and number1 ?,{n}.0 2.0,+ number0 number1,{n + 2}.0" for n in range(9)]
    (tmp_path / "train.csv").write_text("\n".join([COLUMNS, *rows, "Wrong ?,1.0,number0,2.0"]))
    test = [SVAMP | {"Equation": f"( {n}.0 - 3.0 )", "Answer": n - 3.0} for n in (4, 15)]
    (tmp_path / "test.json").write_text(json.dumps(test))
    flags = [f"--train={tmp_path}/train.csv", f"--test={tmp_path}/test.json", "--any_hash"]
    flags += [f"--tokenizer={write_byte_tokenizer(tmp_path / 'tokenizer')}", "--dev_documents=3"]
    as_typed("data/svamp/prepare.py", f"--out={tmp_path / 'out'}", *flags)
    assert "1 of 10 problems are left out" in capsys.readouterr().err
    val = open_dataset(tmp_path / "out", "val")
    marked = [chr(i) for i in val.tokens[val.answers]]
    assert "".join(marked) == "112" and "<<" not in "".join(map(chr, val.tokens))
    train = "".join(map(chr, open_dataset(tmp_path / "out", "train").tokens))
    assert "<<" in train and train.count("Q: ") == 6 * 4
