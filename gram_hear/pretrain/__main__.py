"""``python -m gram_hear.pretrain``: without arguments, a toy run on synthetic sounds."""

import sys

from gram_hear.console import say
from gram_hear.errors import OptionError
from gram_hear.extras import need


def main() -> int:
    """Run the command line, where the packages that it needs are there."""
    try:
        for package in ("lightning", "jsonargparse", "tensorboard", "matplotlib"):
            need(package, "pretrain")
    except OptionError as error:
        say(f"error: {error}")
        return 1
    from gram_hear.pretrain.cli import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
