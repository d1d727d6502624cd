"""Rooms and noises for scenes: sets on disk, or simulated ones in pools of limited size.

A pool makes a room or noise when it is first drawn, and then keeps it, since simulating a room
takes as long as many training steps of a small model. Draws do not depend on what is kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gram_hear.audio.synthesis import synthesise_noise
from gram_hear.errors import OptionError
from gram_hear.scenes.noises import Noise, NoiseSet, open_noise
from gram_hear.scenes.rendering import SCENE_LAYOUTS, render, tune
from gram_hear.scenes.rirs import SPLITS, RirSet, open_rirs
from gram_hear.scenes.rooms import draw_room_and_scene

ROOMS = 64  # of a pool
NOISES = 32  # of a pool
NOISE_LENGTH = 2  # the length of a pool's noises, in lengths of a clip


class Rooms(Protocol):
    """A set of scenes, each with the RIRs of a source and of noise sources in one room.

    :class:`gram_hear.scenes.rirs.RirSet` fits this protocol.

    Attributes:
        layout: ``"mono"``, ``"binaural"`` or ``"ambisonic"``.
        rate: Hz.
    """

    layout: str
    rate: int

    def __len__(self) -> int: ...

    def read(self, i: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Return RIRs (1 + noise sources, channels, samples) float32, AmbiX; and metadata."""


class SimulatedRooms:
    """A pool of rooms drawn from a seed, one for each scene; the splits of a seed share no room."""

    def __init__(
        self, layout: str, rate: int, seed: int = 0, split: str = "train", count: int = ROOMS
    ) -> None:
        if split not in SPLITS or seed < 0 or count < 1:
            raise OptionError(
                f"{count} rooms of split {split!r} and seed {seed} were asked for; give at least "
                f"1, {', '.join(SPLITS)}, and a seed of 0 or more."
            )
        self.layout = layout
        self.rate = rate
        self.seed = seed
        self.split = split
        self.count = count
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the RIRs of a room, simulated at the first call, and no metadata."""
        if i not in self._kept:
            scene = tune(draw_room_and_scene([self.seed, SPLITS.index(self.split), i]))
            self._kept[i] = render(scene, self.layout, self.rate).rirs
        return self._kept[i], {}


class RoomsOfSplit:
    """Those scenes of a set of RIRs that belong to one split."""

    def __init__(self, rirs: RirSet, split: str) -> None:
        self.layout = rirs.layout
        self.rate = rirs.rate
        self._rirs = rirs
        self._indices = np.array(rirs.indices(split))

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, i: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the RIRs of a scene, and what is known of it."""
        return self._rirs.read(int(self._indices[i]))


def open_rooms(
    path: str | Path | None,
    layout: str,
    rate: int,
    *,
    split: str = "train",
    seed: int = 0,
    count: int = ROOMS,
) -> Rooms:
    """Open a set of rooms.

    Args:
        path: a set of RIRs, as :func:`gram_hear.scenes.rirs.open_rirs` takes it; None simulates
            rooms.
        layout, rate: of the model; Hz.
        split: whose rooms are opened. A set without splits is all for training.
        seed, count: of simulated rooms.

    Raises:
        SceneError: for a set that cannot be read, or has another rate.
        OptionError: for a layout or a split that the set does not have.
    """
    if layout not in SCENE_LAYOUTS:
        raise OptionError(
            f"There are no rooms for {layout} models, only for {' and '.join(SCENE_LAYOUTS)} ones. "
            "Mono models learn from dry clips: set clean_fraction to 1."
        )
    if path is None:
        return SimulatedRooms(layout, rate, seed, split, count)
    rirs = open_rirs(path, layout, rate)
    if not rirs.splits and split == "train":
        return rirs
    return RoomsOfSplit(rirs, split)


class SyntheticNoises(NoiseSet):
    """A pool of synthetic noises longer than a clip, of which excerpts are drawn."""

    def __init__(self, rate: int, seed: int = 0, count: int = NOISES) -> None:
        super().__init__("synthetic", rate)
        self.seed = seed
        self.count = count
        self._kept: dict[tuple[int, int], tuple[str, np.ndarray]] = {}

    def draw(self, seed: Sequence[int], samples: int) -> Noise:
        """Draw a noise and an excerpt of it, (samples,)."""
        generator = np.random.default_rng([*seed, 0])
        key = (int(generator.integers(self.count)), samples)
        if key not in self._kept:
            made = synthesise_noise([self.seed, key[0]], NOISE_LENGTH * samples, self.rate)
            self._kept[key] = (made.kind, made.audio)
        kind, audio = self._kept[key]
        offset = int(generator.integers(len(audio) - samples + 1))
        return Noise(audio[offset : offset + samples].copy(), False, kind, offset)


def open_noises(path: str | Path | None, rate: int, *, seed: int = 0) -> NoiseSet:
    """Open noises as :func:`gram_hear.scenes.noises.open_noise`; None is a synthetic pool."""
    return SyntheticNoises(rate, seed) if path is None else open_noise(Path(path), rate)
