"""Work in processes side by side, each on one thread: the same numbers however many there are."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from gram_hear.errors import GramError
from gram_hear.jobs.interrupts import interrupts_held, wait_for

AHEAD = 4  # pieces of work handed out to each process before their results are taken
# What reads them when it is loaded: OpenMP, and the libraries of matrix products.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class WorkerError(GramError, RuntimeError):
    """A process died before its work was done."""


def cores() -> int:
    """Return how many processes can work side by side here."""
    if hasattr(os, "sched_getaffinity"):  # what of the machine this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def work(
    function: Callable[[Piece], Result], pieces: Iterable[Piece], processes: int
) -> Generator[Result, None, None]:
    """Yield what a function returns for each piece of work, in the order in which they are done.

    With one process the work is done here, one piece at a time; with more in new ones, which
    import the function: scripts that are run need ``if __name__ == "__main__":`` around this call.
    When the generator is closed, or Ctrl-C comes, what was begun is finished and the rest is not;
    a caller that may stop in between closes it (``contextlib.closing``).

    Raises:
        WorkerError: where a process is killed, as for want of memory.
    """
    if processes == 1:
        for piece in pieces:
            with one_thread():
                result = function(piece)
            yield result
    else:
        yield from _work_in_processes(function, iter(pieces), processes)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread, PyTorch's and NumPy's, so that sums do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _work_in_processes(
    function: Callable[[Piece], Result], pieces: Iterator[Piece], processes: int
) -> Generator[Result, None, None]:
    under_way: set[Future[Result]] = set()
    finished: SimpleQueue[Future[Result]] = SimpleQueue()
    with _threads_of_children():
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start)
        try:
            while True:
                for piece in islice(pieces, processes * AHEAD - len(under_way)):
                    with interrupts_held():
                        under_way.add(future := pool.submit(function, piece))
                        future.add_done_callback(finished.put)
                if not under_way:
                    return
                # Ctrl-C may strike between get() and the assignment: it stays in under_way.
                future = finished.get()
                under_way.remove(future)
                yield future.result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "A process was ended from outside before its work was done, perhaps because memory "
                "ran out; use fewer --jobs. What is finished is kept; run again to go on."
            ) from error
        finally:
            # Not by leaving a "with" block: its shutdown(wait=True) would undo cancel_futures.
            with interrupts_held():
                pool.shutdown(wait=False, cancel_futures=True)
            wait_for(under_way)


@contextmanager
def _threads_of_children() -> Iterator[None]:
    """Let the libraries that processes load from here on use one thread."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start() -> None:
    """Prepare a new process: ignore Ctrl-C, which the parent handles, and exit when it exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems that could not block it
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
