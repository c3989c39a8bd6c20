"""
Settings: every field of a dataclass is a --flag, and the comment behind it is the flag's help.

    train, model, given = from_cli(__doc__, TrainConfig, ModelConfig)

--config=FILE.toml sets defaults that flags overrule. An unknown flag or key, or a value of the wrong type or out of
range, is an error of one line, on the command line as in files (`settings`).
"""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
import sys
import tomllib
import types
import typing
from contextlib import contextmanager

from lib.files import brief, check, reading


class OneLineErrors(argparse.ArgumentParser):
    def error(self, message):
        self.exit(
            2,
            f"{self.prog}: error: {' '.join(message.split())[:400]} (--help lists all settings)\n",
        )


def from_cli(description, *classes, argv=None):
    """Parse flags into one instance of each dataclass, and a dict of what was given by flag or preset."""
    parser, fields = flags_of(description, classes), fields_of(*classes)
    argv = [plain_flag(argument, fields) for argument in (sys.argv[1:] if argv is None else argv)]
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        parser.error(
            f"unrecognized arguments: {unknown[0]}"
            + "".join(f", --{x}?" for x in meant(name, classes))
        )
    flags = vars(flags)
    preset = flags.pop("config")
    try:
        given = {**(read_preset(preset, fields) if preset else {}), **flags}
        made = [
            settings(cls, {name: x for name, x in given.items() if name in fields_of(cls)})
            for cls in classes
        ]
        return *made, given
    except ValueError as error:
        parser.error(str(error))


def fields_of(*classes):
    return {field.name: field for cls in classes for field in dataclasses.fields(cls)}


def settings(cls, given):
    """cls(**given), a dataclass, of values of the right types and in range. Raises ValueError.

    A number counts or weighs something: it is finite and not negative, unless it is in cls.ANY_NUMBER.
    """
    fields = fields_of(cls)
    for name, value in given.items():
        if name not in fields:
            raise ValueError(f"there is no setting {brief(name)!r}")
        if isinstance(value, int | float):
            most = 2**53 if isinstance(value, int) else sys.float_info.max
            if name in getattr(cls, "ANY_NUMBER", ()) and value == value:
                continue
            if not 0 <= value <= most:
                raise ValueError(f"{name} must not be negative, infinite or huge, as {value} is")
        check(value, fields[name].type, name)
    return cls(**given)


def choices_of(annotation):
    """("one", "other") of Literal["one", "other"], () of any other type."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def flags_of(description, classes):
    """The parser of all fields of dataclasses."""
    parser = OneLineErrors(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.toml", help="a preset; flags overrule it")
    for cls in classes:
        group, helps = parser.add_argument_group(cls.__name__), comments(cls)
        for field in dataclasses.fields(cls):
            text = f"{helps.get(field.name, '')} (default: {field.default})"
            kind = bare_type(field.type)
            if kind is bool:
                option = dict(action=argparse.BooleanOptionalAction)
            else:
                choices, optional = choices_of(field.type), isinstance(field.type, types.UnionType)
                metavar = f"{{{','.join(choices)}}}" if choices else kind.__name__.upper()
                option = dict(type=or_none(kind) if optional else kind, metavar=metavar)
            group.add_argument(
                f"--{field.name}", default=argparse.SUPPRESS, help=text.replace("%", "%%"), **option
            )
    return parser


def plain_flag(argument, fields):
    """--show-thoughts means --show_thoughts."""
    name, is_, value = argument.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    if argument.startswith("--") and name in fields:
        return f"--{name}{is_}{value}"
    return (
        f"--no-{name[3:]}"
        if argument.startswith("--no") and name[3:] in fields and not is_
        else argument
    )


def meant(name, classes):
    """The settings that an unknown name may have meant: by their names, else by what is said of them."""
    near = difflib.get_close_matches(name, fields_of(*classes), n=2, cutoff=0.7)
    words = name.replace("_", " ")
    return (
        near
        or [x for cls in classes for x, text in comments(cls).items() if text.startswith(words)][:2]
    )


def read_preset(path, fields):
    """A TOML file of settings that are among fields: a dict. Raises ValueError."""
    with reading(path, "cannot be read as a preset"), open(path, "rb") as file:
        preset = tomllib.load(file)
    for key, value in preset.items():
        if key not in fields:
            raise ValueError(f"{path}: unknown setting {brief(key)!r}")
        if bare_type(fields[key].type) is float and type(value) is int:
            preset[key] = value = float(value)
        if type(value) is not bare_type(fields[key].type):
            raise ValueError(
                f"{path}: {key} must be {bare_type(fields[key].type).__name__}, not {brief(repr(value))}"
            )
    return preset


def bare_type(annotation):
    """int of `int | None`, str of Literal["one", "other"]."""
    if choices_of(annotation):
        return str
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def or_none(kind):
    def parse(text):
        return None if text.lower() == "none" else kind(text)

    parse.__name__ = kind.__name__  # argparse names the type in its errors
    return parse


def comments(cls):
    """The comment behind each field of a dataclass, by the field's name."""
    return dict(
        re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", inspect.getsource(cls), flags=re.MULTILINE)
    )


def run_script(name, description, function, *classes, argv=None):
    """A script's main: function(*settings from the command line)."""
    with one_line_errors(name):
        *made, _ = from_cli(description, *classes, argv=argv)
        return function(*made)


@contextmanager
def one_line_errors(name, stopped="stopped"):
    """In here, what the user or the machine got wrong (ValueError, OSError, too little memory, Ctrl-C) ends the program
    with one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # a terminal that cannot show a character gets its number
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads has seen enough: ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError) as error:
        sys.exit(f"{name}: error: {error}")
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        if not re.search("memory|overflow", f"{type(error).__name__} {error}".lower()):
            raise
        sys.exit(
            f"{name}: error: this does not fit into memory ({' '.join(str(error).split())[:200]})"
        )
