"""Ctrl-C held back where it would do harm, and work of other threads waited for without harm.

Locks of threading and concurrent.futures stay taken for ever where KeyboardInterrupt is raised just
when one was taken, and a thread that waits for it hangs. So futures are submitted and cancelled
while Ctrl-C is held, and waited for in a queue that may be interrupted.
"""

import signal
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def submit(
    pool: Executor,
    function: Callable[Arguments, Result],
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> Future[Result]:
    """Hand a call to a pool; Ctrl-C may come at any time."""
    with interrupts_held():
        return pool.submit(function, *arguments, **options)


def result_of(future: Future[Result]) -> Result:
    """Wait for the result of a future; Ctrl-C may come at any time.

    Raises what the call raised.
    """
    wait_for([future])
    return future.result()


def wait_for(futures: Collection[Future[Any]]) -> None:
    """Wait until futures are done or cancelled; Ctrl-C may come at any time."""
    finished: SimpleQueue[Future[Any]] = SimpleQueue()
    with interrupts_held():
        for future in futures:
            future.add_done_callback(finished.put)
    for _ in futures:
        finished.get()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends; off the main thread, which alone gets it, do nothing.

    Processes that start in the block never see one, where the system can block signals.
    """
    with signals_blocked((signal.SIGINT,)):
        before = signal.getsignal(signal.SIGINT)
        # None is a handler that Python did not set: it raises nothing, and could not be set again.
        if threading.current_thread() is not threading.main_thread() or before is None:
            yield
            return
        received = False

        def receive(number: int, frame: FrameType | None) -> None:
            nonlocal received
            received = True

        signal.signal(signal.SIGINT, receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            if received:
                signal.raise_signal(signal.SIGINT)


@contextmanager
def signals_blocked(numbers: Collection[int]) -> Iterator[None]:
    """Block signals for this thread, where the system has that.

    Its new threads and processes inherit it, and get none until they unblock them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])  # asks alone
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # may raise KeyboardInterrupt
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
