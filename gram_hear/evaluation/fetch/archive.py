"""The public HEAR 2021 archive: listed, downloaded in steps that can be cut, checked, unpacked.

An archive holds one task at one sample rate. It goes into ``<tasks>/.fetch`` as a ``.part`` that
grows, loses that ending once its checksum is right, is unpacked beside it, and only a whole task is
renamed into ``<tasks>``: whatever is killed, the next run goes on from there.

Sources: Zenodo's records API (developers.zenodo.org); the names and the inner folders of the
archives from hearpreprocess, which made them (``hear-<version>/tasks/<task>/<rate>/...``).
"""

import errno
import hashlib
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from gram_hear.errors import OptionError, TaskError, nearest, reason_of, short
from gram_hear.foreign import LARGEST, TAR_FAULTS, BoundedMember, parse_json
from gram_hear.jobs.locks import locked
from gram_hear.jobs.progress import Progress, silent
from gram_hear.tasks import LONGEST_NAME, METADATA

RECORD = "5885750"  # HEAR 2021, all tasks, at 48,000 Hz
SITE, SITE_VARIABLE = "https://zenodo.org", "GRAM_HEAR_ZENODO"
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
BLOCK = 1 << 20
# What an archive may hold, of a task or of anything else.
MOST_MEMBERS = 500_000
MOST_FOLDERS = 32  # inside each other
LONGEST_PATH = 1024  # characters
LARGEST_RATIO = 100  # of what is unpacked to the archive ...
SMALL = 256 << 20  # ... from so many bytes on
GZIP = b"\x1f\x8b"
TIMEOUT = 60.0  # seconds without a byte until a connection counts as cut
ATTEMPTS = 5  # at an archive, in a row, that bring nothing, with pauses that double
QUESTIONS = 3  # at a record: who is offline hears so soon
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 120.0  # seconds
REMEDIES = {  # what a disk's own faults, which are not the archive's, need
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "see that its folder can be written",
    errno.EPERM: "see that its folder can be written",
    errno.EROFS: "see that its folder can be written",
    errno.EIO: "see to the disk",
}
PASSING = (408, 425, 429, 500, 502, 503, 504)  # refusals that time may heal

Report = Callable[[str], None]
_Answer = TypeVar("_Answer")


class _Cut(OSError):
    """A connection that ended before its content did."""


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
        stored = self.stored(tasks_dir)
        return stored.with_name(f"{stored.name}.part")

    def fetched(self, tasks_dir: Path) -> int:
        """Return how many bytes of the archive are there."""
        return max(_size(self.stored(tasks_dir)), _size(self.part(tasks_dir)))

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


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


# --- asking ---------------------------------------------------------------------------------


def _site() -> str:
    """Return the address of the archive's site, without a slash at its end."""
    site = os.environ.get(SITE_VARIABLE, "").strip().rstrip("/") or SITE
    if not _is_web(site):
        raise OptionError(
            f"The environment variable {SITE_VARIABLE} is {site!r}; it must be the address of a "
            f"site, such as {SITE}."
        )
    return site


def _is_web(address: str) -> bool:
    """Whether an address is one of the web: urllib would open files too."""
    if re.fullmatch(r"https?://[!-~]+", address) is None:
        return False
    try:
        parts = urlsplit(address)
        return bool(parts.hostname) and parts.port != 0  # a port that cannot be raises
    except ValueError:
        return False


def _open(url: str, start: int = 0) -> HTTPResponse:
    """Ask for an address, from a byte on."""
    headers = {"User-Agent": f"gram-hear/{version('gram-hear')}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urlopen(Request(url, headers=headers), timeout=TIMEOUT)


def _patiently(
    what: str,
    attempt: Callable[[], _Answer],
    report: Report,
    arrived: Callable[[], int] | None = None,
) -> _Answer:
    """Return what an attempt returns; try again where a fault may pass.

    Args:
        what: what is asked for, for messages.
        attempt: it raises what urllib raises.
        report: told of each pause.
        arrived: how many bytes are kept: an attempt that brought some was not in vain. None where
            nothing is kept.

    Raises:
        TaskError: where the site refuses for good, or too many attempts in a row brought nothing.
    """
    vain = 0
    while True:
        before = arrived() if arrived else 0
        try:
            return attempt()
        except HTTPError as error:
            reason, asked = f"{error.code} {error.reason}", _retry_after(error)
            error.close()
            if error.code not in PASSING:
                raise TaskError(_refusal(what, error)) from error
        except TaskError:
            raise
        except (OSError, HTTPException, ValueError, OverflowError) as error:  # also of a redirect
            reason, asked = str(getattr(error, "reason", error)) or type(error).__name__, None
        vain = 1 if arrived and arrived() > before else vain + 1
        pause = FIRST_PAUSE * 2 ** (vain - 1) if asked is None else asked
        if vain == (ATTEMPTS if arrived else QUESTIONS) or pause > LONGEST_PAUSE:
            wait = f"; the site asks to wait for {asked:.0f} s" if asked else ""
            kept = "What has arrived is kept: r" if arrived else "R"
            raise TaskError(
                f"{what} could not be fetched ({reason}{wait}). {kept}un the same command again."
            )
        report(f"{what}: {reason}; trying again in {pause:g} s.")
        time.sleep(pause)


def _retry_after(error: HTTPError) -> float | None:
    """Return the seconds that a refusal asks to wait for, where it says so."""
    asked = error.headers.get("Retry-After", "") if error.headers else ""
    return float(asked) if asked.isdecimal() else None


def _refusal(what: str, error: HTTPError) -> str:
    if error.code in (404, 410):
        return (
            f"There is no {what} at {urlsplit(error.url).netloc} ({error.code} {error.reason}); "
            f"check the record's number, and {SITE_VARIABLE} where it is set."
        )
    return f"{what} was refused by {urlsplit(error.url).netloc} ({error.code} {error.reason})."


def read_record(number: str = RECORD, report: Report = lambda text: None) -> Record:
    """Ask what a record holds.

    Args:
        number: of the record, or of all its versions, which is the newest one.
        report: told of pauses where the site does not answer at once.

    Raises:
        OptionError: for a number that is none, or an address in GRAM_HEAR_ZENODO that is none.
        TaskError: where there is no such record, it cannot be reached, or it is not understood.
    """
    if not number.isdecimal():
        raise OptionError(f"--record is {number!r}; it must be the number of a Zenodo record.")
    site = _site()

    def ask() -> bytes:
        with _open(f"{site}/api/records/{number}") as response:
            return response.read(LARGEST + 1)

    content = _patiently(f"record {number}", ask, report)
    record = parse_json(content, f"What {site} says of record {number}", TaskError)
    try:
        files = record["files"]
        entries = files["entries"].values() if isinstance(files, dict) else files
        archives = [each for entry in entries if (each := _archive(entry, number, site))]
        about = record.get("metadata") or {}
        title, edition = (_line(about.get(key, "")) for key in ("title", "version"))
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


def _line(value: Any) -> str:
    """Return what a site says in words, as a line that can be printed."""
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
        not _is_web(url)
        or not isinstance(size, int)
        or size < 0
        or not re.fullmatch(rf"[0-9a-f]{{{DIGESTS.get(algorithm, 0)}}}", digest)
    ):
        said = (short(each) for each in (size, entry["checksum"], url))
        raise ValueError(f"{entry['key']} has the size {', '.join(said)}")
    rate = int(match["rate"]) if match["rate"] else None
    return Archive(entry["key"], match["task"], rate, size, (algorithm, digest), url)


# --- choosing -------------------------------------------------------------------------------


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


def check_space(archives: Sequence[Archive], tasks_dir: Path) -> None:
    """Check that what is to be fetched can fit, before anything is.

    An archive is deleted once it is unpacked, and what it holds is at least about as large as it
    is: so all of them, and the largest once more.

    Raises:
        TaskError: where less is free.
    """
    sizes = [each.size for each in archives]
    there = sum(each.fetched(tasks_dir) for each in archives)
    needed = sum(sizes) + max(sizes, default=0) - there
    place = next(each for each in (tasks_dir, *tasks_dir.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise TaskError(
            f"{place} has {in_words(free)} free, but at least {in_words(needed)} are needed: the "
            "archives are unpacked beside themselves. Fetch fewer tasks, or give a folder on "
            "another disk."
        )


def in_words(size: int) -> str:
    """Return a number of bytes as people say it: ``"2.3 GB"``."""
    number, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"


# --- fetching -------------------------------------------------------------------------------


@contextmanager
def fetching(tasks_dir: Path) -> Iterator[None]:
    """Hold a folder of tasks, made where it is missing, for one run that fetches into it.

    Raises:
        TaskError: where the folder cannot be made, or another run fetches into it.
    """
    store = tasks_dir / STORE
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TaskError(f"{store} cannot be made: {reason_of(error)}.") from error
    try:
        with locked(store, TaskError):
            yield
    finally:
        with suppress(OSError):  # where something is left in it
            store.rmdir()


def download(
    archive: Archive,
    tasks_dir: Path,
    progress: Progress = silent,
    report: Report = lambda text: None,
) -> None:
    """Download what is missing of an archive and check it; within :func:`fetching`.

    Args:
        archive: of :func:`read_record`.
        tasks_dir: the folder of tasks.
        progress: told how many bytes are there, and how many there will be.
        report: told of pauses and of what went otherwise than planned.

    Raises:
        TaskError: where the archive cannot be fetched (what came is kept), or is not what the
            record says (it is deleted).
    """
    stored, part = archive.stored(tasks_dir), archive.part(tasks_dir)
    if stored.is_file():
        return
    if _size(part) > archive.size:
        part.unlink()
    progress(_size(part), archive.size)
    if _size(part) < archive.size or not part.exists():
        receive = partial(_receive, archive, part, progress, report)
        _patiently(archive.file, receive, report, lambda: _size(part))
    algorithm, expected = archive.checksum
    found = _digest(part, algorithm)
    if found != expected:
        part.unlink()
        raise TaskError(
            f"{archive.file} is not what it should be: its {algorithm} is {found}, but the record "
            f"says {expected}. It was deleted; run the same command again to fetch it anew. If "
            "that does not help, something on its way changes it (a proxy, a mirror)."
        )
    os.replace(part, stored)


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _receive(archive: Archive, part: Path, progress: Progress, report: Report) -> None:
    """Append to a part what is missing, in one connection.

    Raises:
        TaskError: where another file is sent, or the disk is full.
        OSError, HTTPException: where the connection fails; what came is kept.
    """
    have = _size(part)
    with _open(archive.url, have) as response, open(part, "ab", buffering=0) as file:
        skip = have - _first_byte(archive, response, have)
        if skip:
            report(f"{archive.file}: the site sends it from its beginning; what is there is kept.")
        while skip:
            skip -= len(_read(response, min(BLOCK, skip)))
        while have < archive.size:
            block = _read(response, min(BLOCK, archive.size - have))
            try:
                file.write(block)
            except OSError as error:
                raise TaskError(
                    f"{part} cannot be written: {reason_of(error)}. What has arrived is "
                    "kept: make room, and run the same command again."
                ) from error
            have += len(block)
            progress(have, archive.size)


def _read(response: HTTPResponse, count: int) -> bytes:
    if not (block := response.read1(count)):  # what is there now: a kill loses nothing
        raise _Cut("the connection was cut")
    return block


def _first_byte(archive: Archive, response: HTTPResponse, asked: int) -> int:
    """Return which byte of the file an answer begins with: 0, or the one that was asked for.

    Raises:
        TaskError: where the answer is of a file of another size, or begins elsewhere.
    """
    if response.status == 206:
        match = re.fullmatch(
            r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)",
            response.headers.get("Content-Range", "").strip(),
        )
        first = int(match[1]) if match else -1
        total = int(match[2]) if match and match[2] != "*" else archive.size
        if first not in (0, asked):
            raise TaskError(
                f"{archive.file} cannot be gone on with: asked for the bytes from {asked}, the "
                f"site answers {response.headers.get('Content-Range')!r}."
            )
    else:
        first, total = 0, archive.size if response.length is None else response.length
    if total != archive.size:
        raise TaskError(
            f"{archive.file} has {total} bytes at {urlsplit(response.url).netloc}, but the record "
            f"says {archive.size}: that is another file, and nothing of it was taken."
        )
    return first


# --- unpacking ------------------------------------------------------------------------------


def unpack(archive: Archive, tasks_dir: Path, progress: Progress = silent) -> Path:
    """Unpack a downloaded archive to a task that appears whole; within :func:`fetching`.

    Args:
        archive: what :func:`download` fetched; its file is deleted once the task is there.
        tasks_dir: the folder of tasks.
        progress: told how many bytes of the archive are read, and how many it has.

    Returns:
        The task's folder.

    Raises:
        TaskError: where the archive is damaged, would leave its folder, holds no task or more than
            a task can (it is deleted), or the disk is full or cannot be written (it is kept);
            nothing of the task is left then.
    """
    if not hasattr(tarfile, "data_filter"):
        raise OptionError("This Python cannot unpack archives safely; use 3.11.4 or newer.")
    stored, target = archive.stored(tasks_dir), tasks_dir / archive.task
    temporary = stored.with_name(f"{stored.name}.unpacking")
    if temporary.exists():  # of a run that was killed
        shutil.rmtree(temporary)
    try:
        _extract(stored, temporary, progress)
        os.replace(_task_folder(archive, temporary), target)
    except TAR_FAULTS as error:
        if isinstance(error, OSError) and error.errno in REMEDIES:
            raise TaskError(
                f"{archive.file} could not be unpacked: {reason_of(error)}. The archive is "
                f"kept: {REMEDIES[error.errno]}, and run the same command again."
            ) from error
        stored.unlink()
        raise TaskError(
            f"{archive.file} cannot be unpacked, though its checksum is right: "
            f"{_line(error) or type(error).__name__}. Nothing of it was kept; tell those who "
            "publish the record."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    stored.unlink()
    return target


def _extract(stored: Path, folder: Path, progress: Progress) -> None:
    """Extract an archive into a new folder.

    Raises:
        TarError: where it is damaged, holds more than a task can, or has a member that is no file
            or folder inside; the message names it.
        OSError: where the disk fails.
    """
    size = _size(stored)
    name, members, unpacked = "", 0, 0
    with open(stored, "rb") as raw:
        mode: Literal["r:gz", "r:"] = "r:gz" if raw.read(len(GZIP)) == GZIP else "r:"
        raw.seek(0)
        try:
            with tarfile.open(
                fileobj=raw, mode=mode, errorlevel=1, tarinfo=BoundedMember
            ) as archive:
                for member in archive:
                    name, members, unpacked = member.name, members + 1, unpacked + member.size
                    _check_member(member)
                    if members > MOST_MEMBERS or unpacked > max(SMALL, LARGEST_RATIO * size):
                        raise tarfile.TarError(
                            f"{members} members and {in_words(unpacked)} are more than a task's "
                            f"archive of {in_words(size)} holds"
                        )
                    archive.extract(member, folder, filter="data")
                    progress(raw.tell(), size)
        except TAR_FAULTS as error:
            if isinstance(error, OSError) and error.errno in REMEDIES:
                raise
            place = f"at its member {short(name)}" if name else "at its beginning"
            raise tarfile.TarError(f"{place}: {error or type(error).__name__}") from error


def _check_member(member: tarfile.TarInfo) -> None:
    """Check that a member is a file or a folder that can lie in a task.

    Raises:
        TarError: for any other.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.TarError("it leaves the folder")
    if member.issym():  # it would point elsewhere once the task is moved
        raise tarfile.TarError("it is a symbolic link")
    if len(path.parts) > MOST_FOLDERS or len(member.name) > LONGEST_PATH or "\0" in member.name:
        raise tarfile.TarError("its name is no path that a task can have")
    if member.size < 0 or member.issparse():
        raise tarfile.TarError(f"it is sparse, or its size of {short(member.size)} cannot be")


def _task_folder(archive: Archive, folder: Path) -> Path:
    """Return the folder of the task in what was extracted.

    Raises:
        TarError: where there is none, several, or one without the rate of the archive.
    """
    found = [path.parent for path in folder.rglob(METADATA)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise tarfile.TarError(f"it must hold one task, a folder with {METADATA}; it has {names}")
    if archive.rate is not None and not (found[0] / str(archive.rate)).is_dir():
        raise tarfile.TarError(f"its task has no audio at {archive.rate} Hz")
    return found[0]
