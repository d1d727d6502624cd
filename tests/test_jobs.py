"""Long jobs: locks, parts, several runs at one output, kills."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

from gram_hear.errors import OptionError, TaskError
from gram_hear.jobs.job import Job, JobGone, Outcome, run_parts
from gram_hear.jobs.locks import LOCK, OLD_LOCK, POLL, locked, try_lock, wait_for_lock
from gram_hear.jobs.writing import link_or_copy, write_json, write_text

LEFTOVER = f".0123456789ab.{32 * '0'}.partial"  # of a run that was killed
HOLD_LOCK = """
import sys, time
from pathlib import Path
from gram_hear.jobs.locks import try_lock
with try_lock(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(60)
"""
HOLD_PART = """
import sys, time
from pathlib import Path
from gram_hear.jobs.job import Job
job = Job(Path(sys.argv[1]), {"seed": 1, "rooms": (2, 3)})
with job.claim("a") as held:
    print(held, flush=True)
    time.sleep(60)
"""
MAKER = """
import os
def make(path):
    path.write_text("made")
    return {"process": os.getpid()}, [path]
"""


@pytest.fixture
def holder():
    """Starts processes that hold a lock until they are killed."""
    running = []

    def start(path, code=HOLD_LOCK):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(path)], stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


# --- locks ----------------------------------------------------------------------------------


def test_a_lock_is_held_once_and_given_back(tmp_path):
    path = tmp_path / "a.lock"
    with try_lock(path) as first, try_lock(path) as second:
        assert (first, second) == (True, False)
    with try_lock(path) as again:
        assert again


def test_a_lock_is_let_go_when_its_process_is_killed(tmp_path, holder):
    path = tmp_path / "a.lock"
    process = holder(path)
    with try_lock(path) as held:
        assert not held
    process.kill()
    process.wait()
    with try_lock(path) as held:
        assert held


def test_a_lock_that_is_waited_for_comes_when_it_is_free(tmp_path, holder):
    path = tmp_path / "a.lock"
    process = holder(path)
    process.kill()
    with wait_for_lock(path), try_lock(path) as held:
        assert not held


def test_a_folder_is_locked_for_one_run(tmp_path, holder):
    holder(tmp_path / LOCK)
    with pytest.raises(TaskError, match="Another run is writing"), locked(tmp_path, TaskError):
        pass


def test_the_lock_of_an_old_run_is_not_in_the_way_and_goes(tmp_path):
    """Version 0.1.0 leaves it behind when it is killed."""
    old = tmp_path / OLD_LOCK
    old.write_text('{"pid": 1, "host": "elsewhere"}')
    with locked(tmp_path, TaskError):
        assert not old.exists()


def test_a_lock_in_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"directory|exist"), try_lock(tmp_path / "file" / "a.lock"):
        pass


# --- files ----------------------------------------------------------------------------------


def test_json_is_strict_and_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "Grünspecht"})
    assert path.read_text(encoding="utf-8") == '{\n "name": "Grünspecht"\n}\n'
    no_unicode = {"file": "a\udcff.wav"}  # a file's name that is no UTF-8
    write_json(tmp_path / "b.json", no_unicode)
    assert json.loads((tmp_path / "b.json").read_bytes()) == no_unicode
    (tmp_path / "b.json").unlink()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"score": float("nan")})
    assert list(tmp_path.iterdir()) == [path]
    assert "Grünspecht" in path.read_text(encoding="utf-8")


def test_a_file_has_a_second_name_or_a_copy(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_text("content")
    link_or_copy(source, tmp_path / "link")
    assert os.path.samefile(source, tmp_path / "link")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    link_or_copy(source, tmp_path / "copy")
    assert not os.path.samefile(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "content"


# --- jobs -----------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    job = Job(tmp_path / "output", {"seed": 1, "rooms": (2, 3)})
    job.begin()
    return job


def make(job, part):
    """Write a part's file, and say who did."""
    if part == "broken":
        raise TaskError("broken cannot be made")
    path = job.output / part
    write_text(path, part)
    return {"process": os.getpid()}, [path]


def outcomes(job, parts):
    due = {part: part for part in job.missing(parts)}
    return list(run_parts(job, due, partial(make, job), 1))


def test_parts_are_made_once_and_noted(job):
    made = outcomes(job, ["a", "b/c"] if (job.output / "b").mkdir() is None else [])
    assert [each.part for each in made] == ["a", "b/c"]
    assert job.record("a") == {"process": os.getpid()}
    assert outcomes(job, ["a", "b/c"]) == []
    assert not list((job.state / "locks").iterdir())


@pytest.mark.parametrize("damage", ["remove", "cut"])
def test_a_part_whose_file_is_gone_or_cut_is_not_done(job, damage):
    outcomes(job, ["a"])
    path = job.output / "a"
    path.unlink() if damage == "remove" else path.write_text("")
    assert job.missing(["a"]) == ["a"]
    assert [each.part for each in outcomes(job, ["a"])] == ["a"]
    assert path.read_text() == "a"


@pytest.mark.parametrize("content", ["", "[]", '{"job": "x"', '{"job": "other", "part": "a"}'])
def test_a_note_that_is_not_whole_or_of_another_job_counts_as_none(job, content):
    outcomes(job, ["a"])
    (note,) = (job.state / "done").iterdir()
    note.write_text(content)
    assert job.record("a") is None


def test_a_part_that_fails_stops_no_other_and_is_tried_again(job):
    made = outcomes(job, ["broken", "a"])
    assert [(each.part, each.error) for each in made] == [
        ("broken", "broken cannot be made"),
        ("a", None),
    ]
    assert [each.part for each in outcomes(job, ["broken", "a"])] == ["broken"]


@pytest.mark.slow
def test_processes_side_by_side_make_the_same_parts(job, tmp_path, monkeypatch):
    (tmp_path / "maker_of_parts.py").write_text(MAKER)
    monkeypatch.syspath_prepend(tmp_path)
    maker = importlib.import_module("maker_of_parts")
    made = list(run_parts(job, {part: job.output / part for part in "abc"}, maker.make, 2))
    assert sorted(each.part for each in made) == ["a", "b", "c"]
    assert all(each.record["process"] != os.getpid() for each in made)
    assert job.missing("abc") == []


def test_another_job_does_not_go_on_in_the_same_folder(job):
    other = Job(job.output, {"seed": 2, "rooms": (2, 3)})
    outcomes(job, ["a"])
    with pytest.raises(OptionError, match=r"seed 1, not 2"):
        other.begin()
    assert job.is_done("a")
    other.begin(force=True)
    assert not other.is_done("a")
    with pytest.raises(JobGone), job.claim("a"):
        pass


def test_a_job_is_not_begun_anew_while_another_run_is_at_work(job):
    other = Job(job.output, {"seed": 2})
    with job.claim("a"), pytest.raises(OptionError, match="Another run is at work"):
        other.begin(force=True)
    assert job.begun_of() is not None


def test_a_job_is_begun_anew_when_another_run_has_finished_it(job):
    other = Job(job.output, {"seed": 2})
    with ThreadPoolExecutor(1) as pool:
        with job.finishing():
            waiting = pool.submit(other.begin, force=True)
            time.sleep(2 * POLL)
            assert not waiting.done()
            job.close()
        assert waiting.result()
    assert other.begun_of() == {"seed": 2}


def test_an_output_says_itself_whether_it_is_finished(job):
    result = job.output / "result"

    def finished():
        return {"seed": 1, "rooms": [2, 3], "more": 0} if result.exists() else None

    assert job.begin(finished=finished)
    result.write_text("")
    assert not job.begin(finished=finished)  # by a run that was killed before it closed the job
    assert not job.state.exists()
    assert not job.begin(finished=finished)
    other = Job(job.output, {"seed": 2})
    for force, advice in ((False, "--force"), (None, "Delete it")):
        with pytest.raises(OptionError, match=rf"seed 1, not 2.*{advice}"):
            other.begin(force=force, finished=finished)
    assert not job.state.exists()
    assert other.begin(force=True, finished=finished, clear=result.unlink)
    assert other.begun_of() == {"seed": 2}
    assert not result.exists()


def test_files_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis").write_text("mine")
    for force in (None, False, True):
        with pytest.raises(OptionError, match="holds other files"):
            Job(tmp_path, {}).begin(force=force, finished=lambda: None)
        with pytest.raises(OptionError, match="is a file"):
            Job(tmp_path / "thesis", {}).begin(force=force, finished=lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_job_that_says_more_than_this_one_is_gone_on_with(job):
    write_json(job.state / "made_of.json", {"seed": 1, "rooms": [2, 3], "more": 0})
    job.begin()
    assert [each.record for each in outcomes(job, ["a"])] == [{"process": os.getpid()}]


def test_what_killed_runs_left_is_swept_where_no_run_is_at_work(job):
    leftover = job.output / LEFTOVER
    leftover.write_text("half")
    with job.claim("a"):
        job.sweep()
    assert leftover.exists()
    job.sweep()
    assert not leftover.exists()


@pytest.mark.slow
def test_a_run_that_waits_to_finish_finds_what_another_finished(job):
    def finish():
        with job.finishing():
            return job.begun_of()

    with ThreadPoolExecutor(1) as pool:
        with job.finishing():
            waiting = pool.submit(finish)
            time.sleep(2 * POLL)
            job.close()
        assert waiting.result() is None
    assert not list(job.output.iterdir())


def test_the_records_of_all_parts_are_those_of_this_job(job):
    outcomes(job, ["a", "b", "c"])
    (job.output / "b").unlink()
    assert len(list(job.records())) == 2
    assert list(Job(job.output, {"seed": 2}).records()) == []


def test_going_on_with_the_same_job_keeps_what_is_noted(job):
    outcomes(job, ["a"])
    Job(job.output, {"rooms": [2, 3], "seed": 1}).begin()
    assert job.is_done("a")


@pytest.mark.parametrize("removed", ["done", "made_of.json"])
def test_state_that_is_removed_while_parts_are_made_is_a_loss_and_no_error(job, removed):
    def remove_and_make(part):
        path = job.state / removed
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        return make(job, part)

    outcomes(job, ["a"])
    assert list(run_parts(job, {"b": "b"}, remove_and_make, 1))
    lost = job.missing(["a", "b"])
    assert lost == ["a" if removed == "done" else "b"]
    assert ("Delete what is left" in job.describe_lost(lost)) == (removed == "made_of.json")


def test_the_end_of_a_job_stays_locked_when_it_is_closed(job):
    with job.finishing():
        job.close()
        with try_lock(job.state / "finish.lock") as is_mine:
            assert not is_mine
    assert not job.state.exists()


def test_a_closed_job_leaves_the_result_alone(job):
    outcomes(job, ["a"])
    (job.output / LEFTOVER).write_text("of a run that was killed")
    with job.finishing():
        job.close()
    assert sorted(path.name for path in job.output.iterdir()) == ["a"]
    with job.finishing():  # a run that comes later
        assert job.begun_of() is None
    assert sorted(path.name for path in job.output.iterdir()) == ["a"]
    with pytest.raises(JobGone), job.claim("a"):
        pass


@pytest.mark.slow
def test_a_run_waits_for_the_parts_of_others_and_makes_those_of_killed_ones(job, holder):
    other = holder(job.output, HOLD_PART)
    due = {part: part for part in ("a", "b")}
    with closing(run_parts(job, due, partial(make, job), 1)) as made:
        assert next(made).part == "b"  # a is held
        other.kill()
        other.wait()
        assert next(made) == Outcome("a", {"process": os.getpid()})
    assert (job.output / "a").read_text() == "a"


def test_a_run_takes_over_what_another_finished_meanwhile(job):
    due = {part: part for part in ("a", "b")}
    with closing(run_parts(job, due, partial(make, job), 1)) as made:
        assert next(made).part == "a"
        job.note("b", {"process": 0})
        assert next(made).record == {"process": 0}
    assert not (job.output / "b").exists()


def test_what_a_killed_run_left_in_a_finished_output_goes_unless_others_are_at_work(job):
    with job.claim("a"):
        job.remove_rest()
    assert job.begun_of() is not None
    job.remove_rest()
    assert list(job.output.iterdir()) == []
