"""Rooms and placements: drawn from a seed, true to what is asked, and refused where impossible."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_hear.errors import OptionError, SceneError
from gram_hear.scenes.acoustics import (
    AIR,
    BANDS,
    SPEED,
    absorption_for,
    decay_rates,
    measured_rt60,
    predicted_rt60,
)
from gram_hear.scenes.geometry import angles, turn, unit_vector
from gram_hear.scenes.rendering import render
from gram_hear.scenes.rooms import (
    Ranges,
    Room,
    Scene,
    draw_room,
    draw_room_and_scene,
    draw_scene,
    image_sources,
)

SEEDS = st.lists(st.integers(0, 2**32), min_size=1, max_size=3)


@given(st.floats(-180, 180), st.floats(-89, 89), st.floats(0.1, 10))
def test_angles_undo_unit_vectors(azimuth, elevation, length):
    found = angles(length * unit_vector(azimuth, elevation))
    assert math.isclose(math.remainder(found[0] - azimuth, 360), 0, abs_tol=1e-6)
    assert math.isclose(found[1], elevation, abs_tol=1e-6)


def test_axes_are_front_left_and_up():
    assert np.allclose(unit_vector(0, 0), [1, 0, 0])
    assert np.allclose(unit_vector(90, 0), [0, 1, 0])
    assert np.allclose(unit_vector(0, 90), [0, 0, 1])
    assert np.allclose(turn(np.array([1.0, 0, 0]), 90), [0, 1, 0])
    assert angles(np.array([-1.0, -0.0, 0]))[0] == 180


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_a_seed_gives_one_room_and_placement_inside_their_ranges(seed):
    ranges = Ranges()
    room = draw_room(seed)
    scene = draw_scene(room, seed)
    assert room == draw_room(list(seed))
    assert scene == draw_scene(room, list(seed))
    for side, (low, high) in zip(
        room.size, (ranges.width, ranges.depth, ranges.height), strict=True
    ):
        assert low <= side <= high
    assert ranges.rt60[0] <= room.rt60 <= ranges.rt60[1]
    for place in (scene.listener, scene.source, *scene.noises):
        assert all(
            ranges.gap - 1e-9 <= each <= side - ranges.gap + 1e-9
            for each, side in zip(place, room.size, strict=True)
        )
    assert ranges.distance[0] <= scene.distance <= ranges.distance[1] + 1e-9
    assert 1 <= len(scene.noises) <= 5


@pytest.mark.slow
def test_other_seeds_give_other_rooms_and_directions():
    rooms = {draw_room([1, i]).size for i in range(20)}
    assert len(rooms) == 20
    azimuths = [draw_room_and_scene([2, i]).azimuth for i in range(200)]
    assert min(azimuths) < -150
    assert max(azimuths) > 150
    assert abs(np.exp(1j * np.radians(azimuths)).mean()) < 0.15


@pytest.mark.parametrize(
    ("azimuth", "elevation", "distance"), [(0, 0, 1.0), (-135, 10, 2.0), (180, -20, 0.5)]
)
def test_a_place_that_is_asked_for_is_given(azimuth, elevation, distance):
    asked = {"azimuth": azimuth, "elevation": elevation, "distance": distance}
    scene = draw_room_and_scene([5], **asked, noise_sources=2)
    assert math.isclose(math.remainder(scene.azimuth - azimuth, 360), 0, abs_tol=1e-6)
    assert math.isclose(scene.elevation, elevation, abs_tol=1e-6)
    assert math.isclose(scene.distance, distance, abs_tol=1e-9)
    assert len(scene.noises) == 2


def test_a_scene_survives_json_exactly():
    scene = draw_room_and_scene([3, 4])
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    with pytest.raises(SceneError, match="no scene: KeyError 'room'"):
        Scene.from_dict({"seed": [1]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": (-0.1, 1.0, 1.0)}, "The source is at -0.10 x 1.00 x 1.00 m, outside the room"),
        ({"listener": (1.0, 1.0, 9.0)}, "The listener is at .* outside the room"),
        ({"noises": ((1.0, 1.0, 1.0), (1.0, 99.0, 1.0))}, "The noise source 2 is at"),
        ({"source": (1.55, 1.5, 1.5)}, "is 0.05 m from the head's centre; it must be at least 0.2"),
    ],
)
def test_places_that_cannot_be_are_refused(change, message):
    room = draw_room([1])
    scene = Scene((1,), room, (1.5, 1.5, 1.5), 0.0, (1.0, 1.0, 1.0))
    with pytest.raises(SceneError, match=message):
        replace(scene, **change)


@pytest.mark.parametrize(
    "asked",
    [
        {"distance": -1.0},
        {"distance": 0.1},
        {"distance": math.nan},
        {"elevation": 120.0},
        {"azimuth": math.inf},
        {"noise_sources": -1},
    ],
)
def test_what_no_placement_can_have_is_refused(asked):
    with pytest.raises(SceneError, match=r"must be|can be|there can"):
        draw_scene(draw_room([1]), [1], **asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"room": {"size": [1e6, 5.0, 3.0]}}, r"three lengths of 0\.5 to 100 m"),
        ({"room": {"size": [5.0, 5.0, 0.001]}}, r"three lengths of 0\.5 to 100 m"),
        ({"room": {"rt60": 1e9}}, r"RT60 is 1e\+09 s"),
        ({"room": {"rt60": math.nan}}, "RT60 is nan s"),
        ({"room": {"absorption": [[10**400] * 7] * 6}}, "This is no scene"),
        ({"noises": [[1.0, 1.0, 1.0]] * 101}, "101 noise sources"),
        ({"seed": [-1]}, "seeds must be 0 or more"),
        ({"yaw": math.inf}, "yaw inf"),
    ],
)
def test_scenes_out_of_bounds_are_refused(change, message):
    data = draw_room_and_scene([1]).to_dict()
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    with pytest.raises(SceneError, match=message):
        Scene.from_dict(data)


def test_rooms_with_millions_of_images_are_refused():
    room = Room((90.0, 90.0, 0.6), ((0.5,) * len(BANDS),) * 6, 0.3)
    flat = Scene((1,), room, (9.0, 9.0, 0.3), 0.0, (80.0, 80.0, 0.3))
    with pytest.raises(SceneError, match="too flat or too narrow"):
        image_sources(flat, flat.source, 400.0)


def test_rirs_of_minutes_are_refused():
    room = Room((5.0, 4.0, 3.0), ((1e-9,) * len(BANDS),) * 6, 1.0)
    scene = Scene((1,), room, (1.0, 1.0, 1.0), 0.0, (3.0, 3.0, 2.0))
    with pytest.raises(OptionError, match="60 s long"):
        render(scene, "ambisonic")


def test_a_distance_beyond_the_room_is_refused():
    with pytest.raises(SceneError, match=r"no position was found for a source at distance 40 m"):
        draw_room_and_scene([1], distance=40.0)


def test_an_rt60_that_the_room_cannot_have_is_refused():
    with pytest.raises(SceneError, match=r"cannot have an RT60 of .* s in the octave of"):
        draw_room([1], rt60=0.01)
    with pytest.raises(SceneError, match="it can have"):
        absorption_for((5, 4, 3), np.full(len(BANDS), 50.0), np.ones((6, len(BANDS))))
    with pytest.raises(SceneError, match="must be a time above 0"):
        draw_room([1], rt60=-1.0)
    with pytest.raises(SceneError, match="of 10 s at most"):
        draw_room([1], rt60=1e9)


@pytest.mark.parametrize("name", ["width", "rt60", "distance"])
def test_ranges_that_cannot_be_are_refused(name):
    with pytest.raises(SceneError, match=f"{name} is drawn from"):
        Ranges(**{name: (3.0, 1.0)})
    with pytest.raises(SceneError, match=r"at least 0\.2 m from the head"):
        Ranges(distance=(0.0, 1.0))
    for out in ({"width": (2.5, 1e6)}, {"rt60": (0.2, 1e9)}, {"noise_sources": (1, 10**9)}):
        with pytest.raises(SceneError, match="is the most"):
            Ranges(**out)
    with pytest.raises(SceneError, match="two whole numbers"):
        Ranges(noise_sources=(1.0, 2.0))
    with pytest.raises(SceneError, match="leaves no room inside"):
        Ranges(gap=2.0)


@settings(deadline=None, max_examples=10)
@given(SEEDS, st.floats(0.2, 1.5))
def test_absorption_gives_the_time_that_it_was_solved_for(seed, time):
    room = draw_room(seed, rt60=time)
    predicted = predicted_rt60(decay_rates(np.array(room.size), room.exponents))
    assert predicted[BANDS.index(1000.0)] == pytest.approx(time, rel=1e-3)


def test_an_even_cube_without_air_decays_faster_than_its_axial_paths():
    """A direction's rate is c k (|x| + |y| + |z|) / L: T20 is between axis and diagonal."""
    size, exponents = np.full(3, 4.0), np.full((6, len(BANDS)), 0.3)
    time = predicted_rt60(decay_rates(size, exponents))[0]
    along_axis = 6 * math.log(10) / (SPEED * (0.3 / 4 + AIR[0]))
    assert along_axis / math.sqrt(3) < time < along_axis


def test_a_synthetic_decay_is_measured():
    generator = np.random.default_rng(0)
    for wanted in (0.2, 0.5, 1.0):
        times = np.arange(int(1.5 * wanted * 16000)) / 16000
        rir = generator.standard_normal((2, len(times))) * 10 ** (-3 * times / wanted)
        assert measured_rt60(rir, 16000) == pytest.approx(wanted, rel=0.08)
    assert math.isnan(measured_rt60(np.zeros((1, 100)), 16000))


def test_image_sources_are_those_of_the_mirrored_room():
    """All images up to a radius, against the plain lattice of Allen and Berkley."""
    absorption = np.linspace(0.1, 0.6, 6 * len(BANDS)).reshape(6, len(BANDS))
    room = Room((3.0, 4.0, 2.5), tuple(tuple(map(float, row)) for row in absorption), 0.3)
    scene = Scene((1,), room, (1.0, 1.5, 1.2), 30.0, (2.0, 3.0, 1.6))
    radius = 14.0
    plain = []
    steps = range(-4, 5)
    for n in [(x, y, z) for x in steps for y in steps for z in steps]:
        for flip in [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]:
            place, log = [], np.zeros(len(BANDS))
            for axis in range(3):
                side, own = room.size[axis], scene.source[axis]
                place.append((1 - 2 * flip[axis]) * own + 2 * n[axis] * side)
                low, high = np.log1p(-absorption[2 * axis : 2 * axis + 2]) / 2
                log += abs(n[axis] - flip[axis]) * low + abs(n[axis]) * high
            vector = np.subtract(place, scene.listener)
            distance = np.linalg.norm(vector)
            if distance <= radius:
                air = 0.5 * np.array(AIR) * distance
                plain.append((distance, *turn(vector / distance, -30.0), *(log - air)))
    plain = np.array(sorted(plain))
    found = image_sources(scene, scene.source, radius)
    gains = found.gains + np.log(found.distances)[:, None]
    rows = np.column_stack([found.distances, found.directions, gains])
    assert len(rows) == len(plain)
    assert np.allclose(rows[:, 0], plain[:, 0], atol=1e-5)
    for row in rows:  # equal distances may come in any order
        nearest = np.abs(plain - row).max(axis=1).min()
        assert nearest < 1e-4
    assert np.allclose(found.directions[0], scene.direction, atol=1e-6)
