"""One style for all pictures, and how they are begun and written.

matplotlib (the extra ``plot``) is imported when a picture is drawn, without a display. Colours are
those of Okabe and Ito (2008), which colour-blind readers can tell from each other; what a colour
says, a shape or a word says too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gram_hear.errors import OptionError, reason_of
from gram_hear.extras import need
from gram_hear.jobs.writing import write_whole

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
LIGHT_GREY, DARK_GREY = "#cccccc", "#777777"
GRID = {"color": "#dddddd", "lw": 0.6}
STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
DPI = 120


@contextmanager
def drawing(width: float, height: float, title: str = "") -> Iterator[Any]:
    """Yield a new matplotlib figure; what the block draws has the package's style.

    Args:
        width, height: inches.
        title: above all; it may hold the name of a file, with dollars and what is no Unicode.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    figures, matplotlib = need("matplotlib.figure", "plot"), need("matplotlib", "plot")
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        if title:
            printable = title.encode("utf-8", "replace").decode("utf-8")
            figure.suptitle(printable, fontsize=11, parse_math=False)
        yield figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG, whole or not at all."""
    # Without the name of the program, a picture depends on nothing but what it shows.
    options = {"format": "png", "dpi": DPI, "metadata": {"Software": None}}
    try:
        write_whole(path, lambda temporary: figure.savefig(temporary, **options))
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {reason_of(error)}.") from error
