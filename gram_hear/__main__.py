"""``python -m gram_hear`` is ``gram-hear``."""

import sys

from gram_hear.start import gram_hear

if __name__ == "__main__":
    sys.exit(gram_hear())
