"""MTEB: an audio encoder with its metadata, for the tasks of MTEB that embed audio alone.

    import mteb
    from gram_hear.adapters.mteb import GramEncoder

    mteb.evaluate(GramEncoder("gramt-mono"), mteb.get_tasks(["ESC50Clustering"]))

Source of the interface: MTEB's ``EncoderProtocol`` and ``ModelMeta`` (mteb 2.26).
"""

import importlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gram_hear.checkpoints.registry import Entry, find_entry, list_models
from gram_hear.errors import AudioError, OptionError
from gram_hear.hear import get_scene_embeddings, load_model

ORGANIZATION = "gram-hear"  # of the names of models that no repository gives one


class GramEncoder:
    """A GRAM model as MTEB takes it: whole clips in, their scene embeddings out.

    Args:
        model_name: what :func:`gram_hear.load_model` takes, or the name in the metadata of this
            class.
        revision: branch, tag or commit, for models from the Hub.
        device: ``"cpu"``, ``"cuda"``, ...; None is the best that is there.
        **options: keywords of ``load_model``, such as ``strategy="mean"``; they are part of the
            metadata, so that MTEB keeps results of other options apart.

    Raises:
        OptionError, CheckpointError: as ``load_model``.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ) -> None:
        self.entry = _entry(model_name)
        self.model_name = model_name if self.entry is None else self.entry.name
        self.revision = revision
        self.options = options
        self.model = load_model(
            self.model_name, revision=revision, device=device or "auto", **options
        )
        self.model.eval()

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed the clips of a loader.

        Args:
            inputs: batches; ``batch["audio"]`` is a list of ``{"array": ..., "sampling_rate":
                Hz}``, the array (samples,) or (channels, samples) of any length and rate.
            task_metadata: of the task; this and all that follows changes nothing for audio.
            hf_split: the task's split.
            hf_subset: the task's subset.
            prompt_type: query or document.
            **kwargs: batch size, progress bar and what else MTEB hands to every model.

        Returns:
            (clips, d) float32, in the loader's order.

        Raises:
            OptionError: for batches without audio.
            AudioError: for a clip without samples, of another type, or not finite.
        """
        parts = []
        for batch in inputs:
            if "audio" not in batch:
                raise OptionError(
                    f"A batch holds {', '.join(batch)}; {self.model_name} embeds audio alone, so "
                    "choose tasks whose only modality is audio."
                )
            clips = [self._clip(item) for item in batch["audio"]]
            parts.append(get_scene_embeddings(clips, self.model).cpu().numpy())
        if not parts:
            return np.empty((0, self.model.scene_embedding_size), dtype=np.float32)
        return np.concatenate(parts)

    def _clip(self, item: Mapping[str, Any]) -> np.ndarray:
        """Return a clip at the model's rate, float32, channels first."""
        array = np.asarray(item["array"])
        if not np.issubdtype(array.dtype, np.floating):
            raise AudioError(f"The audio is {array.dtype}; MTEB hands over floating point.")
        rate, wanted = int(item["sampling_rate"]), self.model.sample_rate
        if rate == wanted or not array.size:
            return array.astype(np.float32)
        import soxr

        return soxr.resample(array.T.astype(np.float32), rate, wanted, quality="HQ").T

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of each pair: (n, d) and (m, d) to (n, m)."""
        return _directions(embeddings1) @ _directions(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of the pairs: (n, d) and (n, d) to (n,)."""
        return (_directions(embeddings1) * _directions(embeddings2)).sum(dim=-1)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """MTEB's ``ModelMeta`` of the model.

        Raises:
            OptionError: where mteb is not installed.
        """
        try:
            models = importlib.import_module("mteb.models")
        except ModuleNotFoundError as error:
            raise OptionError(
                f"This needs the package {error.name}, which is not installed; pip install mteb."
            ) from error
        return models.ModelMeta(loader=type(self), **self.describe())

    def describe(self) -> dict[str, Any]:
        """Return the fields of MTEB's ``ModelMeta`` but the loader."""
        entry = self.entry
        licence = entry.licence.lower() if entry else ""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return {
            "name": _name(self.model_name, entry),
            "revision": self.revision or (entry.revision if entry else None) or "none",
            "release_date": None,
            "languages": None,
            "n_parameters": sum(each.numel() for each in self.model.parameters()),
            "memory_usage_mb": round(sum(each.nbytes for each in tensors) / 2**20),
            "max_tokens": None,
            "embed_dim": self.model.scene_embedding_size,
            "license": licence if licence == "apache-2.0" else "not specified",
            "open_weights": True,
            "public_training_code": None,
            "public_training_data": None,
            "framework": ["PyTorch"],
            "similarity_fn_name": "cosine",
            "use_instructions": False,
            "training_datasets": None,
            "modalities": ["audio"],
            "experiment_kwargs": dict(self.options) or None,
        }


def _entry(name: str) -> Entry | None:
    """Return the registered model of a name, with or without its owner."""
    repositories = {each.repository: each for each in list_models() if each.repository}
    return repositories.get(name) or find_entry(name.removeprefix(f"{ORGANIZATION}/"))


def _name(model_name: str, entry: Entry | None) -> str:
    """Return a name in the form that MTEB asks for, owner/model."""
    if entry is not None and entry.repository:
        return entry.repository
    owner, _, name = model_name.rstrip("/").rpartition("/")
    is_repository = owner and "/" not in owner and not owner.startswith((".", "~"))
    return f"{owner}/{name}" if is_repository else f"{ORGANIZATION}/{name}"


def _directions(embeddings: Any) -> Tensor:
    """Return embeddings as float32 rows of length 1."""
    rows = torch.atleast_2d(torch.as_tensor(embeddings, dtype=torch.float32))
    return F.normalize(rows, dim=-1)
