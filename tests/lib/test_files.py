"""lib/files.py: complete files or none, refusals of one line, locks."""

import errno
import fcntl
import os
from typing import Literal

import pytest

from lib import files


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("full"), KeyError()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    """Catches a half-written file under the final name, and a temporary file left on a full disk
    (torch.save raises a RuntimeError there)."""
    path = tmp_path / "a.bin"
    files.replace_file(path, b"old")

    def fails(file):
        file.write(b"half")
        raise error

    with pytest.raises((OSError, KeyError)) as raised:
        files.write_whole(path, fails)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    if not isinstance(error, KeyError):
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


FOLDERS = {
    "run": ["config.json", "config.json log.jsonl checkpoint_8.pt", "checkpoint_00000001.pt"],
    "weights": ["params.json", "config.json model.safetensors", "pytorch_model-00001-of-00002.bin"],
    "run weights": ["config.json checkpoint_00000001.pt params.json"],
    "dataset": ["meta.json train.bin"],
    "": ["", "notes.txt tokenizer.json"],
}


@pytest.mark.parametrize("kinds, names", [(k, names) for k, x in FOLDERS.items() for names in x])
def test_what_a_folder_is(tmp_path, kinds, names):
    """Catches weights taken for a run, which training would write into, and a run whose config.json
    is gone taken for nothing."""
    for name in names.split():
        (tmp_path / name).write_bytes(b"")
    assert files.folder_kind(tmp_path) == set(kinds.split())
    assert files.folder_kind(tmp_path / "absent") == set()


@pytest.mark.parametrize("plant", ["a link", "a pipe"])
def test_what_is_planted_is_neither_followed_nor_waited_for(tmp_path, plant):
    """Catches a file elsewhere that is overwritten through a link, and a pipe that has no end."""
    path, elsewhere = tmp_path / "a.json", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    for name in ("a.json", "a.json.tmp", "lock"):
        if plant == "a link":
            (tmp_path / name).symlink_to(elsewhere)
        else:
            os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="a.json"):
        files.read_json(path)
    with pytest.raises(OSError, match="lock"):
        files.lock(tmp_path)
    files.write_json(path, {"n": 1})
    assert files.read_json(path) == {"n": 1} and not path.is_symlink()
    assert elsewhere.read_bytes() == b"mine" and not (tmp_path / "a.json.tmp").exists()


NO_JSON = [None, b"", b"[1]", b'{"n": 1', b"\xff", b"[" * 100_000]


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
def test_a_file_that_is_no_json_object_is_one_line_that_names_it(tmp_path, content):
    """Catches a traceback, or a line without the file's name, for a missing or damaged file."""
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="a.json") as raised:
        files.read_json(path)
    assert "\n" not in str(raised.value)


def test_any_error_while_reading_names_the_file_but_a_stop_is_a_stop():
    """Catches errors of other packages that pass through, and a Ctrl-C that is taken for damage."""

    class Panic(BaseException):
        """As tiktoken raises it."""

    with pytest.raises(ValueError, match="a.file .*two lines") as error, files.reading("a.file"):
        raise Panic("two\n lines, \x1b[31mred \x9b1m \u202eback")
    assert str(error.value).isprintable()
    with pytest.raises(KeyboardInterrupt), files.reading("a.file"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "wanted, good, bad",
    [
        (int, [0, -3], [True, 1.0, "1", None, 2**70]),
        (float, [1, 0.5], [False, "1", float("nan"), float("inf")]),
        (str, ["", "a"], [1, None]),
        (bool, [True], [1, "True"]),
        (int | None, [None, 4], [0.5, "none"]),
        (Literal["one", "other"], ["one", "other"], ["two", 1, None]),
        ([str], [[], ["a"]], ["a", [1], None]),
        ({"a": int}, [{"a": 1}, {"a": 1, "b": "more"}], [{}, {"a": "1"}, [1]]),
        ({str: float}, [{}, {"x": 1.5}], [{"x": "y"}, []]),
        ({"a": [{"b": int}]}, [{"a": [{"b": 2}]}], [{"a": [{"c": 2}]}, {"a": {"b": 2}}]),
    ],
)
def test_check_takes_what_has_the_shape_and_nothing_else(wanted, good, bad):
    """Catches True taken for 1, NaN for a number, and a level of nesting that is not looked at."""
    for value in good:
        files.check(value, wanted)
    for value in bad:
        with pytest.raises(ValueError):
            files.check(value, wanted)


def test_one_process_per_folder(tmp_path):
    """Catches two runs that write into one folder, and a lock that outlives its process."""
    with files.lock(tmp_path):
        with pytest.raises(ValueError, match=str(tmp_path)):
            files.lock(tmp_path, "training")
    files.lock(tmp_path).close()


def test_a_drive_without_locks_is_used_and_said(tmp_path, monkeypatch, capsys):
    """Catches a run that cannot start on a network drive without locks."""

    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    files.lock(tmp_path).close()
    assert str(tmp_path) in capsys.readouterr().err


def test_results_of_other_settings_are_refused(tmp_path):
    """Catches results that are overwritten, and a refusal that does not name the setting."""
    path, asked = tmp_path / "results.json", {"seed": 1, "names": ["a", "b"]}
    files.refuse_another(path, asked)
    files.write_json(path, {"asked": asked, "score": 0.5})
    files.refuse_another(path, asked)
    for other in ({**asked, "seed": 2}, {**asked, "more": 2}):
        with pytest.raises(ValueError, match="results.json.*(seed|more)"):
            files.refuse_another(path, other)
    files.write_json(path, {"score": 0.5})
    with pytest.raises(ValueError, match="results.json"):
        files.refuse_another(path, asked)
