"""A HEAR module that is right by default, and wrong in the way that the option ``fault`` names."""

import os
import time

import torch

from gram_hear.errors import AudioError

HOP = 800  # 50 ms
CALLS = []  # the shape of the audio of each call


class LibraryError(Exception):
    """As many libraries have: derived from nothing else."""


class Model(torch.nn.Module):
    sample_rate = 16000
    scene_embedding_size = 4
    timestamp_embedding_size = 3

    def __init__(self, fault, largest):
        super().__init__()
        self.fault = fault
        self.largest = largest


class Plain:
    sample_rate = 16000
    scene_embedding_size = 4
    timestamp_embedding_size = 3
    fault, largest = "", 0


def load_model(model_file_path="", fault="", largest=0, kill_after=0, log="", pause=0.0):
    """``largest``: clips that fit into memory; ``kill_after``: calls that come to an end."""
    if fault == "load":
        raise ValueError("the weights are of 1997")
    if fault == "plain":
        return Plain()
    model = Model(fault, largest)
    model.kill_after, model.log, model.pause = kill_after, log, pause
    if fault == "rate":
        model.sample_rate = 16000.0
    if fault == "strange rate":
        model.sample_rate = 8000
    if fault == "no size":
        model = torch.nn.Linear(1, 1)
        model.sample_rate = 16000
    if fault in ("channels", "mono, channels first"):
        model.multichannel = "channels_first"
    if fault == "multichannel":
        model.multichannel = "channels_last"
    CALLS.clear()
    return model


def _before(audio, model):
    CALLS.append(tuple(audio.shape))
    if model.largest and len(audio) > model.largest:
        kinds = {"memory": MemoryError, "cuda": torch.OutOfMemoryError}
        raise kinds.get(model.fault, RuntimeError)("CUDA out of memory. Tried to allocate 2 GiB")
    if model.fault == "library":
        raise LibraryError("the codec\nis unknown")
    if model.fault == "gram":
        raise AudioError("a mono model takes one channel")
    if model.fault == "exit":
        raise SystemExit(0)
    if model.fault == "interrupt":
        raise KeyboardInterrupt
    if model.fault == "raise":
        raise KeyError("conv1.weight")
    if getattr(model, "log", ""):
        with open(model.log, "a") as file:
            file.write(f"{len(audio)}\n")
    if getattr(model, "pause", 0):
        time.sleep(model.pause)
    if getattr(model, "kill_after", 0) and len(CALLS) > model.kill_after:
        os.kill(os.getpid(), 9)
    if model.fault == "short" and audio.shape[1] < 8000:
        raise RuntimeError("kernel size is greater than the input")


def _mono(audio, model):
    if model.fault.startswith("mono") and audio.dim() == 3:
        raise ValueError("one channel only")
    if model.fault == "sizes of channels" and audio.dim() == 3:
        return audio.flatten(0, 1)
    channel_axis = 1 if model.fault == "channels" else 2
    return audio.mean(dim=channel_axis) if audio.dim() == 3 else audio


def _spoil(embeddings, model):
    if model.fault == "NaN":
        embeddings[-1, ..., 0] = float("nan")
    if model.fault == "dropout":
        embeddings = embeddings + torch.rand_like(embeddings)
    if model.fault == "batch":
        embeddings = embeddings - embeddings.mean(dim=0)
    wrong = {
        "double": lambda: embeddings.double(),
        "integer": lambda: embeddings.long(),
        "numpy": lambda: embeddings.numpy(),
        "n": lambda: embeddings[:-1],
        "d": lambda: embeddings[..., :-1],
        "rank": lambda: embeddings[None],
    }
    return wrong[model.fault]() if model.fault in wrong else embeddings


def get_scene_embeddings(audio, model):
    _before(audio, model)
    audio = _mono(audio, model)
    embeddings = torch.stack(
        [audio.mean(1), audio.std(1, correction=0), audio.amax(1), audio.amin(1)], dim=1
    )
    return _spoil(embeddings, model)


def get_timestamp_embeddings(audio, model):
    _before(audio, model)
    audio = _mono(audio, model)
    padded = torch.nn.functional.pad(audio, (0, -audio.shape[1] % HOP))
    frames = padded.unflatten(1, (-1, HOP))
    embeddings = torch.stack([frames.mean(2), frames.std(2), frames.amax(2)], dim=2)
    times = torch.arange(frames.shape[1]) * 50.0
    times = times.repeat(len(audio), 1)
    if model.fault == "decreasing":
        times = times.flip(1)
    if model.fault == "seconds":
        times = times / 1000
    if model.fault == "negative":
        times = times - 25
    if model.fault == "differing":
        times[-1] += 1
    if model.fault == "times shape":
        times = times[:, :-1]
    if model.fault == "past the end":
        times = times + 100
    if model.fault in ("drift", "drift past the end"):
        times = times * (0.9985 if model.fault == "drift" else 1.002)
    if model.fault == "long" and audio.shape[1] > 60 * model.sample_rate:
        raise RuntimeError("positions beyond 1024")
    if model.fault == "irregular":
        times[:, 1:] += 30
    if model.fault == "wide":
        embeddings, times = embeddings[:, ::8], times[:, ::8]
    if model.fault == "stops early":
        embeddings, times = embeddings[:, :-3], times[:, :-3]
    if model.fault == "one":
        embeddings, times = embeddings[:, :1], times[:, :1]
    if model.fault == "no pair":
        return embeddings
    return _spoil(embeddings, model), times
