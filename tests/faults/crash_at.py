"""
Commands that die of SIGKILL in a chosen call that changes a folder, as in a power cut.

Called as a script with names of modules, it imports them once and then runs commands in forks of
itself, for an interpreter with torch takes seconds to start. `Commands` is the other end.
"""

import builtins
import importlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path

CHANGES = {"os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.truncate"}  # audit events
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def watch(folder, at, log):
    """Write a line to the file `log` for each call from now on that changes something in `folder`,
    and die in call number `at` (0: in none): before it, or of a write when half is written."""
    folder, count = os.path.realpath(folder), 0
    log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    plain_open, plain_fsync = io.open, os.fsync

    def is_the_one(call, path):
        """Count a call. path: of a file, or its descriptor."""
        nonlocal count
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)
        path = os.path.abspath(path)
        if path != folder and not path.startswith(folder + os.sep):
            return False
        count += 1
        os.write(log, f"{call} {os.path.relpath(path, folder)}\n".encode())
        return count == at

    def hook(event, args):
        opens = event == "open" and not isinstance(args[0], int) and args[2] & WRITING
        if (opens or event in CHANGES) and is_the_one(event, args[0]):
            die()

    class CountedFile(io.FileIO):
        def write(self, content):
            if is_the_one("write", self.fileno()):
                super().write(memoryview(content).cast("B")[: len(content) // 2])
                die()
            return super().write(content)

    def counted_open(file, mode="r", buffering=-1, *args, **kwargs):
        if mode not in ("wb", "xb", "ab") or isinstance(file, int):
            return plain_open(file, mode, buffering, *args, **kwargs)
        counted = CountedFile(file, mode)
        return io.BufferedWriter(counted) if buffering else counted

    def counted_fsync(file):
        if is_the_one("fsync", file if isinstance(file, int) else file.fileno()):
            die()
        plain_fsync(file)

    builtins.open = io.open = counted_open
    os.fsync = counted_fsync
    sys.addaudithook(hook)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def serve():
    """For each line of JSON on standard input, run its "command", a script or -m and a module, in
    a fork: in the folder "cwd", its subfolder `out` watched. Answer with the exit code."""
    for line in sys.stdin:
        todo = json.loads(line)
        child = os.fork()
        if not child:
            run(**todo)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(command, cwd, at):
    """Run a command as an interpreter would, and end this process."""
    code = 1
    try:
        os.chdir(cwd)
        for number, name in enumerate([os.devnull, os.devnull, "errors"]):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        watch("out", at, "calls")
        sys.argv = command
        if command[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Commands:
    """Runs commands, one at a time, in forks of a process that has imported some modules."""

    def __init__(self, modules, root):
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads do not fork
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {**os.environ, **threads, "PYTHONPATH": str(root)}
        start = [sys.executable, __file__, *modules]
        self.server = subprocess.Popen(start, cwd=root, env=environment, **pipes)

    def run(self, command, folder, at=0):
        """(exit code, what went to standard error, the calls that changed `out`)."""
        todo = {"command": command, "cwd": str(folder), "at": at}
        self.server.stdin.write(json.dumps(todo) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        calls = Path(folder, "calls").read_text().splitlines()
        return code, Path(folder, "errors").read_text(), calls

    def close(self):
        self.server.stdin.close()
        self.server.wait()


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    serve()
