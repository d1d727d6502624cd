"""What goes wrong, by kind. Every message says what was given, what is allowed and what to do."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence


class GramError(Exception):
    """Base of every error that gram_hear raises on purpose."""


class AudioError(GramError, ValueError):
    """Audio that cannot be embedded: its type, rank, channels, rate or values."""


class CheckpointError(GramError, ValueError):
    """A checkpoint that cannot be found, read safely, or loaded whole."""


class ConfigError(GramError, ValueError):
    """A configuration that describes no model, or holds an unknown key."""


class TaskError(GramError, ValueError):
    """A HEAR task, or a folder of its embeddings, that is missing, broken or inconsistent."""


class ModuleError(GramError, ValueError):
    """A HEAR module that cannot be imported, or breaks the HEAR API."""


class SceneError(GramError, ValueError):
    """A room, a scene, a head, or a set of RIRs or noise that is impossible or unreadable."""


class TrainingError(GramError, RuntimeError):
    """Training that cannot go on: a mixture, a loss or a gradient that is not finite."""


class OptionError(GramError, ValueError):
    """An option that is unknown, out of range, or contradicts another."""


def visible(text: str) -> str:
    """Return text in which "?" stands for what neither XML, LaTeX nor a terminal can show.

    Names of files may hold control characters, and bytes that are no characters. Line breaks and
    tabs stay.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "?", text)


def short(value: object, most: int = 80) -> str:
    """Return a value as a message may show it: on one line, at most ``most`` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a value too large to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def count(number: int, one: str, many: str = "") -> str:
    """Return a number and its noun: ``count(1, "file")`` is ``"1 file"``.

    ``many`` is the plural, if it is not ``one`` with an s: ``count(2, "file is", "files are")``.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def some(items: Sequence[str], separator: str = ", ", shown: int = 3) -> str:
    """Return the first few of many, and how many more there are: ``"a, b, c and 4 more"``."""
    more = f" and {len(items) - shown:,} more" if len(items) > shown else ""
    return separator.join(items[:shown]) + more


def nearest(given: object, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest allowed name, or an empty string."""
    given = str(given)[:80]  # the comparison takes long for long texts
    matches = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def allowed(given: object, names: Iterable[str]) -> str:
    """Return ``"allowed are a, b."``, and which of the names was perhaps meant."""
    names = list(names)
    return f"allowed are {', '.join(names)}.{nearest(given, names)}"


def require_known(what: str, given: object, names: Collection[str]) -> None:
    """Raise an OptionError where ``given``, of the kind ``what``, is none of the names."""
    if given not in names:
        raise OptionError(f"Unknown {what} {given!r}; {allowed(given, names)}")


def reason_of(error: BaseException) -> str:
    """Return why the system refused, in its own words: ``"No space left on device"``."""
    return str(getattr(error, "strerror", None) or error)
