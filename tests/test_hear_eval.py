"""The hear-eval command, end to end: a tiny task, a small module, and everything that breaks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from hear_tasks import write_task
from typer.testing import CliRunner

from gram_hear.commands.hear_eval import tasks_run
from gram_hear.commands.hear_eval.app import app
from gram_hear.commands.hear_eval.tasks_run import predict_tasks
from gram_hear.errors import GramError
from gram_hear.evaluation.predict.shallow import ShallowProbe
from gram_hear.jobs import writing
from gram_hear.jobs.locks import POLL, locked
from gram_hear.tasks import RESAMPLED

MODULES = Path(__file__).parent / "data" / "hear_modules"
RATE = 16000
TASK = "beeps-v1-full"
SPLITS = {"train": 24, "valid": 12, "test": 12}
PITCHES = {"low": 300, "high": 2000}


def write_beeps(folder, audio=True):
    """Write a task of short beeps, low or high, in noise."""
    random = np.random.default_rng(0)

    def sound(labels):
        time = np.arange(RATE // 5) / RATE
        beep = 0.3 * np.sin(2 * np.pi * PITCHES[labels[0]] * time + random.uniform(0, 6))
        return beep + 0.01 * random.standard_normal(len(time))

    return write_task(folder, SPLITS, sound=sound if audio else None, sample_duration=0.2)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A folder with tasks/ in which one can be run; the modules of the tests are found."""
    write_beeps(tmp_path / "tasks" / TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(MODULES)
    monkeypatch.setenv("PYTHONPATH", str(MODULES), prepend=os.pathsep)
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
    apart = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    result = CliRunner(**apart).invoke(app, arguments)  # click before 8.2 must be told
    if result.exception is not None and not isinstance(result.exception, (GramError, SystemExit)):
        raise result.exception
    error = result.exception if isinstance(result.exception, GramError) else None
    return (1 if error else result.exit_code), result.stdout, f"{result.stderr}{error or ''}"


QUICK = ("--module", "logmel", "--grid", "faster", "--grid-points", "2", "--device", "cpu")
QUICK = (*QUICK, "--min-steps", "0")  # ten steps are enough for low and high


def test_everything_in_one_command(workdir):
    first = command(*QUICK)
    assert first.returncode == 0, first.stderr
    assert "beeps" in first.stdout
    assert "top1_acc" in first.stdout
    assert first.stderr.lower().count("warning") == 1  # of the few test clips
    assert "Traceback" not in first.stderr
    folder = workdir / "embeddings" / "logmel"
    scores = json.loads((folder / TASK / "test.predicted-scores.json").read_text())
    assert scores["test"]["test_top1_acc"] > 0.8
    results = json.loads((folder / "results.json").read_text())
    assert results["module"] == "logmel"
    (result,) = results["results"]
    assert (result["task"], result["score"]) == (TASK, scores["test"]["test_score"])
    assert (result["grid"], result["grid_points"], result["seed"]) == ("faster", 2, 42)
    assert TASK in (folder / "results.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in (folder / TASK).iterdir()}
    code, stdout, stderr = evaluate(*QUICK)
    assert (code, stdout) == (0, first.stdout)
    assert "is predicted already" in stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / TASK).iterdir()} == before


@pytest.mark.slow
def test_another_seed_needs_force(workdir):
    assert evaluate(*QUICK)[0] == 0
    marker = workdir / "embeddings" / "logmel" / TASK / "prediction-done.json"
    code, stdout, stderr = evaluate(*QUICK, "--seed", "43")
    assert code == 1
    assert "--force" in stderr
    assert TASK in stdout  # the scores that are there are shown
    assert json.loads(marker.read_text())["seed"] == 42
    assert evaluate(*QUICK, "--seed", "43", "--force", "--shuffle")[0] == 0
    done = json.loads(marker.read_text())
    assert (done["seed"], done["shuffle"]) == (43, True)


def test_embedding_and_predicting_are_the_halves(workdir):
    code, stdout, _ = evaluate("embed", "logmel", "--task", "beeps", "--embeddings-dir", "made")
    assert (code, stdout) == (0, f"made/logmel/{TASK}\n")
    assert not list(workdir.glob("made/logmel/results.*"))
    code, stdout, _ = evaluate("predict", stdout.strip(), "--grid", "faster", "--grid-points", "2")
    assert code == 0
    assert TASK in stdout
    halves = json.loads((workdir / "made/logmel/results.json").read_text())["results"][0]
    assert evaluate(*QUICK)[0] == 0
    whole = json.loads((workdir / "embeddings/logmel/results.json").read_text())["results"][0]
    assert whole["scores"] == halves["scores"]
    options = ("--grid", "faster", "--grid-points", "3", "--seed", "7", "--shuffle", "--force")
    assert evaluate("predict", f"made/logmel/{TASK}", *options)[0] == 0
    marker = json.loads((workdir / "made/logmel" / TASK / "prediction-done.json").read_text())
    asked = {"grid": "faster", "grid_points": 3, "seed": 7, "shuffle": True}
    assert {name: marker[name] for name in asked} == asked


def test_a_broken_task_does_not_stop_the_others(workdir):
    write_beeps(workdir / "tasks" / "a-silent-v1-full", audio=False)
    broken = write_beeps(workdir / "tasks" / "broken-v1-full", audio=False)
    (broken / "labelvocabulary.csv").unlink()
    code, stdout, stderr = evaluate(*QUICK)
    assert code == 1
    assert TASK in stdout
    assert "silent" not in stdout
    assert "failed: a-silent-v1-full" in stderr
    assert "failed: broken-v1-full" in stderr
    assert "2 failed: a-silent-v1-full, broken-v1-full" in stderr
    results = json.loads((workdir / "embeddings/logmel/results.json").read_text())["results"]
    assert [each["task"] for each in results] == [TASK]
    assert not (workdir / "embeddings/logmel/a-silent-v1-full/prediction-done.json").exists()


def test_a_failing_disk_does_not_stop_the_others(workdir, monkeypatch):
    """Neither the other tasks nor the table."""
    write_beeps(workdir / "tasks" / "full-v1-full")
    write_whole = writing.write_whole

    def refuse(path, write):
        if "full-v1-full" in str(path.parent.parent) or path.name == "results.json":
            raise OSError(28, "No space left on device")
        write_whole(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_whole", refuse)
        code, stdout, stderr = evaluate(*QUICK)
    assert code == 1
    assert TASK in stdout
    assert "top1_acc" in stdout
    assert "failed: full-v1-full" in stderr
    assert "No space left on device" in stderr
    assert "2 failed: full-v1-full, results.json" in stderr
    assert evaluate(*QUICK)[0] == 0


def test_a_module_that_fails_leaves_its_traceback(workdir):
    """Whatever it raises: the run goes on with the next task, and the message names the file."""
    write_beeps(workdir / "tasks" / "other-v1-full")
    options = ("--model-options", '{"fault": "library"}')
    code, _, stderr = evaluate("embed", "faulty", "--device", "cpu", *options)
    assert code == 1
    assert "2 failed: beeps-v1-full, other-v1-full" in stderr
    folder = workdir / "embeddings" / "faulty-fault=library"
    for task in (TASK, "other-v1-full"):
        log = folder / f"{task}-traceback.log"
        assert f"failed: {task}: faulty.get_scene_embeddings failed" in stderr
        assert (
            f"LibraryError: the codec is unknown The traceback is in {log}".replace(
                f"{workdir}/", ""
            )
            in stderr
        )
        assert "in get_scene_embeddings" in log.read_text()
        assert log.read_text().endswith("LibraryError: the codec\nis unknown\n")


def test_a_module_that_fails_inside_gram_hear_leaves_its_traceback_too(workdir):
    code, _, stderr = evaluate("embed", "faulty", "--model-options", '{"fault": "gram"}')
    assert code == 1
    log = Path("embeddings") / "faulty-fault=gram" / f"{TASK}-traceback.log"
    assert "AudioError: a mono model takes one channel" in stderr
    assert f"The traceback is in {log}" in stderr
    assert "in get_scene_embeddings" in log.read_text()


@pytest.mark.parametrize("command", [("embed", "unloadable"), ("check", "unloadable")])
def test_a_module_that_cannot_be_loaded_leaves_its_traceback(workdir, monkeypatch, command):
    (workdir / "unloadable.py").write_text(
        "class E(Exception): pass\ndef load(): raise E('x')\nload()\n"
    )
    code, stdout, stderr = evaluate(*command)
    assert code == 1
    assert "Importing unloadable failed: E: x" in stdout + stderr
    assert "The traceback is in hear-eval-traceback.log" in stderr
    assert "in load" in (workdir / "hear-eval-traceback.log").read_text()


def test_a_model_that_is_not_there_needs_no_traceback(workdir):
    code, _, stderr = evaluate("embed", "gram_hear", "--model", "no-such-model.safetensors")
    assert code == 1
    assert "traceback" not in stderr
    assert not (workdir / "hear-eval-traceback.log").exists()


def test_few_optimizer_steps_are_warned_of(workdir):
    """24 training clips are one batch: one step in each of ten epochs."""
    code, _, stderr = evaluate(*QUICK[:-2])
    assert code == 0
    assert (
        f"warning: {TASK}: a predictor takes at most 10 optimizer steps, fewer than 100" in stderr
    )
    assert "--min-steps" in stderr
    marker = workdir / "embeddings" / "logmel" / TASK / "prediction-done.json"
    assert json.loads(marker.read_text())["optimizer_steps"] == 10
    for limit, warned in (("10", False), ("11", True)):
        _, _, stderr = evaluate(*QUICK[:-1], limit, "--force")
        assert "at most 10 optimizer steps" in stderr
        assert ("undertrained" in stderr) == warned
    assert evaluate(*QUICK, "--probe", "knn", "--min-steps", "1")[0] == 2  # it takes no steps


@pytest.mark.parametrize("probe", [(), ("--probe", "knn")])
def test_few_test_clips_are_warned_of(workdir, monkeypatch, probe):
    """Once, where the score counts clips."""
    options = ("--module", "logmel", *probe) if probe else QUICK
    _, _, stderr = evaluate(*options)
    warning = f"warning: {TASK}: 12 test clips: a score moves in steps of 0.08."
    assert stderr.count(warning) == 1
    assert "steps of" not in evaluate(*options)[2]  # nothing is predicted
    monkeypatch.setattr(tasks_run, "FEWEST_CLIPS", 12)
    assert "steps of" not in evaluate(*options, "--force")[2]


def test_few_test_clips_of_folds_are_warned_of(capsys):
    facts = {"counted_clips": 9, "folds": 5}
    tasks_run._tell_facts("esc-v1", 0, facts)
    tasks_run._tell_facts("tags-v1", 0, {})
    assert capsys.readouterr().err == (
        "warning: esc-v1: 9 test clips in the smallest fold: the score of that fold moves in steps "
        "of 0.11.\n"
    )


def test_clips_without_samples(workdir):
    path = workdir / "tasks" / TASK / str(RATE) / "test" / "test3.wav"
    path.write_bytes(b"")
    code, stdout, stderr = evaluate("tasks", "tasks")
    assert code == 1
    fault = " ".join(stdout.split())
    assert "clips holds no samples: test/test3.wav." in fault
    assert "--empty-clips skip" in fault
    code, _, stderr = evaluate(*QUICK)
    assert code == 1
    assert "clips holds no samples: test/test3.wav." in stderr
    with pytest.warns(UserWarning, match="left out"):
        code, stdout, _ = evaluate(*QUICK, "--empty-clips", "skip")
    said = f"{TASK}: 1 clip holds no samples: test/test3.wav. Left out."
    assert (code, said in stdout) == (0, True)
    folder = workdir / "embeddings" / "logmel"
    assert said in (folder / "results.md").read_text()
    (result,) = json.loads((folder / "results.json").read_text())["results"]
    assert (result["empty_clips"], result["empty_files"]) == ("skip", ["test/test3.wav"])
    predictions = np.load(folder / TASK / "test.predictions.npz")
    assert len(predictions["target"]) == SPLITS["test"] - 1
    code, _, stderr = evaluate(*QUICK, "--empty-clips", "zero")
    assert code == 1
    assert "Use --force" in stderr


def test_metadata_is_checked_before_anything_is_embedded(workdir):
    """A metric that is not known would cost the hours of embedding."""
    folder = write_beeps(workdir / "tasks" / "typing-v1-full")
    path = folder / "task_metadata.json"
    path.write_text(path.read_text().replace("top1_acc", "top1_akk"))
    code, stdout, stderr = evaluate(*QUICK)
    assert code == 1
    assert TASK in stdout
    assert "failed: typing-v1-full: There is no metric 'top1_akk'" in stderr
    assert not (workdir / "embeddings" / "logmel" / "typing-v1-full").exists()
    code, stdout, stderr = evaluate("embed", "logmel", "--task", "typing")  # for another use
    assert (code, stdout) == (0, "embeddings/logmel/typing-v1-full\n")
    assert "warning: typing-v1-full can be embedded, but not be predicted" in stderr


def test_what_is_embedded_says_so(workdir):
    assert evaluate("embed", "logmel")[0] == 0
    code, stdout, stderr = evaluate("embed", "logmel")
    assert (code, stdout) == (0, f"embeddings/logmel/{TASK}\n")
    assert stderr == f"{TASK} is embedded already.\n"


def test_a_changed_task_is_embedded_anew_with_force(workdir):
    assert evaluate(*QUICK)[0] == 0
    path = workdir / "tasks" / TASK / "task_metadata.json"
    path.write_text(path.read_text() + "\n")
    code, stdout, stderr = evaluate(*QUICK)
    assert code == 1
    assert TASK in stdout
    assert "the task has changed since" in stderr
    assert "Use --force" in stderr
    assert evaluate(*QUICK, "--force")[0] == 0
    assert evaluate(*QUICK)[0] == 0


def test_a_module_folder_stands_for_its_tasks(workdir, monkeypatch):
    write_beeps(workdir / "tasks" / "other-v1-full")
    assert evaluate("embed", "logmel")[0] == 0
    folder = workdir / "embeddings" / "logmel"
    code, stdout, _ = evaluate("predict", str(folder), *QUICK[2:])
    assert code == 0
    results = json.loads((folder / "results.json").read_text())["results"]
    assert [each["task"] for each in results] == [TASK, "other-v1-full"]
    monkeypatch.chdir(folder / TASK)
    code, stdout, stderr = evaluate("predict", ".", *QUICK[2:])
    assert code == 0
    assert TASK in stdout
    assert stderr == f"{TASK} is predicted already.\n"


def test_several_tasks_are_given_with_commas(workdir):
    for name in ("b-v1-full", "c-v1-full"):
        write_beeps(workdir / "tasks" / name)
    for given in (("--task", "c, beeps"), ("--task", "c", "--task", "beeps")):
        code, stdout, _ = evaluate("embed", "logmel", *given)
        made = [f"embeddings/logmel/{name}" for name in ("c-v1-full", TASK)]
        assert (code, stdout.split()) == (0, made)
    for arguments in ((*QUICK, "--task", "b", "c"), ("embed", "logmel", "--task", "b", "c")):
        code, _, stderr = evaluate(*arguments)
        assert code == 2
        assert "--task a,b" in " ".join(stderr.split())
    code, _, stderr = evaluate("embedd")
    assert (code, "--task" in stderr) == (2, False)


@pytest.mark.parametrize("option", [("--tasks-dir", "x"), ("--grid", "default"), ("--force",)])
def test_options_before_a_command_are_refused(workdir, option):
    """They would be dropped: the command has options of its own."""
    code, _, stderr = evaluate(*option, "embed", "logmel")
    assert code == 2
    text = " ".join(stderr.split())
    assert f"{option[0]} stands before the command 'embed'" in text
    assert not (workdir / "embeddings").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupted_run_says_how_to_go_on(workdir):
    log = workdir / "log"
    options = json.dumps({"log": str(log), "pause": 2.0})
    arguments = ["embed", "faulty", "--device", "cpu", "--model-options", options]
    process = subprocess.Popen(
        [sys.executable, "-m", "gram_hear.evaluation", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.strip().endswith(
        "Interrupted; what is done is kept. Run the same command again to go on."
    )
    assert "Traceback" not in stderr
    assert "Aborted" not in stderr


def test_a_task_that_another_run_predicts_is_waited_for(workdir):
    assert evaluate(*QUICK)[0] == 0
    folder = workdir / "embeddings" / "logmel" / TASK
    marker = folder / "prediction-done.json"
    done = marker.read_bytes()
    marker.unlink()
    with locked(folder), ThreadPoolExecutor(1) as pool:
        run = pool.submit(predict_tasks, [folder], ShallowProbe("faster", 2), False, 0)
        time.sleep(3 * POLL)
        assert not run.done()
        marker.write_bytes(done)  # the other run ends
        assert run.result(60) == []
    assert marker.read_bytes() == done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model-options", "{strategy: mean}"), "is not JSON"),
        (("--model-options", "[1]"), "must be a JSON object"),
        (("--model-options", '{"strategy": "mean"}'), "strategy"),
        (("--grid-points", "0"), "0 grid points"),
        (("--seed", "-1"), "seed is -1"),
        (("--device", "toaster"), "'toaster' is not available"),
        (("--task", "beep"), "no task 'beep'"),
        (("--tasks-dir", "elsewhere"), "no folder elsewhere"),
        (("--module", "no_such_module"), "no module 'no_such_module'"),
    ],
)
def test_wrong_options_are_explained_before_any_work(workdir, arguments, message):
    code, stdout, stderr = evaluate(*QUICK, *arguments)
    assert (code, stdout) == (1, "")
    assert message in stderr
    assert not (workdir / "embeddings").exists()


@pytest.mark.slow
def test_errors_are_one_message_and_an_exit_code(workdir):
    found = command(*QUICK, "--model-options", "{")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("error: --model-options '{' is not JSON")
    assert "Traceback" not in found.stderr


def test_without_a_module_the_help_is_shown(workdir):
    code, stdout, _ = evaluate()
    assert code == 2
    assert "--module" in stdout
    assert evaluate("--unknown")[0] == 2
    assert evaluate("predict")[0] == 2


def test_tasks_are_listed(workdir):
    broken = write_beeps(workdir / "tasks" / "broken-v1-full", audio=False)
    (broken / "train.json").write_text("{")
    code, stdout, _ = evaluate("tasks", "tasks")
    assert code == 1
    assert TASK in stdout
    assert "train 24" in stdout
    code, stdout, stderr = evaluate("tasks", "tasks", "--json")
    assert code == 1
    assert stderr.startswith("1 broken: broken-v1-full")
    good, bad = json.loads(stdout)
    assert (good["name"], good["rates"], good["splits"]) == (TASK, [RATE], SPLITS)
    assert good["faults"] == []
    assert "train.json" in bad["faults"][0]
    shutil.rmtree(broken)
    for where in (("tasks",), ("--tasks-dir", "tasks"), ()):
        code, again, stderr = evaluate("tasks", *where, "--json")
        assert (code, stderr) == (0, "")
        assert json.loads(again) == [good]
    assert evaluate("tasks", "tasks", "--tasks-dir", "tasks")[0] == 2


def test_tasks_show_which_audio_was_made_and_what_is_missing(workdir):
    folder = workdir / "tasks" / TASK
    shutil.copytree(folder / str(RATE), folder / "48000")
    (folder / "48000" / RESAMPLED).write_text("{}")
    for i in range(11):
        (folder / str(RATE) / "train" / f"train{i}.wav").unlink()
    for i in range(30):
        (folder / "48000" / "test" / f"test{i}.wav").unlink(missing_ok=True)
    code, stdout, _ = evaluate("tasks", "tasks")
    assert code == 0  # all files are there at one rate or another
    text = " ".join(stdout.split())
    assert "16000, 48000 (resampled)" in text
    assert "16000: 11 files missing" in text
    assert "48000: 12" not in text  # what is not made yet is made when it is needed
    shutil.rmtree(folder / "48000")
    code, stdout, _ = evaluate("tasks", "tasks")
    assert code == 1
    assert "11 of 48 audio files are there at no sample rate" in " ".join(stdout.split())


def test_modules_are_checked(workdir):
    code, stdout, _ = evaluate("check", "logmel")
    assert code == 0, stdout
    assert "error" not in stdout
    code, stdout, _ = evaluate("check", "faulty", "--model-options", '{"fault": "n"}')
    assert code == 1
    assert "error: " in stdout
