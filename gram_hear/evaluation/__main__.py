"""``python -m gram_hear.evaluation`` is ``hear-eval``."""

import sys

from gram_hear.start import hear_eval

if __name__ == "__main__":
    sys.exit(hear_eval())
