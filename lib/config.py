"""
Settings: every field of a dataclass is a --flag, and the comment behind it is the flag's help. A
field with the metadata {"flag": False} is none: the program sets it.

    train, model, given = from_cli(__doc__, TrainConfig, ModelConfig)

--config=FILE.toml names a preset of other defaults; a later one overrules an earlier one, and flags
overrule all. Mistakes take one line.
"""

import argparse
import dataclasses
import inspect
import os
import re
import sys
import tomllib
import typing
from contextlib import contextmanager
from pathlib import Path

from lib.files import check, one_line, reading

PATHS = "out data init_from run base text source tokenizer".split()  # the settings that are paths


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message, 400)} (see --help)\n")


def plain_path(text):
    """A path in its normal form: `base/`, `./base` and the whole path are `base`, if it is here."""
    path, here = Path(os.path.expanduser(text)), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def from_cli(description, *classes, preset_only=(), argv=None):
    """An instance of each dataclass, and {name: value} of what was given by flag or preset. Classes
    that are preset_only have no flags."""
    how = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=description, allow_abbrev=False, formatter_class=how)
    how = {"metavar": "FILE.toml", "action": "append", "default": [], "type": plain_path}
    parser.add_argument("--config", help="a preset; flags overrule it", **how)
    for cls in [cls for cls in classes if cls not in preset_only]:
        group = parser.add_argument_group(cls.__name__)
        helps = comments(cls)
        for name, field in fields_of(cls).items():
            if not field.metadata.get("flag", True):
                continue
            text = f"{helps.get(name, '')} (default: {field.default})".replace("%", "%%")
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **option(field))
    given, flags = {}, vars(parser.parse_args(argv))
    presets = flags.pop("config")
    try:
        for preset in presets:
            with reading(preset, "cannot be read as TOML"), open(preset, "rb") as file:
                given |= tomllib.load(file)
        given |= flags
        unknown, parts = dict(given), []
        for cls in classes:
            known = {name: unknown.pop(name) for name in fields_of(cls) if name in unknown}
            parts.append(settings(cls, known))
        if unknown:
            settings(cls, unknown)  # refuses the first of them
    except ValueError as error:
        parser.error(f"{error} (with --config={', '.join(presets)})" if presets else str(error))
    return *parts, given


def fields_of(cls):
    return {field.name: field for field in dataclasses.fields(cls)}


def comments(cls):
    """{name: comment behind it} of a dataclass's fields; a long default may have its own line."""
    source = "".join(map(inspect.getsource, cls.__mro__[-2::-1]))  # with those it inherits
    return dict(re.findall(r"^    (\w+): [^#\n]*(?:\(\n[^#\n]*)?# *(.*)$", source, flags=re.M))


def option(field):
    """How argparse reads a field: bool, int, float, str, `int | None`, Literal["one", "other"]."""
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction}
    kind, *others = typing.get_args(field.type) or [field.type]
    if isinstance(kind, str):
        return {"metavar": f"{{{','.join([kind, *others])}}}"}
    return {"type": kind, "metavar": kind.__name__.upper()}


def settings(cls, given):
    """cls(**given), a dataclass. ValueError for a wrong name or type, and for numbers that are
    negative, infinite or huge: all of them count or weigh something. PATHS get their one form."""
    for name, value in given.items():
        if name not in fields_of(cls):
            raise ValueError(f"there is no setting {one_line(repr(name), 80)}")
        check(value, fields_of(cls)[name].type, name)
        most = 3.4e38 if isinstance(value, float) else 2**53
        if isinstance(value, int | float) and not 0 <= value <= most:
            raise ValueError(f"{name} must be from 0 to {most}, not {value}")
    paths = {name: plain_path(x) for name, x in given.items() if x and name in PATHS}
    return cls(**given | paths)


def run_script(name, description, function, *classes, argv=None):
    """A script: function(*settings from the command line), in one_line_errors."""
    with one_line_errors(name):
        *parts, _ = from_cli(description, *classes, argv=argv)
        return function(*parts)


@contextmanager
def one_line_errors(name):
    """In here, what a user can mend, and Ctrl-C, end the program with one line on stderr. Where
    stdout or stderr is closed, nobody listens."""
    if sys.stdout is None or sys.stderr is None:
        while os.open(os.devnull, os.O_RDWR) < 2:  # or a file of ours would get this number
            pass
        sys.stdout, sys.stderr = (x or open(os.devnull, "w") for x in (sys.stdout, sys.stderr))
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{name}: stopped", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        sys.exit(f"{name}: error: {one_line(error)}")
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        said = f"{type(error).__name__} {error}".lower()
        if not re.search("memoryerror|out ?of ?memory|allocate memory|overflow", said):
            raise
        sys.exit(f"{name}: out of memory: lower batch_size, micro_batch, span or thought_len")
