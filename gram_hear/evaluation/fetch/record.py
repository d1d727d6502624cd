"""What a record of the public HEAR 2021 archive holds: archives of tasks, listed and chosen.

An archive holds one task at one sample rate. Sources: Zenodo's records API
(developers.zenodo.org); the names of the archives from hearpreprocess, which made them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gram_hear.errors import OptionError, TaskError, nearest, short
from gram_hear.evaluation.fetch.site import (
    SITE,
    Report,
    is_web_address,
    open_url,
    patiently,
    site_address,
)
from gram_hear.foreign import LARGEST, parse_json
from gram_hear.tasks import LONGEST_NAME, METADATA

RECORD = "5885750"  # HEAR 2021, all tasks, at 48,000 Hz
RATE = 48000
STORE = ".fetch"  # in the folder of tasks: what is not a task yet
# hear2021-esc50-v2.0.0-full-48000.tar.gz; hearpreprocess itself writes hear-2021.0.6-... and
# hear-LATEST-... A name is also that of a file here, so it holds nothing but these characters.
NAME = re.compile(
    r"(?:hear-?(?:LATEST|\d[\d.]*)-)?(?P<task>[A-Za-z0-9][\w.+-]*?)(?:-(?P<rate>\d{4,6}))?"
    r"\.(?:tar|tar\.gz|tgz)",
    re.ASCII,
)
DIGESTS = {"md5": 32, "sha256": 64}  # of checksums, and how long they are


@dataclass(frozen=True)
class Archive:
    """One task at one sample rate, as a file of the record.

    ``size`` is in bytes; ``rate`` in Hz, or None where the name has none; ``checksum`` is the
    algorithm and the hexadecimal digest.
    """

    file: str
    task: str
    rate: int | None
    size: int
    checksum: tuple[str, str]
    url: str

    def stored(self, tasks_dir: Path) -> Path:
        """Return where the checked archive lies; another content has another name."""
        return tasks_dir / STORE / f"{self.checksum[1][:8]}-{self.file}"

    def part(self, tasks_dir: Path) -> Path:
        """Return where the archive grows."""
        return Path(f"{self.stored(tasks_dir)}.part")

    def lock(self, tasks_dir: Path) -> Path:
        """Return the lock that is held by the run that fetches the archive."""
        return Path(f"{self.stored(tasks_dir)}.lock")

    def fetched(self, tasks_dir: Path) -> int:
        """Return how many bytes of the archive are there."""
        return max(size_of(self.stored(tasks_dir)), size_of(self.part(tasks_dir)))

    def is_unpacked(self, tasks_dir: Path) -> bool:
        """Whether the task is there at this rate.

        Raises:
            TaskError: where something else is in its place, or the task lacks the rate.
        """
        folder = tasks_dir / self.task
        if not folder.exists():
            return False
        if not (folder / METADATA).is_file():
            raise TaskError(
                f"{folder} is there and is no HEAR task (it has no {METADATA}); rename it, or "
                "fetch into another folder."
            )
        if self.rate is not None and not (folder / str(self.rate)).is_dir():
            raise TaskError(
                f"{folder} is there, without audio at {self.rate} Hz; a task is fetched whole: "
                "rename or delete that folder, or fetch into another one."
            )
        return True

    def state(self, tasks_dir: Path) -> str:
        """Return in words what of it is there: "there", "in the way", "34 % fetched" or ""."""
        try:
            if self.is_unpacked(tasks_dir):
                return "there"
        except TaskError:
            return "in the way"
        share = 100 * self.fetched(tasks_dir) // max(self.size, 1)
        return f"{share} % fetched" if self.fetched(tasks_dir) else ""


@dataclass(frozen=True)
class Record:
    """A published set of archives: its number, title and version, and what it holds of tasks."""

    number: str
    title: str
    version: str
    archives: tuple[Archive, ...]


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 where it is not there."""
    return path.stat().st_size if path.is_file() else 0


def read_record(number: str = RECORD, report: Report = lambda text: None) -> Record:
    """Ask what a record holds.

    Args:
        number: of the record, or of all its versions, which is the newest one.
        report: told of pauses where the site does not answer at once.

    Raises:
        OptionError: for what is no number, or an address in GRAM_HEAR_ZENODO that is none.
        TaskError: where there is no such record, it cannot be reached, or it is not understood.
    """
    if not number.isdecimal():
        raise OptionError(f"--record is {number!r}; it must be the number of a Zenodo record.")
    site = site_address()

    def ask() -> bytes:
        with open_url(f"{site}/api/records/{number}") as response:
            return response.read(LARGEST + 1)

    content = patiently(f"record {number}", ask, report)
    record = parse_json(content, f"What {site} says of record {number}", TaskError)
    try:
        files = record["files"]
        entries = files["entries"].values() if isinstance(files, dict) else files
        archives = [each for entry in entries if (each := _archive(entry, number, site))]
        about = record.get("metadata") or {}
        title, edition = (printable(about.get(key, "")) for key in ("title", "version"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TaskError(
            f"What {site} says of record {number} is not understood ({type(error).__name__}: "
            f"{error}); is it the address of a Zenodo site?"
        ) from error
    if not archives:
        raise TaskError(
            f"Record {number} ({title or 'without a title'}) holds no archive of a task, such as "
            f"hear2021-esc50-v2.0.0-full-48000.tar.gz; HEAR 2021 is record {RECORD}."
        )
    ordered = tuple(sorted(archives, key=lambda each: (each.task, each.rate or 0)))
    return Record(number, title, edition, ordered)


def printable(value: Any) -> str:
    """Return the beginning of a text from a site, without characters that control a terminal."""
    return "".join(each for each in str(value)[:200] if each.isprintable())


def _archive(entry: Mapping[str, Any], number: str, site: str) -> Archive | None:
    """Return the archive that a file of a record is, or None for another kind of file."""
    match = NAME.fullmatch(entry["key"]) if len(entry["key"]) <= LONGEST_NAME // 2 else None
    if match is None:
        return None
    links = entry.get("links") or {}
    plain = f"{site}/api/records/{number}/files/{quote(entry['key'])}/content"
    url = links.get("content") or links.get("self") or plain
    if url.startswith(f"{SITE}/"):  # a mirror may repeat the original's words
        url = site + url.removeprefix(SITE)
    algorithm, _, digest = entry["checksum"].rpartition(":")
    algorithm = algorithm or "md5"
    size = entry["size"]
    if (
        not is_web_address(url)
        or not isinstance(size, int)
        or size < 0
        or not re.fullmatch(rf"[0-9a-f]{{{DIGESTS.get(algorithm, 0)}}}", digest)
    ):
        said = (short(each) for each in (size, entry["checksum"], url))
        raise ValueError(f"{entry['key']} has the size {', '.join(said)}")
    rate = int(match["rate"]) if match["rate"] else None
    return Archive(entry["key"], match["task"], rate, size, (algorithm, digest), url)


def choose(archives: Sequence[Archive], names: Sequence[str], rate: int) -> list[Archive]:
    """Return the archives of some tasks at a sample rate.

    Args:
        archives: what there is.
        names: tasks, in any order; "all" is all. A name may lack its version and mode (``esc50``
            for ``esc50-v2.0.0-full``) and the beginning ``tfds_`` where one task alone is meant.
        rate: in Hz; an archive whose name has no rate fits any.

    Raises:
        OptionError: for a name that no task has or several share, or a rate that is not there.
    """
    tasks = list(dict.fromkeys(each.task for each in archives))
    wanted = tasks if "all" in names else [_full_name(name, tasks) for name in names]
    chosen = []
    for task in dict.fromkeys(wanted):
        there = [each for each in archives if each.task == task]
        fitting = [each for each in there if each.rate in (rate, None)]
        if not fitting:
            rates = ", ".join(str(each.rate) for each in there)
            raise OptionError(
                f"{task} is not there at {rate} Hz, only at {rates}. Fetch that: hear-eval makes "
                "the rate that a module needs from the highest one, once."
            )
        chosen.append(fitting[0])
    return chosen


def _full_name(name: str, tasks: Sequence[str]) -> str:
    if name in tasks:
        return name
    longer = [each for each in tasks if f"{each.removeprefix('tfds_')}-".startswith(f"{name}-")]
    if len(longer) > 1:
        raise OptionError(f"Several tasks are called {name}: {', '.join(longer)}; give one.")
    if not longer:
        short = [each.removeprefix("tfds_").split("-")[0] for each in tasks]
        raise OptionError(
            f"There is no task {name!r}; there are {', '.join(tasks)}."
            + nearest(name, [*tasks, *short])
        )
    return longer[0]


def in_words(size: int) -> str:
    """Return a number of bytes in a unit that fits: ``"2.3 GB"``."""
    number, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
