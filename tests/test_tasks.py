"""HEAR task directories: what is read, what order rows have, and what every fault is called."""

import json
import random

import hear_tasks
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_hear.errors import TaskError
from gram_hear.tasks import RESAMPLED, Task, describe_tasks, find_tasks, read_task

METADATA = hear_tasks.METADATA | {"sample_duration": 1.0, "splits": ["train", "valid", "test"]}
EVENT = {"label": "low", "start": 10, "end": 20.5}


DEEP = "[" * 5000 + "]" * 5000


def write_changed(folder, metadata=(), splits=(), vocabulary="idx,label\n0,low\n1,high\n"):
    """Write a task of two files a split, with changes: text as it is, None for no file.

    The metadata's "absent" takes a key away.
    """
    names = METADATA["splits"]
    hear_tasks.write_task(
        folder, {s: {f"{s}_0.wav": ["low"], f"{s}_1.wav": ["high"]} for s in names}
    )
    kept = {k: v for k, v in (METADATA | dict(metadata)).items() if v != "absent"}
    changes = {f"{split}.json": content for split, content in dict(splits).items()}
    changes |= {"task_metadata.json": kept, "labelvocabulary.csv": vocabulary}
    for file, content in changes.items():
        if content is None:
            (folder / file).unlink(missing_ok=True)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / file).write_text(text)
    return folder


@pytest.fixture
def make_task(tmp_path):
    """Return a function: :func:`write_changed` in a fresh folder, or the one of this name."""

    def make(name="beeps-v1-full", **changes):
        return write_changed(tmp_path / "tasks" / name, **changes)

    return make


# --- what is read ---------------------------------------------------------------------------


def test_a_task_is_read(make_task):
    folder = make_task()
    task = read_task(folder)
    assert isinstance(task, Task)
    assert (task.folder, task.name) == (folder, "beeps-v1-full")
    assert task.metadata == METADATA
    assert task.labels == ("low", "high")
    assert task.splits == ("train", "valid", "test")
    assert (task.kind, task.embedding_type, task.prediction_type) == (
        "scene",
        "scene",
        "multiclass",
    )
    assert (task.sample_duration, task.split_mode, task.folds) == (1.0, "trainvaltest", False)
    assert task.evaluation == ("top1_acc",)
    assert task.annotations("train") == {"train_0.wav": ["low"], "train_1.wav": ["high"]}
    assert task.annotations("train") is task.annotations("train")


def test_labels_are_strings_in_the_order_of_idx(make_task):
    vocabulary = "idx,label\n1,48\n0,60\n2,a b\n"
    splits = {"train": {"a.wav": [48], "b.wav": ["a b"]}, "valid": {"c.wav": [60]}}
    splits["test"] = {"d.wav": ["48"]}
    task = read_task(make_task(splits=splits, vocabulary=vocabulary))
    assert task.labels == ("60", "48", "a b")
    assert task.annotations("train") == {"a.wav": ["48"], "b.wav": ["a b"]}
    assert task.raw_annotations("train") == {"a.wav": [48], "b.wav": ["a b"]}


def test_multilabel_files_may_have_any_number_of_labels(make_task):
    splits = {"train": {"a.wav": [], "b.wav": ["high", "low"]}}
    task = read_task(make_task(metadata={"prediction_type": "multilabel"}, splits=splits))
    assert task.annotations("train") == {"a.wav": [], "b.wav": ["high", "low"]}


def test_events(make_task):
    splits = {name: {f"{name}.wav": [EVENT], "b.wav": []} for name in METADATA["splits"]}
    metadata = {"embedding_type": "event", "prediction_type": "multilabel", "sample_duration": None}
    task = read_task(make_task(metadata=metadata, splits=splits))
    assert (task.kind, task.sample_duration) == ("event", None)
    assert task.annotations("test")["test.wav"] == [{"label": "low", "start": 10.0, "end": 20.5}]
    assert task.annotations("test")["b.wav"] == []


@pytest.mark.parametrize("vocabulary", [None, "idx,label\n0,x\n"])
def test_localisation_is_recognised_by_its_floats(make_task, vocabulary):
    splits = {name: {"a.wav": [1, 0, 0], "b.wav": [0.5, -1, 0.0]} for name in METADATA["splits"]}
    metadata = {"prediction_type": "multilabel"}
    task = read_task(make_task(metadata=metadata, splits=splits, vocabulary=vocabulary))
    assert task.kind == "localisation"
    assert task.labels == (() if vocabulary is None else ("x",))
    assert task.annotations("test") == {"a.wav": [1.0, 0.0, 0.0], "b.wav": [0.5, -1.0, 0.0]}


def test_three_numbers_that_are_labels_are_no_direction(make_task):
    splits = {name: {"a.wav": [60, 64, 67]} for name in METADATA["splits"]}
    vocabulary = "idx,label\n0,60\n1,64\n2,67\n"
    metadata = {"prediction_type": "multilabel"}
    task = read_task(make_task(metadata=metadata, splits=splits, vocabulary=vocabulary))
    assert task.kind == "scene"
    assert task.annotations("train")["a.wav"] == ["60", "64", "67"]


@pytest.mark.parametrize("named", [True, False])
def test_folds_are_named_by_the_metadata_or_the_files(make_task, named):
    folds = ["fold02", "fold00", "fold01"]
    splits = {fold: {f"{fold}.wav": ["low"]} for fold in folds}
    splits |= dict.fromkeys(METADATA["splits"])
    metadata = {"split_mode": "new_split_kfold", "splits": folds if named else "absent"}
    task = read_task(make_task(metadata=metadata, splits=splits))
    assert task.folds
    assert list(task.splits) == (folds if named else sorted(folds))


def test_splits_default_to_train_valid_test(make_task):
    assert read_task(make_task(metadata={"splits": "absent"})).splits == ("train", "valid", "test")


# --- the order of rows ----------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=3, max_size=3), asked=st.permutations(range(3)))
def test_one_shuffle_goes_through_all_splits(tmp_path_factory, counts, asked):
    names = METADATA["splits"]
    splits = {
        name: {f"{i}.wav": ["low"] for i in range(n)} for name, n in zip(names, counts, strict=True)
    }
    task = read_task(write_changed(tmp_path_factory.mktemp("order"), splits=splits))
    orders = {names[i]: task.row_files(names[i]) for i in asked}  # in whatever order one asks
    generator = random.Random(0)
    for name in names:
        expected = list(splits[name])
        generator.shuffle(expected)
        assert orders[name] == expected


def test_the_order_is_that_of_the_kit(kit):
    task = read_task(kit / "esc10events-v1-full")
    for split in task.splits:
        rows = json.loads((task.folder / f"{split}.filename-timestamps.json").read_text())
        files = dict.fromkeys(path.rsplit("/", 1)[1] for path, _ in rows)
        assert task.row_files(split) == list(files)


# --- audio ----------------------------------------------------------------------------------


def test_rates_and_missing_files(make_task):
    folder = make_task()
    task = read_task(folder)
    assert task.rates() == []
    for rate, split, file in ((48000, "train", "train_0.wav"), (16000, "test", "test_1.wav")):
        path = task.audio(split, file, rate)
        assert path == folder / str(rate) / split / file
        path.parent.mkdir(parents=True)
        path.touch()
    (folder / "16000" / RESAMPLED).touch()
    (folder / "22050").touch()  # no folder
    assert task.rates() == [16000, 48000]
    assert task.source_rates() == [48000]
    names = [str(path.relative_to(folder)) for path in task.missing(48000)]
    assert names == [
        "48000/train/train_1.wav",
        *(f"48000/{split}/{split}_{i}.wav" for split in ("valid", "test") for i in range(2)),
    ]
    assert len(task.missing(32000)) == 6


# --- faults ---------------------------------------------------------------------------------

EVENTS = {"embedding_type": "event", "prediction_type": "multilabel"}
MULTILABEL = {"prediction_type": "multilabel"}
FAULTS = {
    "no vocabulary": ({"vocabulary": None}, ["labelvocabulary.csv"]),
    "other columns": ({"vocabulary": "index,name\n0,low\n"}, ["idx,label", "index"]),
    "empty vocabulary": ({"vocabulary": "idx,label\n"}, ["no labels"]),
    "idx from 1": ({"vocabulary": "idx,label\n1,low\n2,high\n"}, ["0 to 1", "'2'"]),
    "idx twice": ({"vocabulary": "idx,label\n0,low\n0,high\n"}, ["0 to 1"]),
    "label twice": ({"vocabulary": "idx,label\n0,low\n1,low\n"}, ["'low' twice"]),
    "label missing": ({"vocabulary": "idx,label\n0,low\n1\n"}, ["idx 1 has no label"]),
    "key missing": ({"metadata": {"split_mode": "absent"}}, ["split_mode", "presplit_kfold"]),
    "embedding_type": (
        {"metadata": {"embedding_type": "scenes"}},
        ["task_metadata.json", "embedding_type", "'scenes'", "scene, event", "mean 'scene'"],
    ),
    "prediction_type": (
        {"metadata": {"prediction_type": ["multiclass"]}},
        ["prediction_type", "multiclass, multilabel"],
    ),
    "split_mode": ({"metadata": {"split_mode": "kfold"}}, ["split_mode", "'kfold'"]),
    "duration": ({"metadata": {"sample_duration": 0}}, ["sample_duration is 0", "null"]),
    "duration text": ({"metadata": {"sample_duration": "1.0"}}, ["sample_duration is '1.0'"]),
    "no metric": ({"metadata": {"evaluation": []}}, ["evaluation", "at least one"]),
    "splits twice": ({"metadata": {"splits": ["train", "train"]}}, ["splits", "each once"]),
    "split elsewhere": ({"metadata": {"splits": ["../train"]}}, ["'../train'"]),
    "no test": ({"metadata": {"splits": ["train", "valid"]}}, ["needs test too"]),
    "two folds": (
        {"metadata": {"split_mode": "presplit_kfold", "splits": ["train", "valid"]}},
        ["2 folds", "at least 3"],
    ),
    "no split file": ({"splits": {"valid": None}}, ["valid.json"]),
    "no JSON": ({"splits": {"train": "{"}}, ["train.json is no JSON"]),
    "a list": ({"splits": {"train": "[]"}}, ["train.json", "object"]),
    "number of 5,000 digits": (
        {"splits": {"test": '{"a.wav": [' + "9" * 5000 + "]}"}},
        ["test.json", "5,000 digits"],
    ),
    "nested": ({"splits": {"test": f'{{"a.wav": {DEEP}}}'}}, ["test.json", "nested deeper than"]),
    "duration of years": (
        {"metadata": {"sample_duration": 1e9}},
        ["sample_duration is 1000000000"],
    ),
    "long split": ({"metadata": {"splits": ["x" * 250]}}, ["splits has 'xxx", "name of a file"]),
    "file with NUL": ({"splits": {"test": {"a\0b": ["low"]}}}, ["test.json", "control characters"]),
    "long file": ({"splits": {"test": {"x" * 300: ["low"]}}}, ["test.json", "255 bytes"]),
    "long label": ({"splits": {"test": {"a.wav": ["x" * 10**6]}}}, ["a.wav has the label 'xxx"]),
    "too many labels": (
        {"vocabulary": "idx,label\n" + "".join(f"{i},x{i}\n" for i in range(2**16 + 1))},
        ["labelvocabulary.csv lists more than 65536 labels"],
    ),
    "no files": ({"splits": {"valid": {}}}, ["valid.json names no file"]),
    "file twice": (
        {"splits": {"test": '{"a": ["low"], "a": []}'}},
        ["test.json", "'a' stands twice"],
    ),
    "file elsewhere": ({"splits": {"test": {"../a": ["low"]}}}, ["'../a'", "without folders"]),
    "unknown label": (
        {"splits": {"test": {"a.wav": ["hihg"]}}},
        ["test.json: a.wav", "'hihg'", "(2 labels)", "mean 'high'"],
    ),
    "two labels": ({"splits": {"test": {"a.wav": ["low", "high"]}}}, ["a.wav has 2", "multilabel"]),
    "no label": ({"splits": {"test": {"a.wav": []}}}, ["a.wav has 0 labels"]),
    "no list": ({"splits": {"test": {"a.wav": "low"}}}, ["a.wav has 'low'", "list"]),
    "no events": (
        {"metadata": EVENTS, "splits": {"train": {"a.wav": ["low"]}}},
        ["a.wav", "['low']", "list of events"],
    ),
    "event without end": (
        {"metadata": EVENTS, "splits": {"train": {"a.wav": [{"label": "low", "start": 1}]}}},
        ["a.wav", "without end"],
    ),
    "event backwards": (
        {"metadata": EVENTS, "splits": {"train": {"a.wav": [EVENT | {"end": 5}]}}},
        ["a.wav", "from 10 to 5 ms"],
    ),
    "event at NaN": (
        {"metadata": EVENTS, "splits": {"train": {"a.wav": [EVENT | {"start": float("nan")}]}}},
        ["a.wav", "nan", "finite"],
    ),
    "event of years": (
        {"metadata": EVENTS, "splits": {"train": {"a.wav": [EVENT | {"end": 1e12}]}}},
        ["a.wav", "at most 86400000"],
    ),
    "event label": (
        {"metadata": EVENTS, "splits": {"train": {"a.wav": [EVENT | {"label": "lo"}]}}},
        ["'lo'", "mean 'low'"],
    ),
    "direction of two": (
        {"metadata": MULTILABEL, "splits": {"train": {"a.wav": [0.5, 1]}}},
        ["a.wav", "three finite numbers"],
    ),
    "direction NaN": (
        {"metadata": MULTILABEL, "splits": {"train": {"a.wav": [0.5, 1, float("nan")]}}},
        ["a.wav", "three finite numbers"],
    ),
    "direction zero": (
        {"metadata": MULTILABEL, "splits": {"train": {"a.wav": [0.0, 0, 0]}}},
        ["a.wav", "nowhere"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_say_what_and_where(make_task, fault):
    changes, words = FAULTS[fault]
    folder = make_task(**changes)

    def read_all():
        task = read_task(folder)
        for split in task.splits:
            task.annotations(split)

    with pytest.raises(TaskError) as caught:
        read_all()
    for word in (*words, str(folder)):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_directions_of_whole_numbers_are_explained(make_task):
    splits = {name: {"a.wav": [1, 0, 0], "b.wav": [0, -1, 0]} for name in METADATA["splits"]}
    folder = make_task(metadata=MULTILABEL, splits=splits, vocabulary=None)
    message = r"no .*labelvocabulary\.csv.* train\.json are directions.*\[1\.0, 0\.0, 0\.0\]"
    with pytest.raises(TaskError, match=message):
        read_task(folder)
    with pytest.raises(TaskError, match=r"as idx,label\.$"):
        read_task(make_task("labels", vocabulary=None))


def test_no_metadata(tmp_path):
    with pytest.raises(TaskError, match=r"There is no .*task_metadata\.json; a HEAR task is"):
        read_task(tmp_path)


def test_metadata_is_no_utf8(make_task):
    folder = make_task()
    (folder / "task_metadata.json").write_bytes(b"\xff")
    with pytest.raises(TaskError, match="is no JSON"):
        read_task(folder)


def test_an_unknown_split(make_task):
    with pytest.raises(TaskError, match=r"no split 'val'; .* Did you mean 'valid'"):
        read_task(make_task()).annotations("val")


# --- finding --------------------------------------------------------------------------------


def test_tasks_are_found_by_name(make_task, tmp_path):
    names = ["beeps-v1-full", "esc50-v2.0.0-full", "fsd50k-v1.0-full", "mae-v3-10h", "mae-v3-5h"]
    folders = [make_task(name) for name in names]
    tasks_dir = tmp_path / "tasks"
    (tasks_dir / "notes").mkdir()
    assert find_tasks(tasks_dir) == find_tasks(tasks_dir, ["all"]) == folders
    found = find_tasks(tasks_dir, ["fsd50k", "beeps-v1", "fsd50k-v1.0-full"])
    assert found == [folders[2], folders[0]]
    with pytest.raises(TaskError, match="mae-v3-10h, mae-v3-5h"):
        find_tasks(tasks_dir, ["mae"])
    with pytest.raises(TaskError, match=r"no task 'beep'; there are beeps-.* mean 'beeps'"):
        find_tasks(tasks_dir, ["beep"])


def test_no_tasks(make_task, tmp_path):
    with pytest.raises(TaskError, match="no folder"):
        find_tasks(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="holds no HEAR task"):
        find_tasks(tmp_path / "empty")
    with pytest.raises(TaskError, match="is a task itself"):
        find_tasks(make_task())


def test_tasks_are_described_with_their_faults(make_task, tmp_path):
    good = make_task("a-v1-full")
    for i in range(2):
        path = good / "48000" / "train" / f"train_{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")
    make_task("b-v1-full", metadata={"embedding_type": "scenes"})
    make_task("c-v1-full", splits={"valid": "{", "test": {"a.wav": ["mid"]}})
    described = describe_tasks(tmp_path / "tasks")
    assert described[0] == {
        "name": "a-v1-full",
        "type": "scene, multiclass",
        "metrics": ["top1_acc"],
        "splits": {"train": 2, "valid": 2, "test": 2},
        "sample_duration": 1.0,
        "rates": [48000],
        "made": [],
        "missing": {48000: 4},
        "empty": [],
        "faults": ["4 of 6 audio files are there at no sample rate, such as test/test_0.wav."],
    }
    assert described[1]["name"] == "b-v1-full"
    assert "'scenes'" in described[1]["faults"][0]
    assert described[2]["splits"] == {"train": 2, "test": 1}
    assert ["valid.json" in fault for fault in described[2]["faults"]] == [True, False, False]
    assert "'mid'" in described[2]["faults"][1]
    assert "has no audio" in described[2]["faults"][2]


def test_clips_without_samples_are_named(make_task, tmp_path):
    """By their size or by their header, at any rate that was not made."""
    folder = make_task()
    for split in METADATA["splits"]:
        for i in range(2):
            path = folder / "48000" / split / f"{split}_{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.zeros(10), 48000)
    assert describe_tasks(tmp_path / "tasks")[0]["faults"] == []
    soundfile.write(folder / "48000" / "valid" / "valid_1.wav", np.zeros(0), 48000)
    (folder / "48000" / "test" / "test_0.wav").write_bytes(b"")
    (found,) = describe_tasks(tmp_path / "tasks")
    assert found["empty"] == ["valid/valid_1.wav", "test/test_0.wav"]
    (fault,) = found["faults"]
    assert "2 of 6 clips hold no samples: valid/valid_1.wav, test/test_0.wav. " in fault
    assert "--empty-clips" in fault

    # A recorder that never wrote how much there is: sound follows, so it must not be left out.
    path = folder / "48000" / "valid" / "valid_1.wav"
    soundfile.write(path, np.zeros(4800), 48000, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:40] + b"\0\0\0\0" + path.read_bytes()[44:])
    assert soundfile.info(path).frames == 0
    assert describe_tasks(tmp_path / "tasks")[0]["empty"] == ["test/test_0.wav"]


def test_a_task_without_some_files(make_task):
    task = read_task(make_task())
    kept = task.without({"train": ["train_0.wav"]})
    assert kept.annotations("train") == {"train_1.wav": ["high"]}
    assert kept.annotations("valid") == task.annotations("valid")
    assert len(task.annotations("train")) == 2
    with pytest.raises(TaskError, match="no clip of test that holds samples"):
        task.without({"test": ["test_0.wav", "test_1.wav"]})


def test_rates_that_were_made_and_files_that_are_nowhere(make_task, tmp_path):
    """A file may be there at any rate: the others are made from it."""
    folder = make_task()
    task = read_task(folder)
    files = [(split, file) for split in task.splits for file in task.annotations(split)]

    def place(rate, some):
        for split, file in some:
            path = task.audio(split, file, rate)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"sound")

    place(48000, files[:3])
    place(44100, files[3:5])
    place(16000, files[:1])
    (folder / "16000" / RESAMPLED).touch()
    (found,) = describe_tasks(tmp_path / "tasks")
    assert (found["rates"], found["made"]) == ([16000, 44100, 48000], [16000])
    assert found["missing"] == {16000: 5, 44100: 4, 48000: 3}
    split, file = files[5]
    assert found["faults"] == [
        f"1 of 6 audio files are there at no sample rate, such as {split}/{file}."
    ]
    place(44100, files[5:])
    assert describe_tasks(tmp_path / "tasks")[0]["faults"] == []
