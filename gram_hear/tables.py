"""Tables of text: fitted to a terminal, or plain for a pipe. No cell is ever cut."""

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest

from rich.cells import cell_len

GAP = "  "  # between columns
READABLE = 24  # characters: a column is not folded to fewer while others can be left out

Columns = Mapping[str, Sequence[str]]  # head -> cells


def plain_lines(table: Columns) -> list[str]:
    """Return a table as one line for its heads and one for each row.

    Two spaces or more stand between columns, and never in a cell; an empty cell is "-".
    """
    filled = {head: [cell or "-" for cell in cells] for head, cells in _tidy(table).items()}
    widths = [_longest([head, *cells]) for head, cells in filled.items()]
    return [_line(row, widths) for row in (list(filled), *zip(*filled.values(), strict=True))]


def fitted_lines(
    table: Columns,
    width: int,
    fold: Collection[str] = (),
    spare: Sequence[str] = (),
    total: bool = False,
) -> tuple[list[str], list[str]]:
    """Return a table as lines for a terminal, and the heads of the columns that were left out.

    A table that is too wide loses the columns in ``spare``, in this order. If it is too wide still,
    it becomes several tables below each other, each of which begins with the first column.

    Args:
        table: the cells of each column.
        width: characters in a line; only a long word or an unfolded cell makes a longer one.
        fold: columns whose cells may take several lines, broken between words.
        spare: columns that can be left out.
        total: whether the last row is set apart.
    """
    shown, left_out = _tidy(table), []
    for head in spare:
        if _whole([_least(head, shown[head], fold) for head in shown]) > width:
            del shown[head]
            left_out.append(head)
    lines: list[str] = []
    for part in _parts(shown, width, fold):
        lines += [""] * bool(lines) + _drawn(part, width, fold, total)
    return lines, left_out


def _tidy(table: Columns) -> dict[str, list[str]]:
    """Return a table without runs of spaces, tabs and line breaks."""
    return {head: [" ".join(cell.split()) for cell in cells] for head, cells in table.items()}


def _parts(table: Columns, width: int, fold: Collection[str]) -> Iterator[Columns]:
    """Yield tables that fit, each with the first column."""
    first, *others = table
    part = [first]
    for head in others:
        least = [_least(each, table[each], fold) for each in (*part, head)]
        if len(part) > 1 and _whole(least) > width:
            yield {each: table[each] for each in part}
            part = [first]
        part.append(head)
    yield {each: table[each] for each in part}


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


def _whole(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)
