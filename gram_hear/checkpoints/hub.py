"""Files from and to the Hugging Face Hub, with its own client; its failures in our words."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from gram_hear.checkpoints.integrity import check_cached
from gram_hear.checkpoints.registry import list_models
from gram_hear.errors import CheckpointError, OptionError

ANSWER_SECONDS = 3.0  # until the Hub counts as not reached; the client alone tries for 23
CREATE_SECONDS = 30.0  # until a new repository is there
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
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
        cache_dir: where downloads are kept; None is the client's own place.
        token: sent to the Hub and kept nowhere; None is the client's own (HF_TOKEN or its login).
        sha256: what the file must have; None where it is not known.

    Raises:
        OptionError: for a token with characters that no token has.
        CheckpointError: where there is no such file, it cannot be reached and is not cached, or
            it is not what it should be (it is then removed from the cache).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    _check_token(token)
    cache = None if cache_dir is None else Path(cache_dir).expanduser().resolve()
    with _download_errors(repository, file, revision):
        try:
            path, etag = _fetch(repository, file, revision, cache, token, suffixes)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            there = HfApi(token=token).list_repo_files(repository, revision=revision)
            file = _only(there, suffixes, f"There is no {file} in {repository}")
            path, etag = _fetch(repository, file, revision, cache, token)
    commit = _commit(path, repository)
    what = f"{file} of {repository} on the Hugging Face Hub (commit {commit})"
    expected = {}
    if etag is not None and SHA256.fullmatch(etag):
        expected["the Hub's ETag"] = etag
    if sha256 is not None:
        expected["gram_hear's registry"] = sha256
    return Download(path, commit, check_cached(path, what, expected))


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
    cache: Path | None,
    token: str | None,
    suffixes: tuple[str, ...] = (),
) -> tuple[Path, str | None]:
    """Return a file's path in the cache, and its ETag where that is known.

    Without network, the only cached file with one of ``suffixes`` does too.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    found = try_to_load_from_cache(repository, file, cache, revision)
    cached = Path(found) if isinstance(found, str) else None
    if cached is not None and COMMIT.fullmatch(revision or ""):
        return cached, _etag(cached)  # a commit does not change: there is nothing to ask
    try:
        answer = _ask(hf_hub_url(repository, file, revision=revision), token)
    except (HTTPError, OSError) as error:
        cached = cached or _cached_other(repository, suffixes, revision, cache)
        if cached is None:
            raise CheckpointError(
                f"{file} of {repository} on the Hugging Face Hub could not be reached, and is not "
                f"in the cache ({_reason(error)}). Connect to the network once to fetch it. "
                f"{_offline_models()}"
            ) from error
        _warn_of_copy(f"{cached.name} of {repository}, commit {_commit(cached, repository)}", error)
        return cached, _etag(cached)
    asked = getattr(answer, "commit_hash", None)
    if cached is None or _commit(cached, repository) != asked:
        cached = Path(
            hf_hub_download(repository, file, revision=revision, cache_dir=cache, token=token)
        )
    same = answer is not None and _commit(cached, repository) == asked
    return cached, _etag(cached) or (answer.etag if same else None)


def _cached_other(
    repository: str, suffixes: tuple[str, ...], revision: str | None, cache: Path | None
) -> Path | None:
    """Return the only file of a cached snapshot that ends so."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, revision=revision, cache_dir=cache, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    found = [path for path in Path(folder).rglob("*") if path.name.endswith(suffixes)]
    return found[0] if len(found) == 1 else None


def _ask(url: str, token: str | None) -> Any:
    """Ask for a file's commit and ETag, once, and wait no longer than ``ANSWER_SECONDS``.

    Returns:
        The client's HfFileMetadata; None where the server answers that it cannot serve the file:
        the client then fails in its own, more detailed way, or knows how to go on.

    Raises:
        HTTPError, OSError: where the server could not be reached.
    """
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    seconds = ANSWER_SECONDS
    if constants.HF_HUB_ETAG_TIMEOUT != constants.DEFAULT_ETAG_TIMEOUT:  # the user's own limit
        seconds = constants.HF_HUB_ETAG_TIMEOUT
    try:
        return _within(seconds, lambda: get_hf_file_metadata(url, token=token, timeout=seconds))
    except TimeoutError as error:
        raise TimeoutError(
            f"{error}; the environment variable HF_HUB_ETAG_TIMEOUT sets another limit"
        ) from None
    except HfHubHTTPError:
        return None


def _within(seconds: float, ask: Callable[[], _Answer]) -> _Answer:
    """Return what ``ask`` returns, or raise what it raises, or a TimeoutError.

    The limit holds for all of it, also for what takes no timeout (looking up a name, several
    addresses in turn): the question is left to a thread, which ends by itself.
    """
    from huggingface_hub.errors import HTTPError

    answers: list[_Answer] = []
    failures: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except (HTTPError, OSError, ValueError) as error:
            failures.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if failures:
        raise failures[0]
    return answers[0] if answers else ask()  # which meets the rare other fault here


def _commit(path: Path, repository: str) -> str:
    """Read the commit from a path in the cache, ``models--owner--name/snapshots/<commit>/...``."""
    return path.parts[path.parts.index("models--" + repository.replace("/", "--")) + 2]


def _etag(path: Path) -> str | None:
    """Read the ETag from the cache: the name of the blob that the snapshot links to."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


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
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repository} on the Hugging Face Hub"
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{file} of {where} could not be fetched, and is not in the cache "
            f"({_reason(error.__cause__ or error)}). {_offline_models()}"
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{where} is open only to those who were granted access: ask for it on the "
            "repository's page, and log in with 'hf auth login' or give token=."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"There is no revision {revision!r} of {where}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no {where}, or it is private: check the name, and where access is needed "
            "log in with 'hf auth login', or give token=."
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"There is no {file} in {where}.") from error
    except HFValidationError as error:
        raise CheckpointError(f"{repository!r} is no name of a repository: {error}") from error
    except (HTTPError, OSError) as error:
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
    """Upload a folder's files as one commit, making the repository where there is none.

    A ``README.md`` that the repository has already is left as it is.

    Returns:
        The repository's address.

    Raises:
        OptionError: for a token with characters that no token has.
        CheckpointError: without a login, network or permission, or where ``private`` is asked of
            a repository that is public.
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
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        RevisionNotFoundError,
    )

    try:
        yield
    except CheckpointError:  # a ValueError, as are some of the client's
        raise
    except HFValidationError as error:
        raise CheckpointError(f"{repository!r} is no name of a repository: {error}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"There is no branch {revision!r} of {repository}; make it on the Hub first."
        ) from error
    except HfHubHTTPError as error:
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
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"The upload to {repository} failed ({_reason(error.__cause__ or error)}). Nothing "
            "was changed there unless the Hub shows a new commit; try again."
        ) from error
