"""The architecture: where the package is, what it imports, and which way its imports point."""

import ast
import configparser
import inspect
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
SOURCE = CHECKOUT / "gram_hear"

PAGE = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")


def block(title):
    """The lines of the fenced block below a heading of the page."""
    return PAGE.split(f"## {title}\n", 1)[1].split("```\n")[1].splitlines()


def tree():
    """The modules that the picture names, as paths in the package."""
    folders = []
    for line in block("Packages"):
        if name := re.match(r"( *)(\w+(?:/|\.py))(?: |$)", line):
            depth = len(name[1]) // 2
            folders[depth:] = [name[2].rstrip("/")]
            if name[2].endswith(".py"):
                yield "/".join(folders)


def package_of(module):
    """The package of a module; those in evaluation and commands count for themselves."""
    parts = module.split(".")[1:]
    size = 2 if parts and parts[0] in ("evaluation", "commands") else 1
    return ".".join(parts[:size]) or "__init__"


def imported_packages(path, module):
    """The packages that a file imports from, without its own."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            imported.update(f"{node.module}.{alias.name}" for alias in node.names)
    ours = (each for each in imported if each.split(".")[0] == "gram_hear")
    return {package_of(each) for each in ours} - {package_of(module)}


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_imports_are_those_of_the_page_and_point_down():
    arrows = {}
    for line in block("Imports"):
        package, _, imported = line.partition("<-")
        arrows[package.strip()] = imported.split()
        above = set(imported.split()) - set(list(arrows)[:-1])
        assert not above, f"{package.strip()} imports {above}, which stand below it on the page"
    found = {}
    for path in PACKAGE.rglob("*.py"):
        module = module_of(path)
        found.setdefault(package_of(module), set()).update(imported_packages(path, module))
    assert {package: set(names) for package, names in arrows.items()} == {
        package: names for package, names in found.items() if names or package in arrows
    }


def test_the_page_names_every_module():
    modules = {path.relative_to(CHECKOUT).as_posix() for path in SOURCE.rglob("*.py")}
    named = set(tree())
    inits = {path for path in modules if path.endswith("__init__.py")}
    assert named - modules == set()
    assert modules - named - inits == set()


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
    assert {"__version__", *gram_hear.__all__} <= set(dir(gram_hear))
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = gram_hear.load_modle


@pytest.mark.parametrize("name", gram_hear.__all__)
def test_a_public_name_can_be_called_and_says_what_it_does(name):
    public = getattr(gram_hear, name)
    assert callable(public)
    assert inspect.getdoc(public)
    # Not one that dataclasses write: "Scene(ids: tuple, ...)".
    assert not public.__doc__.startswith(f"{name}(")


def test_pages_for_users_import_from_the_package_alone():
    """What needs other packages, or starts a program, has modules of its own."""
    own = re.compile(r"gram_hear\.(adapters|evaluation|pretrain)\b")
    for page in [CHECKOUT / "README.md", *(CHECKOUT / "docs").rglob("*.md")]:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
        for module in re.findall(r"(?:from|import) (gram_hear\.[\w.]+)", "\n".join(blocks)):
            assert own.match(module), f"{page.name} imports {module}"


def test_weights_ship_with_the_package():
    assert (files("gram_hear.weights") / "registry.json").is_file()


def test_python_that_starts_in_a_clone_finds_the_weights():
    code = "import gram_hear.weights as found; print(found.__file__)"
    environment = {**os.environ, "PYTHONPATH": ""}
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, "-S", "-c", code]  # without what is installed
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == CHECKOUT / "weights" / "__init__.py"


@pytest.mark.parametrize("name", ["gram_hear", "setup", "tests"])
def test_what_lies_beside_the_package_is_no_part_of_it(name):
    """gram_hear.setup would run setup.py."""
    assert not hasattr(gram_hear, name)


def test_what_the_site_leaves_behind_is_neither_committed_nor_packed():
    ignored = (CHECKOUT / ".gitignore").read_text(encoding="utf-8").splitlines()
    made = [line for line in ignored if line.startswith("docs/")]
    assert "docs/jupyter_execute/" in made  # where myst-nb keeps the notebooks it has read
    manifest = (CHECKOUT / "MANIFEST.in").read_text(encoding="utf-8")
    for name in made:
        way = "prune" if name.endswith("/") else "exclude"
        assert re.search(rf"^{way} .*{re.escape(name.rstrip('/'))}\b", manifest, re.MULTILINE)


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
        needed += packages if extra not in ("mamba", "benchmark", "remote") else ""  # not of [dev]
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
