"""Training samples: a clip with its room, noise, windows and masks, all drawn from a seed.

Samples form one endless stream. Sample ``i`` depends on the seed and ``i`` alone, so batches are
the same whatever the number of processes, devices and restarts. Epochs follow one another in the
stream. Each holds every clip once, in an order of its own. A batch may hold the last clips of one
epoch and the first of the next. Where clips lie in shards, an epoch goes through them by groups.

Nothing is mixed here: a sample holds the parts of a mixture, and the device mixes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from gram_hear.config import AUDIO_CHANNELS, FrontEndConfig
from gram_hear.errors import AudioError, GramError, OptionError, SceneError, require_known
from gram_hear.nn.masks import MASKS, draw_masks, split_mask
from gram_hear.pretrain.clips import ClipSet, Order
from gram_hear.pretrain.pools import Rooms
from gram_hear.scenes.mixing import LARGEST_SNR, LEVEL, NOISE_GAINS, to_level
from gram_hear.scenes.noises import Noise, NoiseSet

SHORTEST = 0.1  # seconds of a clip: more than one frame of any front-end
AHEAD = 8  # after this fraction (1 / AHEAD) of a group, the shards of the next are fetched
TRIES = 100  # after so many unreadable sounds in a row the set is given up
LARGEST_SEED = 2**32 - 1  # NumPy splits longer seeds into words, which would collide with streams
ORDER, CLIP, SCENE, NOISE, WINDOWS = range(5)  # the streams of random numbers of a seed

Sample = dict[str, Tensor]
Read = TypeVar("Read")


@dataclass(frozen=True)
class SampleRecipe:
    """The options of samples; the defaults are the published recipe for 16 x 8 patches.

    They are those of :class:`gram_hear.pretrain.datamodule.PretrainingData`, and of the model
    ``sample_rate`` in Hz, the frames of a window, its number of tokens, and the rows of their grid.
    ``level`` is the RMS of a clip, or of the excerpt of a longer sound, before zero-padding. Noises
    are brought to it too, but not where each channel gets its own noise gain.
    """

    seconds: float = 10.0
    sample_rate: int = 32000
    level: float = LEVEL
    snr: tuple[float, float] = (5.0, 40.0)
    noise_gain: str = "scene"
    clean_fraction: float = 0.0
    windows: int = 16
    window_frames: int = 200
    clip_frames: int = 1024
    masked: int = 160
    masks: str = "random"
    tokens: int = 200
    frequency_patches: int = 8

    def __post_init__(self) -> None:
        if not (SHORTEST <= self.seconds < math.inf and self.sample_rate >= 8000):
            raise OptionError(
                f"seconds is {self.seconds} and sample_rate {self.sample_rate}; a clip needs at "
                f"least {SHORTEST} s, and 8000 Hz."
            )
        if not math.isfinite(self.level):
            raise OptionError(f"level is {self.level} dBFS; give a finite number, such as {LEVEL}.")
        if len(self.snr) != 2 or not -LARGEST_SNR <= self.snr[0] <= self.snr[1] <= LARGEST_SNR:
            raise OptionError(
                f"snr is {self.snr}; give a low and a high number of dB between {-LARGEST_SNR:g} "
                f"and {LARGEST_SNR:g}, in this order."
            )
        require_known("noise gain", self.noise_gain, NOISE_GAINS)
        if not 0 <= self.clean_fraction <= 1:
            raise OptionError(f"clean_fraction is {self.clean_fraction}; it must be 0 to 1.")
        self._check_windows()

    def _check_windows(self) -> None:
        if self.windows < 1 or not 1 <= self.window_frames <= self.clip_frames:
            raise OptionError(
                f"{self.windows} windows of {self.window_frames} frames were asked for, of clips "
                f"of {self.clip_frames} frames; at least one window is needed, and windows no "
                "longer than clip_frames."
            )
        if self.frames > self.clip_frames:
            raise OptionError(
                f"A clip of {self.seconds:g} s has {self.frames} frames, and clip_frames is "
                f"{self.clip_frames}; raise clip_frames, or lower seconds."
            )
        if not 1 <= self.masked < self.tokens:
            raise OptionError(
                f"masked is {self.masked} of {self.tokens} tokens; at least one must be masked, "
                "and one must stay visible."
            )
        require_known("masks", self.masks, MASKS)

    @property
    def samples(self) -> int:
        """The samples of a clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def frames(self) -> int:
        """The frames of a clip, before padding."""
        return 1 + self.samples // FrontEndConfig.hop


class SampleSet(Dataset[Sample]):
    """The endless stream of samples; its length is that of an epoch.

    Example::

        samples = SampleSet(open_clips("clips"), open_rooms(None, "binaural", 32000),
                            open_noises(None, 32000), SampleRecipe(), "binaural", seed=0)
        samples[0]["clip"].shape, samples[0]["masks"].shape  # (320000,), (16, 200)
    """

    def __init__(
        self,
        clips: ClipSet,
        rooms: Rooms | None,
        noises: NoiseSet | None,
        recipe: SampleRecipe,
        layout: str,
        seed: int,
    ) -> None:
        """Check that everything fits, and read the first sample.

        Args:
            clips: the sounds to learn from.
            rooms: of this layout and the recipe's rate; None where all clips stay dry.
            noises: noises at the recipe's rate; None for scenes without noise.
            recipe: the options of samples.
            layout: ``"mono"``, ``"binaural"`` or ``"ambisonic"``.
            seed: of everything that is drawn, 0 to 2^32 - 1.

        Raises:
            OptionError: for options that contradict each other, or are out of range.
            SceneError: for rooms or noises that do not fit.
            AudioError: where no clip can be read.
        """
        self.clips = clips
        self.rooms = rooms
        self.noises = noises
        self.recipe = recipe
        self.layout = layout
        self.seed = seed
        self._orders: dict[int, Order] = {}
        self._ahead = (0, -1)  # the epoch and group after which the next was fetched
        self._check()
        self[0]
        self.clips.close()  # those that load data open them anew

    def _check(self) -> None:
        rate = self.recipe.sample_rate
        require_known("layout", self.layout, AUDIO_CHANNELS)
        if not 0 <= self.seed <= LARGEST_SEED:
            raise OptionError(f"The seed is {self.seed}; it must be 0 to {LARGEST_SEED}.")
        if len(self.clips) == 0:
            raise SceneError("The set of clips is empty.")
        if self.rooms is None:
            if self.recipe.clean_fraction < 1:
                raise OptionError(
                    f"clean_fraction is {self.recipe.clean_fraction:g}, and no rooms were given "
                    "for the other clips. Give RIRs, or set it to 1: all clips stay dry."
                )
        elif self.rooms.layout != self.layout or self.rooms.rate != rate:
            raise SceneError(
                f"The RIRs are {self.rooms.layout} at {self.rooms.rate} Hz, and the model learns "
                f"from {self.layout} clips at {rate} Hz. Give RIRs of that layout and rate."
            )
        if self.noises is not None and self.noises.rate != rate:
            raise SceneError(
                f"The noises are at {self.noises.rate} Hz, and clips at {rate} Hz. Open them at "
                "that rate."
            )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> Sample:
        """Draw sample ``i`` of the stream.

        Returns:
            index: () int64, ``i``.
            clip: (samples,) float32 at the recipe's level, zero-padded.
            dry: () bool, whether the clip stays without room and noise.
            rirs: (2, channels, m) float32, of two ears or in AmbiX: that of the source, then the
                sum of those of all noise sources, as every noise sounds from all of them. Of no
                samples where dry.
            noise: (samples,) float32, faded, silent before and after it; zeros where dry.
            start, length: () int64, the samples in which the noise sounds; length 0 for none.
            snr: () float32, dB.
            window_starts: (windows,) int64, the first frame of each window.
            masks: (windows, tokens) bool, True where a token is hidden.
            visible, hidden: (windows, kept) and (windows, masked) int64, the tokens that ``masks``
                leaves visible, and those that it hides.
            skipped: () int64, how many sounds and rooms could not be read, so that others were
                drawn instead.

        Raises:
            AudioError: where :data:`TRIES` clips, rooms or noises in a row cannot be read.
        """
        if i < 0:
            raise IndexError(f"Sample {i} was asked for; the stream begins at 0.")
        clip, skipped = self._draw_clip(i)
        self._fetch_ahead(i)
        generator = self._generator(SCENE, i)
        dry, snr, room = self._draw_scene(generator)
        sample = {
            "index": torch.tensor(i),
            "clip": clip,
            "dry": torch.tensor(dry),
            "snr": torch.tensor(snr, dtype=torch.float32),
        }
        sample["rirs"], unread = self._read_room(room)
        noise, unheard = self._draw_noise(generator, i, dry)
        starts, masks = self._draw_windows(i)
        visible, hidden = split_mask(masks)
        windows = {"window_starts": starts, "masks": masks, "visible": visible, "hidden": hidden}
        return sample | noise | windows | {"skipped": torch.tensor(skipped + unread + unheard)}

    def clip_of(self, i: int, later: int = 0) -> int:
        """Return the number of sample ``i``'s clip, or of one ``later`` in the epoch's order."""
        epoch, at = divmod(i, len(self.clips))
        return int(self._order(epoch).clips[(at + later) % len(self.clips)])

    def _order(self, epoch: int) -> Order:
        if epoch not in self._orders:
            order = self.clips.order(self._generator(ORDER, epoch))
            self._orders = {old: self._orders[old] for old in [*self._orders][-1:]}
            self._orders[epoch] = order
        return self._orders[epoch]

    def _fetch_ahead(self, i: int) -> None:
        """Let the shards of the next group be fetched, once a part of this one was drawn."""
        if self.clips.open_shards == 0:
            return
        epoch, at = divmod(i, len(self.clips))
        order = self._order(epoch)
        group = order.group_at(at)
        start, end = order.start_of(group), int(order.ends[group])
        if (epoch, group) <= self._ahead or (at - start) * AHEAD < end - start:
            return
        self._ahead = (epoch, group)
        is_last = group + 1 == len(order.ends)
        later, following = (self._order(epoch + 1), 0) if is_last else (order, group + 1)
        self.clips.fetch_ahead(later.clips_of(following))

    def _generator(self, stream: int, i: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, i])

    def _draw_clip(self, i: int) -> tuple[Tensor, int]:
        """Return a clip (samples,) at its level, and how many could not be read."""
        samples, rate = self.recipe.samples, self.recipe.sample_rate

        def read(attempt: int) -> np.ndarray:
            return self.clips.read(self.clip_of(i, attempt), samples, rate, [self.seed, CLIP, i])

        audio, skipped = _first_readable("clips", len(self.clips), read)
        clip = to_level(torch.from_numpy(audio), self.recipe.level)
        missing = samples - len(clip)
        return F.pad(clip, (0, missing)) if missing else clip, skipped

    def rooms_of(self, count: int) -> set[int]:
        """Return the numbers of the rooms of the first ``count`` samples."""
        drawn: set[int] = set()
        for i in range(count):
            if self.rooms is None or len(drawn) == len(self.rooms):
                break
            room = self._draw_scene(self._generator(SCENE, i))[2]
            drawn |= set() if room is None else {room}
        return drawn

    def _draw_scene(self, generator: np.random.Generator) -> tuple[bool, float, int | None]:
        """Return whether a clip stays dry, the signal-to-noise ratio, and the number of its room.

        Where a clip stays dry, that is None.
        """
        dry = bool(generator.random() < self.recipe.clean_fraction)
        snr = generator.uniform(*self.recipe.snr)
        if dry or self.rooms is None:
            return dry, snr, None
        return dry, snr, int(generator.integers(len(self.rooms)))

    def _read_room(self, room: int | None) -> tuple[Tensor, int]:
        """Return RIRs (2, channels, m), and how many scenes could not be read."""
        if room is None or self.rooms is None:
            return torch.zeros(2, AUDIO_CHANNELS[self.layout], 0), 0
        rooms, count, samples = self.rooms, len(self.rooms), self.recipe.samples
        rirs, skipped = _first_readable(
            "rooms", count, lambda attempt: rooms.read_sums((room + attempt) % count, samples)
        )
        return torch.from_numpy(rirs), skipped

    def _draw_noise(
        self, generator: np.random.Generator, i: int, dry: bool
    ) -> tuple[dict[str, Tensor], int]:
        """Return the noise, its start and length, and how many could not be read."""
        samples = self.recipe.samples
        if dry or self.noises is None:
            silence = {"noise": torch.zeros(samples), "start": torch.tensor(0)}
            return silence | {"length": torch.tensor(0)}, 0
        noises = self.noises

        def draw(attempt: int) -> Noise:
            return noises.draw([self.seed, NOISE, i, attempt], samples)

        drawn, skipped = _first_readable("noises", TRIES, draw)
        length = len(drawn.audio)
        start = int(generator.integers(samples - length + 1))
        level = self.recipe.level if self.recipe.noise_gain == "scene" else None
        noise = drawn.put(start, samples, self.recipe.sample_rate, level)[0]
        values = {"noise": noise, "start": torch.tensor(start), "length": torch.tensor(length)}
        return values, skipped

    def _draw_windows(self, i: int) -> tuple[Tensor, Tensor]:
        """Return the first frames (windows,), and masks (windows, tokens)."""
        generator, recipe = self._generator(WINDOWS, i), self.recipe
        starts = generator.integers(
            recipe.clip_frames - recipe.window_frames + 1, size=recipe.windows
        )
        tokens, rows = recipe.tokens, recipe.frequency_patches
        masks = draw_masks(recipe.masks, recipe.windows, tokens, rows, recipe.masked, generator)
        return torch.from_numpy(starts), masks


def _first_readable(what: str, there: int, read: Callable[[int], Read]) -> tuple[Read, int]:
    """Return the result of the first attempt that succeeds, and how many failed before it."""
    reason: GramError | None = None
    for attempt in range(min(there, TRIES)):
        try:
            return read(attempt), attempt
        except (AudioError, SceneError) as error:
            reason = error
    tried = min(there, TRIES)
    all_of = f"{tried} {what} in a row" if tried > 1 else f"The only one of the {what}"
    raise AudioError(f"{all_of} could not be read; the last: {reason}") from reason
