"""
Killed in any call that changes a file: given again, a command ends as if nothing had happened.

    python -m pytest tests/faults/test_crashes.py            some calls of some commands
    python -m pytest tests/faults/test_crashes.py -m slow    every call; -s shows how many
"""

import json
import random
import signal
import sys
from itertools import count

import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from crash_at import Commands
from tiny_runs import COMMON, ROOT, SHAPE

from data.dataset import open_dataset
from lib.checkpoint import checkpoints
from lib.runs import load_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and looks into /proc")

MODULES = ["train", "torch._dynamo", "matplotlib.backends.backend_agg"]
MODULES += ["torch.distributed.fsdp", "data.text"]
TRAIN = ["train.py", *COMMON, "--max_steps=3", "--save_every=1", "--data=../data"]
BASE = [*TRAIN, "--objective=lm", "--init_from=", *SHAPE]
THINK = [*TRAIN, "--init_from=../base", "--thought_len=2"]
TEXT = ["data/textfile/prepare.py", "--source=../some.txt", "--tokenizer=../tokenizer"]
TEXT += ["--val_share=0.2"]
GSM8K = ["data/gsm8k/prepare.py", "--source=../source.jsonl", "--any_hash"]
ASK = ["eval.py", "gsm8k", "--run=../thinks", "--data=../gsm8k", "--device=cpu"]
COMMANDS = {  # each is given in a folder of its own beside what it needs, with --out=out
    "train": THINK,
    "train_fsdp": [*THINK, "--parallel=fsdp"],
    "export": ["-m", "lib.export", "--run=../thinks"],
    "text": TEXT,
    "arithmetic": ["data/arithmetic/prepare.py", "--train_documents=40", "--val_documents=9"],
    "gsm8k_data": GSM8K,
    "gsm8k": [*ASK, "--n=3", "--max_new_tokens=4"],
}
DIFFER = {"seconds", "tokens_per_second", "peak_memory_gb"}  # from run to run


class Site:
    """A folder with data, a base model and a thinking one, beside which commands are given."""

    def __init__(self, top):
        self.top, self.numbers = top, count()
        self.commands = Commands(MODULES, ROOT)
        write_byte_tokenizer(top / "tokenizer")
        rng = random.Random(0)
        texts = ["".join(rng.choices("abcdefgh é", k=rng.randrange(10, 200))) for _ in range(60)]
        (top / "some.txt").write_text("\n\n\n".join(texts), "utf-8")
        lines = [{"question": f"What is {n} and 2?", "answer": f"#### {n + 2}"} for n in range(5)]
        (top / "source.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for name, command in {"data": TEXT, "base": BASE, "thinks": THINK, "gsm8k": GSM8K}.items():
            folder = self.new_folder()
            assert self.run(command, folder)[:2] == (0, "")
            (folder / "out").rename(top / name)

    def new_folder(self):
        folder = self.top / f"case_{next(self.numbers)}"
        folder.mkdir()
        return folder

    def run(self, command, folder, at=0):
        """Run a command in a folder, and die in call number `at`: see Commands.run."""
        if command[0] != "-m":
            command = [str(ROOT / command[0]), *command[1:]]
        return self.commands.run([*command, "--out=out"], folder, at)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.commands.close()


def plain(value):
    """A value that == compares bit for bit, without what differs from run to run."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items() if key not in DIFFER}
    return [plain(x) for x in value] if isinstance(value, list | tuple) else value


def content(path):
    if path.suffix in (".pt", ".pth"):
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return plain(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [plain(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return path.read_bytes()


def result(folder):
    """All that a command has left in `out`, by name. The lock is no result, and a kill may leave a
    third checkpoint, which the next save removes."""
    ignored = [folder / "out" / "lock", *checkpoints(folder / "out")[2:]]
    paths = sorted((folder / "out").iterdir())
    return {path.name: content(path) for path in paths if path not in ignored}


def read_at_once(name, folder):
    """What a reader gets right after the kill must be complete, or refused in one line."""
    out = folder / "out"
    try:
        if name.startswith("train") or name == "export":
            step = load_model(out)[3]
            assert step == (int(checkpoints(out)[0].stem[-8:]) if checkpoints(out) else 0)
        elif name in ("text", "arithmetic"):
            open_dataset(out, "train")
            open_dataset(out, "val")
    except ValueError as error:
        assert "\n" not in str(error)


def sweep(site, name, points=None, twice=0):
    """Kill a command in each of its calls (points: in so many of them), `twice` times in another
    call as well while it goes on. Then it must end with the same result, bit for bit."""
    folder, rng, command = site.new_folder(), random.Random(0), COMMANDS[name]
    code, errors, calls = site.run(command, folder)
    wanted = result(folder)
    assert (code, errors) == (0, "") and len(calls) > 3
    assert not [file for file in wanted if file.endswith(".tmp")]
    numbers = range(1, len(calls) + 1)
    kills = [[n] for n in sorted(rng.sample(numbers, min(points or len(calls), len(calls))))]
    kills += [rng.choices(numbers, k=2) for _ in range(twice)]
    for kill in kills:
        folder, what = site.new_folder(), f"{name}, killed in {[calls[n - 1] for n in kill]}"
        for i, n in enumerate(kill):
            code, errors, _ = site.run(command, folder, at=n)
            assert code == -signal.SIGKILL or i > 0, f"{what}: {code}, {errors}"
            read_at_once(name, folder)
        code, errors, _ = site.run(command, folder)
        assert (code, errors) == (0, ""), what
        found = result(folder)
        assert found.keys() == wanted.keys(), what
        assert [file for file in found if found[file] != wanted[file]] == [], what
    print(f"{name}: {len(calls)} calls, {len(kills)} kills")


@pytest.mark.parametrize("name, points", [("train", 16), ("arithmetic", 6), ("export", 6)])
def test_killed_in_some_calls_a_command_ends_well(site, name, points):
    """Catches a half-written file, a file that is missing between two renames, a log or checkpoint
    that a resumed run does not continue bit for bit."""
    sweep(site, name, points)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_in_any_call_a_command_ends_well(site, name):
    """Catches the same in every call, and in two calls one after the other."""
    sweep(site, name, twice=12)
