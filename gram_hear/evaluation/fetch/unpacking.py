"""Archives unpacked within bounds, to tasks that appear whole.

An archive is unpacked beside itself, and only a whole task is renamed into the folder of tasks.
The inner folders are those of hearpreprocess (``hear-<version>/tasks/<task>/<rate>/...``).
"""

import errno
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Literal

from gram_hear.errors import OptionError, TaskError, reason_of, short
from gram_hear.evaluation.fetch.record import Archive, in_words, printable, size_of
from gram_hear.foreign import TAR_FAULTS, BoundedMember
from gram_hear.jobs.callback import Progress, silent
from gram_hear.tasks import METADATA

# What an archive may hold.
MOST_MEMBERS = 500_000
MOST_FOLDERS = 32  # inside each other
LONGEST_PATH = 1024  # characters
LARGEST_RATIO = 100  # of what is unpacked to the archive ...
SMALL = 256 << 20  # ... from so many bytes on
GZIP = b"\x1f\x8b"
REMEDIES = {  # what a disk's own faults, which are not the archive's, need
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "see that its folder can be written",
    errno.EPERM: "see that its folder can be written",
    errno.EROFS: "see that its folder can be written",
    errno.EIO: "see to the disk",
}


def unpack(archive: Archive, tasks_dir: Path, progress: Progress = silent) -> Path:
    """Unpack a downloaded archive to a task that appears whole; within
    :func:`gram_hear.evaluation.fetch.download.take_turns`.

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
            f"{printable(error) or type(error).__name__}. Nothing of it was kept; tell those who "
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
    size = size_of(stored)
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
            where = f"at its member {short(name)}" if name else "at its beginning"
            raise tarfile.TarError(f"{where}: {error or type(error).__name__}") from error


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
