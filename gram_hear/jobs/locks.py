"""One run at a time in one directory."""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gram_hear.errors import TaskError

LOCK = "hear-eval.lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a directory's lock; one of a process that is gone from this machine is taken over.

    Raises:
        TaskError: where another run holds it, or may do so.
    """
    path = out / LOCK
    mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "run": uuid.uuid4().hex})
    if not _create(path, mine):
        _take_over(path, mine)
    try:
        yield
    finally:
        if _content(path) == mine:
            path.unlink(missing_ok=True)


def _create(path: Path, content: str) -> bool:
    """Create a file with this content; return False where it is there already."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except OSError as error:
        raise TaskError(f"{path} cannot be written: {error.strerror or error}.") from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    return True


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _in_use(path: Path) -> TaskError:
    return TaskError(
        f"Another run is writing {path.parent} (its lock {path.name} says {_content(path)}). Wait "
        f"for it; if there is none, delete {path}."
    )


def _take_over(path: Path, mine: str) -> None:
    """Replace the lock of a process that is gone; a TaskError where it may be running."""
    if os.name != "posix":  # elsewhere nobody can be asked whether a process is running
        raise _in_use(path)
    import fcntl

    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Of all that find the stale lock one at a time looks again and removes it; only a lock
        # that is not there can be made. Without this, one would remove another's new lock.
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            raise _in_use(path) from error
        if not _is_stale(_content(path)):
            raise _in_use(path)
        path.unlink(missing_ok=True)
        if not _create(path, mine):
            raise _in_use(path)
    finally:
        os.close(folder)


def _is_stale(content: str | None) -> bool:
    """Whether a lock was released by now, or is of a process of this machine that is gone."""
    if content is None:
        return True
    try:
        lock = json.loads(content)
        return lock["host"] == socket.gethostname() and not _is_running(int(lock["pid"]))
    except (ValueError, KeyError, TypeError):  # cut short, or not ours
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
