"""Rooms and noises for scenes: recorded sets, or simulated ones in limited pools.

A pool's rooms and noises are made when they are first drawn and then kept: simulating a room takes
as long as many training steps of a small model. What is drawn does not depend on what is kept.
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

ROOMS = 64
NOISES = 32
NOISE_LENGTH = 2  # of a pool's noises, in clips


class Rooms(Protocol):
    """Scenes, each the RIRs of a source and of noise sources in one room.

    A :class:`gram_hear.scenes.rirs.RirSet` is one too.

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
    """Rooms that are drawn from a seed, a different one for each scene.

    Attributes:
        layout: ``"binaural"`` or ``"ambisonic"``.
        rate: Hz.
        seed: of all rooms.
        split: ``"train"``, ``"valid"`` or ``"test"``: no two splits of a seed share a room.
        count: of rooms.
    """

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
        """Return the RIRs of a room, simulated where they were not yet, and no metadata."""
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
        path: a set of RIRs, as :func:`gram_hear.scenes.rirs.open_rirs` takes it; None simulates.
        layout: of the model.
        rate: Hz.
        split: whose rooms. A set that knows no splits is all for training.
        seed: of simulated rooms.
        count: of simulated rooms.

    Raises:
        SceneError: for a set that cannot be read, or is of another rate.
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
    """A pool of synthetic noises, each longer than a clip; what is drawn is an excerpt of one."""

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
    """Open a set of noises as :func:`gram_hear.scenes.noises.open_noise`; None is a pool of them.

    Raises:
        SceneError: for a set that cannot be read.
    """
    return SyntheticNoises(rate, seed) if path is None else open_noise(Path(path), rate)
