"""Sounds of any kind into tars of FLAC clips, the layout that pretraining reads.

Files are taken in groups, each of which fills a tar (or several, where one file is longer than a
tar may be). Groups are the parts of a job (:mod:`gram_hear.jobs.job`), whose state stays in the
output: so the same call goes on after an interruption, tries again files that failed and were
altered since, and adds files that are new. A tar or Parquet file of sounds is a group of its own.
"""

import io
import itertools
import math
import shutil
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.audio.archives import (
    NPY_RATE,
    SOUNDS,
    SUMMARY,
    TAR_END,
    TARS,
    Member,
    add_member,
    first_channel,
    index_tar,
    is_array,
    plain_stem,
)
from gram_hear.audio.files import SoundReader, resample, warn_of_left_out
from gram_hear.audio.shards import ShardCache
from gram_hear.audio.sources import PARQUET, Shard, find_sources, hide_secrets, is_address
from gram_hear.config import require_rate
from gram_hear.errors import AudioError, OptionError, SceneError
from gram_hear.jobs.callback import Progress, silent
from gram_hear.jobs.job import Job, Record, read_state, run_parts
from gram_hear.jobs.locks import wait_for_lock
from gram_hear.jobs.workers import cores
from gram_hear.jobs.writing import write_json, write_whole, writing

FORMAT, VERSION = "gram-hear clips", 1
GROUPS = "groups.json"  # in the job's state: the files of each group
OLD_STATE = ".preparing"  # where gram-hear 0.1.0 kept what was done
UNFETCHED = [-1]  # instead of the stamp of a file that could not be fetched
LEAST = 1.0  # seconds of what remains at the end of a file that is cut, to be a clip
MEGABYTE = 10**6
TAR_OVERHEAD = 1536  # bytes: a member's header, and its padding


@dataclass(frozen=True)
class Preparation:
    """How clips are made.

    Files are cut into ``seconds``; None keeps them whole. What remains at a file's end is a clip
    where it lasts a second, or is all there is.
    """

    seconds: float | None = 10.0
    rate: int = 32000  # Hz
    tar_size: float = 500.0  # megabytes of a tar at most; one of a single clip may be larger

    def __post_init__(self) -> None:
        if self.seconds is not None and not LEAST <= self.seconds < math.inf:
            raise OptionError(f"seconds is {self.seconds:g}; clips last at least {LEAST:g} s.")
        require_rate(self.rate)
        if not 0.1 <= self.tar_size < math.inf:
            raise OptionError(f"tar_size is {self.tar_size:g} MB; it must be 0.1 or more.")


@dataclass(frozen=True)
class FileGroup:
    """Files whose clips share tars: the group's number, that of its first file, and paths.

    A tar, a Parquet file or a URL is a group of its own.
    """

    number: int
    first: int
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """What its tars' names begin with."""
        return f"clips-{self.number:06d}"


@dataclass(frozen=True)
class _EncodedClip:
    """A clip as it is written: the name of the member, FLAC, and the number of samples."""

    name: str
    flac: bytes
    samples: int


@dataclass
class _Found:
    """What the files of a group held, beside its clips.

    ``sounds`` counts all of them. ``short_rests`` counts remainders that are too short for a clip,
    and ``short_seconds`` is how long these are together.
    """

    sounds: int = 0
    short_rests: int = 0
    short_seconds: float = 0.0
    beside_sounds: Counter[str] = field(default_factory=Counter)  # files in tars, by suffix
    failed: list[dict[str, Any]] = field(default_factory=list)


def prepare(
    inputs: Sequence[Path | str],
    output: Path,
    preparation: Preparation,
    *,
    jobs: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    cache: ShardCache | None = None,
) -> dict[str, Any]:
    """Make clips of all sounds, or go on with what was interrupted.

    A clip is the first channel of a file, resampled, in 16-bit FLAC; samples beyond full scale are
    clipped. Tars are written whole or not at all, and checked. Several runs may work in one output
    together. With several jobs scripts need ``if __name__ == "__main__":`` around the call.

    Args:
        inputs: what :func:`gram_hear.audio.sources.find_sources` takes: sound files, tars and
            Parquet files of them, folders that are searched for all of these, and URLs.
        output: the folder of the tars; made where it is not there.
        preparation: how.
        jobs: processes side by side; None is one for each processor.
        force: replace what an earlier call with other inputs or options made.
        progress: called with the number of files done and that of all; a tar is one file.
        cache: where Parquet files and remote tars are kept while they are read.

    Returns:
        What ``prepared.json`` in the output says: the numbers of ``files`` and ``clips``, their
        ``sound_seconds``, the ``tars``, ``warnings``, what was ``left_out``, and in ``failed`` each
        ``file`` that could not be read, with the ``reason``.

    Raises:
        AudioError: where there is no sound, or a URL cannot be read.
        OptionError: for a folder with other files, one that was begun with other inputs or options,
            or that cannot be written.
    """
    jobs = cores() if jobs is None else jobs
    if jobs < 1:
        raise OptionError(f"jobs is {jobs}; it must be at least 1.")
    cache = cache or ShardCache()
    files, others = _find(inputs, output)
    options = {"inputs": [_full(path) for path in inputs], **asdict(preparation)}
    if cache.audio_column is not None:
        options["audio_column"] = cache.audio_column
    job = Job(output, options)
    with writing(output, OptionError):
        _take_over(output)
        # Never finished: there may be files to add.
        job.begin(force=force, finished=lambda: None, clear=partial(_clear, output))
        _try_again(job)
        make = partial(write_group, output, preparation, cache)
        summarise = partial(_summarise, job, preparation, others)
        return _make_groups(job, files, preparation, make, summarise, jobs, progress or silent)


def _make_groups(
    job: Job,
    files: list[str],
    preparation: Preparation,
    make: Callable[[FileGroup], tuple[Record, list[Path]]],
    summarise: Callable[[list[FileGroup]], dict[str, Any]],
    jobs: int,
    progress: Progress,
) -> dict[str, Any]:
    """Make the groups that are due, and those that other runs add meanwhile; sum all up."""
    known = None
    while True:
        with job.finishing():
            job.is_finished(lambda: None)  # or begun anew by another run, of other files
            groups = _plan(job, files, preparation)
            due = {group.name: group for group in groups if _is_due(job, group)}
            total = sum(len(group.files) for group in groups)
            done = total - sum(len(group.files) for group in due.values())
            if not due:
                progress(done, total)
                return summarise(groups)
            if groups == known:
                raise OptionError(job.describe_lost(list(due)))
            (job.output / SUMMARY).unlink(missing_ok=True)
        known = groups
        progress(done, total)
        with closing(run_parts(job, due, make, jobs)) as outcomes:
            for outcome in outcomes:
                if outcome.error is not None:
                    raise OptionError(outcome.error)
                done += len(due[outcome.part].files)
                progress(done, total)


def _find(inputs: Sequence[Path | str], output: Path) -> tuple[list[str], Counter[str]]:
    """Return the absolute paths and URLs of the files, each once, and the suffixes of others.

    Tars in the output are not taken for input.
    """
    left_out: Counter[str] = Counter()
    try:
        found = [source for path in inputs for source in find_sources(path, left_out)]
    except SceneError as error:
        raise AudioError(str(error)) from None
    warn_of_left_out(left_out)
    own = output.absolute()
    names = [source.address if isinstance(source, Shard) else _full(source) for source in found]
    names = [name for name in names if not (_is_tar(name) and Path(name).parent == own)]
    if not names:
        raise AudioError(f"No sound file was found in {', '.join(map(str, inputs))}.")
    return list(dict.fromkeys(names)), +left_out


def _full(path: Path | str) -> str:
    return str(path) if is_address(path) else str(Path(path).absolute())


def _is_tar(file: str) -> bool:
    return not is_address(file) and file.lower().endswith(TARS)


def _holds_many(file: str) -> bool:
    """Whether a file holds many sounds, and so is a group of its own."""
    return is_address(file) or _is_tar(file) or file.lower().endswith(PARQUET)


# --- what is to be done ---------------------------------------------------------------------


def _clear(output: Path) -> None:
    """Remove what was made of other inputs, or with other options."""
    for path in (*output.glob("clips-*.tar"), *output.glob(".clips-*.tar.*"), output / SUMMARY):
        path.unlink(missing_ok=True)


def _take_over(output: Path) -> None:
    """Turn what gram-hear 0.1.0 noted in an output into the state of a job."""
    old = output / OLD_STATE
    if not old.is_dir():
        return
    with wait_for_lock(old / "lock"):  # of that version, too
        plan = read_state(old / "plan.json")
        if plan:
            job = Job(output, plan["options"])
            job.begin()
            write_json(job.state / GROUPS, plan["groups"])
            for group in _number(plan["groups"]):
                record = read_state(old / f"group-{group.number:06d}.json")
                tars = [output / tar["name"] for tar in record["tars"]] if record else []
                if record and all(tar.is_file() for tar in tars):
                    job.note(group.name, record, tars)
            shutil.rmtree(old)
    with suppress(OSError):  # where nothing is left in it but the lock, which is gone
        old.rmdir()


def _plan(job: Job, files: list[str], preparation: Preparation) -> list[FileGroup]:
    """Return the groups of earlier calls, and those of files that are new."""
    parts: list[list[str]] = read_state(job.state / GROUPS) or []
    known = set(itertools.chain.from_iterable(parts))
    if new := [file for file in files if file not in known]:
        parts += _group(new, preparation)
        write_json(job.state / GROUPS, parts)
    return _number(parts)


def _number(parts: list[list[str]]) -> list[FileGroup]:
    firsts = itertools.accumulate((len(part) for part in parts), initial=0)
    return [
        FileGroup(number, first, tuple(part))
        for number, (part, first) in enumerate(zip(parts, firsts, strict=False))
    ]


def _group(files: Sequence[str], preparation: Preparation) -> list[list[str]]:
    """Share files among groups, each of at most a tar of samples that are not compressed."""
    groups: list[list[str]] = []
    room = 0.0
    for file in files:
        if _holds_many(file):
            groups.append([file])
            room = 0.0
            continue
        try:
            with SoundReader(file, preparation.rate, any_channels=True) as reader:
                size = 2 * reader.duration * preparation.rate
        except AudioError:
            size = 0.0  # that of a file that fails, as whoever reads it will say
        if not groups or size > room or _holds_many(groups[-1][-1]):
            groups.append([])
            room = preparation.tar_size * MEGABYTE
        groups[-1].append(file)
        room -= size
    return groups


def _is_due(job: Job, group: FileGroup) -> bool:
    """Whether a group was not finished, or one of its files that failed is another by now."""
    record = job.record(group.name)
    if record is None:
        return True
    for failed in record["failed"]:
        stamp = _stamp(failed.get("source", failed["file"]))
        if failed["stamp"] not in (UNFETCHED, stamp):
            job.withdraw(group.name, record)
            return True
    return False


def _try_again(job: Job) -> None:
    """Forget the groups whose files an earlier call could not fetch."""
    for group in _number(read_state(job.state / GROUPS) or []):
        record = job.record(group.name)
        if record and any(failed["stamp"] == UNFETCHED for failed in record["failed"]):
            job.withdraw(group.name, record)


def _stamp(file: str) -> list[int] | None:
    """Return a file's size and time; None where it is not there, or is remote."""
    try:
        status = Path(file).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _summarise(
    job: Job, preparation: Preparation, others: Counter[str], groups: list[FileGroup]
) -> dict[str, Any]:
    """Write and return what was made, of all calls together."""
    results: list[dict[str, Any]] = [
        {"sounds": len(group.files)} | record  # that of version 0.1.0 has no number of sounds
        for group in groups
        if (record := job.record(group.name)) is not None
    ]
    beside: Counter[str] = Counter()
    for result in results:
        beside.update(result.get("beside_sounds", {}))
    tars = [tar for result in results for tar in result["tars"]]
    failed = [
        {"file": hide_secrets(failed["file"]), "reason": failed["reason"]}
        for result in results
        for failed in result["failed"]
    ]
    summary = {
        "format": FORMAT,
        "version": VERSION,
        "gram_hear": version("gram-hear"),
        **asdict(preparation),
        "files": sum(result["sounds"] for result in results) - len(failed),
        "clips": sum(tar["clips"] for tar in tars),
        "sound_seconds": sum(tar["seconds"] for tar in tars),
        "tars": tars,
        "warnings": [text for result in results for text in result["warnings"]],
        "left_out": {
            "files_by_suffix": dict(sorted(others.items())),
            "beside_sounds_by_suffix": dict(sorted(beside.items())),
            "short_rests": sum(result.get("short_rests", 0) for result in results),
            "short_seconds": sum(result.get("short_seconds", 0.0) for result in results),
            "unreadable": len(failed),
        },
        "failed": failed,
    }
    write_json(job.output / SUMMARY, summary)
    job.sweep()
    return summary


# --- one group ------------------------------------------------------------------------------


def write_group(
    output: Path, preparation: Preparation, cache: ShardCache, group: FileGroup
) -> tuple[Record, list[Path]]:
    """Write the tars of a group, in whichever process; return what is to be noted, and the tars."""
    for old in output.glob(f"{group.name}-*.tar"):
        old.unlink()
    tars: list[dict[str, Any]] = []
    found = _Found()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clips = _clips(group, preparation, cache, found)
        ahead = next(clips, None)
        while ahead is not None:
            rest = itertools.chain([ahead], clips)
            tar = output / f"{group.name}-{len(tars):03d}.tar"
            ahead, facts = _write_tar(tar, rest, preparation)
            tars.append(facts)
    texts = [str(each.message) for each in caught if each.category is UserWarning]
    record = {"tars": tars, "warnings": texts, **vars(found)}
    return record, [output / tar["name"] for tar in tars]


def _clips(
    group: FileGroup, preparation: Preparation, cache: ShardCache, found: _Found
) -> Iterator[_EncodedClip]:
    """Yield the clips of a group; a file that fails gives none, and is noted in ``found``."""
    for number, file in enumerate(group.files, group.first):
        stamp = _stamp(file)
        if not _holds_many(file):
            found.sounds += 1
            yield from _try_clips(Path(file), file, f"{number:08d}", stamp, preparation, found)
            continue
        try:
            with _opened(file, cache, found.beside_sounds) as members:
                for i, member in enumerate(members):
                    found.sounds += 1
                    prefix = f"{number:08d}-{i:06d}"
                    yield from _try_clips(member, file, prefix, stamp, preparation, found)
        except SceneError as error:
            found.sounds += 1
            stamp = UNFETCHED if is_address(file) else stamp
            found.failed.append({"file": file, "reason": str(error), "stamp": stamp})


@contextmanager
def _opened(file: str, cache: ShardCache, left_out: Counter[str]) -> Iterator[list[Member]]:
    """Give the sounds of a tar or Parquet file; a shard stays in the cache meanwhile.

    ``left_out`` is increased by the other files in a tar, by suffix.
    """
    (source,) = find_sources(file)
    if isinstance(source, Shard):
        with cache.open(source) as opened:
            index_tar(cache.path(source), SOUNDS, labels=True, left_out=left_out)
            yield opened.members
    else:
        yield index_tar(source, SOUNDS, labels=True, left_out=left_out)


def _try_clips(
    sound: Path | Member,
    source: str,
    prefix: str,
    stamp: list[int] | None,
    preparation: Preparation,
    found: _Found,
) -> Iterator[_EncodedClip]:
    try:
        yield from list(_clips_of(sound, prefix, preparation, found))
    except (AudioError, SceneError) as error:
        failure = {"file": str(sound), "source": source, "reason": str(error), "stamp": stamp}
        found.failed.append(failure)


def _clips_of(
    sound: Path | Member, prefix: str, preparation: Preparation, found: _Found
) -> Iterator[_EncodedClip]:
    stem = plain_stem(Path(sound.name).name)
    with _blocks(sound, preparation.rate) as blocks:
        pieces: Iterable[Iterable[np.ndarray]] = [blocks]
        short: list[int] = []
        if preparation.seconds is not None:
            samples = round(preparation.seconds * preparation.rate)
            least = round(LEAST * preparation.rate)
            pieces = ([piece] for piece in _cut(blocks, samples, least, short))
        for i, piece in enumerate(pieces):
            flac, samples = _encode(piece, preparation.rate)
            yield _EncodedClip(f"{prefix}_{stem}_{i:04d}.flac", flac, samples)
        found.short_rests += len(short)
        found.short_seconds += sum(short) / preparation.rate


@contextmanager
def _blocks(sound: Path | Member, rate: int) -> Iterator[Iterable[np.ndarray]]:
    """Give the first channel of a sound, resampled, in blocks (samples,)."""
    if is_array(sound):
        yield [resample(first_channel(sound), NPY_RATE, rate)]
        return
    with SoundReader(sound, rate, any_channels=True) as reader:
        yield _first_channel(reader)


def _first_channel(reader: SoundReader) -> Iterator[np.ndarray]:
    for block in reader.blocks():
        if not np.isfinite(block[0]).all():
            raise AudioError(f"{reader.path} holds NaN or infinite samples.")
        yield block[0]


def _cut(
    blocks: Iterable[np.ndarray], samples: int, least: int, short: list[int]
) -> Iterator[np.ndarray]:
    """Yield pieces of ``samples`` samples; the rest where it has ``least``, or is all.

    The samples of a rest that is too short are appended to ``short``.
    """
    held = np.empty(0, dtype=np.float32)
    is_first = True
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= samples:
            yield held[:samples]
            held, is_first = held[samples:], False
    if len(held) >= (1 if is_first else least):
        yield held
    elif len(held) > 0:
        short.append(len(held))


def _encode(blocks: Iterable[np.ndarray], rate: int) -> tuple[bytes, int]:
    """Return FLAC of one channel, and its samples."""
    import soundfile

    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, "PCM_16", format="FLAC") as sound:
        for block in blocks:  # rounded here: what was 16 bits stays the same
            sound.write(np.clip(np.rint(block * 32768), -32768, 32767).astype(np.int16))
        samples = sound.frames
    return file.getvalue(), samples


# --- one tar --------------------------------------------------------------------------------


def _write_tar(
    path: Path, clips: Iterator[_EncodedClip], preparation: Preparation
) -> tuple[_EncodedClip | None, dict[str, Any]]:
    """Write clips until the tar is full; return the first that it has no room for, and its facts.

    The same clips make the same bytes.
    """
    written: dict[str, int] = {}
    left: list[_EncodedClip] = []

    def write(temporary: Path) -> None:
        room = preparation.tar_size * MEGABYTE - TAR_END
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for clip in clips:
                room -= len(clip.flac) + TAR_OVERHEAD
                if written and room < 0:
                    left.append(clip)
                    break
                add_member(tar, clip.name, clip.flac)
                written[clip.name] = clip.samples
        _check_tar(temporary, written, preparation.rate)

    write_whole(path, write)
    seconds = sum(written.values()) / preparation.rate
    size = path.stat().st_size
    facts = {"name": path.name, "clips": len(written), "seconds": seconds, "bytes": size}
    return (left[0] if left else None), facts


def _check_tar(path: Path, written: dict[str, int], rate: int) -> None:
    """Read a tar back: the names, lengths, rate and channels of its clips must be as written."""
    import soundfile

    found = {}
    for member in index_tar(path, (".flac",)):
        sound = soundfile.info(io.BytesIO(member.read()))
        if (sound.samplerate, sound.channels) == (rate, 1):
            found[member.name] = sound.frames
    if found != written:
        wrong = [name for name in written if found.get(name) != written[name]]
        raise OptionError(
            f"{len(wrong)} of {len(written)} clips were not read back as they were written, the "
            f"first {wrong[0] if wrong else '(unknown)'}. Check the disk, and run again to go on."
        )
