"""lib/checkpoint.py: the newest checkpoint that is not damaged. (tests/lib/test_weights.py holds
load_tensors to running nothing.)"""

import pytest
import torch

from lib.checkpoint import checkpoints, read_checkpoint, save_checkpoint


def state(step):
    weight = torch.full((4000,), float(step))
    return {"step": step, "metrics": {"seconds": 1.5}, "model": {"weight": weight}}


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def test_the_two_newest_are_kept_and_other_files_are_left_alone(tmp_path):
    """Catches checkpoints that pile up, an order by text ("9" after "10"), and a copy that somebody
    made and that is deleted."""
    others = [tmp_path / name for name in ("checkpoint_00000001_mine.pt", "checkpoint_1.pt")]
    for path in others:
        path.write_bytes(b"")
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, state(step))
    names = ["checkpoint_00000011.pt", "checkpoint_00000010.pt"]
    assert [path.name for path in checkpoints(tmp_path)] == names
    assert all(path.exists() for path in others)
    assert torch.equal(read_checkpoint(tmp_path)["model"]["weight"], torch.full((4000,), 11.0))


@pytest.mark.parametrize("part, value", [("weight", "inf"), ("exp_avg", "nan")])
def test_numbers_that_are_not_finite_are_neither_saved_nor_read(tmp_path, part, value):
    """Catches a run that goes on from moments (AdamW's) which make its next step nonsense."""
    save_checkpoint(tmp_path, state(4))
    tensors = {"weight": torch.zeros(3), "exp_avg": torch.zeros(3)}
    tensors[part][1] = float(value)
    moments = {"state": {"weight": {"exp_avg": tensors["exp_avg"]}}}
    bad = {**state(5), "model": {"weight": tensors["weight"]}, "optimizer": moments}
    with pytest.raises(ValueError, match="step 5"):
        save_checkpoint(tmp_path, bad)
    torch.save(bad, tmp_path / "checkpoint_00000005.pt")
    assert read_checkpoint(tmp_path)["path"].name == "checkpoint_00000004.pt"


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b""], ids=["cut", "flip", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, capsys, damage):
    """Catches a damaged file that is loaded (torch.load does not notice the flipped bit), one that
    is the end of the run, and a silent step back."""
    for step in (3, 4):
        save_checkpoint(tmp_path, state(step))
    newest, before = checkpoints(tmp_path)
    newest.write_bytes(damage(newest.read_bytes()))
    assert read_checkpoint(tmp_path)["step"] == 3
    errors = capsys.readouterr().err
    assert newest.name in errors and before.name in errors and errors.count("\n") == 1
    save_checkpoint(tmp_path, state(4))
    assert read_checkpoint(tmp_path)["step"] == 4


def test_no_checkpoint_or_only_damaged_ones_is_one_line(tmp_path):
    """Catches a traceback, a run that begins anew over its damaged checkpoints, and a KeyError far
    from a file of something else, which lacks the key."""
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_checkpoint(tmp_path)
    torch.save({"weights": torch.ones(2)}, tmp_path / "checkpoint_00000001.pt")
    with pytest.raises(ValueError, match="checkpoint_00000001.pt"):
        read_checkpoint(tmp_path)
    for step in (3, 4):
        save_checkpoint(tmp_path, state(step))
    for path in checkpoints(tmp_path):
        path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(ValueError, match="checkpoint_00000004.pt.*checkpoint_00000003.pt") as error:
        read_checkpoint(tmp_path)
    assert "\n" not in str(error.value)
