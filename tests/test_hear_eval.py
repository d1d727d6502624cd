"""The hear-eval command, end to end: a tiny task, a small module, and everything that breaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from gram_hear.errors import GramError, OptionError
from gram_hear.evaluation.commands import app, make_plan, parse_options
from gram_hear.evaluation.lock import locked

MODULES = Path(__file__).parent / "data" / "hear_modules"
RATE = 16000
TASK = "beeps-v1-full"
SPLITS = {"train": 24, "valid": 12, "test": 12}
PITCHES = {"low": 300, "high": 2000}


def write_task(folder, audio=True):
    """Write a task of short beeps, low or high, in noise."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    metadata = {
        "task_name": "beeps",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "sample_duration": 0.2,
        "split_mode": "trainvaltest",
        "evaluation": ["top1_acc"],
        "splits": list(SPLITS),
    }
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,low\n1,high\n")
    for split, count in SPLITS.items():
        labels = {f"{split}{i}.wav": list(PITCHES)[i % 2] for i in range(count)}
        (folder / f"{split}.json").write_text(json.dumps({k: [v] for k, v in labels.items()}))
        if audio:
            (folder / str(RATE) / split).mkdir(parents=True)
        for name, label in labels.items() if audio else ():
            time = np.arange(RATE // 5) / RATE
            sound = 0.3 * np.sin(2 * np.pi * PITCHES[label] * time + random.uniform(0, 6))
            sound += 0.01 * random.standard_normal(len(time))
            soundfile.write(folder / str(RATE) / split / name, sound, RATE)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with tasks/ in which one can be run; the modules of the tests are found."""
    write_task(tmp_path / "tasks" / TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(MODULES)
    monkeypatch.setenv("PYTHONPATH", str(MODULES))
    return tmp_path


def command(*arguments):
    """Run ``python -m gram_hear.evaluation`` in the current folder."""
    return subprocess.run(
        [sys.executable, "-m", "gram_hear.evaluation", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "200"},
    )


def evaluate(*arguments):
    """Run the command in this process; return the exit code, what it printed, and the error."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, (GramError, SystemExit)):
        raise result.exception
    error = result.exception if isinstance(result.exception, GramError) else None
    return (1 if error else result.exit_code), result.stdout, f"{result.stderr}{error or ''}"


QUICK = ("--module", "logmel", "--grid", "faster", "--grid-points", "2", "--device", "cpu")


def test_everything_in_one_command(place):
    first = command(*QUICK)
    assert first.returncode == 0, first.stderr
    assert "beeps" in first.stdout
    assert "top1_acc" in first.stdout
    assert "warning" not in first.stderr.lower()
    assert "Traceback" not in first.stderr
    folder = place / "embeddings" / "logmel"
    scores = json.loads((folder / TASK / "test.predicted-scores.json").read_text())
    assert scores["test"]["test_top1_acc"] > 0.8
    results = json.loads((folder / "results.json").read_text())
    assert results["module"] == "logmel"
    (result,) = results["results"]
    assert (result["task"], result["score"]) == (TASK, scores["test"]["test_score"])
    assert (result["grid"], result["grid_points"], result["seed"]) == ("faster", 2, 42)
    assert TASK in (folder / "results.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in (folder / TASK).iterdir()}
    second = command(*QUICK)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert "is predicted already" in second.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / TASK).iterdir()} == before


def test_another_seed_needs_force(place):
    assert evaluate(*QUICK)[0] == 0
    marker = place / "embeddings" / "logmel" / TASK / "prediction-done.json"
    code, stdout, stderr = evaluate(*QUICK, "--seed", "43")
    assert code == 1
    assert "--force" in stderr
    assert TASK in stdout  # the scores that are there are shown
    assert json.loads(marker.read_text())["seed"] == 42
    assert evaluate(*QUICK, "--seed", "43", "--force", "--shuffle")[0] == 0
    done = json.loads(marker.read_text())
    assert (done["seed"], done["shuffle"]) == (43, True)


def test_embedding_and_predicting_are_the_halves(place):
    code, stdout, _ = evaluate("embed", "logmel", "--task", "beeps", "--embeddings-dir", "made")
    assert (code, stdout) == (0, f"made/logmel/{TASK}\n")
    assert not list(place.glob("made/logmel/results.*"))
    code, stdout, _ = evaluate("predict", stdout.strip(), "--grid", "faster", "--grid-points", "2")
    assert code == 0
    assert TASK in stdout
    halves = json.loads((place / "made/logmel/results.json").read_text())["results"][0]
    assert evaluate(*QUICK)[0] == 0
    whole = json.loads((place / "embeddings/logmel/results.json").read_text())["results"][0]
    assert whole["scores"] == halves["scores"]


def test_a_broken_task_does_not_stop_the_others(place):
    write_task(place / "tasks" / "a-silent-v1-full", audio=False)
    broken = write_task(place / "tasks" / "broken-v1-full", audio=False)
    (broken / "labelvocabulary.csv").unlink()
    code, stdout, stderr = evaluate(*QUICK)
    assert code == 1
    assert TASK in stdout
    assert "silent" not in stdout
    assert "failed: a-silent-v1-full" in stderr
    assert "failed: broken-v1-full" in stderr
    assert "2 failed: a-silent-v1-full, broken-v1-full" in stderr
    results = json.loads((place / "embeddings/logmel/results.json").read_text())["results"]
    assert [each["task"] for each in results] == [TASK]
    assert not (place / "embeddings/logmel/a-silent-v1-full/prediction-done.json").exists()


def test_broken_embeddings_do_not_stop_the_others(place):
    """The second task's embeddings hold NaN; the file is named, the first one's scores stay."""
    write_task(place / "tasks" / "spoilt-v1-full")
    assert evaluate("embed", "logmel")[0] == 0
    folder = place / "embeddings" / "logmel"
    path = folder / "spoilt-v1-full" / "valid.embeddings.npy"
    rows = np.fromfile(path, np.float32)
    rows[0] = np.nan
    rows.tofile(path)
    code, stdout, stderr = evaluate(
        "predict", str(folder / "spoilt-v1-full"), str(folder / TASK), *QUICK[2:]
    )
    assert code == 1
    assert TASK in stdout
    assert "failed: spoilt-v1-full" in stderr
    assert "NaN" in stderr
    assert ".wav" in stderr


def test_a_broken_score_file_does_not_hide_the_others(place):
    assert evaluate(*QUICK)[0] == 0
    folder = place / "embeddings" / "logmel"
    other = folder / "a-broken-v1-full"
    other.mkdir()
    (other / "prediction-done.json").write_text("{")
    with pytest.warns(UserWarning, match=r"a-broken-v1-full.*cannot be read.*left out"):
        code, stdout, _ = evaluate(*QUICK)
    assert code == 0
    assert TASK in stdout


def test_two_runs_at_once_are_refused(place):
    assert evaluate(*QUICK)[0] == 0
    with locked(place / "embeddings" / "logmel" / TASK):
        code, _, stderr = evaluate(*QUICK, "--force")
    assert code == 1
    assert "Another run is writing" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model-options", "{strategy: mean}"), "is not JSON"),
        (("--model-options", "[1]"), "must be a JSON object"),
        (("--model-options", '{"strategy": "mean"}'), "strategy"),
        (("--grid", "fastest"), "no grid 'fastest'"),
        (("--grid-points", "0"), "0 grid points"),
        (("--seed", "-1"), "seed is -1"),
        (("--device", "toaster"), "'toaster' is not available"),
        (("--task", "beep"), "no task 'beep'"),
        (("--tasks-dir", "elsewhere"), "no folder elsewhere"),
        (("--module", "no_such_module"), "no module 'no_such_module'"),
    ],
)
def test_wrong_options_are_explained_before_any_work(place, arguments, message):
    code, stdout, stderr = evaluate(*QUICK, *arguments)
    assert (code, stdout) == (1, "")
    assert message in stderr
    assert not (place / "embeddings").exists()


def test_errors_are_one_message_and_an_exit_code(place):
    found = command(*QUICK, "--model-options", "{")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("error: --model-options '{' is not JSON")
    assert "Traceback" not in found.stderr


def test_without_a_module_the_help_is_shown(place):
    code, stdout, _ = evaluate()
    assert code == 2
    assert "--module" in stdout
    assert evaluate("--unknown")[0] == 2
    assert evaluate("predict")[0] == 2
    for name in ("embed", "predict", "check", "tasks"):
        code, stdout, _ = evaluate(name, "--help")
        assert code == 0
        assert "Example: hear-eval" in stdout


def test_the_version_is_printed():
    code, stdout, _ = evaluate("--version")
    assert code == 0
    assert stdout.startswith("gram-hear ")


def test_tasks_are_listed(place):
    broken = write_task(place / "tasks" / "broken-v1-full", audio=False)
    (broken / "train.json").write_text("{")
    code, stdout, _ = evaluate("tasks", "tasks")
    assert code == 0
    assert TASK in stdout
    assert "train 24" in stdout
    code, stdout, _ = evaluate("tasks", "tasks", "--json")
    good, bad = json.loads(stdout)
    assert (good["name"], good["rates"], good["splits"]) == (TASK, [RATE], SPLITS)
    assert good["faults"] == []
    assert "train.json" in bad["faults"][0]


def test_modules_are_checked(place):
    code, stdout, _ = evaluate("check", "logmel")
    assert code == 0, stdout
    assert "error" not in stdout
    code, stdout, _ = evaluate("check", "faulty", "--model-options", '{"fault": "n"}')
    assert code == 1
    assert "error: " in stdout


def test_options_are_an_object():
    assert parse_options('{"strategy": "mean", "window": 2}') == {"strategy": "mean", "window": 2}
    with pytest.raises(OptionError, match="not JSON"):
        parse_options("")


def test_a_plan_is_made_of_options():
    plan = make_plan("fast", 3, 7, True, "cpu")
    assert plan.to_dict() == {"grid": "fast", "grid_points": 3, "seed": 7, "shuffle": True}
    assert plan.device == "cpu"
