"""What sets lie in: uncompressed tars, indexed once and read at random, and ``.npy`` arrays.

Nothing is unpickled and nothing is unpacked: a tar's members are read from their position in it.
"""

import hashlib
import io
import os
import re
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from gram_hear.audio.containers import Part
from gram_hear.audio.files import SUFFIXES, find_audio, warn_of_left_out
from gram_hear.errors import SceneError, count, reason_of
from gram_hear.foreign import (
    FLOATS,
    LONGEST_HEADER,
    TAR_FAULTS,
    ZIP_FAULTS,
    BoundedMember,
    parse_array,
    parse_header,
    read_array,
)
from gram_hear.jobs.locks import wait_for_lock
from gram_hear.jobs.writing import write_whole

NPY = ".npy"
NPY_RATE = 32000  # Hz of arrays of sound, which do not say it: that of the published recipe
LARGEST = 1 << 30  # bytes of an array's file
SOUNDS = (*SUFFIXES, NPY)  # how the names of members that are sounds end
TAR_END = 10240  # bytes with which a tar ends
STEM = 60  # characters of a file's name in that of a member
COMPRESSED_TARS = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4"),
)
TARS = (".tar", *COMPRESSED_TARS)
SUMMARY = "prepared.json"  # what gram-hear prepare puts beside its tars
COMPRESSIONS = {  # how files begin, and the program that unpacks them
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True)
class Member(Part):
    """A file in a tar, by its position."""

    def read(self, start: int = 0, size: int | None = None) -> bytearray:
        """Return the member's bytes, or ``size`` of them from its byte ``start`` on.

        Raises:
            SceneError: where the tar cannot be read or is shorter than it was.
        """
        size = self.size - start if size is None else size
        if size > LARGEST:
            raise SceneError(f"{self} has {size:,} bytes; {LARGEST:,} are read at most.")
        data = bytearray(size)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset + start)
                found = file.readinto(data)
        except OSError as error:
            raise SceneError(f"{self.path} cannot be read: {reason_of(error)}.") from error
        if found < size:
            raise SceneError(f"{self} ends early; the tar was cut or altered. Fetch it anew.")
        return data


def find_below(folder: Path, suffixes: str | tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below a folder that end so, in sorted order; hidden ones not."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield Path(parent) / name


def find_files(
    path: Path, suffixes: tuple[str, ...], left_out: Counter[str] | None = None
) -> Iterator[Path]:
    """Yield a file itself, or the files below a folder with such suffixes, and then its tars.

    Args:
        path: the file or folder.
        suffixes: of the files to look for beside tars.
        left_out: is increased by the files that are left out, by suffix; without it, a warning
            counts them. A warning names compressed tars.

    Raises:
        SceneError: where nothing is there.
    """
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise SceneError(f"There is no folder or file {path}.")
    counted: Counter[str] = Counter()
    tars = []
    for found in find_audio(path, counted, (*suffixes, *TARS)):
        if found.name.lower().endswith(TARS):
            tars.append(found)
        else:
            yield found
    if (path / SUMMARY).is_file():
        counted -= Counter([os.path.splitext(SUMMARY)[1]])
    if left_out is None:
        warn_of_left_out(counted, path)
    else:
        left_out += counted
    for tar in tars:
        if tar.name.lower().endswith(COMPRESSED_TARS):
            warnings.warn(
                f"{tar} is left out: it is compressed. Decompress it to .tar first "
                f"({_compressor(tar) or 'gzip'} -d).",
                stacklevel=2,
            )
            if left_out is not None:
                left_out[tar.suffix.lower()] += 1
        else:
            yield tar


def find_sounds(path: Path) -> Iterator[Path | Member]:
    """Yield a sound file itself, the members of a tar, or both of all below a folder.

    Warns of the files that are left out, and of compressed tars. Other files in tars, such as
    WebDataset's labels, are passed over.

    Raises:
        SceneError: where nothing is there, for tars that cannot be read or hold other files alone,
            and for a compressed one that is named.
    """
    for found in find_files(path, SUFFIXES):
        yield from sounds_of(found)


def sounds_of(file: Path) -> Iterable[Path | Member]:
    """Return the members of a tar that are sounds or arrays, or any other file itself."""
    if file.name.lower().endswith(TARS):
        return find_members(file, SOUNDS, labels=True)
    return [file]


def index_tar(
    path: Path,
    suffixes: tuple[str, ...],
    labels: bool = False,
    left_out: Counter[str] | None = None,
) -> list[Member]:
    """Return the members of a tar, in its order; folders and hidden files are passed over.

    Args:
        path: an uncompressed tar.
        suffixes: what the members' names end in.
        labels: whether files of other kinds may be there too, and are passed over: those that
            WebDataset keeps beside each sound, such as key.json or key.txt beside key.flac. A
            warning counts the keys that have no other member.
        left_out: is increased by the files that are passed over, by suffix.

    Raises:
        SceneError: for a file that is no whole, uncompressed tar, for members of other kinds, and
            with ``labels`` where all members are of other kinds.
    """
    if program := _compressor(path):
        stem = path.name.partition(".")[0]
        raise SceneError(
            f"{path} is compressed ({program}), and members of such tars cannot be read at random. "
            f"Decompress it once: {program} -dc {path.name} > {stem}-plain.tar"
        )
    try:
        with tarfile.open(path, "r:", tarinfo=BoundedMember) as tar:
            files = [each for each in tar if not each.isdir() and not _is_hidden(each.name)]
        size = path.stat().st_size
    except TAR_FAULTS as error:
        raise SceneError(
            f"{path} cannot be read as a tar ({reason_of(error)}); it must be whole and not "
            "compressed."
        ) from error
    others = [each.name for each in files if not each.name.lower().endswith(suffixes)]
    members = [_member(path, each) for each in files if each.name.lower().endswith(suffixes)]
    if others and not (labels and members):
        raise SceneError(
            f"{path} holds {others[0]}; its members must end in {', '.join(suffixes)}. Make a "
            "tar without the others."
        )
    if left_out is not None:
        left_out.update(os.path.splitext(name)[1].lower() for name in others)
    keys = {_key(member.name) for member in members}
    if alone := [name for name in others if _key(name) not in keys]:
        warnings.warn(
            f"{path}: {count(len(alone), 'file')} left out, with no readable sound of the same "
            f"name, such as {alone[0]}.",
            stacklevel=2,
        )
    for member in members:
        if member.offset + member.size > size:
            raise SceneError(f"{path} ends in the midst of {member.name}; fetch it anew.")
    return members


def find_members(path: Path, suffixes: tuple[str, ...], labels: bool = False) -> list[Member]:
    """Return the members of a tar as :func:`index_tar`, from what an earlier call found.

    That is kept beside the tar, or, where its folder cannot be written to, in
    :func:`default_cache`. It is good for as long as the tar has the same size and time. Of several
    processes that ask for it one makes it, and the others wait.
    """
    try:
        status = path.stat()
    except OSError:
        return index_tar(path, suffixes, labels)  # which says what is wrong
    stamp = np.array([status.st_size, status.st_mtime_ns])
    beside = path.with_name(f".{path.name}.index.npz")
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    elsewhere = default_cache() / "indexes" / f"{name}.npz"

    def kept() -> list[Member] | None:
        for file in (beside, elsewhere):
            found = _read_index(file, path, stamp)
            if found is not None and all(
                each.name.lower().endswith(suffixes) and not _is_hidden(each.name) for each in found
            ):
                return found
        return None

    if (found := kept()) is not None:
        return found
    members = None
    for file in (beside, elsewhere):
        with suppress(OSError):  # a folder that cannot be written to
            if file is elsewhere:
                file.parent.mkdir(parents=True, exist_ok=True)
            with wait_for_lock(file.with_suffix(".lock")):
                if members is None and (found := kept()) is not None:
                    return found
                members = members or index_tar(path, suffixes, labels)
                _write_index(file, stamp, members)
                return members
    return members or index_tar(path, suffixes, labels)


def default_cache() -> Path:
    """Return the folder of what can be made again: gram-hear, in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gram-hear"


def _write_index(path: Path, stamp: np.ndarray, members: list[Member]) -> None:
    spans = np.array([(m.offset, m.size) for m in members], dtype=np.int64).reshape(-1, 2)
    names = np.frombuffer(b"\0".join(os.fsencode(m.name) for m in members), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, stamp=stamp, places=spans, names=names)

    write_whole(path, write)


def _read_index(path: Path, tar: Path, stamp: np.ndarray) -> list[Member] | None:
    """Return a tar's members as they are kept; None where nothing is, or what is wrong."""
    try:
        with zipfile.ZipFile(path) as kept:
            found, spans, names = (
                read_array(kept, part, SceneError, kind)
                for part, kind in (("stamp", np.int64), ("places", np.int64), ("names", np.uint8))
            )
    except (OSError, SceneError, *ZIP_FAULTS):
        return None
    split = os.fsdecode(names.tobytes()).split("\0")
    if not np.array_equal(found, stamp) or spans.shape != (len(split), 2):
        return None
    ends = spans[:, 0].astype(np.float64) + spans[:, 1]
    if spans.min() < 0 or ends.max() > stamp[0]:
        return None
    return [Member(tar, name, *span) for name, span in zip(split, spans.tolist(), strict=True)]


def _compressor(path: Path) -> str | None:
    """Return the program that a file was compressed with; None where it was not."""
    with suppress(OSError):  # what cannot be opened is said by who reads it
        with open(path, "rb") as file:
            start = file.read(6)
        return next((name for mark, name in COMPRESSIONS.items() if start.startswith(mark)), None)
    return None


def _is_hidden(name: str) -> bool:
    """Whether a member is a hidden file, such as ._a.flac, which macOS puts beside a.flac."""
    return name.rpartition("/")[2].startswith(".")


def _key(name: str) -> str:
    """Return what WebDataset calls a member's key: its name up to the first dot, with folders."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _member(path: Path, found: tarfile.TarInfo) -> Member:
    if not found.isreg() or found.issparse():
        raise SceneError(f"{path} holds {found.name}, which is no plain file; leave it out.")
    return Member(path, found.name, found.offset_data, found.size)


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Write a member into a tar."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def plain_stem(name: str) -> str:
    """Return a file's name without its suffix, as far as it is harmless in that of a member."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", os.path.splitext(name)[0])[:STEM]


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a ``.npy`` file, as :func:`parse_npy`."""
    return parse_npy(read_whole(path, LARGEST), str(path))


def read_whole(path: Path, largest: int) -> bytearray:
    """Return a file's bytes.

    Raises:
        SceneError: for a file that is missing, is no plain file, cannot be read, or is larger.
    """
    if not os.path.isfile(path):
        raise SceneError(f"There is no file {path}.")
    try:
        if (size := path.stat().st_size) > largest:
            raise SceneError(f"{path} has {size:,} bytes; {largest:,} are read at most.")
        data = bytearray(size)
        with open(path, "rb") as file:
            del data[file.readinto(data) :]
        return data
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {reason_of(error)}.") from error


def parse_npy(data: bytearray, name: str) -> np.ndarray:
    """Return the array of a ``.npy`` file's bytes, which share its memory; perhaps with NaN.

    Raises:
        SceneError: for what is no ``.npy`` file of float16, float32 or float64, or is cut short.
    """
    values = parse_array(data, name, SceneError, *FLOATS)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def require_finite(values: np.ndarray, name: str) -> None:
    """Raise a SceneError, which names an array, unless all its values are finite."""
    if not np.isfinite(values).all():
        raise SceneError(f"{name} holds NaN or infinite values; repair it or leave it out.")


def is_array(sound: Path | Member) -> TypeGuard[Member]:
    """Whether a sound is a ``.npy`` member of a tar."""
    return isinstance(sound, Member) and sound.name.lower().endswith(NPY)


class ArrayReader:
    """The first channel of a ``.npy`` member (samples,) or (channels, samples), read in parts.

    Attributes:
        length: its samples.
    """

    def __init__(self, member: Member) -> None:
        """Read the header.

        Raises:
            SceneError: for what is no such array of floats, or is empty or cut.
        """
        self._member = member
        head = bytes(member.read(0, min(member.size, LONGEST_HEADER)))
        shape, fortran_order, self._type, self._start = parse_header(
            head, member.size, str(member), SceneError, *FLOATS
        )
        if len(shape) not in (1, 2) or 0 in shape:
            raise SceneError(
                f"{member} has the shape {shape}; it must be (samples,) or (channels, samples)."
            )
        if len(shape) == 2 and shape[0] > shape[1]:
            raise SceneError(
                f"{member} has the shape {shape}; channels must come first: (channels, samples)."
            )
        self._step = shape[0] if len(shape) == 2 and fortran_order else 1
        self.length = shape[-1]

    def read(self, first: int, count: int) -> np.ndarray:
        """Return samples from ``first`` on, (count,) float32.

        Raises:
            SceneError: where they are not finite, or the tar cannot be read.
        """
        size = self._type.itemsize * self._step
        data = self._member.read(self._start + first * size, count * size)
        with np.errstate(over="ignore"):
            values = np.frombuffer(data, self._type)[:: self._step].astype(np.float32)
        require_finite(values, str(self._member))
        return values


def first_channel(member: Member) -> np.ndarray:
    """Return the first channel of a ``.npy`` member, as :class:`ArrayReader` reads it."""
    reader = ArrayReader(member)
    return reader.read(0, reader.length)


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an array as a ``.npy`` file."""
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
