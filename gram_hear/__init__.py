"""Embeddings of real-world sound: the GRAM models behind the HEAR API.

Source of the models: GRAM, arXiv 2506.00934.

What is offered here is imported when it is first used, so that the programs start at once.
"""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gram_hear.audio.files import read_audio
    from gram_hear.checkpoints.push import push_to_hub
    from gram_hear.checkpoints.registry import list_models
    from gram_hear.checkpoints.store import save_model, save_pretrained
    from gram_hear.config import FrontEndConfig, named_config
    from gram_hear.embed.collection import embed_collection
    from gram_hear.embed.files import Block, FileDone, FileFailed, embed_files
    from gram_hear.errors import GramError
    from gram_hear.frontend import FrontEnd
    from gram_hear.hear import HearModel, get_scene_embeddings, get_timestamp_embeddings, load_model
    from gram_hear.localisation import load_locator
    from gram_hear.plots.scene import scene_figure
    from gram_hear.scenes.heads import load_head
    from gram_hear.scenes.noises import open_noise
    from gram_hear.scenes.rendering import render
    from gram_hear.scenes.rirs import open_rirs
    from gram_hear.scenes.rooms import Scene
    from gram_hear.scenes.single import make_scene

    __version__: str

_beside = Path(__file__).parents[1] / "weights" / "__init__.py"
if not Path(__file__).with_name("weights").exists() and _beside.exists():
    # A clone: Python that starts in it imports this folder, and the weights lie beside it.
    _spec = spec_from_file_location("gram_hear.weights", _beside)
    assert _spec is not None
    sys.modules["gram_hear.weights"] = module_from_spec(_spec)

__all__ = [
    "Block",
    "FileDone",
    "FileFailed",
    "FrontEnd",
    "FrontEndConfig",
    "GramError",
    "HearModel",
    "Scene",
    "embed_collection",
    "embed_files",
    "get_scene_embeddings",
    "get_timestamp_embeddings",
    "list_models",
    "load_head",
    "load_locator",
    "load_model",
    "make_scene",
    "named_config",
    "open_noise",
    "open_rirs",
    "push_to_hub",
    "read_audio",
    "render",
    "save_model",
    "save_pretrained",
    "scene_figure",
]

_MODULES = {
    name: module
    for module, names in {
        "audio.files": "read_audio",
        "checkpoints.push": "push_to_hub",
        "checkpoints.registry": "list_models",
        "checkpoints.store": "save_model save_pretrained",
        "config": "FrontEndConfig named_config",
        "embed.collection": "embed_collection",
        "embed.files": "Block FileDone FileFailed embed_files",
        "errors": "GramError",
        "frontend": "FrontEnd",
        "hear": "HearModel get_scene_embeddings get_timestamp_embeddings load_model",
        "localisation": "load_locator",
        "plots.scene": "scene_figure",
        "scenes.heads": "load_head",
        "scenes.noises": "open_noise",
        "scenes.rendering": "render",
        "scenes.rirs": "open_rirs",
        "scenes.rooms": "Scene",
        "scenes.single": "make_scene",
    }.items()
    for name in names.split()
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
