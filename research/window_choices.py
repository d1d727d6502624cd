"""What stands in a clip's last window, past its end: three choices, by what a linear probe makes.

    PYTHONPATH=benchmarks python research/window_choices.py RECORDINGS MODEL [--clips 50]

RECORDINGS is a folder of {digit}_{speaker}_{index}.wav (the Free Spoken Digit Dataset). Kinds of
synthetic sound (evidence_tasks.make_sound) of 1 to 2 s, shorter than a window, and of 2.2 to 5.8 s,
so that none fills its last one; and digits spoken one after the other for as long, to be told apart
by speaker.

- ours: a clip shorter than a window is repeated until that is full. Of a longer one the last window
  is moved back by whole rows until it ends with the clip's last row, and of its rows those are kept
  that no window before it has.
- mirror: windows follow each other; the frames of the last are repeated back and forth.
- silence: windows follow each other; past the end stands the log-mel of silence, as in training.
- zero: the value 0 does, as in the authors' code.

Printed are accuracies of a logistic regression on scene embeddings: the mean over divisions of the
clips in training, validation (which chooses the weight decay) and test, its deviation, and how much
better or worse it is than with silence in the same divisions. No clip of a test shares a recording
with one that is trained on.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from evidence_scores import DECAYS, accuracy
from evidence_tasks import SEED, list_recordings, make_sound
from torch import Tensor

from gram_hear.audio.files import read_audio
from gram_hear.audio.synthesis import NOISES, SOUNDS
from gram_hear.hear import HearModel, get_scene_embeddings, load_model

SHORT, LONG = (1.0, 2.0), (2.2, 5.8)  # seconds
DIVISIONS = 10
SHARES = (0.6, 0.8)  # where training ends, and validation
CHOICES = ("silence", "zero", "mirror", "ours")


def scene_embedding(model: HearModel, audio: np.ndarray, choice: str) -> Tensor:
    """Return the mean row (d,) of a clip (samples,) of at least a frame."""
    if choice == "ours":
        return get_scene_embeddings(audio[None], model)[0]
    plan, frames = model.plan(len(audio)), model.config.window_frames
    clip = model.lay_out(torch.from_numpy(audio)[None])[None]
    with torch.inference_mode():
        starts = range(0, plan.windows * frames, frames)
        rows = model.encode(model.gram.windows_of(clip, starts, choice))
    return rows.flatten(0, 1)[: plan.rows].mean(dim=0)


def sounds(rate: int, count: int, seconds: tuple[float, float]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield synthetic sounds and their kinds."""
    for number, kind in enumerate((*SOUNDS, *NOISES)):
        for i in range(count):
            yield make_sound(kind, (SEED, number, i, 7), rate, seconds), number


def speakers(rate: int, count: int, folder: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Yield digits spoken one after the other, and who speaks; no recording is in two clips."""
    generator = np.random.default_rng(SEED)
    files = list_recordings(folder, 50)
    for number, name in enumerate(sorted({speaker for _, speaker, _, _ in files})):
        paths = iter(generator.permutation([str(f[3]) for f in files if f[1] == name]))
        for _ in range(count):
            samples = round(rate * generator.uniform(*LONG))
            parts = [np.zeros(0, np.float32)]
            while sum(map(len, parts)) < samples:
                path = next(paths, None)
                if path is None:
                    break
                parts.append(read_audio(path, rate).audio[0])
            if path is None:
                break
            yield np.concatenate(parts)[:samples], number


def probe(rows: Tensor, labels: Tensor) -> list[float]:
    """Return the accuracy of each division."""
    found = []
    for division in range(DIVISIONS):
        order = torch.from_numpy(np.random.default_rng([SEED, division]).permutation(len(rows)))
        ends = [round(share * len(rows)) for share in SHARES]
        train, valid, test = (
            (rows[part], labels[part]) for part in order.tensor_split(torch.tensor(ends))
        )
        best = max(DECAYS, key=lambda decay: accuracy(train, valid, decay))
        found.append(accuracy(train, test, best))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recordings", type=Path)
    parser.add_argument("model")
    parser.add_argument("--clips", type=int, default=50, help="of each kind, and speaker")
    given = parser.parse_args()
    model = load_model(given.model)
    tasks: dict[str, Callable[[], Iterator[tuple[np.ndarray, int]]]] = {
        "kinds of sound, 1 to 2 s": lambda: sounds(model.sample_rate, given.clips, SHORT),
        "kinds of sound, 2.2 to 5.8 s": lambda: sounds(model.sample_rate, given.clips, LONG),
        "speakers, 2.2 to 5.8 s": lambda: speakers(
            model.sample_rate, given.clips, given.recordings
        ),
    }
    for name, clips in tasks.items():
        rows: dict[str, list[Tensor]] = {choice: [] for choice in CHOICES}
        labels = []
        for audio, label in clips():
            labels.append(label)
            for choice in CHOICES:
                rows[choice].append(scene_embedding(model, audio, choice))
        found = {choice: probe(torch.stack(rows[choice]), torch.tensor(labels)) for choice in rows}
        for choice, scores in found.items():
            more = [a - b for a, b in zip(scores, found["silence"], strict=True)]
            print(
                f"{name}, {choice}: {statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f},"
                f" against silence {statistics.mean(more):+.3f} ± {statistics.stdev(more):.3f} "
                f"({len(labels)} clips)",
                flush=True,
            )


if __name__ == "__main__":
    main()
