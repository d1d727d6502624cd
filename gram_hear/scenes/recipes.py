"""One clip in a scene: a recipe, drawn from the clip's seed, and the sound that is made of it.

A recipe is plain data. What a manifest says of a clip holds its recipe, and the clip is made of
nothing else: so :func:`rerender` gives the same samples, bit for bit (on one kind of processor,
with the same versions of the libraries; sums are done on one thread).
"""

import dataclasses
import hashlib
import json
import math
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gram_hear.audio.files import read_audio
from gram_hear.config import require_rate
from gram_hear.errors import AudioError, OptionError, TaskError, require_known
from gram_hear.jobs.workers import one_thread
from gram_hear.scenes.heads import load_head
from gram_hear.scenes.mixing import LARGEST_SNR, LEVEL, below_full_scale, mix, to_level
from gram_hear.scenes.noises import Noise, NoiseSet, open_noise
from gram_hear.scenes.rendering import render, tune
from gram_hear.scenes.rirs import RirSet, open_rirs
from gram_hear.scenes.rooms import Scene, draw_room_and_scene

FORMATS = {"binaural": "binaural", "ambisonics": "ambisonic"}  # in names of folders -> layouts
ONSET = 0.1  # of an RIR's peak: where the direct sound of one that does not say so begins
ORIGINS = ("source_sha256", "rirs_sha256", "noise_sha256", "head_sha256")  # keys of input hashes
SCENE, NOISE, START, SNR, RIR = range(5)  # streams of a clip's seed; see gram_hear.scenes


@dataclass(frozen=True)
class SceneSettings:
    """What clips are put into scenes with."""

    format: str = "binaural"  # or ambisonics (AmbiX)
    rate: int | None = None  # Hz of what is written; None is the highest of the task's own audio
    seed: int = 0  # what all scenes, noises and levels are drawn from
    snr: tuple[float, float] = (5.0, 40.0)  # dB; each clip's is drawn evenly between the two
    rirs: Path | None = None  # a set of RIRs; None simulates a room for each clip
    noise: Path | None = None  # a set of noises; None makes synthetic ones
    head: str = "kemar"  # whose ears hear, as load_head takes it

    def __post_init__(self) -> None:
        require_known("format", self.format, FORMATS)
        if self.rate is not None:
            require_rate(self.rate)
        if self.seed < 0:
            raise OptionError(f"The seed is {self.seed}; it must be 0 or more.")
        low, high = self.snr
        if not -LARGEST_SNR <= low <= high <= LARGEST_SNR:
            raise OptionError(
                f"The SNR is {low:g} to {high:g} dB; give a low and a high number of dB between "
                f"{-LARGEST_SNR:g} and {LARGEST_SNR:g}, in this order."
            )

    @property
    def layout(self) -> str:
        """The format by the name that layouts have elsewhere."""
        return FORMATS[self.format]


@dataclass(frozen=True)
class ClipRecipe:
    """What a clip in a scene is made of."""

    source: str  # the file of its sound
    source_rate: int  # Hz that this must have
    rate: int  # of what is made, as the layout
    layout: str
    seed: tuple[int, ...]  # what everything is drawn from
    snr: float  # dB
    head: str | None  # whose ears hear; None for an Ambisonic clip, and with a set of RIRs
    scene: dict[str, Any] | None  # as Scene.to_dict gives it; None with a set of RIRs
    rirs: str | None  # a set of RIRs
    index: int | None  # of the clip's scene in that set
    noise: str | None  # a set of noises; None makes synthetic ones


def clip_seed(seed: int, task: str, split: str, file: str) -> tuple[int, ...]:
    """Return four numbers below 2^32 that depend on nothing but these names and the seed."""
    digest = hashlib.sha256(json.dumps([seed, task, split, file]).encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))


def draw_recipe(
    settings: SceneSettings, rate: int, seed: tuple[int, ...], source: Path, source_rate: int
) -> ClipRecipe:
    """Draw what a clip is made of: a room of its own and positions in it, or a scene of a set.

    Of a set, scenes of the test rooms are drawn, or of all rooms where it has no splits.
    """
    scene = index = None
    if settings.rirs is None:
        scene = tune(draw_room_and_scene((*seed, SCENE))).to_dict()
    else:
        candidates = open_rir_set(str(settings.rirs), settings.layout, rate)[1]
        index = candidates[int(np.random.default_rng([*seed, RIR]).integers(len(candidates)))]
    simulated_ears = settings.rirs is None and settings.layout == "binaural"
    return ClipRecipe(
        source=str(source),
        source_rate=source_rate,
        rate=rate,
        layout=settings.layout,
        seed=seed,
        snr=float(np.random.default_rng([*seed, SNR]).uniform(*settings.snr)),
        head=settings.head if simulated_ears else None,
        scene=scene,
        rirs=None if settings.rirs is None else str(settings.rirs),
        index=index,
        noise=None if settings.noise is None else str(settings.noise),
    )


def follow(recipe: ClipRecipe) -> tuple[np.ndarray, dict[str, Any]]:
    """Make the sound of a recipe.

    The clip's first channel, resampled, is brought to -14 dBFS, convolved with the source's RIR
    and mixed with noise. Everything is advanced by the whole samples that the sound takes from the
    source to the listener. Where the peak exceeds 1, one gain over all channels brings it below.

    Returns:
        The sound, (channels, samples) float32 of the clip's own length, and what there is to say
        of it: plain data that holds the recipe.

    Raises:
        AudioError: for a sound that cannot be read, or holds NaN.
        SceneError: for RIRs or noises that cannot be read.
    """
    with one_thread():
        clip = _read(recipe)
        rirs, scene, rir = _room(recipe)
        noise, start = _noise(recipe, len(clip)) if len(rirs) > 1 else (None, 0)
        advance = _advance(rirs, scene, recipe.rate)
        sound, noise_gain = _mix(clip, rirs, noise, start, recipe, advance)
        sound, gain = below_full_scale(sound)
    head = recipe.head if recipe.head and os.path.isfile(recipe.head) else None
    facts = {
        **dataclasses.asdict(recipe),
        "source_sha256": _hash_file(recipe.source),
        "rirs_sha256": recipe.rirs and _hash_array(rirs),
        "noise_sha256": recipe.noise and noise and _hash_array(noise.audio),
        "head_sha256": head and _hash_file(head),
        "convention": "ambix" if recipe.layout == "ambisonic" else None,
        "scene": scene,
        "rir": rir,
        "advance": advance,
        "noise_drawn": noise and noise.describe(start),
        "noise_gain": noise_gain,
        "gain": gain,
        "silent": not clip.any(),
        "channels": len(sound),
        "samples": sound.shape[1],
        "sha256": hashlib.sha256(sound.tobytes()).hexdigest(),
    }
    return sound, facts


def rerender(
    entry: dict[str, Any],
    *,
    source: Path | None = None,
    rirs: Path | None = None,
    noise: Path | None = None,
) -> np.ndarray:
    """Make a clip again from what its manifest says.

    Args:
        entry: one line of a manifest.
        source, rirs, noise: where the sound and the sets are now, where they were moved.

    Returns:
        (channels, samples) float32: what the clip's file holds, bit for bit.

    Raises:
        TaskError: for an entry that is not whole, or a sound, an RIR or a noise that is another by
            now.
        AudioError, SceneError: for files that cannot be read.
    """
    moved = {"source": source, "rirs": rirs, "noise": noise}
    try:
        found = {field.name: entry[field.name] for field in dataclasses.fields(ClipRecipe)}
        found |= {key: str(path) for key, path in moved.items() if path is not None}
        recipe = ClipRecipe(**found | {"seed": tuple(found["seed"])})
        origins = {key: entry[key] for key in (*ORIGINS, "rir", "noise_drawn")}
        digest = entry["sha256"]
    except (KeyError, TypeError) as error:
        raise TaskError(f"This is no entry of a manifest: {error!r}.") from error
    sound, facts = follow(recipe)
    for key, origin in origins.items():
        if facts[key] != origin:
            raise TaskError(
                f"{recipe.source} would be made of something else than before: {key} is "
                f"{facts[key]!r} now, and was {origin!r}."
            )
    if facts["sha256"] != digest:
        warnings.warn(
            f"{recipe.source}: the clip differs in its last bits from what was made before, "
            "by another kind of processor or other versions of libraries.",
            stacklevel=2,
        )
    return sound


# --- parts ----------------------------------------------------------------------------------


def _read(recipe: ClipRecipe) -> np.ndarray:
    """Return a clip's first channel at the recipe's rate, (samples,) float32."""
    recording = read_audio(recipe.source, recipe.rate)
    if recording.file_rate != recipe.source_rate:
        raise AudioError(
            f"{recipe.source} has a sample rate of {recording.file_rate} Hz; by its folder it must "
            f"be {recipe.source_rate} Hz."
        )
    if not np.isfinite(recording.audio).all():
        raise AudioError(f"{recipe.source} holds NaN or infinite samples; repair the file.")
    samples = max(1, round(recording.duration * recipe.rate))
    first = recording.audio[0, :samples]
    return np.pad(first, (0, samples - len(first)))


def _room(recipe: ClipRecipe) -> tuple[np.ndarray, dict[str, Any], str | None]:
    """Return RIRs (1 + noise sources, channels, samples), what is known of them, and their name."""
    if recipe.rirs is not None:
        assert recipe.index is not None
        rirs, _ = open_rir_set(recipe.rirs, recipe.layout, recipe.rate)
        return *rirs.read(recipe.index), rirs.name(recipe.index)
    assert recipe.scene is not None
    # A head is checked before the first recipe is drawn, and what was made with it is made again.
    head = None if recipe.head is None else load_head(recipe.head, recipe.rate, check=False)
    rendered = render(Scene.from_dict(recipe.scene), recipe.layout, recipe.rate, head)
    return rendered.rirs, rendered.metadata, None


def _noise(recipe: ClipRecipe, samples: int) -> tuple[Noise, int]:
    """Return the noise of a clip, and where it starts: somewhere in the clip, if it is shorter."""
    noise = open_noise_set(recipe.noise, recipe.rate).draw((*recipe.seed, NOISE), samples)
    generator = np.random.default_rng([*recipe.seed, START])
    return noise, int(generator.integers(samples - len(noise.audio) + 1))


def _advance(rirs: np.ndarray, scene: dict[str, Any], rate: int) -> int:
    """Return after how many whole samples the direct sound arrives."""
    if delays := scene.get("direct_delay"):
        return math.floor(delays[0] * rate)
    loudness = np.abs(rirs[0]).max(axis=0)
    return int(np.argmax(loudness >= ONSET * loudness.max()))


def _mix(
    clip: np.ndarray,
    rirs: np.ndarray,
    noise: Noise | None,
    start: int,
    recipe: ClipRecipe,
    advance: int,
) -> tuple[np.ndarray, float]:
    """Return the mixture (channels, samples), advanced, and the gain that the noise got.

    So many samples more are mixed, with the noise later by as many, and the first ones are left
    off. To cut the RIRs instead would take away what reaches the nearer ear before the centre of
    the head.
    """
    responses = torch.tensor(rirs)[None]
    clips = F.pad(to_level(torch.from_numpy(clip))[None], (0, advance))
    if noise is None:
        return mix(clips, responses).audio[0, :, advance:].contiguous().numpy(), 0.0
    start += advance
    noises = noise.put(start, clips.shape[1], recipe.rate, LEVEL)
    mixed = mix(clips, responses, noises, [start], [len(noise.audio)], [recipe.snr])
    return mixed.audio[0, :, advance:].contiguous().numpy(), float(mixed.gain[0])


def _hash_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_array(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# --- sets -----------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def open_noise_set(path: str | None, rate: int) -> NoiseSet:
    """Open a set of noises, once."""
    return open_noise(None if path is None else Path(path), rate)


@lru_cache(maxsize=2)
def open_rir_set(path: str, layout: str, rate: int) -> tuple[RirSet, list[int]]:
    """Open a set of RIRs, once; return it with the indices of the scenes that may be drawn.

    They are of test rooms, or all where the set knows no splits. A set with splits but without a
    test split is an error.
    """
    rirs = open_rirs(Path(path), layout)
    if rirs.rate != rate:
        raise OptionError(
            f"The RIRs of {path} are at {rirs.rate} Hz, and the clips are to be at {rate} Hz; give "
            f"--rate {rirs.rate}."
        )
    return rirs, rirs.indices("test" if rirs.splits else None)
