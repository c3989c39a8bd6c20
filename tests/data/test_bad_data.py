"""Text and datasets on a bad day: nothing is read as what it is not, and nothing that was prepared is lost."""

import bz2
import gzip
import json
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from test_text import config, some_documents, stream, written
from test_text import tokenizer as tokenizer  # a fixture
from tiny_runs import ROOT

from data import hub
from data.dataset import open_dataset, write_dataset
from data.download import fetch
from data.text import prepare_text, read_documents, text_files
from lib.tokenizer import CharTokenizer

LINES = b"".join(
    json.dumps({"text": f"document {n}", "url": "x", "score": float("nan")}).encode() + b"\n"
    for n in range(3)
)


@pytest.mark.parametrize(
    "name", ["c4-train.00000-of-01024.json.gz", "a.json", "a.ndjson", "a.txt", "lines", "a.bz2"]
)
def test_json_lines_are_known_by_what_they_are(tmp_path, capsys, name):
    content = {"gz": gzip.compress, "bz2": bz2.compress}.get(name.split(".")[-1], bytes)(LINES)
    (tmp_path / name).write_bytes(content)
    texts = [text for text, _ in read_documents([tmp_path / name])]
    assert texts == ["document 0", "document 1", "document 2"]
    assert ("holds JSON lines" in capsys.readouterr().err) == ("json" not in name), (
        "where the name does not say it"
    )


def test_text_that_only_begins_with_a_brace_is_text(tmp_path):
    for text in ("{not json}\n\n\nb", '{"title": "no text"}\n\n\nb', '["text"]\n\n\nb', "{\n\n\nb"):
        (tmp_path / "a.txt").write_text(text)
        assert [x for x, _ in read_documents([tmp_path / "a.txt"])] == text.split("\n\n\n")


def test_a_damaged_gz_is_one_line(tmp_path):
    content, path = (
        gzip.compress(
            b"some text " * 3000 + bytes(np.random.default_rng(0).bytes(3000)).hex().encode()
        ),
        tmp_path / "a.txt.gz",
    )
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            list(read_documents([path]))
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("row", [{"text": None}, {"body": "x"}, {"text": ["a"]}, {"text": 5}])
def test_rows_of_a_corpus_without_a_text_are_one_line(monkeypatch, row):
    stream = SimpleNamespace(skip=lambda n: [{"text": "a"}, row])
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: stream)
    )
    documents = hub.hub_documents("some/corpus", None, "main")(0)
    assert next(documents) == ("a", 1)
    with pytest.raises(ValueError, match="some/corpus .*'text'") as error:
        next(documents)
    assert "\n" not in str(error.value)


def test_a_broken_download_is_one_line(tmp_path, monkeypatch):
    import http.client
    import urllib.request

    def broken(url, timeout):
        raise http.client.IncompleteRead(b"")

    monkeypatch.setattr(urllib.request, "urlopen", broken)
    with pytest.raises(ValueError, match="cannot download http://x .*--source=FILE"):
        fetch("http://x", tmp_path / "x", "0")


@pytest.mark.parametrize("loss", ["gone", "short", "changed"])
def test_a_prepare_that_lost_its_tokens_does_not_go_on_with_zeros(tmp_path, tokenizer, loss):
    out, texts = tmp_path / "out", some_documents()
    with pytest.raises(KeyboardInterrupt):
        prepare_text(stream(texts, 150), out, {}, config(tokenizer))
    path = out / "train.bin"
    content = path.read_bytes()
    assert (out / "progress.json").exists() and len(content) > 100
    if loss == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:50] if loss == "short" else b"\1\0" + content[2:])
    with pytest.raises(ValueError, match="train.bin|delete") as error:
        prepare_text(stream(texts), out, {}, config(tokenizer))
    assert "\n" not in str(error.value)
    path.write_bytes(content)
    prepare_text(stream(texts), out, {}, config(tokenizer))
    prepare_text(stream(texts), tmp_path / "whole", {}, config(tokenizer))
    assert written(out) == written(tmp_path / "whole")
    assert (out / "meta.json").read_bytes() == (tmp_path / "whole" / "meta.json").read_bytes()
    path.unlink()  # of a dataset that was complete
    with pytest.raises(ValueError, match="train.bin"):
        prepare_text(stream(texts), out, {}, config(tokenizer))


def test_two_prepares_into_one_folder_do_not_mix(tmp_path):
    """Four at a time, each another corpus: one of them is there in the end, whole."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "data/arithmetic/prepare.py",
        f"--out={out}",
        "--train_documents=3000",
    ]
    some = [
        subprocess.Popen([*command, f"--seed={n}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    ends = [(process.communicate()[1], process.returncode) for process in some]
    assert 0 in [code for _, code in ends]
    for said, code in ends:
        assert code == 0 or said.count("\n") == 1 and "another process is writing in" in said
    whole = [n for n, (_, code) in enumerate(ends) if code == 0]
    found = (out / "train.bin").read_bytes(), (out / "val.bin").read_bytes()
    for n in whole:
        subprocess.run(
            [*command[:2], f"--out={tmp_path / str(n)}", command[3], f"--seed={n}"],
            cwd=ROOT,
            check=True,
        )
    alone = [
        (
            (tmp_path / str(n) / "train.bin").read_bytes(),
            (tmp_path / str(n) / "val.bin").read_bytes(),
        )
        for n in whole
    ]
    assert found in alone
    open_dataset(out, "train")


META = {"vocab_size": 3, "dtype": "uint16", "tokens": {"train": 6, "val": 2}, "document_end": 2}


@pytest.mark.parametrize(
    "change",
    [{"dtype": "int16"}, {"dtype": "float16"}, {"dtype": "uint8"}, {"vocab_size": float("nan")}, {"vocab_size": 3.0},
     {"vocab_size": 0}, {"vocab_size": None}, {"document_end": "2"}, {"document_end": 7}, {"document_end": -1},
     {"tokens": {"train": 6}}, {"tokens": {"train": "6", "val": 2}}, {"tokens": [6, 2]}, {"tokenizer": "char"},
     {"answers": {"after": 9, "among": [1]}}, {"answers": {"after": 1}}, {"answers": [1]}, {"checksums": {"train": 1}},
     {"checksums": {"train": 1, "val": 1}}],
    ids=str,
)  # fmt: skip
def test_a_description_that_is_none_is_refused(tmp_path, change):
    write_dataset(
        tmp_path, {"train": [0, 1, 2, 0, 1, 2], "val": [1, 2]}, CharTokenizer("abc"), document_end=2
    )
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert META.items() <= meta.items()
    assert meta["checksums"]["train"] == zlib.crc32(
        np.array([0, 1, 2, 0, 1, 2], np.uint16).tobytes()
    )
    (tmp_path / "meta.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(ValueError, match="prepare it anew") as error:
        open_dataset(tmp_path, "train")
    assert "\n" not in str(error.value)


def test_tokens_that_were_changed_are_noticed_and_datasets_of_before_there_were_checksums_open(
    tmp_path,
):
    write_dataset(tmp_path, {"train": [0, 1, 2, 0, 1, 2], "val": [1, 2]}, CharTokenizer("abc"))
    (tmp_path / "train.bin").write_bytes(np.array([0, 1, 2, 0, 1, 1], np.uint16).tobytes())
    with pytest.raises(ValueError, match="train.bin .*checksum is wrong"):
        open_dataset(tmp_path, "train")
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["checksums"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert open_dataset(tmp_path, "train").tokens.tolist() == [0, 1, 2, 0, 1, 1]


def test_a_text_with_a_million_spaces_does_not_stop_a_prepare(tmp_path):
    tokenizer = write_byte_tokenizer(tmp_path / "t")
    (tmp_path / "a.txt").write_text("a" + " " * 1_000_000 + "b\n\n\nc\n\n\nd\n\n\ne")
    files = text_files(tmp_path / "a.txt")
    prepare_text(
        lambda n: list(read_documents(files))[n:],
        tmp_path / "out",
        {},
        config(tokenizer, val_share=0.3),
    )
    assert sum(open_dataset(tmp_path / "out", "train").meta["tokens"].values()) == 1_000_002 + 3 + 4


def test_encodings_and_line_ends_other_than_expected(tmp_path):
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="a.txt cannot be read"):
        list(read_documents([tmp_path / "a.txt"]))
    (tmp_path / "a.txt").write_bytes("\ufeffé\r\n\r\n\r\nb".encode())
    assert [text for text, _ in read_documents([tmp_path / "a.txt"])] == ["é", "b"]
