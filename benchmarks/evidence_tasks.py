"""The tasks of evidence.py: HEAR task directories, their versions in scenes, and directions.

Everything follows from names and fixed seeds; a task that is there is left as it is.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.audio.files import read_audio
from gram_hear.audio.synthesis import NOISES, SOUNDS, synthesise_noise, synthesise_sound
from gram_hear.audio.wav import write_wav
from gram_hear.errors import OptionError, TaskError
from gram_hear.jobs.workers import work
from gram_hear.jobs.writing import write_json, write_text, write_whole
from gram_hear.scenes.naturalistic import DIRECTION_METRICS, naturalise_task
from gram_hear.scenes.recipes import ClipRecipe, SceneSettings, clip_seed, follow
from gram_hear.scenes.rirs import SPLITS, open_rirs
from gram_hear.tasks import METADATA, VOCABULARY, read_json, read_task

DIGITS, SPEAKERS, KINDS = "digits-v1-full", "speakers-v1-full", "sounds-v1-full"
DRY = (DIGITS, SPEAKERS, KINDS)
DIRECTIONS = "directions-v1-full"
MADE_OF = "evidence"  # key of the metadata: what a task was made of
SEED = 20251  # of sounds and scenes; training counts its seeds from 0
RATE = 32000  # Hz of made sounds
SECONDS = (1.0, 2.0)
LEVEL = (-30.0, 0.0)  # dB
SOUND_SNR = (-5.0, 15.0)  # dB over noise of any colour
SCENE_SNR = (5.0, 40.0)  # dB, as of gram-hear naturalistic
# Of the predictors: the protocol's batches of 1,024 would be one step for each epoch of such tasks.
PREDICTORS = {
    "task_specific_param_grid": {
        "batch_size": [64],
        "hidden_dim": [128],
        "hidden_layers": [0, 1],
        "max_epochs": [100],
        "patience": [10],
    }
}
SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}  # of the made sounds of a kind


@dataclass(frozen=True)
class Sizes:
    """How much of everything is used.

    Attributes:
        takes: recordings of each digit by each speaker: the first ones by index.
        sounds: made sounds of each kind.
        placements: clips of the directions task in each placement of training and validation rooms;
            in test rooms twice as many.
    """

    takes: int = 20
    sounds: int = 50
    placements: int = 5


@dataclass(frozen=True)
class Clip:
    """A clip to be made: its name, label, split, and what makes it at a path."""

    name: str
    label: list
    split: str
    make: Callable[[Path], object] = field(repr=False)


# --- dry tasks ------------------------------------------------------------------------------


def make_dry_tasks(folder: Path, recordings: Path, sizes: Sizes) -> None:
    """Make the three dry tasks: digits by held-out speaker, speakers, kinds of sound."""
    files = list_recordings(recordings, sizes.takes)
    source = recordings.resolve().name
    _make_digits(folder / DIGITS, files, {"recordings": source, "takes": sizes.takes})
    _make_speakers(folder / SPEAKERS, files, {"recordings": source, "takes": sizes.takes})
    _make_kinds(folder / KINDS, sizes.sounds)


def list_recordings(folder: Path, takes: int) -> list[tuple[str, str, int, Path]]:
    """Return digit, speaker, index and file of the recordings whose index is below ``takes``.

    Raises:
        TaskError: where there are none, or fewer than three speakers.
    """
    files = []
    for path in sorted(folder.glob("*_*_*.wav")):
        digit, speaker, index = path.stem.split("_", 2)
        if index.isdecimal() and int(index) < takes:
            files.append((digit, speaker, int(index), path))
    if len({speaker for _, speaker, _, _ in files}) < 3:
        raise TaskError(
            f"{folder} holds {len(files)} files {{digit}}_{{speaker}}_{{index}}.wav of an index "
            f"below {takes}; at least three speakers are needed, as in the Free Spoken Digit "
            "Dataset."
        )
    return files


def _make_digits(folder: Path, files: Sequence[tuple], made_of: dict[str, Any]) -> None:
    speakers = sorted({speaker for _, speaker, _, _ in files})
    folds = {speaker: f"fold{i:02d}" for i, speaker in enumerate(speakers)}
    clips = [
        Clip(path.name, [digit], folds[speaker], _copy(path)) for digit, speaker, _, path in files
    ]
    metadata = {"split_mode": "presplit_kfold", "nfolds": len(folds)}
    _write_task(folder, clips, list(folds.values()), metadata, _rate_of(files[0][3]), made_of)


def _make_speakers(folder: Path, files: Sequence[tuple], made_of: dict[str, Any]) -> None:
    """The lowest quarter of the indices tests, the next validates."""
    quarter = max(1, made_of["takes"] // 4)

    def split(index: int) -> str:
        return "test" if index < quarter else "valid" if index < 2 * quarter else "train"

    clips = [
        Clip(path.name, [speaker], split(index), _copy(path)) for _, speaker, index, path in files
    ]
    metadata = {"split_mode": "trainvaltest"}
    _write_task(folder, clips, SPLITS, metadata, _rate_of(files[0][3]), made_of)


def _rate_of(path: Path) -> int:
    return read_audio(path, RATE).file_rate


def _copy(source: Path) -> Callable[[Path], object]:
    return lambda path: write_whole(path, lambda temporary: shutil.copyfile(source, temporary))


def _make_kinds(folder: Path, count: int) -> None:
    """Which kind of synthetic sound or noise, at any level, in noise of any colour."""
    ends = np.cumsum([round(share * count) for share in SHARES.values()])
    clips = []
    for number, kind in enumerate((*SOUNDS, *NOISES)):
        for i in range(int(ends[-1])):
            split = list(SHARES)[int(np.searchsorted(ends, i, side="right"))]
            seed = (SEED, number, i)
            make = _writer_of_sound(kind, seed)
            clips.append(Clip(f"{kind}-{i:03d}.wav", [kind], split, make))
    metadata = {"split_mode": "trainvaltest"}
    _write_task(folder, clips, SPLITS, metadata, RATE, {"sounds": count, "seed": SEED})


def _writer_of_sound(kind: str, seed: tuple[int, ...]) -> Callable[[Path], object]:
    return lambda path: write_wav(path, make_sound(kind, seed)[None], RATE)


def make_sound(
    kind: str, seed: Sequence[int], rate: int = RATE, seconds: tuple[float, float] = SECONDS
) -> np.ndarray:
    """Return a sound of a kind in noise, (samples,) float32: length, level and SNR are drawn."""
    generator = np.random.default_rng([*seed, 3])
    samples = round(generator.uniform(*seconds) * rate)
    make = synthesise_sound if kind in SOUNDS else synthesise_noise
    sound = make(seed, samples, rate, kind).audio.astype(np.float64)
    tilt = np.maximum(np.fft.rfftfreq(samples, 1 / rate), 50.0) ** (-generator.uniform(0, 2) / 2)
    noise = np.fft.irfft(np.fft.rfft(generator.standard_normal(samples)) * tilt, samples)
    powers = [max(float(np.mean(each**2)), 1e-20) for each in (sound, noise)]
    snr = generator.uniform(*SOUND_SNR)
    mixed = sound + noise * np.sqrt(powers[0] / powers[1] / 10 ** (snr / 10))
    level = 10 ** (generator.uniform(*LEVEL) / 20)
    return (level * mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def _write_task(
    folder: Path,
    clips: Sequence[Clip],
    splits: Sequence[str],
    metadata: Mapping[str, Any],
    rate: int,
    made_of: Mapping[str, Any],
) -> None:
    """Write a multiclass task, the metadata last; one that is there stays.

    Raises:
        OptionError: where it was made of something else.
    """
    if _is_made(folder, made_of):
        return
    for split in splits:
        (folder / str(rate) / split).mkdir(parents=True, exist_ok=True)
    for clip in clips:
        clip.make(folder / str(rate) / clip.split / clip.name)
    for split in splits:
        write_json(
            folder / f"{split}.json",
            {clip.name: clip.label for clip in clips if clip.split == split},
        )
    labels = sorted({clip.label[0] for clip in clips})
    kind = {"prediction_type": "multiclass", "evaluation": ["top1_acc"]}
    _describe(folder, labels, splits, {**kind, **metadata, MADE_OF: dict(made_of)})


def _describe(
    folder: Path, labels: Sequence[str], splits: Sequence[str], metadata: Mapping[str, Any]
) -> None:
    """Write the vocabulary and, last, the metadata."""
    rows = "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    write_text(folder / VOCABULARY, f"idx,label\n{rows}")
    common = {
        "task_name": folder.name.removesuffix("-v1-full"),
        "version": "v1",
        "mode": "full",
        "embedding_type": "scene",
        "sample_duration": None,
        "evaluation_params": PREDICTORS,
        "splits": list(splits),
    }
    write_json(folder / METADATA, {**common, **metadata})


def _is_made(folder: Path, made_of: Mapping[str, Any]) -> bool:
    if not (folder / METADATA).is_file():
        return False
    found = read_json(folder / METADATA).get(MADE_OF)
    if found != dict(made_of):
        raise OptionError(
            f"{folder} was made of {found}, and {dict(made_of)} is asked for; delete the folder "
            "of work, or choose another."
        )
    return True


# --- in scenes ------------------------------------------------------------------------------


def make_natural_tasks(folder: Path, output: Path, rirs: Path, jobs: int) -> None:
    """Put the dry tasks into the test rooms of a set: HEAR-NS, and its localisation tasks."""
    rate = open_rirs(rirs, "binaural").rate
    settings = SceneSettings("binaural", rate, SEED, SCENE_SNR, rirs)
    for name in DRY:
        made = naturalise_task(read_task(folder / name), output, settings, jobs=jobs)
        if made.localisation is not None:
            _give_grid(made.localisation / METADATA)


def _give_grid(path: Path) -> None:
    """Give a localisation task the predictors' grid, which it does not have from the dry task."""
    metadata = read_json(path)
    if metadata.get("evaluation_params") != PREDICTORS:
        write_json(path, {**metadata, "evaluation_params": PREDICTORS})


@dataclass(frozen=True)
class Heard:
    """A clip of the directions task: a recipe, and the file that it goes to."""

    recipe: ClipRecipe
    path: Path


def make_directions(folder: Path, recordings: Path, rirs: Path, sizes: Sizes, jobs: int) -> None:
    """Make a localisation task of spoken digits whose splits share neither rooms nor speakers.

    Training rooms of the set train, validation rooms validate, test rooms test. The last speaker by
    name tests, the one before validates, the others train.

    Raises:
        OptionError: for a set without training, validation and test rooms.
    """
    files = [path.name for _, _, _, path in list_recordings(recordings, sizes.takes)]
    digests = {"recordings": _digest(files), "rirs": _digest(describe_rirs(rirs))}
    made_of = {**digests, "takes": sizes.takes, "placements": sizes.placements, "seed": SEED}
    if _is_made(folder, made_of):
        return
    heard = _list_heard(folder, recordings, rirs, sizes)
    for place in {clip.path.parent for clip in heard}:
        place.mkdir(parents=True, exist_ok=True)
    directions: dict[str, dict[str, list[float]]] = {split: {} for split in SPLITS}
    for path, direction in work(_hear, heard, jobs):
        directions[path.parent.name][path.name] = direction
    for split, found in directions.items():
        write_json(folder / f"{split}.json", dict(sorted(found.items())))
    metadata = {
        "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
        "evaluation": list(DIRECTION_METRICS),
        MADE_OF: made_of,
    }
    _describe(folder, "xyz", SPLITS, metadata)


def describe_rirs(rirs: Path) -> list[str]:
    """Return the lines of a set's indices: a set that is simulated anew is another one."""
    return [line for path in sorted(rirs.glob("*.jsonl")) for line in path.read_text().splitlines()]


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _list_heard(folder: Path, recordings: Path, rirs: Path, sizes: Sizes) -> list[Heard]:
    rooms = open_rirs(rirs, "binaural")
    files = list_recordings(recordings, sizes.takes)
    *training, validating, testing = sorted({speaker for _, speaker, _, _ in files})
    speakers = {"train": training, "valid": [validating], "test": [testing]}
    source_rate = _rate_of(files[0][3])
    heard = []
    for split in SPLITS:
        sources = [path for _, speaker, _, path in files if speaker in speakers[split]]
        for index in rooms.indices(split):
            for i in range(sizes.placements * (2 if split == "test" else 1)):
                name = f"{rooms.name(index).replace('/', '-')}-{i}.wav"
                seed = clip_seed(SEED, "directions", split, name)
                generator = np.random.default_rng(seed)
                recipe = ClipRecipe(
                    source=str(sources[int(generator.integers(len(sources)))].resolve()),
                    source_rate=source_rate,
                    rate=rooms.rate,
                    layout="binaural",
                    seed=seed,
                    snr=float(generator.uniform(*SCENE_SNR)),
                    head=None,
                    scene=None,
                    rirs=str(rirs.resolve()),
                    index=index,
                    noise=None,
                )
                heard.append(Heard(recipe, folder / str(rooms.rate) / split / name))
    return heard


def _hear(clip: Heard) -> tuple[Path, list[float]]:
    """Make a clip; return its file and the direction of its source."""
    audio, facts = follow(clip.recipe)
    if "direction" not in facts["scene"]:
        raise OptionError(
            f"{clip.recipe.rirs} does not say where the source of {facts['rir']} is; take a set "
            "made by gram-hear rirs."
        )
    write_wav(clip.path, audio, clip.recipe.rate)
    return clip.path, [float(value) for value in facts["scene"]["direction"]]
