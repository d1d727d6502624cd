"""MTEB: an audio encoder with its metadata, for the tasks of MTEB that embed audio alone.

    import mteb
    from gram_hear.adapters.mteb import GramEncoder

    mteb.evaluate(GramEncoder("gramt-mono"), mteb.get_tasks(["ESC50Clustering"]))

Source of the interface: MTEB's ``EncoderProtocol`` and ``ModelMeta`` (mteb 2.26), and the decoder
that ``datasets`` hands over for audio (datasets 5.2 on torchcodec 0.17).
"""

import importlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gram_hear.audio.clips import as_tensor, check_clip
from gram_hear.audio.files import check_rate, resample
from gram_hear.checkpoints.registry import Entry, find_entry, list_models
from gram_hear.errors import AudioError, OptionError
from gram_hear.hear import get_scene_embeddings, load_model

ORGANIZATION = "gram-hear"  # of the names of models that no repository gives one
NAME_DIGITS = 12  # digits of the weights' hash in a name


class GramEncoder:
    """A GRAM model as MTEB takes it: whole clips in, their scene embeddings out.

    Args:
        model_name: what :func:`gram_hear.load_model` takes, or the name in the metadata of this
            class.
        revision: branch, tag or commit, for models from the Hub; for one that ships with this
            package the hash in its metadata, or None.
        device: ``"cpu"``, ``"cuda"``, ...; None is the best that is there.
        **options: keywords of ``load_model``, such as ``strategy="mean"``; they are part of the
            metadata, so that MTEB keeps results of other options apart.

    Raises:
        OptionError, CheckpointError: as ``load_model``; and an OptionError where a model that ships
            with this package has other weights than those of ``revision``.
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
        ships = self.entry is not None and self.entry.repository is None
        self.model = load_model(
            self.model_name,
            revision=None if ships else revision,
            device=device or "auto",
            **options,
        )
        self.model.eval()
        self._loaded = self.model.hash_weights()
        if ships and revision not in (None, "none", self._loaded):
            raise OptionError(
                f"The weights of {self.model_name} have the hash {self._loaded} in this version of "
                f"gram-hear, not {revision}. Leave the revision out, or install the version whose "
                "weights these are."
            )

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
            inputs: batches; ``batch["audio"]`` is a list of clips of any length and rate: decoders
                of ``datasets``, all of whose channels are taken, or ``{"array": ...,
                "sampling_rate": Hz}``, the array (samples,) or (channels, samples).
            task_metadata, hf_split, hf_subset, prompt_type, **kwargs: what MTEB hands to every
                model; it changes nothing for audio.

        Returns:
            (clips, d) float32, in the loader's order.

        Raises:
            OptionError: for batches without audio.
            AudioError: for a clip of another form or type, of other than 1, 2 or 4 channels,
                without samples, or not finite.
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

    def _clip(self, item: Any) -> Tensor:
        """Return a clip at the model's rate, (channels, samples) float32."""
        if hasattr(item, "get_all_samples"):  # its ["array"] is the mean of the channels
            samples = item.get_all_samples()
            array, rate = samples.data, samples.sample_rate
        elif isinstance(item, Mapping) and {"array", "sampling_rate"} <= set(item):
            array, rate = item["array"], item["sampling_rate"]
        else:
            keys = f" with {', '.join(map(str, item))}" if isinstance(item, Mapping) else ""
            raise AudioError(
                f"The audio is a {type(item).__name__}{keys}; it must be a decoder of datasets, or "
                "a dict with array and sampling_rate. Cast its column: "
                'dataset.cast_column("audio", datasets.Audio()).'
            )
        try:
            array = np.asarray(array) if isinstance(array, (list, tuple)) else array
        except ValueError as error:
            raise AudioError("A clip is a list of rows of unequal lengths.") from error
        if not isinstance(rate, int | np.integer):
            raise AudioError(f"A clip has the sampling rate {rate!r}; it must be a whole number.")
        rate = int(rate)
        check_rate(rate, "A clip")
        clip, _ = check_clip(as_tensor(array), "A clip")
        if rate == self.model.sample_rate:
            return clip
        resampled = resample(clip.cpu().numpy().T, rate, self.model.sample_rate).T
        return torch.from_numpy(np.ascontiguousarray(resampled))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of each pair: (n, d) and (m, d) to (n, m)."""
        return _directions(embeddings1) @ _directions(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of the pairs: (n, d) and (n, d) to (n,)."""
        return (_directions(embeddings1) * _directions(embeddings2)).sum(dim=-1)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """MTEB's ``ModelMeta`` of the model as it is when this is first asked for.

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
        """Return the fields of MTEB's ``ModelMeta`` but the loader.

        MTEB keeps results by name, revision and options. So these say which weights they are: of a
        model from the Hub the repository and its commit; else the weights' hash.
        """
        entry = self.entry
        name, revision = self._identity()
        licence = entry.licence.lower() if entry else ""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return {
            "name": name,
            "revision": revision,
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

    def _identity(self) -> tuple[str, str]:
        """Return the name, in MTEB's form owner/model, and the revision."""
        source, weights = self.model.source, self.model.hash_weights()
        if weights == self._loaded:  # and not trained since
            if source.repository is not None and source.commit is not None:
                return source.repository, source.commit
            if self.entry is not None and source.repository is None:
                return f"{ORGANIZATION}/{self.entry.name}", weights
        name = self.model_name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
        return f"{ORGANIZATION}/{name}-{weights[:NAME_DIGITS]}", weights


def _entry(name: str) -> Entry | None:
    """Return the registered model of a name, with or without its owner."""
    repositories = {each.repository: each for each in list_models() if each.repository}
    return repositories.get(name) or find_entry(name.removeprefix(f"{ORGANIZATION}/"))


def _directions(embeddings: Any) -> Tensor:
    """Return embeddings as float32 rows of length 1."""
    rows = torch.atleast_2d(torch.as_tensor(embeddings, dtype=torch.float32))
    return F.normalize(rows, dim=-1)
