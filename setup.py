"""Packages of the distribution, and its README as a package index shows it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

SOURCE = ""  # where the files of a clone can be read on the web, once they can: https://.../main


def description() -> str:
    """The README; links to files of a clone, dead elsewhere, are made absolute or their names.

    Pictures of a clone are left out while there is no SOURCE.
    """

    def absolute(link: re.Match) -> str:
        picture, text, target = link.groups()
        if SOURCE:
            return f"{picture}[{text}]({SOURCE}/{target}{'?raw=true' if picture else ''})"
        if picture:
            return ""
        return text if text == target else f"{text} ({target})"

    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^]]+)\]\((?!https?:|#)([^)]+)\)", absolute, readme)


# weights/ ships as gram_hear.weights
setup(
    packages=[*find_packages(include=["gram_hear", "gram_hear.*"]), "gram_hear.weights"],
    long_description=description(),
)
