"""Packages that only some capabilities need."""

import importlib
from types import ModuleType

from gram_hear.errors import OptionError


def install_command(extra: str) -> str:
    """Return the command that installs an extra, from a package index and from a clone."""
    return f'pip install "gram-hear[{extra}]" (in a clone: pip install ".[{extra}]")'


def need(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        OptionError: where it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise OptionError(
            f"This needs the package {error.name}, which is not installed. Install it with "
            f"{install_command(extra)}."
        ) from error
