"""Sets of RIRs written, in each of the three layouts that :mod:`gram_hear.scenes.rirs` reads.

A set grows scene by scene, by several processes side by side. What a scene's files hold depends on
nothing but the scene; a note of it is written last, so that a scene with a note is whole. When all
are there, :meth:`RirWriter.finish` turns the notes into the set's index.
"""

import io
import json
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.audio.archives import write_npy
from gram_hear.audio.layouts import to_soundspaces
from gram_hear.jobs.writing import write_whole
from gram_hear.scenes.rendering import Rendered
from gram_hear.scenes.rirs import BUILDING, KEYS


@dataclass(frozen=True)
class Place:
    """A scene's place in a set: the number of its room in the split, and its own in the room."""

    split: str
    room: int
    scene: int

    @property
    def name(self) -> str:
        """split/room/scene."""
        return f"{self.split}/{self.room:05d}/{self.scene:05d}"

    @property
    def flat(self) -> str:
        """The name, without folders."""
        return self.name.replace("/", "-")


@dataclass(frozen=True)
class RirWriter(ABC):
    """A set in the making.

    Attributes:
        folder: of the set.
        layouts: ``"binaural"``, ``"ambisonic"`` or both.
        slots: RIRs of each array where all have the same number: the source's and noises'.
    """

    folder: Path
    layouts: tuple[str, ...]
    slots: int

    @abstractmethod
    def write_arrays(self, place: Place, rendered: Rendered) -> str:
        """Write a scene's RIRs in one layout; return the file's path in the set."""

    @abstractmethod
    def finish(self, rooms: Mapping[str, int], scenes: int) -> None:
        """Write the index of a set with so many rooms in each split and scenes in each room."""

    @abstractmethod
    def finish_room(self, split: str, room: int, scenes: int) -> None:
        """Do what there is to do when all scenes of a room are written."""

    def write_scene(self, place: Place, rendered: Sequence[Rendered]) -> None:
        """Write a scene, whole or not at all."""
        note = {
            "name": place.name,
            "split": place.split,
            "room": place.room,
            "scene": place.scene,
            "files": {each.layout: self.write_arrays(place, each) for each in rendered},
            "metadata": {each.layout: each.metadata for each in rendered},
        }
        _write(self.note(place), json.dumps(note, allow_nan=False) + "\n")

    def note(self, place: Place) -> Path:
        """Return the note of a scene."""
        return self.folder / BUILDING / f"{place.name}.json"

    def is_written(self, place: Place) -> bool:
        """Whether a scene is there; a note without content is what a power cut leaves."""
        note = self.note(place)
        return note.is_file() and note.stat().st_size > 0

    def notes(self, split: str, rooms: Sequence[int], scenes: int) -> Iterator[str]:
        """Yield the notes of rooms, in order."""
        for room in rooms:
            for scene in range(scenes):
                yield self.note(Place(split, room, scene)).read_text(encoding="utf-8")

    def save(self, path: Path, array: np.ndarray) -> None:
        """Write an array, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: write_npy(temporary, array))


class IndexedWriter(RirWriter):
    """Our own layout: AmbiX, float32, all that is known of each scene."""

    def write_arrays(self, place: Place, rendered: Rendered) -> str:
        """Write (1 + noise sources, channels, samples)."""
        relative = f"{place.name}.{rendered.layout}.npy"
        self.save(self.folder / relative, rendered.rirs.astype("<f4", copy=False))
        return relative

    def finish_room(self, split: str, room: int, scenes: int) -> None:
        """Do nothing."""

    def finish(self, rooms: Mapping[str, int], scenes: int) -> None:
        """Write a file of JSON lines for each split."""
        for split, count in rooms.items():
            _write_lines(self.folder / f"{split}.jsonl", self.notes(split, range(count), scenes))


class WebDatasetWriter(RirWriter):
    """Tars as published, one for each room, in a folder for each layout."""

    def write_arrays(self, place: Place, rendered: Rendered) -> str:
        """Keep (slots, channels, samples) until the room is finished."""
        rirs = _in_published_axes(rendered)
        padded = np.zeros((self.slots, *rirs.shape[1:]), dtype="<f4")
        padded[: len(rirs)] = rirs
        self.save(self._kept(place, rendered.layout), padded)
        return (
            self._tar(rendered.layout, place.split, place.room).relative_to(self.folder).as_posix()
        )

    def finish_room(self, split: str, room: int, scenes: int) -> None:
        """Put a room's arrays into its tars."""
        places = [Place(split, room, scene) for scene in range(scenes)]
        tars = {layout: self._tar(layout, split, room) for layout in self.layouts}
        for layout, path in tars.items():
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                kept = [self._kept(place, layout) for place in places]
                write_whole(path, partial(_pack, kept=kept))
        for place in places:
            for layout in self.layouts:
                self._kept(place, layout).unlink(missing_ok=True)

    def finish(self, rooms: Mapping[str, int], scenes: int) -> None:
        """Do nothing: the tars are all."""

    def _kept(self, place: Place, layout: str) -> Path:
        return self.folder / BUILDING / f"{place.name}.{layout}.npy"

    def _tar(self, layout: str, split: str, room: int) -> Path:
        return self.folder / layout / f"{split}-{room:06d}.tar"


class SoundSpacesWriter(RirWriter):
    """The published folders: a JSON file for each room, beside a folder of single RIRs."""

    def write_arrays(self, place: Place, rendered: Rendered) -> str:
        """Write an array (channels, samples) for the source and each noise."""
        for i, rir in enumerate(_in_published_axes(rendered).astype("<f4", copy=False)):
            self.save(self._rir(place, rendered.layout, i), rir)
        return f"{place.split}/{place.room:05d}.json"

    def finish_room(self, split: str, room: int, scenes: int) -> None:
        """Do nothing."""

    def finish(self, rooms: Mapping[str, int], scenes: int) -> None:
        """Write a JSON file for each room."""
        for split, count in rooms.items():
            for room in range(count):
                notes = map(json.loads, self.notes(split, [room], scenes))
                regions = [{"region": self._region(note)} for note in notes]
                house = {"house": {"id": f"{split}-{room:05d}"}, "sampled_regions": regions}
                _write(self.folder / split / f"{room:05d}.json", json.dumps(house) + "\n")

    def _rir(self, place: Place, layout: str, i: int) -> Path:
        sound = f"noise{i}" if i else "source"
        return self.folder / place.split / "rirs" / f"{place.flat}-{sound}-{layout}.npy"

    def _region(self, note: dict[str, Any]) -> dict[str, Any]:
        """Return a scene as it is published: angles are clockwise."""
        place = Place(note["split"], note["room"], note["scene"])
        metadata = note["metadata"][self.layouts[0]]
        rirs = [
            {
                "rir": {
                    KEYS[layout]: f"rirs/{self._rir(place, layout, i).name}"
                    for layout in self.layouts
                }
            }
            for i in range(1 + len(metadata["noises"]))
        ]
        source = {
            "azimuth": -metadata["azimuth"],
            "elevation": metadata["elevation"],
            "radius": metadata["distance"],
        }
        scene = {"source": source | rirs[0], "noise": rirs[1:], "metadata": note["metadata"]}
        return {"agent_data": {"azimuth": 0.0}, "scene": scene}


WRITERS: dict[str, type[RirWriter]] = {
    "indexed": IndexedWriter,
    "webdataset": WebDatasetWriter,
    "soundspaces": SoundSpacesWriter,
}


def clear(folder: Path) -> None:
    """Remove a set that was written here, of whichever layout, and nothing else of the folder."""
    for name in ("set.json", "train.jsonl", "valid.jsonl", "test.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for name in ("train", "valid", "test", *KEYS, BUILDING):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)


def _pack(path: Path, kept: Sequence[Path]) -> None:
    """Write a tar of arrays, the same bytes whenever and by whomever it is made."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for array in kept:
            data = array.read_bytes()
            split, room, scene = array.parts[-3], array.parts[-2], array.name.partition(".")[0]
            member = tarfile.TarInfo(f"{split}-{room}-{scene}.npy")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _in_published_axes(rendered: Rendered) -> np.ndarray:
    if rendered.layout != "ambisonic":
        return rendered.rirs
    return to_soundspaces(rendered.rirs, "ambix")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(lines)

    write_whole(path, write)
