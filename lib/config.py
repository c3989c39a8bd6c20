"""
Settings from the command line: every field of a dataclass is a --flag, and the comment behind it is the flag's help.

    train, model, given = from_cli(__doc__, TrainConfig, ModelConfig)

--config=FILE.toml sets defaults that flags overrule. An unknown flag or key, or a value of the wrong type, is an error.
"""

import argparse
import dataclasses
import inspect
import re
import sys
import tomllib
import types
import typing


class OneLineErrors(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists all settings)\n")


def from_cli(description, *classes, argv=None):
    """Parse flags into one instance of each dataclass, and a dict of what was given by flag or preset."""
    parser = flags_of(description, classes)
    flags = vars(parser.parse_args(argv))
    preset = flags.pop("config")
    try:
        given = {**(read_preset(preset, classes) if preset else {}), **flags}
        for cls in classes:
            check_choices(cls, given)
        return *[
            cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given}) for cls in classes
        ], given
    except ValueError as error:
        parser.error(str(error))


def check_choices(cls, given):
    """Raise ValueError if a field of type Literal["one", "other"] is given anything else."""
    for field in dataclasses.fields(cls):
        choices = choices_of(field.type)
        if choices and given.get(field.name, field.default) not in choices:
            raise ValueError(f"{field.name} must be one of {', '.join(choices)}, not {given[field.name]!r}")


def choices_of(annotation):
    """("one", "other") of Literal["one", "other"], () of any other type."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def flags_of(description, classes):
    """The parser of all fields of dataclasses."""
    parser = OneLineErrors(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE.toml", help="a preset; flags overrule it")
    for cls in classes:
        group, helps = parser.add_argument_group(cls.__name__), comments(inspect.getsource(cls))
        for field in dataclasses.fields(cls):
            text = f"{helps.get(field.name, '')} (default: {field.default})"
            kind = bare_type(field.type)
            if kind is bool:
                option = dict(action=argparse.BooleanOptionalAction)
            else:
                choices, optional = choices_of(field.type), isinstance(field.type, types.UnionType)
                metavar = f"{{{','.join(choices)}}}" if choices else kind.__name__.upper()
                option = dict(type=or_none(kind) if optional else kind, metavar=metavar)
            group.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text.replace("%", "%%"), **option)
    return parser


def read_preset(path, classes):
    """A TOML file of settings, checked against the classes' fields: a dict. Raises ValueError."""
    try:
        with open(path, "rb") as file:
            preset = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the preset {path}: {error}") from None
    known = {field.name: bare_type(field.type) for cls in classes for field in dataclasses.fields(cls)}
    for key, value in preset.items():
        if key not in known:
            raise ValueError(f"{path}: unknown setting {key!r}")
        if known[key] is float and type(value) is int:
            preset[key] = value = float(value)
        if type(value) is not known[key]:
            raise ValueError(f"{path}: {key} must be {known[key].__name__}, not {value!r}")
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


def comments(source):
    """The comment behind each field of a dataclass, by the field's name."""
    return dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", source, flags=re.MULTILINE))


def run_script(name, description, function, *classes, argv=None):
    """A script's main: function(*settings from the command line). What the user got wrong (ValueError, OSError) is one
    line on standard error."""
    *settings, _ = from_cli(description, *classes, argv=argv)
    try:
        return function(*settings)
    except (ValueError, OSError) as error:
        sys.exit(f"{name}: error: {error}")
