"""Text files become datasets: no document cut, lost or doubled, whoever interrupts, however many work."""

import bz2
import gzip
import io
import json
import lzma
import random
import sys
import types
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import as_typed

from data import text as text_module
from data.dataset import open_dataset
from data.text import TokenizeConfig, cut, prepare_text, read_documents, text_files
from data.textfile import prepare as textfile


def some_documents(count=200, seed=0):
    rng = random.Random(seed)
    return [
        "".join(rng.choice("abc é漢🙂\n") for _ in range(rng.randint(1, 60))) + f"{n}"
        for n in range(count)
    ]


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "BATCH", 300)
    monkeypatch.setattr(text_module, "SAVE_EVERY", 3)
    return str(write_byte_tokenizer(tmp_path / "tokenizer"))


def config(tokenizer, **more):
    return TokenizeConfig(**{"tokenizer": tokenizer, "val_share": 0.2, "processes": 1, **more})


def stream(texts, stop_after=None):
    """`documents` as prepare_text wants it; Ctrl-C after some."""

    def documents(skip):
        for n, text in enumerate(texts):
            if n == stop_after:
                raise KeyboardInterrupt
            if n >= skip:
                yield text, n + 1

    return documents


def slowly(texts, val_share=0.2):
    """One document after the other: its bytes, then 256."""
    ids = {"train": [], "val": []}
    for text in texts:
        number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        ids["val" if number < val_share * 2**64 else "train"] += [*text.encode(), 256]
    return ids


def written(folder):
    return {split: open_dataset(folder, split).tokens.tolist() for split in ("train", "val")}


@pytest.mark.parametrize("processes", [1, 2])
def test_documents_arrive_whole_in_order_and_on_one_side(tmp_path, tokenizer, processes):
    texts = some_documents()
    meta = prepare_text(stream(texts), tmp_path / "out", {}, config(tokenizer, processes=processes))
    assert written(tmp_path / "out") == slowly(texts)
    assert meta["document_end"] == 256 and meta["documents"] == len(texts)
    assert not list((tmp_path / "out").glob("progress*"))


def test_copies_of_a_document_are_on_the_same_side(tmp_path, tokenizer):
    """Else the held-out text would have been trained on."""
    texts = some_documents(60)
    prepare_text(stream(texts * 3), tmp_path / "out", {}, config(tokenizer))
    ids = {name: bytes(min(i, 255) for i in ids) for name, ids in written(tmp_path / "out").items()}
    train, val = (set(ids[name].split(b"\xff")) for name in ("train", "val"))
    assert not (train & val) - {b""} and len(train | val) == 61


def test_interrupted_at_any_time_and_called_again_it_is_as_if_never_interrupted(
    tmp_path, tokenizer
):
    texts = some_documents()
    for stop_after in (0, 7, 50, 150, 199):
        out = tmp_path / f"out{stop_after}"
        with pytest.raises(KeyboardInterrupt):
            prepare_text(stream(texts, stop_after), out, {}, config(tokenizer))
        with pytest.raises(ValueError, match="no data in"):
            open_dataset(out, "train")
        with open(out / "train.bin", "ab") as file:
            file.write(b"what was written after the last save")
        calls = []

        def documents(skip, calls=calls):
            calls.append(skip)
            return stream(texts)(skip)

        prepare_text(documents, out, {}, config(tokenizer))
        assert written(out) == slowly(texts)
        assert calls[0] > 0 or stop_after < 50, "what was done before is not done again"


def test_a_folder_is_never_mixed_nor_overwritten(tmp_path, tokenizer):
    texts = some_documents(40)
    prepare_text(stream(texts), tmp_path / "done", {"from": "a"}, config(tokenizer))
    assert (
        prepare_text(None, tmp_path / "done", {"from": "a"}, config(tokenizer))["documents"] == 40
    ), "no work twice"
    with pytest.raises(KeyboardInterrupt):
        prepare_text(stream(texts, 5), tmp_path / "begun", {"from": "a"}, config(tokenizer))
    for name in ("done", "begun"):
        for source, settings in (({"from": "b"}, {}), ({"from": "a"}, {"val_share": 0.3})):
            with pytest.raises(ValueError, match="holds another dataset"):
                prepare_text(stream(texts), tmp_path / name, source, config(tokenizer, **settings))


def test_max_tokens_ends_it_after_the_batch_that_reaches_them(tmp_path, tokenizer):
    meta = prepare_text(
        stream(some_documents()), tmp_path / "out", {}, config(tokenizer, max_tokens=2000)
    )
    assert 2000 <= sum(meta["tokens"].values()) < 4000


def test_no_document_held_out_is_said(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="none became val"):
        prepare_text(stream(["one"]), tmp_path / "out", {}, config(tokenizer, val_share=1e-9))
    prepare_text(stream(some_documents()), tmp_path / "out", {}, config(tokenizer))


@pytest.mark.parametrize("separator", ["\n\n\n", "\n", "ab"])
def test_a_file_read_bit_by_bit_is_cut_where_all_of_it_would_be(separator):
    """A separator may lie across two bits, or be half there."""
    rng = random.Random(1)
    for size in (1, 2, 3, 5, 100):
        text = "".join(rng.choice("ab\n") for _ in range(200)) + "x" * 30
        assert list(cut(io.StringIO(text), separator, size)) == text.split(separator)
    assert list(cut(io.StringIO(""), separator)) == [""]


def test_files_of_all_kinds(tmp_path):
    texts = ["one\n\ntwo", "dréi 漢", "vier"]
    plain = ("\n\n\n".join(texts) + "\n\n\n \n").encode()
    rows = "".join(json.dumps({"page": text, "n": 1}) + "\n" for text in texts + ["", " "]).encode()
    for name, content in {
        "a.txt": plain,
        "b.txt.gz": gzip.compress(plain),
        "c.md.xz": lzma.compress(plain),
        "d/e.txt.bz2": bz2.compress(plain),
        "f.jsonl": rows,
        "g.jsonl.xz": lzma.compress(rows),
        ".hidden": b"\xff",
    }.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    files = text_files(tmp_path / "files")
    assert [path.name for path in files] == [
        "a.txt",
        "b.txt.gz",
        "c.md.xz",
        "e.txt.bz2",
        "f.jsonl",
        "g.jsonl.xz",
    ]
    found = list(read_documents(files, key="page"))
    assert [text.strip() for text, _ in found if text.strip()] == texts * 6
    positions = [position for _, position in found]
    assert positions == sorted(positions) and positions[-1] <= sum(
        path.stat().st_size for path in files
    )
    assert text_files(tmp_path / "files", "*.jsonl") == [tmp_path / "files" / "f.jsonl"]
    assert [text for text, _ in read_documents([tmp_path / "files" / "a.txt"], "")] == [
        plain.decode().strip("\n")
    ]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.txt", b"caf\xe9", "a.txt cannot be read .*'utf-8' codec"),
        ("a.txt.gz", gzip.compress(b"x" * 10**5)[:-20], "cannot be read .*ended before"),
        ("a.txt.xz", b"not xz", "cannot be read"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"content": "x"}\n',
            "line 2: no object with a text at 'text'",
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', "line 2: no object with a text at"),
        ("a.jsonl", b'{"text": "x"\n', "line 1: no object"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=expected) as error:
        list(read_documents(text_files(tmp_path)))
    assert "\n" not in str(error.value)


def test_the_script_prepares_a_folder_and_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    tokenizer = write_byte_tokenizer(tmp_path / "t")
    (tmp_path / "in").mkdir()
    texts = some_documents(50)
    (tmp_path / "in" / "a.txt").write_text("|".join(texts).replace("\n", " "), "utf-8")
    flags = [
        f"--tokenizer={tokenizer}",
        f"--out={tmp_path / 'out'}",
        "--separator=|",
        "--val_share=0.2",
    ]
    for source, expected in (
        ("nowhere", "there is no file or folder nowhere"),
        ("", "--source=FILE or FOLDER"),
    ):
        monkeypatch.setattr("sys.argv", ["prepare.py", f"--source={source}", *flags])
        with pytest.raises(SystemExit) as stop:
            textfile.main()
        assert expected in str(stop.value.code) + capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["prepare.py", f"--source={tmp_path / 'in'}", *flags])
    textfile.main()
    assert "50 documents" in capsys.readouterr().out
    assert written(tmp_path / "out") == slowly([text.replace("\n", " ") for text in texts])


@pytest.mark.parametrize("corpus", ["c4", "openwebmath"])
def test_corpora_of_the_hub_are_streamed(tmp_path, monkeypatch, capsys, corpus):
    """A stand-in for the package datasets, with the two calls that are made of it."""
    texts, asked = some_documents(30), {}

    class Stream(list):
        def skip(self, n):
            return Stream(self[n:])

    def load_dataset(name, subset, **more):
        asked.update(name=name, subset=subset, **more)
        return Stream({"text": text, "url": ""} for text in texts)

    tokenizer = write_byte_tokenizer(tmp_path / "t")
    flags = [
        f"--tokenizer={tokenizer}",
        f"--out={tmp_path / 'out'}",
        "--val_share=0.2",
        "--processes=1",
    ]
    monkeypatch.setattr("sys.argv", ["prepare.py", *flags])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="pip install datasets"):
        as_typed(f"data/{corpus}/prepare.py")
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    as_typed(f"data/{corpus}/prepare.py")
    assert (
        written(tmp_path / "out") == slowly(texts)
        and asked["streaming"]
        and asked["split"] == "train"
    )
    assert "30 documents" in capsys.readouterr().out


def test_ids_are_written_in_the_smallest_type(tmp_path, tokenizer):
    prepare_text(stream(some_documents()), tmp_path / "out", {}, config(tokenizer))
    assert open_dataset(tmp_path / "out", "val").tokens.dtype == np.uint16
    assert Path(tmp_path / "out" / "tokenizer.json").exists()
