"""HEAR tasks in scenes: the same task, other sound; and the task of finding the source."""

import errno
import io
import itertools
import json
import os
import shutil
import tarfile
from pathlib import Path

import hear_tasks
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from gram_hear.audio.wav import write_wav
from gram_hear.commands.hear_eval.app import app as hear_eval
from gram_hear.errors import OptionError, TaskError
from gram_hear.scenes import naturalistic as tasks_module
from gram_hear.scenes import recipes
from gram_hear.scenes.naturalistic import JOURNAL, naturalise_task, read_manifest
from gram_hear.scenes.recipes import SceneSettings, clip_seed, rerender
from gram_hear.scenes.rooms import Room, Scene
from gram_hear.tasks import read_task

pytestmark = pytest.mark.slow

MODULES = Path(__file__).parent / "data" / "hear_modules"
RATE = 16000
LEVEL = 10 ** (-14 / 20)
EARLY, LATE = 90, 110  # samples of the stand-in's direct sound at its two ears; 100 at the centre


def beep(pitch, seconds=0.3, start=0.05, rate=RATE):
    """A short tone that begins at once, after silence."""
    time = np.arange(int(seconds * rate)) / rate
    return np.where(time < start, 0.0, 0.4 * np.sin(2 * np.pi * pitch * (time - start)))


def write_task(tasks_dir, name="beeps-v1-full", files=3, rate=RATE, ending=".wav", **metadata):
    """Write a task of beeps, low and high, of slightly different lengths."""
    labels = [["high" if i % 2 else "low"] for i in range(files)]
    pitches = itertools.cycle([(2000 if i % 2 else 300, 0.2 + 0.01 * i) for i in range(files)])
    if metadata.get("embedding_type") == "event":
        labels = [[{"label": "low", "start": 50.0, "end": 150.0}]] * files
    splits = {
        split: {f"{split}{i}{ending}": label for i, label in enumerate(labels)}
        for split in metadata.pop("splits", hear_tasks.SPLITS)
    }
    metadata |= {"task_name": name.split("-")[0], "rate": rate}
    metadata |= {"sound": lambda labels: beep(*next(pitches), rate=rate)}
    return read_task(hear_tasks.write_task(tasks_dir / name, splits, **metadata))


def stand_in(recipe):
    """Rooms without echoes, in which the direct sound is known; the first ear hears it early."""
    channels = 2 if recipe.layout == "binaural" else 4
    rirs = np.zeros((3, channels, 400), dtype=np.float32)
    rirs[0, 0, EARLY], rirs[0, 1, LATE] = 1.0, 0.5
    rirs[1, 0, 10], rirs[2, 1, 20] = 0.5, 1.0
    generator = np.random.default_rng(recipe.seed)
    vector = generator.standard_normal(3)
    metadata = {
        "direct_delay": [100.5 / recipe.rate, 0.0, 0.0],
        "direction": (vector / np.linalg.norm(vector)).tolist(),
    }
    return rirs, metadata, None


@pytest.fixture
def plain_rooms(monkeypatch):
    """Put the stand-in in the place of simulated rooms, and one scene in that of drawn ones."""
    room = Room((4.0, 5.0, 3.0), ((0.3,) * 7,) * 6, 0.3)
    scene = Scene((0,), room, (2.0, 2.0, 1.5), 0.0, (3.0, 2.0, 1.5), ((1.0, 1.0, 1.0),))
    monkeypatch.setattr(recipes, "draw_room_and_scene", lambda seed: scene)
    monkeypatch.setattr(recipes, "tune", lambda scene: scene)
    monkeypatch.setattr(recipes, "_room", stand_in)


def files_of(folder):
    """Every file below a folder, by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def clips_of(folder):
    return {name: data for name, data in files_of(folder).items() if name.endswith(".wav")}


# --- the task in scenes ---------------------------------------------------------------------


@pytest.mark.parametrize(("format", "channels"), [("binaural", 2), ("ambisonics", 4)])
def test_a_task_stays_the_same_task(tmp_path, plain_rooms, format, channels):
    task = write_task(tmp_path / "tasks")
    made = naturalise_task(task, tmp_path / "out", SceneSettings(format))
    assert made.folder == tmp_path / "out" / f"beeps-v1-full-{format}"
    assert (made.clips, made.silent) == (9, 0)
    natural = read_task(made.folder)
    for name in ("train.json", "valid.json", "test.json", "labelvocabulary.csv"):
        assert (made.folder / name).read_bytes() == (task.folder / name).read_bytes()
    said = dict(natural.metadata)
    described = said.pop("naturalistic")
    assert said == task.metadata
    assert described["source"] == "beeps-v1-full"
    assert described["format"] == format
    assert described["convention"] == (None if format == "binaural" else "ambix")
    assert (described["rate"], described["seed"], described["snr"]) == (RATE, 0, [5.0, 40.0])
    assert natural.rates() == [RATE]
    assert natural.missing(RATE) == []
    for split in task.splits:
        for file in task.raw_annotations(split):
            info = soundfile.info(natural.audio(split, file, RATE))
            dry = soundfile.info(task.audio(split, file, RATE))
            assert (info.channels, info.subtype, info.samplerate) == (channels, "FLOAT", RATE)
            assert info.frames == dry.frames
    assert not list(made.folder.rglob("*.partial*"))


def test_folds_and_other_metrics_stay(tmp_path, plain_rooms):
    folds = ["fold00", "fold01", "fold02"]
    task = write_task(
        tmp_path,
        splits=folds,
        split_mode="presplit_kfold",
        nfolds=3,
        prediction_type="multilabel",
        evaluation=["mAP", "aucroc"],
    )
    made = naturalise_task(task, tmp_path / "out")
    assert read_task(made.folder).splits == tuple(folds)
    assert read_task(made.folder).evaluation == ("mAP", "aucroc")
    assert read_task(made.localisation).splits == tuple(folds)
    assert read_task(made.localisation).folds


def test_events_keep_their_times(tmp_path, plain_rooms):
    """The direct sound of the farther ear is late by less than the head, and nothing is cut off."""
    task = write_task(tmp_path, embedding_type="event", evaluation=["event_onset_200ms_fms"])
    made = naturalise_task(task, tmp_path / "out", SceneSettings(snr=(100, 100)))
    assert read_task(made.folder).annotations("train") == task.annotations("train")
    sound, _ = soundfile.read(read_task(made.folder).audio("train", "train0.wav", RATE))
    begins = int(np.argmax(np.abs(beep(300)) > 0.01))
    for ear, arrival in ((0, EARLY), (1, LATE)):
        first = int(np.argmax(np.abs(sound[:, ear]) > 0.02 * np.abs(sound[:, ear]).max()))
        assert abs(first - begins - (arrival - 100)) <= 1
    assert read_task(made.localisation).kind == "localisation"


def test_what_reaches_the_nearer_ear_first_is_kept(tmp_path, plain_rooms):
    """At the very start of a clip only what came before it is lost; the level is kept."""
    task = write_task(tmp_path)
    made = naturalise_task(task, tmp_path / "out", SceneSettings(snr=(100, 100)))
    entry = next(read_manifest(made.folder))
    assert entry["advance"] == 100
    sound = rerender(entry) / entry["gain"]
    dry, _ = soundfile.read(entry["source"])
    loud = dry * LEVEL / np.sqrt(np.mean(dry**2))
    early = LATE - 100
    np.testing.assert_allclose(sound[0, :-10], loud[10:], atol=1e-4)
    np.testing.assert_allclose(sound[1, early:], 0.5 * loud[:-early], atol=1e-4)


def test_the_mixture_has_the_ratio_that_the_manifest_says(tmp_path, plain_rooms):
    task = write_task(tmp_path)
    made = naturalise_task(task, tmp_path / "out", SceneSettings(snr=(10, 20)))
    for entry in read_manifest(made.folder):
        sound = rerender(entry).astype(np.float64) / entry["gain"]
        clip, _ = soundfile.read(entry["source"])
        clip *= LEVEL / np.sqrt(np.mean(clip**2))
        heard = np.zeros_like(sound)
        heard[0, :-10], heard[1, 10:] = clip[10:], 0.5 * clip[:-10]
        start = entry["noise_drawn"]["start"]
        inside = slice(start, start + entry["noise_drawn"]["samples"])
        noise = (sound - heard)[:, inside]
        ratio = 10 * np.log10((heard[:, inside] ** 2).sum() / (noise**2).sum())
        assert 10 <= entry["snr"] <= 20
        assert ratio == pytest.approx(entry["snr"], abs=0.05)


def test_a_peak_above_full_scale_is_brought_below(tmp_path, plain_rooms):
    task = write_task(tmp_path, files=1)
    click = np.zeros(4000)
    click[1000] = 0.5
    soundfile.write(task.audio("train", "train0.wav", RATE), click, RATE)
    made = naturalise_task(task, tmp_path / "out")
    loud, soft = list(read_manifest(made.folder))[:2]
    sound, _ = soundfile.read(made.folder / str(RATE) / "train" / "train0.wav")
    assert 0.999 < np.abs(sound).max() < 1
    assert loud["gain"] < 0.2
    assert soft["gain"] == 1.0


def test_a_silent_clip_stays_silent_and_stops_nothing(tmp_path, plain_rooms):
    task = write_task(tmp_path)
    soundfile.write(task.audio("train", "train1.wav", RATE), np.zeros(3000), RATE)
    made = naturalise_task(task, tmp_path / "out")
    assert (made.clips, made.silent) == (9, 1)
    silent = {entry["file"]: entry["silent"] for entry in read_manifest(made.folder)}
    assert [file for file, is_silent in silent.items() if is_silent] == ["train1.wav"]
    sound, _ = soundfile.read(read_task(made.folder).audio("train", "train1.wav", RATE))
    assert sound.shape == (3000, 2)
    assert not sound.any()
    assert list(read_task(made.localisation).annotations("train")) == ["train0.wav", "train2.wav"]


def test_a_split_of_silence_has_no_localisation(tmp_path, plain_rooms):
    task = write_task(tmp_path, files=1)
    soundfile.write(task.audio("valid", "valid0.wav", RATE), np.zeros(3000), RATE)
    with pytest.warns(UserWarning, match=r"All clips of valid are silent"):
        made = naturalise_task(task, tmp_path / "out")
    assert made.localisation is None
    assert read_task(made.folder).missing(RATE) == []


def test_the_rate_is_the_highest_source_rate_or_the_one_asked_for(tmp_path, plain_rooms):
    task = write_task(tmp_path)
    shutil.copytree(task.folder / str(RATE), task.folder / "48000")
    for path in (task.folder / "48000").rglob("*.wav"):
        sound, _ = soundfile.read(path)
        soundfile.write(path, np.repeat(sound, 3), 48000)
    (task.folder / "96000").mkdir()
    (task.folder / "96000" / "resampled.json").write_text("{}")  # not the task's own
    assert read_task(naturalise_task(task, tmp_path / "high").folder).rates() == [48000]
    made = naturalise_task(task, tmp_path / "low", SceneSettings(rate=22050))
    entry = next(read_manifest(made.folder))
    assert (entry["rate"], entry["source_rate"]) == (22050, 48000)
    assert entry["samples"] == round(0.2 * 22050)
    made = naturalise_task(task, tmp_path / "same", SceneSettings(rate=RATE))
    assert next(read_manifest(made.folder))["source_rate"] == RATE


def test_files_of_other_formats_become_wav_files_of_another_name(tmp_path, plain_rooms):
    task = write_task(tmp_path, ending=".flac", files=2)
    made = naturalise_task(task, tmp_path / "out")
    natural = read_task(made.folder)
    assert natural.annotations("train") == {"train0.flac.wav": ["low"], "train1.flac.wav": ["high"]}
    assert natural.missing(RATE) == []
    assert soundfile.info(natural.audio("train", "train0.flac.wav", RATE)).format == "WAV"


def test_two_files_are_not_written_to_one(tmp_path, plain_rooms):
    task = write_task(tmp_path, ending=".flac", files=2)
    labels = task.raw_annotations("train") | {"train0.flac.wav": ["low"]}
    (task.folder / "train.json").write_text(json.dumps(labels))
    shutil.copy(
        task.audio("train", "train0.flac", RATE), task.folder / f"{RATE}/train/train0.flac.wav"
    )
    with pytest.raises(TaskError, match=r"train0\.flac of train would become"):
        naturalise_task(read_task(task.folder), tmp_path / "out")


# --- reproducibility ------------------------------------------------------------------------


def test_seeds_depend_on_names_alone_and_stay_what_they_are():
    golden = (3092466851, 2066230224, 637396585, 2286956632)
    assert clip_seed(0, "fsdd", "train", "0_theo_0.wav") == golden
    seeds = {
        clip_seed(*names)
        for names in [
            (0, "a", "b", "c"),
            (1, "a", "b", "c"),
            (0, "ab", "", "c"),
            (0, "a", "bc", ""),
        ]
    }
    assert len(seeds) == 4


def test_a_clip_does_not_depend_on_the_others(tmp_path, plain_rooms):
    task = write_task(tmp_path / "all")
    whole = clips_of(naturalise_task(task, tmp_path / "one").folder)
    files = task.raw_annotations("train")
    (task.folder / "train.json").write_text(
        json.dumps({file: files[file] for file in ["train2.wav", "train0.wav"]})
    )
    part = clips_of(naturalise_task(read_task(task.folder), tmp_path / "two").folder)
    assert len(part) == len(whole) - 1
    assert all(whole[name] == data for name, data in part.items())


def test_another_seed_gives_other_scenes(tmp_path, plain_rooms):
    task = write_task(tmp_path)
    one, two = (
        clips_of(naturalise_task(task, tmp_path / f"{seed}", SceneSettings(seed=seed)).folder)
        for seed in (0, 1)
    )
    assert not set(one.values()) & set(two.values())


def test_both_formats_show_the_same_scenes(tmp_path, plain_rooms):
    task = write_task(tmp_path, files=1)
    found = [
        next(read_manifest(naturalise_task(task, tmp_path / "out", SceneSettings(format)).folder))
        for format in ("binaural", "ambisonics")
    ]
    for key in ("seed", "snr", "noise_drawn"):
        assert found[0][key] == found[1][key]
    assert found[0]["layout"] != found[1]["layout"]


def test_real_rooms_rendered_again(tmp_path):
    """From the manifest a clip is made again bit for bit; its label is where the source stands."""
    task = write_task(tmp_path, files=1, rate=8000)
    made = naturalise_task(task, tmp_path / "out")
    where = read_task(made.localisation)
    for entry in map(json.loads, (made.folder / "manifest.jsonl").read_text().splitlines()):
        split, file, scene = entry["split"], entry["file"], entry["scene"]
        stored, _ = soundfile.read(where.audio(split, file, 8000), dtype="float32")
        np.testing.assert_array_equal(rerender(entry), stored.T)
        assert where.annotations(split)[file] == scene["direction"]
        assert np.linalg.norm(scene["direction"]) == pytest.approx(1)
        assert entry["advance"] == int(scene["direct_delay"][0] * 8000)


def test_one_process_or_two_make_the_same(tmp_path):
    task = write_task(tmp_path, files=1, rate=8000)
    settings = SceneSettings("ambisonics")
    one = naturalise_task(task, tmp_path / "one", settings)
    two = naturalise_task(task, tmp_path / "two", settings, jobs=2)
    assert files_of(one.folder) == files_of(two.folder)


def test_a_moved_sound_can_be_rendered_again_but_another_one_not(tmp_path, plain_rooms):
    task = write_task(tmp_path, files=1)
    made = naturalise_task(task, tmp_path / "out")
    entry = next(read_manifest(made.folder))
    moved = tmp_path / "moved.wav"
    shutil.move(entry["source"], moved)
    assert rerender(entry, source=moved).shape == (2, entry["samples"])
    soundfile.write(moved, beep(500, 0.2), RATE)
    with pytest.raises(TaskError, match=r"source_sha256 is '[0-9a-f]+' now, and was"):
        rerender(entry, source=moved)
    with pytest.raises(TaskError, match="no entry of a manifest"):
        rerender({key: value for key, value in entry.items() if key != "snr"})


def test_a_noise_set_that_changed_is_told(tmp_path, plain_rooms):
    task = write_task(tmp_path, files=1)
    noises = tmp_path / "noises"
    noises.mkdir()
    generator = np.random.default_rng(0)
    for name in "ab":
        soundfile.write(noises / f"{name}.wav", generator.uniform(-0.1, 0.1, 2000), RATE)
    made = naturalise_task(task, tmp_path / "out", SceneSettings(noise=noises))
    entry = next(read_manifest(made.folder))
    drawn = entry["noise_drawn"]
    assert (drawn["whole"], drawn["samples"]) == (True, 2000)
    assert 0 <= drawn["start"] <= entry["samples"] - 2000
    again = rerender(entry)
    shutil.move(noises, tmp_path / "elsewhere")
    np.testing.assert_array_equal(rerender(entry, noise=tmp_path / "elsewhere"), again)
    for path in (tmp_path / "elsewhere").iterdir():
        path.rename(path.with_name(f"c{path.name}"))
    recipes.open_noise_set.cache_clear()
    with pytest.raises(TaskError, match="noise_drawn is"):
        rerender(entry, noise=tmp_path / "elsewhere")


# --- interruptions and other folders --------------------------------------------------------


def interrupted(after):
    """A progress bar at which somebody presses Ctrl-C."""

    def progress(done, total):
        if done == after:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def count_clips(monkeypatch):
    """Count what is made."""
    made = []

    def follow(recipe):
        made.append(Path(recipe.source).name)
        return recipes.follow(recipe)

    monkeypatch.setattr(tasks_module, "follow", follow)
    return made


def test_an_interrupted_run_goes_on_and_loses_nothing(tmp_path, plain_rooms, count_clips):
    task = write_task(tmp_path)
    whole = files_of(naturalise_task(task, tmp_path / "whole").folder)
    count_clips.clear()
    with pytest.raises(KeyboardInterrupt):
        naturalise_task(task, tmp_path / "out", progress=interrupted(4))
    folder = tmp_path / "out" / "beeps-v1-full-binaural"
    assert not (folder / "task_metadata.json").exists()
    assert len(count_clips) == 4
    note = min((folder / ".job" / "done").iterdir())
    note.write_text('{"job": "valid", "fi')  # as a power cut leaves it
    naturalise_task(task, tmp_path / "out")
    assert len(count_clips) == 10  # of 9, and the one without a note again
    assert files_of(folder) == whole
    assert not list(tmp_path.rglob(".job"))
    naturalise_task(task, tmp_path / "out")
    assert len(count_clips) == 10


def test_a_clip_that_a_power_cut_emptied_is_made_again(tmp_path, plain_rooms, count_clips):
    task = write_task(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        naturalise_task(task, tmp_path / "out", progress=interrupted(4))
    clip = tmp_path / "out" / "beeps-v1-full-binaural" / str(RATE) / "train" / "train0.wav"
    clip.write_bytes(clip.read_bytes()[:100])
    naturalise_task(task, tmp_path / "out")
    assert sorted(count_clips).count("train0.wav") == 2
    assert soundfile.info(clip).frames == 3200


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, r"other options \(seed 0, not 1\)\. Delete it, or choose another"),
        ({"snr": (0, 5)}, "snr"),
        ({"rate": 8000}, "rate"),
    ],
)
def test_other_options_in_the_same_folder_are_refused(
    tmp_path, plain_rooms, finished, other, message
):
    task = write_task(tmp_path, files=1)
    if finished:
        naturalise_task(task, tmp_path / "out")
    else:
        with pytest.raises(KeyboardInterrupt):
            naturalise_task(task, tmp_path / "out", progress=interrupted(1))
    before = files_of(tmp_path / "out")
    with pytest.raises(OptionError, match=message):
        naturalise_task(task, tmp_path / "out", SceneSettings(**other))
    assert files_of(tmp_path / "out") == before


def test_a_run_that_begins_while_another_works_shares_the_task(tmp_path, plain_rooms, count_clips):
    task = write_task(tmp_path, files=1)
    found = []

    def run_again(done, total):
        if done == 1 and not found:
            found.append(naturalise_task(task, tmp_path / "out"))

    assert [naturalise_task(task, tmp_path / "out", progress=run_again)] == found
    assert len(count_clips) == 3
    whole = naturalise_task(task, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(whole.folder.parent)


def test_a_clip_that_is_removed_meanwhile_is_named_and_made_again(tmp_path, plain_rooms):
    task = write_task(tmp_path, files=1)
    clip = tmp_path / "out" / "beeps-v1-full-binaural" / str(RATE) / "train" / "train0.wav"

    def remove(done, total):
        if done == 2:
            clip.unlink()

    with pytest.raises(TaskError, match=r"train/train0\.wav of .*removed or altered"):
        naturalise_task(task, tmp_path / "out", progress=remove)
    whole = naturalise_task(task, tmp_path / "whole")
    naturalise_task(task, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(whole.folder.parent)


@pytest.mark.parametrize("ending", ["", "-localization"])
def test_what_0_1_0_left_unfinished_is_named(tmp_path, plain_rooms, ending):
    task = write_task(tmp_path, files=1)
    folder = tmp_path / "out" / f"beeps-v1-full-binaural{ending}"
    folder.mkdir(parents=True)
    (folder / JOURNAL).write_text('{"source": "beeps-v1-full"}')
    with pytest.raises(OptionError, match=r"begun by gram-hear 0\.1\.0.*delete it"):
        naturalise_task(task, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_files_that_noises_leave_out_are_told_once(tmp_path, plain_rooms):
    task = write_task(tmp_path, files=1)
    noises = tmp_path / "noises"
    noises.mkdir()
    soundfile.write(noises / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 900), RATE)
    (noises / "b.txt").write_text("")

    def open_anew(done, total):  # as each process does
        recipes.open_noise_set.cache_clear()

    settings = SceneSettings(noise=noises)
    with pytest.warns(UserWarning, match="left out") as caught:
        naturalise_task(task, tmp_path / "out", settings, progress=open_anew)
    assert len([each for each in caught if "left out" in str(each.message)]) == 1


def test_changed_labels_and_foreign_folders_are_refused(tmp_path, plain_rooms):
    task = write_task(tmp_path, files=1)
    naturalise_task(task, tmp_path / "out")
    (task.folder / "train.json").write_text('{"train0.wav": ["high"]}')
    with pytest.raises(OptionError, match="source_sha256"):
        naturalise_task(read_task(task.folder), tmp_path / "out")
    foreign = tmp_path / "foreign" / "beeps-v1-full-binaural"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("")
    with pytest.raises(OptionError, match="holds other files"):
        naturalise_task(task, tmp_path / "foreign")
    (foreign / "thesis.txt").rename(foreign / "task_metadata.json")
    (foreign / "task_metadata.json").write_text("{}")
    with pytest.raises(OptionError, match="does not say what it was made of"):
        naturalise_task(task, tmp_path / "foreign")


def test_a_full_disk_is_told_and_what_is_finished_is_kept(
    tmp_path, plain_rooms, count_clips, monkeypatch
):
    task = write_task(tmp_path, files=1)

    def full(path, audio, rate):
        if len(count_clips) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_wav(path, audio, rate)

    with monkeypatch.context() as patch:
        patch.setattr(tasks_module, "write_wav", full)
        with pytest.raises(TaskError, match=r"No space left.*run the same command again"):
            naturalise_task(task, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*.partial"))
    naturalise_task(task, tmp_path / "out")
    assert len(count_clips) == 4


def test_clips_that_fail_are_named_when_the_others_are_done(tmp_path, plain_rooms, count_clips):
    task = write_task(tmp_path)
    broken = task.audio("train", "train0.wav", RATE)
    content = broken.read_bytes()
    broken.write_bytes(b"RIFF")
    soundfile.write(task.audio("test", "test0.wav", RATE), np.full(900, np.nan), RATE, "FLOAT")
    with pytest.raises(TaskError, match=r"2 of 9 clips.*train/train0\.wav.*NaN"):
        naturalise_task(task, tmp_path / "out")
    assert not (tmp_path / "out" / "beeps-v1-full-binaural" / "task_metadata.json").exists()
    broken.write_bytes(content)
    soundfile.write(task.audio("test", "test0.wav", RATE), beep(300), RATE)
    count_clips.clear()
    naturalise_task(task, tmp_path / "out")
    assert sorted(count_clips) == ["test0.wav", "train0.wav"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda task: task.audio("valid", "valid1.wav", RATE).unlink(), r"lacks 1 audio files"),
        (lambda task: shutil.rmtree(task.folder / str(RATE)), "has no audio"),
        (lambda task: (task.folder / "test.json").write_text("{"), "no JSON"),
        (
            lambda task: (task.folder / str(RATE)).rename(task.folder / "44100"),
            "sample rate of 16000 Hz; by its folder it must be 44100",
        ),
    ],
)
def test_broken_tasks_are_explained(tmp_path, plain_rooms, spoil, message):
    task = write_task(tmp_path)
    spoil(task)
    with pytest.raises(TaskError, match=message):
        naturalise_task(read_task(task.folder), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("task_metadata.json"))


def test_tasks_in_scenes_are_not_put_into_scenes_again(tmp_path, plain_rooms):
    made = naturalise_task(write_task(tmp_path, files=1), tmp_path / "out")
    for folder in (made.folder, made.localisation):
        with pytest.raises(TaskError, match="in scenes already"):
            naturalise_task(read_task(folder), tmp_path / "again")
    plain = write_task(tmp_path, "where-v1-full", files=1)
    for split in plain.splits:
        (plain.folder / f"{split}.json").write_text(json.dumps({f"{split}0.wav": [0.6, 0.8, 0.0]}))
    with pytest.raises(TaskError, match="localisation task"):
        naturalise_task(read_task(plain.folder), tmp_path / "again")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "ambisonic"}, r"Unknown format 'ambisonic'.*Did you mean 'ambisonics'"),
        ({"rate": 4000}, "rate is 4000"),
        ({"seed": -1}, "seed is -1"),
        ({"snr": (40, 5)}, "SNR is 40 to 5 dB"),
        ({"snr": (0, float("nan"))}, "SNR is 0 to nan dB"),
        ({"snr": (0, 500)}, "between -100 and 100"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        SceneSettings(**options)


# --- localisation ---------------------------------------------------------------------------


def test_localisation_shares_the_audio_and_has_directions(tmp_path, plain_rooms):
    task = write_task(tmp_path, evaluation_params={"task_specific_param_grid": {"lr": [1e-3]}})
    made = naturalise_task(task, tmp_path / "out")
    where = read_task(made.localisation)
    assert where.name == "beeps-v1-full-binaural-localization"
    assert where.kind == "localisation"
    assert (where.embedding_type, where.prediction_type) == ("scene", "multilabel")
    assert where.evaluation[:3] == ("DOA", "MAE", "DOE")
    assert where.evaluation[3:] == tuple(
        f"3d_source_local{axis}" for axis in ("", "_x", "_y", "_z")
    )
    assert where.metadata["task_name"] == "beeps-localization"
    assert "evaluation_params" not in where.metadata
    entries = {(entry["split"], entry["file"]): entry for entry in read_manifest(made.folder)}
    for split in task.splits:
        for file, direction in where.annotations(split).items():
            assert direction == entries[split, file]["scene"]["direction"]
            assert os.path.samefile(
                where.audio(split, file, RATE), made.folder / str(RATE) / split / file
            )
    assert not (made.localisation / ".job").exists()


def test_localisation_has_copies_where_files_cannot_have_two_names(
    tmp_path, plain_rooms, monkeypatch
):
    def refuse(source, target):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made = naturalise_task(write_task(tmp_path, files=1), tmp_path / "out")
    assert clips_of(made.localisation) == clips_of(made.folder)
    audio = f"{RATE}/train/train0.wav"
    assert not os.path.samefile(made.localisation / audio, made.folder / audio)


def test_a_localisation_that_was_broken_off_is_finished(tmp_path, plain_rooms):
    task = write_task(tmp_path)
    made = naturalise_task(task, tmp_path / "out")
    whole = files_of(made.localisation)
    (made.localisation / ".job").mkdir()
    described = read_task(made.localisation).metadata["naturalistic"]
    made_of = {key: described[key] for key in described if key not in ("gram_hear", "manifest")}
    (made.localisation / ".job" / "made_of.json").write_text(json.dumps(made_of))
    (made.localisation / "task_metadata.json").unlink()
    (made.localisation / f"{RATE}/valid/valid1.wav").unlink()
    assert naturalise_task(task, tmp_path / "out").localisation == made.localisation
    assert files_of(made.localisation) == whole


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_wav_files_hold_the_samples_and_nothing_of_the_time(tmp_path, channels):
    audio = np.random.default_rng(0).standard_normal((channels, 7)).astype(np.float32)
    write_wav(tmp_path / "a.wav", audio, 22050)
    read, rate = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)
    info = soundfile.info(tmp_path / "a.wav")
    assert (rate, info.format, info.subtype) == (22050, "WAV", "FLOAT")
    np.testing.assert_array_equal(read.T, audio)
    assert len((tmp_path / "a.wav").read_bytes()) == 58 + audio.nbytes
    assert "PEAK" not in info.extra_info


# --- sets of RIRs ---------------------------------------------------------------------------


@pytest.fixture
def write_rirs(tmp_path):
    """Return a function that writes a set as published: a tar for each split, no metadata."""

    def write(splits=("train", "test"), noises=1, scenes=3):
        folder = tmp_path / "rirs"
        folder.mkdir()
        for split in splits:
            with tarfile.open(folder / f"{split}.tar", "w") as tar:
                for i in range(scenes):
                    rirs = np.zeros((1 + noises, 2, 300), dtype=np.float32)
                    rirs[:, :, 30], rirs[:, :, 28] = 1.0, 0.01
                    content = io.BytesIO()
                    np.save(content, rirs)
                    member = tarfile.TarInfo(f"{i}.npy")
                    member.size = content.tell()
                    content.seek(0)
                    tar.addfile(member, content)
        return folder

    return write


def test_rirs_of_test_rooms_are_drawn_from_a_set(tmp_path, write_rirs):
    task = write_task(tmp_path, files=5)
    with pytest.warns(UserWarning, match=r"does not say where the source of test\.tar/\d\.npy is"):
        made = naturalise_task(task, tmp_path / "out", SceneSettings(rirs=write_rirs(), rate=32000))
    assert made.localisation is None
    entries = list(read_manifest(made.folder))
    assert {entry["rir"] for entry in entries} == {f"test.tar/{i}.npy" for i in range(3)}
    assert {entry["advance"] for entry in entries} == {30}  # found in the RIR
    sound, _ = soundfile.read(made.folder / "32000" / "train" / "train0.wav", dtype="float32")
    np.testing.assert_array_equal(rerender(entries[0]), sound.T)
    shutil.move(tmp_path / "rirs", tmp_path / "moved")
    np.testing.assert_array_equal(rerender(entries[0], rirs=tmp_path / "moved"), sound.T)


def test_a_set_that_knows_the_directions_gives_localisation(tmp_path, write_rirs, monkeypatch):
    described = {"direction": [0.0, 1.0, 0.0], "direct_delay": [29.5 / 32000, 0.1]}
    monkeypatch.setattr(recipes.RirSet, "read", lambda self, i: (self._load(i)[0], described))
    task = write_task(tmp_path, files=1)
    made = naturalise_task(task, tmp_path / "out", SceneSettings(rirs=write_rirs(), rate=32000))
    assert read_task(made.localisation).annotations("test") == {"test0.wav": [0.0, 1.0, 0.0]}
    assert {entry["advance"] for entry in read_manifest(made.folder)} == {29}


@pytest.mark.filterwarnings("ignore:.*where the source of")
def test_a_set_without_splits_is_drawn_from_all_over_and_one_without_noises_gives_none(
    tmp_path, write_rirs
):
    task = write_task(tmp_path, files=5)
    settings = SceneSettings(rirs=write_rirs(("a", "b"), noises=0), rate=32000)
    with pytest.warns(UserWarning, match="all of its 6 scenes"):
        made = naturalise_task(task, tmp_path / "out", settings)
    entries = list(read_manifest(made.folder))
    assert {entry["rir"][0] for entry in entries} == {"a", "b"}
    assert all(entry["noise_drawn"] is None for entry in entries)


def test_sets_that_do_not_fit_are_refused(tmp_path, write_rirs):
    task = write_task(tmp_path, files=1)
    folder = write_rirs(("train",))
    with pytest.raises(OptionError, match=r"at 32000 Hz, and the clips .* 16000.*--rate 32000"):
        naturalise_task(task, tmp_path / "out", SceneSettings(rirs=folder))
    with pytest.raises(OptionError, match="no split 'test'"):
        naturalise_task(task, tmp_path / "out", SceneSettings(rirs=folder, rate=32000))
    with pytest.raises(OptionError, match="ambisonic"):
        naturalise_task(
            task, tmp_path / "out", SceneSettings("ambisonics", rirs=folder, rate=32000)
        )
    assert not (tmp_path / "out").exists()


# --- the command, and what comes after it ---------------------------------------------------


def test_the_command_makes_all_tasks_and_says_where(tmp_path, plain_rooms, command):
    task = write_task(tmp_path / "tasks")
    soundfile.write(task.audio("train", "train1.wav", RATE), np.zeros(3000), RATE)
    write_task(tmp_path / "tasks", "broken-v1-full").audio("train", "train0.wav", RATE).unlink()
    write_task(tmp_path / "tasks", "other-v1-full", files=1)
    arguments = ("naturalistic", "--tasks-dir", "tasks", "-o", "tasks", "--jobs", 1)
    code, stdout, stderr = command(*arguments, "--snr", 0, 10, "--seed", 3)
    made = [Path("tasks", f"{name}-v1-full-binaural") for name in ("beeps", "other")]
    assert stdout.split() == [str(p) for m in made for p in (m, f"{m}-localization")]
    assert code == 1
    assert "failed: broken-v1-full" in stderr
    assert "1 of 9 clips of beeps-v1-full are silent" in stderr
    described = read_task(made[0]).metadata["naturalistic"]
    assert (described["snr"], described["seed"]) == ([0.0, 10.0], 3)
    again = command(*arguments, "--snr", 0, 10, "--seed", 3)  # what is made there is left alone
    assert again[:2] == (code, stdout)
    assert "beeps-v1-full-binaural is skipped" in again[2]
    code, _, stderr = command(*arguments, "--task", "beeps", "--seed", 4)  # the dry one
    assert code == 1
    assert "other options (seed 3, not 4;" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--snr", 10, 5), "SNR is 10 to 5"),
        (("--head", "nobody"), "nobody"),
        (("--noise", "nowhere"), "nowhere"),
        (("--jobs", 0), "jobs is 0"),
        (("--task", "beep"), "no task 'beep'"),
    ],
)
def test_wrong_options_are_explained_before_any_work(
    tmp_path, plain_rooms, command, arguments, message
):
    write_task(tmp_path / "tasks", files=1)
    code, stdout, stderr = command("naturalistic", "--tasks-dir", "tasks", "-o", "out", *arguments)
    assert (code, stdout) == (1, "")
    assert message in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["binaural", "ambisonics"])
def test_hear_eval_takes_the_tasks_as_they_are(tmp_path, plain_rooms, monkeypatch, format):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(MODULES)
    task = write_task(tmp_path / "tasks", files=8)
    naturalise_task(task, tmp_path / "tasks", SceneSettings(format))
    options = ("--module", "logmel", "--grid", "faster", "--grid-points", "2", "--device", "cpu")
    result = CliRunner().invoke(hear_eval, options)
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "embeddings" / "logmel" / "results.json").read_text())
    dry, natural, where = found["results"]
    assert [each["task"] for each in (dry, natural, where)] == [
        "beeps-v1-full",
        f"beeps-v1-full-{format}",
        f"beeps-v1-full-{format}-localization",
    ]
    assert natural["dry"] == dry["score"]
    assert where["metric"] == "DOA"
    assert where["dry"] is None
    assert set(where["scores"]) >= {"test_DOA", "test_MAE", "test_DOE", "test_3d_source_local_z"}
    assert "dry" in result.stdout
