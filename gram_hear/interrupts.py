"""Ctrl-C held back where it would do harm."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block is left; processes that start in it never see one.

    For short work with locks of threading or concurrent.futures: where KeyboardInterrupt is raised
    while one is taken it stays taken, and who waits for it waits for ever. Other threads than the
    main one are never interrupted; nothing is held there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    received = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True

    signal.signal(signal.SIGINT, receive)
    try:
        with _blocked_for_children():
            yield
    finally:
        # None is a handler that Python did not set and cannot set again.
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if received:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _blocked_for_children() -> Iterator[None]:
    """Block Ctrl-C for this thread; its new processes inherit that, where the system has it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
