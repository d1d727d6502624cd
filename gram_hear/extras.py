"""Packages that only some capabilities need."""

import importlib
from types import ModuleType

from gram_hear.errors import OptionError


def need(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        OptionError: where it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise OptionError(
            f"This needs the package {error.name}, which is not installed; "
            f'pip install "gram-hear[{extra}]" brings it.'
        ) from error
