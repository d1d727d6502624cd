"""Sets of RIRs simulated and written by processes side by side, resumably.

Every room is drawn from (seed, split, number) and every scene from (seed, split, room, number), so
that a set is the same whoever renders what and when, and the rooms of the splits are different
ones.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gram_hear.config import require_rate
from gram_hear.errors import OptionError, SceneError, nearest, reason_of
from gram_hear.foreign import parse_json
from gram_hear.jobs.progress import Progress
from gram_hear.jobs.workers import cores, work
from gram_hear.jobs.writing import hold, write_whole
from gram_hear.scenes.heads import load_head
from gram_hear.scenes.rendering import LAYOUTS, LONGEST_RIR, Rendered, render, tune
from gram_hear.scenes.rir_writers import WRITERS, Place, RirWriter, clear
from gram_hear.scenes.rirs import (
    BUILDING,
    CONTAINERS,
    DESCRIPTION,
    FORMAT,
    SPLITS,
    VERSION,
    read_description,
)
from gram_hear.scenes.rooms import Ranges, Room, Scene, draw_room, draw_scene

MOST_SCENES = 1_000_000
PUBLISHED_SECONDS = 3.0  # of RIRs in tars, which must all have the same length
ROOMS = 50  # drawn until one can have its reverberation time, and a placement
PLACEMENTS = 20  # drawn in such a room, until one fits
OPTIONS, LOCK = "options.json", "lock"


@dataclass(frozen=True)
class RirPlan:
    """What a set of RIRs is made with.

    Attributes:
        rooms: how many, over all splits.
        scenes_per_room: placements of listener, source and noise sources in each.
        layouts: ``"binaural"``, ``"ambisonic"``, or both of the same scenes.
        seed: what everything is drawn from.
        valid, test: the shares of the rooms that are kept for validation and test; where a share
            is above 0, at least one room.
        ranges: what rooms and placements are drawn from.
        head: whose ears hear: as :func:`gram_hear.scenes.heads.load_head` takes it.
        rate: Hz.
        seconds: of each RIR; None is as long as the room rings, and 3 s for ``webdataset``.
        container: the layout on disk: ``"indexed"``, ``"webdataset"`` or ``"soundspaces"``.
    """

    rooms: int
    scenes_per_room: int = 100
    layouts: tuple[str, ...] = ("binaural",)
    seed: int = 0
    valid: float = 0.1
    test: float = 0.1
    ranges: Ranges = field(default_factory=Ranges)
    head: str = "kemar"
    rate: int = 32000
    seconds: float | None = None
    container: str = "indexed"

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
        _check_names("layout", self.layouts, tuple(LAYOUTS))
        _check_names("container", (self.container,), CONTAINERS)
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
    def length(self) -> float | None:
        """Seconds of each RIR; None is as long as its room rings."""
        fixed = self.container == "webdataset" and self.seconds is None
        return PUBLISHED_SECONDS if fixed else self.seconds

    @property
    def places(self) -> Iterator[Place]:
        """All scenes, in order."""
        for split, rooms in self.rooms_of_splits.items():
            for room in range(rooms):
                for scene in range(self.scenes_per_room):
                    yield Place(split, room, scene)

    def to_dict(self) -> dict[str, Any]:
        """Return what the set depends on, as plain data; a head's file by its content."""
        head = self.head if "binaural" in self.layouts else None
        if head is not None and os.path.isfile(head):
            head = f"sha256 {hashlib.sha256(Path(head).read_bytes()).hexdigest()}"
        options = dataclasses.asdict(self) | {"head": head, "gram_hear": version("gram-hear")}
        return json.loads(json.dumps(options))


Simulator = Callable[[RirPlan, Place], Sequence[Rendered]]


def _check_names(what: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for name in given:
        if name not in allowed:
            raise OptionError(
                f"Unknown {what} {name!r}; allowed are {', '.join(allowed)}."
                + nearest(name, allowed)
            )
    if not given or len(set(given)) < len(given):
        raise OptionError(f"The {what}s are {given}; give at least one, each once.")


# --- simulation -----------------------------------------------------------------------------


def simulate(plan: RirPlan, place: Place) -> list[Rendered]:
    """Draw a scene and render its RIRs in each layout of the plan.

    Raises:
        SceneError: where the plan's ranges give no room, or no placement in it.
    """
    split = SPLITS.index(place.split)
    room = draw_room_of(plan.ranges, plan.seed, split, place.room)
    scene = tune(_draw_placement(room, (plan.seed, split, place.room, place.scene), plan.ranges))
    return [
        render(
            scene,
            layout,
            plan.rate,
            # Checked before the set is begun.
            load_head(plan.head, plan.rate, check=False) if layout == "binaural" else None,
            plan.length,
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
    """Draw a placement in a room that has room for one, however rare those are."""
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

    With several jobs scripts need ``if __name__ == "__main__":`` around the call. When it is
    stopped, by Ctrl-C too, every scene that was finished stays, and no file is left half written.

    Args:
        output: the set's folder; made where it is not there.
        plan: what the set is made with.
        jobs: processes side by side; None is one for each processor.
        force: replace a set that is there.
        check_head: refuse a SOFA file whose ears contradict its directions, and the like, as
            ``check`` of :func:`gram_hear.scenes.heads.load_head`.
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
    counts = {split: n * plan.scenes_per_room for split, n in plan.rooms_of_splits.items()}
    progress = progress or _silent
    try:
        if _is_built(output, plan, force):
            progress(sum(counts.values()), sum(counts.values()))
            return counts
        with open(output / BUILDING / LOCK, "w") as lock:
            if not hold(lock):
                raise OptionError(f"Another run is building {output}; wait for it.")
            _build(output, plan, jobs, progress, simulator)
    except OSError as error:
        raise SceneError(
            f"{output} cannot be written: {reason_of(error)}. What is finished is kept; "
            "build the set again to go on."
        ) from error
    return counts


def _silent(done: int, total: int) -> None:
    pass


def _is_built(output: Path, plan: RirPlan, force: bool) -> bool:
    """Prepare the output folder; return whether the whole set is there already."""
    options = plan.to_dict()
    begun = output / BUILDING / OPTIONS
    found = None
    if finished := (output / DESCRIPTION).is_file():
        found = (read_description(output) or {}).get("options", {})
    elif begun.is_file():
        found = _read_options(begun)
    elif output.exists() and not _is_empty(output):
        raise OptionError(
            f"{output} is there already and is no set of RIRs; give a folder that is new or empty."
        )
    if found is not None and force:
        clear(output)
    elif found is not None and found != options:
        raise OptionError(
            f"{output} was begun with other options ({_differences(found, options)}). Use --force "
            "(force=True) to build it anew, or another output."
        )
    elif finished:
        shutil.rmtree(begun.parent, ignore_errors=True)
        return True
    begun.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(options, indent=2) + "\n"
    write_whole(begun, lambda path: path.write_text(text, encoding="utf-8"))
    return False


def _is_empty(folder: Path) -> bool:
    """Whether a path is a folder with nothing in it but what a killed run may leave."""
    return folder.is_dir() and all(path.name == BUILDING for path in folder.iterdir())


def _read_options(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes(), str(path), SceneError)
    except SceneError:  # as a power cut leaves it
        return {}


def _differences(found: Any, options: Mapping[str, Any]) -> str:
    found = found if isinstance(found, dict) else {}
    keys = [key for key in options if found.get(key) != options[key]]
    return "; ".join(f"{key} {found.get(key)}, not {options[key]}" for key in keys)


def _build(
    output: Path,
    plan: RirPlan,
    jobs: int,
    progress: Progress,
    simulator: Simulator,
) -> None:
    for leftover in output.rglob(".*.partial"):  # of a run that was killed
        leftover.unlink()
    slots = 1 + plan.ranges.noise_sources[1]
    writer = WRITERS[plan.container](output, plan.layouts, slots)
    places = list(plan.places)
    due = [place for place in places if not writer.is_written(place)]
    left = {(place.split, place.room): 0 for place in places}
    for place in due:
        left[place.split, place.room] += 1
    for (split, room), missing in left.items():
        if not missing:
            writer.finish_room(split, room, plan.scenes_per_room)
    done = len(places) - len(due)
    progress(done, len(places))
    make = partial(_make, writer, plan, simulator)
    with closing(work(make, due, min(jobs, max(1, len(due))))) as made:
        for place in made:
            done += 1
            left[place.split, place.room] -= 1
            if not left[place.split, place.room]:
                writer.finish_room(place.split, place.room, plan.scenes_per_room)
            progress(done, len(places))
    writer.finish(plan.rooms_of_splits, plan.scenes_per_room)
    _describe(output, plan)
    shutil.rmtree(output / BUILDING)


def _make(writer: RirWriter, plan: RirPlan, simulator: Simulator, place: Place) -> Place:
    """Render and write a scene, in whichever process."""
    writer.write_scene(place, simulator(plan, place))
    return place


def _describe(output: Path, plan: RirPlan) -> None:
    """Write the set's description, last of all."""
    rooms = plan.rooms_of_splits
    description = {
        "format": FORMAT,
        "version": VERSION,
        "gram_hear": version("gram-hear"),
        "container": plan.container,
        "rate": plan.rate,
        "layouts": plan.layouts,
        "axes": "ambix" if plan.container == "indexed" else "soundspaces",
        "counts": {split: n * plan.scenes_per_room for split, n in rooms.items()},
        "rooms": rooms,
        "seed": plan.seed,
        "options": plan.to_dict(),
    }
    text = json.dumps(description, indent=2) + "\n"
    write_whole(output / DESCRIPTION, lambda path: path.write_text(text, encoding="utf-8"))
