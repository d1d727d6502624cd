"""Embeddings of real-world sound: the GRAM models behind the HEAR API.

Source of the models: GRAM, arXiv 2506.00934.
"""

from importlib.metadata import version

from gram_hear.checkpoints.push import push_to_hub
from gram_hear.checkpoints.registry import list_models
from gram_hear.checkpoints.store import save_model, save_pretrained
from gram_hear.collection import embed_collection
from gram_hear.embed import Block, FileDone, FileFailed, embed_files
from gram_hear.hear import get_scene_embeddings, get_timestamp_embeddings, load_model

__version__ = version("gram-hear")

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
