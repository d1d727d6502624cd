"""One style for all pictures, and how they are begun and written.

matplotlib (the extra ``plot``) is imported when a picture is drawn, without a display.

Pictures are as wide as a page of a paper (:data:`WIDTH`), so that text has its printed size there.
The first three colours differ in lightness, so that they are told apart in grey, and in hue as
colour-blind readers see it. What a colour says, a shape, a line style or a word says too. Maps of
colours are perceptually uniform.
"""

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gram_hear.errors import OptionError, reason_of, visible
from gram_hear.extras import need
from gram_hear.jobs.writing import write_whole

FORMATS = (".png", ".svg", ".pdf")  # what the name of a picture may end in
WIDTH = 7.2  # inches, 183 mm: both columns of a paper
COLUMN = 3.35  # inches, 85 mm: one of them
DPI = 200  # of a PNG, and of what an SVG or a PDF holds as pixels
CHARACTER = 0.079  # inches that a character of a title is wide
LARGEST = 65_000  # pixels that a PNG is high, at most: matplotlib draws below 2^16
BLUE, VERMILION, TEAL = "#004488", "#c04a00", "#44aa99"
COLOURS = (BLUE, VERMILION, TEAL, "#aa4499")
BLACK, LIGHT_GREY, DARK_GREY = "#222222", "#cccccc", "#666666"
GRID = {"color": "#dddddd", "lw": 0.5}
LEVELS = "magma"  # the map of colours for levels,
SIGNED = "cividis"  # for values from -1 to 1: lighter is more, in grey too,
CONFIDENCE = "cividis_r"  # and for confidence: darker is more, on white
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    # The first comes with matplotlib: the same picture everywhere. Readers of an SVG may lack it.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
}
WRITING: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gram-hear",  # ids are the same every time
    "pdf.fonttype": 42,  # whole fonts, which publishers ask for
}
# Without dates and programs, a picture depends on nothing but what it shows.
SVG_ID = re.compile(r'(?<=id=")\w*[0-9a-f]{10}(?=")|(?<=#)\w*[0-9a-f]{10}(?=[")])')
METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def drawing(width: float, height: float, title: str = "") -> Iterator[Any]:
    """Yield a new matplotlib figure; what the block draws has the package's style.

    Args:
        width, height: inches.
        title: above all, on as many lines as it needs; it may hold the name of a file, with dollars
            and what is no Unicode.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    figures = need("matplotlib.figure", "plot")
    with _styled(STYLE):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        if title:
            lines = textwrap.wrap(title, max(1, int(width / CHARACTER)), expand_tabs=False)
            figure.suptitle(printable("\n".join(lines)), fontsize=9)
        yield figure


def _styled(style: dict[str, Any]) -> Any:
    """Return the context of a style, in which settings of matplotlib of one's own do not count."""
    return need("matplotlib.style", "plot").context(["default", style])


def printable(text: str) -> str:
    """Return text, such as the name of a file, as matplotlib draws it: no formulas, no controls."""
    return visible(text.expandtabs(1)).replace("$", r"\$")


def check_format(path: Path) -> None:
    """Raise an OptionError where the name of a picture ends in none of :data:`FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"{path} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def check_picture(path: Path) -> None:
    """Find what stands in the way of a picture before any work is done.

    Raises:
        OptionError: for another format than :data:`FORMATS`, a folder that is not there, and where
            matplotlib is not installed.
    """
    check_format(path)
    if not path.parent.is_dir():
        raise OptionError(f"There is no folder {path.parent} to write {path.name} into.")
    need("matplotlib", "plot")


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as PNG, SVG or PDF, by its suffix, whole or not at all.

    The same figure gives the same bytes.

    Raises:
        OptionError: for another suffix, and where the file cannot be written.
    """
    check_format(path)
    suffix = path.suffix.lower()
    dpi = min(DPI, LARGEST / max(figure.get_size_inches()))
    options = {"format": suffix[1:], "dpi": dpi, "metadata": METADATA[suffix]}
    file = io.BytesIO()
    with _styled(STYLE | WRITING):
        figure.savefig(file, **options)
    data = file.getvalue() if suffix != ".svg" else _with_steady_ids(file.getvalue())
    try:
        write_whole(path, lambda temporary: temporary.write_bytes(data))
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {reason_of(error)}.") from error


def _with_steady_ids(svg: bytes) -> bytes:
    """Return an SVG with its ids numbered in the order in which they stand.

    matplotlib's are hashes of positions, whose last digit the layout does not always find the same.
    """
    numbers: dict[str, str] = {}
    text = svg.decode("utf-8")
    return SVG_ID.sub(lambda id: numbers.setdefault(id[0], f"id{len(numbers)}"), text).encode()
