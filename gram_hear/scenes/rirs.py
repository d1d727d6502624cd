"""Sets of room impulse responses, in three layouts on disk; the published ones are read unchanged.

- ``webdataset``: uncompressed tars of one ``.npy`` (1 + noise sources, channels, samples) per
  scene, float16 or float32. Slots of zeros mean fewer noise sources. As published: they say
  neither rate (32 kHz) nor where sources are.
- ``soundspaces``: JSON files with ``sampled_regions``, each the scene of a source and noises, that
  name ``.npy`` files (channels, samples). As published: angles are in degrees, clockwise, and from
  them the listener's own azimuth is taken.
- ``indexed``: ``set.json``, and for each split a file of JSON lines, one for each scene with all
  that is known of it, which names ``.npy`` files (1 + noise sources, channels, samples), float32.

Ambisonic RIRs lie in the first two in SoundSpaces axes and in the third in AmbiX. They are AmbiX
when they are read.
"""

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gram_hear.audio.archives import (
    NPY,
    Member,
    find_below,
    find_members,
    parse_npy,
    read_npy,
    read_whole,
    require_finite,
)
from gram_hear.audio.layouts import from_soundspaces
from gram_hear.config import AUDIO_CHANNELS, LAYOUT_OF_AUDIO, RIR_RATES
from gram_hear.errors import OptionError, SceneError, reason_of, require_known
from gram_hear.foreign import LARGEST, parse_json
from gram_hear.jobs.job import STATE
from gram_hear.scenes.geometry import unit_vector
from gram_hear.scenes.rooms import MOST_NOISES

FORMAT, VERSION = "gram-hear rirs", 1
DESCRIPTION = "set.json"
BUILDING = ".building"  # the folder of a set that gram-hear 0.1.0 did not finish
CONTAINERS = ("indexed", "webdataset", "soundspaces")
SPLITS = ("train", "valid", "test")
PUBLISHED_RATE = 32000  # Hz, of sets that do not say it
KEYS = {"binaural": "binaural_rir_path", "ambisonic": "ambisonic_rir_path"}
LONGEST_LINE = 1 << 20  # bytes, of what is known of a scene
SILENT = "{}: the RIR of the source is silent; leave the scene out."
SPLIT_NAME = re.compile(r"(train|val|test)(?:id|idation|ing)?(?![a-z])", re.IGNORECASE)


class RirSet(ABC):
    """Scenes, each the RIRs of a source and of noise sources in one room.

    Attributes:
        path: where the set is.
        layout: ``"mono"``, ``"binaural"`` or ``"ambisonic"``.
        rate: Hz.
        convention: of the files: ``"ambix"``, ``"soundspaces"``, or None if not Ambisonic.
        container: the layout on disk: ``"indexed"``, ``"webdataset"`` or ``"soundspaces"``.
    """

    container: str

    def __init__(self, path: Path, layout: str, rate: int) -> None:
        self.path = path
        self.layout = layout
        self.rate = rate
        own = "ambix" if self.container == "indexed" else "soundspaces"
        self.convention = own if layout == "ambisonic" else None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """Return what a scene is called: a name that no other scene of the set has."""

    @abstractmethod
    def split(self, i: int) -> str | None:
        """Return "train", "valid" or "test", or None if the set does not say."""

    @abstractmethod
    def _load(self, i: int) -> tuple[Sequence[np.ndarray], dict[str, Any]]:
        """Return RIRs, each (channels, samples) as it is in the files, and metadata.

        They are floats of any size and in the convention of the files, perhaps with NaN. Where a
        noise source is missing, its RIR may be zeros.
        """

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that the set has scenes of. Empty if it does not say."""
        found = {self.split(i) for i in range(len(self))}
        return tuple(split for split in SPLITS if split in found)

    def indices(self, split: str | None = None) -> list[int]:
        """Return the indices of the scenes of a split. None means all scenes.

        Raises:
            OptionError: for a split that the set has no scenes of.
        """
        if split is None:
            return list(range(len(self)))
        if split not in self.splits:
            there = f"it has {', '.join(self.splits)}" if self.splits else "it has none"
            raise OptionError(f"{self.path} has no split {split!r}; {there}.")
        return [i for i in range(len(self)) if self.split(i) == split]

    def read(self, i: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Read a scene.

        Returns:
            RIRs (1 + noise sources, channels, samples) float32, that of the source first. Ambisonic
            ones are AmbiX. Beside them a dict of what is known of the scene, which may be empty.
            Angles in it are in degrees, counter-clockwise, and ``direction`` is the unit vector to
            the source.

        Raises:
            SceneError: for files that are missing, unreadable, of another shape than (1 + noise
                sources, channels, samples), or hold NaN.
        """
        found, metadata = self._load(i)
        where = f"{self.path}: {self.name(i)}"
        rirs = np.zeros((len(found), len(found[0]), _longest(found)), dtype=np.float32)
        with np.errstate(over="ignore"):
            for rir, values in zip(rirs, found, strict=True):
                rir[:, : values.shape[1]] = values
        require_finite(rirs, where)
        heard = np.asarray(rirs.any(axis=(1, 2)))
        if not heard[0]:
            raise SceneError(SILENT.format(where))
        rirs = rirs[heard]
        if self.convention == "soundspaces":
            rirs = from_soundspaces(rirs)
        _check_metadata(where, metadata, rirs.shape[-1] / self.rate)
        return np.ascontiguousarray(rirs), metadata

    def read_sums(self, i: int, samples: int) -> np.ndarray:
        """Read a scene for a noise that sounds from all its noise sources at once.

        It takes less time than :meth:`read`: no more is converted than is used.

        Args:
            i: the scene.
            samples: so many are read of each RIR, at most.

        Returns:
            (2, channels, m) float32, with m up to ``samples``: the RIR of the source, and the sum
            of those of all noise sources. Ambisonic ones are AmbiX.

        Raises:
            SceneError: as :meth:`read`, but for NaN after ``samples``, and wrong metadata.
        """
        found, _ = self._load(i)
        where = f"{self.path}: {self.name(i)}"
        # PyTorch converts float16 ten times as fast as NumPy.
        sums = torch.zeros(2, len(found[0]), min(samples, _longest(found)))
        for source, values in enumerate(found):
            part = torch.from_numpy(values[:, :samples])
            sums[min(source, 1), :, : part.shape[1]] += part
        rirs = sums.numpy()
        require_finite(rirs, where)
        if not (rirs[0].any() or found[0].any()):
            raise SceneError(SILENT.format(where))
        return from_soundspaces(rirs) if self.convention == "soundspaces" else rirs

    def _slots(self, where: str, rirs: np.ndarray) -> list[np.ndarray]:
        """Return the RIRs of an array of (1 + slots, channels, samples)."""
        channels = AUDIO_CHANNELS[self.layout]
        if rirs.ndim != 3 or rirs.shape[1] != channels or 0 in rirs.shape:
            raise SceneError(
                f"{where} has the shape {rirs.shape}; it must be (1 + noise sources, {channels}, "
                f"samples), as the set is {self.layout}."
            )
        return list(rirs)


def _longest(rirs: Sequence[np.ndarray]) -> int:
    return max(rir.shape[1] for rir in rirs)


def _check_metadata(where: str, metadata: Any, seconds: float) -> None:
    """Check what is computed with: the direction, and when the direct sound arrives."""
    if not isinstance(metadata, dict):
        raise SceneError(f"{where}: its metadata is no object; build the set anew.")
    direction = metadata.get("direction", [1.0, 0.0, 0.0])
    length = math.hypot(*direction) if _are_numbers(direction) and len(direction) == 3 else 0.0
    if not 0.99 < length < 1.01:
        raise SceneError(f"{where}: its direction must be three numbers, of length 1.")
    delays = metadata.get("direct_delay", [])
    if not _are_numbers(delays) or not all(0 <= delay <= seconds for delay in delays[:1]):
        raise SceneError(f"{where}: its direct_delay must be seconds, the first within the RIR.")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(each) in (int, float) for each in values)


def open_rirs(path: str | Path, layout: str | None = None, rate: int | None = None) -> RirSet:
    """Open a set of room impulse responses (RIRs), in any of the three layouts on disk.

    Args:
        path: the folder of the set. A single WebDataset tar works too.
        layout: ``"binaural"`` or ``"ambisonic"``. Needed if the set has both.
        rate: the sample rate that the RIRs must have, Hz. None takes any.

    Returns:
        The set. ``len(rirs)`` is its number of scenes, and ``rirs.read(i)`` reads one.

    Raises:
        SceneError: for a set that is missing, empty, unfinished or broken, or has another rate.
            Its first scene is read to find out.
        OptionError: for a layout that the set does not have.
    """
    path = Path(path)
    if not path.exists():
        raise SceneError(f"There is no folder or file {path} of RIRs.")
    if layout is not None:
        require_known("layout", layout, AUDIO_CHANNELS)
    description = read_description(path)
    container = description["container"] if description else _find_container(path)
    own_rate = _find_rate(path) if description is None else description["rate"]
    rirs: RirSet
    if container == "indexed":
        assert description is not None
        rirs = IndexedRirs(path, _choose(path, layout, description["layouts"]), description)
    elif container == "webdataset":
        rirs = _open_tars(path, layout, own_rate)
    else:
        rirs = _open_regions(path, layout, own_rate)
    if rate is not None and rirs.rate != rate:
        raise SceneError(
            f"The RIRs of {path} are at {rirs.rate} Hz; {rate} Hz are needed. Choose that rate, or "
            "build a set at it: gram-hear rirs --rate."
        )
    rirs.read(0)
    return rirs


def read_description(path: Path) -> dict[str, Any] | None:
    """Return the ``set.json`` of a set that gram-hear made; None where there is none.

    Raises:
        SceneError: for one that is broken or of another version, or a set that is not finished.
    """
    file = path / DESCRIPTION
    if not file.is_file():
        if (path / STATE).is_dir() or (path / BUILDING).is_dir():
            raise SceneError(f"{path} is not finished; run the command that builds it again.")
        return None
    found = _read_json(file)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise SceneError(f"{file} does not describe a set of RIRs.")
    if found.get("version") != VERSION:
        raise SceneError(
            f"{file} has the version {found.get('version')!r}; this gram-hear reads {VERSION}. "
            "Update it, or build the set anew."
        )
    wanted = {"container": str, "rate": int, "layouts": list, "counts": dict}
    wrong = [key for key, kind in wanted.items() if not isinstance(found.get(key), kind)]
    if not wrong:
        right = {
            "container": found["container"] in CONTAINERS,
            "rate": RIR_RATES[0] <= found["rate"] <= RIR_RATES[1],
            "layouts": found["layouts"]
            and all(each in [*AUDIO_CHANNELS] for each in found["layouts"]),
            "counts": all(
                split in SPLITS and isinstance(count, int) and count >= 0
                for split, count in found["counts"].items()
            ),
        }
        wrong = [key for key, fits in right.items() if not fits]
    if wrong:
        raise SceneError(f"{file} is broken ({', '.join(wrong)}); build the set anew.")
    return found


def _find_container(path: Path) -> str:
    if path.is_file() or next(find_below(path, ".tar"), None):
        return "webdataset"
    if next(find_below(path, ".json"), None):
        return "soundspaces"
    raise SceneError(
        f"{path} holds no RIRs; it must hold {DESCRIPTION}, WebDataset tars, or JSON files with "
        "sampled_regions."
    )


def _find_rate(path: Path) -> int:
    """Return the rate that a set which holds this tar or folder says, or the published one."""
    for folder in path.absolute().parents[:2]:
        if (folder / DESCRIPTION).is_file() and (description := read_description(folder)):
            return description["rate"]
    return PUBLISHED_RATE


def _choose(path: Path, layout: str | None, there: Sequence[str]) -> str:
    """Return the layout to read, of those that are there."""
    if layout is None and len(there) == 1:
        return there[0]
    if layout is None:
        raise OptionError(f"{path} has {' and '.join(there)} RIRs; say which layout to read.")
    if layout not in there:
        raise OptionError(f"{path} has {' and '.join(there)} RIRs; {layout} was asked for.")
    return layout


def _find_split(relative: Path) -> str | None:
    """Return the split that a folder's or file's name says; validation is "valid"."""
    for part in relative.parts:
        if match := SPLIT_NAME.match(part):
            return {"train": "train", "val": "valid", "test": "test"}[match[1].lower()]
    return None


def _read_json(path: Path) -> Any:
    return parse_json(read_whole(path, LARGEST), str(path), SceneError)


def _inside(root: Path, folder: Path, relative: str) -> Path | None:
    """Return where a path that starts in ``folder`` leads; None where that is outside ``root``."""
    top = os.path.abspath(root)
    path = os.path.abspath(os.path.join(folder, relative))
    return Path(path) if path.startswith(os.path.join(top, "")) else None


# --- indexed --------------------------------------------------------------------------------


class IndexedRirs(RirSet):
    """Our own layout. The index stays on disk; only where its lines begin is held."""

    container = "indexed"

    def __init__(self, path: Path, layout: str, description: dict[str, Any]) -> None:
        super().__init__(path, layout, description["rate"])
        self._lines: list[tuple[str, int, int]] = []
        for split, count in description["counts"].items():
            before = len(self._lines)
            self._lines += _find_lines(self._index(split), split)
            if len(self._lines) - before != count:
                raise SceneError(
                    f"{self._index(split)} has {len(self._lines) - before} scenes; by "
                    f"{DESCRIPTION} it must have {count}. The set was altered; build it anew."
                )
        if not self._lines:
            raise SceneError(f"{path} holds no scenes.")

    def _index(self, split: str) -> Path:
        return self.path / f"{split}.jsonl"

    def __len__(self) -> int:
        return len(self._lines)

    def split(self, i: int) -> str:
        """Return the split of a scene."""
        return self._lines[i][0]

    def name(self, i: int) -> str:
        """Return split/room/scene."""
        return self._entry(i)["name"]

    def _entry(self, i: int) -> dict[str, Any]:
        split, start, size = self._lines[i]
        try:
            with open(self._index(split), "rb") as file:
                file.seek(start)
                line = file.read(size)
        except OSError as error:
            raise SceneError(f"{self._index(split)} cannot be read: {reason_of(error)}.") from error
        where = f"{self._index(split)}, at byte {start},"
        entry = parse_json(line, where, SceneError)
        kinds = {"name": str, "files": dict, "metadata": dict}
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), kind) for key, kind in kinds.items()
        ):
            raise SceneError(f"{where} describes no scene; build the set anew.")
        return entry

    def _load(self, i: int) -> tuple[Sequence[np.ndarray], dict[str, Any]]:
        entry = self._entry(i)
        relative = str(entry["files"].get(self.layout))
        path = _inside(self.path, self.path, relative)
        if path is None:
            raise SceneError(f"{self.path}: {entry['name']} names {relative}, outside the set.")
        rirs = self._slots(f"{self.path}: {entry['name']}", read_npy(path))
        return rirs, entry["metadata"].get(self.layout, {})


def _find_lines(path: Path, split: str) -> list[tuple[str, int, int]]:
    """Return the split, start and size in bytes of each line of an index."""
    lines, start = [], 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise SceneError(f"{path} has a line of more than {LONGEST_LINE:,} bytes.")
                lines.append((split, start, len(line)))
                start += len(line)
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {reason_of(error)}.") from error
    return lines


# --- WebDataset -----------------------------------------------------------------------------


class WebDatasetRirs(RirSet):
    """Tars of one array per scene, read at random."""

    container = "webdataset"

    def __init__(self, path: Path, layout: str, rate: int, members: list[Member]) -> None:
        super().__init__(path, layout, rate)
        self.members = members
        self._top = path if path.is_dir() else path.parent

    def __len__(self) -> int:
        return len(self.members)

    def name(self, i: int) -> str:
        """Return the path of the tar in the set, and the member's name."""
        member = self.members[i]
        return f"{member.path.relative_to(self._top).as_posix()}/{member.name}"

    def split(self, i: int) -> str | None:
        """Return what the name of a folder or tar begins with: train, val (valid) or test."""
        return _find_split(self.members[i].path.relative_to(self._top))

    def _load(self, i: int) -> tuple[Sequence[np.ndarray], dict[str, Any]]:
        member = self.members[i]
        return self._slots(str(member), parse_npy(member.read(), str(member))), {}


def _open_tars(path: Path, layout: str | None, rate: int) -> WebDatasetRirs:
    """Open tars; where folders of both layouts lie side by side, those of one."""
    there = [name for name in AUDIO_CHANNELS if (path / name).is_dir()]
    folder = path / _choose(path, layout, there) if there else path
    tars = [folder] if folder.is_file() else list(find_below(folder, ".tar"))
    members = [member for tar in tars for member in find_members(tar, (NPY,))]
    if not members:
        raise SceneError(f"{folder} holds no scenes: its tars have no .npy members.")
    shape = parse_npy(members[0].read(), str(members[0])).shape
    found = LAYOUT_OF_AUDIO.get(shape[1]) if len(shape) == 3 else None
    if found is None:
        raise SceneError(
            f"{members[0]} has the shape {shape}; it must be (1 + noise sources, channels, "
            "samples) with 1, 2 or 4 channels."
        )
    return WebDatasetRirs(path, _choose(folder, layout, [found]), rate, members)


# --- published folders ----------------------------------------------------------------------


class SoundSpacesRirs(RirSet):
    """JSON files of scenes beside arrays of one RIR each.

    The arrays' paths are taken from the JSON's own folder or from the set's; where they are of the
    machine that made them, as in the published files, the file's name is looked for in the set.
    """

    container = "soundspaces"

    def __init__(
        self, path: Path, layout: str, rate: int, regions: list[tuple[Path, int, dict[str, Any]]]
    ) -> None:
        super().__init__(path, layout, rate)
        self._regions = regions

    def __len__(self) -> int:
        return len(self._regions)

    def name(self, i: int) -> str:
        """Return the path of the JSON in the set, and the number of the region in it."""
        file, number, _ = self._regions[i]
        return f"{file.relative_to(self.path).as_posix()}/{number}"

    def split(self, i: int) -> str | None:
        """Return what the name of a folder or file begins with: train, val (valid) or test."""
        return _find_split(self._regions[i][0].relative_to(self.path))

    def _load(self, i: int) -> tuple[Sequence[np.ndarray], dict[str, Any]]:
        file, _, region = self._regions[i]
        where = f"{self.path}: {self.name(i)}"
        try:
            scene = region["scene"]
            sounds = [scene["source"], *scene.get("noise", [])]
            if len(sounds) > 1 + MOST_NOISES:
                raise ValueError(f"{len(sounds) - 1} noises, of {MOST_NOISES} at most")
            names = [str(sound["rir"][KEYS[self.layout]]) for sound in sounds]
            metadata = _describe_region(region, self.layout)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SceneError(
                f"{where} is not as published: {repr(error)[:100]} is missing or wrong."
            ) from error
        found = [read_npy(self._find(file, name)) for name in names]
        for rir, name in zip(found, names, strict=True):
            if rir.ndim != 2 or len(rir) != AUDIO_CHANNELS[self.layout] or not rir.shape[1]:
                raise SceneError(
                    f"{where}: {name} has the shape {rir.shape}; it must be "
                    f"({AUDIO_CHANNELS[self.layout]}, samples), as it is {self.layout}."
                )
            require_finite(rir, f"{where}: {name}")
        return found, metadata

    def _find(self, file: Path, name: str) -> Path:
        """Return the file that a JSON means."""
        bare = os.path.basename(name)
        if os.path.isabs(name):
            paths = self._arrays.get(bare, [])
        else:
            inside = [_inside(self.path, folder, name) for folder in (file.parent, self.path)]
            paths = [path for path in inside if path is not None and os.path.isfile(path)][:1]
            if not any(inside):
                raise SceneError(
                    f"{file} names {name}, outside the set {self.path}. Give the folder that holds "
                    "both."
                )
            paths = paths or self._arrays.get(bare, [])
        if len(paths) != 1:
            raise SceneError(
                f"{file} names {name}, which is {'several times' if paths else 'not'} in "
                f"{self.path}."
            )
        return paths[0]

    @cached_property
    def _arrays(self) -> dict[str, list[Path]]:
        """The arrays in the set by their bare names."""
        found: dict[str, list[Path]] = {}
        for path in find_below(self.path, NPY):
            found.setdefault(path.name, []).append(path)
        return found


def _describe_region(region: dict[str, Any], layout: str) -> dict[str, Any]:
    """Return what a region says of its source: all that 0.1.0 wrote, or the published angles."""
    scene = region["scene"]
    if layout in (ours := scene.get("metadata", {})):
        return ours[layout]
    source = scene["source"]
    if "azimuth" not in source or "elevation" not in source:
        return {}
    listener = float(region.get("agent_data", {}).get("azimuth", 0.0))
    azimuth = 180 - (float(source["azimuth"]) - listener + 180) % 360  # (-180, 180]
    elevation = float(source["elevation"])
    distance = {"distance": float(source["radius"])} if "radius" in source else {}
    direction = unit_vector(azimuth, elevation).tolist()
    return {"azimuth": azimuth, "elevation": elevation, "direction": direction, **distance}


def _open_regions(path: Path, layout: str | None, rate: int) -> SoundSpacesRirs:
    regions = []
    for file in find_below(path, ".json"):
        found = _read_json(file)
        if not isinstance(found, dict) or "sampled_regions" not in found:
            continue
        try:
            regions += [(file, i, one["region"]) for i, one in enumerate(found["sampled_regions"])]
        except (KeyError, TypeError) as error:
            raise SceneError(f"{file}: sampled_regions must be a list of regions.") from error
    if not regions:
        raise SceneError(f"{path} holds no scenes: none of its JSON files has sampled_regions.")
    try:
        keys = regions[0][2]["scene"]["source"]["rir"]
        there = [name for name, key in KEYS.items() if keys.get(key)]
    except (KeyError, TypeError, AttributeError) as error:
        raise SceneError(f"{regions[0][0]} is not as published: it lacks {error}.") from error
    if not there:
        raise SceneError(f"{regions[0][0]} names no RIRs; it must have {', '.join(KEYS.values())}.")
    return SoundSpacesRirs(path, _choose(path, layout, there), rate, regions)
