"""A few damaged inputs of each kind; benchmarks/mutations.py tries thousands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "mutations.py"


def test_damaged_inputs_are_read_or_refused():
    path = os.pathsep.join(filter(None, [str(PROGRAM.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, PROGRAM, "--count", "3", "--seed", "7"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("slowest") == 7
