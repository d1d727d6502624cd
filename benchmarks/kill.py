"""Kill ``gram-hear embed`` at random moments, and see whether anything is lost or wrong.

    python benchmarks/kill.py                           # 50 kills, over 40 files
    python benchmarks/kill.py --kills 200 --seed 3

Every run is the command itself in a process of its own, forked from one that has imported it but
computed nothing, and killed by SIGKILL after a random part of the time that an undisturbed run
takes; every other one, on average, not at a random moment but while a part or the dataset is being
written. While a run lasts, parts are opened under their final names. A run that ends before its
kill completes the collection: its dataset is compared with the undisturbed one, and the next begins
from nothing. Prints JSON; the exit code is 1 where anything was wrong.
"""

import argparse
import fnmatch
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import soundfile
import torch

from gram_hear.commands.gram_hear import app as cli
from gram_hear.jobs.job import STATE

PATTERNS = {"part": "site*/.*.partial", "dataset": ".*.partial"}  # where a write is under way
RATE = 16000


def make_sounds(folder, files):
    """Noise of 0.2 to 3 seconds in a tree of folders."""
    random_numbers = np.random.default_rng(0)
    for i in range(files):
        path = folder / f"site{i % 3}" / f"{i:02}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = random_numbers.uniform(0.2, 3.0)
        soundfile.write(path, random_numbers.uniform(-0.5, 0.5, round(seconds * RATE)), RATE)


def start(sounds, output, model, log):
    """Run ``gram-hear embed`` in a forked process, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        sys.argv = ["gram-hear", "embed", str(sounds), "-o", str(output), "-m", str(model)]
        sys.argv += ["--window-batch", "4", "--device", "cpu"]
        torch.set_num_threads(1)
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    except Exception:  # the child must end here, and say why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def files_in(folder, pattern):
    """Find files by name; a folder may be removed in the meantime."""
    return [Path(at, n) for at, _, names in os.walk(folder) for n in fnmatch.filter(names, pattern)]


def broken_parts(parts):
    """Count files under a part's final name that are not whole; every byte is read and checked."""
    broken = 0
    for path in files_in(parts, "*.npz"):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name in arrays:
                    arrays[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            broken += 1
    return broken


def leftovers(output):
    return [*files_in(output.parent, ".*.partial"), *files_in(output.parent, "tmp*")]


class Trial:
    """Runs over one folder of sounds, each killed at its moment; counts what was found."""

    def __init__(self, folder, model, files, seed):
        self.sounds, self.model = folder / "sounds", model
        self.files = files
        make_sounds(self.sounds, files)
        self.log = (folder / "log").open("ab")
        self.random = random.Random(seed)
        self.counts = Counter()
        undisturbed = folder / "undisturbed" / "out.parquet"
        undisturbed.parent.mkdir()
        begin = time.monotonic()
        self.must_succeed(start(self.sounds, undisturbed, model, self.log))
        self.seconds = time.monotonic() - begin
        self.expected = pyarrow.parquet.read_table(undisturbed)
        self.output = folder / "killed" / "out.parquet"
        self.parts = self.output.with_name("out.parquet.parts")
        self.output.parent.mkdir()

    def must_succeed(self, child):
        _, status = os.waitpid(child, 0)
        if status:
            self.log.flush()
            sys.exit(f"A run failed ({status}):\n{Path(self.log.name).read_text()}")

    def run(self):
        """Start a run and kill it; where it ends before, check what it made."""
        stale = set(leftovers(self.output))
        child = start(self.sounds, self.output, self.model, self.log)
        aim = self.random.choice(("moment", "moment", "part", "dataset"))
        latest = 0 if aim == "part" else self.seconds
        moment = time.monotonic() + self.random.uniform(0, latest)
        ended, status = 0, 0
        while not ended and time.monotonic() < moment:
            self.counts["broken_parts"] += broken_parts(self.parts)
            time.sleep(0.02)
            ended, status = os.waitpid(child, os.WNOHANG)
        if aim == "part":  # any of them, not the first one alone
            wanted = self.random.randrange(self.files)
            while not ended and len(files_in(self.parts, "*.npz")) < wanted:
                time.sleep(0.001)
                ended, status = os.waitpid(child, os.WNOHANG)
        place = {"part": self.parts, "dataset": self.output.parent}.get(aim)
        while not ended and place and stale.issuperset(place.glob(PATTERNS[aim])):
            time.sleep(0.0002)
            ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                sys.exit(f"A run failed ({status}):\n{Path(self.log.name).read_text()}")
            self.check()
            return
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):  # it ended between the last look and the kill
            self.check()
            return
        done = len(files_in(self.parts, "*.npz"))
        self.counts["kills"] += 1
        self.counts["kills_in_the_midst_of_files"] += 0 < done < self.files
        self.counts["kills_in_the_assembly"] += done == self.files
        self.counts["kills_that_left_a_temporary_file"] += bool(leftovers(self.output))
        self.counts["broken_parts"] += broken_parts(self.parts)
        self.counts["wrong_datasets"] += self.output.exists() and not self.is_equal()

    def finish(self):
        self.must_succeed(start(self.sounds, self.output, self.model, self.log))
        self.check()

    def check(self):
        """Compare a completed collection with the undisturbed one, and begin anew."""
        self.counts["broken_parts"] += broken_parts(self.parts)
        self.counts["equal_datasets" if self.is_equal() else "wrong_datasets"] += 1
        self.counts["left_behind"] += len(leftovers(self.output)) + (self.parts / STATE).exists()
        shutil.rmtree(self.output.parent)
        self.output.parent.mkdir()

    def is_equal(self):
        return pyarrow.parquet.read_table(self.output).equals(self.expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--model", default="gram-tiny-untrained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="An empty folder; else a temporary one.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        trial = Trial(folder, options.model, options.files, options.seed)
        while trial.counts["kills"] < options.kills:
            trial.run()
        trial.finish()
    wrong = ("broken_parts", "wrong_datasets", "left_behind")
    names = ("kills", "equal_datasets", *wrong)
    found = {**dict.fromkeys(names, 0), **trial.counts, "seconds_undisturbed": trial.seconds}
    print(json.dumps(found, indent=2))
    sys.exit(any(found[name] for name in wrong))


if __name__ == "__main__":
    main()
