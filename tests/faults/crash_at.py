"""
Dies of SIGKILL in a chosen call that changes a folder: to learn what a power cut or the kernel would leave behind.

CRASH_UNDER   the folder: calls that change something in it are counted
CRASH_AT      the number of the call to die in: just before it, and of a write when half is written; not set: in none
CRASH_LOG     a file that gets a line for each call
CRASH_VICTIM  under torchrun: the first process counts, and this one dies (in no restart): 0, or another in mid-work
CRASH_BATCH   characters that data/text.py encodes at a time, so that a small text has many batches

An interpreter that finds `import crash_at; crash_at.arm()` in a sitecustomize.py obeys these. Called as a script, with
names of modules, it imports those once, and then runs commands in forks of itself: see Forks. And at the end: what is a
command's result, and is it over?
"""

import builtins
import importlib
import io
import json
import os
import queue
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

DIR_FD = {
    "os.mkdir": 2,
    "os.rmdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 1,
}  # its place
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PLAIN = {"open": io.open, "fsync": os.fsync}


def arm():
    """Do what the environment asks for."""
    if "CRASH_BATCH" in os.environ:
        text = importlib.import_module("data.text")
        text.BATCH, text.SAVE_EVERY = int(os.environ["CRASH_BATCH"]), 2
    rank, log = os.environ.get("RANK", "0"), os.environ.get("CRASH_LOG", os.devnull)
    if "CRASH_UNDER" not in os.environ or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return
    victim = os.environ.get("CRASH_VICTIM", rank)
    if "RANK" in os.environ:
        Path(f"{log}.{rank}").write_text(str(os.getpid()))
    if rank == "0":
        other = None if victim == rank else Path(f"{log}.{victim}")
        watch(os.environ["CRASH_UNDER"], int(os.environ.get("CRASH_AT", 0)), log, other)


def watch(folder, at, log, other=None):
    """Count from now on, and die in call number `at`; or let another die there, whose process id is in a file."""
    folder, count, log = (
        os.path.realpath(folder),
        0,
        os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    )

    def due(what, path, dir_fd=-1):
        """Is this call the one? path: of a file, or its descriptor."""
        nonlocal count
        start = os.getcwd() if dir_fd < 0 else os.readlink(f"/proc/self/fd/{dir_fd}")
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)
        path = os.path.normpath(os.path.join(start, path))
        if path != folder and not path.startswith(folder + os.sep):
            return False
        count += 1
        os.write(log, f"{count} {what} {os.path.relpath(path, folder)}\n".encode())
        if count == at and other:
            os.kill(int(other.read_text()), signal.SIGKILL)
        return count == at and not other

    def hook(event, args):
        if event == "open":
            if isinstance(args[0], int) or not args[2] & WRITING:
                return
        elif event not in DIR_FD and event != "os.truncate":
            return
        if due(event, args[0], args[DIR_FD[event]] if event in DIR_FD else -1):
            die()

    class Counted(io.FileIO):
        def write(self, content):
            if due("write", self.fileno()):
                super().write(memoryview(content).cast("B")[: len(content) // 2])
                die()
            return super().write(content)

        def truncate(self, size=None):
            if due("truncate", self.fileno()):
                die()
            return super().truncate(size)

    def counted_open(file, mode="r", buffering=-1, *args, **kwargs):
        if set(mode) <= set("wxab") and "b" in mode and not isinstance(file, int):
            raw = Counted(file, mode)
            return io.BufferedWriter(raw) if buffering else raw
        return PLAIN["open"](file, mode, buffering, *args, **kwargs)

    def counted_fsync(file):
        if due("fsync", file if isinstance(file, int) else file.fileno()):
            die()
        PLAIN["fsync"](file)

    builtins.open = io.open = counted_open
    os.fsync = counted_fsync
    sys.addaudithook(hook)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


# ----------------------------------------------------------------------------------------------------------------------
# many commands, one start of the interpreter


def serve():
    """For each line of JSON on standard input: run its "command" in one process for each of its "environments" (all at
    the same time), in the folder "cwd", standard error in the file "errors", no file longer than "limit" bytes; answer
    with their exit codes. "siblings": as torchrun does, when one fails, end the others."""
    for line in sys.stdin:
        todo = json.loads(line)
        pids = [start(todo, environment) for environment in todo["environments"]]
        codes, deadline = dict.fromkeys(pids), None
        while None in codes.values():
            for pid in [pid for pid in pids if codes[pid] is None]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif deadline and time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                elif todo["siblings"] and any(codes.values()) and not deadline:
                    deadline = time.monotonic() + 30
                    os.kill(pid, signal.SIGTERM)
            time.sleep(0.002)
        print(json.dumps([codes[pid] for pid in pids]), flush=True)


def start(todo, environment):
    """Fork, and run a command there as the interpreter would: its process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ.update(environment)
        os.chdir(todo["cwd"])
        for number, name in enumerate([os.devnull, os.devnull, todo["errors"]]):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        if todo["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (todo["limit"], todo["limit"]))
        arm()
        sys.argv = todo["command"]
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(code)


class Forks:
    """A few such processes, each for a command at a time."""

    def __init__(self, modules, count, root):
        start = [sys.executable, __file__, *modules]
        environment = {
            **os.environ,
            "PYTHONPATH": root,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        pipes = dict(
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
        )
        self.servers, self.free = (
            [subprocess.Popen(start, **pipes) for _ in range(count)],
            queue.SimpleQueue(),
        )
        for server in self.servers:
            self.free.put(server)

    def run(self, folder, command, environments=({},), siblings=False, limit=0):
        """Run a command in `folder`, once for each of the environments: (exit codes, what went to standard error)."""
        (folder / "errors").write_text("")
        todo = dict(command=command, cwd=str(folder), errors=str(folder / "errors"))
        todo |= dict(siblings=siblings, limit=limit, environments=environments)
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


# ----------------------------------------------------------------------------------------------------------------------
# what a command has left

TIMES = {"seconds", "tokens_per_second", "peak_memory_gb"}  # differ from run to run


def plain(value):
    """A value that == compares bit for bit, without what differs from run to run."""
    if hasattr(value, "untyped_storage"):  # a tensor
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items() if key not in TIMES}
    return [plain(x) for x in value] if isinstance(value, list | tuple) else value


def content(path):
    if path.suffix in (".pt", ".pth"):
        return plain(importlib.import_module("torch").load(path, weights_only=True))
    if path.suffix == ".json":
        return plain(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [plain(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return path.read_bytes()


def result(folder):
    """All that is in `out`, by name; the lock is no result."""
    return {
        path.name: content(path)
        for path in sorted((folder / "out").iterdir())
        if path.name != "lock"
    }


def differences(found, wanted):
    """In words, or nothing."""
    names = [f"left: {n}" for n in found.keys() - wanted.keys()] + [
        f"no {n}" for n in wanted.keys() - found.keys()
    ]
    return "; ".join(
        [*names, *(f"{n} differs" for n in wanted.keys() & found.keys() if wanted[n] != found[n])]
    )


def alive(folder):
    """The processes that were started in a folder and have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found += [path.parent.name] if os.readlink(path) == str(folder) else []
        except OSError:  # it has just ended
            pass
    return found


def ended(folder, seconds=5):
    """Have they all, that long from now?"""
    deadline = time.monotonic() + seconds
    while alive(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(folder)


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a process that has threads cannot be forked"
    serve()
