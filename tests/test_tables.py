"""Tables: fitted to a terminal, or plain for a pipe; names are never cut."""

import os
import re
import subprocess
import sys

import pytest

from gram_hear.console import print_table
from gram_hear.tables import fitted_lines, plain_lines

NAMES = ("gramt-binaural-frame", "gram-tiny-ambisonics", "a")
MODELS = {
    "name": NAMES,
    "channels": ("2", "7", ""),
    "description": (f"{'word ' * 20}gram-tiny-untrained", "short", "two  spaces\nand a line"),
    "repository": tuple(f"someone/{name}" for name in NAMES),
}
SCORES = {"task": ("esc50-v2.0.0-full", "b")} | {
    f"model-with-a-long-name-{n}": ("0.1234 ±0.0100 *", "undefined") for n in range(12)
}


def test_a_plain_table_has_a_line_for_each_row_and_two_spaces_between_columns():
    lines = [re.split("  +", line) for line in plain_lines(MODELS)]
    assert lines[0] == list(MODELS)
    assert [line[0] for line in lines[1:]] == list(NAMES)
    assert lines[3] == ["a", "-", "two spaces and a line", "someone/a"]
    assert lines[1][3] == "someone/gramt-binaural-frame"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_is_filled_and_no_name_is_cut(width):
    lines, left_out = fitted_lines(MODELS, width, fold=["description"], spare=["repository"])
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(name in text for name in (*NAMES, "gram-tiny-untrained"))
    assert left_out == (["repository"] if width < 100 else [])
    assert ("someone/gramt-binaural-frame" in text) == (not left_out)
    assert len({line.index("word") for line in lines if "word" in line}) == 1


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_that_is_too_wide_is_divided(width):
    lines, left_out = fitted_lines(SCORES, width)
    assert left_out == []
    assert max(map(len, lines)) <= width
    heads = [line.split() for line in lines if line.startswith("task")]
    assert [name for head in heads for name in head[1:]] == list(SCORES)[1:]
    assert (len(heads) == 1) == (width > 12 * 30)
    rows = [line for line in lines if line.startswith("esc50-v2.0.0-full ")]
    assert len(rows) == len(heads)
    assert "\n".join(rows).count("0.1234 ±0.0100 *") == 12


def test_one_column_may_be_wider_than_the_terminal():
    lines, _ = fitted_lines({"what": ("hash",), "value": ("f" * 64,)}, 40)
    assert lines[-1] == f"hash  {'f' * 64}"


def test_wide_characters_and_a_total_are_aligned():
    lines, _ = fitted_lines(
        {"class": ("鳥", "ab", "all"), "train": ("1", "2", "3")}, 80, total=True
    )
    assert lines == [
        "class  train",
        "-----  -----",
        "鳥     1",
        "ab     2",
        "-----  -----",
        "all    3",
    ]


def test_control_characters_take_the_place_that_is_seen():
    assert plain_lines({"a": ("\x1b\x01", "b"), "c": ("1", "2")}) == ["a   c", "??  1", "b   2"]


def test_tables_without_rows():
    assert plain_lines({"a": (), "b": ()}) == ["a  b"]
    assert fitted_lines({"a": (), "b": ()}, 80)[0] == ["a  b", "-  -"]


def test_what_a_terminal_has_no_room_for_is_said(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("gram-tiny", "x" * 40)]
    print_table(("name", "more"), rows, title="Models", spare=["more"])
    out, err = capsys.readouterr()
    assert out.splitlines() == ["Models", "name       more", f"gram-tiny  {'x' * 40}"]
    assert err == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table(("name", "more"), rows, title="Models", spare=["more"])
    out, err = capsys.readouterr()
    assert out.splitlines() == ["Models", "name", "---------", "gram-tiny"]
    assert err == "The terminal is too narrow for the columns more.\n"


@pytest.mark.parametrize("columns", ["0", "1", "wide", ""])
def test_lines_are_printed_however_wide_the_terminal_says_it_is(columns):
    code = "from gram_hear.console import results, say; say('a line'); say('another', results)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("another\n", "a line\n")


def test_rows_of_several_models_stay_beside_their_model():
    """A long table is grouped by its first column before the other columns are divided."""
    tasks, models = ("esc50-v2.0.0-full", "fsdd-v1-full"), ("gramt-binaural-frame", "gram-tiny")
    table = {
        "task": [task for task in tasks for _ in models],
        "model": [*models, *models],
        "difference": ["-0.1", "-0.2", "-0.3", "-0.4"],
        "clips": ["80"] * 4,
        "": ["significant", "not significant"] * 2,
    }
    assert len(fitted_lines(table, 80)[0]) == 6
    lines, left_out = fitted_lines(table, 54, spare=["seeds", "clips"])
    assert left_out == ["clips"]
    assert [line for line in lines if line in tasks] == list(tasks)
    assert "gram-tiny             -0.4        not significant" in lines
    assert max(map(len, lines)) <= 54


def test_a_line_is_printed_as_it_is(capsys):
    """Names of files and classes may look like markup, or like names of pictures."""
    print_table(("class", "files"), [("[red]a:cat:b[/red]", "1")])
    assert capsys.readouterr().out.splitlines()[1] == "[red]a:cat:b[/red]  1"
