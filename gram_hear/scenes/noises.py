"""Sets of noises: synthetic, a folder of sound files, or tars of sound files or ``.npy`` arrays."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram_hear.audio.archives import NPY, NPY_RATE, Member, find_sounds, first_channel
from gram_hear.audio.files import SoundReader, resample
from gram_hear.audio.synthesis import synthesise_noise
from gram_hear.errors import AudioError, OptionError, SceneError
from gram_hear.scenes.mixing import fade, pad_to_clips, to_level


@dataclass(frozen=True, eq=False)
class Noise:
    """A noise for a clip."""

    audio: np.ndarray  # (m,) float32, at most as long as the clip
    whole: bool  # whether it is a whole sound; False is an excerpt of a longer one
    name: str  # of the file, or the kind of a synthetic noise
    offset: int  # the sample of the sound at which the excerpt starts, at the set's rate

    def put(self, start: int, samples: int, rate: int, level: float | None = None) -> Tensor:
        """Return the noise, faded, as it sounds from ``start`` on in a clip: (1, samples).

        Before, it is brought to ``level``, in dBFS; None leaves it as it is.
        """
        sound = torch.from_numpy(self.audio)[None]
        if level is not None:
            sound = to_level(sound, level)
        faded = fade(sound, [sound.shape[1]], [self.whole], rate)
        return pad_to_clips(faded, [start], [sound.shape[1]], samples)

    def describe(self, start: int) -> dict[str, Any]:
        """Return what there is to say of the noise, as plain data."""
        facts = {"name": self.name, "offset": self.offset, "whole": self.whole}
        return {**facts, "start": start, "samples": len(self.audio)}


class NoiseSet:
    """A set of noises to draw from; this class makes synthetic ones.

    Example::

        noise = open_noise(Path("noises"), 32000).draw([1], samples=64000).audio

    Attributes:
        rate: Hz of the noises that are drawn.
        name: the path that the set was opened from, or "synthetic".
    """

    def __init__(self, name: str, rate: int) -> None:
        self.name = name
        self.rate = rate

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the set as plain data for manifests; it leaves out its path."""
        return {"kind": "synthetic"}

    def draw(self, seed: Sequence[int], samples: int) -> Noise:
        """Draw a noise for a clip.

        Args:
            seed: numbers of 0 or more. The draw depends on them and the set alone.
            samples: the length of the clip; of a longer sound a random excerpt is taken.

        Raises:
            SceneError: for a sound that cannot be read; the message names it.
        """
        if samples < 1:
            raise OptionError(f"A noise for {samples} samples was asked for; give at least 1.")
        made = synthesise_noise(seed, samples, self.rate)
        return Noise(made.audio, False, made.kind, 0)


class RecordedNoises(NoiseSet):
    """Sound files, in folders or tars; the first channel of each, resampled."""

    def __init__(self, path: Path, rate: int, sounds: Sequence[Path | Member]) -> None:
        super().__init__(str(path), rate)
        self.folder = path if path.is_dir() else path.parent
        self.sounds = sounds

    def __len__(self) -> int:
        return len(self.sounds)

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of the set: the names of its sounds, hashed, and their number."""
        names = "\n".join(self._name(sound) for sound in self.sounds)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return {"kind": "recorded", "sounds": len(self.sounds), "names_sha256": digest}

    def draw(self, seed: Sequence[int], samples: int) -> Noise:
        """Draw a sound, or an excerpt where it is longer than the clip; as :class:`NoiseSet`."""
        if samples < 1:
            raise OptionError(f"A noise for {samples} samples was asked for; give at least 1.")
        generator = np.random.default_rng([*seed, 0])
        sound = self.sounds[int(generator.integers(len(self.sounds)))]
        audio = _read(sound, self.rate)
        if len(audio) <= samples:
            return Noise(audio, True, self._name(sound), 0)
        offset = int(generator.integers(len(audio) - samples + 1))
        return Noise(audio[offset : offset + samples].copy(), False, self._name(sound), offset)

    def _name(self, sound: Path | Member) -> str:
        if isinstance(sound, Path):
            return sound.relative_to(self.folder).as_posix()
        return f"{sound.path.relative_to(self.folder).as_posix()}/{sound.name}"


def open_noise(path: str | Path | None, rate: int) -> NoiseSet:
    """Open a set of noises, for :func:`gram_hear.make_scene`.

    Example::

        noise = open_noise(None, 32000)

    Args:
        path: a folder, which is searched for sound files and tars. Or one tar, or one sound file.
            Or None, for synthetic noises. ``.npy`` arrays in tars are (samples,) or
            (channels, samples) at 32 kHz.
        rate: Hz, to which the noises are resampled.

    Raises:
        SceneError: if there is no sound, and for tars that cannot be read or hold only other files.
        OptionError: for a rate below 1.
    """
    if rate < 1:
        raise OptionError(f"The rate is {rate} Hz; it must be at least 1.")
    if path is None:
        return NoiseSet("synthetic", rate)
    path = Path(path)
    sounds = list(find_sounds(path))
    if not sounds:
        raise SceneError(
            f"{path} holds no noise; it must hold sound files (.wav, .flac, .mp3, ...), or tars, "
            "not compressed, of these or of .npy arrays."
        )
    return RecordedNoises(path, rate, sounds)


# --- reading --------------------------------------------------------------------------------


def _read(sound: Path | Member, rate: int) -> np.ndarray:
    """Return the first channel of a sound, resampled: (samples,) float32."""
    if isinstance(sound, Member) and sound.name.lower().endswith(NPY):
        audio = resample(first_channel(sound), NPY_RATE, rate)
    else:
        try:
            with SoundReader(sound, rate, any_channels=True) as reader:
                audio = np.concatenate([block[0] for block in reader.blocks()])
        except AudioError as error:
            raise SceneError(f"A noise cannot be used: {error}") from error
    if len(audio) == 0:
        raise SceneError(f"{sound} holds no samples; leave it out of the set.")
    if not np.isfinite(audio).all():
        raise SceneError(f"{sound} holds NaN or infinite samples; leave it out of the set.")
    return audio
