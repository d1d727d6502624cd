"""Files from the Hugging Face Hub, with its own client; its failures in our words."""

import os
from functools import partial
from pathlib import Path

from gram_hear.checkpoints.registry import offline_name
from gram_hear.errors import CheckpointError


def download(
    repository: str, file: str, revision: str | None, cache_dir: str | os.PathLike | None
) -> Path:
    """Fetch one file of a repository, or find it in the cache; no code in it is run.

    Args:
        repository: owner/name.
        file: its path in the repository.
        revision: branch, tag or commit; None is the main branch.
        cache_dir: where downloads are kept; None is the client's own place.

    Raises:
        CheckpointError: where there is no such file, or it cannot be reached and is not cached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cache = None if cache_dir is None else Path(cache_dir)
    fetch = partial(hf_hub_download, repository, file, revision=revision, cache_dir=cache)
    where = f"{repository} on the Hugging Face Hub"
    offline = f"The model that needs no network is load_model({offline_name()!r})."
    try:
        return Path(fetch())
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{file} of {where} could not be reached, and is not in the cache. Connect to the "
            f"network once to fetch it. {offline}"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"There is no revision {revision!r} of {where}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no {where}, or it is private: check the name, and log in with "
            "'hf auth login' where access is needed."
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"There is no {file} in {where}.") from error
    except HFValidationError as error:
        raise CheckpointError(f"{repository!r} is no name of a repository: {error}") from error
    except (HTTPError, OSError) as error:
        try:
            return Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            raise CheckpointError(
                f"{file} of {where} could not be fetched, and is not in the cache ({error}). "
                f"{offline}"
            ) from error
