"""Kill every long command at random moments, and see whether anything is lost or wrong.

    python benchmarks/kill.py                          # 128 kills, shared among the commands
    python benchmarks/kill.py --command rirs --kills 20 --seed 3

Every run is the command itself in tiny form, in a process of its own, forked from one that has
imported it but computed nothing, and killed with all its processes by SIGKILL: after a random part
of the time that an undisturbed run takes, or while a file is being written. Every third time two
runs work at one output; one of them is killed, and the other is killed too or has to end well.

After each kill, every file under a final name must be whole: as the undisturbed run made it. A run
that is not killed completes the output, which must then be that of the undisturbed run, bit for bit
(times left out, and data sets compared as tables), with nothing left behind; and the next begins
from nothing. Prints JSON; the exit code is 1 where anything was wrong.

Pretraining is not among the commands: tests/test_pretrain.py stops it and goes on.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow.parquet
import soundfile
import torch

from gram_hear import start

OUTPUT, LOG = "out", "log"  # what a command writes is below the first
ROOMS = "--rooms 3 --scenes-per-room 3 --rt60 0.2 0.25 --distance 0.5 1.5 --seconds 0.1 --jobs 1"
TRAINING = "--grid faster --grid-points 2 --device cpu"
COMMANDS = {  # name -> program and arguments
    "embed": (
        start.gram_hear,
        "embed sounds -o out/all.parquet -m gram-tiny-untrained --window-batch 4 --device cpu",
    ),
    "rirs": (start.gram_hear, f"rirs {ROOMS} -o out/rirs"),
    "naturalistic": (start.gram_hear, "naturalistic --tasks-dir tasks -o out --rate 8000 --jobs 1"),
    "prepare": (start.gram_hear, "prepare sounds -o out --seconds 1 --tar-size 0.1 --jobs 1"),
    "make-task": (start.hear_eval, "make-task sounds --name all --tasks-dir out --jobs 1"),
    "evaluate": (
        start.hear_eval,
        f"--module tiny_module --tasks-dir tasks --embeddings-dir out {TRAINING}",
    ),
}
IMPORTED = (  # by the commands when they run: so that a run begins to work at once
    *("gram_hear.commands.gram_hear.app", "gram_hear.commands.hear_eval.app"),
    *("gram_hear.scenes.rendering", "gram_hear.hear", "pyroomacoustics", "scipy.signal"),
    *("sklearn.model_selection", "sklearn.metrics"),
)
SOUNDS, FEW = 15, 6
RATE = 16000
TIMES = ("seconds", "minutes", "time", "cpu_time", "time_in_min")  # in JSON
KEPT = {  # hidden files that may stay
    "prepare": (".job",),  # what is done, so that files can be added later
    "evaluate": (".lock",),  # of a run that was killed when all was done; nobody holds it
}
MODULE = """
import torch

class Model(torch.nn.Module):
    sample_rate, scene_embedding_size, timestamp_embedding_size = 16000, 8, 8

def load_model(path=""):
    return Model()

def get_timestamp_embeddings(audio, model):
    rows = audio[:, : audio.shape[1] // 800 * 800].reshape(len(audio), -1, 100, 8).mean(2)
    return rows, (torch.arange(rows.shape[1]) * 50.0 + 25).expand(len(audio), -1)

def get_scene_embeddings(audio, model):
    return get_timestamp_embeddings(audio, model)[0].mean(1)
"""


def make_inputs(folder):
    """Noise of 0.2 to 3 seconds in three folders, a task of a few of them, and a HEAR module."""
    generator = np.random.default_rng(0)
    for i in range(SOUNDS):
        sound = generator.uniform(-0.5, 0.5, round(generator.uniform(0.2, 3.0) * RATE))
        for name in ("sounds", "few")[: 1 + (i < FEW)]:
            path = folder / name / f"site{i % 3}" / f"{i:02}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, sound, RATE)
    (folder / "tiny_module.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    run = start_command("make-task few --name few --tasks-dir tasks", start.hear_eval, folder)
    if run.has_ended(wait=True) and run.status:
        sys.exit("The task could not be made.")


def content(path):
    """Return what must be equal in two files of this name."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pydict()
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    return None if path.name == "results.md" else path.read_bytes()  # it shows results.json


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def paths_below(folder):
    """Return all files and folders, while runs may remove some of them."""
    return [
        Path(parent, name)
        for parent, folders, names in os.walk(folder)
        for name in (*folders, *names)
    ]


def files_below(folder):
    """Return name -> path of what stands under final names: hidden files and folders do not."""
    paths = {path.relative_to(folder): path for path in paths_below(folder) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in paths.items()
        if not any(part.startswith(".") for part in name.parts)
    }


@dataclass
class Run:
    """A command at work in a process group of its own."""

    process: int
    status: int | None = None

    def has_ended(self, wait=False):
        if self.status is None:
            ended, status = os.waitpid(self.process, 0 if wait else os.WNOHANG)
            self.status = status if ended else None
        return self.status is not None

    def kill(self):
        """Return whether the run was at work until it was killed."""
        if self.has_ended():
            return False
        os.killpg(self.process, signal.SIGKILL)
        self.has_ended(wait=True)
        return os.WIFSIGNALED(self.status)


def start_command(arguments, program, folder):
    """Run a command in a forked process, in a folder in which it may leave a log."""
    process = os.fork()
    if process:
        with suppress(OSError):  # the child may have done so, or be gone
            os.setpgid(process, process)
        return Run(process)
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        with open(LOG, "ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        sys.argv = ["program", *shlex.split(arguments)]
        torch.set_num_threads(1)
        code = program() or 0
    except BaseException:  # the child must end here, and say why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Trial:
    """Runs of one command, each killed at its moment; counts what was found."""

    def __init__(self, folder, name, seed):
        self.folder, self.output = folder, folder / OUTPUT
        self.program, self.arguments = COMMANDS[name]
        self.kept = KEPT.get(name, ())
        self.random = random.Random(f"{seed} {name}")
        self.counts = Counter()
        self.faults = []
        self.clear()
        begin = time.monotonic()
        self.must_end_well(self.start())
        self.seconds = time.monotonic() - begin
        self.expected = {name: content(path) for name, path in files_below(self.output).items()}
        self.clear()

    def clear(self):
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir()

    def start(self):
        return start_command(self.arguments, self.program, self.folder)

    def must_end_well(self, run):
        run.has_ended(wait=True)
        if run.status:
            self.counts["failed_runs"] += 1
            self.faults.append(
                f"{self.arguments} failed: {(self.folder / LOG).read_text()[-2000:]}"
            )

    def run(self):
        """Start one run or two, and kill one or both; where one ends by itself, look at the end."""
        runs = [self.start() for _ in range(self.random.choice((1, 1, 2)))]
        survives = len(runs) == 2 and self.random.random() < 0.5
        for run in runs[survives:]:
            self.await_moment(run)
            if run.kill():
                self.counts["kills"] += 1
                self.counts["kills_beside_another_run"] += len(runs) == 2
                self.counts["kills_that_left_a_temporary_file"] += bool(self.temporary_files())
                self.look_at_files()
            else:
                self.must_end_well(run)
        if survives:
            self.must_end_well(runs[0])
            self.look_for_lost_files()
            # The other may have been killed after this one ended: the next run sweeps.
            self.must_end_well(self.start())
        if any(run.status == 0 for run in runs):
            self.look_at_the_end()

    def await_moment(self, run):
        """Wait for a random moment, or until a file is being written; or until the run ends."""
        moment = time.monotonic() + self.random.uniform(0, 1.1 * self.seconds)
        wants_write = self.random.random() < 0.4
        before = self.temporary_files()
        while not run.has_ended():
            if time.monotonic() > moment and not (
                wants_write and before.issuperset(self.temporary_files())
            ):
                return
            time.sleep(0.001)

    def temporary_files(self):
        return {path for path in paths_below(self.output) if path.name.endswith(".partial")}

    def look_at_files(self):
        """After a kill: what has its final name is whole."""
        for name, path in files_below(self.output).items():
            try:
                is_whole = content(path) == self.expected[name]
            except KeyError:
                self.count_fault("unknown_files", f"{name} is not of an undisturbed run")
                continue
            except (OSError, ValueError) as error:
                is_whole = isinstance(error, FileNotFoundError)  # another run goes on
            if not is_whole:
                self.count_fault("broken_files", f"{name} is not as it should be")

    def look_at_the_end(self):
        """Compare a completed output with the undisturbed one, and begin anew."""
        self.look_at_files()
        self.look_for_lost_files()
        hidden = [path for path in self.output.rglob(".*") if path.name not in self.kept]
        hidden += [path for path in self.output.rglob("?*.lock") if path.name[0] != "."]
        for path in hidden:
            self.count_fault("left_behind", f"{path} was left behind")
        self.counts["completed"] += 1
        self.clear()

    def look_for_lost_files(self):
        for name in self.expected.keys() - files_below(self.output).keys():
            self.count_fault("lost_files", f"{name} is lost")

    def count_fault(self, kind, text):
        self.counts[kind] += 1
        self.faults.append(f"{self.arguments.split()[0]}: {text}")

    def finish(self):
        self.must_end_well(self.start())
        self.look_at_the_end()


WRONG = ("failed_runs", "broken_files", "unknown_files", "lost_files", "left_behind")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=128, help="over all commands")
    parser.add_argument("--command", choices=COMMANDS, help="one alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = [options.command] if options.command else list(COMMANDS)
    for module in IMPORTED:
        import_module(module)
    found = {}
    faults = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder)
        for i, name in enumerate(names):
            trial = Trial(folder, name, options.seed)
            share = options.kills // len(names) + (i < options.kills % len(names))
            while trial.counts["kills"] < share and not trial.counts["failed_runs"]:
                trial.run()
            trial.finish()
            faults += trial.faults
            found[name] = {**dict.fromkeys(("kills", *WRONG), 0), **trial.counts}
            found[name]["seconds_undisturbed"] = round(trial.seconds, 1)
            print(f"{name}: {found[name]}", file=sys.stderr)
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    total = {key: sum(each[key] for each in found.values()) for key in ("kills", *WRONG)}
    print(json.dumps({"total": total, **found}, indent=2))
    sys.exit(any(total[key] for key in WRONG))


if __name__ == "__main__":
    main()
