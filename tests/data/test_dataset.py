"""The data format: what is written is read, and what does not fit is one line before any work."""

import errno
import json

import numpy as np
import pytest
from tiny_runs import as_typed

from data.batches import check_sizes, read_batch
from data.commonsense_qa import prepare as commonsense_qa
from data.dataset import AGAIN, document_numbers, open_dataset, write_dataset
from data.gsm8k import prepare as gsm8k
from lib.tokenizer import CharTokenizer


@pytest.fixture
def folder(tmp_path):
    splits = {"train": [0, 1, 2, 1], "val": [2, 0, 1, 1]}
    answers = {"after": 0, "among": [1]}
    write_dataset(tmp_path, splits, CharTokenizer("abc"), document_end=2, answers=answers)
    return tmp_path


def test_what_is_written_is_read(folder):
    """Catches ids of another type, and an answer that is the token before it."""
    data = open_dataset(folder, "val")
    assert data.tokens.tolist() == [2, 0, 1, 1] and data.meta["document_end"] == 2
    assert data.tokens.dtype == np.uint16 and not data.tokens.flags.writeable
    assert data.answers.tolist() == [False, False, True, False]
    marks, splits = [True, False, False, True], {"train": [0], "val": [0] * 4}
    rule = {"among": [0]}
    write_dataset(folder, splits, CharTokenizer("abc"), answers=rule, marks={"val": marks})
    assert open_dataset(folder, "val").answers.tolist() == marks
    (folder / "val_answers.bin").write_bytes(b"\0")
    with pytest.raises(ValueError, match="val_answers.bin"):
        _ = open_dataset(folder, "val").answers
    write_dataset(folder, splits, CharTokenizer("abc"))
    assert not open_dataset(folder, "val").answers.any()  # the marks were another text's


@pytest.mark.parametrize(
    "name, content",
    [("meta.json", None), ("meta.json", b"{"), ("meta.json", {"answers": [1]}),
     ("meta.json", {"answers": {"after": 1}}),
     ("meta.json", {"dtype": "int8"}), ("meta.json", {"checksums": {}}),
     ("meta.json", {"tokens": {"train": 4}}), ("meta.json", {"tokenizer": "abc"}),
     ("train.bin", None), ("train.bin", b"\0\0\0"), ("train.bin", b"")],
)  # fmt: skip
def test_damaged_files_are_named_in_one_line(folder, name, content):
    """Catches settings of an older format, and what would otherwise show hours into a run."""
    path = folder / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        open_dataset(folder, "train")
    assert "\n" not in str(error.value)


def test_an_id_that_is_not_in_the_vocabulary_is_refused_where_it_is_read(folder):
    """Catches an index error within the embedding, on some device."""
    (folder / "train.bin").write_bytes(np.array([0, 7, 0, 0], np.uint16).tobytes())
    with pytest.raises(ValueError, match="train.bin"):
        read_batch(open_dataset(folder, "train"), [0], 3, False, "cpu")


@pytest.mark.parametrize(
    "wrong", [dict(length=9), dict(batch_size=3), dict(micro_batch=2), dict(eval_texts=1)]
)
def test_sizes_that_do_not_fit_are_refused_before_any_work(folder, wrong):
    """Catches a batch that cannot be split, in the first step of a long run."""
    sizes = dict(length=3, separate_documents=True, batch_size=6, micro_batch=3, eval_texts=2)
    data = [open_dataset(folder, "train")]
    check_sizes(data, **sizes, world=2)
    with pytest.raises(ValueError):
        check_sizes(data, **{**sizes, **wrong}, world=2)


def test_a_disk_without_memory_maps_is_not_called_damage(folder, monkeypatch):
    """Catches the advice to prepare anew, which cannot help."""

    def no_device(*args, **more):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("numpy.memmap", no_device)
    with pytest.raises(ValueError, match="train.bin") as error:
        open_dataset(folder, "train")
    assert AGAIN not in str(error.value)


def test_a_flipped_bit_is_found_where_a_run_begins(folder):
    """Catches training on damaged text, which shows in no step."""
    data = [open_dataset(folder, name) for name in ("train", "val")]
    for path in (folder / "val.bin", folder / "train.bin"):
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        with pytest.raises(ValueError, match=path.name):
            check_sizes(data, 3, False, 6, 3, 2, 1)


def test_a_question_whose_answer_could_not_be_right_is_refused():
    """Catches an answer that stands for a part of it, 2 for 1/2, and a letter without a choice."""
    for answer in ("18", "-1,450,000", ".5"):
        line = {"question": "How many?", "answer": f"So many.\n#### {answer}"}
        assert gsm8k.question(line)["answer"] == answer
    for answer in ("#### 1/2", "#### 1.2.3", "#### 1,5", "#### ,5", "18"):
        with pytest.raises(ValueError):
            gsm8k.question({"question": "How many?", "answer": f"So many.\n{answer}"})
    choices = [{"label": letter, "text": "here"} for letter in "ABCDE"]
    for count, key in ((4, "A"), (5, "F")):
        line = {"question": {"stem": "Where?", "choices": choices[:count]}, "answerKey": key}
        with pytest.raises(ValueError):
            commonsense_qa.question(line)


def test_an_end_still_belongs_to_the_document_that_it_ends():
    """Catches documents whose end is predicted from the next one."""
    numbers = document_numbers(np.array([[5, 9, 5, 5, 9, 9, 5]]), 9)
    assert numbers.tolist() == [[0, 0, 1, 1, 1, 2, 3]]


def test_shakespeare_refuses_a_text_that_is_not_the_one_expected(tmp_path):
    """Catches results that are reported of another text."""
    (tmp_path / "input.txt").write_text("To be, or not to be")
    flags = [f"--out={tmp_path}", f"--source={tmp_path / 'input.txt'}"]
    with pytest.raises(SystemExit, match="SHA-256"):
        as_typed("data/tinyshakespeare/prepare.py", *flags)
    assert not (tmp_path / "meta.json").exists()
