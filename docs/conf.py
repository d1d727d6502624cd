"""The site: ``make docs`` builds it into docs/_build, offline; a warning is an error."""

import re
import subprocess
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent

project = "gram-hear"
author = "The gram-hear authors"
copyright = "2026, the gram-hear authors"
version = release = version_of("gram-hear")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
nitpicky = True  # a reference that leads nowhere is a warning
nitpick_ignore_regex = [("py:class", ".*")]  # types of other libraries, whose sites are not asked

html_theme = "furo"
html_title = "gram-hear"
html_static_path: list[str] = []
html_show_sourcelink = False
smartquotes = False  # they make a dash of the two of an option

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/test_notebooks.py runs them; here their kept outputs are shown
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

linkcheck_anchors = False  # pages that are built by scripts have none in their source
linkcheck_timeout = 20


def write_commands() -> None:
    """Write a page for each program, from the commands themselves."""
    for program in ("gram-hear", "hear-eval"):
        module = f"gram_hear.commands.{program.replace('-', '_')}.app"
        words = [sys.executable, "-m", "typer", module, "utils", "docs", "--name", program]
        page = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        page = re.sub(r"^\*\*Commands\*\*:\n\n(\*.*\n)+", "", page, flags=re.MULTILINE)
        page = re.sub(r"^(#+) `(.*)`$", r"\1 \2", page, flags=re.MULTILINE)
        page = re.sub(r"^Example: (.*)$", r"```sh\n\1\n```", page, flags=re.MULTILINE)
        (HERE / "reference" / f"{program}.md").write_text(page, encoding="utf-8")


write_commands()
