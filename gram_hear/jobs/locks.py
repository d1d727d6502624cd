"""Locks between runs, on one machine or several.

They are the system's own locks of files (``filelock``): the system lets go of them when a process
ends, however it ends. Network file systems keep them between machines where they are mounted with
locks, as NFS 4 is. Where they are not (``nolock`` of NFS, ``localflock`` of Lustre), a run does not
see those of other machines. Where a file system has no locks at all, taking one fails or leaves a
file that must be deleted by hand after a kill.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gram_hear.errors import GramError, OptionError

LOCK = ".lock"  # name of the lock file in a locked folder
ATTEMPTS = 100  # at a lock whose folder other runs remove and make
OLD_LOCK = "hear-eval.lock"  # of version 0.1.0, which leaves it behind when it is killed
POLL = 0.2  # seconds between attempts at a lock that is waited for


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of this name until the block is left; yield False where another run does.

    Raises:
        OSError: where the file cannot be made, or the file system has no locks.
    """
    lock = FileLock(path, timeout=0)
    try:
        _acquire(lock)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        _release(lock)


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock of this name until the block is left, as soon as no other run does.

    Raises:
        OSError: as for :func:`try_lock`.
    """
    lock = FileLock(path)
    _acquire(lock)
    try:
        yield
    finally:
        _release(lock)


def _acquire(lock: FileLock) -> None:
    """Take a lock, or raise Timeout."""
    for attempt in reversed(range(ATTEMPTS)):
        try:
            lock.acquire(poll_interval=POLL)
            return
        except FileNotFoundError:  # its folder was removed just now: acquire makes it anew
            if not attempt:
                raise


def _release(lock: FileLock) -> None:
    """Delete and release a lock; a run that waits for the deleted file tries a new one."""
    with suppress(OSError):  # Windows removes no open file; filelock does so afterwards
        Path(lock.lock_file).unlink()
    lock.release()


@contextmanager
def locked(folder: Path, error: type[GramError] = OptionError) -> Iterator[None]:
    """Hold the lock of a folder, for one run that writes into it.

    Raises:
        GramError: of the class ``error``, where another run holds it.
        OSError: as for :func:`try_lock`.
    """
    with try_lock(folder / LOCK) as held:
        if not held:
            raise error(f"Another run is writing {folder}; wait for it.")
        (folder / OLD_LOCK).unlink(missing_ok=True)
        yield
