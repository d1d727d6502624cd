"""Work in processes, and Ctrl-C in the midst of it."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from gram_hear.interrupts import interrupts_held
from gram_hear.scenes.workers import WorkerError, work


def test_work_is_done_here_or_in_processes_and_a_dead_one_is_told():
    assert list(work(abs, [-1, -2, -3], 1)) == [1, 2, 3]
    threads = torch.get_num_threads()
    before = dict(os.environ)
    with pytest.raises(WorkerError, match="ended from outside"):
        list(work(os._exit, [1, 1, 1], 2))
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads


INTERRUPTED = """
import signal, sys, threading
from gram_hear.scenes.workers import work

def interrupt(frame, event, argument):
    "Send Ctrl-C where a lock has just been taken, which has to be given back."
    if event == "return" and frame.f_code is threading.Condition.__enter__.__code__:
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)

if __name__ == "__main__":
    results = work(abs, range(100), 2)
    next(results)
    sys.setprofile(interrupt)
    try:
        list(results)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_ctrl_c_while_a_lock_is_taken_does_not_hang(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "interrupted\n"


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []

    def hold():
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append("after the signal")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        hold()
    assert done == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is before


def test_whoever_took_ctrl_c_gets_it():
    received = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            assert received == []
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_leaves_no_handler_behind_and_other_threads_hold_nothing():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="full"), interrupts_held():
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) is before
    seen = []

    def look():
        with interrupts_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked")
def test_processes_that_start_while_ctrl_c_is_held_never_see_it():
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    command = [sys.executable, "-c", code]
    with interrupts_held():
        held = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (held, after) == ("True\n", "False\n")
