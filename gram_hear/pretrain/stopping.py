"""The signals that ask a run to stop: SIGTERM, SIGUSR1 and Ctrl-C, from its start to its end.

Before training there is nothing to save, and any of them ends the run at once. From then on the
first one is noted, and the run stops where its state is whole. Further ones change nothing, since
one request may come twice: to the process itself, and to torchrun, which passes it on. Only Ctrl-C
ends the run at once when it is pressed again, a second later at the earliest.
"""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from gram_hear.start import INTERRUPTED

# The signals that ask training to stop; clusters announce the end of a job with the latter two.
SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))
LEFT = (signal.SIG_IGN, None)  # handlers that stay: the latter is one that Python did not set
AGAIN = 1.0  # seconds after which Ctrl-C counts as pressed again


class StopSignals:
    """The handlers of a process; as a context, they are set until it is left.

    Attributes:
        received: the number of the first signal, or None.
        training: whether a step may have been made, so that there is something to save.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._mask: set[int | signal.Signals] = set()
        self._reset()

    def _reset(self) -> None:
        self.received: int | None = None
        self.training = False
        self.is_first = True  # of all processes: the one that says what it was asked
        self._leaving = False
        self._since = 0.0

    def __enter__(self) -> "StopSignals":
        """Set the handlers; off the main thread, which alone gets signals, do nothing.

        A signal that is ignored stays so, as Ctrl-C is by what a script runs in the background.
        """
        self._reset()
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: each for n, each in handlers.items() if each not in LEFT}
            if hasattr(signal, "pthread_sigmask"):
                self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])  # asks alone
            self._set()
        return self

    def __exit__(self, *error: object) -> None:
        """Set the handlers of before; a signal that is still held is too late."""
        self._leaving = True
        if self._before:
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def _set(self) -> None:
        for number in self._before:
            signal.signal(number, self._receive)

    def hold(self) -> None:
        """Keep all but Ctrl-C waiting, while Lightning sets a handler of its own.

        That one talks to the other processes wherever this one is, and so may wait for ever.
        """
        if self._before and hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS[1:])

    def begin(self) -> None:
        """From now on, note signals alone: training begins. Those that were held come now."""
        self.training = True
        self._set()
        if self._before and hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._leaving:
            return
        again = self.received is not None
        if not again:
            self.received, self._since = number, time.monotonic()
        pressed_again = number == signal.SIGINT and time.monotonic() > self._since + AGAIN
        if not self.training or (again and pressed_again):
            self._leaving = True
            raise KeyboardInterrupt
        if not again and self.is_first:
            _tell(number)

    @property
    def code(self) -> int:
        """What the process exits with: 128 and the number of the signal."""
        return INTERRUPTED if self.received is None else 128 + self.received


def _tell(number: int) -> None:
    """Say what was asked, past Python's streams: one of them may be written just now."""
    what = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    again = " Ctrl-C again ends it at once, unsaved." if number == signal.SIGINT else ""
    with suppress(OSError):
        os.write(2, f"{what}: the run stops after this step, and is saved.{again}\n".encode())


stop_signals = StopSignals()  # of this process: signals are its own


def leave_signals() -> None:
    """Ignore the signals to stop for the rest of this process.

    A process that loads data does: a terminal or a cluster sends them to all processes, but the
    training process needs data to finish its step. One whose run has ended does, lest another exit
    code than that of the run were seen.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_children() -> None:
    """End the processes that load data and are still there, as the program ends.

    Where a run is stopped while it validates, Lightning closes the loader of the validation alone.
    Python would end the others at its exit with SIGTERM, which they ignore, and wait for ever.
    What they leave half done is nothing that another run minds.
    """
    if hasattr(signal, "SIGCHLD"):  # PyTorch raises an error in its handler
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in multiprocessing.active_children():
        each.kill()
