"""The house: where the package is, what it imports, and which way its imports point."""

import ast
import configparser
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.version import Version

import gram_hear
from gram_hear.errors import OptionError
from gram_hear.extras import need

PACKAGE = Path(gram_hear.__file__).parent
CHECKOUT = Path(__file__).parent.parent

# Each part may import the parts named with it, and itself.
BASE = {"errors", "foreign", "config", "writing"}
MODEL = BASE | {"audio", "frontend", "windows", "nn"}
ARROWS = {
    "weights": set(),
    "errors": set(),
    "foreign": {"errors"},
    "writing": {"errors"},
    "interrupts": set(),
    "config": {"errors", "foreign"},
    "audio": BASE,
    "frontend": BASE | {"audio"},
    "windows": BASE | {"audio"},
    "nn": BASE | {"audio", "extras"},
    "model": MODEL,
    "stream": MODEL | {"model"},
    "checkpoints": MODEL | {"model"},
    "hear": MODEL | {"model", "stream", "checkpoints"},
    "embed": MODEL | {"model", "checkpoints", "hear", "interrupts"},
    "start": {"errors"},
    "console": {"errors", "start"},
    "extras": {"errors"},
    "tasks": BASE | {"audio"},
    "scenes": BASE | {"audio", "tasks", "extras", "interrupts"},
    "plots": BASE | {"audio", "extras", "scenes"},
    "localisation": MODEL | {"model", "checkpoints", "hear", "scenes"},
    "evaluation": BASE | {"audio", "tasks", "console", "extras", "interrupts", "start"},
    "collection": MODEL | {"model", "checkpoints", "hear", "embed", "extras"},
    "preparation": BASE | {"audio", "scenes"},
    "pretrain": MODEL | {"scenes", "checkpoints", "extras", "console", "plots", "start"},
    "commands": MODEL
    | {"model", "checkpoints", "hear", "localisation"}
    | {"tasks", "scenes", "plots", "preparation", "extras", "console"},
    "adapters": {"errors", "config", "audio", "checkpoints", "hear"},
    "cli": MODEL
    | {"model", "checkpoints", "hear", "embed", "collection", "commands", "console", "gram_hear"},
    "__init__": MODEL | {"model", "checkpoints", "hear", "embed", "collection"},
}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path):
    """The parts of gram_hear that a file imports; the package itself counts as gram_hear."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [node.module]
        else:
            continue
        for module in modules:
            if module.split(".")[0] == "gram_hear":
                yield [*module.split("."), "gram_hear"][1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_imports_point_down(path):
    part = part_of(path)
    assert part in ARROWS, f"{part} is new: give it its place in the picture and here"
    wrong = set(imported_parts(path)) - ARROWS[part] - {part}
    assert not wrong, f"{path.name} imports {wrong}"


def test_installed_package_is_what_is_tested():
    installed = "site-packages" in PACKAGE.parts
    if os.environ.get("GRAM_HEAR_INSTALLED"):
        assert installed
    else:
        assert installed or PACKAGE == CHECKOUT / "gram_hear"


def test_import_takes_little(tmp_path):
    code = "import gram_hear, sys; print(' '.join(sys.modules))"
    command = [sys.executable, "-c", code]  # elsewhere, since -c would import from this folder
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    late = {"torch", "numpy", "huggingface_hub", "soundfile", "typer", "rich", "matplotlib"}
    assert "gram_hear" in loaded
    assert not late & set(loaded)


def test_version_and_public_names():
    assert gram_hear.__version__ == version("gram-hear")
    assert all(callable(getattr(gram_hear, name)) for name in gram_hear.__all__)
    assert {"__version__", *gram_hear.__all__} <= set(dir(gram_hear))
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = gram_hear.load_modle


def test_weights_ship_with_the_package():
    assert (files("gram_hear.weights") / "registry.json").is_file()


def pins(name):
    """The versions of a file of constraints, by the package's name in lower case."""
    lines = (CHECKOUT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower(): found for package, found in pairs}


def test_the_lowest_versions_that_are_tested_are_those_declared():
    declared = configparser.ConfigParser(interpolation=None)
    declared.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    needed = declared["options"]["install_requires"]
    for extra, packages in declared["options.extras_require"].items():
        needed += packages if extra not in ("mamba", "benchmark") else ""  # not of [dev]
    floors = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", needed, re.MULTILINE))
    lowest, newest = pins("constraints-lowest.txt"), pins("constraints.txt")
    assert floors.pop("torch") == "2.6"
    assert lowest["torch"] == newest["torch"]  # of older ones indexes have the CUDA build alone
    assert floors
    for package, floor in floors.items():
        assert Version(lowest[package.lower()]) == Version(floor), package
        assert package.lower() in newest


def test_an_absent_extra_is_told_with_commands_for_an_index_and_a_clone():
    with pytest.raises(OptionError) as told:
        need("no_such_package", "plot")
    assert 'pip install "gram-hear[plot]"' in str(told.value)
    assert 'pip install ".[plot]"' in str(told.value)


def test_the_readme_of_a_package_index_has_no_dead_links():
    done = subprocess.run(
        [sys.executable, "setup.py", "--long-description"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert "# gram-hear" in done.stdout
    assert "@@" not in done.stdout, "a placeholder was left in the README"
    links = re.findall(r"\]\(([^)]+)\)", done.stdout)
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)
