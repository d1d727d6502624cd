"""The notebooks print what they hold. As a program, keep what they print: ``make notebooks``."""

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LARGEST = 500_000  # bytes of a file
LONGEST = 12  # lines of a code cell
NUMBER = re.compile(r"(?<!\w)-?\d+(?:\.\d+)?")
SCORES = 0.1  # by how much what training gives may differ, in cells with the tag "scores"


def run(path):
    """Return a notebook with the outputs of a new run, without what goes to stderr."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "IPYTHONDIR": folder,
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        NotebookClient(
            notebook,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},  # the working directory
        ).execute(env=environment)
    for cell in code_cells(notebook):
        cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell):
    """What a cell prints and returns, but not what stands for a picture."""
    texts = []
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" not in data:
            texts.append(output.get("text") or data["text/plain"])
    return "\n".join(texts)


def tolerance(number):
    """One in the last digit that is printed."""
    return 1.01 * 10.0 ** -len(number.partition(".")[2])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_holds(path):
    kept = nbformat.read(path, as_version=4)
    for before, after in zip(code_cells(kept), code_cells(run(path)), strict=True):
        old, new = text_of(before), text_of(after)
        assert NUMBER.sub("#", new).split() == NUMBER.sub("#", old).split(), before.source
        scores = SCORES * ("scores" in before.metadata.get("tags", []))
        for was, is_now in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
            allowed = max(scores, tolerance(was))
            assert float(is_now) == pytest.approx(float(was), abs=allowed), before.source
        pictures = ["image/png" in each.get("data", {}) for each in before.outputs]
        assert pictures == ["image/png" in each.get("data", {}) for each in after.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size <= LARGEST
    assert notebook.metadata == METADATA
    for cell in code_cells(notebook):
        assert set(cell.metadata) <= {"tags"}
        assert len(cell.source.splitlines()) <= LONGEST, cell.source
        assert not re.search(r"(from|import) gram_hear\.", cell.source), cell.source
        assert not re.search(r"/(tmp|home|root|Users|usr|var)\b", text_of(cell)), cell.source


if __name__ == "__main__":
    for path in NOTEBOOKS:
        print(path.name)
        nbformat.write(run(path), path)
