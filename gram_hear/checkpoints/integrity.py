"""Whether a file of the Hub's cache is what it should be, and its removal where it is not."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from gram_hear.errors import CheckpointError


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_inside(path: Path, cache: Path) -> None:
    """Refuse a path whose links lead out of the cache.

    Raises:
        CheckpointError: naming where it leads.
    """
    if not path.resolve().is_relative_to(cache):
        raise CheckpointError(
            f"{path} leads to {path.resolve()}, which is not in the cache {cache}. If that is "
            "meant, load the file by its path; if not, delete the link, and load again."
        )


def check_cached(path: Path, what: str, expected: Mapping[str, str], cache: Path) -> str:
    """Return the SHA-256 of a cached file, or remove the file where it has another than expected.

    Args:
        path: the file, or the link to it.
        what: what it is, for the message.
        expected: who says which hash -> the hash; empty where none is known.
        cache: the folder that the file must be in; nothing outside of it is removed.

    Raises:
        CheckpointError: where the hashes differ; the next attempt fetches the file anew. Also for a
            file outside of the cache.
    """
    require_inside(path, cache)
    found = hash_file(path)
    for who, wanted in expected.items():
        if found != wanted.lower():
            kept = _remove(path, cache)
            fate = (
                f"It could not be removed from the cache: delete {kept}, and load again."
                if kept
                else "It was removed from the cache: load again to fetch it anew."
            )
            raise CheckpointError(
                f"{what} is not what it should be: its SHA-256 is {found}, but {who} says "
                f"{wanted}. {fate} If that does not help, the file was changed on its way (ask who "
                "runs your proxy or mirror) or on the Hub (name a revision that you trust)."
            )
    return found


def _remove(path: Path, cache: Path) -> Path | None:
    """Remove a file of the cache and every link on the way to it that is in the cache.

    A snapshot is a link to a blob, which may be a link to a store that repositories share; where
    there are no symbolic links (Windows) the snapshot is the file itself.

    Returns:
        What could not be removed, because it is in use or not ours; None where all is gone.
    """
    chain = [path]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / os.readlink(chain[-1]))
    for each in reversed(chain):  # the content first: a link to nothing is fetched anew
        try:
            if not each.parent.resolve().is_relative_to(cache):
                return each
            each.unlink(missing_ok=True)
        except OSError:
            return each
    return None
