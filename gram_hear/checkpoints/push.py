"""Models onto the Hugging Face Hub: the folder form, with a model card that says what it is."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from gram_hear.checkpoints.description import describe_checkpoint
from gram_hear.checkpoints.hub import upload
from gram_hear.checkpoints.registry import find_entry
from gram_hear.checkpoints.store import (
    HUB_NAME,
    Checkpoint,
    CheckpointSource,
    checkpoint_of,
    load_checkpoint,
    save_folder,
)
from gram_hear.errors import OptionError

CARD_FILE = "README.md"
FACTS = {  # of describe_checkpoint: those that a reader of the card asks about
    "audio_layout": "audio layout",
    "audio_channels": "audio channels",
    "sample_rate": "sample rate (Hz)",
    "backbone": "backbone",
    "patch": "patch",
    "width": "width",
    "depth": "layers",
    "heads": "heads",
    "state": "state",
    "head_width": "head width",
    "expansion": "expansion",
    "convolution": "convolution (taps)",
    "step_rank": "step rank",
    "encoder_parameters": "encoder parameters",
    "decoder": "decoder",
    "hop_ms": "a row every (ms)",
    "embedding_size_raw": "embedding size, raw",
    "embedding_size_mean": "embedding size, mean",
    "embedding_size_cls": "embedding size, cls",
}

CARD = """---
license: {licence}
library_name: gram-hear
pipeline_tag: feature-extraction
tags:
{tags}
---

# {name}

A {family} model ({layout}) for embeddings of real-world sound, in the format of gram-hear: tensors
and JSON, no code.

```python
import gram_hear
model = gram_hear.load_model("{repository}")
```

## Weights

{weights}

## Facts

| | |
|---|---|
{facts}

## Citation

The architecture is that of GRAM ([arXiv 2506.00934](https://arxiv.org/abs/2506.00934)):

```bibtex
@article{{yuksel2025gram,
  title   = {{General-purpose audio representation learning for real-world sound scenes}},
  author  = {{Yuksel, Goksenin and van Gerven, Marcel and van der Heijden, Kiki}},
  journal = {{arXiv preprint arXiv:2506.00934}},
  year    = {{2025}}
}}
```
"""


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a gram-hear model",
    licence: str = "other",
) -> str:
    """Upload a model to the Hugging Face Hub, as one commit.

    What goes up is ``model.safetensors``, ``config.json`` and a generated model card. If there is
    no such repository, it is made. If it has a ``README.md`` already, that is kept.

    Args:
        model: what :func:`gram_hear.save_model` takes.
        repository: owner/name.
        private: make the repository private. If it exists and is public, that is then an error.
        token: with write access. It is sent to the Hub and stored nowhere. None is the Hub client's
            own (the environment variable HF_TOKEN, or its login).
        revision: an existing branch. None is the main branch.
        message: of the commit.
        licence: the Hub's identifier of the weights' licence, for the card.

    Returns:
        The repository's address.

    Raises:
        OptionError: for a model of another kind, or a name or licence that none can have.
        CheckpointError: without login, permission or network.
    """
    if not HUB_NAME.fullmatch(repository):
        raise OptionError(f"The repository is {repository!r}; it must be owner/name.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise OptionError(
            f"The licence is {licence!r}; it must be one of the Hub's identifiers, such as "
            "apache-2.0, mit, cc-by-4.0 or other."
        )
    checkpoint = checkpoint_of(model)
    card = model_card(checkpoint, repository, getattr(model, "source", None), licence)
    with TemporaryDirectory(prefix="gram-hear-") as name:
        folder = save_folder(checkpoint, Path(name))
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        return upload(
            folder, repository, private=private, token=token, revision=revision, message=message
        )


def model_card(
    checkpoint: Checkpoint, repository: str, source: CheckpointSource | None, licence: str = "other"
) -> str:
    """Return the text of a model card; ``source`` is None where that is not known."""
    facts = describe_checkpoint(checkpoint)
    tags = ["gram", "audio", "audio-embeddings", facts["audio_layout"]]
    return CARD.format(
        licence=licence,
        tags="\n".join(f"- {tag}" for tag in tags),
        name=repository.partition("/")[2],
        layout=facts["audio_layout"],
        family=facts["family"],
        repository=repository,
        weights=_origin(checkpoint, source),
        facts="\n".join(
            f"| {label} | {_shown(facts[key])} |" for key, label in FACTS.items() if key in facts
        ),
    )


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value >= 100_000 else str(value or "none")


def _origin(checkpoint: Checkpoint, source: CheckpointSource | None) -> str:
    """Say what is known of the weights, and no more than that."""
    entry = find_entry(source.name) if source else None
    since = "Whether they were trained since is not recorded."
    if source is None or (entry is None and source.repository is None):
        return "Not recorded: gram-hear does not know how, or whether, these weights were trained."
    if entry is not None and not entry.trained:
        if _same(checkpoint, load_checkpoint(entry.name)):
            return (
                f"**Untrained**: random numbers from seed {entry.seed} (`{entry.name}`). The "
                "embeddings mean little."
            )
        return f"They started from `{entry.name}`, random numbers. {since}"
    if source.repository is None:
        return f"They are, or started from, `{source.name}`, which ships with gram-hear. {since}"
    commit = f" at commit {source.commit}" if source.commit else ""
    return f"They were loaded from `{source.repository}`{commit}. {since}"


def _same(checkpoint: Checkpoint, other: Checkpoint) -> bool:
    """Whether every tensor of a checkpoint is that of another, which may hold more."""
    return all(
        name in other.tensors and torch.equal(tensor.detach().cpu(), other.tensors[name])
        for name, tensor in checkpoint.tensors.items()
    )
