"""Archives downloaded in steps that can be cut, and checked.

An archive goes into ``<tasks>/.fetch`` as a ``.part`` that grows, and loses that ending once its
checksum is right: whatever is killed, the next run goes on from there.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from gram_hear.errors import TaskError, reason_of
from gram_hear.evaluation.fetch.record import STORE, Archive, in_words, size_of
from gram_hear.evaluation.fetch.site import Report, open_url, patiently
from gram_hear.jobs.callback import Progress, silent
from gram_hear.jobs.locks import LOCK, POLL, try_lock

BLOCK = 1 << 20  # bytes


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
    folder = next(each for each in (tasks_dir, *tasks_dir.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TaskError(
            f"{folder} has {in_words(free)} free, but at least {in_words(needed)} are needed: the "
            "archives are unpacked beside themselves. Fetch fewer tasks, or give a folder on "
            "another disk."
        )


def take_turns(
    archives: Sequence[Archive], tasks_dir: Path, report: Report = lambda text: None
) -> Iterator[Archive]:
    """Yield archives, each while this run alone may fetch it.

    Several runs may fetch into one folder: each takes archives that no other holds. Those that
    others hold come last, when they are let go of; by then they may be there.

    Args:
        archives: those that are due.
        tasks_dir: the folder of tasks, made where it is missing.
        report: told which archives are waited for.

    Raises:
        TaskError: where the folder cannot be made or written.
    """
    store, due, waits = tasks_dir / STORE, list(archives), False
    try:
        while due:
            held = []
            for archive in due:
                store.mkdir(parents=True, exist_ok=True)  # another run may have removed it
                with try_lock(archive.lock(tasks_dir)) as is_mine:
                    if is_mine:
                        yield archive
                    else:
                        held.append(archive)
            if held and not waits:
                report(f"Another run fetches {', '.join(each.task for each in held)}; waiting.")
            due, waits = held, bool(held)
            if due:
                time.sleep(POLL)
    except OSError as error:
        raise TaskError(f"{store} cannot be written: {reason_of(error)}.") from error
    finally:
        with suppress(OSError):
            (store / LOCK).unlink(missing_ok=True)  # of version 0.1.0, which had one for all
            store.rmdir()  # unless something is left in it


def download(
    archive: Archive,
    tasks_dir: Path,
    progress: Progress = silent,
    report: Report = lambda text: None,
) -> None:
    """Download what is missing of an archive and check it; within :func:`take_turns`.

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
    if size_of(part) > archive.size:
        part.unlink()
    progress(size_of(part), archive.size)
    if size_of(part) < archive.size or not part.exists():
        receive = partial(_receive, archive, part, progress, report)
        patiently(archive.file, receive, report, lambda: size_of(part))
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
    with open(path, "rb") as file:
        new = partial(hashlib.new, algorithm, usedforsecurity=False)
        return hashlib.file_digest(file, new).hexdigest()


def _receive(archive: Archive, part: Path, progress: Progress, report: Report) -> None:
    """Append to a part what is missing, in one connection.

    Raises:
        TaskError: where another file is sent, or the disk is full.
        OSError, HTTPException: where the connection fails; what came is kept.
    """
    have = size_of(part)
    with open_url(archive.url, have) as response, open(part, "ab", buffering=0) as file:
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
        raise ConnectionError("the connection was cut")
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
                f"{archive.file} cannot be resumed: asked for the bytes from {asked}, the "
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
