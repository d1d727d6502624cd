"""``python -m gram_hear.evaluation`` is ``hear-eval``."""

from gram_hear.evaluation.commands import main

main()
