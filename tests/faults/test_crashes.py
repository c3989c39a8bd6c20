"""Killed in any call that changes a file, or short of room: given again, a command ends as if nothing had happened.

python -m pytest tests/faults/test_crashes.py            a few kills of prepare.py
python -m pytest tests/faults/test_crashes.py -m slow    every command, every call; -s shows how many
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, groupby
from pathlib import Path

import pytest
from byte_tokenizer import write_byte_tokenizer
from crash_at import Forks, alive, content, differences, ended, result
from tiny_runs import COMMON, ROOT, SHAPE

from data.dataset import open_dataset
from lib.runs import load_model

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="it forks, mounts, and looks into /proc"
)

LANES = 2  # commands at a time
MODULES = "train eval torch._dynamo matplotlib.figure matplotlib.backends.backend_agg torch.distributed.fsdp".split()
TRAIN = ["train.py", *COMMON, "--max_steps=3", "--save_every=1", "--data=../data"]
BASE = [*TRAIN, "--objective=lm", "--init_from=", *SHAPE, "--out=../base"]
THINK = [*TRAIN, "--init_from=../base", "--thought_len=2"]
TEXT = "data/textfile/prepare.py --source=../some.txt --tokenizer=../tokenizer --val_share=0.2 --processes=1".split()
LINES = ["data/arithmetic/prepare.py", "--train_documents=40", "--val_documents=9", "--out=out"]
GSM8K = ["data/gsm8k/prepare.py", "--source=../source.jsonl", "--any_hash"]
ASK = "--run=../thinks --out=out --device=cpu".split()
COMMANDS = {  # each is given in a folder of its own, beside what it needs, and writes the folder `out`
    "train": [*THINK, "--out=out"],
    "train_keep": [*THINK, "--out=out", "--keep=3", "--max_steps=4"],
    "train_fsdp": [*THINK, "--out=out", "--parallel=fsdp"],
    "text": [*TEXT, "--out=out"],
    "arithmetic": LINES,
    "arithmetic_other": [*LINES, "--seed=2"],
    "gsm8k_data": [*GSM8K, "--out=out"],
    "export": ["-m", "lib.export", "--run=../thinks", "--out=out"],
    "export_base": ["-m", "lib.export", "--run=../base", "--out=out"],
    "gsm8k": ["eval.py", "gsm8k", *ASK, "--data=../gsm8k", "--n=3", "--max_new_tokens=4"],
    "gains": ["eval.py", "gains", *ASK, "--texts=4", "--page_tokens=24"],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder whose sitecustomize.py arms every interpreter that has it on its path."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text("import crash_at\ncrash_at.arm()\n")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Forks (see crash_at.py) and, in their folder `top`, what to prepare data from."""
    yield (tiny := begin_forks(tmp_path_factory.mktemp("tiny"), ["data.text"]))
    tiny.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same with a dataset, questions, a base model and a thinking one."""
    tiny = begin_forks(tmp_path_factory.mktemp("trained"), MODULES)
    for command in (
        [*TEXT, "--out=../data"],
        BASE,
        [*THINK, "--out=../thinks"],
        [*GSM8K, "--out=../gsm8k"],
    ):
        assert run(tiny, fresh(tiny), command) == ([0], "")
    yield tiny
    tiny.close()


def begin_forks(top, modules):
    tiny = Forks(modules, LANES, str(ROOT))
    tiny.top, tiny.numbers, rng = top, count(), random.Random(0)
    write_byte_tokenizer(top / "tokenizer")
    for name, n in {"some.txt": 60, "long.txt": 800}.items():
        documents = [
            f"{i} é " + "".join(rng.choices("abcdefgh ", k=rng.randrange(10, 200)))
            for i in range(n)
        ]
        (top / name).write_text("\n\n\n".join(documents), "utf-8")
    questions = [{"question": f"What is {n} and 2?", "answer": f"#### {n + 2}"} for n in range(5)]
    (top / "source.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return tiny


def fresh(tiny, prior=None):
    """A new folder, in which a command was given before, if one is named."""
    folder = tiny.top / f"case_{next(tiny.numbers)}"
    folder.mkdir()
    assert prior is None or run(tiny, folder, COMMANDS[prior]) == ([0], "")
    return folder


def script(command):
    """With the whole path of its script, for it is given in another folder."""
    return command if command[0] == "-m" else [str(ROOT / command[0]), *command[1:]]


def watched(folder, **more):
    """The environment in which the calls that change `out` are counted."""
    return {
        "CRASH_BATCH": "300",
        "CRASH_UNDER": str(folder / "out"),
        "CRASH_LOG": str(folder / "calls"),
        **more,
    }


def run(tiny, folder, command, environments=({},), siblings=False):
    (folder / "calls").unlink(missing_ok=True)
    return tiny.run(
        folder, script(command), [watched(folder, **some) for some in environments], siblings
    )


# ----------------------------------------------------------------------------------------------------------------------
# killed in every call


def environments(victim, at=0):
    """Of one process that dies in call number `at`; or, if a victim is named, of two as torchrun would start them."""
    if victim is None:
        return [{"CRASH_AT": str(at)}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = dict(WORLD_SIZE="2", GROUP_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    common |= dict(CRASH_VICTIM=str(victim), CRASH_AT=str(at))
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]


def undisturbed(tiny, name, victim=None, prior=None):
    """(what a command leaves, the calls it makes)."""
    folder, siblings = fresh(tiny, prior), victim is not None
    codes, errors = run(tiny, folder, COMMANDS[name], environments(victim), siblings)
    found = result(folder)
    assert not any(codes) and not [
        n for n in found if n.endswith(("progress.json", ".tmp", ".part.json"))
    ], errors
    return found, (folder / "calls").read_text().splitlines()


def half_seen(command, folder, rights):
    """What a reader is told right after the kill, if it is neither an error of one line nor a right result."""
    out = folder / "out"
    names = {path.name for path in out.glob("*")} & set().union(*rights)
    try:
        if "train.py" in command[0]:
            return "" if load_model(out)[3] in range(1, 5) else "a model of no step"
        if "train.bin" in rights[0]:
            open_dataset(out, "train"), open_dataset(out, "val")
        elif "lib.export" in command:
            load_model(out)
        else:  # each file for itself
            rights = [{name: right[name] for name in names} for right in rights]
        return (
            ""
            if {name: content(out / name) for name in names} in rights
            else f"a mix: {sorted(names)}"
        )
    except ValueError as error:
        return "" if "\n" not in str(error) else f"an error of several lines: {error}"


def killed_and_given_again(tiny, name, at, rights, calls, victim, prior):
    """Die in these calls of a command, one after the other; give it again: what is wrong then, in words."""
    folder, siblings, command, wrong = fresh(tiny, prior), victim is not None, COMMANDS[name], ""
    for i, call in enumerate(at):
        codes, errors = run(tiny, folder, command, environments(victim, call), siblings)
        if i == 0 and codes[victim or 0] != -signal.SIGKILL:
            return f"{calls[call - 1]}: it was not killed: {codes}, {errors[-2000:]}"
        wrong = wrong or half_seen(command, folder, rights)
        if wrong and prior and not half_seen(COMMANDS[prior], folder, undisturbed(tiny, prior)[0]):
            wrong = ""  # what was there before is there yet, whole
    left = sorted(path.name for path in (folder / "out").glob("*"))
    codes, errors = run(tiny, folder, command, environments(victim), siblings)
    wrong = f"then a reader sees {wrong}; " if wrong else ""
    wrong += (
        f"it says {codes}: {errors[-2000:]}"
        if errors or any(codes)
        else differences(result(folder), rights[0])
    )
    return (
        wrong
        and f"{name}, killed in {[calls[n - 1] for n in at if n <= len(calls)]}, left {left}: {wrong}"
    )


def sweep(tiny, name, victim=None, prior=None, twice=0, every_write=True, most=None):
    """Die in every call (every_write=False: of writes in a row, in the first and the last; most: in so many of them),
    and `twice` times in another as well while it goes on: nothing may be wrong. prior: what wrote the folder before."""
    start, rng = time.perf_counter(), random.Random(0)
    rights = [undisturbed(tiny, some, victim)[0] for some in (name, prior) if some]
    calls = undisturbed(tiny, name, victim, prior)[1]
    rows = [
        [n for n, _ in row]
        for _, row in groupby(enumerate(calls, 1), lambda call: call[1].partition(" ")[2])
    ]
    once = (
        range(1, len(calls) + 1)
        if every_write
        else sorted({n for row in rows for n in (row[0], row[-1])})
    )
    once = rng.sample(once, min(most or len(once), len(once)))
    points = [(n,) for n in once] + [tuple(rng.choices(once, k=2)) for _ in range(twice)]
    with ThreadPoolExecutor(LANES) as pool:
        found = pool.map(
            lambda at: killed_and_given_again(tiny, name, at, rights, calls, victim, prior), points
        )
        wrong = [text for text in found if text]
    print(
        f"{name}: {len(calls)} calls, {len(points)} points, {time.perf_counter() - start:.0f} s, {len(wrong)} wrong"
    )
    assert len(calls) > 3 and not wrong, "\n".join(wrong)


def test_data_is_prepared_in_spite_of_kills(tiny):
    sweep(tiny, "arithmetic", most=12)
    sweep(tiny, "text", most=30)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "text", "arithmetic", "gsm8k_data", "export"])
def test_a_command_ends_well_in_spite_of_a_kill_in_any_call(trained, name):
    sweep(trained, name, twice=12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, victim", [("train_keep", None), ("train_fsdp", 0), ("train_fsdp", 1)]
)
def test_any_kind_of_training_ends_well_in_spite_of_a_kill_in_any_call(trained, name, victim):
    sweep(trained, name, victim, twice=6, every_write=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k", "gains"])
def test_an_evaluation_ends_well_in_spite_of_a_kill_in_any_call(trained, name):
    sweep(trained, name, twice=6, every_write=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arithmetic", "export", "export_base"])
def test_what_was_there_before_is_no_part_of_it(trained, name):
    sweep(
        trained,
        name,
        prior=dict(arithmetic="arithmetic_other", export="export_base", export_base="export")[name],
    )


def begin(site, folder, command, **environment):
    path = os.pathsep.join(map(str, (site, Path(__file__).parent, ROOT)))
    environment = {
        **os.environ,
        **watched(folder, **environment),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }
    with open(folder / "errors", "ab") as errors:
        return subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=errors, stderr=errors
        )


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_under_torchrun_a_killed_process_ends_all_or_is_started_anew(trained, site, restarts):
    wanted, calls = undisturbed(trained, "train_fsdp", 0)
    launch = f"-m torch.distributed.run --nproc_per_node=2 --standalone --max_restarts={restarts}".split()
    command = [*launch, *script(COMMANDS["train_fsdp"])]
    for at in random.Random(restarts).sample(range(1, len(calls) + 1), 3):
        for victim in (0, 1):
            folder, what = fresh(trained), f"process {victim} killed in {calls[at - 1]}"
            code = begin(site, folder, command, CRASH_AT=str(at), CRASH_VICTIM=str(victim)).wait(
                240
            )
            said = (folder / "errors").read_text()
            assert "Signal 9 (SIGKILL)" in said or "exitcode: -9" in said, f"{what}: {said}"
            assert ended(folder) and (code == 0) == bool(restarts), f"{what}: {code}, {said}"
            if not restarts:
                assert begin(site, folder, command).wait(240) == 0, (
                    f"{what}: {(folder / 'errors').read_text()}"
                )
            assert not differences(result(folder), wanted), (
                f"{what}: {differences(result(folder), wanted)}"
            )


@pytest.mark.slow
def test_killed_at_any_moment_prepare_leaves_no_worker_and_goes_on(tiny, site):
    flags = [
        flag.replace("some", "long").replace("processes=1", "processes=2")
        for flag in COMMANDS["text"]
    ]
    command, whole, start = script(flags), fresh(tiny), time.monotonic()
    assert begin(site, whole, command, CRASH_BATCH="1").wait(60) == 0
    wanted, took = result(whole), time.monotonic() - start

    def check(seed):
        folder = fresh(tiny)
        process = begin(site, folder, command, CRASH_BATCH="1")
        time.sleep(random.Random(seed).uniform(0.1, took))
        process.kill()
        process.wait()
        left = [] if ended(folder) else alive(folder)
        code = begin(site, folder, command, CRASH_BATCH="1").wait(60)
        differ = "" if code else differences(result(folder), wanted)
        return (
            left or code or differ
        ) and f"{seed}: {left}, {code}, {differ}, {(folder / 'errors').read_text()}"

    with ThreadPoolExecutor(LANES) as pool:
        wrong = [text for text in pool.map(check, range(30)) if text]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["text", "arithmetic", "gsm8k_data", "export", "train", "gsm8k", "gains"]
)
def test_of_two_that_begin_at_the_same_moment_one_does_it_all(trained, name):
    wanted, _ = undisturbed(trained, name)
    for _ in range(12):
        folder = fresh(trained)
        codes, errors = run(trained, folder, COMMANDS[name], ({}, {}))
        losers, differ = sum(map(bool, codes)), differences(result(folder), wanted)
        said = errors.count("another process is") == errors.count("\n") == losers
        assert losers < 2 and said and not differ, (codes, errors, differ)


# ----------------------------------------------------------------------------------------------------------------------
# no room


@contextmanager
def small_disk(folder, options):
    (folder / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / "out")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder / "out")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["size={}k", "nr_inodes={}", "file size"])
@pytest.mark.parametrize("name", ["train", "text", "arithmetic", "export", "gsm8k", "gains"])
def test_no_room_is_one_line_and_with_room_it_goes_on(trained, name, way):
    wanted, _ = undisturbed(trained, name)
    factor, least = {"size={}k": (1.25, 4), "nr_inodes={}": (1, 2), "file size": (1.5, 600)}[way]
    room = failed = 0
    while True:
        folder, room = fresh(trained), max(int(room * factor), room + 1, least)
        with small_disk(folder, "size=99m" if way == "file size" else way.format(room)):
            limit = room if way == "file size" else 0
            codes, errors = trained.run(
                folder, script(COMMANDS[name]), [{"CRASH_BATCH": "300"}], limit=limit
            )
            if codes == [0]:
                break
            assert codes == [1] and errors.count("\n") == 1 and ".py: error: " in errors, (
                room,
                codes,
                errors,
            )
            subprocess.run(
                ["mount", "-o", "remount,size=99m,nr_inodes=999", str(folder / "out")], check=True
            )
            codes, again = run(trained, folder, COMMANDS[name])
            assert (codes, again) == ([0], "") and not differences(result(folder), wanted), (
                room,
                errors,
                again,
            )
            failed += 1
    print(f"{name}, {way}: {failed} times too small, up to {room}")
    assert failed > 1
