"""Where sounds lie: folders, tars and Parquet files, here or behind the URLs of ``fsspec``.

Folders and local tars are read where they are. Remote tars, and all Parquet files, are *shards*,
which :mod:`gram_hear.audio.shards` takes into a local cache.
"""

import glob
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from gram_hear.audio.archives import COMPRESSED_TARS, find_files
from gram_hear.audio.files import SUFFIXES, warn_of_left_out
from gram_hear.errors import GramError, OptionError, SceneError, nearest, reason_of
from gram_hear.foreign import parse_json

TAR, PARQUET = ".tar", ".parquet"
MOST_NAMES = 100_000  # that braces may stand for
THREADS = 8  # requests side by side
PIECE = 16 << 20  # bytes of a request
SILENCE = 60.0  # seconds in which a web server must send something
PAUSES = (1.0, 4.0, 16.0)  # seconds before a request that failed is made again
SIZES = "sizes.json"  # WebDataset's: the number of samples of each tar beside it
LARGEST_SIZES = 64 << 20  # bytes of it
STAMPS = (  # under which names file systems tell the version of a file
    *("ETag", "etag", "sha256", "blob_id", "md5Hash", "generation", "checksum", "Content-MD5"),
    *("mtime", "LastModified", "last_modified", "Last-Modified", "created"),
)

Result = TypeVar("Result")


class _PassingError(SceneError):
    """A file system did not answer as it should, and may the next time."""


@dataclass(frozen=True)
class Shard:
    """A remote tar, or a Parquet file anywhere, of which the cache will hold a tar.

    ``size`` is in bytes, and ``stamp`` names the version of the file.
    """

    address: str
    size: int
    stamp: str

    def __str__(self) -> str:
        return hide_secrets(self.address)

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind a URL."""
        return is_address(self.address)

    @property
    def is_parquet(self) -> bool:
        """Whether it is a Parquet file, not a tar."""
        return _suffix_of(self.address) == PARQUET


# --- finding --------------------------------------------------------------------------------


def is_address(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, such as ``s3://bucket/clips-{000..869}.tar``."""
    return "://" in os.fspath(path)


def expand_braces(text: str) -> list[str]:
    """Return what a text with braces stands for: ``a{1..3}`` or ``{a,b}``; several multiply.

    Numbers are padded with zeros to the width of the first.

    Raises:
        OptionError: where that is more than 100,000 names.
    """
    choices: list[list[str]] = []
    total = 1
    for piece in re.split(r"(\{\d{1,9}\.\.\d{1,9}\}|\{[^{}]*,[^{}]*\})", text):
        names: Sequence[int] | Sequence[str] = [piece]
        if span := re.fullmatch(r"\{(\d{1,9})\.\.(\d{1,9})\}", piece):
            first, last = int(span[1]), int(span[2])
            step = 1 if last >= first else -1
            names = range(first, last + step, step)
        elif re.fullmatch(r"\{[^{}]*,[^{}]*\}", piece):
            names = piece[1:-1].split(",")
        total *= len(names)
        if total > MOST_NAMES:
            raise OptionError(f"{text} stands for more than {MOST_NAMES:,} names; give fewer.")
        width = len(span[1]) if span else 0
        choices.append([str(name).zfill(width) for name in names])
    return ["".join(parts) for parts in itertools.product(*choices)]


def find_sources(
    path: str | os.PathLike, left_out: Counter[str] | None = None
) -> Iterator[Path | Shard]:
    """Yield what a path or URL holds: sound files, local tars, and shards.

    Args:
        path: a sound file, a tar, a Parquet file, a folder with any of these, or the URL of a tar,
            a Parquet file or a folder of them. Braces (``{000..869}``, ``{a,b}``) and ``*`` stand
            for several.
        left_out: is increased by the files that are left out, by suffix; without it, a warning
            counts them.

    Raises:
        SceneError: where nothing is there, or what is there cannot be read.
        OptionError: for a URL that cannot be read here.
    """
    given = os.fspath(path)
    addresses = [given] if os.path.exists(given) else expand_braces(given)
    if is_address(given):
        with ThreadPoolExecutor(THREADS) as pool:  # a request for each
            for shards, others in pool.map(_find_remote, addresses):
                yield from shards
                if left_out is None:
                    warn_of_left_out(others)
                else:
                    left_out += others
        return
    for address in addresses:
        for each in _find_paths(address):
            for file in find_files(each, (*SUFFIXES, PARQUET), left_out):
                yield _local_shard(file) if _suffix_of(str(file)) == PARQUET else file


def _find_paths(pattern: str) -> list[Path]:
    """Return a local path, or those that a pattern with ``*`` stands for."""
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return [Path(pattern)]
    found = [Path(each) for each in sorted(glob.glob(pattern))]
    if not found:
        raise SceneError(f"No file or folder is called {pattern}.")
    return found


def _local_shard(path: Path) -> Shard:
    try:
        status = path.stat()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {reason_of(error)}.") from error
    return Shard(str(path.absolute()), status.st_size, str(status.st_mtime_ns))


def _find_remote(address: str) -> tuple[list[Shard], Counter[str]]:
    """Return the shards of a URL, and the suffixes of other files.

    The URL is that of a shard, of a folder with some, or has a ``*``.
    """
    if "*" in address or _suffix_of(address) not in (TAR, PARQUET):
        return _list_remote(address)
    info = _patiently(address, lambda system, path: system.info(path))
    return [_remote_shard(address, info)], Counter()


def _list_remote(address: str) -> tuple[list[Shard], Counter[str]]:
    def search(system: Any, path: str) -> dict[str, Any]:
        found = (system.glob if "*" in address else system.find)(path, detail=True)
        return {system.unstrip_protocol(name): found[name] for name in sorted(found)}

    others: Counter[str] = Counter()
    shards = []
    for name, info in _patiently(address, search).items():
        suffix, file = _suffix_of(name), PurePosixPath(urlsplit(name).path).name
        if suffix in (TAR, PARQUET):
            shards.append(_remote_shard(name, info))
        elif not file.startswith(".") and file != SIZES and info.get("type") != "directory":
            others[suffix] += 1
    if not shards:
        compressed = others.keys() & {os.path.splitext(each)[1] for each in COMPRESSED_TARS}
        raise SceneError(
            f"{hide_secrets(address)} holds no .tar or .parquet file. Of what is remote, only "
            "these are read: "
            + ("decompress tars first." if compressed else "download single sound files first.")
        )
    return shards, others


def _remote_shard(address: str, info: dict[str, Any]) -> Shard:
    size = info.get("size")
    if not isinstance(size, int) or size < 0:
        raise SceneError(
            f"The size of {hide_secrets(address)} is not stated by its server, and files of "
            "unknown size are not downloaded. Download it yourself, and give the file."
        )
    stamp = next((str(info[name]) for name in STAMPS if info.get(name)), "")
    return Shard(address, size, stamp)


def _suffix_of(address: str) -> str:
    """Return the suffix of a path, or of the path of a URL, in lower case."""
    path = urlsplit(address).path if is_address(address) else address
    return os.path.splitext(path)[1].lower()


# --- file systems of others -----------------------------------------------------------------


def hide_secrets(text: str) -> str:
    """Return text without what may be secret: queries and passwords of URLs, tokens of the Hub."""
    text = re.sub(r"(\w+://)[^\s/@]*@", r"\1", text)
    text = re.sub(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*", r"\1?...", text)
    return re.sub(r"\bhf_\w+|(?<=Bearer )\S+", "...", text)


@contextmanager
def _asking(address: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL, and the path in it. Errors that it raises become ours.

    Raises:
        OptionError: for a URL that no installed package reads.
        SceneError: for what is not there or may not be read; :class:`_PassingError` for what may
            work the next time.
    """
    import fsspec

    protocol = address.partition("://")[0]
    shown = hide_secrets(address)
    if "::" in address or "@" in urlsplit(address).netloc:
        raise OptionError(
            f"{shown} is chained ('::') or holds a password; neither is read. Give what logs in as "
            "the settings of the file system."
        )
    if protocol not in (known := fsspec.available_protocols()):
        raise OptionError(
            f"fsspec knows no protocol {protocol!r} of {shown}; it knows hf, s3, gs, https and "
            f"others.{nearest(protocol, known)}"
        )
    try:
        yield fsspec.core.url_to_fs(address, **_settings(protocol))
    except GramError:
        raise
    except ImportError as error:
        raise OptionError(
            f"{shown} needs a package that is not installed: {reason_of(error)}. For s3://, gs:// "
            'and https:// pip install "gram-hear[remote]" brings all.'
        ) from error
    # Any package may bring a file system, with errors of any class.
    except Exception as error:
        kind = _PassingError if _may_pass(error) else SceneError
        raise kind(f"{shown} cannot be read: {_describe(error)}.") from None  # may hold a token


def _settings(protocol: str) -> dict[str, Any]:
    """Return the settings of a file system, where its own do not do.

    That of the web would wait for a silent server for five minutes, and give up a whole download
    after these.
    """
    if protocol not in ("http", "https"):
        return {}
    import aiohttp

    patience = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    return {"client_kwargs": {"timeout": patience}}


def _describe(error: BaseException) -> str:
    text = reason_of(error).strip().partition("\n")[0][:200]
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        return f"it is not there{f' ({_describe(cause)})' if cause is not None else ''}"
    return hide_secrets(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _may_pass(error: BaseException) -> bool:
    """Whether a request that failed so may succeed the next time."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:
        # fsspec's HTTP takes whatever goes wrong for a file that is not there.
        if not type(cause).__module__.startswith(("aiohttp", "asyncio")):
            return False
        error = cause
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    return not isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | ValueError | TypeError
    )


def _patiently(address: str, ask: Callable[[Any, str], Result]) -> Result:
    """Return what ``ask`` returns for the file system of a URL and the path in it.

    After an error that may pass, it is called again.
    """
    for pause in PAUSES:
        try:
            with _asking(address) as (system, path):
                return ask(system, path)
        except _PassingError:
            time.sleep(pause)
    with _asking(address) as (system, path):
        return ask(system, path)


def download(shard: Shard, file: BinaryIO) -> None:
    """Write a remote file's bytes into a new local one.

    Raises:
        SceneError: where it cannot be read, or is shorter than its server stated.
        OSError: where the local file cannot be written.
    """
    refused: list[OSError] = []
    block = PIECE

    def go_on(system: Any, path: str) -> None:
        nonlocal block
        with system.open(path, "rb", block_size=block, cache_type="none") as remote:
            if file.tell():
                try:
                    remote.seek(file.tell())
                except (OSError, ValueError):
                    file.seek(0)
            while file.tell() < shard.size:
                wanted = min(PIECE, shard.size - file.tell())
                try:
                    piece = remote.read(wanted)
                except ValueError as error:
                    block = 0  # of a web server that sends no parts: the whole, from its start
                    raise _PassingError(f"{shard} cannot be read: {_describe(error)}.") from None
                if len(piece) > wanted:
                    raise SceneError(f"The server of {shard} sends more than it was asked for.")
                if not piece:
                    raise _PassingError(
                        f"{shard} ended after {file.tell():,} of {shard.size:,} bytes."
                    )
                try:
                    file.write(piece)
                except OSError as error:
                    refused.append(error)
                    return

    _patiently(shard.address, go_on)
    if refused:
        raise refused[0]


def ask_footer(shard: Shard, read: Callable[[Any], Result]) -> Result:
    """Return what ``read`` returns for an open shard, of which it may seek and read any part.

    Of a remote shard, only these parts are fetched.

    Raises:
        SceneError: where it cannot be read, or its server sends no parts of files.
    """
    if not shard.is_remote:
        try:
            with open(shard.address, "rb") as file:
                return read(file)
        except OSError as error:
            raise SceneError(f"{shard} cannot be read: {reason_of(error)}.") from error

    def ask(system: Any, path: str) -> Result:
        with system.open(path, "rb", block_size=1 << 18) as remote:
            if not _can_seek(remote):
                raise SceneError(
                    f"The server of {shard} sends no parts of files, which Parquet needs. Download "
                    "it yourself, and give the file."
                )
            return read(remote)

    return _patiently(shard.address, ask)


def stated_counts(folder: str) -> dict[str, int]:
    """Return the number of clips in each tar of a remote folder, where ``sizes.json`` says it."""

    def ask(system: Any, path: str) -> bytes | None:
        try:
            size = system.info(path).get("size")
            if not isinstance(size, int) or size > LARGEST_SIZES:
                return None
            return system.cat_file(path)
        except (FileNotFoundError, PermissionError) as error:
            if _may_pass(error):
                raise
            return None

    address = f"{folder}/{SIZES}"
    content = _patiently(address, ask)
    found = {} if content is None else parse_json(content, hide_secrets(address), SceneError)
    if not isinstance(found, dict):
        return {}
    return {str(k): n for k, n in found.items() if type(n) is int and 0 <= n < 1 << 31}


def _can_seek(remote: Any) -> bool:
    """Whether an open remote file can be read from any position."""
    try:
        remote.seek(remote.tell())
        return bool(remote.seekable())
    except (OSError, ValueError, AttributeError):
        return False
