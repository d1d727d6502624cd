"""Checkpoints found, read safely, checked whole, built into models, and saved.

Only tensors and JSON are ever read: safetensors, or PyTorch files with ``weights_only=True``.
"""

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gram_hear.checkpoints import published
from gram_hear.checkpoints.cache import hash_file
from gram_hear.checkpoints.hub import download
from gram_hear.checkpoints.registry import (
    Entry,
    bundled_file,
    default_name,
    find_entry,
    unknown_model,
)
from gram_hear.config import LARGEST_CONFIG, ModelConfig, named_config
from gram_hear.errors import (
    CheckpointError,
    ConfigError,
    OptionError,
    allowed,
    reason_of,
    require_known,
)
from gram_hear.foreign import TORCH_FAULTS, parse_json
from gram_hear.jobs.writing import write_text, write_whole
from gram_hear.model import GramModel
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder

# In the metadata of our safetensors files, and beside the state dict in those of pretraining.
CONFIG_KEY = "gram_hear_config"
PRETRAINED = "autoencoder."  # before the model's names in the latter
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
STORED = {"float32": torch.float32, "float16": torch.float16}  # types of the tensors we write
LONGEST_NAME = 10_000  # of a tensor
SHARED = 64 << 20  # bytes by which a file's tensors may exceed it, since some share their values
ZIP_START = b"PK\x03\x04"
ZIP_HEADER = 1 << 18  # bytes, more than any member of a zip archive has before its content
# Calls in a pickle that the safe loader allows, and that can fill the memory; tensors need neither.
GREEDY = (b"_codecs\nencode\n", b"__builtin__\nbytearray\n", b"builtins\nbytearray\n")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint came from.

    ``layout`` is ``"gram-hear"`` (ours), ``"published"`` (the authors') or ``"seed"`` (random
    weights, no file). For a download from the Hub, ``repository``, ``revision`` (what was asked
    for; None is the main branch) and ``commit`` (what was served) are set, and ``checked``, the
    SHA-256 that the download was found to have.
    """

    name: str
    layout: str
    path: Path | None = None
    repository: str | None = None
    revision: str | None = None
    commit: str | None = None
    checked: str | None = None

    def sha256(self) -> str | None:
        """Return the SHA-256 of the file, in hexadecimal; None where there is no file.

        It is computed once, for a download before it is read.
        """
        return self._hash

    @cached_property
    def _hash(self) -> str | None:
        if self.checked is not None or self.path is None:
            return self.checked
        return hash_file(self.path)


@dataclass(frozen=True)
class Checkpoint:
    """A configuration and every tensor of it under our names, in float32 and checked."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    source: CheckpointSource


# --- find -----------------------------------------------------------------------------------


def load_checkpoint(
    name: str | os.PathLike = "",
    *,
    heads: int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | None = None,
) -> Checkpoint:
    """Find a checkpoint and read it whole.

    Args:
        name: a registered name, a file, a folder, or a Hub repository; "" is the default model.
        heads: attention heads of the encoder, for files in the published layout whose heads are
            not 64 wide.
        revision: branch, tag or commit of a Hub repository.
        cache_dir: where downloads are kept; None is the Hub client's own cache.
        token: for the Hub, sent and kept nowhere; None is the client's own (HF_TOKEN, its login).

    Raises:
        OptionError: for an unknown name, or an option that does not fit it.
        CheckpointError: for a file that cannot be read safely or loaded whole.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise OptionError(f"The model is {name!r}; it must be a name or a path.")
    text = os.fspath(name) or default_name()
    entry = find_entry(text)
    path = Path(os.path.expanduser(text))
    if entry is None and _exists(path):
        if revision is not None:
            raise OptionError(
                f"revision={revision!r} was given with the local path {text}; it belongs to Hub "
                "repositories. Leave it out."
            )
        return _read_local(text, path, heads)
    if entry is not None and entry.repository is None:
        if revision is not None or heads is not None:
            raise OptionError(f"{text} comes with this package; it takes no revision or heads.")
        return _seeded(entry) if entry.layout == "seed" else _bundled(entry)
    if entry is None and (path.suffix in SUFFIXES or text.startswith((".", "~", os.sep))):
        raise CheckpointError(f"There is no file or folder {text}.")
    if entry is None and not HUB_NAME.fullmatch(text):
        raise unknown_model(text)
    return _from_hub(text, entry, heads, revision, cache_dir, token)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _from_hub(
    name: str,
    entry: Entry | None,
    heads: int | None,
    revision: str | None,
    cache_dir: str | os.PathLike | None,
    token: str | None,
) -> Checkpoint:
    repository = (entry.repository if entry else None) or name
    file = (entry.file if entry else None) or WEIGHTS_FILE
    registered = entry.revision if entry else None
    revision = revision or registered
    fetched = download(
        repository,
        file,
        revision,
        suffixes=SUFFIXES,
        cache_dir=cache_dir,
        token=token,
        sha256=entry.sha256 if entry and revision == registered else None,
    )
    where = (fetched.path, repository, revision, fetched.commit, fetched.sha256)
    checkpoint = _read(CheckpointSource(name, "published", *where), heads)
    if entry is not None:
        config = checkpoint.config
        found = (config.encoder.backbone, config.front_end.feature_channels, config.patching)
        if found != (entry.backbone, entry.channels, entry.patching):
            raise CheckpointError(
                f"{name} is registered with backbone {entry.backbone}, {entry.channels} channels "
                f"and {entry.patching} patches, but {repository} holds a model with {found[0]}, "
                f"{found[1]} and {found[2]}. Load it as a repository, load_model({repository!r}), "
                "if that is meant."
            )
    return checkpoint


def _read_local(name: str, path: Path, heads: int | None) -> Checkpoint:
    if not path.is_dir():
        return _read(CheckpointSource(name, "published", path), heads)
    weights = path / WEIGHTS_FILE
    if not weights.exists():
        found = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
        if len(found) != 1:
            names = ", ".join(each.name for each in found) or "no checkpoint"
            raise CheckpointError(
                f"The folder {path} holds {names}; it must hold {WEIGHTS_FILE}, or exactly one "
                f"file that ends in {', '.join(SUFFIXES)}. Name the file itself."
            )
        weights = found[0]
    checkpoint = _read(CheckpointSource(name, "published", weights), heads)
    written = path / CONFIG_FILE
    if checkpoint.source.layout == "gram-hear" and written.exists():
        try:
            with open(written, "rb") as file:
                config = ModelConfig.from_json(file.read(LARGEST_CONFIG + 1))
        except (ConfigError, OSError) as error:
            raise CheckpointError(f"{written} cannot be read: {error}") from error
        if config != checkpoint.config:
            raise CheckpointError(
                f"{written} differs from the configuration in {weights.name}, which is the one "
                "that its tensors have. Write the folder anew with save_pretrained."
            )
    return checkpoint


def _seeded(entry: Entry) -> Checkpoint:
    assert entry.size is not None
    assert entry.seed is not None
    config = named_config(entry.size, entry.channels, entry.patching, entry.backbone)
    with torch.random.fork_rng(devices=[]):  # what the layers draw at first is drawn over below
        model = MaskedAutoencoder(config)
    initialise(model, entry.seed)
    return Checkpoint(config, dict(model.state_dict()), CheckpointSource(entry.name, "seed"))


def _bundled(entry: Entry) -> Checkpoint:
    """Read a checkpoint that ships with the package, and is what was registered."""
    path = bundled_file(entry)
    source = CheckpointSource(entry.name, "published", path)
    if not path.is_file() or source.sha256() != entry.sha256:
        raise CheckpointError(
            f"{path}, which ships with gram-hear, is missing or was changed: its SHA-256 is "
            f"not {entry.sha256}. Install gram-hear again."
        )
    return _read(source, None)


# --- read -----------------------------------------------------------------------------------


def _read(source: CheckpointSource, heads: int | None) -> Checkpoint:
    """Read one file in our format or a published one; every tensor checked."""
    assert source.path is not None
    try:
        tensors, metadata = read_tensors(source.path)
        faults: list[str] = []
        embeds_only = False
        if CONFIG_KEY in metadata:
            if heads is not None:
                raise OptionError(
                    f"heads={heads} was given, but the file holds its own configuration. "
                    "Leave it out."
                )
            tensors = published.strip_wrappers(tensors)
            config = ModelConfig.from_json(metadata[CONFIG_KEY])
            shapes = expected_shapes(config)
            names = {name: name for name in shapes}
            source = replace(source, layout="gram-hear")
        else:
            tensors = published.strip_names(tensors)
            embeds_only = published.masks_channels(tensors)
            tensors = published.without_flags(tensors)
            config = published.read_config(tensors, heads)
            shapes = expected_shapes(config)
            tensors, faults = published.drop_derived(tensors, config)
            names = {name: published.published_name(name, config) for name in shapes}
        whole = Checkpoint(config, _check(tensors, names, shapes, config, faults), source)
        return encoder_only(whole) if embeds_only else whole
    except (CheckpointError, ConfigError, OSError) as error:
        raise CheckpointError(f"{source.path}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and its metadata; no code in it is run.

    Only our own files have metadata that count: safetensors, and the checkpoints of pretraining.

    Raises:
        CheckpointError: for a file that is no checkpoint, or holds other objects than tensors.
    """
    if path.stat().st_size == 0:
        raise CheckpointError("The file is empty.")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"Unknown kind of checkpoint {path.suffix!r}; {allowed(path.suffix, SUFFIXES)}"
        )
    read = _read_torch if path.suffix in TORCH_SUFFIXES else _read_safetensors
    tensors, metadata = read(path)
    for name in tensors:
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise CheckpointError(
                f"A tensor's name, {name[:50]!r}, is not printable or has more than "
                f"{LONGEST_NAME:,} characters; this is no checkpoint of a model."
            )
    return tensors, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file, whose library holds every size in it against the file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"This is not a whole safetensors file ({error}).") from error
    with open(path, "rb") as content:  # the library takes one of two tensors of one name
        size = int.from_bytes(content.read(8), "little")
        parse_json(content.read(size), "The header of this safetensors file", CheckpointError)
    return tensors, metadata


def load_torch(path: Path) -> Any:
    """Return what a PyTorch file holds, on the CPU; no code in it is run.

    Raises:
        CheckpointError: for a file that is damaged, holds other objects than tensors and plain
            values, or claims more than it has.
    """
    try:
        zipped = _check_claims(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except TORCH_FAULTS as error:
        raise CheckpointError(_why_unsafe(path, error)) from error


def _check_claims(path: Path) -> bool:
    """Hold what a PyTorch file claims against what it has, before anything is loaded.

    Returns:
        Whether it is a zip archive. Such a file is to be mapped: torch takes the size of a tensor's
        values from the pickle, and only a map ends where the file ends.
    """
    with open(path, "rb") as file:
        zipped = file.read(len(ZIP_START)) == ZIP_START
        file.seek(0)
        if zipped:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(m.file_size for m in members) > path.stat().st_size:
                raise CheckpointError(
                    "This is not a whole PyTorch checkpoint: its parts are compressed, or larger "
                    "than the file. Write it again with torch.save."
                )
            pickles = []
            for member in members:
                if member.filename.endswith("data.pkl"):
                    file.seek(member.header_offset)
                    pickles.append(file.read(member.file_size + ZIP_HEADER))
        else:
            pickles = [file.read()]
    if any(call in pickle for call in GREEDY for pickle in pickles):
        raise CheckpointError(
            "The file holds bytes objects besides tensors, which could fill the memory when they "
            "are loaded. Save the state dict alone."
        )
    return zipped


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a PyTorch file, bare or under ``state_dict`` or ``model``."""
    content = load_torch(path)
    config = content.get(CONFIG_KEY) if isinstance(content, Mapping) else None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"The file holds a {type(content).__name__}; it must hold named tensors, bare or "
            "under 'state_dict'."
        )
    others = [
        str(name)[:50]
        for name, value in content.items()
        if not (isinstance(value, Tensor) and isinstance(name, str))
    ]
    if others:
        raise CheckpointError(
            "Among the tensors stand entries that are no named tensors: "
            f"{', '.join(others[:10])}. Save the state dict alone."
        )
    _check_stored(content, path.stat().st_size)
    if not isinstance(config, str):
        return dict(content), {}
    named = {name.removeprefix(PRETRAINED): tensor for name, tensor in content.items()}
    return named, {CONFIG_KEY: config}


def _check_stored(tensors: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors whose values are not all in a file of ``size`` bytes."""
    for name, tensor in tensors.items():
        if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
            kind = f"{tensor.dtype}, {tensor.layout}"
        elif tensor.is_meta:
            kind = f"{tensor.dtype}, on {tensor.device}"
        else:
            continue
        raise CheckpointError(f"wrong type: {name} is {kind}; it must be dense, with its values.")
    claimed = {name: each.numel() * each.element_size() for name, each in tensors.items()}
    if sum(claimed.values()) > size + SHARED:
        largest = max(claimed, key=lambda name: claimed[name])
        raise CheckpointError(
            f"The tensors are {sum(claimed.values()):,} bytes, but the file has {size:,}: the same "
            f"values stand for many (the largest is {largest}, {tuple(tensors[largest].shape)}). "
            "Save whole copies of them: tensor.contiguous().clone()."
        )


def _why_unsafe(path: Path, error: Exception) -> str:
    """Say why PyTorch's safe loader refused a file, naming the classes that it holds."""
    try:
        classes = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except TORCH_FAULTS:  # not a file of torch.save's current form: its first error tells enough
        classes = sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
    if not classes:
        return f"This is not a whole PyTorch checkpoint (reading it: {type(error).__name__})."
    return (
        f"The file holds objects that are not tensors: {', '.join(classes)}. Loading them could "
        "run code, so it was not loaded. If you trust the file, load it where those classes are "
        "known, and save its state dict alone as safetensors."
    )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a checkpoint with this configuration."""
    depths, shallow = {"encoder": config.encoder.depth}, replace(config.encoder, depth=1)
    decoder = config.decoder
    if decoder is not None:
        depths["decoder"], decoder = decoder.depth, replace(decoder, depth=1)
    config = replace(config, encoder=shallow, decoder=decoder)
    with torch.device("meta"):
        model = MaskedAutoencoder(config) if decoder else GramModel(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():  # all blocks are like the first
        part, first, rest = name.partition(".blocks.0.")
        each = [f"{part}.blocks.{i}.{rest}" for i in range(depths[part])] if first else [name]
        shapes |= dict.fromkeys(each, tuple(tensor.shape))
    return shapes


def _check(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
    faults: list[str],
) -> dict[str, Tensor]:
    """Return the tensors under our names, in float32, or raise one error that lists all faults.

    ``names`` maps our name of every tensor that must be there to the file's, ``shapes`` to its
    shape in our models. ``faults`` is what is known to be wrong already.
    """
    if len(shapes) > 2 * len(tensors):
        raise CheckpointError(
            f"A {describe(config)} has {len(shapes):,} tensors, but the file has {len(tensors):,}; "
            "it holds another model, or a small part of one."
        )
    faults = faults + [f"unexpected: {name}" for name in sorted(set(tensors) - set(names.values()))]
    checked = {}
    for name, shape in shapes.items():
        given = names[name]
        wanted = shape if given == name else published.published_shape(name, shape)
        if given not in tensors:
            faults.append(f"missing: {given} {wanted}")
            continue
        tensor = tensors[given]
        if tuple(tensor.shape) != wanted:
            faults.append(f"misshapen: {given} is {tuple(tensor.shape)}, must be {wanted}")
        elif tensor.dtype not in published.FLOATING:
            faults.append(f"wrong type: {given} is {tensor.dtype}, must be a 16 to 64-bit float")
        elif not torch.isfinite(converted := tensor.to(torch.float32)).all():
            faults.append(f"not finite: {given} holds NaN or infinite values (in float32)")
        else:
            checked[name] = converted.reshape(shape)
    if faults:
        raise CheckpointError(
            f"{len(faults)} of the tensors do not fit a {describe(config)}:\n  "
            + "\n  ".join(published.shorten(faults))
            + "\nA checkpoint loads whole or not at all (the decoder as a whole may be absent)."
        )
    return checked


def describe(config: ModelConfig) -> str:
    """Return a model's kind in a few words."""
    return (
        f"{config.family} model ({config.encoder.backbone}, width {config.encoder.width}, "
        f"{config.encoder.depth} layers, {config.front_end.layout}, {config.patching} patches)"
    )


# --- build ----------------------------------------------------------------------------------

_Model = TypeVar("_Model", GramModel, MaskedAutoencoder)


def _build(kind: Callable[[ModelConfig], _Model], config: ModelConfig, tensors: dict) -> _Model:
    with torch.device("meta"):  # no time is spent on weights that are replaced at once
        model = kind(config)
    whole = torch.contiguous_format
    copies = {
        name: tensor.to(torch.float32, copy=True, memory_format=whole)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(copies, assign=True)
    return model.eval()


def build_encoder(checkpoint: Checkpoint) -> GramModel:
    """Return the embedding half of a checkpoint, on the CPU in float32, in eval mode."""
    return _build(GramModel, checkpoint.config, encoder_only(checkpoint).tensors)


def build_autoencoder(checkpoint: Checkpoint) -> MaskedAutoencoder:
    """Return the masked autoencoder of a checkpoint with its decoder; as :func:`build_encoder`."""
    return _build(MaskedAutoencoder, checkpoint.config, checkpoint.tensors)


# --- save -----------------------------------------------------------------------------------


def save_model(model: nn.Module, path: str | os.PathLike) -> Path:
    """Write a model as one safetensors file with its whole configuration in the metadata.

    Args:
        model: what ``load_model`` returned. Also a GramModel, or a MaskedAutoencoder, which is
            written with its decoder.
        path: a file that ends in ``.safetensors``. It is replaced whole or not at all.

    Returns:
        The path.

    Raises:
        OptionError: for a model of another kind, one in int8, or a path of another suffix.
        CheckpointError: if the file cannot be written.

    Example::

        model = gram_hear.load_model("gram-tiny")
        save_model(model, "mine.safetensors")
    """
    return save_checkpoint(checkpoint_of(model), path)


def save_pretrained(model: nn.Module, folder: str | os.PathLike) -> Path:
    """Write a model as a folder: ``model.safetensors``, and its ``config.json`` for people to read.

    It takes the same models as :func:`save_model`, raises the same errors, and returns the folder.
    """
    return save_folder(checkpoint_of(model), folder)


def checkpoint_of(model: nn.Module) -> Checkpoint:
    """Return the checkpoint of a model, of the kinds that :func:`save_model` takes.

    Raises:
        OptionError: for a model of another kind, or one in int8.
    """
    model = getattr(model, "gram", model)  # a HearModel holds the GramModel
    if not isinstance(model, (GramModel, MaskedAutoencoder)):
        raise OptionError(
            f"A {type(model).__name__} was given to be saved; allowed are what load_model "
            "returned, a GramModel and a MaskedAutoencoder."
        )
    whole = isinstance(model, MaskedAutoencoder)
    config = model.config if whole else replace(model.config, decoder=None)
    tensors = model.state_dict()
    if set(tensors) != set(expected_shapes(config)):
        raise OptionError(
            "The model holds other tensors than its configuration says, as one in int8 does; it "
            "cannot be saved. Load it with dtype='float32' to save it."
        )
    return Checkpoint(config, tensors, CheckpointSource("", "gram-hear"))


def encoder_only(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without its decoder."""
    tensors = {k: v for k, v in checkpoint.tensors.items() if not k.startswith("decoder.")}
    return replace(checkpoint, config=replace(checkpoint.config, decoder=None), tensors=tensors)


def save_checkpoint(
    checkpoint: Checkpoint, path: str | os.PathLike, dtype: str = "float32"
) -> Path:
    """Write a checkpoint as one file in our format, whole or not at all.

    Args:
        checkpoint: what is written.
        path: a file that ends in .safetensors.
        dtype: of the tensors in it: ``"float32"``, or half of that size, ``"float16"``.

    Raises:
        OptionError: for another name or type.
        CheckpointError: where it cannot be written, or a value is beyond float16.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OptionError(f"Our checkpoints are safetensors: {path} must end in .safetensors.")
    require_known("dtype of a stored checkpoint", dtype, STORED)
    tensors = {
        name: tensor.detach().to("cpu", STORED[dtype]).contiguous()
        for name, tensor in checkpoint.tensors.items()
    }
    if beyond := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{', '.join(beyond)}: NaN, or values beyond {dtype}.")
    write_tensors(path, tensors, {"format": "pt", CONFIG_KEY: checkpoint.config.to_json()})
    return path


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write safetensors whole or not at all.

    They have the usual permissions; only their owner could read what safetensors itself writes.

    Raises:
        CheckpointError: where it cannot be written.
    """
    data = save(tensors, metadata)
    try:
        write_whole(path, lambda temporary: temporary.write_bytes(data))
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {reason_of(error)}.") from error


def save_folder(checkpoint: Checkpoint, folder: str | os.PathLike, dtype: str = "float32") -> Path:
    """Write a checkpoint as a folder: ``model.safetensors``, and its ``config.json`` to read.

    ``dtype`` is as for :func:`save_checkpoint`.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is a file; the folder form needs a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(checkpoint, folder / WEIGHTS_FILE, dtype)
    write_text(folder / CONFIG_FILE, f"{checkpoint.config.to_json()}\n")
    return folder
