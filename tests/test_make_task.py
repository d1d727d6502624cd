"""Labelled recordings into HEAR tasks: labels, splits, sound, and everything that is wrong."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold
from typer.testing import CliRunner

from gram_hear.commands.hear_eval.app import app
from gram_hear.errors import GramError, OptionError, TaskError
from gram_hear.evaluation.make import build
from gram_hear.evaluation.make.build import make_task, task_names
from gram_hear.evaluation.make.labels import LabelOptions, compile_pattern, kind_of, read_labels
from gram_hear.evaluation.make.plan import TaskOptions, plan_task
from gram_hear.evaluation.make.sounds import SoundOptions, digest, make_sound, read_header
from gram_hear.evaluation.make.splits import SplitOptions, deal_groups, make_splits
from gram_hear.evaluation.predict.shallow import ShallowProbe
from gram_hear.jobs.job import Job, read_state
from gram_hear.tasks import describe_tasks, read_task

pytestmark = pytest.mark.slow

RATE = 16000
SHALLOW = ShallowProbe()
MODULES = Path(__file__).parent / "data" / "hear_modules"


def sound(path, seed=0, samples=RATE // 10, rate=RATE, channels=1):
    """Write noise on the grid of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-9000, 9000, (samples, channels)) / 32768
    soundfile.write(path, noise, rate, subtype="PCM_16")


@pytest.fixture
def classes(tmp_path):
    """Two classes in folders, 10 files each."""
    for label in ("cat", "dog"):
        for i in range(10):
            sound(tmp_path / "sounds" / label / f"{label}{i}.wav", 100 * (label == "cat") + i)
    return tmp_path / "sounds"


@pytest.fixture
def flat(tmp_path):
    """A folder of 12 files: {label}_{speaker}_{index}.wav."""
    folder = tmp_path / "flat"
    names = [f"{a}_{b}_{i}" for a in ("no", "yes") for b in ("al", "bo", "cy") for i in range(2)]
    for seed, name in enumerate(names):
        sound(folder / f"{name}.wav", seed)
    return folder


def table(path, rows):
    """Write a CSV of rows of text: the first one names the columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([row.split(",") for row in rows])
    return path


def make(source, out, splits=None, sound=None, metrics=(), force=False, jobs=1, **labels):
    options = TaskOptions(
        "mine",
        labels=LabelOptions(**labels),
        splits=splits or SplitOptions(),
        sound=sound or SoundOptions(),
        metrics=metrics,
    )
    return make_task(plan_task(source, options), out, jobs=jobs, force=force)


def annotations(folder):
    task = read_task(folder)
    return {split: task.annotations(split) for split in task.splits}


def all_annotations(folder):
    """File -> annotation, of all splits."""
    return {file: each for files in annotations(folder).values() for file, each in files.items()}


@pytest.fixture
def interrupted(monkeypatch):
    """Make a task as far as to where it is moved into its place."""

    def stop(*_):
        raise KeyboardInterrupt

    def run(*arguments, **options):
        with monkeypatch.context() as patched:
            patched.setattr(build, "_move_in", stop)
            with pytest.raises(KeyboardInterrupt):
                make(*arguments, **options)

    return run


def contents(folder):
    """Path -> bytes of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- labels ---------------------------------------------------------------------------------


def test_class_per_folder(classes, tmp_path):
    made = make(classes, tmp_path / "tasks")
    task = read_task(made.folder)
    assert made.folder == tmp_path / "tasks" / "mine-v1-full"
    assert (task.kind, task.prediction_type, task.labels) == ("scene", "multiclass", ("cat", "dog"))
    assert (task.evaluation, task.sample_duration) == (("top1_acc",), 0.1)
    assert {split: len(files) for split, files in annotations(made.folder).items()} == {
        "train": 12,
        "valid": 4,
        "test": 4,
    }
    for split, files in annotations(made.folder).items():
        for file, labels in files.items():
            assert file.startswith(labels[0])
            source = classes / labels[0] / file
            assert task.audio(split, file, RATE).read_bytes() == source.read_bytes()
    (described,) = describe_tasks(tmp_path / "tasks")
    assert described["faults"] == []
    assert described["missing"] == {RATE: 0}
    assert os.listdir(tmp_path / "tasks") == ["mine-v1-full"]


def test_pattern_labels_and_groups(flat, tmp_path):
    pattern = "{label}_{speaker}_{}"
    made = make(flat, tmp_path / "tasks", pattern=pattern, group_by="speaker")
    speakers = {
        split: {name.split("_")[1] for name in files}
        for split, files in annotations(made.folder).items()
    }
    assert sorted(map(len, speakers.values())) == [1, 1, 1]
    assert set.union(*speakers.values()) == {"al", "bo", "cy"}


@pytest.mark.parametrize(
    ("pattern", "name", "fields"),
    [
        ("{label}_{speaker}_{}", "7_bo_12", {"label": "7", "speaker": "bo"}),
        ("{fold}-{clip}-{}-{label}", "1-100-A-0", {"fold": "1", "clip": "100", "label": "0"}),
        ("{label}/{speaker}.{}", "dog/al.3", {"label": "dog", "speaker": "al"}),
        (r"(?P<label>[a-z]+)\d+", "dog12", {"label": "dog"}),
        ("{label}_{speaker}", "a_b_c", None),
        ("{label}_{speaker}", "_b", None),
    ],
)
def test_patterns(pattern, name, fields):
    match = compile_pattern(pattern).fullmatch(name)
    assert (match and match.groupdict()) == fields


@pytest.mark.parametrize("pattern", ["label", "{a}_{a}", "(?P<label>[", "{}_{}"])
def test_patterns_that_cannot_be(pattern):
    with pytest.raises(OptionError, match="--pattern"):
        compile_pattern(pattern)


def test_table_with_several_labels(classes, tmp_path):
    files = [f"{a}/{a}{i}.wav" for a in ("cat", "dog") for i in range(10)]
    rows = [f"{file},{file[:3]}" for file in files] + [f"{file},loud" for file in files[::2]]
    listed = table(tmp_path / "l.csv", ["file,label", *rows, rows[0]])
    made = make(classes, tmp_path / "tasks", csv=listed)
    task = read_task(made.folder)
    assert (task.prediction_type, task.evaluation) == ("multilabel", ("mAP",))
    every = all_annotations(made.folder)
    assert every["cat0.wav"] == ["cat", "loud"]
    assert every["dog1.wav"] == ["dog"]
    assert any("10 of 20 files have several labels" in note for note in made.notes)
    assert any("1 row says the same" in note for note in made.notes)
    with pytest.raises(TaskError, match=r"10 files have conflicting labels: cat/cat0.wav \(cat, l"):
        make(classes, tmp_path / "other", csv=listed, prediction_type="multiclass")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_table_of_other_columns(flat, tmp_path, separator):
    rows = [
        "filename,category,take,who",
        *(f"{p.name},{p.name[:2]},1,{p.name[-8:-6]}" for p in sorted(flat.iterdir())),
    ]
    path = tmp_path / "l.csv"
    path.write_text("\ufeff" + "\r\n".join(row.replace(",", separator) for row in rows))
    collection = read_labels(
        flat,
        LabelOptions(
            path,
            columns={"file": "filename", "label": "category"},
            ignored=("take",),
            group_by="who",
        ),
    )
    assert collection.labels == ("no", "ye")
    assert {clip.fields["who"] for clip in collection.clips} == {"al", "bo", "cy"}


def test_numbers_are_in_rising_order(tmp_path):
    for i in range(12):
        sound(tmp_path / "s" / f"{i}" / "a.wav", i)
    assert read_labels(tmp_path / "s", LabelOptions()).labels == tuple(map(str, range(12)))


def test_events_in_seconds(tmp_path):
    rows = ["file,onset,offset,label"]
    for i in range(6):
        sound(tmp_path / "s" / f"{i}.wav", i, samples=2 * RATE)
        rows += [f"{i}.wav,1.001,1.5,bell", f"{i}.wav,0.25,2.5,hum"]
    sound(tmp_path / "s" / "silent.wav", 9, samples=2 * RATE)
    rows += ["silent.wav,,,"]
    listed = table(tmp_path / "l.csv", rows)
    made = make(tmp_path / "s", tmp_path / "tasks", csv=listed)
    task = read_task(made.folder)
    assert (task.kind, task.evaluation) == ("event", ("event_onset_200ms_fms", "segment_1s_er"))
    assert len(SHALLOW.settings(task)) == SHALLOW.grid_points  # hear-eval takes it
    assert task.metadata["evaluation_params"]["event_postprocessing_grid"] == {
        "median_filter_ms": [250],
        "min_duration": [125, 250],
    }
    every = all_annotations(made.folder)
    assert every["silent.wav"] == []
    assert every["0.wav"] == [
        {"label": "hum", "start": 250.0, "end": 2000.0},
        {"label": "bell", "start": 1001.0, "end": 1500.0},
    ]
    assert any("6 events end after" in note for note in made.notes)
    cut = make(
        tmp_path / "s",
        tmp_path / "cut",
        sound=SoundOptions((8000,), 0.5),
        csv=table(
            tmp_path / "m.csv", [*rows, "0.wav,0,0.1,bell", "1.wav,0,0.1,bell", "2.wav,0,0.1,bell"]
        ),
    )
    every = all_annotations(cut.folder)
    assert every["5.wav"] == [{"label": "hum", "start": 250.0, "end": 500.0}]
    assert any("6 events begin where nothing is used" in note for note in cut.notes)


def test_directions(tmp_path):
    rows = ["file,azimuth,elevation"]
    for i in range(24):
        sound(tmp_path / "s" / f"{i}.wav", i, channels=2)
        rows.append(f"{i}.wav,{15 * i},{0 if i else 90}")
    made = make(tmp_path / "s", tmp_path / "tasks", csv=table(tmp_path / "l.csv", rows))
    task = read_task(made.folder)
    assert (task.kind, task.evaluation) == ("localisation", ("MAE", "DOA"))
    assert len(SHALLOW.settings(task)) == SHALLOW.grid_points
    every = all_annotations(made.folder)
    assert every["0.wav"] == pytest.approx([0, 0, 1])
    assert every["6.wav"] == pytest.approx([0, 1, 0])  # 90 degrees is the left
    axes = table(tmp_path / "x.csv", ["file,x,y,z", *(f"{i}.wav,0,{i + 1},0" for i in range(24))])
    made = make(tmp_path / "s", tmp_path / "axes", csv=axes)
    every = all_annotations(made.folder)
    assert all(direction == [0.0, 1.0, 0.0] for direction in every.values())


def test_kind_of_columns():
    assert kind_of(["file", "label", "split"]) == "scene"
    assert kind_of(["file", "onset", "offset", "label"]) == "event"
    assert kind_of(["file", "x", "y", "z"]) == "localisation"
    for columns in (
        ["file"],
        ["file", "onset", "label"],
        ["file", "azimuth"],
        ["file", "x", "y"],
        ["file", "label", "x", "y", "z"],
        ["file", "azimuth", "elevation", "x", "y", "z"],
    ):
        with pytest.raises(TaskError, match="make no task"):
            kind_of(columns)


GOOD = [f"{label}/{label}{i}.wav,{label}" for label in ("cat", "dog") for i in range(10)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["file,lable", *GOOD], {}, "unknown columns: lable.*Did you mean 'label'"),
        (["file,label,take", *(f"{r},1" for r in GOOD)], {}, "--ignore-columns take"),
        (["name,label", *GOOD], {"ignored": ("all",)}, "no column 'file'"),
        (["file,file", *GOOD], {}, "names a column twice"),
        (["file,label", *GOOD, "cat/cat0.wav"], {}, "2 columns, but line 22 has 1 cells"),
        (["file,label"], {}, "has 1 lines"),
        (["file,label", *GOOD, "cat/cat10.wav,cat"], {}, "names 1 file .* Did you mean 'cat/cat1"),
        (["file,label", *GOOD, f"{'x' * 5000}.wav,cat"], {}, "names 1 file not in"),
        (["file,label", *GOOD, "../sounds/cat/cat1.wav,cat"], {}, "names 1 file not in"),
        (["file,label", *GOOD[:-2]], {}, "2 files in .* without a row.*--skip-unlisted"),
        (["file,label", *GOOD[:-1], "dog/dog9.wav,"], {}, "dog9.wav has an empty label"),
        (["file,label", *(r.replace(",cat", ",dog") for r in GOOD)], {}, "at least two classes"),
        (["file,label,split", *(f"{r},train" for r in GOOD)], {}, "No file is given to test"),
        (["file,label,split", *(f"{r},trian" for r in GOOD)], {}, "Did you mean 'train'"),
        (
            ["file,label,split", *(f"{r},{'' if i else 'train'}" for i, r in enumerate(GOOD))],
            {},
            "has no split",
        ),
        (["file,label,fold", *(f"{r},{i % 2}" for i, r in enumerate(GOOD))], {}, "at least 3"),
        (["file,label,fold,split", *(f"{r},1,test" for r in GOOD)], {}, "both a split and a fold"),
        (
            ["file,label,fold", *(f"{r},{i % 3}" for i, r in enumerate(GOOD)), f"{GOOD[0]},2"],
            {},
            "cat0.wav has several values of fold: 0, 2",
        ),
        (["file,label", *GOOD], {"group_by": "labels"}, "Did you mean 'label'"),
        (["file,label", *GOOD], {"columns": {"lbl": "label"}}, "Did you mean 'label'"),
        (["file,label", *GOOD], {"columns": {"label": "clas"}}, "no column 'clas'"),
        (["file,label", *GOOD], {"pattern": "{label}{}"}, "has the field 'label'"),
        (["file,label", *GOOD], {"pattern": "{a}_{b}"}, "names of 20 of 20 files do not fit"),
        (["file,label", *GOOD], {"prediction_type": "multi"}, "allowed are multiclass"),
        (["file,onset,offset,label", *(f"{r[:-4]},2,1,cat" for r in GOOD)], {}, "no offset is bef"),
        (["file,onset,offset,label", *(f"{r[:-4]},a,1,cat" for r in GOOD)], {}, "must be a number"),
        (["file,onset,offset,label", *(f"{r[:-4]},0,,cat" for r in GOOD)], {}, "without times"),
        (
            ["file,onset,offset,label", *(f"{r[:-4]},50,60,{r[-3:]}" for r in GOOD)],
            {},
            "20 events begin after the end of the file.*seconds",
        ),
        (["file,azimuth,elevation", *(f"{r[:-4]},0,91" for r in GOOD)], {}, "-90 to 90"),
        (["file,x,y,z", *(f"{r[:-4]},0,0,0" for r in GOOD)], {}, "points nowhere"),
        (
            ["file,x,y,z", *(f"{r[:-4]},0,1,0" for r in GOOD), f"{GOOD[0][:-4]},1,0,0"],
            {},
            "cat0.wav has 2 directions",
        ),
    ],
)
def test_what_is_wrong_in_tables(classes, tmp_path, rows, options, message):
    listed = table(tmp_path / "l.csv", rows)
    with pytest.raises(GramError, match=message):
        make(classes, tmp_path / "tasks", csv=listed, **options)
    assert not (tmp_path / "tasks").exists()


def test_what_is_wrong_in_folders(classes, tmp_path):
    (classes / "cow").mkdir()
    with pytest.raises(TaskError, match="1 classes without a sound file: cow"):
        make(classes, tmp_path / "tasks")
    (classes / "cow").rmdir()
    sound(classes / "stray.wav", 99)
    with pytest.raises(TaskError, match=r"1 files lie in .* itself.*--pattern"):
        make(classes, tmp_path / "tasks")
    (classes / "stray.wav").unlink()
    sound(classes / "cow" / "moo.wav", 98)
    with pytest.raises(TaskError, match=r"1 of 3 classes are in one split only: cow \(test|train"):
        make(classes, tmp_path / "tasks")
    with pytest.raises(TaskError, match="There is no folder"):
        make(tmp_path / "nowhere", tmp_path / "tasks")
    with pytest.raises(TaskError, match="No sound file"):
        make(MODULES, tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()
    made = make(classes, tmp_path / "tasks", splits=SplitOptions(allow_rare=True))
    assert any("in one split only: cow" in note for note in made.notes)


def test_links_to_classes_are_not_called_empty(classes, tmp_path):
    (classes / "cow").symlink_to(classes / "cat", target_is_directory=True)
    with pytest.raises(TaskError, match="1 classes that are symbolic links"):
        make(classes, tmp_path / "tasks")


def test_formats_that_are_not_read_are_counted(classes, tmp_path):
    for name in ("cat/a.m4a", "cat/b.WEBM", "dog/c.mp4", "d.amr", ".hidden/e.aac", "cat/.f.aac"):
        (classes / name).parent.mkdir(exist_ok=True)
        (classes / name).write_bytes(b"sound")
    (note,) = make(classes, tmp_path / "tasks").notes
    assert note.startswith("4 files left out")
    assert "cat/a.m4a, cat/b.WEBM, d.amr and 1 more. Convert them" in note
    listed = table(tmp_path / "l.csv", ["file,label", *GOOD])
    assert make(classes, tmp_path / "other", csv=listed).notes == (note,)
    listed = table(tmp_path / "l.csv", ["file,label", *GOOD, "cat/a.m4a,cat"])
    with pytest.raises(TaskError, match=r"1 of 21 files cannot be used.*a\.m4a"):
        make(classes, tmp_path / "third", csv=listed)
    (classes / "cow").mkdir()
    (classes / "cow" / "moo.m4a").write_bytes(b"sound")
    with pytest.raises(TaskError, match=r"without a sound file: cow.*5 files left out"):
        make(classes, tmp_path / "fourth")
    with pytest.raises(TaskError, match=r"No sound file.*1 file left out.*Convert"):
        make(classes / "cow", tmp_path / "fifth")


def test_cutting_must_leave_two_classes(tmp_path):
    rows = ["file,onset,offset,label"]
    for i in range(6):
        sound(tmp_path / "s" / f"{i}.wav", i, samples=RATE)
        rows += [f"{i}.wav,0.1,0.2,hum", f"{i}.wav,0.7,0.8,bell"]
    listed = table(tmp_path / "l.csv", rows)
    for duration, left in ((0.5, "hum"), (0.05, "there is none")):
        with pytest.raises(TaskError, match=rf"used of the files are the same \({left}\).*two cl"):
            make(tmp_path / "s", tmp_path / "tasks", sound=SoundOptions((), duration), csv=listed)
    assert not (tmp_path / "tasks").exists()


def test_what_is_no_sound_is_told_before_anything_is_written(classes, tmp_path):
    (classes / "cat" / "cat3.wav").write_bytes(b"no sound")
    (classes / "dog" / "dog4.wav").write_bytes(b"")
    with pytest.raises(TaskError, match=r"2 of 20 files cannot be used.*cat3.*dog4.*Nothing was"):
        make(classes, tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()


def test_what_is_damaged_makes_no_task_and_the_rest_is_kept(classes, tmp_path, monkeypatch):
    soundfile.write(classes / "cat" / "cat3.wav", np.full(100, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(TaskError, match=r"1 of 20 files cannot be used.*cat3.wav holds NaN"):
        make(classes, tmp_path / "tasks")
    assert os.listdir(tmp_path / "tasks") == [".mine-v1-full.making"]
    sound(classes / "cat" / "cat3.wav", 77)
    assert make(classes, tmp_path / "tasks").found == 19
    assert os.listdir(tmp_path / "tasks") == ["mine-v1-full"]


# --- splits ---------------------------------------------------------------------------------


def test_folds_are_made(classes, tmp_path):
    task = read_task(make(classes, tmp_path / "tasks", splits=SplitOptions(folds=5)).folder)
    assert (task.split_mode, task.metadata["nfolds"]) == ("new_split_kfold", 5)
    assert task.splits == ("fold00", "fold01", "fold02", "fold03", "fold04")
    for split in task.splits:
        assert sorted(task.annotations(split).values()) == [["cat"]] * 2 + [["dog"]] * 2


def test_folds_that_are_given_are_kept(classes, tmp_path):
    rows = [f"{row},{i % 3 + 1}" for i, row in enumerate(GOOD)]
    listed = table(tmp_path / "l.csv", ["file,label,fold", *rows])
    task = read_task(make(classes, tmp_path / "tasks", csv=listed).folder)
    assert task.split_mode == "presplit_kfold"
    assert task.splits == ("fold01", "fold02", "fold03")
    assert set(task.annotations("fold02")) == {
        f"{row.split(',')[0].split('/')[1]}" for i, row in enumerate(GOOD) if i % 3 == 1
    }
    with pytest.raises(OptionError, match="fold is given"):
        make(classes, tmp_path / "other", csv=listed, splits=SplitOptions(folds=4))


@pytest.mark.parametrize(
    ("folds", "unlearnt"),
    [((1, 2), "fold01"), ((3, 4), "fold03"), ((4, 1), "fold04"), ((1, 3), None)],
)
def test_classes_that_some_fold_leaves_unlearnt(classes, tmp_path, folds, unlearnt):
    """The fold after the tested one validates: a class of these two is in no training."""
    rows = [f"{row},{i % 4 + 1}" for i, row in enumerate(GOOD)]
    for fold in folds:
        sound(classes / "cow" / f"cow{fold}.wav", 50 + fold)
        rows.append(f"cow/cow{fold}.wav,cow,{fold}")
    listed = table(tmp_path / "l.csv", ["file,label,fold", *rows])
    if unlearnt:
        message = rf"1 of 3 classes are not in train: cow \(.*\) where {unlearnt} is tested\."
        with pytest.raises(TaskError, match=rf"{message}.*--allow-rare"):
            make(classes, tmp_path / "tasks", csv=listed)
        chosen = SplitOptions(allow_rare=True)
        notes = make(classes, tmp_path / "tasks", csv=listed, splits=chosen).notes
        assert any(f"where {unlearnt} is tested" in note for note in notes)
    else:
        notes = make(classes, tmp_path / "tasks", csv=listed).notes
        assert notes == ("1 of 3 classes are not in every split: cow (not in fold02, fold04).",)


def test_splits_that_are_given_are_kept(classes, tmp_path):
    splits = ["train", "train", "val", "test", "test"] * 4
    rows = [f"{row},{split}" for row, split in zip(GOOD, splits, strict=True)]
    listed = table(tmp_path / "l.csv", ["file,label,split", *rows])
    found = annotations(make(classes, tmp_path / "tasks", csv=listed).folder)
    assert {split: len(files) for split, files in found.items()} == {
        "train": 8,
        "valid": 4,
        "test": 8,
    }
    assert "cat2.wav" in found["valid"]


def test_valid_is_taken_from_train_where_it_is_not_given(classes, tmp_path):
    rows = [f"{row},{'test' if i % 5 == 0 else 'train'}" for i, row in enumerate(GOOD)]
    listed = table(tmp_path / "l.csv", ["file,label,split", *rows])
    made = make(classes, tmp_path / "tasks", csv=listed)
    found = annotations(made.folder)
    assert set(found["test"]) == {"cat0.wav", "cat5.wav", "dog0.wav", "dog5.wav"}
    assert sorted(found["valid"].values()) == [["cat"]] * 2 + [["dog"]] * 2
    assert any("4 of the 16 given to train" in note for note in made.notes)


def test_groups_in_two_given_splits_are_refused(flat, tmp_path):
    rows = [
        f"{p.name},{p.name[:2]},{split}"
        for p, split in zip(sorted(flat.iterdir()), ["train", "valid", "test"] * 4, strict=True)
    ]
    listed = table(tmp_path / "l.csv", ["file,label,split", *rows])
    with pytest.raises(TaskError, match=r"3 values of speaker are in several of the splits"):
        make(flat, tmp_path / "t", csv=listed, pattern="{}_{speaker}_{}", group_by="speaker")


def test_too_few_groups(flat, tmp_path):
    with pytest.raises(TaskError, match="3 values of speaker for 4 splits"):
        make(
            flat,
            tmp_path / "t",
            splits=SplitOptions(folds=4),
            pattern="{label}_{speaker}_{}",
            group_by="speaker",
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"shares": (0.5, 0.5)},
        {"shares": (1.0, 0.0, 1.0)},
        {"folds": 2},
        {"seed": -1},
        {"shares": (1.0, 1.0, 1.0), "folds": 3},
    ],
)
def test_divisions_that_cannot_be(wrong):
    with pytest.raises(OptionError):
        SplitOptions(**wrong)


def test_seed_decides(classes):
    recordings = read_labels(classes, LabelOptions())
    first, again, other = (make_splits(recordings, SplitOptions(seed=seed)) for seed in (0, 0, 1))
    assert first.clips == again.clips
    assert first.clips != other.clips


def one_hot(labels):
    counts = np.zeros((len(labels), max(labels) + 2), dtype=int)
    counts[np.arange(len(labels)), labels] = 1
    counts[:, -1] = 1
    return counts


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=3, max_size=120),
    st.lists(st.integers(1, 10), min_size=2, max_size=5),
    st.integers(0, 3),
)
def test_single_clips_are_spread_to_the_nearest_whole_number(labels, shares, seed):
    counts = one_hot(labels)
    splits = deal_groups(counts, shares, seed)
    assert set(splits) <= set(range(len(shares)))
    for label in set(labels):
        own = np.bincount(splits[np.array(labels) == label], minlength=len(shares))
        wanted = own.sum() * np.array(shares) / sum(shares)
        if own.sum() >= len(shares):
            assert (own > 0).all()  # no split without a class that has enough
        if (wanted >= 1).all():
            assert (np.abs(own - wanted) < 1 + 1e-9).all()


def test_groups_are_as_even_as_those_of_scikit_learn():
    random = np.random.default_rng(5)
    groups = random.integers(0, 60, 3000)
    labels = (random.integers(0, 8, 3000) + groups) % 11
    counts = np.zeros((60, 12), dtype=int)
    np.add.at(counts, (groups, labels), 1)
    counts[:, -1] = np.bincount(groups, minlength=60)

    def spread(of_clip):
        table = np.zeros((5, 11))
        np.add.at(table, (of_clip, labels), 1)
        return table.std(axis=0).mean()

    theirs = np.zeros(3000, dtype=int)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for i, (_, test) in enumerate(folds.split(np.zeros(3000), labels, groups)):
        theirs[test] = i
    assert spread(deal_groups(counts, (1.0,) * 5, 0)[groups]) < 1.2 * spread(theirs)


# --- sound ----------------------------------------------------------------------------------


def test_rates_channels_and_duration(tmp_path):
    for label in ("a", "b"):
        for i in range(3):
            seed = 3 * (label == "a") + i
            samples = 4410 + 4410 * i
            sound(tmp_path / "s" / label / f"{i}.flac", seed, samples, 44100, channels=2)
    chosen = SoundOptions((16000, 32000), 0.2)
    made = make(tmp_path / "s", tmp_path / "tasks", sound=chosen)
    task = read_task(made.folder)
    assert task.rates() == task.source_rates() == [16000, 32000]
    assert task.sample_duration == 0.2
    names = {name for split in task.splits for name in task.annotations(split)}
    assert names == {
        f"{a}_{i}.flac.wav" for a in "ab" for i in range(3)
    }  # none may be called alike
    for rate in task.rates():
        for split in task.splits:
            for name in task.annotations(split):
                audio, found = soundfile.read(task.audio(split, name, rate), always_2d=True)
                assert (audio.shape, found) == ((rate // 5, 2), rate)
                kept = round(rate * min(0.2, 0.1 + 0.1 * int(name[2])))
                assert np.abs(audio[kept - 50 : kept]).max() > 0
                assert np.abs(audio[kept:]).max(initial=0) == 0


def test_highest_rate_is_the_default(tmp_path):
    for i, rate in enumerate((8000, 16000, 16000, 8000, 16000, 8000)):
        sound(tmp_path / "s" / "ab"[i % 2] / f"{i}.wav", i, rate // 10, rate)
    made = make(tmp_path / "s", tmp_path / "tasks")
    assert read_task(made.folder).rates() == [16000]
    assert any("2 sample rates" in note for note in made.notes)


def test_ultrasound_becomes_a_task(tmp_path):
    for i in range(6):
        sound(tmp_path / "s" / "ab"[i % 2] / f"{i}.wav", i, 50_000, 500_000)
    made = make(tmp_path / "s", tmp_path / "tasks")
    assert read_task(made.folder).rates() == [500_000]


def test_form_of_a_file(tmp_path):
    sound(tmp_path / "a.wav", 1, 44100, 44100)
    header = read_header(tmp_path / "a.wav")
    for rate in (44100, 16000):
        (tmp_path / str(rate)).mkdir()
    made = make_sound(tmp_path / "a.wav", header, SoundOptions((44100, 16000)), tmp_path, "x")
    assert (tmp_path / "44100" / "x.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    assert soundfile.info(tmp_path / "16000" / "x.wav").frames == 16000
    assert (made.samples, made.suffix) == (44100, ".wav")
    audio, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    soundfile.write(tmp_path / "b.flac", audio, 44100, subtype="PCM_16")
    flac = make_sound(tmp_path / "b.flac", header, SoundOptions((44100,)), tmp_path, "y")
    assert flac.suffix == ".flac"
    assert flac.hash == made.hash == digest(audio[None], 44100)
    assert digest(audio[None], 22050) != made.hash


def test_a_file_that_others_would_read_otherwise_is_not_copied(tmp_path, b_format):
    """A task's WAV files are AmbiX, and say how much sound they hold."""
    (tmp_path / "32000").mkdir()
    b_format[0].rename(tmp_path / "b.wav")
    sound(tmp_path / "unsized.wav", 1, 32000, 32000)
    content = (tmp_path / "unsized.wav").read_bytes()
    (tmp_path / "unsized.wav").write_bytes(content[:40] + bytes(4) + content[44:])
    for name, expected in (("b", b_format[1]), ("unsized", io.BytesIO(content))):
        path = tmp_path / f"{name}.wav"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the missing size
            make_sound(path, read_header(path), SoundOptions((32000,)), tmp_path, name)
        made, _ = soundfile.read(tmp_path / "32000" / f"{name}.wav", dtype="float32")
        assert np.array_equal(made, soundfile.read(expected, dtype="float32")[0])


@pytest.mark.parametrize("wrong", [{"rates": (16,)}, {"duration": 0.0}, {"duration": np.nan}])
def test_forms_that_cannot_be(wrong):
    with pytest.raises(OptionError):
        SoundOptions(**wrong)


def test_names_in_the_task():
    assert task_names({"a/x.wav": ".wav", "b/y.mp3": ".wav"}) == {
        "a/x.wav": "x.wav",
        "b/y.mp3": "y.mp3.wav",
    }
    assert task_names({"a/x.wav": ".wav", "b/X.wav": ".wav"}) == {
        "a/x.wav": "a_x.wav",
        "b/X.wav": "b_X.wav",
    }
    with pytest.raises(TaskError, match="would both be called"):
        task_names({"a/x.wav": ".wav", "a_x.wav": ".wav", "b/x.wav": ".wav"})


# --- equal sound ----------------------------------------------------------------------------


def test_duplicates_stay_in_one_split(classes, tmp_path):
    for i in range(1, 5):
        (classes / "cat" / f"cat{i}.wav").write_bytes((classes / "cat" / "cat0.wav").read_bytes())
    for seed in range(3):
        out = tmp_path / f"tasks{seed}"
        made = make(classes, out, splits=SplitOptions(seed=seed))
        splits = [
            split
            for split, files in annotations(made.folder).items()
            for i in range(5)
            if f"cat{i}.wav" in files
        ]
        assert len(splits) == 5
        assert len(set(splits)) == 1
        (note,) = [note for note in made.notes if "several times" in note]
        assert note.startswith("1 sound is there several times, in one split: cat/cat0.wav = ")


def test_duplicates_in_given_splits_and_of_other_labels_are_named(classes, tmp_path):
    (classes / "dog" / "dog1.wav").write_bytes((classes / "cat" / "cat0.wav").read_bytes())
    splits = ["train", "test", "valid", "train", "test"] * 4
    rows = [f"{row},{split}" for row, split in zip(GOOD, splits, strict=True)]
    listed = table(tmp_path / "l.csv", ["file,label,split", *rows])
    notes = make(classes, tmp_path / "tasks", csv=listed).notes
    assert any("trained on: train/cat/cat0.wav = test/dog/dog1.wav" in note for note in notes)
    said = "labelled differently: cat/cat0.wav ['cat'] = dog/dog1.wav ['dog']"
    assert any(said in note for note in notes)
    assert make(classes, tmp_path / "tasks", csv=listed).notes == notes  # of what is there already


# --- resumed, replaced ----------------------------------------------------------------------


def test_killed_run_goes_on_and_repeats_nothing(classes, tmp_path, monkeypatch):
    whole = make(classes, tmp_path / "whole", sound=SoundOptions((8000, 16000)))
    code = (
        "import os, pathlib\n"
        "from gram_hear.evaluation.make.build import *\n"
        "from gram_hear.evaluation.make.plan import *\n"
        "def stop(done, total):\n"
        "    if done >= 7:\n"
        "        os._exit(9)\n"
        "options = TaskOptions('mine', sound=SoundOptions((8000, 16000)))\n"
        f"plan = plan_task(pathlib.Path({str(classes)!r}), options)\n"
        f"make_task(plan, pathlib.Path({str(tmp_path / 'tasks')!r}), jobs=1, progress=stop)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 9
    work = tmp_path / "tasks" / ".mine-v1-full.making"
    assert os.listdir(tmp_path / "tasks") == [work.name]
    calls = []

    def counted(path, *rest):
        calls.append(path)
        return make_sound(path, *rest)

    monkeypatch.setattr(build, "make_sound", counted)
    made = make(classes, tmp_path / "tasks", sound=SoundOptions((8000, 16000)))
    assert made.found >= 7
    assert len(calls) == 20 - made.found
    assert contents(made.folder) == contents(whole.folder)
    calls.clear()
    assert make(classes, tmp_path / "tasks", sound=SoundOptions((8000, 16000))).found == 20
    assert calls == []


def test_killed_while_the_task_is_assembled(classes, tmp_path, interrupted):
    whole = make(classes, tmp_path / "whole")
    interrupted(classes, tmp_path / "tasks")
    assert not (tmp_path / "tasks" / "mine-v1-full").exists()
    made = make(classes, tmp_path / "tasks")
    assert made.found == 20
    assert contents(made.folder) == contents(whole.folder)


def test_files_that_changed_are_made_anew(classes, tmp_path, interrupted):
    interrupted(classes, tmp_path / "tasks")
    sound(classes / "cat" / "cat0.wav", 4242, samples=1000)
    made = make(classes, tmp_path / "tasks")
    assert made.found == 19
    path = next(made.folder.glob(f"{RATE}/*/cat0.wav"))
    assert path.read_bytes() == (classes / "cat" / "cat0.wav").read_bytes()


def test_what_a_run_left_that_was_killed_when_the_task_was_made_is_removed(
    classes, tmp_path, interrupted
):
    make(classes, tmp_path / "whole")
    interrupted(classes, tmp_path / "tasks")
    (tmp_path / "whole" / "mine-v1-full").rename(tmp_path / "tasks" / "mine-v1-full")
    work = tmp_path / "tasks" / ".mine-v1-full.making"
    with Job(work, read_state(work / ".job" / "made_of.json")).claim("part"):
        make(classes, tmp_path / "tasks")
    assert (work / "sounds").is_dir()  # of a run that is at work
    make(classes, tmp_path / "tasks")
    assert os.listdir(tmp_path / "tasks") == ["mine-v1-full"]


def test_another_task_is_replaced_only_by_force(classes, tmp_path):
    first = make(classes, tmp_path / "tasks")
    before = contents(first.folder)
    with pytest.raises(OptionError, match="--force"):
        make(classes, tmp_path / "tasks", splits=SplitOptions(folds=4))
    assert contents(first.folder) == before
    made = make(classes, tmp_path / "tasks", splits=SplitOptions(folds=4), force=True)
    assert read_task(made.folder).splits == ("fold00", "fold01", "fold02", "fold03")
    assert os.listdir(tmp_path / "tasks") == ["mine-v1-full"]
    (tmp_path / "other" / "mine-v1-full").mkdir(parents=True)
    with pytest.raises(OptionError, match="is no task"):
        make(classes, tmp_path / "other", force=True)


def test_two_processes_make_the_same(classes, tmp_path):
    one = make(classes, tmp_path / "one", sound=SoundOptions((8000,)))
    two = make(classes, tmp_path / "two", sound=SoundOptions((8000,)), jobs=2)
    assert contents(one.folder) == contents(two.folder)


def test_two_runs_of_one_plan_end_as_one(classes, tmp_path):
    """The second one begins when the first has made a part, and finishes the task."""
    whole = make(classes, tmp_path / "whole")
    plan = plan_task(classes, TaskOptions("mine"))
    second = []

    def meanwhile(done, total):
        if 0 < done < total and not second:
            second.append(make(classes, tmp_path / "tasks"))

    first = make_task(plan, tmp_path / "tasks", jobs=1, progress=meanwhile)
    assert (first.folder, first.notes) == (second[0].folder, second[0].notes)
    assert 0 < second[0].found < 20
    assert contents(first.folder) == contents(whole.folder)
    assert os.listdir(tmp_path / "tasks") == ["mine-v1-full"]


def test_a_run_of_other_rates_does_not_disturb_one_that_is_at_work(classes, tmp_path):
    plan = plan_task(classes, TaskOptions("mine", sound=SoundOptions((RATE,))))
    job = Job(tmp_path / "tasks" / ".mine-v1-full.making", build._made_of(plan))
    job.begin()
    with job.claim("part"), pytest.raises(OptionError, match="Another run is at work"):
        make(classes, tmp_path / "tasks", sound=SoundOptions((8000,)))
    assert make(classes, tmp_path / "tasks", sound=SoundOptions((8000,))).found == 0


def test_a_run_whose_job_was_begun_anew_says_so(classes, tmp_path):
    def meanwhile(done, total):
        if 0 < done < total:
            Job(tmp_path / "tasks" / ".mine-v1-full.making", {"source": ""}).begin(force=True)

    plan = plan_task(classes, TaskOptions("mine"))
    with pytest.raises(OptionError, match=r"Another run has meanwhile .*Run again"):
        make_task(plan, tmp_path / "tasks", jobs=1, progress=meanwhile)


@pytest.mark.parametrize(("rate", "found"), [(RATE, 19), (8000, 0)])
def test_what_version_0_1_0_left_is_gone_on_with(classes, tmp_path, interrupted, rate, found):
    """It kept a journal, whose last line a kill cut short; sounds of other rates are no use."""
    whole = make(classes, tmp_path / "whole", sound=SoundOptions((rate,)))
    interrupted(classes, tmp_path / "tasks")
    work = tmp_path / "tasks" / ".mine-v1-full.making"
    lines = []
    for note in (work / ".job" / "done").iterdir():
        for file, facts in json.loads(note.read_text())["record"]["sounds"].items():
            path = work / "sounds" / str(RATE) / f"{build._stem(file)}{facts['suffix']}"
            sizes = {str(RATE): path.stat().st_size}
            lines.append(json.dumps({"file": file, **facts, "sizes": sizes}))
    (work / "sounds.jsonl").write_text("\n".join(lines)[:-5])
    (work / "plan.json").write_bytes((work / ".job" / "made_of.json").read_bytes())
    (work / "lock").touch()
    shutil.rmtree(work / ".job")
    made = make(classes, tmp_path / "tasks", sound=SoundOptions((rate,)))
    assert made.found == found
    assert contents(made.folder) == contents(whole.folder)
    assert os.listdir(tmp_path / "tasks") == ["mine-v1-full"]


# --- the command ----------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, ["make-task", *map(str, arguments)])


def test_command_makes_what_hear_eval_takes(flat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(MODULES))
    options = (
        flat,
        "--name",
        "words",
        "--pattern",
        "{label}_{speaker}_{}",
        "--group-by",
        "speaker",
        "--metric",
        "top1_acc,mAP",
        "--rates",
        "8000,16000",
    )
    dry = run(*options, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert not (tmp_path / "tasks").exists()
    done = run(*options)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(Path("tasks", "words-v1-full"))
    assert done.stdout == dry.stdout
    assert run(*options).stdout == done.stdout
    scored = CliRunner().invoke(
        app, ["--module", "logmel", "--grid", "faster", "--grid-points", "1"]
    )
    assert scored.exit_code == 0, scored.output
    assert "words-v1-full" in scored.stdout
    facts = json.loads(run(*options, "--json").stdout)
    assert facts["splits"] == {"train": 4, "valid": 4, "test": 4}
    assert facts["classes"]["no"] == {"train": 2, "valid": 2, "test": 2}


@pytest.mark.parametrize("place", [".", "tasks", "cat/tasks", "../sounds"])
def test_command_refuses_tasks_among_the_recordings(classes, tmp_path, monkeypatch, place):
    monkeypatch.chdir(classes)
    before = contents(classes)
    for _ in range(2):
        done = run(".", "--name", "mine", "--tasks-dir", place)
        assert isinstance(done.exception, OptionError)
        assert f"Give --tasks-dir another folder, such as {tmp_path / 'tasks'}" in str(
            done.exception
        )
    assert contents(classes) == before
    assert run(".", "--name", "mine", "--tasks-dir", "../tasks").exit_code == 0
    assert run(".", "--name", "mine", "--tasks-dir", "../tasks").exit_code == 0


def test_command_shows_labels_as_they_are(tmp_path):
    labels = ("[laughter]", "[b]", ":dog:")
    for seed, label in enumerate(labels):
        for i in range(3):
            sound(tmp_path / "s" / label / f"{label}{i}.wav", 3 * seed + i)
    rows = [f"{label}/{label}{i}.wav,{label}" for label in labels for i in range(3)]
    rows += [f"[b]/[b]{i}.wav,[/b]" for i in range(3)]
    listed = table(tmp_path / "l.csv", ["file,label", *rows])
    done = run(tmp_path / "s", "--csv", listed, "--name", "s", "--tasks-dir", tmp_path / "tasks")
    assert done.exit_code == 0, done.output
    assert {*labels, "[/b]"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shares", "a"], "--shares is 'a'"),
        (["--rates", "8k"], "--rates is '8k'"),
        (["--columns", "file"], "--columns has 'file'"),
        (["--metric", "top1"], "Did you mean 'top1_acc'"),
        (["--metric", "MAE"], "is of localisation tasks"),
        (["--name", "../up"], "must begin with a letter"),
        (["--jobs", "0"], "jobs is 0"),
        (["--csv", "none.csv"], "none.csv cannot be read"),
    ],
)
def test_command_refuses(classes, tmp_path, options, message):
    done = run(classes, "--tasks-dir", tmp_path / "tasks", *options)
    assert done.exit_code == 1
    assert message in str(done.exception)
    assert not (tmp_path / "tasks").exists()
