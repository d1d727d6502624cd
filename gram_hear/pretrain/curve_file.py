"""curves.csv of a run: a row for each entry of its log, there as soon as it is made."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gram_hear.jobs.writing import write_text

STEP = "step"  # the first column
LONGEST = 10_000  # characters of a line; none that is written here has so many


class CurveFile:
    """A table in a file, whose rows are added one by one, in the order of their steps."""

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        """Begin a file, or go on with one.

        Args:
            path: of the file.
            columns: beside ``step``. A file with others gets these.
            step: rows after it are removed: the run goes on from there, and makes them again.

        Raises:
            OSError: where the file cannot be read or written.
        """
        self.path = path
        self.columns = (STEP, *columns)
        table = io.StringIO()
        writer = csv.DictWriter(table, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in read_curves(path) if int(row[STEP]) <= step)
        write_text(path, table.getvalue())

    def add(self, step: int, values: Mapping[str, object]) -> None:
        """Add a row; a column without a value stays empty."""
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writerow({STEP: step, **values})


def read_curves(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file, but for a last one that is not whole, and damaged ones.

    There are none without a file.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    whole = (line for line in lines if line.endswith("\n") and len(line) <= LONGEST)
    rows = csv.DictReader(whole, quoting=csv.QUOTE_NONE)
    return [row for row in rows if re.fullmatch(r"[0-9]{1,18}", row.get(STEP) or "")]
