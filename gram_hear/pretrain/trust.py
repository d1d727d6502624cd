"""What a configuration may do.

In Lightning's configurations a ``class_path`` imports the module that it names, from the current
folder too, and some classes call whatever function a configuration gives them. Such a file is a
program. Here only the classes of this package and some of Lightning's own, none of which takes a
function, may be named, unless the command line says ``--trust-config``. Size, nesting and aliases
of YAML are bounded.
"""

import re
from typing import NoReturn

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
)
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler

from gram_hear.errors import GramError, OptionError

TRUST = "--trust-config"
ALLOWED = (
    *(DeviceStatsMonitor, EarlyStopping, LearningRateMonitor, ModelCheckpoint, ModelSummary),
    *(CSVLogger, TensorBoardLogger, AdvancedProfiler, SimpleProfiler),
)
LARGEST_TEXT = 2**20  # characters
LONGEST_VALUE = 4096  # characters, as paths of Linux
LONGEST_NUMBER = 100  # characters
MOST_VALUES = 10_000  # aliases counted as what they stand for
DEEPEST = 50

_load_yaml = get_loader("yaml")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Parser(LightningArgumentParser):
    """A parser that says in one line what a configuration must not do."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what :func:`load_yaml` or the check of names raised; else exit with usage."""
        error: BaseException | None = ex
        while error is not None:
            if isinstance(error, GramError):
                raise error
            error = error.__cause__ or error.__context__
        if refused := re.search(r"Importing '(.*?)' is not allowed", message):
            names = ", ".join(sorted(each.__name__ for each in ALLOWED))
            raise OptionError(
                f"{refused[1]} may not be named in a configuration: importing and calling it could "
                f"run any code. Allowed are classes of gram_hear, and of Lightning {names}. If you "
                f"trust the configuration as you would a program, add {TRUST}."
            )
        unknown = re.match(r"unrecognized arguments: ([^-]\S*)", message, re.IGNORECASE)
        if unknown:  # not an option: most likely made by the shell
            message += (
                f". {unknown[1]} belongs to no option: quote {{000..003}} and *, of which a shell "
                'makes several arguments. Several values of an option are a list: \'["a", "b"]\''
            )
        super().error(message, ex)


def restrict(arguments: list[str]) -> None:
    """Bound what configurations of this process may do, as far as a command line trusts them."""
    set_loader("yaml", load_yaml, (yaml.YAMLError,))
    if TRUST not in arguments:
        paths = [path for each in ALLOWED for path in _paths(each)]
        set_parsing_settings(
            import_path_denylist=["*"], import_path_allowlist=["gram_hear", *paths]
        )


def _paths(allowed: type) -> tuple[str, str]:
    """Return where a class is defined, and where Lightning offers it."""
    offered = ".".join(allowed.__module__.split(".")[:3])
    return f"{allowed.__module__}.{allowed.__name__}", f"{offered}.{allowed.__name__}"


def load_yaml(text: str) -> object:
    """Return what YAML says, after :func:`check_yaml`."""
    check_yaml(text)
    return _load_yaml(text)


def check_yaml(text: str) -> None:
    """Refuse YAML that is more than a configuration, before any of it is built.

    Raises:
        OptionError: for too long a text or value, too many values or levels, an alias of itself.
        yaml.YAMLError: for what is no YAML.
    """
    if len(text) > LARGEST_TEXT:
        raise OptionError(
            f"A configuration of {len(text)} characters was given; at most {LARGEST_TEXT} are read."
        )
    sizes: dict[str, int] = {}  # values below an anchor
    open_nodes: list[tuple[str | None, int]] = []
    size = 0  # values so far in the innermost open node
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise OptionError(f"The alias *{event.anchor} of a configuration has no value yet.")
            size += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            _check_value(event.value, is_all=event.value == text)
            size += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, size))
            size = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = size
            size += before
        if size > MOST_VALUES or len(open_nodes) > DEEPEST:
            raise OptionError(
                f"A configuration holds more than {MOST_VALUES} values, each alias counted as what "
                f"it stands for, or is nested more than {DEEPEST} deep. Write it shorter."
            )


def _check_value(value: str, is_all: bool) -> None:
    """Check one value; where it looks like YAML itself, it may be read as such later.

    A value that is all of a text, such as ``s3://a/{0..9}.tar``, is read as the same value again.
    """
    number = re.fullmatch(r"[-+]?[0-9][0-9a-fx_:.]*", value, re.IGNORECASE)
    longest = LONGEST_NUMBER if number else LONGEST_VALUE
    if len(value) > longest:
        raise OptionError(
            f"A value of a configuration has {len(value)} characters ({value[:20]!r} ...); at most "
            f"{longest} are read."
        )
    if not is_all and re.search(r"[\[{&*]", value):
        try:
            check_yaml(value)
        except yaml.YAMLError:
            return  # text
