"""``python -m gram_hear.pretrain``: without arguments, a toy run on synthetic sounds."""

import atexit
import sys

from gram_hear.extras import need
from gram_hear.pretrain.stopping import end_children, leave_signals
from gram_hear.start import Program, start


def main() -> int:
    """Run the command line, where the packages that it needs are there."""
    return start(_load)


def _load() -> Program:
    for package in ("lightning", "jsonargparse", "tensorboard", "matplotlib"):
        need(package, "pretrain")
    from gram_hear.pretrain.cli import run

    # After PyTorch's own end of its loaders, which is registered later, and before Python's.
    atexit.register(end_children)
    return run


if __name__ == "__main__":
    code = main()
    leave_signals()
    sys.exit(code)
