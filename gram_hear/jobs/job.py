"""A long job on disk: what it is made of, which parts are done, and which run makes which part.

A job keeps its state in the folder ``.job`` of its output::

    made_of.json       what the job is made of: nothing else goes on here
    done/PART.json     what was noted of a part, when all its files were in their places
    locks/PART.lock    held by the run that is making the part

Any number of runs may share an output, on one machine or on several: each takes parts that nobody
holds, waits for those of others at the end, and makes what a run that was killed did not finish.
Where locks do not hold between machines (see :mod:`gram_hear.jobs.locks`), a part may be made
twice; its files are whole all the same, since each is written whole.
"""

import fnmatch
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from gram_hear.errors import GramError, OptionError, short, some
from gram_hear.jobs.locks import POLL, try_lock, wait_for_lock
from gram_hear.jobs.workers import work
from gram_hear.jobs.writing import write_json

STATE = ".job"
MADE_OF, DONE, LOCKS, FINISH = "made_of.json", "done", "locks", "finish.lock"
LEFTOVERS = f".{'?' * 12}.{'?' * 32}.partial"  # temporary names of write_whole, left by kills
ADVICE = (
    "Use --force (force=True) to make it anew, or another output.",
    "Delete it, or choose another output.",
)
READABLE = 40  # characters of a part's name in that of its files

Record = dict[str, Any]
Piece = TypeVar("Piece")


class JobGone(GramError):
    """The state of a job was removed: another run finished the job, or began it anew."""


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        part: its name.
        record: what is noted of it; None where it failed, or another run finished the whole job.
        error: why it failed; None otherwise.
        warnings: those that came while it was made here.
    """

    part: str
    record: Record | None
    error: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """The state of a job on disk; it can be handed to other processes.

    Example::

        job = Job(output, {"seed": 1, "rooms": 2})
        job.begin()
        for part in ("a", "b"):
            with job.claim(part) as is_mine:
                if is_mine and job.record(part) is None:
                    write_text(output / part, "content")
                    job.note(part, {"words": 1}, [output / part])
        with job.finishing():
            assert not job.missing(["a", "b"])

    Attributes:
        output: the folder that the job makes.
        made_of: what its result depends on, as plain data for JSON.
    """

    output: Path
    made_of: Mapping[str, Any]

    @property
    def state(self) -> Path:
        """The folder of the job's state."""
        return self.output / STATE

    # --- what it is made of ---

    def begin(
        self,
        *,
        force: bool | None = False,
        finished: Callable[[], Any] | None = None,
        clear: Callable[[], object] | None = None,
    ) -> bool:
        """Begin the job, or go on with what was begun of the same.

        Args:
            force: begin anew where the output is finished, or was begun of something else. Use
                None for commands without --force: the error message then does not offer it.
            finished: returns what the finished output says that it is made of; None where it is
                not finished. Where it is given, an output with files of something else is refused.
            clear: removes what was made before, when the job is begun anew.

        Returns:
            Whether there is something to do; False where the output is finished.

        Raises:
            OptionError: as :meth:`check`, and where the job is to be begun anew while other runs
                are at work in it.
        """
        if self.check(force=force, finished=finished) and not self.state.exists() and not force:
            return False
        with self.finishing():
            is_finished = self.check(force=force, finished=finished)
            if force and (is_finished or self._compare(finished)[1]):
                self.forget()
                if clear is not None:
                    clear()
            elif is_finished:  # by a run that was killed before it removed the state
                self.close()
                return False
            self._make_state()
        return True

    def begin_unchecked(self) -> None:
        """Begin the job, or go on, where the caller has looked at what the output holds.

        What was begun of something else, and is unfinished, is forgotten.

        Raises:
            OptionError: where a run of that is at work.
        """
        with self.finishing():
            if self.begun_of() not in (None, self._plain):
                self.forget()
            self._make_state()

    def _make_state(self) -> None:
        for folder in (DONE, LOCKS):
            (self.state / folder).mkdir(exist_ok=True)
        if self.begun_of() != self._plain:
            write_json(self.state / MADE_OF, self.made_of)

    def check(
        self, *, force: bool | None = None, finished: Callable[[], Any] | None = None
    ) -> bool:
        """Return whether the output is finished, and write nothing; as :meth:`begin`.

        Raises:
            OptionError: where the output was made or begun of something else and ``force`` is not
                set, or holds files of something else.
        """
        if self.output.exists() and not self.output.is_dir():
            raise OptionError(f"{self.output} is a file; give a folder.")
        is_finished, wrong = self._compare(finished)
        if wrong and not force:
            raise OptionError(f"{self.output} {wrong}. {ADVICE[force is None]}")
        return is_finished and not wrong

    def _compare(self, finished: Callable[[], Any] | None) -> tuple[bool, str]:
        """Return whether the output is finished, and how it differs from this job.

        Raises:
            OptionError: where it holds files of something else.
        """
        begun = self.begun_of()  # read first: a run that finishes removes it last
        made = None if finished is None else finished()
        found = begun if made is None else made
        if found is not None:
            return made is not None, self.difference(found)
        if finished is not None and self._holds_files():
            raise OptionError(
                f"{self.output} holds other files; give a folder that is new or empty."
            )
        return False, ""

    def is_finished(self, finished: Callable[[], Any]) -> bool:
        """Whether another run has finished the job meanwhile; within :meth:`finishing`.

        Args:
            finished: as for :meth:`begin`.

        Raises:
            OptionError: where another run made or began something else in the output.
        """
        made = finished()
        found = self.begun_of() if made is None else made
        if found is not None and (wrong := self.difference(found)):
            raise OptionError(f"Another run has begun {self.output} anew: it {wrong}.")
        return made is not None

    def begun_of(self) -> Any:
        """Return what the job in this state folder is made of; None where none was begun."""
        return begun_of(self.output)

    def difference(self, found: Any) -> str:
        """Describe how ``found`` differs from what this job is made of; "" if it does not."""
        if found == self._plain:
            return ""
        if not isinstance(found, dict) or not found:
            return "does not say what it was made of"
        keys = [key for key in self._plain if found.get(key) != self._plain[key]]
        differences = "; ".join(
            f"{key} {short(found.get(key))}, not {short(self._plain[key])}" for key in keys
        )
        return differences and f"was made with other options ({differences})"

    def _holds_files(self) -> bool:
        return self.output.is_dir() and any(path.name != STATE for path in self.output.iterdir())

    def forget(self) -> None:
        """Remove the state but for the lock of the job's end; within :meth:`finishing`.

        Raises:
            OptionError: where a run is at work.
        """
        if not self.is_idle():
            raise OptionError(f"Another run is at work in {self.output}; wait for it.")
        (self.state / MADE_OF).unlink(missing_ok=True)
        self._clear_state()

    @cached_property
    def _plain(self) -> Any:
        """What the job is made of as JSON gives it back: lists for tuples."""
        return json.loads(json.dumps(self.made_of))

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self._plain, sort_keys=True).encode()).hexdigest()[:16]

    # --- its parts ---

    @contextmanager
    def claim(self, part: str) -> Iterator[bool]:
        """Hold the lock of a part until the block is left; yield False where another run does.

        Raises:
            JobGone: where another run finished the job, or began it anew.
        """
        self._require_state()  # taking a lock would make its folder anew
        with try_lock(self._lock(part)) as is_mine:
            self._require_state()
            yield is_mine

    def _require_state(self) -> None:
        if self.begun_of() != self._plain:
            raise JobGone(f"{self.output} was finished or begun anew by another run.")

    def note(self, part: str, record: Record, files: Iterable[Path] = ()) -> None:
        """Note that a part is done, when its files are in their places.

        Args:
            part: its name.
            record: what is to be known of it, as plain data for JSON.
            files: of the output; the part counts as done while all are there, of this size.

        Raises:
            JobGone: where the job's state was removed.
        """
        self._require_state()
        (self.state / DONE).mkdir(exist_ok=True)  # anew where somebody removed it
        sizes = {path.relative_to(self.output).as_posix(): path.stat().st_size for path in files}
        content = {"job": self._digest, "part": part, "files": sizes, "record": record}
        write_json(self._note(part), content, indent=None)

    def record(self, part: str) -> Record | None:
        """Return what was noted of a part; None where it is not done, or its files are not there.

        A note that a power cut left without content counts as none.
        """
        return self._check_note(read_state(self._note(part)), part)

    def records(self) -> Iterator[Record]:
        """Yield what was noted of every part that is done, whichever parts a run asks for."""
        for path in sorted((self.state / DONE).glob("*.json")):
            note = read_state(path)
            if isinstance(note, dict) and (record := self._check_note(note, note.get("part"))):
                yield record

    def _check_note(self, note: Any, part: Any) -> Record | None:
        """Return what a note of this job records of a part whose files are there, else None."""
        if not isinstance(note, dict) or note.get("job") != self._digest:
            return None
        if note.get("part") != part:
            return None
        there = all(_size(self.output / file) == size for file, size in note["files"].items())
        return note["record"] if there else None

    def withdraw(self, part: str, record: Record) -> None:
        """Remove the note of a part that is to be made again, unless another run renews it."""
        with self.claim(part) as is_mine:
            if is_mine and self.record(part) == record:
                self._note(part).unlink(missing_ok=True)

    def is_done(self, part: str) -> bool:
        """Whether a part is noted, and its files are there."""
        return self.record(part) is not None

    def missing(self, parts: Iterable[str]) -> list[str]:
        """Return the parts that are not done."""
        return [part for part in parts if not self.is_done(part)]

    def describe_lost(self, lost: Sequence[str]) -> str:
        """Return the error message for parts whose files vanished while the run was at work."""
        # Without its state, what is left there would be refused as files of something else.
        first = "Delete what is left there, and run" if self.begun_of() is None else "Run"
        return (
            f"{some(lost)} of {self.output}: files were removed or altered while "
            f"this run was at work. {first} again to make them anew."
        )

    def _lock(self, part: str) -> Path:
        return self.state / LOCKS / f"{_file_name(part)}.lock"

    def _note(self, part: str) -> Path:
        return self.state / DONE / f"{_file_name(part)}.json"

    def is_free(self, part: str) -> bool:
        """Whether no run holds a part just now."""
        return not self._lock(part).exists() or _is_free(self._lock(part))

    def is_idle(self) -> bool:
        """Whether no run holds any part just now."""
        return all(map(_is_free, (self.state / LOCKS).glob("*.lock")))

    # --- its end ---

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Hold the lock of the job's end, when no other run does: one run at a time may finish.

        The caller looks in the block whether another run has finished the job meanwhile.
        """
        with wait_for_lock(self.state / FINISH):
            yield
            if is_over := self.begun_of() is None:  # by this run or another, or never begun
                self._clear_state()
        if is_over:
            with suppress(OSError):  # where another run has taken the lock
                self.state.rmdir()

    def _clear_state(self) -> None:
        """Remove the state but for the lock of the job's end, which goes when it is let go of."""
        with suppress(OSError):
            for path in self.state.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != FINISH:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the state of a job whose result says itself what it is; within finishing."""
        (self.state / MADE_OF).unlink(missing_ok=True)  # first: what is left is no job
        self._clear_state()
        for leftover in _half_written(self.output):
            leftover.unlink(missing_ok=True)

    def remove_rest(self) -> None:
        """Remove the state that a killed run left in a finished output; that of others stays."""
        if self.state.exists():
            with suppress(OSError), self.finishing():  # the output is finished all the same
                if self.is_idle():
                    self.close()

    def sweep(self) -> None:
        """Remove what runs that were killed left half written, unless another run is at work."""
        leftovers = _half_written(self.output)
        if self.is_idle():
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)


def claimed(job: Job, parts: Iterable[str]) -> Generator[str, None, None]:
    """Yield each part that this run is to make, held until the next one is asked for.

    Parts that other runs hold come last; those that they have finished are left out. The caller
    notes each part (:meth:`Job.note`), and closes the generator where it may stop in between
    (``contextlib.closing``).

    Raises:
        JobGone: where another run finished the job, or began it anew.
    """
    waiting = list(parts)
    while waiting:
        held = []
        for part in waiting:
            with job.claim(part) as is_mine:
                if not is_mine:
                    held.append(part)
                elif not job.is_done(part):
                    yield part
        if held == waiting:
            time.sleep(POLL)
        waiting = held


def run_parts(
    job: Job,
    due: Mapping[str, Piece],
    make: Callable[[Piece], tuple[Record, Sequence[Path]]],
    processes: int,
) -> Generator[Outcome, None, None]:
    """Make parts of a job, in processes side by side.

    Runs that share the job share its parts: those that others hold come last, as others finish
    them, or are made here where the others were killed.

    Args:
        job: begun.
        due: parts that are not done (:meth:`Job.missing`): name -> what ``make`` is given.
        make: makes a part, in whichever process; it returns what is to be noted, and the files.
            A :class:`~gram_hear.errors.GramError` of it fails the part alone, any other error ends
            the run.
        processes: how many work side by side.

    Yields:
        An :class:`Outcome` for each part, in the order in which they are done.

    Raises:
        WorkerError: as :func:`gram_hear.jobs.workers.work`.
        OSError: where a part cannot be written.
    """
    pieces = dict(due)
    held: list[str] = []
    while pieces or held:
        if pieces:
            making = partial(_make_part, job, make)
            with closing(work(making, pieces.items(), min(processes, len(pieces)))) as outcomes:
                for outcome in outcomes:
                    if isinstance(outcome, Outcome):
                        yield outcome
                    else:
                        held.append(outcome)
        else:
            time.sleep(POLL)
        free = [part for part in held if job.is_free(part)]
        pieces = {part: due[part] for part in free}
        held = [part for part in held if part not in pieces]


def _make_part(
    job: Job, make: Callable[[Piece], tuple[Record, Sequence[Path]]], named: tuple[str, Piece]
) -> Outcome | str:
    """Make a part unless it is done; return its name where another run holds it."""
    part, piece = named
    try:
        with job.claim(part) as is_mine:
            if not is_mine:
                return part
            if (record := job.record(part)) is not None:
                return Outcome(part, record)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                try:
                    record, files = make(piece)
                    error = None
                except GramError as failure:
                    record, error = None, str(failure)
            if record is not None:
                job.note(part, record, files)
    except JobGone:
        # Another run finished the job, and so this part, or began it anew: the end tells which.
        return Outcome(part, None)
    texts = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    return Outcome(part, record, error, tuple(texts))


def _is_free(lock: Path) -> bool:
    with try_lock(lock) as is_mine:
        return is_mine


def _half_written(folder: Path) -> list[Path]:
    """Return the temporary files below a folder, while other runs may remove folders in it."""
    return [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in fnmatch.filter(names, LEFTOVERS)
    ]


def _file_name(part: str) -> str:
    """Return what the files of a part are called: its name as far as it can be, and its hash."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", part)[:READABLE]
    return f"{readable}-{hashlib.sha256(part.encode(errors='surrogateescape')).hexdigest()[:16]}"


def begun_of(output: Path) -> Any:
    """Return what the job of this output is made of; None where none was begun."""
    return read_state(output / STATE / MADE_OF)


def read_state(path: Path) -> Any:
    """Return what a file of a job's state holds.

    It is {} where a power cut left it without content, and None where there is no file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
