"""The data of a run: opened, and loaded in batches that are divided among devices."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from gram_hear.audio.shards import GIGABYTES, ShardCache
from gram_hear.config import FrontEndConfig, ModelConfig
from gram_hear.console import progress_bar, say
from gram_hear.errors import CheckpointError, GramError, OptionError, count
from gram_hear.jobs.interrupts import signals_blocked
from gram_hear.pretrain.batches import EpochSampler, collate
from gram_hear.pretrain.clips import OPEN_SHARDS, ClipSet, open_clips
from gram_hear.pretrain.module import Pretraining
from gram_hear.pretrain.pools import Rooms, SimulatedRooms, open_noises, open_rooms, simulate
from gram_hear.pretrain.samples import Sample, SampleRecipe, SampleSet
from gram_hear.pretrain.stopping import SIGNALS, leave_signals

HELD_OUT = 2**31  # added to the seed for validation, which so has other draws and other sounds
# Beside the sizes of the sets: the options on which the samples depend.
SAME = (
    *("seconds", "level", "noise_gain", "clean_fraction"),
    *("windows", "clip_frames", "masked", "masks"),
)
# What checkpoints mean that were written before there was such an option.
EARLIER = {"masks": "random", "noise_gain": "scene"}
SIMULATED = "simulated"  # folder of rooms and noises that are simulated, in the folder of the run
SIMULATED_FIRST = 256  # so many rooms, at most, are simulated before the first step
LINE_SECONDS = 10.0  # between lines of progress where there is no terminal


class TimedLoader(DataLoader[Sample]):
    """A DataLoader that measures how long training waited for it."""

    waited = 0.0  # seconds in all

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        with signals_blocked(SIGNALS):  # until its processes ignore them
            samples = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                batch = next(samples, None)
            except GramError as error:  # of a process that loads data
                raise type(error)(_message(error)) from error
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def _message(error: GramError) -> str:
    """Return an error's own message, without the traceback of the process that it comes from."""
    text = str(error)
    if "DataLoader worker process" not in text:
        return text
    return text.rpartition(f"{type(error).__name__}: ")[2].strip()


class PretrainingData(LightningDataModule):
    """The batches of training, and those of held-out rooms for validation."""

    def __init__(
        self,
        clips: str | list[str] | None = None,
        rirs: str | None = None,
        noises: str | None = None,
        seconds: float = 10.0,
        level: float = -14.0,
        snr: tuple[float, float] = (5.0, 40.0),
        noise_gain: Literal["scene", "channel"] = "scene",
        clean_fraction: float = 0.0,
        windows: int = 16,
        clip_frames: int = 1024,
        masked: int = 160,
        masks: str = "random",
        batch: int = 96,
        batch_per_device: int | None = None,
        workers: int = 0,
        seed: int = 0,
        rooms: int = 64,
        validation_clips: str | list[str] | None = None,
        validation_rirs: str | None = None,
        validation_noises: str | None = None,
        validation_batches: int = 1,
        validate_every: int = 1000,
        audio_column: str | None = None,
        cache: str | None = None,
        cache_size: float = GIGABYTES,
        open_shards: int = OPEN_SHARDS,
    ) -> None:
        """The data to learn from. The defaults are the published recipe for frame patches.

        Args:
            clips: Folders of sound files, tars of them, or Parquet files, one or a list. They may
                be URLs, such as hf://datasets/OWNER/NAME/data/*.parquet. null makes synthetic
                sounds.
            rirs: A set of RIRs, of which the training scenes are used. null simulates rooms.
            noises: A set of noises. null makes synthetic ones.
            seconds: Length of a clip.
            level: RMS level of clips and noises, in dBFS.
            snr: Lowest and highest signal-to-noise ratio, in dB.
            noise_gain: Rule for the level of the noise: scene (one gain for all channels, by
                energies while the noise sounds; it keeps the noise's level difference between the
                ears) or channel (a gain for each channel, by energies of the whole clip).
            clean_fraction: Probability that a clip stays dry. At 1, no rooms or noises are used.
            windows: Number of windows cut from each clip.
            clip_frames: Number of frames that windows are cut from. It may exceed the clip; the
                frames beyond its end are filled as model.window_fill says.
            masked: Number of tokens that are hidden in each window.
            masks: Which tokens are hidden: random, cluster (squares of 3 to 5 tokens a side),
                frequency (whole rows of patches) or time (whole columns).
            batch: Number of clips of an optimizer step, on all devices together.
            batch_per_device: Largest number of clips that a device takes at once. Gradients are
                accumulated until the batch is complete. null takes the whole batch at once.
            workers: Number of processes that load data, for each device. 0 loads between steps.
            seed: Seed of everything that is drawn or synthetic.
            rooms: Number of simulated rooms.
            validation_clips: Clips for validation. null takes the training clips in held-out rooms;
                where these stay dry, as for mono models, validation then measures the loss on
                training data.
            validation_rirs: RIRs for validation. null takes the held-out scenes of the training
                RIRs ("valid", or, where the set has none, "test").
            validation_noises: Noises for validation. null takes the training noises.
            validation_batches: Number of batches for validation, each as large as in training.
            validate_every: Number of optimizer steps from one validation to the next.
            audio_column: Column of Parquet files that holds the sounds. null takes the only one of
                bytes and path.
            cache: Folder in which Parquet files and remote tars are kept while they are used. null
                is gram-hear/shards in the user's cache directory.
            cache_size: Largest size of that folder, in GB.
            open_shards: Number of Parquet files or remote tars whose clips are mixed at a time.
        """
        super().__init__()
        self.clips, self.rirs, self.noises = clips, rirs, noises
        self.seconds, self.level, self.snr = seconds, level, snr
        self.noise_gain = noise_gain
        self.clean_fraction = clean_fraction
        self.windows, self.clip_frames = windows, clip_frames
        self.masked, self.masks = masked, masks
        self.batch, self.batch_per_device = batch, batch_per_device
        self.workers, self.seed, self.rooms = workers, seed, rooms
        self.validation_clips = validation_clips
        self.validation_rirs = validation_rirs
        self.validation_noises = validation_noises
        self.validation_batches = validation_batches
        self.validate_every = validate_every
        self.audio_column, self.open_shards = audio_column, open_shards
        self.cache = ShardCache(None if cache is None else Path(cache), cache_size, audio_column)
        self.training: SampleSet | None = None
        self.validation: SampleSet | None = None
        self._folder: Path | None = None
        self._temporary: TemporaryDirectory[str] | None = None
        self.position = 0  # samples of the stream that were learned from before this run
        self._check()

    def _check(self) -> None:
        least = dict.fromkeys(
            ("batch", "rooms", "validation_batches", "validate_every", "open_shards"), 1
        )
        for name, value in (least | {"workers": 0, "seed": 0}).items():
            if getattr(self, name) < value:
                raise OptionError(
                    f"data.{name} is {getattr(self, name)}; it must be at least {value}."
                )
        for name in ("clips", "rirs", "noises"):
            for option in (name, f"validation_{name}"):
                given = getattr(self, option)
                if "" in (given if isinstance(given, list) else [given]):
                    raise OptionError(
                        f"data.{option} is empty; give a path, or leave it out. (A variable of the "
                        "shell may not be set.)"
                    )
        if self.seed >= HELD_OUT:
            raise OptionError(f"data.seed is {self.seed}; it must be below {HELD_OUT}.")

    def recipe(self, config: ModelConfig) -> SampleRecipe:
        """Return the options of samples for a model."""
        return SampleRecipe(
            seconds=self.seconds,
            sample_rate=config.front_end.sample_rate,
            level=self.level,
            snr=self.snr,
            noise_gain=self.noise_gain,
            clean_fraction=self.clean_fraction,
            windows=self.windows,
            window_frames=config.window_frames,
            clip_frames=self.clip_frames,
            masked=self.masked,
            masks=self.masks,
            tokens=config.tokens,
            frequency_patches=config.frequency_patches,
        )

    # --- opening ----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Open the data, read a sample of each set, and divide the batch among devices.

        Without training ("validate"), nothing is opened that is for training alone.

        Raises:
            OptionError, SceneError, AudioError: for what does not fit or cannot be read.
        """
        trainer = self.trainer
        assert trainer is not None
        model = trainer.lightning_module
        assert isinstance(model, Pretraining)
        model.noise_gain = self.noise_gain
        steps = accumulation(self.batch, trainer.world_size, self.batch_per_device)
        if trainer.accumulate_grad_batches not in (1, steps):
            raise OptionError(
                "trainer.accumulate_grad_batches is computed from data.batch and "
                "data.batch_per_device; leave it out."
            )
        trainer.accumulate_grad_batches = steps
        trainer.val_check_interval = self.validate_every * steps  # in Lightning's smaller batches
        trainer.check_val_every_n_epoch = None  # counted over all of training
        self._folder = self._keep(trainer, stage)
        clips = None
        if stage == "fit":
            clips = self._open_clips(self.clips, self.seed)
            self.training = self._open(clips, model.config, held_out=False)
        self.validation = self._open(self._held_out_clips(clips), model.config, held_out=True)
        self._require_same_everywhere(trainer)
        self._simulate_rooms(trainer)

    def _require_same_everywhere(self, trainer: Trainer) -> None:
        """Refuse data that are not the same for all processes: each would learn from others.

        Raises:
            OptionError: in all processes, where they differ in any; the message says how.
        """
        here: dict[str, int | str | None] = {
            f"{name} {what}": len(each)
            for name, samples in (("training", self.training), ("validation", self.validation))
            if samples is not None
            for what, each in (("clips", samples.clips), ("scenes", samples.rooms or ()))
        }
        if self.training is not None:
            here["training shards"] = self.training.clips.shards_key
        first = trainer.strategy.broadcast(here)
        differ = torch.tensor(int(here != first), device=trainer.strategy.root_device)
        if not trainer.strategy.reduce(differ, reduce_op="sum"):
            return
        found = "; ".join(f"{name}: {value}" for name, value in here.items())
        raise OptionError(
            "The processes of this run found different data. Give all nodes the same files under "
            f"the same paths. On {socket.gethostname()} there are {found}."
        )

    def _keep(self, trainer: Trainer, stage: str) -> Path:
        """Return the folder of what is simulated.

        A trial, and validation alone, have one that is removed at the end: they write nothing.
        """
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            return Path(trainer.default_root_dir) / SIMULATED
        self._temporary = TemporaryDirectory(prefix="gram-hear-")
        return Path(self._temporary.name)

    def _simulate_rooms(self, trainer: Trainer) -> None:
        """Simulate the rooms of this run, once for all its processes, and show how far it is."""
        drawn = [(self.training, trainer.max_steps), (self.validation, self.validation_batches)]
        wanted = [
            (samples.rooms, i)
            for samples, batches in drawn
            if samples is not None and isinstance(samples.rooms, SimulatedRooms)
            for i in sorted(samples.rooms_of(batches * self.batch))[:SIMULATED_FIRST]
        ]
        missing = sum(not rooms.has(i) for rooms, i in wanted)
        if trainer.is_global_zero and missing:
            say(
                f"Simulating {count(missing, 'room')}, which takes about a second each. The first "
                "step waits for them."
            )
            with _shown() as progress:
                simulate(wanted, max(1, self.workers), progress)
        trainer.strategy.barrier("rooms")

    def teardown(self, stage: str) -> None:
        """Remove what a trial has simulated."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _held_out_clips(self, clips: ClipSet | None) -> ClipSet:
        if self.validation_clips is None and self.clips is not None:
            return self._open_clips(self.clips, self.seed) if clips is None else clips
        return self._open_clips(self.validation_clips, self.seed + HELD_OUT)

    def _open_clips(self, paths: str | list[str] | None, seed: int) -> ClipSet:
        return open_clips(
            paths,
            seed,
            cache=self.cache,
            open_shards=self.open_shards,
            report=say,
            watch=partial(progress_bar, "count", "shards"),
        )

    def _open(self, clips: ClipSet, config: ModelConfig, held_out: bool) -> SampleSet:
        front_end, recipe = config.front_end, self.recipe(config)
        seed = self.seed + (HELD_OUT if held_out else 0)
        rooms = noises = None
        if self.clean_fraction < 1:
            rooms = self._held_out_rooms(front_end) if held_out else self._rooms(front_end, "train")
            path = (held_out and self.validation_noises) or self.noises
            noises = open_noises(path, front_end.sample_rate, seed=seed, folder=self._folder)
        return SampleSet(clips, rooms, noises, recipe, front_end.layout, seed)

    def _rooms(self, front_end: FrontEndConfig, split: str, path: str | None = None) -> Rooms:
        return open_rooms(
            path or self.rirs,
            front_end.layout,
            front_end.sample_rate,
            split=split,
            seed=self.seed,
            count=self.rooms,
            folder=self._folder,
        )

    def _held_out_rooms(self, front_end: FrontEndConfig) -> Rooms:
        missing: OptionError | None = None
        for split in ("valid", "test"):
            try:
                return self._rooms(front_end, split, self.validation_rirs)
            except OptionError as error:
                missing = error
        if self.validation_rirs is not None:  # without splits, all of it validates
            return self._rooms(front_end, "train", self.validation_rirs)
        raise OptionError(
            f"{missing} Validation needs rooms that are not trained in: give a set of them as "
            "data.validation_rirs."
        )

    # --- loading ----------------------------------------------------------------------------

    def train_dataloader(self) -> TimedLoader:
        """Load the stream from :attr:`position` to the end of training."""
        trainer = self.trainer
        assert trainer is not None
        return self._loader(self.training, trainer.max_steps, self.position)

    def val_dataloader(self) -> TimedLoader:
        """Load the first samples of the held-out stream, always the same."""
        return self._loader(self.validation, self.validation_batches, 0)

    def _loader(self, samples: SampleSet | None, batches: int, position: int) -> TimedLoader:
        trainer = self.trainer
        assert samples is not None
        assert trainer is not None
        sampler = EpochSampler(
            batches, self.batch, trainer.global_rank, trainer.world_size, position
        )
        return TimedLoader(
            samples,
            batch_size=self.batch // (trainer.world_size * trainer.accumulate_grad_batches),
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            persistent_workers=self.workers > 0,
            worker_init_fn=_leave_signals if self.workers else None,
        )

    # --- resuming ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream, and what must be the same when it is resumed."""
        trainer = self.trainer
        assert trainer is not None
        return {"position": trainer.global_step * self.batch, **self._stream()}

    def _stream(self) -> dict[str, Any]:
        assert self.training is not None
        return {
            "batch": self.batch,
            "seed": self.seed,
            "clips": len(self.training),
            "shards": self.training.clips.shards_key,
            "rooms": 0 if self.training.rooms is None else len(self.training.rooms),
            "snr": list(self.snr),
            **{name: getattr(self, name) for name in SAME},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the stream at the position of a checkpoint, if there is a stream.

        Raises:
            CheckpointError: where the data or their options differ, so that the stream would too.
        """
        position, batch = state_dict.get("position"), state_dict.get("batch")
        if not (type(position) is type(batch) is int and position >= 0 < batch) or position % batch:
            raise CheckpointError(
                f"The checkpoint is damaged: it is at sample {position} of the stream, in batches "
                f"of {batch}."
            )
        if self.training is None:  # a checkpoint may be validated on other data
            self.position = position // batch * self.batch
            return
        state_dict = EARLIER | state_dict
        different = [
            f"{name}: {state_dict.get(name)} there, {value} here"
            for name, value in self._stream().items()
            if state_dict.get(name) != value
        ]
        if different:
            raise CheckpointError(
                "The checkpoint to resume from was learning from other data: "
                f"{'; '.join(different)}. Resume with the same options and clips, or begin anew "
                "from its weights: --model.init."
            )
        self.position = position


@contextmanager
def _shown() -> Iterator[Callable[[int, int], object]]:
    """Show how many rooms are simulated: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with progress_bar("Simulating", "rooms") as move:
            yield move
        return
    said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_SECONDS or done == total:
            said = time.monotonic()
            say(f"{done} of {total} rooms are simulated.")

    yield tell


def _leave_signals(worker: int) -> None:
    leave_signals()


def accumulation(batch: int, devices: int, most: int | None) -> int:
    """Return in how many parts each device takes its share of a global batch of clips.

    ``most`` is the largest number of clips that a device takes at once; None for all.

    Raises:
        OptionError: where the batch does not divide evenly.
    """
    if batch % devices:
        raise OptionError(
            f"A batch of {batch} clips does not divide among {devices} devices; use a number of "
            f"devices that divides {batch}, or another data.batch."
        )
    share = batch // devices
    if most is None:
        return 1
    if most < 1:
        raise OptionError(f"data.batch_per_device is {most}; it must be at least 1.")
    return next(
        parts for parts in range(1, share + 1) if not share % parts and share // parts <= most
    )
