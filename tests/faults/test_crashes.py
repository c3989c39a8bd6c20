"""Killed in any call that changes a file, a command that is given again ends as if nothing had happened."""

import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import COMMON, ROOT, SHAPE

from data.dataset import open_dataset
from lib.runs import load_model
from lib.shards import read_shards, shards_reader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and looks into /proc")

HERE = Path(__file__).resolve().parent
LANES = 2  # commands at a time
KILLED = -signal.SIGKILL
TIMES = {"seconds", "tokens_per_second"}  # differ from run to run
TRAIN = ["train.py", *COMMON, "--max_steps=3", "--save_every=1", "--data=../data"]
THINK = [*TRAIN, "--init_from=../base", "--thought_len=2"]
TEXT = ["data/textfile/prepare.py", "--source=../some.txt", "--tokenizer=../tokenizer", "--val_share=0.2"]
ASK = "--run=../thinks --out=out --device=cpu".split()
COMMANDS = {  # each is given in a folder of its own, beside what it needs, and writes the folder `out`
    "train": [*THINK, "--out=out"],
    "train_keep": [*THINK, "--out=out", "--keep=3", "--max_steps=5"],
    "train_fsdp": [*THINK, "--out=out", "--parallel=fsdp"],
    "text": [*TEXT, "--processes=1", "--out=out"],
    "arithmetic": ["data/arithmetic/prepare.py", "--train_documents=40", "--val_documents=9", "--out=out"],
    "gsm8k_data": ["data/gsm8k/prepare.py", "--source=../source.jsonl", "--any_hash", "--out=out"],
    "export": ["-m", "lib.export", "--run=../thinks", "--out=out"],
    "gsm8k": ["eval.py", "gsm8k", *ASK, "--data=../gsm8k", "--n=3", "--max_new_tokens=4"],
    "gains": ["eval.py", "gains", *ASK, "--texts=4", "--page_tokens=24"],
}


def script(command):
    """With the whole path of its script."""
    return command if command[0] == "-m" else [str(ROOT / command[0]), *command[1:]]


class Forks:
    """Runs commands in forks of a few processes that have imported everything: see crash_at.py."""

    def __init__(self):
        modules = "train eval lib.export matplotlib.figure torch.distributed.fsdp torch.distributed.checkpoint".split()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        start = [sys.executable, str(HERE / "crash_at.py"), *modules, "matplotlib.backends.backend_agg"]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        self.servers = [subprocess.Popen(start, **pipes) for _ in range(LANES)]
        self.free = queue.SimpleQueue()
        for server in self.servers:
            self.free.put(server)

    def run(self, folder, command, environments=({},), siblings=False, limit=0):
        """Run a command in `folder`, once for each of the environments: (exit codes, what went to standard error)."""
        common = {"CRASH_BATCH": "300", "CRASH_UNDER": str(folder / "out"), "CRASH_LOG": str(folder / "calls")}
        (folder / "calls").unlink(missing_ok=True)
        (folder / "errors").write_text("")
        todo = dict(command=script(command), cwd=str(folder), errors=str(folder / "errors"))
        todo |= dict(siblings=siblings, limit=limit, environments=[{**common, **some} for some in environments])
        server = self.free.get()
        try:
            server.stdin.write(json.dumps(todo) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline()), (folder / "errors").read_text()
        finally:
            self.free.put(server)

    def close(self):
        for server in self.servers:
            server.stdin.close()
            server.wait()


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Forks and, in their folder `top`, what the commands need: a text, questions, a base model and a thinking one."""
    forks, forks.top = (made := Forks()), tmp_path_factory.mktemp("crashes")
    write_byte_tokenizer(made.top / "tokenizer")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh ", k=rng.randrange(20, 200))).strip() + "é" for _ in range(60)]
    (made.top / "some.txt").write_text("\n\n\n".join(words), "utf-8")
    questions = [{"question": f"What is {n} and 2?", "answer": f"#### {n + 2}"} for n in range(5)]
    (made.top / "source.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    yield made
    made.close()


@pytest.fixture(scope="module")
def trained(forks):
    """The same with the models."""
    base = [*TRAIN, "--objective=lm", "--init_from=", *SHAPE, "--out=../base"]
    steps = dict(data=[*TEXT, "--processes=1", "--out=../data"], base=base, thinks=[*THINK, "--out=../thinks"])
    steps["gsm8k"] = [*COMMANDS["gsm8k_data"][:-1], "--out=../gsm8k"]
    for name, command in steps.items():
        codes, errors = forks.run(fresh(forks, f"make_{name}"), command)
        assert codes == [0], errors
    return forks


def fresh(forks, name):
    (forks.top / name).mkdir()
    return forks.top / name


# ----------------------------------------------------------------------------------------------------------------------
# what a command has left


def plain(value):
    """A value that == compares bit for bit, without what differs from run to run."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items() if key not in TIMES}
    return [plain(x) for x in value] if isinstance(value, list | tuple) else value


def shards(path):
    """All tensors of a sharded checkpoint, and the names of its files."""
    kinds = shards_reader(path).read_metadata().state_dict_metadata.items()
    state = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in kinds}
    read_shards(path, state, no_dist=True)
    return plain(state), sorted(file.name for file in path.iterdir())


def content(path):
    if path.suffix == ".dcp":
        return shards(path)
    if path.suffix in (".pt", ".pth"):
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return plain(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [plain(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return path.read_bytes()


def result(folder):
    """All that is in `out`, by name; the lock is no result."""
    return {path.name: content(path) for path in sorted((folder / "out").iterdir()) if path.name != "lock"}


def differences(found, wanted):
    """In words, or nothing."""
    names = [f"left: {n}" for n in found.keys() - wanted.keys()] + [f"no {n}" for n in wanted.keys() - found.keys()]
    return "; ".join([*names, *(f"{n} differs" for n in wanted.keys() & found.keys() if wanted[n] != found[n])])


def half_seen(command, folder, wanted):
    """What a reader is told right after the kill, if it is neither an error of one line nor all of the truth."""
    out = folder / "out"
    try:
        if "prepare.py" in command[0] and "train.bin" in wanted:
            got = {f"{split}.bin": open_dataset(out, split).tokens.tobytes() for split in ("train", "val")}
        elif "lib.export" in command:
            got = {"model": plain(load_model(out)[0].state_dict())}
            wanted = {"model": plain(load_model(folder.parent / "thinks")[0].state_dict())}
        elif "train.py" in command[0]:
            return "" if load_model(out)[3] in range(1, 6) else "a model of no step"
        else:
            return ""
    except ValueError as error:
        return "" if "\n" not in str(error) else f"an error of several lines: {error}"
    return differences(got, {name: wanted[name] for name in got})


# ----------------------------------------------------------------------------------------------------------------------
# killed in every call


def ranks(victim=None, at=0):
    """Environments of two processes as torchrun gives them, of which `victim` dies in call number `at`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = dict(WORLD_SIZE="2", GROUP_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    common |= dict(TORCHELASTIC_RESTART_COUNT="0", CRASH_RANK=str(victim), CRASH_AT=str(at))
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]


def environments(victim, at=0):
    return [{"CRASH_AT": str(at)}] if victim is None else ranks(victim, at)


def undisturbed(forks, name, command, victim=None):
    """(what a command leaves, the calls it makes)."""
    folder = fresh(forks, name)
    codes, errors = forks.run(folder, command, environments(victim), victim is not None)
    assert not any(codes), errors
    return result(folder), (folder / "calls").read_text().splitlines()


def crash_and_go_on(forks, name, command, wanted, calls, at, victim=None):
    """Die in these calls, one after the other, of the command; give it again: what is wrong then, in words."""
    folder, siblings, wrong = fresh(forks, name), victim is not None, ""
    for n, call in enumerate(at):
        codes, errors = forks.run(folder, command, environments(victim, call), siblings)
        if n == 0 and codes[victim or 0] != KILLED:
            return f"it was not killed: {codes}, {errors[-2000:]}"
        wrong = wrong or half_seen(command, folder, wanted)
    left = sorted(path.name for path in (folder / "out").glob("*"))
    codes, errors = forks.run(folder, command, environments(victim), siblings)
    wrong = f"then a reader sees: {wrong}" if wrong else ""
    if any(codes):
        wrong += f" given again it says {codes}: {errors[-2000:]}"
    elif differed := differences(result(folder), wanted):
        wrong += f" in the end: {differed}"
    return wrong and f"killed in {[calls[call - 1] for call in at if call <= len(calls)]}, left {left}: {wrong}"


def sweep(forks, name, command, victim=None, twice=0):
    """Die in every call, and `twice` times in another while it goes on as well: nothing may be wrong."""
    start = time.perf_counter()
    wanted, calls = undisturbed(forks, name, command, victim)
    rng, numbers = random.Random(0), range(1, len(calls) + 1)
    points = [(n,) for n in numbers] + [(rng.choice(numbers), rng.choice(numbers)) for _ in range(twice)]

    def check(at):
        return crash_and_go_on(forks, f"{name}_{'_'.join(map(str, at))}", command, wanted, calls, at, victim)

    with ThreadPoolExecutor(LANES) as pool:
        wrong = [text for text in pool.map(check, points) if text]
    print(f"{name}: {len(calls)} calls, {len(points)} points, {time.perf_counter() - start:.0f} s, {len(wrong)} wrong")
    assert len(calls) > 3 and not wrong, "\n".join(wrong)


def test_data_is_prepared_in_spite_of_a_kill_in_any_call(forks):
    sweep(forks, "text", COMMANDS["text"], twice=10)
    sweep(forks, "arithmetic", COMMANDS["arithmetic"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("text", "arithmetic", "train_fsdp")])
def test_a_command_ends_well_in_spite_of_a_kill_in_any_call(trained, name):
    sweep(trained, name, COMMANDS[name], twice=20)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_sharded_run_ends_well_in_spite_of_a_kill_of_one_process_in_any_call(trained, victim):
    sweep(trained, f"train_fsdp_{victim}", COMMANDS["train_fsdp"], victim, twice=10)
