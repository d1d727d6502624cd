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
from typing import Any, TypeAlias, TypeVar

from gram_hear.errors import ConfigError, OptionError, allowed, short
from gram_hear.foreign import parse_json

FORMAT = "gram-hear/1"

PUBLISHED_LOG_FLOOR = 1.1920929e-07  # float32 epsilon: what the published embeddings use
TRAINING_LOG_FLOOR = 1e-5  # what the published training of 1 and 2 channels used
AMBISONIC_LOG_FLOOR = 1e-6

# Sample rates in Hz, least and most.
SOUND_RATES = (1000, 1_000_000)  # of files; ultrasound is recorded at up to 1 MHz
RIR_RATES = (8000, 192_000)  # of heads, RIRs, and the sound that is put into rooms or trained on

LARGEST = 100_000  # any size of a model; above all real ones, and below what breaks a machine
LIMITS = {  # of sizes that cost more, or stand for something else
    "sample_rate": SOUND_RATES[1],
    "f_max": SOUND_RATES[1],
    "n_fft": 16_384,
    "mels": 512,
    "depth": 1_000,
    "heads": 256,
}
LARGEST_CONFIG = 1 << 16  # bytes of a configuration

# Raised when embeddings change, if only the default ones: old and new are not taken for the same.
EMBEDDINGS = 2  # 2: last windows are moved back, or filled with the clip again

# Layout -> channels of the audio, channels of the features (Ambisonic: 4 log-mels, 3 intensities).
LAYOUTS = {"mono": (1, 1), "binaural": (2, 2), "ambisonic": (4, 7)}
LAYOUT_OF_CHANNELS = {features: layout for layout, (_, features) in LAYOUTS.items()}
AUDIO_CHANNELS = {layout: audio for layout, (audio, _) in LAYOUTS.items()}
LAYOUT_OF_AUDIO = {audio: layout for layout, (audio, _) in LAYOUTS.items()}


def require_rate(rate: float, rates: tuple[int, int] = RIR_RATES) -> None:
    """Raise an OptionError for a sample rate out of range, or one that is no whole number."""
    least, most = rates
    if isinstance(rate, bool) or not least <= rate <= most or int(rate) != rate:
        raise OptionError(f"The rate is {rate}; it must be {least} to {most} Hz, a whole number.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value, limit = getattr(config, name), LIMITS.get(name, LARGEST)
        _require(
            0 < value <= limit,
            f"{type(config).__name__}.{name} is {value}; it must be greater than 0 and at most "
            f"{limit:,}.",
        )


def _require_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    value, owner = getattr(config, name), type(config).__name__
    _require(value in choices, f"{owner}.{name} is {short(value)}; {allowed(value, choices)}")


@dataclass(frozen=True)
class FrontEndConfig:
    """How a waveform becomes log-mel features.

    Attributes:
        layout: ``"mono"``, ``"binaural"`` or ``"ambisonic"`` (first order).
        log_floor: added to the mel power before the logarithm.
        sample_rate: of the waveform, Hz.
        n_fft: the length of a frame, of its Hann window and of its transform, samples.
        hop: samples from one frame to the next.
        mels: the number of mel bands.
        f_min: where the lowest band begins, Hz.
        f_max: where the highest band ends, Hz.

    Raises:
        ConfigError: for values that describe no front-end.
    """

    layout: str = "binaural"
    log_floor: float = PUBLISHED_LOG_FLOOR
    sample_rate: int = 32000
    n_fft: int = 1024
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
            self.hop <= self.n_fft,
            f"FrontEndConfig: hop {self.hop} is longer than a frame of n_fft {self.n_fft} samples; "
            "sound between the frames would be lost.",
        )
        _require(
            0 <= self.f_min < self.f_max <= self.sample_rate / 2,
            f"FrontEndConfig: the mel bands go from f_min {self.f_min} to f_max {self.f_max} Hz; "
            f"they must rise and end at or below half of {self.sample_rate} Hz.",
        )

    @property
    def audio_channels(self) -> int:
        """The number of channels of the waveform, 1, 2 or 4."""
        return LAYOUTS[self.layout][0]

    @property
    def feature_channels(self) -> int:
        """The number of channels of the features, 1, 2, or 7 (4 log-mels and 3 intensities)."""
        return LAYOUTS[self.layout][1]


@dataclass(frozen=True)
class PatchConfig:
    """The rectangle of the log-mel that becomes one token."""

    mels: int = 16
    frames: int = 8

    def __post_init__(self) -> None:
        _require_positive(self, "mels", "frames")


def _require_positions(config: "EncoderConfig") -> None:
    _require(
        config.width % 4 == 0,
        f"{type(config).__name__}: width {config.width} is not a multiple of 4, as sin-cos "
        "positions need.",
    )


@dataclass(frozen=True)
class TransformerConfig:
    """GRAM-T's encoder. ``mlp_width`` is the hidden width of each block's MLP."""

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
            f"TransformerConfig: width {self.width} is not a multiple of {self.heads} heads.",
        )
        _require_positions(self)


@dataclass(frozen=True)
class Mamba2Config:
    """GRAM-M's encoder with Mamba-2 mixers; the defaults are the published ones."""

    width: int = 768
    depth: int = 24
    state: int = 128  # of each channel of a head
    head_width: int = 64
    expansion: int = 2  # the mixer's inner width over the width
    convolution: int = 4  # taps of the causal convolution
    backbone: str = "mamba2"

    def __post_init__(self) -> None:
        _require_choice(self, "backbone", ("mamba2",))
        _require_positive(self, "width", "depth", "state", "head_width", "expansion", "convolution")
        _require(
            self.inner_width % self.head_width == 0,
            f"Mamba2Config: the inner width {self.inner_width} ({self.expansion} x {self.width}) "
            f"is not a multiple of head_width {self.head_width}.",
        )
        _require_positions(self)

    @property
    def inner_width(self) -> int:
        """Channels inside a mixer."""
        return self.expansion * self.width

    @property
    def heads(self) -> int:
        """Heads of a mixer, each with a decay of its own."""
        return self.inner_width // self.head_width


@dataclass(frozen=True)
class Mamba1Config:
    """GRAM-M's encoder with Mamba-1 mixers; the defaults are those of the paper."""

    width: int = 768
    depth: int = 24
    state: int = 24  # of each channel
    expansion: int = 3  # the mixer's inner width over the width
    convolution: int = 4  # taps of the causal convolution
    step_rank: int = 48  # rank of the projection that gives the step dt: a 16th of the width
    backbone: str = "mamba1"

    def __post_init__(self) -> None:
        _require_choice(self, "backbone", ("mamba1",))
        _require_positive(self, "width", "depth", "state", "expansion", "convolution", "step_rank")
        _require_positions(self)

    @property
    def inner_width(self) -> int:
        """Channels inside a mixer."""
        return self.expansion * self.width


EncoderConfig: TypeAlias = TransformerConfig | Mamba2Config | Mamba1Config
BACKBONES: dict[str, type[EncoderConfig]] = {
    "transformer": TransformerConfig,
    "mamba2": Mamba2Config,
    "mamba1": Mamba1Config,
}


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
            f"DecoderConfig: windows {short(self.windows)} must not be negative (0 = global).",
        )


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: front-end, patches, encoder, and the decoder where there is one."""

    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    encoder: EncoderConfig = field(default_factory=TransformerConfig)
    decoder: DecoderConfig | None = None
    window_frames: int = 200  # what the encoder sees at once
    window_fill: str = "zero"  # past a clip's end in training: the value 0, or silence

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
    def family(self) -> str:
        """The paper's name: ``"GRAM-T"`` (Transformer) or ``"GRAM-M"`` (Mamba)."""
        return "GRAM-T" if isinstance(self.encoder, TransformerConfig) else "GRAM-M"

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
    def from_json(cls, text: str | bytes) -> "ModelConfig":
        """Read what :meth:`to_json` wrote; an unknown key or a wrong type is a ConfigError."""
        data = parse_json(text, "The model configuration", ConfigError, LARGEST_CONFIG)
        _require(isinstance(data, dict), "The model configuration must be a JSON object.")
        given = data.pop("format", None)
        _require(
            given == FORMAT,
            f"The model configuration has format {short(given)}; this version reads "
            f"{FORMAT!r}. A newer gram-hear may be needed.",
        )
        return _build(cls, data, "model")


_Config = TypeVar("_Config")


def _build(cls: type[_Config], data: Any, path: str) -> _Config:
    """Make the dataclass ``cls`` from parsed JSON, checking every key and type below ``path``."""
    _require_object(data, path)
    hints = typing.get_type_hints(cls)
    for key in data:
        _require(
            key in hints,
            f"Configuration '{path}' has the unknown key {short(key)}; {allowed(key, hints)}",
        )
    missing = [name for name in hints if name not in data]
    _require(not missing, f"Configuration '{path}' lacks {', '.join(missing)}; it must be whole.")
    return cls(**{key: _parse(hints[key], value, f"{path}.{key}") for key, value in data.items()})


def _require_object(data: Any, path: str) -> None:
    _require(
        isinstance(data, dict),
        f"Configuration '{path}' must be an object, not a {type(data).__name__}.",
    )


def _backbone_class(data: Any, path: str) -> type[EncoderConfig]:
    """Return the configuration class of the backbone that parsed JSON names."""
    _require_object(data, path)
    backbone = data.get("backbone")
    _require(
        isinstance(backbone, str) and backbone in BACKBONES,
        f"Configuration '{path}' has backbone {short(backbone)}; {allowed(backbone, BACKBONES)}",
    )
    return BACKBONES[typing.cast(str, backbone)]


def _parse(hint: Any, value: Any, path: str) -> Any:
    """Check one JSON value against its type hint; build nested dataclasses and tuples."""
    if hint == EncoderConfig:
        return _build(_backbone_class(value, path), value, path)
    if isinstance(hint, types.UnionType):  # the other unions here are "something or None"
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
        f"Configuration '{path}' is {short(value)}; it must be of type {hint.__name__}.",
    )
    return value


WIDTHS = {"tiny": 192, "small": 384, "base": 768}
DECODERS = {
    "tiny": DecoderConfig(width=96, depth=2, heads=8, mlp_width=384),
    "small": DecoderConfig(),
    "base": DecoderConfig(),
}
PATCHINGS: dict[str, tuple[PatchConfig, tuple[int, ...]]] = {
    "frame": (PatchConfig(mels=16, frames=8), (2, 5, 10, 25, 50, 100, 0, 0)),
    "time": (PatchConfig(mels=128, frames=2), (2, 5, 10, 25, 50, 0, 0, 0)),
}


def named_encoder(size: str, backbone: str = "transformer") -> EncoderConfig:
    """Return the encoder of a named size: 12 Transformer layers, or 24 Mamba layers."""
    _require(size in WIDTHS, f"Unknown size {size!r}; {allowed(size, WIDTHS)}")
    _require(
        backbone in BACKBONES, f"Unknown backbone {backbone!r}; {allowed(backbone, BACKBONES)}"
    )
    width = WIDTHS[size]
    if backbone == "transformer":
        return TransformerConfig(width=width, heads=width // 64, mlp_width=4 * width)
    if backbone == "mamba2":
        return Mamba2Config(width=width)
    return Mamba1Config(width=width, step_rank=width // 16)


def named_config(
    size: str, channels: int, patching: str = "frame", backbone: str = "transformer"
) -> ModelConfig:
    """Return a configuration for a new model.

    Args:
        size: ``"tiny"`` (width 192), ``"small"`` (384) or ``"base"`` (768, as published).
        channels: feature channels: 1 (mono), 2 (binaural) or 7 (first-order Ambisonic).
        patching: ``"frame"`` (16 mel x 8 frames) or ``"time"`` (128 mel x 2 frames).
        backbone: ``"transformer"`` (GRAM-T), ``"mamba2"`` (GRAM-M) or ``"mamba1"`` (GRAM-M too).

    Returns:
        The configuration of front-end, patches, encoder and decoder. The decoder attends over
        several windows as the published one of that patching does. The log floor is that of the
        published training, 1e-5, or 1e-6 for Ambisonic audio. Past the end of a clip the model
        hears silence in training.

    Raises:
        ConfigError: for a size, a number of channels, a patching or a backbone that does not exist.

    Example::

        config = named_config("base", channels=2)
    """
    encoder = named_encoder(size, backbone)
    _require(
        channels in LAYOUT_OF_CHANNELS,
        f"No model has {channels!r} feature channels; allowed are 1 (mono), 2 (binaural) and "
        "7 (first-order Ambisonic: 4 log-mels and 3 intensities).",
    )
    _require(
        patching in PATCHINGS,
        f"Unknown patching {patching!r}; {allowed(patching, PATCHINGS)}",
    )
    patch, windows = PATCHINGS[patching]
    layout = LAYOUT_OF_CHANNELS[channels]
    floor = AMBISONIC_LOG_FLOOR if layout == "ambisonic" else TRAINING_LOG_FLOOR
    return ModelConfig(
        front_end=FrontEndConfig(layout=layout, log_floor=floor),
        patch=patch,
        encoder=encoder,
        decoder=dataclasses.replace(DECODERS[size], windows=windows),
        window_fill="silence",
    )
