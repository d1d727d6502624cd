"""Sets of RIRs: the three layouts read, and sets built, interrupted and gone on with.

Most sets here are built by a stand-in for the simulator; the last tests use the real one.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import zipfile
from math import cos, radians, sin, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import npy, write_tar

from gram_hear.audio.archives import find_members, parse_npy
from gram_hear.audio.layouts import from_soundspaces, to_soundspaces
from gram_hear.errors import AudioError, OptionError, SceneError
from gram_hear.jobs.workers import one_thread
from gram_hear.scenes import rir_building
from gram_hear.scenes.rendering import Rendered, tune
from gram_hear.scenes.rir_building import (
    RirPlan,
    SceneIndex,
    build_rirs,
    draw_room_of,
    simulate,
)
from gram_hear.scenes.rirs import CONTAINERS, KEYS, open_rirs
from gram_hear.scenes.rooms import Ranges, Scene, draw_scene

pytestmark = pytest.mark.slow

LEFTOVER = f".0123456789ab.{32 * '0'}.partial"  # of a run that was killed
RATE = 32000
BOTH = ("binaural", "ambisonic")
CHANNELS = {"binaural": 2, "ambisonic": 4}
AT_CONTAINERS = pytest.mark.parametrize("container", CONTAINERS)
AT_LAYOUTS = pytest.mark.parametrize("layout", BOTH)


def stand_in(plan, index):
    """RIRs of noise, and a true scene's metadata."""
    seed = (plan.seed, ["train", "valid", "test"].index(index.split), index.room, index.scene)
    generator = np.random.default_rng(seed)
    noises = int(generator.integers(1, plan.ranges.noise_sources[1] + 1))
    samples = 64 if plan.seconds else int(generator.integers(40, 90))
    azimuth, elevation = generator.uniform(-180, 180), generator.uniform(-60, 60)
    a, e = radians(azimuth), radians(elevation)
    metadata = {
        "seed": seed,
        "noises": [[1.0, 2.0, 1.0]] * noises,
        "azimuth": azimuth,
        "elevation": elevation,
        "distance": generator.uniform(1, 3),
        "direction": [cos(a) * cos(e), sin(a) * cos(e), sin(e)],
    }
    rendered = []
    for layout in plan.layouts:
        shape = (1 + noises, CHANNELS[layout], samples)
        rirs = generator.standard_normal(shape).astype(np.float32)
        rendered.append(Rendered(rirs, plan.rate, layout, metadata | {"layout": layout}))
    return rendered


def plan_of(**options):
    return RirPlan(
        **{"rooms": 4, "scenes_per_room": 3, "layouts": BOTH, "valid": 0.2, "test": 0.2} | options
    )


def build(folder, simulator=stand_in, jobs=1, progress=None, force=False, **options):
    plan = plan_of(**options)
    build_rirs(folder, plan, jobs=jobs, force=force, progress=progress, simulator=simulator)
    return plan


def write_set(folder, container, **options):
    """Write a set in our layout, or in a published one, as gram-hear 0.1.0 wrote them too."""
    if container == "indexed":
        return build(folder, **options)
    plan = plan_of(**options | ({"seconds": 3.0} if container == "webdataset" else {}))
    scenes = {index: stand_in(plan, index) for index in plan.scenes}
    {"webdataset": write_tars, "soundspaces": write_regions}[container](folder, plan, scenes)
    described = {"format": "gram-hear rirs", "version": 1, "container": container}
    described |= {"rate": plan.rate, "layouts": plan.layouts, "counts": {}}
    (folder / "set.json").write_text(json.dumps(described))
    return plan


def in_published_axes(rendered):
    rirs = rendered.rirs
    return to_soundspaces(rirs, "ambix") if rendered.layout == "ambisonic" else rirs


def write_tars(folder, plan, scenes):
    """A tar for each room, in a folder for each layout."""
    rooms = {}
    for index, rendered in scenes.items():
        for each in rendered:
            rirs = in_published_axes(each)
            slots = 1 + plan.ranges.noise_sources[1] - len(rirs)
            members = rooms.setdefault((each.layout, index.split, index.room), {})
            padded = np.pad(rirs, ((0, slots), (0, 0), (0, 0)))
            members[f"{index.name.replace('/', '-')}.npy"] = npy(padded)
    for (layout, split, room), members in rooms.items():
        write_tar(folder / layout / f"{split}-{room:06d}.tar", members)


def write_regions(folder, plan, scenes):
    """A JSON file for each room beside a folder of single RIRs; angles are clockwise."""
    rooms = {}
    for index, rendered in scenes.items():
        known = rendered[0].metadata
        sounds = [{"rir": {}} for _ in rendered[0].rirs]
        for each in rendered:
            for i, rir in enumerate(in_published_axes(each)):
                name = f"rirs/{index.name.replace('/', '-')}-{i}-{each.layout}.npy"
                save(folder / index.split / name, rir)
                sounds[i]["rir"][KEYS[each.layout]] = name
        sounds[0] |= {"azimuth": -known["azimuth"], "elevation": known["elevation"]}
        sounds[0] |= {"radius": known["distance"]}
        scene = {"source": sounds[0], "noise": sounds[1:]}
        scene["metadata"] = {each.layout: each.metadata for each in rendered}
        region = {"agent_data": {"azimuth": 0.0}, "scene": scene}
        rooms.setdefault((index.split, index.room), []).append({"region": region})
    for (split, room), regions in rooms.items():
        (folder / split / f"{room:05d}.json").write_text(json.dumps({"sampled_regions": regions}))


def files_of(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_sums(rirs, i, samples=10**6):
    """Assert that what training reads of a scene are sums of what is read plainly."""
    sums = rirs.read_sums(i, samples)
    whole = rirs.read(i)[0]
    assert sums.dtype == np.float32
    expected = np.stack([whole[0], whole[1:].sum(axis=0)])[..., :samples]
    np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-6)


def noise(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# --- axes -----------------------------------------------------------------------------------


def test_from_soundspaces_of_a_wave_from_the_left():
    """N3D in x right, y up, z back, encoded by hand; AmbiX is W, Y (left), Z, X."""
    x, y, z = -1.0, 0.0, 0.0
    soundspaces = np.array([1, sqrt(3) * y, sqrt(3) * z, sqrt(3) * x])[:, None]
    np.testing.assert_allclose(from_soundspaces(soundspaces)[:, 0], [1, 1, 0, 0], atol=1e-12)


def test_from_soundspaces_needs_four_channels():
    with pytest.raises(AudioError, match="2 channels"):
        from_soundspaces(np.zeros((2, 5)))


# --- written and read -----------------------------------------------------------------------


@AT_CONTAINERS
@AT_LAYOUTS
def test_what_is_written_is_read(tmp_path, container, layout):
    plan = write_set(tmp_path / "set", container)
    found = open_rirs(tmp_path / "set", layout, RATE)
    assert (found.layout, found.rate, found.container, len(found)) == (layout, RATE, container, 12)
    own = "ambix" if container == "indexed" else "soundspaces"
    assert found.convention == (own if layout == "ambisonic" else None)
    split_order = [found.split(i) for i in range(12)]
    scenes = sorted(plan.scenes, key=lambda index: split_order.index(index.split))
    for i, index in enumerate(scenes):
        expected = stand_in(plan, index)[BOTH.index(layout)]
        rirs, metadata = found.read(i)
        assert rirs.dtype == np.float32
        assert rirs.flags.c_contiguous
        np.testing.assert_allclose(rirs, expected.rirs, atol=1e-6)
        assert_sums(found, i)
        if container == "webdataset":
            assert metadata == {}
        else:
            assert metadata == json.loads(json.dumps(expected.metadata))
    assert len({found.name(i) for i in range(12)}) == 12


@AT_CONTAINERS
def test_splits_and_their_indices(tmp_path, container):
    write_set(tmp_path / "set", container)
    found = open_rirs(tmp_path / "set", "binaural")
    assert found.splits == ("train", "valid", "test")
    counts = {split: len(found.indices(split)) for split in found.splits}
    assert counts == {"train": 6, "valid": 3, "test": 3}
    assert sorted(i for split in found.splits for i in found.indices(split)) == found.indices()
    assert all(found.split(i) == "test" for i in found.indices("test"))
    with pytest.raises(OptionError, match="no split 'eval'"):
        found.indices("eval")


def test_layout_must_be_one_that_is_there(tmp_path):
    for container in CONTAINERS:
        write_set(tmp_path / container, container)
        with pytest.raises(OptionError, match="say which"):
            open_rirs(tmp_path / container)
        write_set(tmp_path / f"{container}1", container, layouts=("binaural",))
        assert open_rirs(tmp_path / f"{container}1").layout == "binaural"
        with pytest.raises(OptionError, match="ambisonic was asked for"):
            open_rirs(tmp_path / f"{container}1", "ambisonic")
    with pytest.raises(OptionError, match="Did you mean 'binaural'"):
        open_rirs(tmp_path / "indexed", "binural")


@AT_CONTAINERS
def test_rate_mismatch_is_an_error(tmp_path, container):
    write_set(tmp_path / "set", container, rate=16000)
    assert open_rirs(tmp_path / "set", "binaural", 16000).rate == 16000
    with pytest.raises(SceneError, match="16000 Hz; 32000 Hz are needed"):
        open_rirs(tmp_path / "set", "binaural", 32000)


def test_tars_of_a_set_have_its_rate(tmp_path):
    write_set(tmp_path, "webdataset", rate=16000)
    assert open_rirs(tmp_path / "ambisonic").rate == 16000
    assert open_rirs(tmp_path / "ambisonic" / "train-000001.tar").rate == 16000


# --- published tars -------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["float16", "float32"]),
    st.sampled_from([2, 4]),
    st.lists(st.booleans(), min_size=0, max_size=5),
    st.integers(1, 30),
)
def test_zero_slots_are_dropped(tmp_path_factory, dtype, channels, slots, samples):
    folder = tmp_path_factory.mktemp("tars")
    rirs = noise(1 + len(slots), channels, samples, dtype=dtype) + np.dtype(dtype).type(10)
    rirs[1:][~np.array(slots, bool)] = 0
    write_tar(folder / "train-000.tar", {"scene.npy": npy(rirs)})
    found, metadata = open_rirs(folder).read(0)
    kept = rirs[[True, *slots]].astype(np.float32)
    if channels == 4:
        kept = from_soundspaces(kept)
    np.testing.assert_array_equal(found, kept)
    assert metadata == {}
    for cut in (1, samples, 99):
        assert_sums(open_rirs(folder), 0, cut)


@pytest.mark.parametrize("kind", [">f2", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_sums_of_arrays_of_any_order(tmp_path, kind, order):
    write_tar(tmp_path / "0.tar", {"a.npy": npy(np.asarray(noise(3, 2, 20), kind, order=order))})
    assert_sums(open_rirs(tmp_path), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({(0, 1, 3): np.nan}, "NaN"),
        ({(2, 0, 3): np.inf}, "NaN or infinite"),
        ({0: 0}, "the RIR of the source is silent"),
    ],
)
def test_sums_of_faulty_scenes_are_errors(tmp_path, change, message):
    rirs = noise(3, 2, 20)
    write_tar(tmp_path / "0.tar", {"0.npy": npy(rirs)})
    for where, value in change.items():
        rirs[where] = value
    write_tar(tmp_path / "1.tar", {"1.npy": npy(rirs)})
    with pytest.raises(SceneError, match=message) as caught:
        open_rirs(tmp_path).read_sums(1, 20)
    assert "1.npy" in str(caught.value)


def test_tars_anywhere_below_and_a_single_one(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("train-0.tar", "train-1.tar", "val/0.tar"):
        scenes = {f"{i}.npy": npy((i + 1) * noise(2, 2, 8)) for i in range(2)}
        write_tar(tmp_path / name, scenes)
    found = open_rirs(tmp_path)
    assert [found.name(i) for i in found.indices("valid")] == ["val/0.tar/0.npy", "val/0.tar/1.npy"]
    assert found.rate == RATE
    one = open_rirs(tmp_path / "train-1.tar")
    assert len(one) == 2
    np.testing.assert_array_equal(one.read(1)[0], found.read(3)[0])
    assert (tmp_path / ".train-1.tar.index.npz").is_file()  # the tar is not scanned again


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.full((2, 2, 5), np.nan, np.float32)), "NaN"),
        (npy(noise(2, 5)), "shape"),
        (npy(noise(2, 3, 5)), "1, 2 or 4 channels"),
        (npy(noise(2, 2, 0)), "shape"),
        (npy(np.ones((2, 2, 5), np.int16)), "int16"),
        (npy(noise(2, 2, 5))[:-4], "cut or damaged"),
        (b"no array", "no .npy"),
        (b"", "no .npy"),
        (npy(np.zeros((2, 2, 5), np.float32)), "source is silent"),
    ],
)
def test_faulty_arrays_are_named(tmp_path, data, message):
    write_tar(tmp_path / "t.tar", {"scene.npy": data})
    with pytest.raises(SceneError, match=message) as caught:
        open_rirs(tmp_path)
    assert "scene.npy" in str(caught.value)


def test_scene_of_another_layout_is_an_error(tmp_path):
    write_tar(tmp_path / "t.tar", {"0.npy": npy(noise(2, 2, 5)), "1.npy": npy(noise(2, 4, 5))})
    with pytest.raises(SceneError, match=r"1\.npy has the shape .* binaural"):
        open_rirs(tmp_path).read(1)


def test_other_members_cut_tars_and_links_are_refused(tmp_path):
    path = tmp_path / "t.tar"
    write_tar(path, {"0.npy": npy(noise(2, 2, 5)), "0.json": b"{}"})
    with pytest.raises(SceneError, match=r"0\.json"):
        open_rirs(tmp_path)
    write_tar(path, {"0.npy": npy(noise(2, 2, 500))})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SceneError, match=r"t\.tar"):
        open_rirs(tmp_path)
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("0.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(SceneError, match="no plain file"):
        open_rirs(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(SceneError, match=r"t\.tar"):
        open_rirs(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    write_tar(tmp_path / "t.tar", {"0.npy": npy(np.array([[[{}]]], dtype=object))})
    with pytest.raises(SceneError, match="object"):
        open_rirs(tmp_path)


def test_missing_and_empty_sets_are_errors(tmp_path):
    with pytest.raises(SceneError, match="no folder or file"):
        open_rirs(tmp_path / "nowhere")
    with pytest.raises(SceneError, match="holds no RIRs"):
        open_rirs(tmp_path)
    write_tar(tmp_path / "t.tar", {})
    with pytest.raises(SceneError, match="no scenes"):
        open_rirs(tmp_path)


# --- published folders ----------------------------------------------------------------------


def published(folder, paths, azimuth=30.0, listener=None, name="house.json"):
    """Write a JSON file of one scene whose RIRs have these paths, the source first."""
    source = {"azimuth": azimuth, "elevation": 10.0, "rir": {"binaural_rir_path": paths[0]}}
    scene = {"source": source, "noise": [{"rir": {"binaural_rir_path": p}} for p in paths[1:]]}
    region = {"scene": scene} | ({} if listener is None else {"agent_data": {"azimuth": listener}})
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"sampled_regions": [{"region": region}]}))


def save(path, array):
    path.parent.mkdir(exist_ok=True, parents=True)
    np.save(path, array)


@pytest.mark.parametrize("start", ["", "../", "/somewhere/else/"])
def test_paths_of_published_json(tmp_path, start):
    """From the JSON's folder, or the set's; those of another machine by the file's name."""
    for name, samples in (("a", 20), ("b", 30), ("c", 10)):
        save(tmp_path / "set" / "rirs" / f"{name}.npy", noise(2, samples))
    published(tmp_path / "set" / "scenes", [f"{start}rirs/{name}.npy" for name in "abc"])
    rirs, _ = open_rirs(tmp_path / "set").read(0)
    assert rirs.shape == (3, 2, 30)  # shorter ones are padded
    np.testing.assert_array_equal(rirs[0, :, :20], noise(2, 20))
    assert not rirs[0, :, 20:].any()


@pytest.mark.parametrize("path", ["../../outside.npy", "rirs/../../../outside.npy"])
def test_paths_out_of_the_set_are_refused(tmp_path, path):
    save(tmp_path / "outside.npy", noise(2, 20))
    published(tmp_path / "set", [path])
    with pytest.raises(SceneError, match="outside the set"):
        open_rirs(tmp_path / "set")


def test_absolute_path_is_never_followed(tmp_path):
    save(tmp_path / "outside.npy", noise(2, 20))
    published(tmp_path / "set", [str(tmp_path / "outside.npy")])
    with pytest.raises(SceneError, match="which is not in"):
        open_rirs(tmp_path / "set")


@pytest.mark.parametrize(
    ("azimuth", "listener", "expected"),
    [(90, None, -90), (90, 60, -30), (-170, 20, -170), (180, 0, 180)],
)
def test_published_angles_are_clockwise_from_the_listener(tmp_path, azimuth, listener, expected):
    save(tmp_path / "a.npy", noise(2, 20))
    published(tmp_path, ["a.npy"], azimuth, listener)
    metadata = open_rirs(tmp_path).read(0)[1]
    assert metadata["azimuth"] == pytest.approx(expected)
    a, e = radians(expected), radians(10)
    np.testing.assert_allclose(
        metadata["direction"], [cos(a) * cos(e), sin(a) * cos(e), sin(e)], atol=1e-12
    )


def test_published_angles_are_those_of_the_scene(tmp_path):
    plan = write_set(tmp_path / "set", "soundspaces", layouts=("binaural",))
    for path in (tmp_path / "set").rglob("0*.json"):
        houses = json.loads(path.read_text())
        for region in houses["sampled_regions"]:
            del region["region"]["scene"]["metadata"]  # as if others had written it
        path.write_text(json.dumps(houses))
    found = open_rirs(tmp_path / "set")
    expected = stand_in(plan, SceneIndex("test", 0, 1))[0].metadata
    metadata = found.read(found.indices("test")[1])[1]
    for key in ("azimuth", "elevation", "distance", "direction"):
        assert metadata[key] == pytest.approx(expected[key])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (noise(20, 2), "shape"),
        (noise(4, 20), "must be \\(2, samples\\)"),
        (np.full((2, 20), np.inf, np.float32), "infinite"),
    ],
)
def test_faulty_published_arrays_are_named(tmp_path, array, message):
    save(tmp_path / "a.npy", array)
    published(tmp_path, ["a.npy"])
    with pytest.raises(SceneError, match=message) as caught:
        open_rirs(tmp_path)
    assert "a.npy" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"sampled_regions": []}',
        '{"sampled_regions": [{}]}',
        '{"sampled_regions": [{"region": {"scene": {}}}]}',
        '{"sampled_regions": [{"region": {"scene": {"source": {"rir": {}}}}}]}',
        '{"sampled_regions": [{"region": {"scene": {"source": {"rir": 3}}}}]}',
        '{"sampled_regions": 3}',
    ],
)
def test_broken_published_json_is_an_error(tmp_path, text):
    (tmp_path / "house.json").write_text(text)
    with pytest.raises(SceneError, match=str(tmp_path)):
        open_rirs(tmp_path)


# --- our own layout -------------------------------------------------------------------------


def test_indexed_set_describes_itself(tmp_path):
    build(tmp_path / "set", seed=7)
    described = json.loads((tmp_path / "set" / "set.json").read_text())
    assert described["format"] == "gram-hear rirs"
    assert described["rate"] == RATE
    assert described["layouts"] == ["binaural", "ambisonic"]
    assert described["counts"] == {"train": 6, "valid": 3, "test": 3}
    assert described["rooms"] == {"train": 2, "valid": 1, "test": 1}
    assert described["seed"] == 7
    assert described["options"]["ranges"]["rt60"] == [0.2, 1.0]
    lines = (tmp_path / "set" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines][::3] == [
        "train/00000/00000",
        "train/00001/00000",
    ]


def test_altered_indexed_sets_are_errors(tmp_path):
    build(tmp_path, layouts=("binaural",))
    described, index = tmp_path / "set.json", tmp_path / "train.jsonl"
    lines = index.read_text()
    index.write_text(lines.replace("train/00000/00000.binaural.npy", "../../etc/x.npy"))
    with pytest.raises(SceneError, match="outside the set"):
        open_rirs(tmp_path)
    index.write_text("{}\n" + lines.split("\n", 1)[1])
    with pytest.raises(SceneError, match="at byte 0, describes no scene"):
        open_rirs(tmp_path)
    index.write_text(lines.split("\n", 1)[1])
    with pytest.raises(SceneError, match="has 5 scenes"):
        open_rirs(tmp_path)
    index.write_text(lines)
    (tmp_path / "train/00000/00000.binaural.npy").unlink()
    with pytest.raises(SceneError, match="There is no file"):
        open_rirs(tmp_path)
    faults = {
        "{}": "does not describe",
        "{": "no JSON",
        '{"format": "gram-hear rirs", "version": 9}': "version 9",
        '{"format": "gram-hear rirs", "version": 1}': "is broken",
    }
    for wrong, message in faults.items():
        described.write_text(wrong)
        with pytest.raises(SceneError, match=message):
            open_rirs(tmp_path)


WRONG_DESCRIPTIONS = {
    "rate": (10**9, r"broken \(rate\)"),
    "counts": ({"../train": 6}, r"broken \(counts\)"),
    "layouts": ([["binaural"]], r"broken \(layouts\)"),
    "version": (int("9" * 4000), "a number of 4,000 digits"),
    "seed": (json.loads("[" * 100 + "]" * 100), "nested deeper than 64"),
}


@pytest.mark.parametrize("key", WRONG_DESCRIPTIONS)
def test_descriptions_out_of_bounds_are_errors(tmp_path, key):
    build(tmp_path, layouts=("binaural",))
    value, message = WRONG_DESCRIPTIONS[key]
    described = json.loads((tmp_path / "set.json").read_text())
    (tmp_path / "set.json").write_text(json.dumps(described | {key: value}))
    with pytest.raises(SceneError, match=message):
        open_rirs(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 5000, r"train\.jsonl, at byte 0, is nested deeper"),
        (b" " * 2**20, "a line of more than 1,048,576 bytes"),
        (
            b'{"name": "a", "files": {"binaural": "a\\u0000.npy"}, "metadata": {}}',
            "There is no file",
        ),
        (b'{"name": "a", "files": {}, "metadata": []}', "describes no scene"),
    ],
)
def test_lines_out_of_bounds_are_errors(tmp_path, line, message):
    build(tmp_path, layouts=("binaural",))
    index = tmp_path / "train.jsonl"
    index.write_bytes(line + b"\n" + index.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(SceneError, match=message):
        open_rirs(tmp_path)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"direction": [1.0, 1.0, 1.0]}, "direction must be three numbers"),
        ({"direction": "front"}, "direction must be three numbers"),
        ({"direct_delay": [1e9]}, "direct_delay must be seconds"),
        ({"direct_delay": 0.1}, "direct_delay must be seconds"),
        ([], "metadata is no object"),
    ],
)
def test_metadata_that_cannot_be_is_an_error(tmp_path, known, message):
    build(tmp_path, layouts=("binaural",))
    first, *others = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    entry = json.loads(first)
    entry["metadata"]["binaural"] = known
    (tmp_path / "train.jsonl").write_text("".join([json.dumps(entry) + "\n", *others]))
    with pytest.raises(SceneError, match=message):
        open_rirs(tmp_path)


def test_more_noises_than_a_scene_has_are_not_read(tmp_path):
    write_set(tmp_path, "soundspaces", layouts=("binaural",))
    path = min(tmp_path.rglob("*/*.json"))
    described = json.loads(path.read_text())
    scene = described["sampled_regions"][0]["region"]["scene"]
    scene["noise"] = scene["noise"][:1] * 1000
    path.write_text(json.dumps(described))
    with pytest.raises(SceneError, match="1000 noises, of 100 at most"):
        open_rirs(tmp_path)


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def of_shape(shape, kind="<f4"):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}"
    return header(text.encode()) + bytes(64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (of_shape("99999999999, 2"), "lengths that a file of"),
        (of_shape("-4, -4"), "lengths that a file of"),
        (of_shape("0, 99999999999"), "lengths that a file of"),
        (of_shape("1, " * 40), "40 axes"),
        (of_shape("9" * 5000), "no .npy file"),
        (of_shape("4, 2"), "needs 32"),
        (of_shape("2,", "|O"), "holds object"),
        (of_shape("4,", "<f16"), "allowed are float16"),
        (header(b"(" * 9000), "no .npy file"),
        (header(b"[" * 99 + b"]" * 99), "no .npy file"),
        (header(b'""'), "no .npy file"),
        (b"", "no .npy file"),
    ],
)
def test_headers_of_arrays_are_held_against_the_file(data, message):
    with pytest.raises(SceneError, match=message) as raised:
        parse_npy(data, "a.npy")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("part", "content", "mode"),
    [
        ("names", header(b"") + bytes(10**7), zipfile.ZIP_DEFLATED),
        ("places", of_shape("99999999999, 2", "<i8"), zipfile.ZIP_STORED),
        ("places", npy(np.array([[-512, 8], [0, 8]])), zipfile.ZIP_STORED),
        ("places", npy(np.array([[2**62, 2**62], [0, 8]])), zipfile.ZIP_STORED),
        ("places", npy(np.array([[0.0, 8.0], [0.0, 8.0]])), zipfile.ZIP_STORED),
        ("places", npy(np.zeros((1, 2), np.int64)), zipfile.ZIP_STORED),
        ("stamp", npy(np.zeros(2, np.int64)), zipfile.ZIP_STORED),
        ("names", b"", zipfile.ZIP_STORED),
    ],
)
def test_an_index_that_is_damaged_is_made_anew(tmp_path, part, content, mode):
    tar = tmp_path / "a.tar"
    write_tar(tar, {name: name.encode() + b"..." for name in ("0.npy", "1.npy")})
    expected = find_members(tar, (".npy",))
    kept = tmp_path / ".a.tar.index.npz"
    with zipfile.ZipFile(kept) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(kept, "w", mode) as file:
        for name, whole in parts.items():
            file.writestr(name, content if name == f"{part}.npy" else whole)
    damaged = kept.read_bytes()
    assert find_members(tar, (".npy",)) == expected
    assert kept.read_bytes() != damaged
    assert [member.read() for member in expected] == [b"0.npy...", b"1.npy..."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooms": 10**12}, "more than 1,000,000 scenes"),
        ({"scenes_per_room": 10**9}, "more than 1,000,000 scenes"),
        ({"rate": 10**9}, "must be 8000 to 192000 Hz"),
        ({"seconds": 1e9}, "must be 0.05 to 60"),
    ],
)
def test_plans_out_of_bounds_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        plan_of(**options)


# --- building -------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 4, 11])
def test_interrupted_build_goes_on_to_the_same_set(tmp_path, after):
    made = []

    def stopping(plan, index):
        if len(made) == after:
            raise Stop
        made.append(index)
        return stand_in(plan, index)

    with pytest.raises(Stop):
        build(tmp_path / "set", stopping)
    with pytest.raises(SceneError, match="not finished"):
        open_rirs(tmp_path / "set")
    leftover = tmp_path / "set" / LEFTOVER
    leftover.write_text("half")
    seen = []
    build(tmp_path / "set", progress=lambda *each: seen.append(each))
    assert seen[0] == (after, 12)  # nothing that was finished is made again
    assert seen[-1] == (12, 12)
    build(tmp_path / "whole")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")
    assert not (tmp_path / "set" / ".job").exists()


def test_finished_set_is_left_alone_and_other_options_are_refused(tmp_path):
    def never(plan, index):
        raise AssertionError

    build(tmp_path / "set")
    before = files_of(tmp_path / "set")
    seen = []
    build(tmp_path / "set", never, progress=lambda *each: seen.append(each))
    assert seen == [(12, 12)]
    with pytest.raises(OptionError, match="seed 0, not 1"):
        build(tmp_path / "set", seed=1)
    assert files_of(tmp_path / "set") == before
    (tmp_path / "set" / "notes.txt").write_text("mine")
    build(tmp_path / "set", seed=1, force=True)
    build(tmp_path / "new", seed=1)
    assert files_of(tmp_path / "set") == files_of(tmp_path / "new") | {"notes.txt": b"mine"}


@pytest.mark.parametrize("container", CONTAINERS)
def test_finished_sets_of_0_1_0_are_replaced_with_force_alone(tmp_path, container):
    write_set(tmp_path / "set", container)
    description = json.loads((tmp_path / "set" / "set.json").read_text())
    description["options"] = {"seed": 0, "container": container, "gram_hear": "0.1.0"}
    (tmp_path / "set" / "set.json").write_text(json.dumps(description))
    before = files_of(tmp_path / "set")
    with pytest.raises(OptionError, match=r"gram_hear '0\.1\.0', not .*--force"):
        build(tmp_path / "set")
    assert files_of(tmp_path / "set") == before
    assert len(open_rirs(tmp_path / "set", "binaural")) == 12
    build(tmp_path / "set", force=True)
    build(tmp_path / "new")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "new")


def test_what_0_1_0_left_unfinished_is_named(tmp_path):
    (tmp_path / "set" / ".building").mkdir(parents=True)
    (tmp_path / "set" / ".building" / "options.json").write_text("{}")
    with pytest.raises(SceneError, match="not finished"):
        open_rirs(tmp_path / "set")
    with pytest.raises(OptionError, match=r"begun by gram-hear 0\.1\.0.*--force"):
        build(tmp_path / "set")
    build(tmp_path / "set", force=True)  # as the message says
    build(tmp_path / "whole")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")


def test_a_set_that_another_run_made_otherwise_meanwhile_is_no_success(tmp_path):
    def meanwhile(done, total):
        if not done:  # the parts of the first run are free until its processes have started
            build(tmp_path / "set", seed=1, force=True)

    with pytest.raises(OptionError, match=r"Another run has begun .* anew: .*seed 1, not 0"):
        build(tmp_path / "set", progress=meanwhile)
    assert open_rirs(tmp_path / "set", "binaural").read(0)


def test_begun_set_is_not_gone_on_with_by_other_options(tmp_path):
    def stopping(plan, index):
        raise Stop

    with pytest.raises(Stop):
        build(tmp_path / "set", stopping)
    with pytest.raises(OptionError, match="other options"):
        build(tmp_path / "set", ranges=Ranges(rt60=(0.3, 0.5)))


def test_folder_of_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OptionError, match="holds other files"):
            build(tmp_path, force=force)
    with pytest.raises(OptionError, match="is a file"):
        build(tmp_path / "thesis.txt")
    assert files_of(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("rooms", "valid", "test", "expected"),
    [
        (10, 0.1, 0.1, {"train": 8, "valid": 1, "test": 1}),
        (85, 0.0, 15 / 85, {"train": 70, "test": 15}),
        (3, 0.1, 0.1, {"train": 1, "valid": 1, "test": 1}),
        (1, 0, 0, {"train": 1}),
        (4, 0.5, 0.5, {"valid": 2, "test": 2}),
    ],
)
def test_rooms_are_shared_out(rooms, valid, test, expected):
    assert RirPlan(rooms, valid=valid, test=test).rooms_of_splits == expected


def test_set_that_vanishes_is_an_error(tmp_path):
    build(tmp_path, layouts=("binaural",))
    found = open_rirs(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(SceneError, match="cannot be read: No such file"):
        found.read(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooms": 0}, "rooms is 0"),
        ({"rooms": 2}, "2 rooms cannot be shared"),
        ({"valid": 1.0}, "shares"),
        ({"test": -0.1}, "shares"),
        ({"seed": -1}, "seed -1"),
        ({"layouts": ()}, "at least one"),
        ({"layouts": ("binaural", "binaural")}, "each once"),
        ({"layouts": ("binural",)}, "Did you mean 'binaural'"),
        ({"seconds": 0.0}, "seconds"),
    ],
)
def test_plans_that_cannot_be_are_errors(options, message):
    with pytest.raises(OptionError, match=message):
        plan_of(**options)


def test_jobs_must_be_one_at_least(tmp_path):
    with pytest.raises(OptionError, match="jobs is 0"):
        build(tmp_path / "set", jobs=0)


def test_rooms_are_drawn_in_which_rare_placements_fit():
    ranges = Ranges(distance=(4.5, 5.0), rt60=(0.2, 0.3), noise_sources=(1, 1))
    for number in range(6):
        room = draw_room_of(ranges, 0, 0, number)
        assert 4.5 <= draw_scene(room, (0, 0, number, 0, 0), ranges).distance <= 5.0


def test_rooms_of_splits_are_different_ones():
    rooms = [draw_room_of(Ranges(), 0, split, n).size for split in range(3) for n in range(5)]
    assert len(set(rooms)) == 15


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
from gram_hear.scenes.rendering import Rendered
from gram_hear.scenes.rir_building import RirPlan, build_rirs

PLAN = RirPlan(3, scenes_per_room=8)

def simulate(plan, index, seconds=0.0):
    time.sleep(seconds)
    generator = np.random.default_rng([index.room, index.scene, len(index.split)])
    rirs = generator.standard_normal((3, 2, 500)).astype(np.float32)
    return [Rendered(rirs, plan.rate, "binaural", {"noises": [0, 0]})]

def slowly(plan, index):
    return simulate(plan, index, 0.1)

if __name__ == "__main__":
    told = lambda done, total: print(done, flush=True)
    try:
        build_rirs(Path("set"), PLAN, jobs=2, progress=told, simulator=slowly)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent to a process group")
def test_ctrl_c_loses_nothing_and_jobs_change_nothing(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    stopped = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    told = [0]
    for line in stopped.stdout:
        told.append(int(line))
        if told[-1] == 9:  # of 24
            os.killpg(stopped.pid, signal.SIGINT)
    assert stopped.wait(60) == 130
    assert not list((tmp_path / "set").rglob("*.partial"))
    finished = len(list((tmp_path / "set" / ".job" / "done").iterdir()))
    assert told[-1] <= finished < 24
    script = runpy.run_path(str(tmp_path / "script.py"))
    seen = []
    for name in ("set", "whole"):
        build_rirs(
            tmp_path / name,
            script["PLAN"],
            jobs=1,
            progress=lambda *each: seen.append(each),
            simulator=script["simulate"],
        )
    assert seen[0] == (finished, 24)
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")


def test_a_run_makes_what_another_has_not_begun_and_both_end_alike(tmp_path):
    made = []

    def first(plan, index):
        made.append("first")
        if len(made) == 3:  # a run that begins and is finished but for this scene
            with pytest.raises(Stop):
                build(tmp_path / "set", stand_in, progress=stop_before_waiting)
        return stand_in(plan, index)

    def stop_before_waiting(done, total):
        if done == total - 1:
            raise Stop

    build(tmp_path / "set", first)
    assert made == ["first"] * 3
    build(tmp_path / "whole")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")


def test_a_scene_that_is_removed_meanwhile_is_named_and_made_again(tmp_path):
    def remove(done, total):
        if done == 5:
            (tmp_path / "set" / "train" / "00000" / "00001.binaural.npy").unlink()

    with pytest.raises(SceneError, match=r"train/00000/00001 of .*removed or altered"):
        build(tmp_path / "set", progress=remove)
    build(tmp_path / "set")
    build(tmp_path / "whole")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")


def test_a_set_of_a_run_that_was_killed_at_its_very_end_is_tidied(tmp_path, monkeypatch):
    monkeypatch.setattr(rir_building.Job, "close", lambda job: None)
    build(tmp_path / "set")
    assert (tmp_path / "set" / ".job").is_dir()
    monkeypatch.undo()
    build(tmp_path / "set")
    assert not (tmp_path / "set" / ".job").exists()


# --- with the simulator ---------------------------------------------------------------------

SMALL = Ranges(
    width=(2.5, 3), depth=(3, 3.5), rt60=(0.2, 0.25), distance=(0.5, 1.5), noise_sources=(1, 2)
)


def test_simulated_set_end_to_end(tmp_path):
    plan = RirPlan(1, 2, BOTH, valid=0, test=0, ranges=SMALL, seconds=0.1)
    assert build_rirs(tmp_path / "set", plan, jobs=1) == {"train": 2}
    for layout in BOTH:
        found = open_rirs(tmp_path / "set", layout, RATE)
        for i in range(2):
            rirs, metadata = found.read(i)
            scene = Scene.from_dict(metadata)
            with one_thread():  # as sets are made
                room = draw_room_of(SMALL, 0, 0, 0)
                assert scene == tune(draw_scene(room, (0, 0, 0, i, 0), SMALL))
                again = simulate(plan, SceneIndex("train", 0, i))[BOTH.index(layout)].rirs
            assert rirs.shape == (1 + len(scene.noises), CHANNELS[layout], 3200)
            np.testing.assert_array_equal(rirs, again)
            np.testing.assert_allclose(metadata["direction"], scene.direction)


def test_direct_sound_in_published_axes_comes_from_the_source(tmp_path):
    """In the axes x right, y up, z back it points where the source stands."""
    plan = RirPlan(1, 1, ("ambisonic",), valid=0, test=0, ranges=SMALL, seconds=0.1)
    build_rirs(tmp_path / "set", plan, jobs=1)
    rirs, metadata = open_rirs(tmp_path / "set").read(0)
    raw = to_soundspaces(rirs[0], "ambix")
    arrival = round(metadata["direct_delay"][0] * RATE)
    direct = raw[:, arrival - 8 : arrival + 9]
    up, back, right = direct[1:] @ direct[0] / (direct[0] @ direct[0]) / sqrt(3)
    np.testing.assert_allclose([-back, -right, up], metadata["direction"], atol=0.05)


# --- command --------------------------------------------------------------------------------


def test_command_builds_a_set_and_prints_its_folder(tmp_path, command):
    small = ["--rt60", 0.2, 0.25, "--distance", 0.5, 1.5, "--noise-sources", 1, 1]
    small += ["--seconds", 0.1, "--scenes-per-room", 1, "--valid", 0, "--test", 0, "--jobs", 1]
    code, out, err = command("rirs", "--rooms", 1, "-o", "set", "--format", "ambisonics", *small)
    assert (code, out) == (0, "set\n"), err
    assert "1 scene for train" in err
    found = open_rirs(tmp_path / "set")
    assert (found.layout, len(found), found.rate) == ("ambisonic", 1, RATE)
