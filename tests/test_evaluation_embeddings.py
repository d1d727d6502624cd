"""Embeddings of tasks: the kit's layout, broken runs, memory, rates, channels, and reading."""

import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hear_tasks import write_task
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_hear.audio.files import resample
from gram_hear.config import EMBEDDINGS
from gram_hear.errors import AudioError, ModuleError, OptionError, TaskError
from gram_hear.evaluation.embed import embed_task as embedding_run
from gram_hear.evaluation.embed import hear_module as module_module
from gram_hear.evaluation.embed.embed_task import embed_task, is_embedded
from gram_hear.evaluation.embed.embeddings import (
    DONE,
    PREDICTED,
    PROGRESS,
    SplitEmbeddings,
    event_labels,
)
from gram_hear.evaluation.embed.hear_module import load_model
from gram_hear.evaluation.embed.task_audio import TaskAudio
from gram_hear.jobs.job import STATE
from gram_hear.tasks import RESAMPLED, read_task

pytestmark = pytest.mark.slow

MODULES = Path(__file__).parent / "data" / "hear_modules"
SPLITS = ("train", "valid", "test")
RATE = 16000


@pytest.fixture(autouse=True)
def modules_are_found(monkeypatch):
    """The modules of the tests can be imported, here and in what the tests start."""
    monkeypatch.syspath_prepend(MODULES)
    monkeypatch.setenv("PYTHONPATH", str(MODULES), prepend=os.pathsep)


def write_noise(folder, lengths, channels=1, kind="scene", duration=None, seed=0, **options):
    """Write a task whose splits have files of these lengths in samples; noise, as 16 bits."""
    generator = np.random.default_rng(seed)
    shapes = [(length, channels) if channels > 1 else length for length in lengths]
    sounds = (generator.uniform(-0.5, 0.5, shape) for shape in itertools.cycle(shapes))
    annotation = {
        "scene": lambda i: [7] if i % 2 else ["high"],
        "event": lambda i: [{"label": 7, "start": 40.0 * i, "end": 120.0 + 40 * i}] * (i % 3 > 0),
        "localisation": lambda i: [0.5, float(i), -1.0],
    }[kind]
    metadata = {
        "embedding_type": "event" if kind == "event" else "scene",
        "prediction_type": "multiclass" if kind == "scene" else "multilabel",
        "sample_duration": duration,
        "evaluation": ["event_onset_200ms_fms" if kind == "event" else "top1_acc"],
    }
    splits = {s: {f"{s}_{i}.wav": annotation(i) for i in range(len(lengths))} for s in SPLITS}
    options |= {"labels": (7, "high"), "sound": lambda annotation: next(sounds)}
    return read_task(write_task(folder, splits, **options, **metadata))


@pytest.fixture
def make_task(tmp_path):
    """Return a function: :func:`write_noise` in ``tasks``."""
    return lambda lengths, name="noise-v1-full", **options: write_noise(
        tmp_path / "tasks" / name, lengths, **options
    )


def opened(folder, split):
    return SplitEmbeddings(read_task(folder), split)


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}")


def unpickle(path):
    with open(path, "rb") as file:
        return PlainUnpickler(file).load()


def contents(folder, *patterns):
    """The bytes of the files that hold results."""
    patterns = patterns or ("*.npy", "*dimensions.json", "*labels.*", "*timestamps.json")
    return {
        p.name: p.read_bytes() for pattern in patterns for p in folder.glob(pattern) if p.is_file()
    }


def one_by_one(task, split, name="faulty"):
    """A plain reference: each file read and embedded alone, in the order of the rows."""
    module = load_model(name, device="cpu")
    vectors, files, times = [], [], []
    for file in task.row_files(split):
        audio, _ = soundfile.read(task.audio(split, file, module.sample_rate), dtype="float32")
        if task.embedding_type == "scene":
            vectors.append(module.scenes(audio[None]))
        else:
            rows, milliseconds = module.timestamps(audio[None])
            vectors.append(rows[0])
            files += [file] * len(rows[0])
            times += milliseconds[0].tolist()
    return np.concatenate(vectors), files, times


# --- what is written ------------------------------------------------------------------------

LENGTHS = [8000, 5000, 8000, 8000, 5000, 12345, 8000]


def test_scenes_are_written_as_the_kit_does(make_task, tmp_path):
    task = make_task(LENGTHS)
    out = embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")
    assert out == tmp_path / "e" / "noise-v1-full"
    copies = ["task_metadata.json", "labelvocabulary.csv", *(f"{s}.json" for s in SPLITS)]
    for name in copies:
        assert (out / name).read_bytes() == (task.folder / name).read_bytes()
    for split in SPLITS:
        assert json.loads((out / f"{split}.embedding-dimensions.json").read_text()) == [7, 4]
        raw = np.fromfile(out / f"{split}.embeddings.npy", np.float32).reshape(7, 4)
        np.testing.assert_allclose(raw, one_by_one(task, split)[0], rtol=0, atol=1e-6)
        labels = [task.raw_annotations(split)[file] for file in task.row_files(split)]
        assert unpickle(out / f"{split}.target-labels.pkl") == labels
        assert json.loads((out / f"{split}.target-labels.json").read_text()) == labels
        np.testing.assert_array_equal(opened(out, split).vectors, raw)
        assert opened(out, split).labels == [[str(each) for each in row] for row in labels]
    assert not [p for p in out.iterdir() if "partial" in p.name or p.name in (PROGRESS, STATE)]
    done = json.loads((out / DONE).read_text())
    assert (done["module"], done["options"], done["files"]) == ("faulty", {}, 21)
    assert {"torch", "python", "gram-hear"} <= set(done["versions"])


def test_events_are_written_as_the_kit_does(make_task, tmp_path):
    task = make_task(LENGTHS, kind="event")
    out = embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")
    for split in SPLITS:
        vectors, files, times = one_by_one(task, split)
        np.testing.assert_allclose(opened(out, split).vectors, vectors, rtol=0, atol=1e-6)
        found_files, milliseconds = opened(out, split).files, opened(out, split).milliseconds
        assert found_files == files
        np.testing.assert_array_equal(milliseconds, times)
        labels = [
            [e["label"] for e in task.raw_annotations(split)[file] if e["start"] <= t <= e["end"]]
            for file, t in zip(files, times, strict=True)
        ]
        assert any(labels)
        assert unpickle(out / f"{split}.target-labels.pkl") == labels
        assert opened(out, split).labels == [[str(each) for each in row] for row in labels]
    assert not list(out.glob("*.partial"))


def test_directions(make_task, tmp_path):
    task = make_task([800] * 3, kind="localisation")
    out = embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")
    expected = [task.annotations("test")[file] for file in task.row_files("test")]
    assert opened(out, "test").labels == expected
    assert unpickle(out / "test.target-labels.pkl") == expected


def test_progress_is_told(make_task, tmp_path):
    told = []
    module = load_model("faulty", device="cpu")
    task = make_task([80000] * 15)
    embed_task(task, module, tmp_path / "e", progress=lambda *pair: told.append(pair))
    assert told == [(done, 45) for done in (0, 12, 15, 27, 30, 42, 45)]  # 12 x 5 s are a batch


def test_what_is_done_is_not_done_again(make_task, tmp_path):
    task = make_task([800] * 2)
    module = load_model("faulty", device="cpu")
    out = embed_task(task, module, tmp_path / "e")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    calls = len(module.module.CALLS)
    assert embed_task(task, module, tmp_path / "e") == out
    assert len(module.module.CALLS) == calls
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_clips_of_one_length_share_batches(make_task, tmp_path):
    module = load_model("faulty", device="cpu")
    embed_task(make_task(LENGTHS), module, tmp_path / "e")
    assert sorted(module.module.CALLS) == sorted([(4, 8000), (2, 5000), (1, 12345)] * 3)


def test_clips_of_another_length_than_the_task_says(make_task, tmp_path):
    task = make_task([8000, 8000, 7000], duration=0.5)
    with pytest.warns(UserWarning, match=r"3 of 9 clips are not 0\.5 s long.* 0\.4375 s") as caught:
        out = embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")
    assert len(caught) == 1
    vectors = one_by_one(task, "test")[0]
    np.testing.assert_allclose(opened(out, "test").vectors, vectors, rtol=0, atol=1e-6)


# --- broken runs ----------------------------------------------------------------------------

RUN = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from gram_hear.evaluation.embed import embed_task
from gram_hear.evaluation.embed.hear_module import load_model
from gram_hear.tasks import read_task
embed_task.BATCH_SECONDS = 1.0
task, folder, log, pause, kill_after = sys.argv[1:]
options = {"log": log, "pause": float(pause), "kill_after": int(kill_after)}
module = load_model("faulty", device="cpu", options=options)
module.options.clear()
embed_task.embed_task(read_task(Path(task)), module, Path(folder))
"""


def run(task, folder, log, pause=0.0, kill_after=0):
    arguments = [str(each) for each in (task.folder, folder, log, pause, kill_after)]
    return subprocess.Popen([sys.executable, "-P", "-c", RUN, *arguments])


def embedded(log):
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def wait_for_text(log):
    while not embedded(log):
        time.sleep(0.01)


@pytest.mark.parametrize(("kind", "shares"), [("scene", [0.5]), ("event", [0.25, 0.5])])
def test_a_killed_run_goes_on_to_the_same_numbers(make_task, tmp_path, kind, shares, monkeypatch):
    task = make_task([8000, 5000, 8000, 8000, 5000, 12345, 8000] * 2, kind=kind)
    module = load_model("faulty", device="cpu")
    log = tmp_path / "log"
    monkeypatch.setattr(embedding_run, "BATCH_SECONDS", 1.0)
    whole = embed_task(task, module, tmp_path / "whole")
    batches = len(module.module.CALLS)
    out = tmp_path / "killed" / task.name
    for share in shares:
        process = run(task, tmp_path / "killed", log, kill_after=int(share * batches))
        assert process.wait() == -signal.SIGKILL
        assert (out / STATE).is_dir()
        assert not (out / DONE).exists()
        for path in out.glob("*.embeddings.npy"):
            assert path.read_bytes() == (whole / path.name).read_bytes()
        with pytest.raises(TaskError, match="not finished"):
            _ = opened(out, "train").vectors
    before = embedded(log)
    module.module.CALLS.clear()
    embed_task(task, module, tmp_path / "killed")
    assert contents(out) == contents(whole)
    assert len(contents(out)) == (15 if kind == "event" else 12)
    # Only the batch that was under way is done twice.
    again = before + sum(shape[0] for shape in module.module.CALLS) - 42
    assert 0 < again <= 2 * len(shares)


def interrupt_after(calls):
    def progress(done, total):
        if done >= calls:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("kind", ["scene", "event"])
def test_rows_that_somebody_took_away_are_made_again(make_task, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(embedding_run, "BATCH_SECONDS", 1.0)
    task = make_task([8000] * 5, kind=kind)
    module = load_model("faulty", device="cpu")
    whole = embed_task(task, module, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        embed_task(task, module, tmp_path / "e", progress=interrupt_after(2))
    out = tmp_path / "e" / task.name
    next((out / STATE / "rows").iterdir()).unlink()
    embed_task(task, module, tmp_path / "e")
    assert contents(out) == contents(whole)


def test_a_run_is_not_taken_over_with_other_audio(make_task, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_run, "BATCH_SECONDS", 1.0)
    task = make_task([8000] * 5)
    module = load_model("faulty", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        embed_task(task, module, tmp_path / "e", progress=interrupt_after(2))
    soundfile.write(task.audio("test", "test_0.wav", RATE), np.zeros(9000), RATE)
    with pytest.raises(TaskError, match="audio of noise-v1-full has changed"):
        embed_task(task, module, tmp_path / "e")


@pytest.mark.parametrize("broken_off", [True, False])
@pytest.mark.parametrize("change", ["module", "options", "task"])
def test_other_embeddings_are_not_overwritten(make_task, tmp_path, change, broken_off):
    task = make_task([8000] * 3)
    progress = interrupt_after(1) if broken_off else None
    try:
        embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e", progress=progress)
    except KeyboardInterrupt:
        assert broken_off
    other = load_model("logmel" if change == "module" else "faulty", device="cpu")
    if change == "options":
        other = load_model("faulty", options={"largest": 3}, device="cpu")
    if change == "task":
        (task.folder / "test.json").write_text('{"test_0.wav": ["high"]}')
        task = read_task(task.folder)
    before = contents(tmp_path / "e" / task.name, "*")
    with pytest.raises(TaskError, match=rf"the {change}.* changed since.*delete it, or choose"):
        embed_task(task, other, tmp_path / "e")
    assert contents(tmp_path / "e" / task.name, "*") == before


SMALL = """
import torch
from faulty import get_scene_embeddings, get_timestamp_embeddings, load_model
"""


def test_embeddings_of_a_module_that_was_edited(make_task, tmp_path, monkeypatch):
    task = make_task([8000] * 2)
    monkeypatch.syspath_prepend(tmp_path)

    def embed(code, **options):
        (tmp_path / "edited.py").write_text(code)
        monkeypatch.delitem(sys.modules, "edited", raising=False)  # as in a process of its own
        embed_task(task, load_model("edited", device="cpu"), tmp_path / "e", **options)

    embed(SMALL)
    embed(SMALL)
    other = SMALL + "# another version\n"
    changed = (
        r"holds other embeddings: the code of edited has changed since "
        r"\([0-9a-f]{8} there, [0-9a-f]{8} now\)\. Use --force to embed again"
    )
    with pytest.raises(TaskError, match=changed):
        embed(other)
    embed(other, force=True)
    embed(other)


def test_forced_embeddings_replace_others_and_their_scores(make_task, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_run, "BATCH_SECONDS", 1.0)
    task = make_task([8000] * 3)
    old, new = (load_model(name, device="cpu") for name in ("logmel", "faulty"))
    out = embed_task(task, old, tmp_path / "e")
    for name in (PREDICTED, "test.predicted-scores.json"):
        (out / name).write_text("{}")
    before = contents(out, "*")
    assert embed_task(task, old, tmp_path / "e", force=True) == out  # these are right as they are
    assert contents(out, "*") == before
    assert is_embedded(task, old, tmp_path / "e", force=True)
    assert not is_embedded(task, new, tmp_path / "e", force=True)
    with pytest.raises(TaskError, match="other embeddings: the module has changed since"):
        is_embedded(task, new, tmp_path / "e")
    with pytest.raises(KeyboardInterrupt):
        embed_task(task, new, tmp_path / "e", progress=interrupt_after(2), force=True)
    new.module.CALLS.clear()
    embed_task(task, new, tmp_path / "e", force=True)  # goes on with what it began
    assert len(new.module.CALLS) == 5  # of six batches
    assert is_embedded(task, new, tmp_path / "e")
    assert not (out / PREDICTED).exists()
    assert contents(out) == contents(embed_task(task, new, tmp_path / "fresh"))


def test_the_code_of_a_module(tmp_path, monkeypatch):
    """A file alone counts by itself; of a package all its source counts, and nothing else."""
    package = tmp_path / "packaged" / "deep"
    package.mkdir(parents=True)
    (tmp_path / "alone.py").write_text(SMALL)
    (tmp_path / "packaged" / "__init__.py").write_text("")
    (package / "module.py").write_text(SMALL)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "module.py").write_text(SMALL)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("alone", "packaged.deep.module", "folder.module")

    def codes():
        return [load_model(name, device="cpu").code for name in names]

    first = codes()
    assert first[0] == hashlib.sha256(SMALL.encode()).hexdigest() == first[2]
    (tmp_path / "packaged" / "notes.txt").write_text("nothing")
    assert codes() == first
    (tmp_path / "packaged" / "other.py").write_text("x = 1")
    second = codes()
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True]
    (tmp_path / "alone.py").write_text(SMALL + "#")
    assert codes()[0] != first[0]


@pytest.mark.filterwarnings("ignore:gram-tiny-untrained is untrained")
def test_gram_hear_is_told_by_its_version_and_weights(tmp_path):
    named = load_model("gram_hear", "gram-tiny-untrained", device="cpu")
    # Versions between which default embeddings change are others, whatever they are called.
    code = f"gram-hear {version('gram-hear')}, embeddings {EMBEDDINGS}"
    assert (named.code, named.weights) == (code, "")
    path = tmp_path / "model.safetensors"
    named.module.save_model(named.model, path)
    loaded = load_model("gram_hear", str(path), device="cpu")
    assert loaded.weights == hashlib.sha256(path.read_bytes()).hexdigest() == loaded.model_digest


@pytest.mark.parametrize("change", ["content", "name", "file"])
def test_a_model_folder_is_told_by_what_it_holds(make_task, tmp_path, change):
    folder = tmp_path / "My.model"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights.bin").write_bytes(b"1")
    first = load_model("faulty", str(folder), device="cpu")
    assert re.fullmatch(r"faulty-model=my-model-[0-9a-f]{8}", first.folder_name)
    assert load_model("faulty", f"{folder}/", device="cpu").folder_name == first.folder_name
    if change == "content":
        (folder / "deep" / "weights.bin").write_bytes(b"2")
    elif change == "name":
        (folder / "deep" / "weights.bin").rename(folder / "deep" / "other.bin")
    else:
        (folder / "config.json").write_text("{}")
    assert load_model("faulty", str(folder), device="cpu").weights != first.weights


def test_a_model_file_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(b"1")
    module = load_model("faulty", str(tmp_path), device="cpu")

    def refuse(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module_module, "open", refuse, raising=False)
    with pytest.raises(ModuleError, match=r"weights\.bin cannot be read: Permission denied"):
        _ = module.folder_name


def test_embeddings_of_unknown_origin_are_not_overwritten(make_task, tmp_path):
    task = make_task([800])
    out = tmp_path / "e" / task.name
    out.mkdir(parents=True)
    (out / "train.embeddings.npy").touch()
    with pytest.raises(TaskError, match="what made them; delete it"):
        embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")


def test_done_but_incomplete(make_task, tmp_path):
    task = make_task([800])
    module = load_model("faulty", device="cpu")
    out = embed_task(task, module, tmp_path / "e")
    (out / "valid.embeddings.npy").unlink()
    with pytest.raises(TaskError, match=r"valid\.embeddings\.npy is missing"):
        embed_task(task, module, tmp_path / "e")


def test_the_task_itself_is_no_place_for_embeddings(make_task, tmp_path):
    task = make_task([800])
    with pytest.raises(TaskError, match="is the task itself"):
        embed_task(task, load_model("faulty", device="cpu"), tmp_path / "tasks")
    (tmp_path / "file").touch()
    with pytest.raises(TaskError, match="cannot be made"):
        embed_task(task, load_model("faulty", device="cpu"), tmp_path / "file")


def test_a_full_disk(make_task, tmp_path, monkeypatch):
    task = make_task([8000] * 3)
    module = load_model("faulty", device="cpu")

    def refuse(self, *arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embedding_run._TaskRun, "_write_rows", refuse)
        with pytest.raises(TaskError, match=r"No space left on device\. What is done is kept"):
            embed_task(task, module, tmp_path / "e")
    out = embed_task(task, module, tmp_path / "e")
    assert (out / DONE).is_file()
    assert not (out / STATE).exists()


# --- several runs, and older ones -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scene", "event"])
def test_two_runs_share_a_task(make_task, tmp_path, monkeypatch, kind):
    """Each part is made once, by either; the result is that of one run."""
    monkeypatch.setattr(embedding_run, "BATCH_SECONDS", 1.0)
    task = make_task([3000] * 20, kind=kind)
    module = load_model("faulty", device="cpu")
    whole = embed_task(task, module, tmp_path / "whole")
    log = tmp_path / "log"
    other = run(task, tmp_path / "shared", log, pause=0.2)
    wait_for_text(log)
    module.module.CALLS.clear()
    out = embed_task(task, module, tmp_path / "shared")
    assert other.wait() == 0
    here = sum(shape[0] for shape in module.module.CALLS)
    assert (here + embedded(log), here > 0) == (60, True)
    assert contents(out) == contents(whole)
    assert not (out / STATE).exists()


@pytest.mark.slow
def test_a_part_of_a_run_that_is_killed_is_made_by_the_one_that_waits(
    make_task, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding_run, "BATCH_SECONDS", 1.0)
    task = make_task([3000] * 8)
    module = load_model("faulty", device="cpu")
    whole = embed_task(task, module, tmp_path / "whole")
    log = tmp_path / "log"
    other = run(task, tmp_path / "shared", log, pause=60)
    wait_for_text(log)
    threading.Timer(0.5, other.kill).start()
    out = embed_task(task, module, tmp_path / "shared")
    assert other.wait() == -signal.SIGKILL
    assert contents(out) == contents(whole)
    assert not (out / STATE).exists()


@pytest.mark.slow
def test_what_another_run_is_writing_is_not_replaced(make_task, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_run, "BATCH_SECONDS", 1.0)
    task = make_task([3000] * 8)
    log = tmp_path / "log"
    other = run(task, tmp_path / "e", log, pause=60)
    wait_for_text(log)
    module = load_model("logmel", device="cpu")
    with pytest.raises(OptionError, match="Another run is at work"):
        embed_task(task, module, tmp_path / "e", force=True)
    other.kill()
    other.wait()
    embed_task(task, module, tmp_path / "e", force=True)
    assert is_embedded(task, module, tmp_path / "e")


def test_what_version_0_1_0_left_unfinished_is_gone_on_with(make_task, tmp_path):
    """Its whole splits stay as they are; others are begun anew."""
    task = make_task([800] * 4)
    module = load_model("faulty", device="cpu")
    whole = embed_task(task, module, tmp_path / "whole")
    out = tmp_path / "e" / task.name
    shutil.copytree(whole, out)
    done = json.loads((out / DONE).read_text())
    (out / DONE).unlink()
    splits = {split: {"files": 4 * (split == "train"), "rows": 0} for split in SPLITS}
    progress = {**done, "budget": 1000, "splits": splits}
    (out / PROGRESS).write_text(json.dumps(progress))
    for name in ("valid.embeddings", "test.embeddings"):
        (out / f"{name}.npy").unlink()
        (out / f"{name}.partial").write_bytes(b"half")
    (out / embedding_run.OLD_LOCK).write_text(json.dumps({"pid": 1, "host": "gone"}))
    with pytest.raises(TaskError, match="not finished"):
        _ = opened(out, "train").vectors
    module.module.CALLS.clear()
    embed_task(task, module, tmp_path / "e")
    assert len(module.module.CALLS) == 2
    assert contents(out, "*").keys() == contents(whole, "*").keys()
    assert contents(out) == contents(whole)


def test_what_another_module_left_unfinished_in_version_0_1_0_is_named(make_task, tmp_path):
    task = make_task([800])
    out = tmp_path / "e" / task.name
    out.mkdir(parents=True)
    (out / PROGRESS).write_text('{"module": "logmel"}')
    with pytest.raises(TaskError, match="other embeddings: the module has changed since"):
        embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")
    (out / PROGRESS).write_text("[]")
    with pytest.raises(TaskError, match=r"other embeddings: .* given as \[\]"):
        embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")


@pytest.mark.parametrize("content", ["", "[1]", '{"module": 1}'])
def test_a_state_that_says_nothing_is_begun_anew(make_task, tmp_path, monkeypatch, content):
    monkeypatch.setattr(embedding_run, "BATCH_SECONDS", 1.0)
    task = make_task([8000] * 3)
    module = load_model("faulty", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        embed_task(task, module, tmp_path / "e", progress=interrupt_after(2))
    (tmp_path / "e" / task.name / STATE / "made_of.json").write_text(content)
    out = embed_task(task, module, tmp_path / "e")
    assert contents(out) == contents(embed_task(task, module, tmp_path / "whole"))


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scene", "event"])
@pytest.mark.parametrize("fault", ["memory", "cuda", ""])
def test_batches_are_halved_where_memory_is_short(make_task, tmp_path, kind, fault):
    task = make_task([8000] * 20, kind=kind)
    whole = embed_task(task, load_model("faulty", device="cpu"), tmp_path / "whole")
    module = load_model("faulty", options={"largest": 6, "fault": fault}, device="cpu")
    out = embed_task(task, module, tmp_path / "e")
    sizes = [shape[0] for shape in module.module.CALLS]
    assert sizes == [20, 10, *[5] * 12]  # tried, tried, and so it stays
    for split in SPLITS:
        np.testing.assert_allclose(
            opened(out, split).vectors, opened(whole, split).vectors, rtol=0, atol=1e-6
        )
    assert json.loads((out / DONE).read_text())["batch_samples"] == 5 * 8000


def test_a_broken_run_keeps_its_smaller_batches(make_task, tmp_path):
    task = make_task([8000] * 20)
    options = {"largest": 6}
    whole = embed_task(task, load_model("faulty", options=options, device="cpu"), tmp_path / "w")
    module = load_model("faulty", options=options, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        embed_task(task, module, tmp_path / "e", progress=interrupt_after(10))
    module.module.CALLS.clear()
    out = embed_task(task, module, tmp_path / "e")
    assert [shape[0] for shape in module.module.CALLS] == [5] * 8  # of 12: a part of 20 was done
    assert contents(out) == contents(whole)


def test_one_clip_is_too_much(make_task, tmp_path):
    class Full:
        name, device, options, model_path = "full", torch.device("cpu"), {}, ""
        model_digest = weights = code = ""
        sample_rate, scene_embedding_size, multichannel = RATE, 4, False

        def scenes(self, audio, names):
            raise MemoryError

    with pytest.raises(ModuleError, match=r"train_\d\.wav alone \(0\.5 s\)"):
        embed_task(make_task([8000] * 3), Full(), tmp_path / "e")


# --- rates ----------------------------------------------------------------------------------


def test_missing_rates_are_resampled_once(make_task, tmp_path):
    task = make_task([2205, 4410], rate=44100)
    highest = task.folder / "48000"
    for split in SPLITS:  # the highest rate counts, where it has the file
        (highest / split).mkdir(parents=True)
        audio = np.random.default_rng(1).uniform(-0.5, 0.5, 4801)
        soundfile.write(highest / split / f"{split}_0.wav", audio, 48000)
    module = load_model("faulty", device="cpu")
    out = embed_task(task, module, tmp_path / "e")
    made = task.folder / str(RATE)
    assert (made / RESAMPLED).is_file()
    assert task.rates() == [16000, 44100, 48000]
    assert task.source_rates() == [44100, 48000]
    for i, rate, samples in ((0, 48000, 1600), (1, 44100, 1600)):
        name = f"test_{i}.wav"
        audio, _ = soundfile.read(task.audio("test", name, rate), dtype="float32", always_2d=True)
        kept, kept_rate = soundfile.read(made / "test" / name, dtype="float32", always_2d=True)
        assert (kept_rate, len(kept)) == (RATE, samples)
        np.testing.assert_array_equal(kept, resample(audio, rate, RATE))
    for rate in (44100, 48000):  # now they are taken from there
        for path in (task.folder / str(rate)).rglob("*.wav"):
            changed = path.stat().st_mtime_ns
            path.write_bytes(b"")
            os.utime(path, ns=(changed, changed))
    again = embed_task(task, module, tmp_path / "again")
    assert contents(again) == contents(out)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_changed_source_is_resampled_again(make_task, tmp_path, hours):
    """Be it newer, or an older one that was put back."""
    task = make_task([4800, 4800], rate=48000)
    module = load_model("faulty", device="cpu")
    embed_task(task, module, tmp_path / "e")
    source, kept = (task.audio("test", "test_0.wav", rate) for rate in (48000, RATE))
    before = {path: path.read_bytes() for path in (task.folder / str(RATE)).rglob("*.wav")}
    changed = source.stat().st_mtime_ns
    audio = np.random.default_rng(7).uniform(-0.5, 0.5, 4800)
    soundfile.write(source, audio, 48000)
    os.utime(source, ns=(changed, changed + hours * 3600 * 10**9))
    again = embed_task(task, module, tmp_path / "again")
    audio, _ = soundfile.read(source, dtype="float32", always_2d=True)
    made, _ = soundfile.read(kept, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(made, resample(audio, 48000, RATE))
    row = task.row_files("test").index("test_0.wav")
    assert opened(again, "test").vectors[row, 0] == pytest.approx(made.mean(), abs=1e-6)
    after = {path: path.read_bytes() for path in before}
    assert {path for path in before if before[path] != after[path]} == {kept}
    assert (
        TaskAudio(task, RATE).clip_files("test")[row].rate == RATE
    )  # now it is what it was made of


def test_without_its_source_resampled_audio_is_used(make_task, tmp_path):
    task = make_task([4800], rate=48000)
    module = load_model("faulty", device="cpu")
    out = embed_task(task, module, tmp_path / "e")
    shutil.rmtree(task.folder / "48000")
    assert contents(embed_task(task, module, tmp_path / "again")) == contents(out)


def test_resampled_audio_is_no_source(make_task, tmp_path):
    """48 kHz that was made of 16 kHz must not be what 22.05 kHz is made of."""
    task = make_task([1600], rate=16000)
    TaskAudio(task, 48000).load("train", TaskAudio(task, 48000).clip_files("train")[0])
    assert task.rates() == [16000, 48000]
    assert TaskAudio(task, 22050).clip_files("train")[0].rate == 16000


def test_b_format_is_handed_over_in_ambix(make_task, b_format, write_wavex):
    task = make_task([32000], rate=32000, channels=4)
    for split, path in zip(SPLITS, (*b_format, b_format[0]), strict=True):
        (task.folder / "32000" / split / f"{split}_0.wav").write_bytes(path.read_bytes())
    for rate in (32000, 16000):
        audio = TaskAudio(task, rate)
        first, second, _ = (audio.load(split, audio.clip_files(split)[0]) for split in SPLITS)
        assert first.shape == (rate, 4)
        assert np.array_equal(first, second)
    write_wavex(task.folder / "32000" / SPLITS[0] / f"{SPLITS[0]}_0.wav", first, mask=0x33)
    with pytest.raises(AudioError, match="4 channels are for loudspeakers"):
        TaskAudio(task, 32000).clip_files(SPLITS[0])


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 3000),
    rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]),
    new_rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]),
)
def test_the_length_of_resampled_audio_is_known_before(samples, rate, new_rate):
    audio = np.ones((samples, 2), dtype=np.float32)
    exact = samples * new_rate / rate
    assert resample(audio, rate, new_rate).shape == (max(1, int(exact + 0.5)), 2)


def test_a_task_that_cannot_be_written(make_task, tmp_path, monkeypatch):
    task = make_task([4800, 9600], rate=48000)
    module = load_model("faulty", device="cpu")

    def refuse(path, *arguments, **options):
        if path.is_relative_to(task.folder):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    real = Path.mkdir
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.warns(UserWarning, match="cannot be kept .*Permission denied") as caught:
            out = embed_task(task, module, tmp_path / "e")
    assert len(caught) == 1
    assert task.rates() == [48000]
    assert contents(embed_task(task, module, tmp_path / "kept")) == contents(out)
    assert task.rates() == [16000, 48000]


def test_a_folder_of_the_user_is_not_filled_up(make_task, tmp_path):
    task = make_task([1600, 1600])
    for split in SPLITS:
        target = task.folder / "48000" / split
        target.mkdir(parents=True)
        file = f"{split}_0.wav"
        audio, _ = soundfile.read(task.audio(split, file, RATE))
        soundfile.write(target / file, resample(audio[:, None], RATE, 48000), 48000)
        task.audio(split, file, RATE).unlink()
    embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")
    assert not task.audio("test", "test_0.wav", RATE).exists()


def test_a_wrong_rate_is_named(make_task, tmp_path):
    task = make_task([800, 800])
    path = task.audio("valid", "valid_1.wav", RATE)
    soundfile.write(path, np.zeros(800), 22050)
    with pytest.raises(AudioError, match=r"valid_1\.wav has a sample rate of 22050 Hz; .* 16000"):
        embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")


def test_missing_and_broken_audio(make_task, tmp_path):
    task = make_task([800] * 6)
    module = load_model("faulty", device="cpu")
    task.audio("test", "test_3.wav", RATE).write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"test_3\.wav could not be read as sound"):
        embed_task(task, module, tmp_path / "e")
    soundfile.write(task.audio("test", "test_3.wav", RATE), np.zeros(0), RATE)
    with pytest.raises(AudioError, match=r"1 of 18 clips holds no samples: test/test_3\.wav"):
        embed_task(task, module, tmp_path / "e1")
    silence = np.full(800, np.nan)
    soundfile.write(task.audio("test", "test_3.wav", RATE), silence, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"test_3\.wav holds NaN"):
        embed_task(task, module, tmp_path / "e2")
    for i in range(5):
        task.audio("test", f"test_{i}.wav", RATE).unlink()
    with pytest.raises(TaskError, match=r"5 of 6 audio files of test are missing: .* and 2 more"):
        embed_task(task, module, tmp_path / "e3")


# --- clips without samples ------------------------------------------------------------------


@pytest.fixture
def with_empty_clips(make_task):
    """A task of four clips in each split, of which two hold no samples."""
    task = make_task([8000, 5000, 8000, 3000])
    soundfile.write(task.audio("train", "train_1.wav", RATE), np.zeros(0), RATE)
    task.audio("test", "test_2.wav", RATE).write_bytes(b"")
    return task


def test_clips_without_samples_are_an_error_before_anything_is_embedded(with_empty_clips, tmp_path):
    module = load_model("faulty", device="cpu")
    with pytest.raises(AudioError) as caught:
        embed_task(with_empty_clips, module, tmp_path / "e")
    for words in (
        "2 of 12 clips hold no samples: train/train_1.wav, test/test_2.wav.",
        "skip",
        "zero",
    ):
        assert words in str(caught.value)
    assert module.module.CALLS == []
    assert not list((tmp_path / "e").rglob("*.json"))


def test_clips_without_samples_can_be_left_out(with_empty_clips, make_task, tmp_path):
    """The embeddings, labels and order are those of a task that never named them."""
    module = load_model("faulty", device="cpu")
    with pytest.warns(
        UserWarning,
        match=r"2 of 12 clips hold no samples: train/train_1\.wav, test/test_2\.wav.*left out",
    ):
        out = embed_task(with_empty_clips, module, tmp_path / "e", empty_clips="skip")
    other = tmp_path / "without" / with_empty_clips.name
    shutil.copytree(with_empty_clips.folder, other)
    for split, file in (("train", "train_1.wav"), ("test", "test_2.wav")):
        files = json.loads((other / f"{split}.json").read_text())
        del files[file]
        (other / f"{split}.json").write_text(json.dumps(files))
    expected = embed_task(read_task(other), module, tmp_path / "e2")
    assert contents(out) == contents(expected)
    assert opened(out, "train").labels == opened(expected, "train").labels
    done = json.loads((out / DONE).read_text())
    assert (done["empty_clips"], done["empty_files"]) == (
        "skip",
        ["train/train_1.wav", "test/test_2.wav"],
    )
    assert is_embedded(with_empty_clips, module, tmp_path / "e", empty_clips="skip")


def test_silence_can_stand_for_clips_without_samples(with_empty_clips, tmp_path):
    module = load_model("faulty", device="cpu")
    with pytest.warns(UserWarning, match="1 s of silence is embedded for each"):
        out = embed_task(with_empty_clips, module, tmp_path / "e", empty_clips="zero")
    assert (1, RATE) in module.module.CALLS
    row = with_empty_clips.row_files("train").index("train_1.wav")
    rows = opened(out, "train").vectors
    assert (rows[row] == 0).all()
    assert (np.delete(rows, row, axis=0) != 0).any(axis=1).all()
    assert json.loads((out / DONE).read_text())["empty_clips"] == "zero"


def test_choices_about_clips_without_samples_are_not_mixed(with_empty_clips, make_task, tmp_path):
    module = load_model("faulty", device="cpu")
    with pytest.warns(UserWarning, match="left out"):
        embed_task(with_empty_clips, module, tmp_path / "e", empty_clips="skip")
    for other in ("zero", "error"):
        with pytest.raises(TaskError, match=rf"--empty-clips has .* .'skip' there, '{other}' now"):
            embed_task(with_empty_clips, module, tmp_path / "e", empty_clips=other)
    whole = make_task([800, 800], name="whole-v1-full")  # where none is empty, nothing differs
    embed_task(whole, module, tmp_path / "e")
    assert is_embedded(whole, module, tmp_path / "e", empty_clips="skip")


def test_a_rate_that_no_sound_has(make_task, tmp_path):
    task = make_task([800] * 2, rate=10)
    with pytest.raises(AudioError, match=r"train_0\.wav states a sample rate of 10 Hz"):
        embed_task(task, load_model("faulty", device="cpu"), tmp_path / "e")


# --- channels -------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "shape"), [("channels", (3, 4, 800)), ("", (3, 800, 4))])
def test_several_channels(make_task, tmp_path, fault, shape):
    task = make_task([800] * 3, channels=4)
    module = load_model("faulty", options={"fault": fault}, device="cpu")
    out = embed_task(task, module, tmp_path / "e")
    assert list(module.module.CALLS) == [shape] * 3
    means = [
        soundfile.read(task.audio("test", file, RATE), dtype="float32")[0].mean()
        for file in task.row_files("test")
    ]
    np.testing.assert_allclose(opened(out, "test").vectors[:, 0], means, rtol=0, atol=1e-6)


def test_mono_and_stereo_files_in_one_task(make_task, tmp_path):
    task = make_task([800] * 4)
    for split in SPLITS:
        path = task.audio(split, f"{split}_1.wav", RATE)
        soundfile.write(path, np.zeros((800, 2)), RATE)
    module = load_model("faulty", options={"fault": "channels"}, device="cpu")
    embed_task(task, module, tmp_path / "e")
    assert sorted(module.module.CALLS) == sorted([(3, 800), (1, 2, 800)] * 3)


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tonepitch-v1-full", "fsdd-v1-full", "esc10events-v1-full"])
def test_directories_of_the_kit_are_read(kit, name):
    task = read_task(kit / name)
    for split in task.splits:
        rows, size = json.loads((kit / name / f"{split}.embedding-dimensions.json").read_text())
        embeddings = opened(kit / name, split).vectors
        assert embeddings.shape == (rows, size)
        assert embeddings.dtype == np.float32
        first = embeddings[0].copy()
        embeddings[0] = 0  # stays in memory
        assert np.array_equal(opened(kit / name, split).vectors[0], first)
        recorded = unpickle(kit / name / f"{split}.target-labels.pkl")
        assert [sorted(row) for row in SplitEmbeddings(task, split).labels] == [
            sorted(map(str, row)) for row in recorded
        ]


def test_timestamps_of_the_kit(kit):
    test = opened(kit / "esc10events-v1-full", "test")
    files, milliseconds = test.files, test.milliseconds
    assert files[:201] == ["mix_test_000.wav"] * 200 + ["mix_test_007.wav"]
    np.testing.assert_array_equal(milliseconds, np.tile(20 + 50.0 * np.arange(200), 12))


TIMES = st.integers(0, 40).map(lambda i: i * 12.5)


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["7", "high"]), TIMES, TIMES), max_size=8
    ),
    rows=st.lists(st.tuples(st.sampled_from("ab"), TIMES), min_size=1, max_size=30, unique=True),
)
def test_labels_hold_from_start_to_end(tmp_path_factory, events, rows):
    task = write_noise(tmp_path_factory.mktemp("labels") / "t", [1], kind="event")
    annotations = {"a": [], "b": []}
    for file, label, first, last in events:
        event = {"label": label, "start": min(first, last), "end": max(first, last)}
        annotations[file].append(event)
    (task.folder / "train.json").write_text(json.dumps(annotations))
    task = read_task(task.folder)
    plain = [
        [
            label
            for label in task.labels
            if any(
                event["label"] == label and event["start"] <= t < event["end"] + 0.0001
                for event in annotations[file]
            )
        ]
        for file, t in rows
    ]
    files, times = zip(*rows, strict=True)
    assert event_labels(task, "train", files, np.array(times)) == plain


@pytest.fixture
def embedded_task(make_task, tmp_path):
    """A finished directory, to be spoilt."""
    return lambda kind="scene": embed_task(
        make_task([1600] * 4, kind=kind), load_model("faulty", device="cpu"), tmp_path / "e"
    )


@pytest.mark.parametrize("kind", ["scene", "event"])
def test_nan_in_embeddings_names_the_files(embedded_task, kind):
    out = embedded_task(kind)
    embeddings = np.memmap(out / "test.embeddings.npy", np.float32, "r+").reshape(4, -1)
    embeddings[1, -1] = np.nan
    embeddings[2, 0] = np.inf
    embeddings.flush()
    order = read_task(out).row_files("test")
    with pytest.raises(TaskError, match=f"in 2 of .* rows, of {order[1]}, {order[2]}\\."):
        _ = opened(out, "test").vectors


def test_files_that_do_not_fit_the_rows(embedded_task):
    out = embedded_task()
    with open(out / "test.embeddings.npy", "ab") as file:
        file.write(b"\0" * 4)
    with pytest.raises(TaskError, match=r"has 68 bytes; 4 x 4 float32 values.* 64"):
        _ = opened(out, "test").vectors
    (out / "test.embeddings.npy").unlink()
    with pytest.raises(TaskError, match=r"There is no .*test\.embeddings\.npy"):
        _ = opened(out, "test").vectors
    (out / "test.embedding-dimensions.json").write_text("[5, 4]")
    with pytest.raises(TaskError, match=r"5 rows of test, and test\.json names 4 files"):
        _ = opened(out, "test").labels
    (out / "test.embedding-dimensions.json").write_text("[0, 4]")
    with pytest.raises(TaskError, match="rows, values of a row"):
        _ = opened(out, "test").vectors


@pytest.mark.parametrize("suffix", ["json", "pkl"])
def test_labels_in_another_order_are_refused(embedded_task, suffix):
    out = embedded_task()
    task = read_task(out)
    expected = SplitEmbeddings(task, "train").labels
    labels = json.loads((out / "train.target-labels.json").read_text())
    (out / "train.target-labels.json").unlink()
    assert SplitEmbeddings(task, "train").labels == expected  # from the pickle
    path = out / f"train.target-labels.{suffix}"
    labels = labels[::-1] if labels != labels[::-1] else [labels[0]] * 4
    path.write_bytes(pickle.dumps(labels) if suffix == "pkl" else json.dumps(labels).encode())
    with pytest.raises(TaskError, match="or in another order"):
        _ = SplitEmbeddings(task, "train").labels


def test_nothing_is_unpickled_but_lists(embedded_task, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    out = embedded_task()
    (out / "train.target-labels.json").unlink()
    (out / "train.target-labels.pkl").write_bytes(pickle.dumps([[Evil()]]))
    with pytest.warns(UserWarning, match="cannot be read as plain lists"):
        _ = opened(out, "train").labels
    assert not (tmp_path / "touched").exists()


def damaged(pickled, fault):
    """A pickle of lists that is cut, claims a giant frame, or holds a list in itself."""
    looped = []
    looped.append(looped)
    return {
        "cut": pickled[:-9],
        "frame": pickled[:3] + b"\xff" * 7 + b"\x0b" + pickled[11:-1],
        "text": pickled.replace(b"high", b"h\xb9gh"),
        "empty": b"",
        "no list": b"\x80\x04K\x01K\x01a.",
        "a list in itself": pickle.dumps(looped, protocol=4),
        "far memo": b"\x80\x04]r\xff\xff\xff\x7f" + pickled[11:-1],
    }[fault]


@pytest.mark.parametrize(
    "fault", ["cut", "frame", "text", "empty", "no list", "a list in itself", "far memo"]
)
def test_damaged_pickles_of_labels(embedded_task, fault):
    out = embedded_task()
    (out / "train.target-labels.json").unlink()
    path = out / "train.target-labels.pkl"
    path.write_bytes(damaged(path.read_bytes(), fault))
    with pytest.raises(TaskError, match=r"train\.target-labels\.pkl (is damaged|has other labels)"):
        _ = opened(out, "train").labels


@pytest.mark.parametrize("content", ["{}", "[[[]], 5]", "[1, 2, 3, 4]", '[["high"], null]'])
def test_labels_that_are_no_lists(embedded_task, content):
    out = embedded_task()
    (out / "train.target-labels.json").write_text(content)
    with pytest.raises(TaskError, match=r"train\.target-labels\.json has other labels"):
        _ = opened(out, "train").labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        (json.dumps([["a.wav", 1e12]] * 8), "beyond 86400000"),
        ('[["a.wav", 1.0]]', "holds 1 timestamps; there are 8 rows"),
        (json.dumps([["a.wav"]] * 8), "must hold .file, milliseconds. for each row"),
        (json.dumps([["a.wav", "x"]] * 8), "must hold"),
        ('[["a.wav", NaN]' + ', ["a.wav", 1]' * 7 + "]", "not finite"),
        (json.dumps([["x/a.wav", 1.0]] * 8), "rows of a.wav, which test.json does not name"),
    ],
)
def test_broken_timestamps(embedded_task, content, message):
    out = embedded_task("event")
    (out / "test.filename-timestamps.json").write_text(content)
    with pytest.raises(TaskError, match=message):
        _ = opened(out, "test").labels


# --- modules --------------------------------------------------------------------------------


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text(
        (MODULES / "faulty.py").read_text() + "\nimport torch.nn as nn\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_model("beside", device="cpu").name == "beside"


MODULE_FAULTS = {
    "no module": ("no_such_module", "", {}, "There is no module 'no_such_module'; install it"),
    "a file": ("dir/faulty.py", "", {}, r"no module's name.*as dir\.faulty"),
    "no HEAR module": ("json", "", {}, r"json .* has no function load_model"),
    "its own error": ("faulty", "", {"fault": "load"}, "ValueError: the weights are of 1997"),
    "an unknown option": ("faulty", "w.pt", {"x": 1}, r"load_model\('w.pt', x=1\).*TypeError"),
    "a rate that is no int": ("faulty", "", {"fault": "rate"}, r"sample_rate = 16000\.0 \(float\)"),
    "no size": ("faulty", "", {"fault": "no size"}, "no attribute scene_embedding_size"),
}


@pytest.mark.parametrize("case", MODULE_FAULTS)
def test_modules_that_cannot_be_loaded(case):
    name, path, options, message = MODULE_FAULTS[case]
    with pytest.raises(ModuleError, match=message):
        load_model(name, path, options, device="cpu")


@pytest.mark.parametrize(
    "error",
    [
        "zipfile.BadZipFile('x')",
        "struct.error('x')",
        "zlib.error('x')",
        "lzma.LZMAError('x')",
        "tarfile.ReadError('x')",
        "subprocess.CalledProcessError(1, 'x')",
        "StopIteration('x')",
        "type('LibraryError', (Exception,), {})('x')",
        "type('Silent', (Exception,), {'__str__': lambda self: 1 / 0})('x')",
        "RecursionError('x')",
        "MemoryError('x')",
        "SystemExit(0)",
    ],
)
def test_errors_of_any_library_are_explained(tmp_path, monkeypatch, error):
    name = error.split(".")[0] if "." in error else "builtins"
    (tmp_path / "failing.py").write_text(
        f"import {name}\ndef load_model(path=''): raise {error}\n"
        "get_scene_embeddings = get_timestamp_embeddings = load_model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    with pytest.raises(ModuleError, match=r"failing\.load_model\(\) failed: "):
        load_model("failing", device="cpu")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_thing", "imports 'no_such_thing', which is not there"),
        ("1 / 0", "Importing broken failed: ZeroDivisionError: division by zero"),
        ("def f(:", "Importing broken failed: SyntaxError"),
        ("import sys; sys.exit()", r"Importing broken failed: it called sys\.exit\(None\)"),
        ("class E(Exception): pass\nraise E('x')", "Importing broken failed: E: x"),
    ],
)
def test_modules_that_cannot_be_imported(tmp_path, monkeypatch, code, message):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleError, match=message):
        load_model("broken")


def test_tensorflow_is_refused(tmp_path, monkeypatch):
    """A type that says it is TensorFlow's stands for TensorFlow, which is not installed here."""
    (tmp_path / "of_tensorflow.py").write_text(
        "class Module: pass\n"
        "Module.__module__ = 'tensorflow.python.module'\n"
        "def load_model(path=''): return Module()\n"
        "get_scene_embeddings = get_timestamp_embeddings = load_model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleError, match="Module of TensorFlow; only modules of PyTorch"):
        load_model("of_tensorflow")


def test_a_device_that_is_not_there():
    for device in ("tpu9", "meta"):
        with pytest.raises(OptionError, match=f"'{device}' is not available"):
            load_model("faulty", device=device)


@pytest.mark.parametrize(
    ("fault", "scene", "event"),
    [
        ("raise", "failed with audio .2, 16000.: KeyError: 'conv1.weight'", "KeyError"),
        ("NaN", "NaN or infinite values for b.wav", "NaN or infinite values for b.wav"),
        ("integer", r"torch\.int64 embeddings; they must be float32", r"torch\.int64"),
        ("numpy", r"returned numpy\.ndarray; it must be a torch\.Tensor", r"numpy\.ndarray"),
        ("n", r"shape \(1, 4\); expected was \(2, 4\): 2 clips", r"shape \(1, 20, 3\)"),
        ("d", "model's scene_embedding_size is 4", "model's timestamp_embedding_size is 3"),
        ("rank", r"shape \(1, 2, 4\)", r"shape \(1, 2, 20, 3\); expected was \(2, t, 3\)"),
        ("no pair", None, "must return two tensors"),
        ("times shape", None, r"timestamps of shape \(2, 19\); expected was \(2, 20\)"),
        ("decreasing", None, "do not increase: 950 ms is followed by 900 ms"),
        ("negative", None, "first timestamp of -25 ms"),
        ("differing", None, "other timestamps for clip 1"),
    ],
)
def test_results_that_break_the_api(fault, scene, event):
    module = load_model("faulty", options={"fault": fault}, device="cpu")
    audio = np.random.default_rng(0).uniform(-1, 1, (2, 16000)).astype(np.float32)
    for call, message in ((module.scenes, scene), (module.timestamps, event)):
        if message is not None:
            with pytest.raises(ModuleError, match=message):
                call(audio, ["a.wav", "b.wav"])


def test_float64_is_taken_with_one_warning():
    module = load_model("faulty", options={"fault": "double"}, device="cpu")
    audio = np.zeros((2, 1600), dtype=np.float32)
    with pytest.warns(UserWarning, match=r"torch\.float64 embeddings"):
        assert module.scenes(audio).dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.scenes(audio).dtype == np.float32


def test_timestamps_in_seconds_are_warned_of():
    """Their events would all fall into the first frames."""
    module = load_model("faulty", options={"fault": "seconds"}, device="cpu")
    with pytest.warns(UserWarning, match=r"look like seconds .*clip of 2 s is 1\.95\)"):
        module.timestamps(np.zeros((2, 2 * RATE), dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for samples in (2 * RATE, 1600, 900):
            load_model("faulty", device="cpu").timestamps(np.zeros((1, samples), np.float32))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("sample_rate", 10**12), ("sample_rate", 1), ("scene_embedding_size", 10**12)],
)
def test_numbers_of_a_model_that_cannot_be(monkeypatch, attribute, value):
    faulty = load_model("faulty", device="cpu").module
    monkeypatch.setattr(faulty.Model, attribute, value)
    with pytest.raises(ModuleError, match=rf"has {attribute} = {value} .*it must be an int from"):
        load_model("faulty", device="cpu")


def test_no_gradients_are_recorded(monkeypatch):
    module = load_model("faulty", device="cpu")
    enabled = []

    def embed(audio, model):
        enabled.append(torch.is_grad_enabled())
        return torch.zeros(len(audio), 4)

    monkeypatch.setattr(module.module, "get_scene_embeddings", embed)
    module.scenes(np.zeros((2, 10), dtype=np.float32))
    assert enabled == [False]


def test_folders_are_named_as_the_kit_does(tmp_path, monkeypatch):
    assert load_model("faulty", device="cpu").folder_name == "faulty"
    options = {"kill_after": 3, "log": "A b/Ü.txt", "pause": 0.5}
    named = load_model("faulty", options=options, device="cpu").folder_name
    assert named == "faulty-kill-after=3-log=a-b-u-txt-pause=0-5"
    weights = tmp_path / "My weights.pt"
    weights.write_bytes(b"1")
    first = load_model("faulty", str(weights), device="cpu").folder_name
    assert first == "faulty-model=my-weights-6b86b273"  # SHA-256 of "1"
    weights.write_bytes(b"2")
    assert load_model("faulty", str(weights), device="cpu").folder_name != first
    assert load_model("faulty", "tiny-2", device="cpu").folder_name == "faulty-model=tiny-2"
    names = {load_model("faulty", p, device="cpu").folder_name for p in ("a/m", "b/m", "m")}
    assert len(names) == 3
    long = [load_model("faulty", options={"log": "x" * 300 + e}, device="cpu") for e in "ab"]
    assert [len(module.folder_name) for module in long] == [120, 120]
    assert long[0].folder_name != long[1].folder_name
