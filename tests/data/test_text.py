"""Text files become datasets: no document is cut, lost or doubled."""

import json
import os
import random
import sys
import types
from hashlib import blake2b

import pytest
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import as_typed

from data.dataset import open_dataset
from data.text import TokenizeConfig, prepare_text, read_documents, text_files
from lib.tokenizer import CharTokenizer


def some_documents(count=100):
    rng = random.Random(0)
    letters = "abc é漢🙂\n"
    return ["".join(rng.choices(letters, k=rng.randint(1, 60))) + f"{n}" for n in range(count)]


@pytest.fixture
def config(tmp_path):
    path = write_byte_tokenizer(tmp_path / "tokenizer")
    return TokenizeConfig(tokenizer=str(path), val_share=0.2)


def one_by_one(texts):
    """The ids of each split, one document after the other: its bytes, then 256."""
    ids = {"train": [], "val": []}
    for text in texts:
        number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        ids["val" if number < 0.2 * 2**64 else "train"] += [*text.encode(), 256]
    return ids


def written(folder):
    return {split: open_dataset(folder, split).tokens.tolist() for split in ("train", "val")}


def test_documents_arrive_in_order_and_all_copies_on_one_side(tmp_path, config):
    """Catches a document that is split, and held-out text that was trained on."""
    texts = some_documents() * 2
    prepare_text(texts, tmp_path / "out", {}, config)
    assert written(tmp_path / "out") == one_by_one(texts)
    meta = open_dataset(tmp_path / "out", "val").meta
    assert meta["document_end"] == 256 and meta["documents"] == 200
    with pytest.raises(ValueError, match="--separator"):  # one split would be empty
        prepare_text(["a"], tmp_path / "other", {}, config)


def test_a_folder_is_never_overwritten(tmp_path, config):
    """Catches an old corpus that comes back as if it were the new one, of files of the same names
    and sizes, and a run whose text changes under it."""
    notes, out = tmp_path / "notes", tmp_path / "out"
    notes.mkdir()
    for number in range(40):
        (notes / f"{number}.txt").write_text(f"one {number:3}")
    flags = [f"--source={notes}", f"--tokenizer={config.tokenizer}", f"--out={out}"]
    as_typed("data/textfile/prepare.py", *flags, "--val_share=0.2")
    before = written(out)
    as_typed("data/textfile/prepare.py", *flags, "--val_share=0.2")  # unchanged: it is there
    (notes / "7.txt").write_text("two   7")
    for share in (0.2, 0.3):
        with pytest.raises(SystemExit, match="out"):
            as_typed("data/textfile/prepare.py", *flags, f"--val_share={share}")
        (notes / "7.txt").write_text("one   7")
    assert written(out) == before


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "part-0-json"])
def test_all_kinds_of_files_are_read(tmp_path, name):
    """Catches a kind that is read as another one, a byte order mark, and blank documents."""
    rows = [{"text": text, "more": 1} for text in ("one\n\n\ntwo", " ", "three")]
    lines = "\n".join(map(json.dumps, rows))
    content = lines if "json" in name else "one\r\n\n\n \n\n\nthree\n"
    (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
    texts = list(read_documents(text_files(tmp_path)))
    assert texts == ["one\n\n\ntwo" if "json" in name else "one", "three"]


@pytest.mark.parametrize(
    "name, content",
    [("a.jsonl", b'{"text": "x"}\n{"content": "x"}\n'), ("a.jsonl", b'{"text": 5}\n'),
     ("a.txt", b"caf\xe9"), ("a.tar", b"a.txt" + b"\0" * 95)],
)  # fmt: skip
def test_what_is_no_text_is_named_in_one_line(tmp_path, name, content, capsys):
    """Catches a traceback of a library, an archive that becomes a corpus, and one Latin-1 file that
    ends the preparation of many."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        list(read_documents(text_files(tmp_path)))
    assert "\n" not in str(error.value)
    if name != "a.jsonl":
        (tmp_path / "b.txt").write_text("good")
        assert list(read_documents(text_files(tmp_path))) == ["good"]
        assert name in capsys.readouterr().err


def test_files_are_chosen_by_their_names(tmp_path, capsys):
    """Catches a sub-folder that is left out without a word, a hidden file, a link that leads back
    for ever, and a pipe that is read for ever."""
    notes, elsewhere = tmp_path / "notes", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "z.md").touch()
    for name in ("b.md", "a/c.md", ".hidden.md", ".git/d.md", "e.txt"):
        (notes / name).parent.mkdir(exist_ok=True, parents=True)
        (notes / name).touch()
    (notes / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(notes)
    os.mkfifo(notes / "pipe.md")
    assert [path.name for path in text_files(notes, "*.md")] == ["c.md", "b.md", "z.md"]
    assert "pipe.md" in capsys.readouterr().err
    for pattern in ("/abs", "*.pdf"):
        with pytest.raises(ValueError, match=pattern.strip("*")):
            text_files(notes, pattern)


def test_documents_want_a_token_that_ends_them(tmp_path):
    """Catches documents that run into each other."""
    CharTokenizer("ab").save(tmp_path)
    with pytest.raises(ValueError, match="alphabet.json"):
        config = TokenizeConfig(tokenizer=str(tmp_path / "alphabet.json"))
        prepare_text(["a", "b"], tmp_path / "out", {}, config)


def test_texts_of_the_hub_are_streamed(tmp_path, config, monkeypatch):
    """Catches a download of all of it, and a stream that is read beyond the document that reaches
    max_tokens. A stand-in for the package datasets."""
    texts, asked, out = some_documents(), {}, tmp_path / "out"

    def load_dataset(name, subset, **more):
        asked.update(name=name, subset=subset, **more)
        return [{"text": text, "url": ""} for text in texts]

    flags = [f"--tokenizer={config.tokenizer}", f"--out={out}", "--val_share=0.2"]
    flags += ["--max_tokens=500", "--subset=en"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="pip install datasets"):
        as_typed("data/openwebmath/prepare.py", *flags)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    as_typed("data/openwebmath/prepare.py", *flags)
    ids, meta = written(out), open_dataset(out, "val").meta
    assert 500 <= len(ids["train"]) + len(ids["val"]) < 800
    assert ids == one_by_one(texts[: meta["documents"]])
    assert asked["streaming"] and asked["split"] == "train" and asked["subset"] == "en"
