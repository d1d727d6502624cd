"""How well spoken digits are told apart by a linear probe, for speakers that it did not hear.

    PYTHONPATH=benchmarks python research/held_out_speakers.py RECORDINGS MODEL [MODEL ...]
        [--untrained] [--model-options JSON]

RECORDINGS is a folder of {digit}_{speaker}_{index}.wav (the Free Spoken Digit Dataset). Each model
embeds all files; then, for each speaker in turn, a multinomial logistic regression on standardised
scene embeddings learns from the other speakers. Each of three weight decays is printed: none is
chosen on what is tested. With --untrained the same is done with each model's network as training
begins with it, of seed 0.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import save_untrained
from evidence_scores import DECAYS, accuracy
from torch import Tensor

import gram_hear
from gram_hear.audio.files import read_audio
from gram_hear.hear import HearModel


def untrained(name: str, **options: Any) -> HearModel:
    """Return a model of the same configuration with first weights."""
    with tempfile.TemporaryDirectory() as folder:
        return gram_hear.load_model(str(save_untrained(name, Path(folder))), **options)


def embed(model: HearModel, files: list[Path]) -> Tensor:
    """Return the scene embedding of each file, (files, width)."""
    rows = []
    for file in files:  # one by one, as they differ in length
        audio = read_audio(file, model.sample_rate).audio
        rows.append(gram_hear.get_scene_embeddings(torch.as_tensor(audio)[None], model))
    return torch.cat(rows)


def main() -> None:
    """Print a line for each model and weight decay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recordings", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--model-options", type=json.loads, default={}, help="of load_model")
    given = parser.parse_args()
    files = sorted(given.recordings.glob("*_*_*.wav"))
    if not files:
        parser.error(f"{given.recordings} holds no {{digit}}_{{speaker}}_{{index}}.wav.")
    digits = torch.tensor([int(file.stem.split("_")[0]) for file in files])
    speakers = np.array([file.stem.split("_")[1] for file in files])
    models = [(name, gram_hear.load_model, name) for name in given.models]
    if given.untrained:
        models += [(f"{name}, untrained", untrained, name) for name in given.models]
    for title, load, name in models:
        embeddings = embed(load(name, **given.model_options), files)
        for decay in DECAYS:
            found = []
            for speaker in np.unique(speakers):
                held_out = torch.from_numpy(speakers == speaker)
                train, test = ((embeddings[part], digits[part]) for part in (~held_out, held_out))
                found.append(accuracy(train, test, decay))
            each = " ".join(f"{value:.3f}" for value in found)
            print(f"{title}, decay {decay:g}: {np.mean(found):.4f} ({each})", flush=True)


if __name__ == "__main__":
    main()
