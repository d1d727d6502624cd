"""Embed sounds with the authors' code; published.py runs this in the authors' environment.

    python benchmarks/published_authors.py CODE MODULE CHECKPOINT CHANNELS DECODER IN.npz OUT.npz

CODE is a clone of labhamlet/GRAM-T, MODULE the name in its ``hear_configs``, DECODER true for a
decoder with windows. IN.npz holds sounds by name, (channels, samples) float32 at 32 kHz. OUT.npz
gets, for every strategy and sound, ``STRATEGY-SOUND-scene`` (d,) and ``STRATEGY-SOUND-rows``
(rows, d). Only NumPy and PyTorch are needed beside what the authors' code needs.
"""

import importlib
import sys

import numpy as np
import torch

STRATEGIES = ("raw", "mean", "cls")


def stay_on_the_cpu():
    """Let ``cuda()`` return what it is called on: the authors' front-end calls it unasked."""
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.cuda = lambda self, *args, **kwargs: self


def main(code, module, checkpoint, channels, decoder, sounds, output):
    sys.path.insert(0, code)
    if not torch.cuda.is_available():
        stay_on_the_cpu()
    hear = importlib.import_module(f"hear_configs.{module}")
    found = {}
    for strategy in STRATEGIES:
        options = {"strategy": strategy, "use_mwmae_decoder": decoder, "in_channels": int(channels)}
        model = hear.load_model(checkpoint, **options).eval().cuda()
        with np.load(sounds) as given, torch.no_grad():
            for name in given:
                audio = torch.from_numpy(given[name])[None].cuda()
                scene = hear.get_scene_embeddings(audio, model)
                rows, _ = hear.get_timestamp_embeddings(audio, model)
                found[f"{strategy}-{name}-scene"] = scene[0].float().cpu().numpy()
                found[f"{strategy}-{name}-rows"] = rows[0].float().cpu().numpy()
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
