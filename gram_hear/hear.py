"""The HEAR API: options, layout, batches of windows, pooling.

    model = load_model("gramt-binaural")
    embeddings, timestamps = get_timestamp_embeddings(audio, model)
    embeddings = get_scene_embeddings(audio, model)

Embeddings over time come in *rows*: a row is one embedding vector, that of a clip at one time. A
window of 2 s gives 25 or 100 of them.

Source of the API: the HEAR benchmark (hearbenchmark.com). A waveform goes through
:func:`gram_hear.audio.clips.as_clips`, :meth:`HearModel.embed`, :meth:`HearModel.lay_out` and
:func:`pool`.
"""

import hashlib
import inspect
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gram_hear.audio.clips import Audio, as_clips
from gram_hear.audio.layouts import check_convention, to_layout
from gram_hear.checkpoints.store import Checkpoint, CheckpointSource, build_encoder, load_checkpoint
from gram_hear.config import ModelConfig
from gram_hear.devices import find_device
from gram_hear.errors import AudioError, OptionError, allowed, nearest, require_known
from gram_hear.model import GramModel
from gram_hear.nn.encoder import Encoder
from gram_hear.stream import WindowStream
from gram_hear.windows import FILLS, WindowPlan, corrected_plan, reference_plan

STRATEGIES = ("raw", "mean", "cls")
SCENES = ("mean", "mean_std")  # what a whole clip's embedding is of its rows
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# --- options --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """How a model embeds; see :func:`load_model`."""

    strategy: str = "raw"
    scene: str = "mean"
    layer: int | None = None
    convention: str | None = None
    parity: bool = False
    window_fill: str | None = None
    window_batch: int = 16
    dtype: str = "float32"

    def __post_init__(self) -> None:
        strategies = (*STRATEGIES, "sum") if self.parity else STRATEGIES
        if self.strategy not in strategies:
            only = " 'sum' needs parity=True." if self.strategy == "sum" else ""
            raise OptionError(
                f"Unknown strategy {self.strategy!r}; {allowed(self.strategy, strategies)}{only}"
            )
        require_known("scene", self.scene, SCENES)
        if self.parity and self.scene != "mean":
            raise OptionError(
                f"parity=True embeds whole clips as the authors do, by the mean, and scene is "
                f"{self.scene!r}. Leave one of the two out."
            )
        if self.window_fill is not None:
            require_known("window_fill", self.window_fill, FILLS)
        if self.parity and self.window_fill not in (None, "zero"):
            raise OptionError(
                f"parity=True fills windows as the authors do, with 'zero', and window_fill is "
                f"{self.window_fill!r}. Leave one of the two out."
            )
        if self.window_batch < 1:
            raise OptionError(f"window_batch is {self.window_batch}; it must be at least 1.")
        require_known("dtype", self.dtype, (*DTYPES, "int8"))
        if self.convention is not None:
            check_convention(self.convention)


def _whole_number(name: str, value: Any) -> int:
    """Read a whole number, which may come as a string from JSON or a command line."""
    try:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise OptionError(f"{name} is {value!r}; it must be a whole number.") from None


def _truth(name: str, value: Any) -> bool:
    """Read True or False, which may come as the string "true" or "false"."""
    truths = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in truths:
        return truths[value.lower()]
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; it must be true or false.")
    return value


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() in ("", "none", "null"))


def load_model(
    model_file_path: str | os.PathLike = "",
    *,
    strategy: str = "raw",
    scene: str = "mean",
    layer: int | str | None = None,
    convention: str | None = None,
    parity: bool | str = False,
    window_fill: str | None = None,
    window_batch: int | str = 16,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | None = None,
    heads: int | str | None = None,
    **unknown: Any,
) -> "HearModel":
    """Load a GRAM model for the HEAR API.

    Options may also come as strings, as evaluators pass them on from JSON. A *row* is the embedding
    vector of one time step, 80 or 20 ms. A *window* is the 2 s that the model sees at once.

    Args:
        model_file_path: a registered name (:func:`list_models`), a checkpoint file or folder, or
            a Hugging Face Hub repository. "" is the published ``gramt-binaural``.
        strategy: what a row holds: ``"raw"``, its frequency patches side by side; ``"mean"``,
            their mean; ``"cls"``, the CLS token of its window (GRAM-T only); or ``"sum"``, the sum
            of the patches (only with ``parity``).
        scene: what the embedding of a whole clip holds: ``"mean"``, the mean of its rows; or
            ``"mean_std"``, their mean and then their standard deviation, twice as many values. The
            deviation tells how a sound changes.
        layer: embed after this many blocks and the final norm, 1 to depth. None is all blocks.
        convention: of four-channel audio: ``"ambix"`` (also None), ``"fuma"`` or
            ``"soundspaces"``. It counts for arrays, and for files that do not state their own. What
            ``read_audio`` returns is AmbiX in any case, so leave the option out then.
        parity: reproduce the authors' windows, rows and timestamps, faults included.
        window_fill: what fills a window past the end of its clip: ``"repeat"`` (also None), the
            clip again and again; ``"mirror"``, the clip back and forth; ``"silence"``; or
            ``"zero"``, the value 0 in the log-mel. The last is the authors' filling, and the only
            one with ``parity``. A clip longer than a window lacks at most half a row, which
            ``"repeat"`` mirrors.
        window_batch: windows that go through the encoder at once.
        device: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``.
        dtype: of the encoder: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"int8"`` (its
            linear layers, on the CPU, GRAM-T only). Features and embeddings are float32 in any
            case.
        revision: branch, tag or commit, for models from the Hub.
        cache_dir: where downloads are kept. None is the Hub client's own folder.
        token: for private models from the Hub. It is sent to the Hub and stored nowhere. None is
            the Hub client's own (the environment variable HF_TOKEN, or its login).
        heads: attention heads, for published layouts whose heads are not 64 wide.
        **unknown: anything else is an OptionError that names the nearest option.

    Returns:
        The model, which the HEAR functions take.

    Raises:
        OptionError: for an unknown name or option, or options that contradict each other.
        CheckpointError: for a checkpoint that cannot be fetched, read safely or loaded whole.

    Example::

        model = load_model("gram-tiny", strategy="mean")
        model.sample_rate  # 32000: the rate of the audio that it takes, in Hz
    """
    if unknown:
        signature = inspect.signature(load_model).parameters.values()
        known = [each.name for each in signature if each.kind is each.KEYWORD_ONLY]
        name = next(iter(unknown))
        raise OptionError(
            f"load_model has no option {name!r}; its options are {', '.join(known)}."
            + nearest(name, known)
        )
    options = Options(
        strategy=strategy,
        scene=scene,
        layer=None if _absent(layer) else _whole_number("layer", layer),
        convention=None if _absent(convention) else convention,
        parity=_truth("parity", parity),
        window_fill=None if _absent(window_fill) else window_fill,
        window_batch=_whole_number("window_batch", window_batch),
        dtype=str(dtype).removeprefix("torch."),
    )
    found = find_device("cpu" if options.dtype == "int8" and device == "auto" else device)
    if options.dtype == "int8" and found.type != "cpu":
        raise OptionError(f"dtype 'int8' runs on the CPU alone, not on {found}; leave one out.")
    checkpoint = load_checkpoint(
        model_file_path,
        heads=None if _absent(heads) else _whole_number("heads", heads),
        revision=None if _absent(revision) else revision,
        cache_dir=cache_dir,
        token=None if _absent(token) else token,
    )
    return from_checkpoint(checkpoint, options).to(found)


def from_checkpoint(checkpoint: Checkpoint, options: Options) -> "HearModel":
    """Return the model of a checkpoint on the CPU, warning where its weights are random."""
    if checkpoint.source.layout == "seed":
        warnings.warn(
            f"{checkpoint.source.name} is untrained: its weights are random numbers from a seed. "
            "It shows how gram_hear works; its embeddings mean little.",
            stacklevel=3,
        )
    return HearModel(build_encoder(checkpoint), options, checkpoint.source)


# --- the model ------------------------------------------------------------------------------


class HearModel(nn.Module):
    """A GRAM model with its embedding options: what the HEAR functions take.

    Attributes:
        sample_rate: of the audio that it takes, in Hz.
        multichannel: ``"channels_first"``: evaluators may hand over (n, channels, samples).
        source: where the checkpoint came from.
    """

    multichannel = "channels_first"

    def __init__(self, gram: GramModel, options: Options, source: CheckpointSource) -> None:
        super().__init__()
        depth = gram.config.encoder.depth
        if options.layer is not None and not 1 <= options.layer <= depth:
            raise OptionError(
                f"layer is {options.layer}; this model has layers 1 to {depth} (None is the last)."
            )
        if options.strategy == "cls" and gram.config.family == "GRAM-M":
            raise OptionError(
                "strategy 'cls' says nothing with GRAM-M: its encoder is causal and the CLS token "
                "comes first, so it has seen no sound and is the same for every input. Use 'raw' "
                "or 'mean'."
            )
        if options.dtype == "int8" and gram.config.family == "GRAM-M":
            raise OptionError(
                "dtype 'int8' is for GRAM-T alone: it moves the embeddings of GRAM-M too far from "
                "those in float32, and saves little there, where the scan takes the time. Use "
                "'float32', or 'bfloat16' or 'float16' on a GPU."
            )
        self.gram = gram
        if options.dtype == "int8":
            self.gram.encoder = quantise(self.gram.encoder)
        else:
            self.gram.patches.to(DTYPES[options.dtype])
            self.gram.encoder.to(DTYPES[options.dtype])
        self.options = options
        self.source = source

    @property
    def config(self) -> ModelConfig:
        """The configuration of the network."""
        return self.gram.config

    @property
    def device(self) -> torch.device:
        """Where the model is; audio is moved there."""
        return self.gram.front_end.window.device

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio that the model takes."""
        return self.config.front_end.sample_rate

    @property
    def per_window(self) -> bool:
        """Whether a row is a whole window, as the authors' mean, sum and cls are."""
        return self.options.parity and self.options.strategy != "raw"

    @property
    def timestamp_embedding_size(self) -> int:
        """The length d of the embedding of a time step."""
        width = self.config.encoder.width
        raw = self.options.strategy == "raw"
        return width * self.config.frequency_patches if raw else width

    @property
    def scene_embedding_size(self) -> int:
        """The length d of the embedding of a whole clip."""
        return self.timestamp_embedding_size * (2 if self.options.scene == "mean_std" else 1)

    @property
    def hop_ms(self) -> float:
        """Milliseconds from one row to the next, before ``parity`` stretches the timestamps."""
        return self.config.hop_ms * (self.config.time_patches if self.per_window else 1)

    def extra_repr(self) -> str:
        """Show the options in ``repr(model)``."""
        return f"{self.source.name or 'model'}, {self.options}"

    def forward(self, audio: Audio) -> Tensor | list[Tensor]:
        """Embed audio with gradients: the rows of :func:`get_timestamp_embeddings`.

        Args:
            audio: what that function takes.

        Returns:
            (n, rows, d) float32 for an array or tensor. For a list of clips, a list of (rows, d).

        Raises:
            AudioError: as that function.
            OptionError: for a model in int8, which has no gradients.
        """
        if self.options.dtype == "int8" and torch.is_grad_enabled():
            raise OptionError(
                "A model in int8 embeds without gradients: use get_timestamp_embeddings, or load "
                "it with dtype='float32'."
            )
        rows = self.embed(as_clips(audio))
        return rows if isinstance(audio, (list, tuple)) else torch.stack(rows)

    def plan(self, samples: int) -> WindowPlan:
        """Return the windows, rows and timestamps of a clip of ``samples`` samples."""
        if self.options.parity:
            return reference_plan(samples, self.config, self.per_window)
        return corrected_plan(samples, self.config)

    def embed(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the kept rows of each clip, (rows, d) float32 on the model's device.

        Clips of one length share one transform; the windows of all clips share batches.

        Args:
            clips: (channels, samples) float32 each, as ``audio.clips.as_clips`` returns them.

        Raises:
            AudioError: where the rows of a clip are not finite.
        """
        plans = [self.plan(clip.shape[-1]) for clip in clips]
        laid_out = [self._pad_short(self.lay_out(clip)) for clip in clips]
        windows: list[Tensor] = [torch.empty(0)] * len(clips)
        for members in _by_length(laid_out):
            starts = plans[members[0]].window_starts()
            group = torch.stack([laid_out[i] for i in members])
            cut = self.gram.windows_of(group, starts, self.window_fill)
            for i, part in zip(members, cut.split(len(starts)), strict=True):
                windows[i] = part
        batches = torch.cat(windows).split(self.options.window_batch)
        pooled = torch.cat([self.encode(batch) for batch in batches])
        parts = pooled.split([plan.windows for plan in plans])
        rows = [plan.keep(part) for part, plan in zip(parts, plans, strict=True)]
        for i, each in enumerate(rows):
            check_finite(each, f"Clip {i}")
        return rows

    def lay_out(self, clip: Tensor, convention: str | None = None) -> Tensor:
        """Bring a clip, or a block of one, to the model's device and layout.

        ``convention`` is the clip's where it is another than that of the options.
        """
        convention = convention or self.options.convention or "ambix"
        layout = self.config.front_end.layout
        return to_layout(clip.to(self.device), layout, convention, self.options.parity)

    def _pad_short(self, clip: Tensor) -> Tensor:
        """Pad a clip shorter than :attr:`shortest` with zeros to one STFT frame."""
        missing = self.config.front_end.n_fft - clip.shape[-1]
        return F.pad(clip, (0, missing)) if clip.shape[-1] < self.shortest else clip

    @property
    def shortest(self) -> int:
        """Samples below which a clip is padded: a frame; with parity what cannot be reflected."""
        front_end = self.gram.front_end
        return front_end.shortest if self.options.parity else front_end.config.n_fft

    @property
    def window_fill(self) -> str:
        """What is asked to stand past the end of a clip; see :func:`gram_hear.windows.fill_of`."""
        return self.options.window_fill or ("zero" if self.options.parity else "repeat")

    def stream(self) -> WindowStream:
        """Return the windows of one clip that arrives in blocks, laid out already."""
        return WindowStream(self.gram, self.plan, self.window_fill, self.shortest)

    def encode(self, windows: Tensor) -> Tensor:
        """Encode feature windows and pool them to rows, in the model's own type.

        An autocast context around the call changes nothing, as it does not in the front-end.

        Args:
            windows: (windows, feature channels, frames, mels), at most ``window_batch`` of them.

        Returns:
            (windows, rows of a window, d) float32.
        """
        layer = self.options.layer
        with torch.autocast(self.device.type, enabled=False):
            if self.options.dtype == "int8":  # one by one: int8 takes its scale from the batch
                tokens = torch.cat([self.gram(window[None], layer) for window in windows])
            else:
                tokens = self.gram(windows, layer)
            return pool(tokens.float(), self.options.strategy, self.config, self.per_window)

    def hash_weights(self) -> str:
        """Return the SHA-256 of the configuration and of all tensors as they are now.

        A model that was trained since it was loaded has another hash than before. A model in int8
        cannot be trained, and its weights are packed. So its hash is made of its file instead.
        """
        digest = hashlib.sha256(self.config.to_json().encode())
        if self.options.dtype == "int8":
            digest.update((self.source.sha256() or self.source.name).encode())
            return digest.hexdigest()
        for name, tensor in sorted(self.gram.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def quantise(encoder: Encoder) -> Encoder:
    """Return the encoder with its linear layers in int8: weights now, activations as they come.

    On the CPU alone, and for embedding alone: no gradients, and it cannot be saved.

    Raises:
        OptionError: where this PyTorch has no dynamic quantisation, or not for this processor.
    """
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError as error:
        raise OptionError(
            f"This PyTorch ({torch.__version__}) has no dynamic quantisation; use float32."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        try:
            return quantize_dynamic(encoder, {nn.Linear}, dtype=torch.qint8)
        except RuntimeError as error:
            raise OptionError(f"int8 does not work on this processor ({error}).") from error


def check_finite(rows: Tensor, name: str) -> None:
    """Raise an AudioError, whose message begins with ``name``, if embeddings are not finite."""
    if not torch.isfinite(rows).all():
        raise AudioError(
            f"{name}: its embeddings hold NaN or infinite values. Either its samples are far "
            "outside [-1, 1], or the weights are broken, or they exceed the dtype: try float32."
        )


def _by_length(clips: Sequence[Tensor]) -> Iterable[list[int]]:
    """Group the indices of clips of one length."""
    groups: dict[int, list[int]] = {}
    for i, clip in enumerate(clips):
        groups.setdefault(clip.shape[-1], []).append(i)
    return groups.values()


def pool(tokens: Tensor, strategy: str, config: ModelConfig, per_window: bool) -> Tensor:
    """Turn a window's tokens into its embedding rows.

    Args:
        tokens: (windows, 1 + tokens, width), the CLS token first, patches frequency-major.
        strategy: ``"raw"``, ``"mean"``, ``"cls"`` or ``"sum"``.
        config: the model's configuration.
        per_window: one row for each window instead of one for each time step.

    Returns:
        (windows, rows, d): d is frequency patches x width for raw, else the width.
    """
    cls, patches = tokens[:, :1], tokens[:, 1:]
    if strategy == "cls":
        return cls if per_window else cls.expand(-1, config.time_patches, -1)
    if per_window:
        total = patches.sum(dim=1, keepdim=True)
        return total if strategy == "sum" else total / config.tokens
    grid = patches.unflatten(1, (config.frequency_patches, config.time_patches))
    return grid.mean(dim=1) if strategy == "mean" else grid.transpose(1, 2).flatten(2)


def pool_scene(rows: Tensor, scene: str) -> Tensor:
    """Turn the rows of a clip into the embedding of the whole clip.

    Args:
        rows: (rows, d).
        scene: ``"mean"`` or ``"mean_std"``. The standard deviation is that of the rows themselves,
            divided by their number; 0 for a single row.

    Returns:
        (d,), or (2 d,) with the deviation.
    """
    mean = rows.mean(dim=0)
    return mean if scene == "mean" else torch.cat([mean, rows.std(dim=0, correction=0)])


# --- the HEAR functions ---------------------------------------------------------------------


@overload
def get_timestamp_embeddings(
    audio: Tensor | np.ndarray, model: HearModel
) -> tuple[Tensor, Tensor]: ...


@overload
def get_timestamp_embeddings(
    audio: Sequence[Tensor] | Sequence[np.ndarray], model: HearModel
) -> tuple[list[Tensor], list[Tensor]]: ...


def get_timestamp_embeddings(
    audio: Audio, model: HearModel
) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Embed clips over time.

    Args:
        audio: (n, samples), (n, channels, samples), or a list of (samples,) or (channels,
            samples) clips of any lengths. float32 or float64, numpy or torch, in [-1, 1], at
            ``model.sample_rate`` Hz. The number of channels is the layout: 1 mono, 2 binaural,
            4 first-order Ambisonic.
        model: what :func:`load_model` returned.

    Returns:
        Embeddings (n, rows, d) float32, and timestamps (n, rows) float32, the centre of each row
        in milliseconds. A row is the embedding of one time step. Both are on the model's device.
        For a list of clips, they are lists of (rows, d) and of (rows,), since clips may differ in
        their number of rows.

    Raises:
        AudioError: for audio of another type, rank or number of channels, without samples, or
            with values that are not finite. Also for embeddings that are not finite.

    Example::

        model = load_model("gram-tiny-untrained")
        noise = 0.1 * torch.randn(4, 2, model.sample_rate)  # four binaural clips of 1 s
        embeddings, timestamps = get_timestamp_embeddings(noise, model)
        embeddings.shape  # (4, rows, model.timestamp_embedding_size)
        timestamps[0, :3]  # the times of the first rows, in ms
    """
    clips = as_clips(audio)
    with torch.no_grad():
        embeddings = model.embed(clips)
    timestamps = [
        torch.tensor(model.plan(clip.shape[-1]).timestamps(), dtype=torch.float32).to(model.device)
        for clip in clips
    ]
    if isinstance(audio, (list, tuple)):
        return embeddings, timestamps
    return torch.stack(embeddings), torch.stack(timestamps)


def get_scene_embeddings(audio: Audio, model: HearModel) -> Tensor:
    """Embed whole clips: one embedding for each, made of its embeddings over time.

    It is their mean. A model that was loaded with ``scene="mean_std"`` adds their standard
    deviation.

    Args:
        audio: clips of one length as one array or tensor, (n, samples) or (n, channels, samples).
            Or a list of clips of any lengths, each (samples,) or (channels, samples). float32 or
            float64, numpy or torch, in [-1, 1], at ``model.sample_rate`` Hz. The number of channels
            is the layout: 1 mono, 2 binaural, 4 first-order Ambisonic.
        model: what :func:`load_model` returned.

    Returns:
        (n, d) float32 on the model's device, one vector for each clip, for a list too. d is
        ``model.scene_embedding_size``.

    Raises:
        AudioError: for audio of another type, rank or number of channels, without samples, or
            with values that are not finite. Also for embeddings that are not finite.

    Example::

        model = load_model("gram-tiny-untrained")
        left_right = torch.zeros(2, 32000)  # a binaural clip of 1 s, at model.sample_rate
        mono = torch.zeros(16000)
        get_scene_embeddings([left_right, mono], model).shape  # (2, model.scene_embedding_size)
    """
    with torch.no_grad():
        rows = model.embed(as_clips(audio))
    return torch.stack([pool_scene(each, model.options.scene) for each in rows])
