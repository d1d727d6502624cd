"""Sets of RIRs, simulated by processes side by side and written in our own layout.

Every room is drawn from (seed, split, number) and every scene from (seed, split, room, number). So
a set is the same whoever renders what and when, and the rooms of the splits are different ones.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gram_hear.audio.archives import write_npy
from gram_hear.config import require_rate
from gram_hear.errors import OptionError, SceneError, require_known
from gram_hear.jobs.callback import Progress, silent
from gram_hear.jobs.job import Job, Record, run_parts
from gram_hear.jobs.workers import cores
from gram_hear.jobs.writing import write_json, write_json_lines, write_whole, writing
from gram_hear.scenes.heads import load_head
from gram_hear.scenes.rendering import LONGEST_RIR, SCENE_LAYOUTS, Rendered, render, tune
from gram_hear.scenes.rirs import (
    BUILDING,
    DESCRIPTION,
    FORMAT,
    KEYS,
    SPLITS,
    VERSION,
    read_description,
)
from gram_hear.scenes.rooms import Ranges, Room, Scene, draw_room, draw_scene

MOST_SCENES = 1_000_000
ROOMS = 50  # attempts to draw a room that can have its reverberation time, and a placement
PLACEMENTS = 20  # attempts to draw a placement in such a room


@dataclass(frozen=True)
class SceneIndex:
    """Which scene of a set: its split, the number of its room there, and its own in the room."""

    split: str
    room: int
    scene: int

    @property
    def name(self) -> str:
        """split/room/scene."""
        return f"{self.split}/{self.room:05d}/{self.scene:05d}"


@dataclass(frozen=True)
class RirPlan:
    """What a set of RIRs is made with.

    ``valid`` and ``test`` are the shares of the rooms that are kept for validation and test; where
    a share is above 0, at least one room.
    """

    rooms: int  # over all splits
    scenes_per_room: int = 100  # placements of listener, source and noise sources
    layouts: tuple[str, ...] = ("binaural",)  # or ambisonic, or both of the same scenes
    seed: int = 0  # what everything is drawn from
    valid: float = 0.1
    test: float = 0.1
    ranges: Ranges = field(default_factory=Ranges)  # what rooms and placements are drawn from
    head: str = "kemar"  # whose ears hear, as load_head takes it
    rate: int = 32000  # Hz
    seconds: float | None = None  # of each RIR; None is as long as the room rings

    def __post_init__(self) -> None:
        if self.rooms < 1 or self.scenes_per_room < 1 or self.seed < 0:
            raise OptionError(
                f"rooms is {self.rooms}, scenes per room {self.scenes_per_room}, seed {self.seed}; "
                "they must be at least 1, 1 and 0."
            )
        if self.rooms * self.scenes_per_room > MOST_SCENES:
            raise OptionError(
                f"{self.rooms} rooms with {self.scenes_per_room} scenes each are more than "
                f"{MOST_SCENES:,} scenes; build several sets."
            )
        require_rate(self.rate)
        if self.seconds is not None and not 0.05 <= self.seconds <= LONGEST_RIR:
            raise OptionError(f"seconds is {self.seconds}; it must be 0.05 to {LONGEST_RIR:g}.")
        for layout in self.layouts:
            require_known("layout", layout, SCENE_LAYOUTS)
        if not self.layouts or len(set(self.layouts)) < len(self.layouts):
            raise OptionError(f"The layouts are {self.layouts}; give at least one, each once.")
        if not (0 <= self.valid < 1 and 0 <= self.test < 1 and self.valid + self.test <= 1):
            raise OptionError(
                f"The shares of validation and test are {self.valid} and {self.test}; each must be "
                "from 0 up to less than 1, and both at most 1 together."
            )
        if sum(self.rooms_of_splits.values()) != self.rooms:
            raise OptionError(
                f"{self.rooms} rooms cannot be shared by train, valid and test, one at least for "
                "each. Ask for more rooms, or for shares of 0: --valid 0 --test 0."
            )

    @property
    def rooms_of_splits(self) -> dict[str, int]:
        """How many rooms each split has; splits without rooms are left out."""
        held = {
            split: max(1, round(share * self.rooms)) if share else 0
            for split, share in (("valid", self.valid), ("test", self.test))
        }
        train = self.rooms - sum(held.values())
        if train < 1 and self.valid + self.test < 1:
            return {}
        return {name: n for name, n in ({"train": train} | held).items() if n > 0}

    @property
    def scenes(self) -> Iterator[SceneIndex]:
        """All scenes, in order."""
        for split in self.rooms_of_splits:
            yield from self.scenes_of(split)

    def scenes_of(self, split: str) -> Iterator[SceneIndex]:
        """The scenes of a split, in order."""
        for room in range(self.rooms_of_splits[split]):
            for scene in range(self.scenes_per_room):
                yield SceneIndex(split, room, scene)

    def to_dict(self) -> dict[str, Any]:
        """Return what the set depends on, as plain data; a head's file by its content."""
        head = self.head if "binaural" in self.layouts else None
        if head is not None and os.path.isfile(head):
            head = f"sha256 {hashlib.sha256(Path(head).read_bytes()).hexdigest()}"
        options = dataclasses.asdict(self) | {"head": head, "gram_hear": version("gram-hear")}
        return json.loads(json.dumps(options))


Simulator = Callable[[RirPlan, SceneIndex], Sequence[Rendered]]


# --- simulation -----------------------------------------------------------------------------


def simulate(plan: RirPlan, index: SceneIndex) -> list[Rendered]:
    """Draw a scene and render its RIRs in each layout of the plan.

    Raises:
        SceneError: where the plan's ranges give no room, or no placement in it.
    """
    split = SPLITS.index(index.split)
    room = draw_room_of(plan.ranges, plan.seed, split, index.room)
    scene = tune(_draw_placement(room, (plan.seed, split, index.room, index.scene), plan.ranges))
    return [
        render(
            scene,
            layout,
            plan.rate,
            # Checked before the set is begun.
            load_head(plan.head, plan.rate, check=False) if layout == "binaural" else None,
            plan.seconds,
        )
        for layout in plan.layouts
    ]


@lru_cache(maxsize=4)
def draw_room_of(ranges: Ranges, seed: int, split: int, number: int) -> Room:
    """Draw a split's room of some number, again where it cannot have its RT60 or a placement."""
    for attempt in range(ROOMS):
        own = (seed, split, number, attempt)
        try:
            room = draw_room(own, ranges)
            draw_scene(room, own, ranges)
        except SceneError:
            if attempt == ROOMS - 1:
                raise
        else:
            return room
    raise AssertionError


def _draw_placement(room: Room, seed: tuple[int, ...], ranges: Ranges) -> Scene:
    """Draw a placement in a room that is known to allow one, however rarely."""
    for attempt in range(PLACEMENTS):
        try:
            return draw_scene(room, (*seed, attempt), ranges)
        except SceneError:
            if attempt == PLACEMENTS - 1:
                raise
    raise AssertionError


# --- building -------------------------------------------------------------------------------


def build_rirs(
    output: Path,
    plan: RirPlan,
    *,
    jobs: int | None = None,
    force: bool = False,
    check_head: bool = True,
    progress: Progress | None = None,
    simulator: Simulator = simulate,
) -> dict[str, int]:
    """Build a set of RIRs, or go on with one that was interrupted.

    Several runs may build one set together. With several jobs scripts need
    ``if __name__ == "__main__":`` around the call. When it is stopped, by Ctrl-C too, every scene
    that was finished stays, and no file is left half written.

    Args:
        output: the set's folder; made where it is not there.
        plan: what the set is made with.
        jobs: processes side by side; None is one for each processor.
        force: replace a set that is there.
        check_head: as ``check`` of :func:`gram_hear.scenes.heads.load_head`.
        progress: called with the number of scenes done and that of all.
        simulator: what renders a scene; it must be importable by other processes.

    Returns:
        The number of scenes in each split.

    Raises:
        OptionError: for a folder with other files, or a set made with other options.
        SceneError: for scenes that cannot be, and where the set cannot be written.
    """
    jobs = cores() if jobs is None else jobs
    if jobs < 1:
        raise OptionError(f"jobs is {jobs}; it must be at least 1.")
    if "binaural" in plan.layouts:
        load_head(plan.head, plan.rate, check=check_head)
    progress = progress or silent
    job = Job(output, plan.to_dict())
    finished = partial(_finished, output)
    with writing(output, SceneError):
        if not force:
            _refuse_unfinished(output)
        if job.begin(force=force, finished=finished, clear=partial(clear, output)):
            _build(job, plan, jobs, progress, simulator)
    counts = {split: n * plan.scenes_per_room for split, n in plan.rooms_of_splits.items()}
    progress(sum(counts.values()), sum(counts.values()))
    return counts


def _finished(output: Path) -> Any:
    """Return what a finished set says that it was made with; None where it is not finished."""
    if not (output / DESCRIPTION).is_file():
        return {} if (output / BUILDING).is_dir() else None  # begun by gram-hear 0.1.0
    return (read_description(output) or {}).get("options", {})


def _refuse_unfinished(output: Path) -> None:
    """Raise an OptionError for a set that gram-hear 0.1.0 began: it is of another version."""
    if (output / BUILDING).is_dir() and not (output / DESCRIPTION).is_file():
        raise OptionError(
            f"{output} was begun by gram-hear 0.1.0, and this version does not go on with it. Use "
            "--force (force=True) to make it anew, or another output."
        )


def clear(output: Path) -> None:
    """Remove a set that was built here, by whichever version, and nothing else of the folder."""
    for name in (DESCRIPTION, *(f"{split}.jsonl" for split in SPLITS)):
        (output / name).unlink(missing_ok=True)
    for name in (*SPLITS, *KEYS, BUILDING):
        if (output / name).is_dir():
            shutil.rmtree(output / name)


def _build(job: Job, plan: RirPlan, jobs: int, progress: Progress, simulator: Simulator) -> None:
    """Make the scenes that are left to make, and finish the set."""
    scenes = {index.name: index for index in plan.scenes}
    due = {name: scenes[name] for name in job.missing(scenes)}
    done = len(scenes) - len(due)
    progress(done, len(scenes))
    make = partial(_make, job.output, plan, simulator)
    with closing(run_parts(job, due, make, jobs)) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                raise SceneError(outcome.error)
            done += 1
            progress(done, len(scenes))
    with job.finishing():
        if job.is_finished(partial(_finished, job.output)):  # by another run
            return
        if lost := job.missing(scenes):
            raise SceneError(job.describe_lost(lost))
        for split in plan.rooms_of_splits:
            entries = (job.record(index.name) for index in plan.scenes_of(split))
            write_json_lines(job.output / f"{split}.jsonl", entries)
        _describe(job.output, plan)
        job.close()


def _make(
    output: Path, plan: RirPlan, simulator: Simulator, index: SceneIndex
) -> tuple[Record, list[Path]]:
    """Render and write a scene, in whichever process; return its line of the index."""
    rendered = simulator(plan, index)
    files = {each.layout: f"{index.name}.{each.layout}.npy" for each in rendered}
    (output / index.name).parent.mkdir(parents=True, exist_ok=True)
    for each in rendered:
        array = each.rirs.astype("<f4", copy=False)
        write_whole(output / files[each.layout], partial(write_npy, array=array))
    metadata = {each.layout: each.metadata for each in rendered}
    entry = {"name": index.name, **dataclasses.asdict(index), "files": files, "metadata": metadata}
    return entry, [output / file for file in files.values()]


def _describe(output: Path, plan: RirPlan) -> None:
    """Write the set's description, last of all."""
    rooms = plan.rooms_of_splits
    description = {
        "format": FORMAT,
        "version": VERSION,
        "gram_hear": version("gram-hear"),
        "container": "indexed",
        "rate": plan.rate,
        "layouts": plan.layouts,
        "axes": "ambix",
        "counts": {split: n * plan.scenes_per_room for split, n in rooms.items()},
        "rooms": rooms,
        "seed": plan.seed,
        "options": plan.to_dict(),
    }
    write_json(output / DESCRIPTION, description, indent=2)
