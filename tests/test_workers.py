"""Work in processes, and Ctrl-C in the midst of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch

from gram_hear.jobs.interrupts import interrupts_held
from gram_hear.jobs.workers import AHEAD, WorkerError, work

pytestmark = pytest.mark.slow


def test_work_is_done_here_or_in_processes_and_a_dead_one_is_told():
    assert list(work(abs, [-1, -2, -3], 1)) == [1, 2, 3]
    threads = torch.get_num_threads()
    before = dict(os.environ)
    with pytest.raises(WorkerError, match="ended from outside"):
        list(work(os._exit, [1, 1, 1], 2))
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads


INTERRUPTED = """
import signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from gram_hear.jobs.interrupts import result_of, submit
from gram_hear.jobs.workers import work

def send_ctrl_c_when(moment):
    "Ctrl-C comes when a lock was just taken, held back or not, or a result from the queue."
    def interrupt(frame, event, argument):
        held = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        if event == "return" and frame.f_code is threading.Condition.__enter__.__code__:
            now = "lock, held" if held else "lock, free"
        elif event == "c_return" and getattr(argument, "__qualname__", "") == "SimpleQueue.get":
            now = "result"
        else:
            return
        if now == moment:
            sys.setprofile(None)
            print("sent")
            signal.raise_signal(signal.SIGINT)
    sys.setprofile(interrupt)

def of_processes(moment):
    results = work(abs, range(100), 2)
    next(results)
    send_ctrl_c_when(moment)
    list(results)

def of_threads(moment):
    with ThreadPoolExecutor(1) as pool:
        send_ctrl_c_when(moment)
        for _ in range(10):
            result_of(submit(pool, time.sleep, 0.05))

if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2])
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("moment", ["lock, held", "lock, free", "result"])
@pytest.mark.parametrize("work", ["of_processes", "of_threads"])
def test_whenever_ctrl_c_comes_nothing_hangs(tmp_path, work, moment):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, script, work, moment], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "sent\ninterrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="commands of a POSIX shell")
def test_who_stops_waits_for_what_was_begun_and_the_rest_is_not_done(tmp_path):
    run = partial(subprocess.run, shell=True, cwd=tmp_path, check=True)
    commands = (f"touch begun{i}; sleep 0.2; touch finished{i}" for i in range(100))
    results = work(run, commands, 2)
    next(results)
    results.close()
    at_once = sorted(path.name for path in tmp_path.iterdir())
    begun, finished = (
        [name for name in at_once if name.startswith(word)] for word in ("begun", "finished")
    )
    assert len(begun) == len(finished) < 2 * AHEAD
    time.sleep(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == at_once


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
    command = [sys.executable, "-P", "-c", code]
    with interrupts_held():
        held = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (held, after) == ("True\n", "False\n")


def test_a_handler_that_python_did_not_set_stays(monkeypatch):
    def refuse(number, handler):
        raise AssertionError

    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", refuse)
    with interrupts_held():
        pass
