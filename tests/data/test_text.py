"""Text files become datasets: no document is cut, lost or doubled."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import sys
import types
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b

import pytest
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import as_typed

from data.dataset import open_dataset
from data.text import TokenizeConfig, cut, prepare_text, read_documents, text_files


def some_documents(count=100):
    rng = random.Random(0)
    letters = "abc é漢🙂\n"
    return ["".join(rng.choices(letters, k=rng.randint(1, 60))) + f"{n}" for n in range(count)]


@pytest.fixture
def config(tmp_path):
    path = write_byte_tokenizer(tmp_path / "tokenizer")
    return TokenizeConfig(tokenizer=str(path), val_share=0.2)


def numbered(texts):
    return ((text, number) for number, text in enumerate(texts, 1))


def one_by_one(texts, val_share=0.2):
    """The ids of each split, one document after the other: its bytes, then 256."""
    ids = {"train": [], "val": []}
    for text in texts:
        number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        ids["val" if number < val_share * 2**64 else "train"] += [*text.encode(), 256]
    return ids


def written(folder):
    return {split: open_dataset(folder, split).tokens.tolist() for split in ("train", "val")}


def test_documents_arrive_in_order_and_all_copies_on_one_side(tmp_path, config, capsys):
    """Catches a document that is split, and held-out text that was trained on."""
    texts = some_documents() * 2
    prepare_text(numbered(texts), tmp_path / "out", {}, config)
    assert written(tmp_path / "out") == one_by_one(texts)
    meta = open_dataset(tmp_path / "out", "val").meta
    assert meta["document_end"] == 256 and meta["documents"] == 200
    assert "200 documents" in capsys.readouterr().out


def test_an_interrupted_preparation_leaves_nothing_and_begins_again(tmp_path, config):
    """Catches half a dataset that is taken for a complete one."""

    def interrupted():
        yield from numbered(some_documents(50))
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        prepare_text(interrupted(), tmp_path / "out", {}, config)
    with pytest.raises(ValueError, match="meta.json"):
        open_dataset(tmp_path / "out", "train")
    assert not list((tmp_path / "out").glob("*.bin*"))
    prepare_text(numbered(some_documents()), tmp_path / "out", {}, config)
    assert written(tmp_path / "out") == one_by_one(some_documents())


def test_a_folder_is_never_overwritten_and_too_little_is_said(tmp_path, config, capsys):
    """Catches a run whose text changes under it, and a val.bin that is found too short in
    training."""
    out, texts = tmp_path / "out", ["a" * 9] * 3 + ["b", "c", "d", "e", "f"]
    prepare_text(numbered(texts), out, {"files": ["a"]}, config)
    assert "--val_share" in capsys.readouterr().out
    before = written(out)
    prepare_text(iter([]), out, {"files": ["a"]}, config)  # it is there already
    others = [({"files": ["b"]}, config), ({"files": ["a"]}, replace(config, val_share=0.3))]
    for source, changed in others:
        with pytest.raises(SystemExit, match="out"):
            prepare_text(numbered(texts), out, source, changed)
    with pytest.raises(SystemExit, match="--separator"):
        prepare_text(numbered(["a"]), tmp_path / "other", {}, config)
    assert written(out) == before


def test_max_tokens_ends_it_with_the_document_that_reaches_them(tmp_path, config):
    """Catches a stream that is read to its end."""
    config.max_tokens = 500
    prepare_text(numbered(some_documents()), tmp_path / "out", {}, config)
    ids = written(tmp_path / "out")
    total, number = len(ids["train"]) + len(ids["val"]), open_dataset(tmp_path / "out", "val").meta
    assert 500 <= total < 800 and ids == one_by_one(some_documents()[: number["documents"]])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("separator", ["|", "\n\n\n", "ab"])
def test_cutting_a_file_bit_by_bit_is_splitting_it(separator, size):
    """Catches a separator that lies across two reads."""
    text = separator.join(["one", "", "a", "aab", "b\n\n", "end"]) + separator
    file = io.StringIO(text)
    assert list(cut(file, separator, file.read(5), size)) == text.split(separator)
    assert list(cut(io.StringIO(text), "")) == [text]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.xz", "a.json.bz2"])
def test_all_kinds_of_files_are_read(tmp_path, name):
    """Catches a kind that is read as another one, a byte order mark, and blank documents."""
    rows = [{"text": text, "more": 1} for text in ("one\n\n\ntwo", " ", "three")]
    lines = "\n".join(map(json.dumps, rows))
    content = (lines if "json" in name else "one\n\n\n \n\n\nthree\n").encode("utf-8-sig")
    packed = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
    content = packed.get(name.split(".")[-1], bytes)(content)
    (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden").write_text("no")
    texts = list(read_documents(text_files(tmp_path)))
    assert [text for text, _ in texts] == ["one\n\n\ntwo" if "json" in name else "one", "three"]
    assert texts[-1][1] == len(content)


@pytest.mark.parametrize(
    "name, content",
    [("a.jsonl", b'{"text": "x"}\n{"content": "x"}\n'), ("a.jsonl", b'{"text": 5}\n'),
     ("a.txt", b"caf\xe9"), ("a.txt.gz", b"no gzip")],
)  # fmt: skip
def test_bad_files_are_named_in_one_line(tmp_path, name, content):
    """Catches a traceback of a library, and a line whose number nobody is told."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        list(read_documents(text_files(tmp_path)))
    assert "\n" not in str(error.value)


def test_of_many_files_one_that_is_not_utf_8_is_named_and_left_out(tmp_path, capsys):
    """Catches one old file in a folder of notes that ends the whole preparation."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_text("good")
    assert [text for text, _ in read_documents(text_files(tmp_path))] == ["good"]
    assert "a.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, content",
    [
        ("notes.tar", b"a.txt" + b"\0" * 95 + b"0000644\0" * 3 + b"text " * 90),
        ("notes.tar.gz", gzip.compress(b"a.txt" + b"\0" * 95 + b"text " * 90, mtime=0)),
        ("a.txt", "some words".encode("utf-16-le")),
        ("a.docx", b"PK\x03\x04\x14\0\0\0\x08\0"),
        ("a.pdf", b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj"),
    ],
)
def test_what_is_no_text_is_refused_by_name_or_left_out(tmp_path, capsys, name, content):
    """Catches an archive or an office file that becomes a corpus, mostly of NULs."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*plain text"):
        list(read_documents(text_files(tmp_path)))
    (tmp_path / "b.txt").write_text("good")
    assert [text for text, _ in read_documents(text_files(tmp_path))] == ["good"]
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("name", ["part-00000", "lines.txt", "part-00000.gz"])
def test_a_first_line_that_is_an_object_makes_json_lines(tmp_path, name):
    """Catches braces and all that become text, because the name tells nothing."""
    lines = b'\n{"text": "one"}\n{"text": "two"}\n'
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    assert [text for text, _ in read_documents(text_files(tmp_path))] == ["one", "two"]
    with pytest.raises(ValueError, match=f"{name}.*content"):
        list(read_documents(text_files(tmp_path), key="content"))
    long = "a" * 2**21
    (tmp_path / name).write_text(json.dumps({"text": long}))
    if not name.endswith("gz"):
        assert [text for text, _ in read_documents(text_files(tmp_path))] == [long]
    (tmp_path / name).unlink()
    (tmp_path / "plain").write_text('{"text": "one", a brace, and no JSON\nmore')
    assert len(list(read_documents(text_files(tmp_path)))) == 1


@pytest.mark.parametrize("separator", ["", "\n\n"])
def test_a_document_that_is_too_long_is_refused(tmp_path, monkeypatch, separator):
    """Catches a small .gz file that takes all memory once it is unpacked."""
    monkeypatch.setattr("data.text.MOST", 2**20)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"word " * 2**19))
    with pytest.raises(ValueError, match="a.gz.*--separator"):
        list(read_documents(text_files(tmp_path), separator))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"word \n\n" * 2**19))
    assert not separator or len(list(read_documents(text_files(tmp_path), separator))) == 2**19


@pytest.mark.parametrize("planted", ["train.bin", "val.bin", "meta.json", "train.bin.tmp"])
def test_a_planted_link_is_not_written_through(tmp_path, config, planted):
    """Catches a file elsewhere that is emptied, because the folder has a link to it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "out" / planted).symlink_to(tmp_path / "precious")
    with suppress(SystemExit):  # a meta.json that is there, but is none
        prepare_text(numbered(some_documents()), tmp_path / "out", {}, config)
        assert written(tmp_path / "out") == one_by_one(some_documents())
    assert (tmp_path / "precious").read_text() == "kept"


def test_folders_behind_links_are_read_once(tmp_path, capsys):
    """Catches a sub-folder that is left out without a word, and a link that leads back for ever."""
    folder, elsewhere = tmp_path / "notes", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "a.md").write_text("a")
    (elsewhere / "b.md").write_text("b")
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert [path.name for path in text_files(folder, "*.md")] == ["a.md", "b.md"]
    os.mkfifo(folder / "pipe.md")
    assert len(text_files(folder, "*.md")) == 2 and "pipe.md" in capsys.readouterr().err
    for pattern in ("/abs", "*.txt", ""):
        with pytest.raises(ValueError, match=re.escape(pattern or "--pattern")):
            text_files(folder, pattern)


def test_another_source_of_the_same_names_and_sizes_is_another_text(tmp_path, config, monkeypatch):
    """Catches an old corpus that comes back as if it were the new one."""
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(40):
        (notes / f"{number}.txt").write_text(f"one {number:3}")
    flags = [f"--source={notes}", f"--tokenizer={config.tokenizer}", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", ["prepare.py", *flags, "--val_share=0.2"])
    as_typed("data/textfile/prepare.py")
    as_typed("data/textfile/prepare.py")  # nothing has changed: it is there
    (notes / "7.txt").write_text("two   7")
    with pytest.raises(SystemExit, match="out"):
        as_typed("data/textfile/prepare.py")


def test_documents_want_a_token_that_ends_them(tmp_path, config):
    """Catches documents that run into each other."""
    path = tmp_path / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="tokenizer"):
        prepare_text(numbered(["a", "b"]), tmp_path / "out", {}, config)


@pytest.mark.parametrize("corpus", ["c4", "openwebmath"])
def test_texts_of_the_hub_are_streamed(tmp_path, config, monkeypatch, corpus):
    """Catches a download of all of it. A stand-in for the package datasets."""
    texts, asked = some_documents(30), {}

    def load_dataset(name, subset, **more):
        asked.update(name=name, subset=subset, **more)
        return [{"text": text, "url": ""} for text in texts]

    flags = [f"--tokenizer={config.tokenizer}", f"--out={tmp_path / 'out'}", "--val_share=0.2"]
    monkeypatch.setattr("sys.argv", ["prepare.py", *flags])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="pip install datasets"):
        as_typed(f"data/{corpus}/prepare.py")
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    as_typed(f"data/{corpus}/prepare.py")
    assert written(tmp_path / "out") == one_by_one(texts)
    assert asked["streaming"] and asked["split"] == "train"
