"""Where the programs start, before anything is imported that takes time.

What can end any of them is dealt with here, once: Ctrl-C while modules are imported, too little
memory, and output that cannot be written or shown. Commands import their libraries when they run,
so that no help text waits for torch.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from gram_hear.errors import GramError

INTERRUPTED = 130  # the exit code of what was stopped by Ctrl-C
NO_MEMORY = (  # what the system, PyTorch and NumPy say; of a GPU's memory they speak otherwise
    "cannot allocate memory",
    "can't allocate memory",
    "failed to map segment",
    "cannot map zero-fill",
    "can't start new thread",
    "bad_alloc",
    "error return without exception set",
)

Program = Callable[[], int | None]


def gram_hear() -> int:
    """Run ``gram-hear``."""
    return start(lambda: import_module("gram_hear.commands.gram_hear.app").main)


def hear_eval() -> int:
    """Run ``hear-eval``."""
    return start(lambda: import_module("gram_hear.commands.hear_eval.app").main)


def start(load: Callable[[], Program]) -> int:
    """Import a program and run it.

    Args:
        load: imports the program and returns it. Ctrl-C ends the process while it does so.

    Returns:
        What the process exits with: the program's own code, 1 after an error, which is one line on
        stderr, or 130 after Ctrl-C.
    """
    with _unfailing("stderr"):
        with _unfailing("stdout") as output:
            code = _run(load)
        if output.error is not None and output.error.errno != errno.EPIPE:
            _say(f"error: The output could not be written: {output.error.strerror}.")
            code = code or 1
    return code


@contextmanager
def importing() -> Iterator[None]:
    """Let Ctrl-C end the process at once while libraries are imported: nothing is to be kept yet.

    KeyboardInterrupt would do less: packages turn it into other errors while they are imported.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as with nohup
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(load: Callable[[], Program]) -> int:
    try:
        with importing():
            program = load()
        return program() or 0
    except GramError as error:
        _say(f"error: {error}")
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        _say(leaving.code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 40) : error.end + 40]
        _say(
            f"error: {around!a} holds characters that the system's encoding, "
            f"{error.encoding}, does not have. Set PYTHONUTF8=1, or another locale."
        )
    except (MemoryError, ImportError, OSError, RuntimeError, SystemError) as error:
        reason = _lack_of_memory(error)
        if reason is None:
            raise
        _say(
            f"error: There is not enough memory ({reason}). Raise the limit (ulimit -v, or that of "
            "the job or container), or ask for less at once: fewer --jobs, a smaller "
            "--window-batch, shorter files."
        )
    return 1


def _lack_of_memory(error: BaseException | None) -> str | None:
    """Return the line of an error, or of what stands behind it, that tells of too little memory."""
    while error is not None:
        for line in str(error).splitlines():
            if any(words in line.lower() for words in NO_MEMORY):
                return line
        if isinstance(error, MemoryError):
            return str(error) or "MemoryError"
        error = error.__cause__ or error.__context__
    return None


# --- output ---------------------------------------------------------------------------------


class _Output(io.RawIOBase):
    """A file that takes all that is written; what cannot be written is lost.

    Attributes:
        error: the first that came, or None.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()

    def write(self, data: Any) -> int | None:
        if self.error is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)


@contextmanager
def _unfailing(name: str) -> Iterator[_Output]:
    """Replace a stream of :mod:`sys` with one that never fails.

    A command goes on when its reader has left, the disk is full or the stream was closed, and
    characters that the encoding does not have become "?".
    """
    before = getattr(sys, name)
    if before is not None and not hasattr(before, "buffer"):  # a caller's own, as in a notebook
        yield _Output(None)
        return
    stream = before if before is not None else open(os.devnull, "w")  # noqa: SIM115
    output = _Output(getattr(stream.buffer, "raw", stream.buffer))
    buffered = io.BufferedWriter(output)
    replaced = io.TextIOWrapper(
        buffered,
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering or stream.write_through,
    )
    setattr(sys, name, replaced)
    try:
        yield output
    finally:
        replaced.flush()
        setattr(sys, name, before)


def _say(message: object) -> None:
    print(message, file=sys.stderr)
