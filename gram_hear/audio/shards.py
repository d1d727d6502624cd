"""Remote tars and Parquet files of sounds, read from a local cache of bounded size.

A shard is taken into the cache in whole, as a plain tar, and read from there by offset. All
processes of a machine share the cache. What is in it was written whole; a process that reads a
shard keeps it open, and what is open is not evicted.
"""

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gram_hear.audio.archives import SOUNDS, Member, default_cache, find_members
from gram_hear.audio.parquet import BLOCK, read_footer, unpack
from gram_hear.audio.sources import Shard, ask_footer, download, stated_counts
from gram_hear.errors import GramError, OptionError, SceneError, count
from gram_hear.foreign import parse_json
from gram_hear.jobs.callback import Progress, silent
from gram_hear.jobs.interrupts import submit, wait_for
from gram_hear.jobs.locks import try_lock, wait_for_lock
from gram_hear.jobs.writing import write_json, writing

if sys.platform != "win32":
    import fcntl

GIGABYTES = 100.0  # of the cache
GIGABYTE = 10**9
THREADS = 8  # shards that are looked at side by side
ROOM_SECONDS = 300.0  # that a full cache is waited for: other processes may let go of shards
PARTIAL = "[0-9a-f]*.partial"  # shards being written; what is hidden is somebody else's
POLL = 0.5  # seconds between two looks at it

Watch = Callable[[], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards, each a tar named by its address and version.

    Attributes:
        folder: where; None is ``gram-hear/shards`` in the user's cache directory.
        gigabytes: its size at most.
        audio_column: the column of sound of Parquet files; None finds the only one.
    """

    folder: Path | None = None
    gigabytes: float = GIGABYTES
    audio_column: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.gigabytes < 1e9:
            raise OptionError(f"The cache's size is {self.gigabytes} GB; it must be above 0.")

    @property
    def place(self) -> Path:
        """The folder."""
        return self.folder or default_cache() / "shards"

    def path(self, shard: Shard) -> Path:
        """Return where a shard's tar is, or will be."""
        return self.place / f"{self._key(shard)}.tar"

    def _key(self, shard: Shard) -> str:
        column = self.audio_column if shard.is_parquet else None
        told = json.dumps([shard.address, shard.size, shard.stamp, column])
        return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:32]

    # --- taking -----------------------------------------------------------------------------

    def open(self, shard: Shard) -> "OpenShard":
        """Open a shard, which is taken into the cache first where it is not there.

        Raises:
            SceneError: where it cannot be read.
            OptionError: where the cache cannot be written or is too small.
        """
        path = self.path(shard)
        while True:
            try:
                return OpenShard(path, shard)
            except FileNotFoundError:
                self.fetch(shard)

    def fetch(self, shard: Shard, wait: bool = True) -> None:
        """Take a shard into the cache, unless it is there already.

        If another process is taking it, this waits for that; with ``wait=False`` it does nothing.

        Raises:
            SceneError, OptionError: as :meth:`open`.
        """
        path = self.path(shard)
        if path.is_file():
            return
        with writing(self.place, OptionError):
            self.place.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock")
            with wait_for_lock(lock) if wait else try_lock(lock) as held:
                if held is not False and not path.is_file():
                    self._take(shard, path)

    def _take(self, shard: Shard, path: Path) -> None:
        """Write a shard's tar, whole or not at all; the caller holds its lock."""
        partial, fetched = path.with_suffix(".partial"), path.with_suffix(".fetched.partial")
        size, sizes = shard.size, {}
        if shard.is_parquet:
            if shard.is_remote:
                sizes[fetched] = shard.size
            size = self._facts(shard)["bytes"]
        try:
            for left in (partial, fetched):  # by a process that was killed
                left.unlink(missing_ok=True)
            self._reserve({**sizes, partial: size}, shard)
            with open(partial, "r+b") as file:
                if not shard.is_parquet:
                    download(shard, file)
                elif shard.is_remote:
                    with open(fetched, "r+b") as whole:
                        download(shard, whole)
                    unpack(fetched, file, str(shard), self.audio_column)
                else:
                    unpack(Path(shard.address), file, str(shard), self.audio_column)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())  # or a crash may leave the name without the content
            os.replace(partial, path)
            try:
                # Open, so that no other process evicts it meanwhile.
                with suppress(FileNotFoundError), OpenShard(path, shard):
                    pass
            except SceneError:
                path.unlink(missing_ok=True)
                raise
        finally:
            partial.unlink(missing_ok=True)
            fetched.unlink(missing_ok=True)

    # --- room -------------------------------------------------------------------------------

    def _reserve(self, sizes: dict[Path, int], shard: Shard) -> None:
        """Make empty files of these sizes, and room for them by evicting what was used least."""
        needed, limit = sum(sizes.values()), self.gigabytes * GIGABYTE
        if needed > limit:
            raise OptionError(
                f"{shard} takes {needed / GIGABYTE:.2f} GB, and the cache {self.place} may have "
                f"{self.gigabytes:g} GB; raise cache_size."
            )
        end = time.monotonic() + ROOM_SECONDS
        while True:
            with wait_for_lock(self.place / "room.lock"):
                if self._make_room(needed):
                    for path, size in sizes.items():
                        with open(path, "wb") as file:
                            file.truncate(size)
                    return
            if time.monotonic() > end:
                free = shutil.disk_usage(self.place).free / GIGABYTE
                raise OptionError(
                    f"There is no room for {shard} ({needed / GIGABYTE:.2f} GB) in the cache "
                    f"{self.place}: it may have {self.gigabytes:g} GB, the disk has {free:.2f} GB "
                    "left, and what is there is in use. Raise cache_size, lower open_shards, or "
                    "name another folder."
                )
            time.sleep(POLL)

    def _make_room(self, needed: int) -> bool:
        """Remove what killed processes left, and evict shards until there is room."""
        for left in self.place.glob(PARTIAL):
            with try_lock(self.place / f"{left.name.partition('.')[0]}.lock") as held:
                if held:
                    left.unlink(missing_ok=True)
        there = []
        promised = 0  # bytes that files being written will yet take of the disk
        for path in (*self.place.glob("*.tar"), *self.place.glob(PARTIAL)):
            with suppress(FileNotFoundError):
                status = path.stat()
                there.append((status.st_atime_ns, status.st_size, path))
                if path.suffix == ".partial":
                    promised += status.st_size - 512 * getattr(status, "st_blocks", 0)
        used = sum(size for _, size, _ in there)
        free = shutil.disk_usage(self.place).free - max(promised, 0)
        for _, size, path in sorted(there):
            if used + needed <= self.gigabytes * GIGABYTE and needed <= free:
                break
            if path.suffix == ".tar" and _evict(path):
                used, free = used - size, free + size
        return used + needed <= self.gigabytes * GIGABYTE and needed <= free

    def require_room(self, shards: Sequence[Shard], most: int) -> None:
        """Check that so many of these shards find room in the cache at the same time.

        Raises:
            OptionError: where they may not.
        """
        sizes = sorted((self._facts(shard)["bytes"] for shard in shards), reverse=True)
        if (needed := sum(sizes[:most])) > self.gigabytes * GIGABYTE:
            raise OptionError(
                f"The cache {self.place} may have {self.gigabytes:g} GB, and up to "
                f"{min(most, len(sizes))} shards of together {needed / GIGABYTE:.2f} GB are in use "
                "at a time. Raise cache_size, or lower open_shards."
            )

    # --- counting ---------------------------------------------------------------------------

    def count_clips(
        self,
        shards: Sequence[Shard],
        report: Callable[[str], object] = lambda text: None,
        watch: Watch = lambda: nullcontext(silent),
    ) -> list[int]:
        """Return how many clips each shard has, without taking those of Parquet files.

        Of a Parquet file it is the number of rows, from its footer. Of a remote tar it is what
        WebDataset's ``sizes.json`` beside it says; where there is none, the tar is read once. What
        was found is kept in the cache. Of several processes one does all this.

        Args:
            shards: those to count.
            report: is told before tars are read.
            watch: gives what is told how far it is.

        Raises:
            SceneError, OptionError: as :meth:`open`.
        """
        with writing(self.place, OptionError):
            self.place.mkdir(parents=True, exist_ok=True)
            if any(self._known(shard) is None for shard in shards):
                with wait_for_lock(self.place / "counts.lock"):
                    self._count([s for s in shards if self._known(s) is None], report, watch)
            return [self._facts(shard)["clips"] for shard in shards]

    def _count(self, shards: list[Shard], report: Callable[[str], object], watch: Watch) -> None:
        tars = [shard for shard in shards if not shard.is_parquet]
        stated = {f: stated_counts(f) for f in {s.address.rpartition("/")[0] for s in tars}}
        for shard in tars:
            folder, _, name = shard.address.partition("?")[0].rpartition("/")
            clips = stated.get(folder, {}).get(name)
            if clips is not None and clips * BLOCK <= shard.size:  # else it cannot be
                self._note(shard, {"clips": clips})
        unknown = [shard for shard in shards if self._known(shard) is None]
        if whole := [shard for shard in unknown if not shard.is_parquet]:
            report(
                f"{count(len(whole), 'remote tar')} "
                f"({sum(s.size for s in whole) / GIGABYTE:,.1f} GB) must be read once to count "
                "the clips, as there is no sizes.json beside them. The counts are kept in "
                f"{self.place}."
            )
        if not unknown:
            return
        with watch() as progress, ThreadPoolExecutor(THREADS) as pool:
            done = 0
            futures = [submit(pool, self._facts, shard) for shard in unknown]
            try:
                for future in futures:
                    wait_for([future])
                    future.result()
                    done += 1
                    progress(done, len(futures))
            finally:
                for future in futures:
                    future.cancel()

    def _facts(self, shard: Shard) -> dict[str, int]:
        """Return the number of clips of a shard, and the bytes of its tar at most."""
        if (known := self._known(shard)) is not None:
            return known
        if shard.is_parquet:
            table = ask_footer(shard, lambda file: read_footer(file, str(shard), self.audio_column))
            facts = {"clips": table.rows, "bytes": table.tar_bytes}
        else:
            with self.open(shard) as opened:
                facts = {"clips": len(opened.members)}
        return self._note(shard, facts)

    def _note(self, shard: Shard, facts: dict[str, int]) -> dict[str, int]:
        facts = {"bytes": shard.size} | facts
        write_json(self.path(shard).with_suffix(".json"), facts)
        return facts

    def _known(self, shard: Shard) -> dict[str, int] | None:
        """Return what is noted of a shard; None where nothing is, or what is wrong."""
        path = self.path(shard).with_suffix(".json")
        try:
            facts = parse_json(path.read_bytes(), str(path), SceneError)
        except (OSError, SceneError):
            return None
        numbers = [facts.get(n) for n in ("clips", "bytes")] if isinstance(facts, dict) else []
        if not numbers or any(type(n) is not int or not 0 <= n < 1 << 50 for n in numbers):
            return None
        return facts


@dataclass(frozen=True)
class ShardMember(Member):
    """A sound of a shard. Messages say where the shard comes from, not where its tar is."""

    source: str

    def __str__(self) -> str:
        return f"{self.source}: {self.name}"


def _members(path: Path, shard: Shard) -> list[Member]:
    """Return the sounds of a shard's tar; errors name the shard."""
    try:
        found = find_members(path, SOUNDS, labels=True)
        return [ShardMember(path, m.name, m.offset, m.size, str(shard)) for m in found]
    except SceneError as error:
        raise SceneError(str(error).replace(str(path), str(shard))) from error


def _evict(path: Path) -> bool:
    """Remove a shard's tar unless a process has it open; return whether it was removed."""
    try:
        with open(path, "r+b") as file:
            if sys.platform != "win32":  # which does not remove open files
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        if sys.platform == "win32":
            path.unlink()
    except OSError:
        return False
    path.with_name(f".{path.name}.index.npz").unlink(missing_ok=True)
    return True


class OpenShard:
    """A shard in the cache, which stays there until this is closed.

    Attributes:
        shard: where it comes from.
        members: its sounds, in the order of the tar.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        """Open the tar.

        Raises:
            FileNotFoundError: where it is not there.
            SceneError: where it is no tar of sounds.
        """
        self.shard = shard
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115
        try:
            if sys.platform != "win32":
                fcntl.flock(self._file, fcntl.LOCK_SH)
                if self.was_removed():  # just now
                    raise FileNotFoundError(path)
            with suppress(OSError):  # the time of use, by which shards are evicted
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            self.members = _members(path, shard)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "OpenShard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def was_removed(self) -> bool:
        """Whether somebody removed the tar, although it is in use."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def close(self) -> None:
        """Let go of the shard."""
        self._file.close()


class ShardReader:
    """Members of many shards by number, of which a few are kept open.

    It may be sent to other processes, each of which opens shards of its own.
    """

    def __init__(self, cache: ShardCache, shards: Sequence[Shard], most: int) -> None:
        self.cache = cache
        self.shards = list(shards)
        self.most = most
        self._open: OrderedDict[int, OpenShard | GramError] = OrderedDict()
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_open": OrderedDict(), "_thread": None}

    def member(self, shard: int, i: int) -> Member:
        """Return a sound of a shard, which is fetched where it is not there.

        A shard that could not be read is not tried again until others were.

        Raises:
            SceneError: where it cannot be read, or has no such sound.
            OptionError: where the cache cannot be written or is too small.
        """
        there = self._open.get(shard)
        if isinstance(there, OpenShard) and there.was_removed():
            self._open.pop(shard)
            there.close()
        if shard not in self._open:
            while len(self._open) >= self.most:
                oldest = self._open.popitem(last=False)[1]
                if isinstance(oldest, OpenShard):
                    oldest.close()
            try:
                self._open[shard] = self.cache.open(self.shards[shard])
            except SceneError as error:
                self._open[shard] = error
        self._open.move_to_end(shard)
        opened = self._open[shard]
        if isinstance(opened, GramError):
            raise SceneError(str(opened))
        if i >= len(opened.members):
            raise SceneError(
                f"{self.shards[shard]} holds {count(len(opened.members), 'sound')}, fewer than "
                "were counted."
            )
        return opened.members[i]

    def fetch_ahead(self, shards: Iterable[int]) -> None:
        """Fetch shards that will soon be needed, in a thread; whoever needs one meets its errors.

        Processes that load data begin with different shards, and leave those alone that another
        one is fetching.
        """
        wanted = [self.shards[i] for i in shards]
        turn = os.getpid() % max(len(wanted), 1)
        before = self._thread

        def fetch() -> None:
            if before is not None:
                before.join()
            for shard in wanted[turn:] + wanted[:turn]:
                with suppress(GramError):
                    self.cache.fetch(shard, wait=False)

        self._thread = threading.Thread(target=fetch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of all shards."""
        for each in self._open.values():
            if isinstance(each, OpenShard):
                each.close()
        self._open.clear()
