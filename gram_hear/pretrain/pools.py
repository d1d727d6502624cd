"""Rooms and noises for scenes: sets on disk, or simulated ones in pools of limited size.

A pool makes a room or noise once and then keeps it, since simulating a room takes as long as many
training steps of a small model. It is kept in a folder, for all processes of a run and for those
that resume it; or, where no folder is given, in memory. Draws do not depend on what is kept.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from gram_hear.audio.archives import write_npy
from gram_hear.audio.synthesis import synthesise_noise
from gram_hear.errors import OptionError
from gram_hear.jobs.locks import wait_for_lock
from gram_hear.jobs.workers import work
from gram_hear.jobs.writing import remove_leftovers, write_whole
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

    def read_sums(self, i: int, samples: int) -> np.ndarray:
        """Return the RIR of a scene's source, and the sum of those of its noise sources.

        They are (2, channels, m) float32, AmbiX, with m at most ``samples``.
        """


class Pool:
    """Arrays by name, each made once.

    In a folder each is a ``.npy`` file, written whole or not at all, and read by memory map. Each
    has a lock: one process makes the array, and others that need the same one wait.
    """

    def __init__(self, folder: Path | None) -> None:
        """Keep arrays in a folder, which is made, or in memory."""
        self.folder = folder
        self._kept: dict[str, np.ndarray] = {}

    def has(self, name: str) -> bool:
        """Whether an array was made already."""
        if self.folder is None:
            return name in self._kept
        return (self.folder / f"{name}.npy").is_file()

    def get(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array; where it was not made yet, from ``make``."""
        if name not in self._kept:
            self._kept[name] = make() if self.folder is None else self._share(name, make)
        return self._kept[name]

    def _share(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.npy"
        with suppress(FileNotFoundError, ValueError):  # the latter where a disk lost a part of it
            return _map(path)
        with wait_for_lock(path.with_suffix(".lock")):
            with suppress(FileNotFoundError, ValueError):
                return _map(path)
            remove_leftovers(path)
            array = make()
            write_whole(path, lambda temporary: write_npy(temporary, array))
            return _map(path)


def _map(path: Path) -> np.ndarray:
    """Return the array of a file; only what is used of it is read."""
    return np.asarray(np.lib.format.open_memmap(path, mode="c"))


class SimulatedRooms:
    """A pool of rooms drawn from a seed, one for each scene; the splits of a seed share no room."""

    def __init__(
        self,
        layout: str,
        rate: int,
        seed: int = 0,
        split: str = "train",
        count: int = ROOMS,
        folder: Path | None = None,
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
        self._pool = Pool(folder)

    def __len__(self) -> int:
        return self.count

    def has(self, i: int) -> bool:
        """Whether a room was simulated already."""
        return self._pool.has(self._name(i))

    def _name(self, i: int) -> str:
        return f"room-{self.layout}-{self.rate}-{self.split}-{self.seed}-{i}"

    def _simulate(self, i: int) -> np.ndarray:
        scene = tune(draw_room_and_scene([self.seed, SPLITS.index(self.split), i]))
        rirs = render(scene, self.layout, self.rate).rirs
        return np.stack([rirs[0], rirs[1:].sum(axis=0)])

    def read_sums(self, i: int, samples: int) -> np.ndarray:
        """Return the RIRs of a room, simulated at the first call; see :class:`Rooms`."""
        return self._pool.get(self._name(i), lambda: self._simulate(i))[..., :samples]


def simulate(
    wanted: Collection[tuple[SimulatedRooms, int]],
    processes: int,
    progress: Callable[[int, int], object],
) -> None:
    """Simulate those of the wanted rooms that are not there yet, in processes side by side.

    Args:
        wanted: rooms, by pool and number. Pools of a folder alone, for more than one process.
        processes: so many at most.
        progress: is called with how many are done, and of how many.

    Raises:
        WorkerError: where a process is killed.
    """
    missing = [(rooms, i) for rooms, i in wanted if not rooms.has(i)]
    with closing(work(_simulate, missing, min(processes, max(1, len(missing))))) as done:
        for count, _ in enumerate(done, 1):
            progress(count, len(missing))


def _simulate(room: tuple[SimulatedRooms, int]) -> None:
    rooms, i = room
    rooms.read_sums(i, 1)


class RoomsOfSplit:
    """Those scenes of a set of RIRs that belong to one split."""

    def __init__(self, rirs: RirSet, split: str) -> None:
        self.layout = rirs.layout
        self.rate = rirs.rate
        self._rirs = rirs
        self._indices = np.array(rirs.indices(split))

    def __len__(self) -> int:
        return len(self._indices)

    def read_sums(self, i: int, samples: int) -> np.ndarray:
        """Return the RIR of a scene's source, and the sum of those of its noise sources."""
        return self._rirs.read_sums(int(self._indices[i]), samples)


def open_rooms(
    path: str | Path | None,
    layout: str,
    rate: int,
    *,
    split: str = "train",
    seed: int = 0,
    count: int = ROOMS,
    folder: Path | None = None,
) -> Rooms:
    """Open a set of rooms.

    Args:
        path: a set of RIRs, as :func:`gram_hear.scenes.rirs.open_rirs` takes it; None simulates
            rooms.
        layout, rate: of the model; Hz.
        split: whose rooms are opened. A set without splits is all for training.
        seed, count: of simulated rooms.
        folder: where simulated rooms are kept; None keeps them in memory.

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
        return SimulatedRooms(layout, rate, seed, split, count, folder)
    rirs = open_rirs(path, layout, rate)
    if not rirs.splits and split == "train":
        return rirs
    return RoomsOfSplit(rirs, split)


class SyntheticNoises(NoiseSet):
    """A pool of synthetic noises longer than a clip, of which excerpts are drawn."""

    def __init__(
        self, rate: int, seed: int = 0, count: int = NOISES, folder: Path | None = None
    ) -> None:
        super().__init__("synthetic", rate)
        self.seed = seed
        self.count = count
        self._pool = Pool(folder)

    def draw(self, seed: Sequence[int], samples: int) -> Noise:
        """Draw a noise and an excerpt of it, (samples,)."""
        generator = np.random.default_rng([*seed, 0])
        which, length = int(generator.integers(self.count)), NOISE_LENGTH * samples
        name = f"noise-{self.rate}-{length}-{self.seed}-{which}"
        audio = self._pool.get(
            name, lambda: synthesise_noise([self.seed, which], length, self.rate).audio
        )
        offset = int(generator.integers(len(audio) - samples + 1))
        return Noise(audio[offset : offset + samples].copy(), False, name, offset)


def open_noises(
    path: str | Path | None, rate: int, *, seed: int = 0, folder: Path | None = None
) -> NoiseSet:
    """Open noises as :func:`gram_hear.scenes.noises.open_noise`; None is a synthetic pool.

    Of recorded ones no more is read than the excerpts that are drawn. Synthetic ones are kept in
    ``folder``, or in memory.
    """
    if path is None:
        return SyntheticNoises(rate, seed, folder=folder)
    return open_noise(Path(path), rate, in_parts=True)
