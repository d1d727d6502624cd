"""The cache that the Hub's client keeps, in its layout: files found, put there, checked, removed.

A repository has a folder ``models--owner--name``. ``blobs/<ETag>`` is the content of a file,
``snapshots/<commit>/<file>`` a link to it, and ``refs/<revision>`` holds a commit.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from gram_hear.errors import CheckpointError
from gram_hear.jobs.writing import write_text, write_whole

SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def cache_folder(cache: Path, repository: str) -> Path:
    """Return the folder of a repository in the cache."""
    from huggingface_hub.file_download import repo_folder_name

    return cache / repo_folder_name(repo_id=repository, repo_type="model")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- found ----------------------------------------------------------------------------------


def commit_of(path: Path, repository: str) -> str:
    """Read the commit from a path in the cache, ``models--owner--name/snapshots/<commit>/...``."""
    return path.parts[path.parts.index("models--" + repository.replace("/", "--")) + 2]


def find_suffix(
    repository: str, suffixes: tuple[str, ...], revision: str | None, cache: Path
) -> Path | None:
    """Return the only file of a cached snapshot that ends in one of the suffixes."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, revision=revision, cache_dir=cache, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    found = [path for path in Path(folder).rglob("*") if path.name.endswith(suffixes)]
    return found[0] if len(found) == 1 and found[0].is_file() else None


def describe_broken_link(cache: Path, repository: str) -> str:
    """Return what to do about a link in a repository's cache whose file is gone; "" for none."""
    for path in cache_folder(cache, repository).rglob("*"):
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to a file that is gone: put it back, or delete the link. "
    return ""


def etag_hash(etag: str) -> dict[str, str]:
    """Return the SHA-256 that an ETag is, by who says so; the Hub has it for every large file."""
    return {"the Hub's ETag": etag.lower()} if SHA256.fullmatch(etag) else {}


def cached_hash(path: Path) -> dict[str, str]:
    """Return the SHA-256 that a cached file has by its ETag, the name of the blob it links to."""
    return etag_hash(Path(os.readlink(path)).name) if path.is_symlink() else {}


# --- put there ------------------------------------------------------------------------------


def require_inside(path: Path, cache: Path) -> None:
    """Raise a CheckpointError for a path whose links lead out of the cache."""
    if not path.resolve().is_relative_to(cache):
        raise CheckpointError(
            f"{path} leads to {path.resolve()}, which is not in the cache {cache}. If that is "
            "meant, load the file by its path; if not, delete the link, and load again."
        )


def make_folder_inside(folder: Path, cache: Path) -> None:
    """Make a folder of the cache, and refuse one whose links lead out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    require_inside(folder, cache)


def show_file(blob: Path, folder: Path, file: str, commit: str, revision: str, cache: Path) -> Path:
    """Give a blob its path in the snapshot of a commit, which a revision is from here on.

    The path is a link, or where there are none (Windows) the file itself.
    """
    from huggingface_hub.file_download import are_symlinks_supported

    path, reference = folder / "snapshots" / commit / file, folder / "refs" / revision
    for each in (path, reference):
        make_folder_inside(each.parent, cache)
    if are_symlinks_supported(cache):
        write_whole(path, lambda link: link.symlink_to(os.path.relpath(blob, path.parent)))
    else:
        os.replace(blob, path)
    if revision != commit:
        write_text(reference, commit)
    return path


# --- checked --------------------------------------------------------------------------------


def check_cached(path: Path, what: str, expected: Mapping[str, str], cache: Path) -> str:
    """Return the SHA-256 of a cached file, or remove the file where it has another than expected.

    Args:
        path: the file, or the link to it, in the cache.
        what: what it is, for the message.
        expected: who says which hash -> the hash; empty where none is known.
        cache: the folder; nothing outside of it is removed.

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
