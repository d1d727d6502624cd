"""Train the head that tells where a sound comes from, on the frozen rows of a model.

    python weights/recipe/locator.py MODEL CLIPS RIRS gram-tiny-locator.safetensors

MODEL is a name or a file of a binaural or Ambisonic model; CLIPS a folder of sound files, as
``weights/recipe/clips.py`` makes them; RIRS one or more indexed sets with train, valid and test
rooms, as ``gram-hear rirs`` makes them. Scenes are made of excerpts of 4 s with synthetic noise,
embedded, and held in memory as float16. Clips and rooms of the three splits are different ones: the
head learns on the first, the second chooses the epoch, and its errors on the second and third are
printed as JSON; the third alone had no part in it. Errors of rows are of those in which the source
sounds; errors of scenes are of all rows that are not silent, as ``gram-hear locate`` has them. Take
other clips than those that MODEL was trained on, or they say too little.

In training rooms each noise source has its turn as the source. Training scenes are also heard
mirrored, left and right exchanged: the head KEMAR, as most heads, is nearly symmetric, and there
are twice as many directions. Ambisonic ones are heard ``--turns`` times each, every time but the
first by a listener who faces somewhere else. The same command gives the same head.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram_hear.audio.files import find_audio, read_audio
from gram_hear.checkpoints.registry import find_entry
from gram_hear.checkpoints.store import load_checkpoint
from gram_hear.errors import GramError, OptionError
from gram_hear.hear import HearModel, Options, from_checkpoint
from gram_hear.localisation import (
    BUNDLED,
    SHARPNESS,
    Head,
    Locator,
    answers,
    describe_head,
    is_silent,
    pooled,
    row_levels,
    row_powers,
)
from gram_hear.scenes.geometry import angles, turn
from gram_hear.scenes.mixing import mix, to_level
from gram_hear.scenes.noises import open_noise
from gram_hear.scenes.rirs import RirSet, open_rirs

SECONDS = 4.0
SNR = (5.0, 40.0)  # dB
NOISES = 32  # of each split: long ones, of which excerpts are taken
NOISE_SECONDS = 12.0
ACTIVE = 20.0  # dB below the loudest row of the dry sound, up to which a row counts as sounding
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}  # of the clips
BATCH = 1024  # rows


@dataclass(frozen=True, eq=False)
class Scenes:
    """The rows of a split's scenes.

    Attributes:
        rows: (scenes, rows, d) float16.
        directions: (scenes, 3) float32 unit vectors to the source.
        active: (scenes, rows) bool, where the source sounds.
        heard: (scenes, rows) bool, where anything does.
    """

    rows: Tensor
    directions: Tensor
    active: Tensor
    heard: Tensor


class SceneMaker:
    """Makes the scenes of a split: each depends on the seed and its own numbers alone."""

    def __init__(
        self, model: HearModel, rirs: Sequence[RirSet], clips: Sequence[Path], seed: int
    ) -> None:
        self.model = model
        self.rirs = rirs
        self.seed = seed
        self.rate = model.sample_rate
        self.samples = round(SECONDS * self.rate)
        self.frames = 1 + self.samples // model.config.front_end.hop
        order = np.random.default_rng(seed).permutation(len(clips))
        edges = np.round(len(clips) * np.cumsum([0, *SHARES.values()])).astype(int)
        self.clips = {
            split: [clips[i] for i in order[first:last]]
            for split, first, last in zip(SHARES, edges[:-1], edges[1:], strict=True)
        }

    def make(self, split: str, per_room_scene: int, turns: int) -> Scenes:
        """Embed ``per_room_scene`` sounds in each scene of the split's rooms.

        With ``turns`` of 0 each is heard once, as it is; with more, that often and as often
        mirrored.
        """
        rows, directions, active, heard = [], [], [], []
        for audio, direction, sounds, generator in self._mixtures(split, per_room_scene):
            heard_in = torch.from_numpy(~is_silent(self._levels(audio).numpy()))
            versions = [(audio, direction)]
            if turns:
                yaws = [0.0, *generator.uniform(-180, 180, turns - 1).tolist()]
                versions = [turned(audio, direction, yaw) for yaw in yaws]
                versions += [mirrored(*version) for version in versions]
            for embedded in self.model.embed([version for version, _ in versions]):
                rows.append(embedded.half())
                active.append(sounds[: len(embedded)])
                heard.append(heard_in[: len(embedded)])
            directions += [towards for _, towards in versions]
        return Scenes(*(torch.stack(each) for each in (rows, directions, active, heard)))

    def _mixtures(
        self, split: str, per_room_scene: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, np.random.Generator]]:
        """Yield the audio, the direction (3,), in which rows the source sounds, and its generator.

        The audio is (channels, samples): two ears, or AmbiX.
        """
        number = list(SHARES).index(split)
        pool = open_noise(None, self.rate)
        noises = [
            pool.draw([self.seed, number, i], round(NOISE_SECONDS * self.rate)).audio
            for i in range(NOISES)
        ]
        places = [(k, i) for k, each in enumerate(self.rirs) for i in each.indices(split)]
        for k, i in places:
            rirs, metadata = self.rirs[k].read(i)
            directions = _directions(metadata, len(rirs))
            # Every source of a training room has its turn: rooms take long to simulate.
            turns = len(directions) if split == "train" else 1
            for again in range(per_room_scene):
                source = again % turns
                generator = np.random.default_rng([self.seed, number, k, i, again])
                clip = self._draw_clip(split, generator)
                noise = noises[int(generator.integers(NOISES))]
                place = int(generator.integers(len(noise) - self.samples))
                excerpt = torch.from_numpy(noise[place : place + self.samples])[None]
                snr = [float(generator.uniform(*SNR))]
                order = [source, *(other for other in range(len(rirs)) if other != source)]
                room = torch.from_numpy(rirs[order])[None]
                has_noise = len(rirs) > 1
                mixed = mix(clip, room, excerpt, snr=snr) if has_noise else mix(clip, room)
                direction = torch.from_numpy(directions[source]).float()
                yield mixed.audio[0], direction, self._sounding(clip), generator

    def _draw_clip(self, split: str, generator: np.random.Generator) -> Tensor:
        """Return an excerpt (1, samples) at the usual level, of a clip that is not silent."""
        while True:
            path = self.clips[split][int(generator.integers(len(self.clips[split])))]
            audio = read_audio(path, self.rate).audio[0]
            place = int(generator.integers(max(1, len(audio) - self.samples + 1)))
            excerpt = audio[place : place + self.samples]
            if np.abs(excerpt).max() > 1e-4:
                padded = np.pad(excerpt, (0, self.samples - len(excerpt)))
                return to_level(torch.from_numpy(padded)[None])

    def _sounding(self, clip: Tensor) -> Tensor:
        """Return in which rows a dry clip (1, samples) sounds, (rows,) bool."""
        levels = self._levels(clip)
        return levels > levels.max() - ACTIVE

    def _levels(self, audio: Tensor) -> Tensor:
        """Return the level (rows,) of each row of a sound (channels, samples), in dBFS."""
        plan, heard = self.model.plan(self.samples), self.model.lay_out(audio)[None]
        windows = self.model.gram.windows_of(heard, plan.window_starts(), self.model.window_fill)
        return row_levels(plan.keep(row_powers(windows, self.model.config)), self.frames)


def mirrored(audio: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return audio (channels, samples) and a direction (3,) with left and right exchanged."""
    flipped = direction * torch.tensor([1.0, -1.0, 1.0])
    if len(audio) == 2:
        return audio.flip(0), flipped
    return audio * torch.tensor([[1.0], [-1.0], [1.0], [1.0]]), flipped  # Y of AmbiX points left


def turned(audio: Tensor, direction: Tensor, yaw: float) -> tuple[Tensor, Tensor]:
    """Return AmbiX (4, samples) and a direction (3,), all turned by ``yaw`` degrees to the left."""
    if yaw == 0:
        return audio, direction
    w, y, z, x = audio
    x, y, z = torch.from_numpy(turn(torch.stack([x, y, z], dim=-1).numpy(), yaw)).float().T
    return torch.stack([w, y, z, x]), torch.from_numpy(turn(direction.numpy(), yaw)).float()


def _directions(metadata: dict[str, Any], sources: int) -> np.ndarray:
    """Return unit vectors (n, 3) to a scene's source and noise sources, where these are known."""
    found = [np.array(metadata["direction"])]
    noises = metadata.get("noises") or []
    if len(noises) == sources - 1:
        for place in noises:
            away = turn(np.subtract(place, metadata["listener"]), -metadata["yaw"])
            found.append(away / np.linalg.norm(away))
    return np.stack(found)


def train_head(train: Scenes, valid: Scenes, given: argparse.Namespace) -> Head:
    """Train a head on rows in which the source sounds; return the best on ``valid``."""
    inputs, directions = _sounding_rows(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(given.seed)
        head = Head(inputs.shape[1], given.hidden, given.directions, given.dropout)
        statistics = inputs[:: max(1, len(inputs) // 20000)].float()
        head.mean.copy_(statistics.mean(dim=0))
        head.scale.copy_(statistics.std(dim=0).clamp(min=1e-3))
        optimizer = torch.optim.AdamW(
            head.parameters(), given.learning_rate, weight_decay=given.decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            given.learning_rate,
            epochs=given.epochs,
            steps_per_epoch=-(-len(inputs) // BATCH),
            pct_start=0.1,
        )
        best, state = math.inf, head.state_dict()
        for epoch in range(given.epochs):
            head.train()
            for chosen in torch.randperm(len(inputs)).split(BATCH):
                loss = _cross_entropy(head, inputs[chosen], directions[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            validation = _validate(head.eval(), valid)
            _say(f"epoch {epoch}: validation {validation:.4f}")
            if validation < best:
                best = validation
                state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(state)
    return head


def _cross_entropy(head: Head, rows: Tensor, directions: Tensor) -> Tensor:
    """Return how far the head is from a von Mises-Fisher distribution around the true direction."""
    targets = (SHARPNESS * directions @ head.grid.T).softmax(dim=1)
    return -(targets * head(rows.float())).sum(dim=1).mean()


def _sounding_rows(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Return the rows (n, d) in which the source sounds, and their directions (n, 3)."""
    directions = scenes.directions[:, None].expand(-1, scenes.rows.shape[1], -1)
    return scenes.rows[scenes.active], directions[scenes.active]


@torch.no_grad()
def _validate(head: Head, scenes: Scenes) -> float:
    return float(_cross_entropy(head, *_sounding_rows(scenes)))


@torch.no_grad()
def evaluate(head: Head, scenes: Scenes) -> dict[str, dict[str, float | None]]:
    """Return the errors of single rows in which the source sounds, and of whole scenes.

    Those of scenes are of all rows in which anything is heard, as ``gram-hear locate`` has them.
    """
    _, true = _sounding_rows(scenes)
    true_of_scenes = scenes.directions[scenes.heard.any(dim=1)]
    rows, whole = [], []
    for values, active, heard in zip(scenes.rows, scenes.active, scenes.heard, strict=True):
        probabilities = head(values.float()).exp().double().numpy()
        rows.append(answers(probabilities[active]))
        if heard.any():
            whole.append(answers(pooled(probabilities[heard])[None]))
    return {
        "rows": direction_errors(np.concatenate(rows), true.double().numpy()),
        "scenes": direction_errors(np.concatenate(whole), true_of_scenes.double().numpy()),
    }


def direction_errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    """Return errors in degrees of vectors (n, 3) of any length.

    Azimuth over the full circle; and folded: front and back are one, as the angle to the median
    plane has it. Front and back are confused where the source is at least 15 degrees from the
    plane through the ears, and the predicted direction is on its other side; None for no such one.
    """
    unit = predicted / np.maximum(np.linalg.norm(predicted, axis=1, keepdims=True), 1e-9)
    great_circle = np.degrees(np.arccos((unit * true).sum(axis=1).clip(-1, 1)))
    (azimuth, elevation), (true_azimuth, true_elevation) = angles(predicted), angles(true)
    around = np.abs((azimuth - true_azimuth + 180) % 360 - 180)
    folded = np.abs(_fold(azimuth) - _fold(true_azimuth))
    off_plane = np.abs(np.cos(np.radians(true_azimuth))) > math.sin(math.radians(15))
    confused = np.sign(predicted[:, 0]) != np.sign(true[:, 0])
    return {
        "count": len(true),
        "median_angular_error": float(np.median(great_circle)),
        "median_azimuth_error": float(np.median(around)),
        "median_azimuth_error_folded": float(np.median(folded)),
        "mean_azimuth_error_folded": float(folded.mean()),
        "front_back_confusions": float(confused[off_plane].mean()) if off_plane.any() else None,
        "median_elevation_error": float(np.median(np.abs(elevation - true_elevation))),
        "median_elevation_error_of_0": float(np.median(np.abs(true_elevation))),
    }


def _fold(azimuth: np.ndarray) -> np.ndarray:
    """Bring azimuths to the front half, [-90, 90]."""
    return np.degrees(np.arcsin(np.sin(np.radians(azimuth))))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line, and train a head."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("clips", type=Path)
    parser.add_argument("rirs", type=Path, nargs="+")
    parser.add_argument("output", type=Path)
    parser.add_argument("--strategy", choices=("raw", "mean"), default="raw")
    parser.add_argument("--layer", type=int, default=0, help="0 is the last")
    parser.add_argument("--hidden", type=int, default=64, help="0 is a linear head")
    parser.add_argument("--directions", type=int, default=256, help="on the sphere")
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--epochs", type=int, default=6, help="of one cycle of the learning rate")
    parser.add_argument("--sounds", type=int, default=4, help="in each scene of the RIRs")
    parser.add_argument("--turns", type=int, default=1, help="of each Ambisonic training scene")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        train_and_write(given)
    except GramError as error:
        _say(f"error: {error}")
        sys.exit(1)


def check(given: argparse.Namespace, maker: SceneMaker) -> None:
    """Find what would be in the way after an hour, before the first minute.

    Raises:
        OptionError: for an output, turns or epochs that cannot be, and for too few clips.
    """
    if given.epochs < 1:
        raise OptionError(f"--epochs is {given.epochs}; it must be at least 1.")
    if given.turns < 1 or (given.turns > 1 and maker.model.config.front_end.layout == "binaural"):
        raise OptionError(
            f"--turns is {given.turns}; it must be 1 with two ears, which cannot be turned, and at "
            "least 1 with Ambisonic sound."
        )
    if given.output.suffix != ".safetensors" or not given.output.parent.is_dir():
        raise OptionError(f"{given.output} must end in .safetensors, in a folder that is there.")
    if not all(maker.clips.values()):
        counts = ", ".join(f"{split} {len(clips)}" for split, clips in maker.clips.items())
        raise OptionError(f"{given.clips} has too few sound files: {counts}. Give at least 10.")
    for rirs in maker.rirs:
        for split in SHARES:
            rirs.indices(split)


def train_and_write(given: argparse.Namespace) -> None:
    """Make the scenes, train, write the head, and print its errors."""
    start = time.monotonic()
    checkpoint = load_checkpoint(given.model)
    layer = given.layer or None
    model = from_checkpoint(checkpoint, Options(strategy=given.strategy, layer=layer))
    layout = model.config.front_end.layout
    if layout not in BUNDLED:
        raise OptionError(
            f"{given.model} is a {layout} model, and only one that is {' or '.join(BUNDLED)} hears "
            "directions."
        )
    rirs = [open_rirs(path, layout, model.sample_rate) for path in given.rirs]
    maker = SceneMaker(model, rirs, list(find_audio(given.clips)), given.seed)
    check(given, maker)
    made = {}
    with torch.inference_mode():
        for split in SHARES:
            made[split] = maker.make(split, given.sounds, given.turns if split == "train" else 0)
            _say(f"{len(made[split].rows)} scenes for {split}, {time.monotonic() - start:.0f} s")
    head = train_head(made["train"], made["valid"], given)
    size = model.timestamp_embedding_size
    name = given.model if find_entry(given.model) else Path(given.model).stem
    belongs = describe_head(checkpoint, name, model.options, size, given.hidden, given.directions)
    Locator(model, head, belongs).save(given.output)
    errors = {split: evaluate(head, made[split]) for split in ("valid", "test")}
    _say(f"{given.output} after {time.monotonic() - start:.0f} s")
    print(json.dumps(errors, indent=2))


if __name__ == "__main__":
    main()
