"""Shoebox rooms like those of houses, with a listener, a source and noise sources, from a seed.

World axes lie along the walls, in metres from a corner: x, y, and z up. The listener looks in the
horizontal direction ``yaw``, in degrees counter-clockwise from x. Directions of sources are in the
head's frame: x front, y left, z up.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gram_hear.errors import SceneError
from gram_hear.extras import need
from gram_hear.scenes.acoustics import AIR, BANDS, SPEECH_BAND, absorption_for
from gram_hear.scenes.geometry import angles, turn, unit_vector

SURFACES = ("west", "east", "south", "north", "floor", "ceiling")  # x-, x+, y-, y+, z-, z+
RT60_OF_BANDS = (1.15, 1.1, 1.05, 1.0, 0.95, 0.85, 0.7)  # of furnished rooms, relative to 1 kHz
RT60_DEVIATION = 0.08  # standard deviation of the logarithm of the RT60 of a band
ABSORPTION_DEVIATION = 0.5  # standard deviation of the logarithm of a surface's absorption
DRAWN_ABSORPTION = 0.5  # the largest average absorption of a room that is drawn
SOFTEST_FLOOR = 3.0  # a carpet absorbs up to so many times as much as the walls
LEAST_DISTANCE = 0.2  # metres from a source to the centre of the head
SIDES = (0.5, 100.0)  # metres, the shortest and the longest side of a room
LONGEST_RT60 = 10.0  # seconds
MOST_NOISES = 100  # noise sources of a scene
LARGEST_ORDER = 100  # of reflections: 1.3 million image sources
SIZES = 100  # sizes that are tried for a room of a short RT60
TRIES = 2000  # placements that are tried in one room
ROOMS = 50  # rooms that are tried for the placement that was asked for

Position = tuple[float, float, float]


@dataclass(frozen=True)
class Ranges:
    """The ranges from which rooms and placements are drawn, each uniformly between two bounds.

    Size and RT60 are drawn such that the average absorption, by Sabine's formula, is at most
    :data:`DRAWN_ABSORPTION`. Lengths are in metres. Noise sources may be anywhere.
    """

    width: tuple[float, float] = (2.5, 7.0)  # of the room, as depth and height
    depth: tuple[float, float] = (3.0, 10.0)
    height: tuple[float, float] = (2.3, 3.5)
    rt60: tuple[float, float] = (0.2, 1.0)  # in the octave of 1 kHz, seconds
    gap: float = 0.3  # from listener and sources to the walls, at least
    listener_height: tuple[float, float] = (1.0, 1.8)  # above the floor
    source_height: tuple[float, float] = (0.3, 2.2)
    distance: tuple[float, float] = (0.5, 5.0)  # from listener to source
    noise_sources: tuple[int, int] = (1, 5)  # their number, both bounds included

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "gap":
                continue
            if len(value) != 2 or not 0 <= value[0] <= value[1] < math.inf:
                raise SceneError(
                    f"{field.name} is drawn from {value}; it must be two numbers, low and high."
                )
        for name, most, unit in (
            *((side, SIDES[1], "m") for side in ("width", "depth", "height")),
            ("rt60", LONGEST_RT60, "s"),
            ("noise_sources", MOST_NOISES, "sources"),
        ):
            if getattr(self, name)[1] > most:
                raise SceneError(
                    f"{name} is drawn from {getattr(self, name)}; {most:g} {unit} is the most."
                )
        if self.distance[0] < LEAST_DISTANCE:
            raise SceneError(
                f"Distances are drawn from {self.distance} m; a source must be at least "
                f"{LEAST_DISTANCE} m from the head's centre."
            )
        if not all(isinstance(count, int) for count in self.noise_sources):
            raise SceneError(f"noise_sources is {self.noise_sources}; give two whole numbers.")
        if not 0 < self.gap < min(self.width[0], self.depth[0], self.height[0]) / 2:
            raise SceneError(f"The gap to the walls is {self.gap} m, which leaves no room inside.")


@dataclass(frozen=True)
class Room:
    """A shoebox room."""

    size: Position  # metres along x, y and z
    # The share of energy that is absorbed, for each of SURFACES and each octave band.
    absorption: tuple[tuple[float, ...], ...]
    rt60: float  # seconds that were asked for in the octave of 1 kHz

    def __post_init__(self) -> None:
        if len(self.size) != 3 or not all(SIDES[0] <= side <= SIDES[1] for side in self.size):
            raise SceneError(
                f"The room's size is {self.size}; it must be three lengths of {SIDES[0]:g} to "
                f"{SIDES[1]:g} m."
            )
        _check_rt60(self.rt60)
        shape = np.shape(self.absorption)
        if shape != (6, len(BANDS)) or not all(0 < a < 1 for row in self.absorption for a in row):
            raise SceneError(
                f"The absorption has the shape {shape}; it must be 6 surfaces x {len(BANDS)} "
                "octave bands, each between 0 and 1."
            )

    @property
    def volume(self) -> float:
        """The volume in cubic metres."""
        return math.prod(self.size)

    @property
    def exponents(self) -> np.ndarray:
        """The absorption exponents of the surfaces, -log(1 - absorption): (6, bands)."""
        return -np.log1p(-np.array(self.absorption))


@dataclass(frozen=True)
class Scene:
    """A listener, a source and noise sources in a room.

    Positions are (x, y, z) in metres, in the axes of the room: from a corner, x and y along the
    walls, z up.

    Attributes:
        seed: what the scene was drawn from.
        room: its size, its absorption and its RT60.
        listener: the centre of the head.
        yaw: degrees, counter-clockwise from the room's x to the head's front.
        source: the position of the source.
        noises: the positions of the noise sources.

    Raises:
        SceneError: for a position outside the room, or a source inside the listener's head.
    """

    seed: tuple[int, ...]
    room: Room
    listener: Position
    yaw: float
    source: Position
    noises: tuple[Position, ...] = ()

    def __post_init__(self) -> None:
        if min(self.seed, default=0) < 0 or not math.isfinite(self.yaw):
            raise SceneError(
                f"The seed is {self.seed} and the yaw {self.yaw}; seeds must be 0 or more, and the "
                "yaw a number of degrees."
            )
        _check_noise_sources(len(self.noises))
        positions = {"listener": self.listener, "source": self.source}
        positions |= {f"noise source {i + 1}": position for i, position in enumerate(self.noises)}
        for name, position in positions.items():
            if len(position) != 3 or not all(
                0 < each < side for each, side in zip(position, self.room.size, strict=True)
            ):
                raise SceneError(
                    f"The {name} is at {_metres(position)}, outside the room of "
                    f"{_metres(self.room.size)}."
                )
            distance = math.dist(position, self.listener)
            if name != "listener" and distance < LEAST_DISTANCE:
                raise SceneError(
                    f"The {name} is {distance:.2f} m from the head's centre; it must be at least "
                    f"{LEAST_DISTANCE} m away."
                )

    @property
    def direction(self) -> np.ndarray:
        """Unit vector (3,) to the source in the axes of the head, x front, y left, z up."""
        vector = turn(np.subtract(self.source, self.listener), -self.yaw)
        return vector / np.linalg.norm(vector)

    @property
    def azimuth(self) -> float:
        """The azimuth of the source in degrees, counter-clockwise from the front."""
        return float(angles(self.direction)[0])

    @property
    def elevation(self) -> float:
        """The elevation of the source in degrees, up from the horizon."""
        return float(angles(self.direction)[1])

    @property
    def distance(self) -> float:
        """The distance of the source in metres."""
        return math.dist(self.source, self.listener)

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scene":
        """Return the scene again from what :meth:`to_dict` returned, exactly as it was."""
        try:
            room = Room(
                size=_position(data["room"]["size"]),
                absorption=tuple(tuple(map(float, row)) for row in data["room"]["absorption"]),
                rt60=float(data["room"]["rt60"]),
            )
            return cls(
                seed=tuple(map(int, data["seed"])),
                room=room,
                listener=_position(data["listener"]),
                yaw=float(data["yaw"]),
                source=_position(data["source"]),
                noises=tuple(_position(position) for position in data["noises"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, SceneError):
                raise
            raise SceneError(f"This is no scene: {type(error).__name__} {error}.") from error


def _check_rt60(rt60: float) -> None:
    if not 0 < rt60 <= LONGEST_RT60:
        raise SceneError(
            f"The RT60 is {rt60:g} s; it must be a time above 0, of {LONGEST_RT60:g} s at most."
        )


def _check_noise_sources(count: int) -> None:
    if not 0 <= count <= MOST_NOISES:
        raise SceneError(
            f"{count} noise sources were asked for; there can be 0 or more, up to {MOST_NOISES}."
        )


def _position(values: Iterable[float]) -> Position:
    x, y, z = map(float, values)
    return x, y, z


def _metres(position: Sequence[float]) -> str:
    return " x ".join(f"{each:.2f}" for each in position) + " m"


def draw_room(seed: Sequence[int], ranges: Ranges = Ranges(), *, rt60: float | None = None) -> Room:
    """Draw a room: its size, its RT60 in each octave band, and the absorption of its surfaces.

    Args:
        seed: numbers of 0 or more. The room depends on them and on the other arguments alone.
        ranges: to draw from.
        rt60: seconds in the octave of 1 kHz; None draws it.

    Raises:
        SceneError: for an RT60 that the room cannot have.
    """
    generator = np.random.default_rng([*seed, 1])  # stream 1 of the seed
    low, high = ranges.rt60 if rt60 is None else (rt60, rt60)
    _check_rt60(high)
    for _ in range(SIZES):
        width, depth, height = (
            float(generator.uniform(*bounds))
            for bounds in (ranges.width, ranges.depth, ranges.height)
        )
        surface = 2 * (width * depth + width * height + depth * height)
        shortest = 0.161 * width * depth * height / (DRAWN_ABSORPTION * surface)
        if shortest <= high:
            break
    time = float(generator.uniform(min(max(low, shortest), high), high))
    by_band = np.exp(RT60_DEVIATION * generator.standard_normal(len(BANDS))) * RT60_OF_BANDS * time
    by_band[SPEECH_BAND] = time
    of_air = 6 * math.log(10) / (343.0 * np.array(AIR))
    by_band = np.where(by_band == time, by_band, np.minimum(by_band, 0.8 * of_air))
    surfaces = np.exp(ABSORPTION_DEVIATION * generator.standard_normal(6))
    surfaces[SURFACES.index("floor")] *= generator.uniform(1.0, SOFTEST_FLOOR)
    weights = np.repeat(surfaces[:, None], len(BANDS), axis=1)
    size = (width, depth, height)
    absorption = absorption_for(size, by_band, weights)
    return Room(size, tuple(tuple(map(float, row)) for row in absorption), time)


def draw_scene(
    room: Room,
    seed: Sequence[int],
    ranges: Ranges = Ranges(),
    *,
    azimuth: float | None = None,
    elevation: float | None = None,
    distance: float | None = None,
    noise_sources: int | None = None,
) -> Scene:
    """Draw a listener, a source and noise sources in a room.

    Args:
        room: where to place them.
        seed: numbers of 0 or more. The placement depends on them and on the other arguments alone.
        ranges: to draw from.
        azimuth, elevation, distance: of the source in the head's frame, degrees and metres.
        noise_sources: how many there are. What is None is drawn.

    Raises:
        SceneError: where what is asked for cannot be, or was not found in this room.
    """
    _check_asked(azimuth, elevation, distance, noise_sources)
    generator = np.random.default_rng([*seed, 2])  # stream 2 of the seed
    reachable = distance is None or distance < math.hypot(*room.size)
    for _ in range(TRIES if reachable else 0):
        listener = _draw_position(generator, room, ranges, ranges.listener_height)
        yaw = float(generator.uniform(-180, 180))
        drawn_azimuth = generator.uniform(-180, 180)
        drawn_distance = generator.uniform(*ranges.distance)
        drawn_height = generator.uniform(*ranges.source_height)
        far = float(drawn_distance if distance is None else distance)
        rise = (drawn_height - listener[2]) / far
        if elevation is None and abs(rise) > 1:
            continue
        up = math.degrees(math.asin(rise)) if elevation is None else elevation
        around = float(drawn_azimuth if azimuth is None else azimuth)
        source = _position(listener + turn(far * unit_vector(around, up), yaw))
        if _inside(source, room, ranges.gap):
            break
    else:
        asked = [("azimuth", azimuth, "degrees"), ("elevation", elevation, "degrees")]
        asked += [("distance", distance, "m")]
        wanted = ", ".join(f"{n} {value:g} {unit}" for n, value, unit in asked if value is not None)
        raise SceneError(
            f"In a room of {_metres(room.size)} no position was found for a source"
            f"{f' at {wanted}' if wanted else ''} with {ranges.gap} m to the walls and a listener "
            f"{ranges.listener_height[0]:g} to {ranges.listener_height[1]:g} m above the floor. "
            "Ask for a smaller distance or elevation, or for a larger room."
        )
    low, high = ranges.noise_sources
    count = int(generator.integers(low, high + 1)) if noise_sources is None else noise_sources
    noises: list[Position] = []
    while len(noises) < count:
        position = _draw_position(generator, room, ranges, ranges.source_height)
        if math.dist(position, listener) > max(LEAST_DISTANCE, ranges.gap):
            noises.append(_position(position))
    return Scene(tuple(map(int, seed)), room, _position(listener), yaw, source, tuple(noises))


def _check_asked(
    azimuth: float | None, elevation: float | None, distance: float | None, noises: int | None
) -> None:
    if azimuth is not None and not math.isfinite(azimuth):
        raise SceneError(f"The azimuth is {azimuth}; it must be a number of degrees.")
    if elevation is not None and not -90 <= elevation <= 90:
        raise SceneError(f"The elevation is {elevation}; it must be -90 (below) to 90 (above).")
    if distance is not None and not LEAST_DISTANCE <= distance < math.inf:
        raise SceneError(
            f"The distance is {distance} m; a source must be at least {LEAST_DISTANCE} m from the "
            "head's centre."
        )
    if noises is not None:
        _check_noise_sources(noises)


def draw_room_and_scene(
    seed: Sequence[int], ranges: Ranges = Ranges(), *, rt60: float | None = None, **asked: Any
) -> Scene:
    """Draw a room and a placement in it, as :func:`draw_scene`; try other rooms where none fits.

    Example::

        scene = draw_room_and_scene([1], rt60=0.5, azimuth=60, noise_sources=1)

    Raises:
        SceneError: where none of :data:`ROOMS` rooms fits; the message is that of the last one.
    """
    for i in range(ROOMS):
        room = draw_room([*seed, i], ranges, rt60=rt60)
        try:
            return draw_scene(room, [*seed, i], ranges, **asked)
        except SceneError:
            if i == ROOMS - 1:
                raise
    raise AssertionError


def _draw_position(
    generator: np.random.Generator, room: Room, ranges: Ranges, heights: tuple[float, float]
) -> np.ndarray:
    """Draw a position (3,) between two heights, with the gap to all walls."""
    size, gap = np.array(room.size), ranges.gap
    top = size[2] - gap
    low = np.array([gap, gap, min(heights[0], top)])
    return generator.uniform(low, [size[0] - gap, size[1] - gap, min(heights[1], top)])


def _inside(position: Position, room: Room, gap: float) -> bool:
    return all(gap <= each <= side - gap for each, side in zip(position, room.size, strict=True))


@dataclass(frozen=True, eq=False)
class ImageSources:
    """The image sources of one source as the listener hears them, the direct sound first."""

    directions: np.ndarray  # (images, 3) unit vectors in the head's frame
    distances: np.ndarray  # (images,) metres, in rising order
    gains: np.ndarray  # (images, bands) logarithms of amplitude, from walls, air and 1 / distance


def image_sources(scene: Scene, position: Position, radius: float) -> ImageSources:
    """Return all image sources of a source up to ``radius`` metres from the listener.

    Source: Allen and Berkley 1979, as pyroomacoustics computes it.

    Raises:
        SceneError: for a room so flat or narrow that there would be millions.
    """
    acoustics = need("pyroomacoustics", "scenes")
    room = scene.room
    absorption = dict(zip(SURFACES, room.absorption, strict=True))
    materials = {
        name: acoustics.Material({"coeffs": list(row), "center_freqs": list(BANDS)})
        for name, row in absorption.items()
    }
    # As many reflections as a straight line of this length can meet in the worst direction.
    order = math.ceil(radius * math.hypot(*(1 / side for side in room.size))) + 3
    if order > LARGEST_ORDER:
        raise SceneError(
            f"A room of {_metres(room.size)} is too flat or too narrow: its images would be of "
            f"order {order}, and {LARGEST_ORDER} is the most. Choose a room nearer to a cube."
        )
    box = acoustics.ShoeBox(list(room.size), fs=2 * BANDS[-1], materials=materials, max_order=order)
    box.add_source(list(position)).add_microphone(list(scene.listener))
    box.image_source_model()
    return images_of(scene, box.sources[0].images, box.sources[0].damping, radius)


def images_of(
    scene: Scene, positions: np.ndarray, damping: np.ndarray, radius: float = math.inf
) -> ImageSources:
    """Return image sources as the scene's listener hears them.

    Args:
        scene: of the listener.
        positions: (3, images) metres in world axes.
        damping: (bands, images) amplitudes that the walls leave.
        radius: metres; images farther away are left out, except for the nearest one.
    """
    vectors = positions.T.astype(np.float64) - np.array(scene.listener)
    distances = np.linalg.norm(vectors, axis=1)
    near = np.argsort(distances, kind="stable")
    near = near[: max(int(np.searchsorted(distances[near], radius, side="right")), 1)]
    vectors, distances = turn(vectors[near], -scene.yaw), distances[near]
    gains = np.log(damping.T[near, : len(BANDS)].astype(np.float64))
    gains -= np.log(distances)[:, None] + 0.5 * np.array(AIR) * distances[:, None]
    return ImageSources(vectors / distances[:, None], distances, gains)
