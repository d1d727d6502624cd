"""Files from and to the Hugging Face Hub, with its own client; its failures in our words.

The client asks and transfers. What a server says is checked before it becomes part of a path, which
the client would leave to the server: so the cache is written by :mod:`gram_hear.checkpoints.cache`.
"""

import io
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import quote, urlsplit

from gram_hear.checkpoints.cache import (
    cache_folder,
    cached_hash,
    check_cached,
    commit_of,
    describe_broken_link,
    etag_hash,
    find_suffix,
    make_folder_inside,
    require_inside,
    show_file,
)
from gram_hear.checkpoints.registry import list_models
from gram_hear.errors import CheckpointError, GramError, OptionError
from gram_hear.foreign import parse_json
from gram_hear.jobs.locks import wait_for_lock

ANSWER_SECONDS = 3.0  # until the Hub counts as not reached; the client alone tries for 23
CREATE_SECONDS = 30.0  # until a new repository is there
PAUSES = (1.0, 2.0)  # seconds before the question is put again to a server that answers 5xx
LARGEST_FILE = 50_000_000_000  # bytes; above every checkpoint
LARGEST_LIST = 16 << 20  # bytes of what the Hub says of a repository
COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r"[0-9A-Za-z_-]{1,128}")
PATH_PART = re.compile(r"(?!\.{1,2}$)[^\\/:\x00-\x1f\x7f]{1,255}")
TOKEN = re.compile(r"[\x21-\x7e]+")

_Answer = TypeVar("_Answer")


# --- down -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Download:
    """A file in the cache: the commit that it belongs to, and its SHA-256 as checked."""

    path: Path
    commit: str
    sha256: str


def download(
    repository: str,
    file: str,
    revision: str | None = None,
    *,
    suffixes: tuple[str, ...] = (),
    cache_dir: str | os.PathLike | None = None,
    token: str | None = None,
    sha256: str | None = None,
) -> Download:
    """Fetch one file of a repository, or find it in the cache, and check it; no code is run.

    The file's hash is compared with the Hub's ETag where that is a SHA-256 (of every large file).
    Where the Hub cannot be reached, a cached copy is taken at once, with a warning.

    Args:
        repository: owner/name.
        file: its path in the repository.
        revision: branch, tag or commit; None is the main branch.
        suffixes: where there is no such file, exactly one that ends so is taken instead.
        cache_dir: where downloads are kept; None is the client's own cache.
        token: sent to the Hub and kept nowhere; None is the client's own (HF_TOKEN or its login).
        sha256: what the file must have; None where it is not known.

    Raises:
        OptionError: for a token with characters that no token has.
        CheckpointError: where there is no such file, it cannot be reached and is not cached, or
            it is not what it should be (it is then removed from the cache).
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    _check_token(token)
    _require_plain(revision or "main", "the revision")
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()
    with _download_errors(repository, file, revision):
        try:
            path, expected = _fetch(repository, file, revision, cache, token, suffixes)
        except EntryNotFoundError:
            there = _list_files(repository, revision, token)
            file = _only(there, suffixes, f"There is no {file} in {repository}")
            path, expected = _fetch(repository, file, revision, cache, token)
    commit = commit_of(path, repository)
    what = f"{file} of {repository} on the Hugging Face Hub (commit {commit})"
    if sha256 is not None:
        expected |= {"gram_hear's registry": sha256}
    return Download(path, commit, check_cached(path, what, expected, cache))


def _require_plain(name: str, what: str) -> None:
    """Refuse a name that is no path below the folder that it is put into."""
    if not all(PATH_PART.fullmatch(part) for part in name.split("/")):
        raise CheckpointError(
            f"{what} is {name[:100]!r}, which is no name on the Hugging Face Hub: it must be a "
            "relative path without '..', backslashes, colons and control characters."
        )


def _only(files: Iterable[str], suffixes: tuple[str, ...], why: str) -> str:
    """Return the only one of a repository's files that ends so."""
    found = sorted(file for file in files if file.endswith(suffixes))
    if len(found) != 1:
        names = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") or "no checkpoint"
        raise CheckpointError(
            f"{why} on the Hugging Face Hub, and which other file is meant cannot be told: it "
            f"holds {names}. Download the file and load it by its path."
        )
    return found[0]


def _fetch(
    repository: str,
    file: str,
    revision: str | None,
    cache: Path,
    token: str | None,
    suffixes: tuple[str, ...] = (),
) -> tuple[Path, dict[str, str]]:
    """Return a file's path in the cache, and what says which SHA-256 it has.

    Without network, the only cached file with one of ``suffixes`` does too.
    """
    from huggingface_hub import errors, hf_hub_url, try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, cache, revision)
    cached = Path(found) if isinstance(found, str) else None
    if cached is not None and COMMIT.fullmatch(revision or ""):
        return cached, cached_hash(cached)  # a commit does not change: there is nothing to ask
    url = hf_hub_url(repository, file, revision=revision)
    try:
        answer = _ask(url, token, patient=cached is None)
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        raise
    except (errors.HTTPError, OSError, ValueError, RecursionError) as error:
        cached = cached or find_suffix(repository, suffixes, revision, cache)
        if cached is None and isinstance(error, (errors.HfHubHTTPError, CheckpointError)):
            raise
        if cached is None:
            broken = describe_broken_link(cache, repository)
            raise CheckpointError(
                f"{file} of {repository} on the Hugging Face Hub could not be reached, and is not "
                f"in the cache ({_reason(error)}). {broken}Connect to the network once to fetch "
                f"it. {_offline_models()}"
            ) from error
        commit = commit_of(cached, repository)
        _warn_of_copy(f"{cached.name} of {repository}, commit {commit}", error)
        return cached, cached_hash(cached)
    if cached is None or commit_of(cached, repository) != answer.commit:
        cached = _take(repository, file, revision, answer, cache, token)
    return cached, (
        cached_hash(cached)
        or etag_hash(answer.etag)
        or _listed_hash(repository, file, answer.commit, token)
    )


@dataclass(frozen=True)
class Answer:
    """What a server says of a file, checked."""

    commit: str
    etag: str
    size: int  # bytes
    location: str  # where its content is


def _check_answer(answer: Any, url: str) -> Answer:
    """Return the client's HfFileMetadata, each part of it fit for what it is used for."""
    commit, etag, size = answer.commit_hash, answer.etag, answer.size
    try:
        address = urlsplit(answer.location)
        found = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        found = False
    faults = {
        "commit": (commit, COMMIT.fullmatch(commit or "")),
        "ETag": (etag, ETAG.fullmatch(etag or "")),
        "size": (size, size is not None and 0 <= size <= LARGEST_FILE),
        "address of the content": (answer.location, found and answer.location.isprintable()),
    }
    for what, (given, fits) in faults.items():
        if not fits:
            raise CheckpointError(
                f"What answers at {url} is no Hugging Face Hub, or a mirror that is out of order: "
                f"the {what} that it sends is {str(given)[:100]!r}. Check HF_ENDPOINT and your "
                "proxy, and try again."
            )
    return Answer(commit, etag, size, answer.location)


def _take(
    repository: str, file: str, revision: str | None, answer: Answer, cache: Path, token: str | None
) -> Path:
    """Fetch a file into the cache and return its path there."""
    from huggingface_hub import hf_hub_url

    _require_plain(file, f"a file of {repository}")
    folder = cache_folder(cache, repository)
    blob = folder / "blobs" / answer.etag
    make_folder_inside(blob.parent, cache)
    if not blob.is_file():
        if answer.size > (free := shutil.disk_usage(cache).free):
            raise CheckpointError(
                f"{file} of {repository} has {answer.size:,} bytes, but the disk of {cache} has "
                f"{free:,} left. Make room, or give another cache_dir."
            )
        same = urlsplit(hf_hub_url(repository, file)).netloc == urlsplit(answer.location).netloc
        partial = blob.with_name(f"{answer.etag}.incomplete")
        require_inside(partial, cache)
        with wait_for_lock(partial.with_name(f"{partial.name}.lock")):
            if not blob.is_file():  # now that nobody else is at it
                _go_on(answer.location, partial, answer.size, token if same else False, file)
                os.replace(partial, blob)
    return show_file(blob, folder, file, answer.commit, revision or "main", cache)


class _Bounded:
    """A file that takes a number of bytes and no more."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def write(self, data: bytes) -> int:
        if self.file.tell() + len(data) > self.size:
            raise CheckpointError(
                f"The server sent more than the {self.size:,} bytes that were to come; the rest "
                "was cut off. Check HF_ENDPOINT and your proxy, and try again."
            )
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _get(url: str, file: BinaryIO, size: int, token: str | bool | None, name: str) -> None:
    """Fetch ``size`` bytes at most into a file, after those that it has; more are an error."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
    bounded = cast(BinaryIO, _Bounded(file, size))
    there = file.seek(0, os.SEEK_END)
    http_get(url, bounded, resume_size=there, headers=headers, displayed_filename=name)


def _go_on(url: str, partial: Path, size: int, token: str | bool | None, name: str) -> None:
    """Fetch a file of ``size`` bytes, or the rest of it where an earlier run was cut off.

    Raises:
        CheckpointError: where more come; the file is removed.
        OSError: where less come; what is there is kept.
    """
    with open(partial, "ab") as file:
        if file.tell() >= size:  # whole, and never renamed: not to be trusted
            file.truncate(0)
        try:
            _get(url, file, size, token, name)
        except CheckpointError:
            partial.unlink()
            raise
        if file.tell() != size:
            raise OSError(f"{file.tell():,} of {size:,} bytes came")


def _list_files(repository: str, revision: str | None, token: str | None) -> dict[str, str | None]:
    """Return a repository's files, each with its SHA-256 where the Hub knows it."""
    from huggingface_hub import constants

    at = quote(revision or "main", safe="")
    content = io.BytesIO()
    url = f"{constants.ENDPOINT}/api/models/{repository}/revision/{at}?blobs=true"
    _get(url, content, LARGEST_LIST, token, f"files of {repository}")
    listed = parse_json(content.getvalue(), f"What the Hub says of {repository}", CheckpointError)
    files: dict[str, str | None] = {}
    try:
        for each in listed["siblings"]:
            _require_plain(each["rfilename"], f"a file of {repository}")
            files[each["rfilename"]] = (each.get("lfs") or {}).get("sha256")
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"What the Hub says of {repository} is no list of files; check HF_ENDPOINT."
        ) from error
    return files


def _listed_hash(repository: str, file: str, commit: str, token: str | None) -> dict[str, str]:
    """Return the SHA-256 that the Hub lists for a file, where it can be asked and has one."""
    from huggingface_hub.errors import HTTPError

    try:
        found = _list_files(repository, commit, token).get(file)
    except (HTTPError, OSError):
        return {}
    return {"the Hub's list of files": found} if isinstance(found, str) else {}


def _ask(url: str, token: str | None, patient: bool) -> Answer:
    """Ask for a file's commit, ETag and size, and wait no longer than ``ANSWER_SECONDS``.

    Where ``patient``, a server that answers 5xx is asked again.

    Raises:
        HTTPError, OSError: where the server could not be reached, or cannot serve the file.
        CheckpointError: for an answer that cannot be the Hub's.
    """
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    seconds = ANSWER_SECONDS
    if constants.HF_HUB_ETAG_TIMEOUT != constants.DEFAULT_ETAG_TIMEOUT:  # the user's own limit
        seconds = constants.HF_HUB_ETAG_TIMEOUT
    for pause in (*(PAUSES if patient else ()), None):
        try:
            answer = _within(
                seconds, lambda: get_hf_file_metadata(url, token=token, timeout=seconds + 1)
            )
            return _check_answer(answer, url)
        except TimeoutError as error:
            raise TimeoutError(
                f"{error}; the environment variable HF_HUB_ETAG_TIMEOUT sets another limit"
            ) from None
        except HfHubHTTPError as error:
            if pause is None or getattr(error.response, "status_code", 0) < 500:
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _within(seconds: float, ask: Callable[[], _Answer]) -> _Answer:
    """Return what ``ask`` returns, or raise what it raises, or a TimeoutError.

    The client's own timeout is for each attempt to connect to each address, and not for looking up
    the name. This limit holds for all of it: a thread asks, and ends by itself after the limit.
    """
    answer: Future[_Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # raised again by who waits
            answer.set_exception(error)

    Thread(target=work, daemon=True).start()
    if not wait([answer], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answer.result()


def _warn_of_copy(what: str, error: Exception) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not isinstance(error, OfflineModeIsEnabled):  # whoever chose that knows
        warnings.warn(
            f"The Hugging Face Hub could not be reached ({_reason(error)}); the copy in the cache "
            f"is used: {what}.",
            stacklevel=7,  # who called load_model
        )


@contextmanager
def _download_errors(repository: str, file: str, revision: str | None) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from huggingface_hub import errors

    where = f"{repository} on the Hugging Face Hub"
    try:
        yield
    except GramError:
        raise
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where} is open only to those who were granted access: ask for it on the "
            "repository's page, and log in with 'hf auth login' or give token=."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"There is no revision {revision!r} of {where}.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no {where}, or it is private: check the name, and where access is needed "
            "log in with 'hf auth login', or give token=."
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"There is no {file} in {where}.") from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repository!r} is no name of a repository: {error}") from error
    except (errors.HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} of {where} could not be fetched ({_reason(error)}). Try again. "
            f"{_offline_models()}"
        ) from error


def _reason(error: BaseException) -> str:
    """Return an error's kind and the first line of its text, which some clients make very long."""
    text = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _offline_models() -> str:
    bundled = ", ".join(entry.name for entry in list_models() if entry.layout == "bundled")
    return f"Models that need no network: {bundled}."


def _check_token(token: str | None) -> str | None:
    """Return the token that the client will use; refuse one that would end up in a message.

    A header with such characters is quoted, token and all, in the error that refuses it.
    """
    from huggingface_hub import get_token

    if token is not None and not isinstance(token, str):
        raise OptionError(f"The token is a {type(token).__name__}; it must be text, or None.")
    used = token or get_token()
    if used is not None and not TOKEN.fullmatch(used):
        raise OptionError(
            "The Hub's token holds spaces or characters that no token has. Copy it anew from the "
            "settings of your account there."
        )
    return used


# --- up -------------------------------------------------------------------------------------


def upload(
    folder: Path,
    repository: str,
    *,
    private: bool,
    token: str | None,
    revision: str | None,
    message: str,
) -> str:
    """Upload a folder's files as one commit, and return the repository's address.

    See :func:`gram_hear.checkpoints.push.push_to_hub`, whose options these are.
    """
    from huggingface_hub import HfApi

    if _check_token(token) is None:
        raise CheckpointError(
            f"Nothing can be uploaded to {repository} without a login: run 'hf auth login', set "
            "HF_TOKEN, or give token=."
        )
    api = HfApi(token=token, library_name="gram-hear")
    with _upload_errors(repository, revision):
        # The client alone would wait for this first answer without end.
        address = _within(
            CREATE_SECONDS, lambda: api.create_repo(repository, private=private, exist_ok=True)
        )
        if private and not api.model_info(repository).private:
            raise CheckpointError(
                f"{repository} is there already, and is public. Make it private in its settings "
                "on the Hub, or leave out private."
            )
        kept = api.file_exists(repository, "README.md", revision=revision)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            ignore_patterns=["README.md"] if kept else None,
        )
    return str(address)


@contextmanager
def _upload_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from huggingface_hub import errors

    try:
        yield
    except CheckpointError:  # a ValueError, as are some of the client's
        raise
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repository!r} is no name of a repository: {error}") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"There is no branch {revision!r} of {repository}; make it on the Hub first."
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        refused = (
            " The token is wrong, or may not write there: make one with write access in the "
            "settings of your account."
            if status in (401, 403)
            else ""
        )
        raise CheckpointError(
            f"The Hub refused the upload to {repository} ({_reason(error)}).{refused}"
        ) from error
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"The upload to {repository} failed ({_reason(error.__cause__ or error)}). Nothing "
            "was changed there unless the Hub shows a new commit; try again."
        ) from error
