"""Tables of text: fitted to a terminal, or plain for a pipe. No cell is ever cut."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest

from rich.cells import cell_len

from gram_hear.errors import visible

GAP = "  "  # between columns
READABLE = 24  # characters: a column is not folded to fewer while others can be left out

Columns = Mapping[str, Sequence[str]]  # head -> cells


def plain_lines(table: Columns) -> list[str]:
    """Return a table as one line for its heads and one for each row.

    Two spaces or more stand between columns, and never in a cell; an empty cell is "-".
    """
    columns = [[cell or "-" for cell in (head, *cells)] for head, cells in _tidy(table).items()]
    widths = [_longest(cells) for cells in columns]
    return [_line(row, widths) for row in zip(*columns, strict=True)]


def fitted_lines(
    table: Columns,
    width: int,
    fold: Collection[str] = (),
    spare: Sequence[str] = (),
    total: bool = False,
) -> tuple[list[str], list[str]]:
    """Return a table as lines for a terminal, and the heads of the columns that were left out.

    A table that is too wide, and whose first column holds values several times, becomes a table for
    each value. Then the columns in ``spare`` are left out, in this order. What is too wide still
    becomes several tables below each other, each of which begins with the first column.

    Args:
        table: the cells of each column.
        width: characters in a line; only a long word or an unfolded cell makes a longer one.
        fold: columns whose cells may take several lines, broken between words.
        spare: columns that can be left out.
        total: whether the last row is set apart.
    """
    shown, left_out = _tidy(table), []
    first = next(iter(shown))
    values = dict.fromkeys(shown[first])
    groups = None
    if _least_width(shown, fold) > width and len(values) < len(shown[first]):
        groups = shown.pop(first)
    for head in spare:
        if head in shown and _least_width(shown, fold) > width:
            del shown[head]
            left_out.append(head)
    if groups is None:
        return _parts(shown, width, fold, total), left_out
    lines: list[str] = []
    for value in values:
        group = {
            head: [cell for cell, of in zip(cells, groups, strict=True) if of == value]
            for head, cells in shown.items()
        }
        lines += [""] * bool(lines) + [value, *_parts(group, width, fold, total=False)]
    return lines, left_out


def _tidy(table: Columns) -> dict[str, list[str]]:
    """Return a table without runs of spaces, tabs and line breaks, and control characters."""
    return {
        head: [visible(" ".join(cell.split())) for cell in cells] for head, cells in table.items()
    }


def _parts(table: Columns, width: int, fold: Collection[str], total: bool) -> list[str]:
    """Return the lines of a table, or of several that fit, each with the first column."""
    first, *others = table
    parts = [[first]]
    for head in others:
        wider = {each: table[each] for each in (*parts[-1], head)}
        if len(parts[-1]) > 1 and _least_width(wider, fold) > width:
            parts.append([first])
        parts[-1].append(head)
    lines: list[str] = []
    for part in parts:
        drawn = _drawn({head: table[head] for head in part}, width, fold, total)
        lines += [""] * bool(lines) + drawn
    return lines


def _drawn(table: Columns, width: int, fold: Collection[str], total: bool) -> list[str]:
    widths = [_least(head, cells, fold) for head, cells in table.items()]
    wanted = [_longest([head, *cells]) for head, cells in table.items()]
    while _whole(widths) < width and widths != wanted:
        narrow = [n for n in range(len(widths)) if widths[n] < wanted[n]]
        widths[min(narrow, key=widths.__getitem__)] += 1
    rule = _line(["-" * width for width in widths], widths)
    head, *rows = (
        _folded(row, widths) for row in (list(table), *zip(*table.values(), strict=True))
    )
    last = [rule, *rows.pop()] if total and rows else []
    return [*head, rule, *(line for row in rows for line in row), *last]


def _folded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Return a row as lines, its cells broken between words."""
    broken = [
        textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
        for cell, width in zip(cells, widths, strict=True)
    ]
    return [_line(line, widths) for line in zip_longest(*broken, fillvalue="")] or [""]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)
    )
    return GAP.join(padded).rstrip()


def _least(head: str, cells: Sequence[str], fold: Collection[str]) -> int:
    """Return how narrow a column can be: heads break between words, cells in ``fold`` too."""
    words = [word for text in (head, *(cells if head in fold else ())) for word in text.split()]
    least = _longest([*words, *(() if head in fold else cells)])
    return max(least, min(READABLE, _longest(cells))) if head in fold else least


def _longest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _least_width(table: Columns, fold: Collection[str]) -> int:
    return _whole([_least(head, cells, fold) for head, cells in table.items()])


def _whole(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)
