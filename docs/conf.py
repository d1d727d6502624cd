"""The site: ``make docs`` builds it into docs/_build, offline; a warning is an error."""

import re
import subprocess
import sys
import textwrap
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
CODE = r"^```.*?^```|`[^`\n]+`|(?<!\w)'[^'\n]+'(?!\w)|(?<![\w-])--[a-z][a-z-]*"

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
exclude_patterns = ["_build", "jupyter_execute", "**/.ipynb_checkpoints"]
nitpicky = True  # a reference that leads nowhere is a warning
nitpick_ignore_regex = [("py:class", ".*")]  # types of other libraries, whose sites are not asked

html_theme = "furo"
html_title = "gram-hear"
html_static_path: list[str] = []
html_show_sourcelink = False
smartquotes = False  # they make a dash of the two of an option

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
smartquotes = False  # "--" would become a dash, in names of options too
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


def _examples(found: re.Match) -> str:
    """Return the examples of a command, which its help indents, as a block of shell lines."""
    return f"Examples:\n\n```sh\n{textwrap.dedent(found[1])}```\n"


def _as_code(found: re.Match) -> str:
    """Return what is code already as it is, and a quoted command or an option's name as code."""
    if found[0].startswith("`"):
        return found[0]
    return "`" + found[0].strip("'") + "`"


def write_commands() -> None:
    """Write a page for each program, from the commands themselves."""
    for program in ("gram-hear", "hear-eval"):
        module = f"gram_hear.commands.{program.replace('-', '_')}.app"
        words = [sys.executable, "-m", "typer", module, "utils", "docs", "--name", program]
        page = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        page = re.sub(r"^\*\*Commands\*\*:\n\n(\*.*\n)+", "", page, flags=re.MULTILINE)
        page = re.sub(r"^(#+) `(.*)`$", r"\1 \2", page, flags=re.MULTILINE)
        page = re.sub(r"^\x08\nExamples:\n((?:  .*\n)+)", _examples, page, flags=re.MULTILINE)
        page = re.sub(CODE, _as_code, page, flags=re.MULTILINE | re.DOTALL)
        (HERE / "reference" / f"{program}.md").write_text(page, encoding="utf-8")


write_commands()
