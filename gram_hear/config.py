"""What a model is: frozen dataclasses, written as JSON and read back strictly.

Sizes that follow from others (tokens, patch values, hop in milliseconds) are properties,
so no number stands in two places.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gram_hear.errors import ConfigError, nearest

FORMAT = "gram-hear/1"

PUBLISHED_LOG_FLOOR = 1.1920929e-07  # float32 epsilon: what the published embeddings use
TRAINING_LOG_FLOOR = 1e-5  # what the published training of 1 and 2 channels used
AMBISONIC_LOG_FLOOR = 1e-6

# Layout -> channels of the audio, channels of the features (Ambisonic: 4 log-mels, 3 intensities).
LAYOUTS = {"mono": (1, 1), "binaural": (2, 2), "ambisonic": (4, 7)}
LAYOUT_OF_CHANNELS = {features: layout for layout, (_, features) in LAYOUTS.items()}
LAYOUT_OF_AUDIO = {audio: layout for layout, (audio, _) in LAYOUTS.items()}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(
            value > 0, f"{type(config).__name__}.{name} is {value}; it must be greater than 0."
        )


def _require_choice(config: object, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, name)
    _require(
        value in allowed,
        f"{type(config).__name__}.{name} is {value!r}; allowed are {', '.join(allowed)}."
        + nearest(value, allowed),
    )


@dataclass(frozen=True)
class FrontEndConfig:
    """Waveform to log-mel. Frequencies in Hz, ``n_fft`` and ``hop`` in samples."""

    layout: str = "binaural"  # mono, binaural, ambisonic (first order)
    log_floor: float = PUBLISHED_LOG_FLOOR  # added to the mel power before the logarithm
    sample_rate: int = 32000
    n_fft: int = 1024  # also the length of the Hann window
    hop: int = 320
    mels: int = 128
    f_min: float = 50.0
    f_max: float = 16000.0

    def __post_init__(self) -> None:
        _require_choice(self, "layout", tuple(LAYOUTS))
        _require_positive(self, "log_floor", "sample_rate", "n_fft", "hop", "mels", "f_max")
        _require(
            self.n_fft % 2 == 0 and self.sample_rate % 2 == 0 and math.isfinite(self.log_floor),
            f"FrontEndConfig: n_fft {self.n_fft} and sample_rate {self.sample_rate} must be even, "
            f"and log_floor {self.log_floor} finite.",
        )
        _require(
            0 <= self.f_min < self.f_max <= self.sample_rate / 2,
            f"FrontEndConfig: the mel bands go from f_min {self.f_min} to f_max {self.f_max} Hz; "
            f"they must rise and end at or below half of {self.sample_rate} Hz.",
        )

    @property
    def audio_channels(self) -> int:
        """Channels of the waveform: 1, 2 or 4."""
        return LAYOUTS[self.layout][0]

    @property
    def feature_channels(self) -> int:
        """Channels of the features: 1, 2, or 7 (4 log-mels and 3 intensities)."""
        return LAYOUTS[self.layout][1]


@dataclass(frozen=True)
class PatchConfig:
    """The rectangle of the log-mel that becomes one token."""

    mels: int = 16
    frames: int = 8

    def __post_init__(self) -> None:
        _require_positive(self, "mels", "frames")


@dataclass(frozen=True)
class EncoderConfig:
    """The backbone and its sizes. ``mlp_width`` is the hidden width of each block's MLP."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    backbone: str = "transformer"

    def __post_init__(self) -> None:
        _require_choice(self, "backbone", ("transformer",))
        _require_positive(self, "width", "depth", "heads", "mlp_width")
        _require(
            self.width % self.heads == 0,
            f"EncoderConfig: width {self.width} is not a multiple of {self.heads} heads.",
        )
        _require(
            self.width % 4 == 0,
            f"EncoderConfig: width {self.width} is not a multiple of 4, as sin-cos positions need.",
        )


@dataclass(frozen=True)
class DecoderConfig:
    """The masked autoencoder's decoder.

    ``windows`` holds, for each head, the length in tokens of the windows that it attends in;
    0 is global attention. An empty tuple is the plain decoder: every head global, and the CLS
    token kept in the sequence.
    """

    width: int = 512
    depth: int = 8
    heads: int = 8
    mlp_width: int = 2048
    windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_positive(self, "width", "depth", "heads", "mlp_width")
        _require(
            self.width % self.heads == 0 and self.width % 4 == 0,
            f"DecoderConfig: width {self.width} must be a multiple of 4 and of {self.heads} heads.",
        )
        _require(
            len(self.windows) in (0, self.heads),
            f"DecoderConfig: {len(self.windows)} windows for {self.heads} heads; "
            "give one for each head (0 = global), or none for the plain decoder.",
        )
        _require(
            all(window >= 0 for window in self.windows),
            f"DecoderConfig: windows {self.windows} must not be negative (0 = global).",
        )


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: front-end, patches, encoder, and the decoder where there is one."""

    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig | None = None
    window_frames: int = 200  # what the encoder sees at once
    window_fill: str = "zero"  # the part of a window past the clip: the value 0, or silence

    def __post_init__(self) -> None:
        _require_choice(self, "window_fill", ("zero", "silence"))
        _require_positive(self, "window_frames")
        _require(
            self.front_end.mels % self.patch.mels == 0,
            f"ModelConfig: {self.front_end.mels} mel bands do not divide into patches of "
            f"{self.patch.mels}.",
        )
        _require(
            self.window_frames % self.patch.frames == 0,
            f"ModelConfig: a window of {self.window_frames} frames does not divide into patches "
            f"of {self.patch.frames}.",
        )
        for window in self.decoder.windows if self.decoder else ():
            _require(
                window == 0 or self.tokens % window == 0,
                f"DecoderConfig: a window of {window} tokens does not divide the "
                f"{self.tokens} tokens of a clip window.",
            )

    @property
    def frequency_patches(self) -> int:
        """Rows of the patch grid (8 for frame patches, 1 for time patches)."""
        return self.front_end.mels // self.patch.mels

    @property
    def time_patches(self) -> int:
        """Columns of the patch grid: the embedding rows of one window (25 or 100)."""
        return self.window_frames // self.patch.frames

    @property
    def tokens(self) -> int:
        """Patches in a window, the CLS token not counted."""
        return self.frequency_patches * self.time_patches

    @property
    def patch_values(self) -> int:
        """Values in one patch over all feature channels."""
        return self.front_end.feature_channels * self.patch.mels * self.patch.frames

    @property
    def patching(self) -> str:
        """``"time"`` where one patch holds every mel band, else ``"frame"``."""
        return "time" if self.frequency_patches == 1 else "frame"

    @property
    def hop_ms(self) -> float:
        """Milliseconds from one embedding row to the next (80 or 20)."""
        return 1000 * self.patch.frames * self.front_end.hop / self.front_end.sample_rate

    def to_json(self) -> str:
        """Write the configuration as JSON, marked with the format's name."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read what :meth:`to_json` wrote; an unknown key or a wrong type is a ConfigError."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"The model configuration is not JSON: {error}.") from error
        _require(isinstance(data, dict), "The model configuration must be a JSON object.")
        given = data.pop("format", None)
        _require(
            given == FORMAT,
            f"The model configuration has format {given!r}; this version reads {FORMAT!r}. "
            "A newer gram-hear may be needed.",
        )
        return _build(cls, data, "model")


_Config = TypeVar("_Config")


def _build(cls: type[_Config], data: Any, path: str) -> _Config:
    """Make the dataclass ``cls`` from parsed JSON, checking every key and type below ``path``."""
    _require(
        isinstance(data, dict),
        f"Configuration '{path}' must be an object, not a {type(data).__name__}.",
    )
    hints = typing.get_type_hints(cls)
    for key in data:
        _require(
            key in hints,
            f"Configuration '{path}' has the unknown key {key!r}; allowed are "
            f"{', '.join(hints)}." + nearest(key, hints),
        )
    missing = [name for name in hints if name not in data]
    _require(not missing, f"Configuration '{path}' lacks {', '.join(missing)}; it must be whole.")
    return cls(**{key: _parse(hints[key], value, f"{path}.{key}") for key, value in data.items()})


def _parse(hint: Any, value: Any, path: str) -> Any:
    """Check one JSON value against its type hint; build nested dataclasses and tuples."""
    if isinstance(hint, types.UnionType):  # the only unions here are "something or None"
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple:
        _require(isinstance(value, list), f"Configuration '{path}' must be a list.")
        item = typing.get_args(hint)[0]
        return tuple(_parse(item, each, f"{path}[{i}]") for i, each in enumerate(value))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    _require(
        isinstance(value, hint) and not isinstance(value, bool),
        f"Configuration '{path}' is {value!r}; it must be of type {hint.__name__}.",
    )
    return value


SIZES: dict[str, tuple[EncoderConfig, DecoderConfig]] = {
    "tiny": (
        EncoderConfig(width=192, depth=12, heads=3, mlp_width=768),
        DecoderConfig(width=192, depth=4, heads=8, mlp_width=768),
    ),
    "small": (EncoderConfig(width=384, depth=12, heads=6, mlp_width=1536), DecoderConfig()),
    "base": (EncoderConfig(), DecoderConfig()),
}
PATCHINGS: dict[str, tuple[PatchConfig, tuple[int, ...]]] = {
    "frame": (PatchConfig(mels=16, frames=8), (2, 5, 10, 25, 50, 100, 0, 0)),
    "time": (PatchConfig(mels=128, frames=2), (2, 5, 10, 25, 50, 0, 0, 0)),
}


def named_config(size: str, channels: int, patching: str = "frame") -> ModelConfig:
    """Return a configuration for a new model.

    Args:
        size: ``"tiny"`` (width 192), ``"small"`` (384) or ``"base"`` (768, as published).
        channels: feature channels: 1 (mono), 2 (binaural) or 7 (first-order Ambisonics).
        patching: ``"frame"`` (16 mel x 8 frames) or ``"time"`` (128 mel x 2 frames).

    The multi-window decoder is the published one of that patching. New models fill the part of
    a window past the clip with silence and take the floor of the published training.
    """
    _require(size in SIZES, f"Unknown size {size!r}; allowed are {', '.join(SIZES)}.")
    _require(
        channels in LAYOUT_OF_CHANNELS,
        f"No model has {channels!r} feature channels; allowed are 1 (mono), 2 (binaural) and "
        "7 (first-order Ambisonics: 4 log-mels and 3 intensities).",
    )
    _require(
        patching in PATCHINGS,
        f"Unknown patching {patching!r}; allowed are {', '.join(PATCHINGS)}.",
    )
    encoder, decoder = SIZES[size]
    patch, windows = PATCHINGS[patching]
    layout = LAYOUT_OF_CHANNELS[channels]
    floor = AMBISONIC_LOG_FLOOR if layout == "ambisonic" else TRAINING_LOG_FLOOR
    return ModelConfig(
        front_end=FrontEndConfig(layout=layout, log_floor=floor),
        patch=patch,
        encoder=encoder,
        decoder=dataclasses.replace(decoder, windows=windows),
        window_fill="silence",
    )
