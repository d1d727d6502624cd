"""The registered models, read from ``weights/registry.json``: where each name's weights are."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from gram_hear.config import AUDIO_CHANNELS, LAYOUT_OF_CHANNELS, LAYOUTS
from gram_hear.errors import OptionError, nearest


@dataclass(frozen=True)
class Entry:
    """One registered model.

    A published model has ``repository``, ``file`` and ``revision`` (on the Hugging Face Hub). A
    bundled one has a ``file`` that ships with the package. One that is built from a seed has
    ``size`` and ``seed``. ``channels`` are feature channels: 1, 2, or 7 for Ambisonic audio.
    ``sha256`` is what the file must have (at ``revision``), or None if it is not known. ``date`` is
    the month in which a bundled model was made: its dated name means these weights for good, its
    plain name the newest ones.
    """

    name: str
    description: str
    channels: int
    patching: str
    layout: str  # published, bundled, seed
    licence: str
    repository: str | None = None
    file: str | None = None
    revision: str | None = None
    sha256: str | None = None
    size: str | None = None
    seed: int | None = None
    backbone: str = "transformer"  # transformer (GRAM-T), mamba2 or mamba1 (GRAM-M)
    date: str | None = None  # "2026-11"

    @property
    def dated_name(self) -> str | None:
        """The name that keeps its weights when the plain name gets newer ones, or None."""
        return f"{self.name}-{self.date}" if self.date else None

    @property
    def audio_channels(self) -> int:
        """Channels of the sound that the model hears: 1, 2 or 4."""
        return AUDIO_CHANNELS[LAYOUT_OF_CHANNELS[self.channels]]

    @property
    def trained(self) -> bool:
        """Whether the model was trained. False if its weights are random."""
        return self.layout != "seed"


@cache
def _registry() -> dict:
    return json.loads((files("gram_hear.weights") / "registry.json").read_text(encoding="utf-8"))


def list_models() -> list[Entry]:
    """Return the registered models, in the registry's order.

    Example::

        names = [entry.name for entry in list_models()]  # "gramt-mono", "gramt-binaural", ...
    """
    return [Entry(**fields) for fields in _registry()["models"]]


def find_entry(name: str) -> Entry | None:
    """Return the registered model of this name or dated name, or None."""
    return next((entry for entry in list_models() if name in (entry.name, entry.dated_name)), None)


def bundled_file(entry: Entry) -> Path:
    """Return where the file of a bundled model is."""
    return Path(str(files("gram_hear.weights") / str(entry.file)))


def default_name() -> str:
    """Return the name of the model that ``load_model("")`` loads."""
    return _registry()["default"]


def offline_name(layout: str = "binaural") -> str:
    """Return the name of a bundled model, which needs no network.

    Args:
        layout: of what it is to hear; where no bundled model has it, it is the binaural one.
    """
    bundled = (entry for entry in list_models() if entry.layout == "bundled")
    fitting = (entry.name for entry in bundled if entry.channels == LAYOUTS[layout][1])
    return next(fitting, _registry()["offline"])


def unknown_model(name: str) -> OptionError:
    """Return the error for a name that is no registered model, path or repository."""
    names = [entry.name for entry in list_models()]
    return OptionError(
        f"There is no model {name!r}: it is not a registered name, not an existing file or "
        f"folder, and not a Hub repository (owner/name). Registered are {', '.join(names)}."
        + nearest(name, names)
    )
