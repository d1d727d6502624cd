"""Embeddings of real-world sound: the GRAM models behind the HEAR API.

Source of the models: GRAM, arXiv 2506.00934.

What is offered here is imported when it is first used, so that the programs start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gram_hear.checkpoints.push import push_to_hub
    from gram_hear.checkpoints.registry import list_models
    from gram_hear.checkpoints.store import save_model, save_pretrained
    from gram_hear.embed.collection import embed_collection
    from gram_hear.embed.files import Block, FileDone, FileFailed, embed_files
    from gram_hear.hear import get_scene_embeddings, get_timestamp_embeddings, load_model

    __version__: str

__all__ = [
    "Block",
    "FileDone",
    "FileFailed",
    "embed_collection",
    "embed_files",
    "get_scene_embeddings",
    "get_timestamp_embeddings",
    "list_models",
    "load_model",
    "push_to_hub",
    "save_model",
    "save_pretrained",
]

_MODULES = {
    "Block": "embed.files",
    "FileDone": "embed.files",
    "FileFailed": "embed.files",
    "embed_collection": "embed.collection",
    "embed_files": "embed.files",
    "get_scene_embeddings": "hear",
    "get_timestamp_embeddings": "hear",
    "list_models": "checkpoints.registry",
    "load_model": "hear",
    "push_to_hub": "checkpoints.push",
    "save_model": "checkpoints.store",
    "save_pretrained": "checkpoints.store",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("gram-hear")
    elif name in _MODULES:
        value = getattr(import_module(f"gram_hear.{_MODULES[name]}"), name)
    else:
        value = _module(name)
    globals()[name] = value
    return value


def _module(name: str) -> Any:
    """Return a module of the package, as ``gram_hear.errors`` is asked for after the import."""
    try:
        if not name.startswith("_"):
            return import_module(f"gram_hear.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"gram_hear.{name}":
            raise
    raise AttributeError(f"module 'gram_hear' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "__version__", *__all__]
