"""Whether a module keeps to the HEAR API: what hear-validator checks, and what evaluations need.

Source of the rules: the HEAR API (hearbenchmark.com/hear-api.html) and the behaviour of
hear-validator. What follows from them for embeddings of real tasks is ours: silence, very short
clips, batches, repetition, several channels.
"""

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from gram_hear.errors import ModuleError
from gram_hear.evaluation.embed.hear_module import (
    CHANNELS_FIRST,
    HearModule,
    is_out_of_memory,
    load_model,
    look_like_seconds,
    traceback_of,
)

USUAL_RATES = (16000, 22050, 32000, 44100, 48000)
LENGTHS = (1.07, 1.98, 4.0)  # seconds, as in hear-validator: whole and broken numbers of windows
SCENE_LENGTH = 2.74
SHORT = 0.1
LONG = 64.0  # a multiple of the last of the lengths, so that windows and hops end alike
LONGEST_WAIT = 60.0  # seconds that the long clip may take; the last of LENGTHS foretells it
LARGEST_HOP = 50.0  # ms
IRREGULAR = 1.0  # ms by which a hop may differ from their mean
CHANNELS_LAST_SHAPE = "(clips, samples, channels)"
CHANNELS_FIRST_SHAPE = "(clips, channels, samples)"
ROOMS = {"2": "of two channels (binaural)", "4": "of four channels (Ambisonic)"}
SAME = 1e-4  # of the largest value: how far equal embeddings may be apart


@dataclass(frozen=True)
class Finding:
    """What was found: ``level`` is "ok", "warning" or "error".

    ``traceback`` is that of the module's code, where it failed.
    """

    level: Literal["ok", "warning", "error"]
    text: str
    traceback: str = field(default="", compare=False)


def _of_error(
    name: str, error: ModuleError, level: Literal["warning", "error"] = "error"
) -> Finding:
    return Finding(level, str(error), traceback_of(error, name))


def check_module(
    name: str,
    model_path: str = "",
    options: Mapping[str, Any] = MappingProxyType({}),
    device: str = "cpu",
) -> list[Finding]:
    """Check a HEAR module with noise and silence; an error means that evaluations may fail.

    Args:
        name, model_path, options, device: as for
            :func:`gram_hear.evaluation.embed.hear_module.load_model`.

    Raises:
        OptionError: for a device that is not there.
    """
    try:
        module = load_model(name, model_path, options, device=device)
    except ModuleError as error:
        return [_of_error(name, error)]
    findings = [
        Finding("ok", f"{name} has load_model and the two functions that embed; a model loads.")
    ]
    for check in (
        _check_signature,
        _check_attributes,
        _check_timestamps,
        _check_scenes,
        _check_repetition,
        _check_batches,
        _check_silence,
        _check_short,
        _check_channels,
    ):
        try:
            findings += check(module)
        except ModuleError as error:
            findings.append(_of_error(name, error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            findings.append(
                Finding("error", f"{name} ran out of memory with a few seconds of sound: {error}")
            )
    return list(dict.fromkeys(findings))


def _noise(module: HearModule, clips: int, seconds: float, channels: int = 0) -> np.ndarray:
    """Return white noise in [-1, 1], (clips, samples) or (clips, channels, samples)."""
    shape = (clips, channels, round(seconds * module.sample_rate))
    audio = np.random.default_rng(0).uniform(-1, 1, shape if channels else (shape[0], shape[2]))
    return audio.astype(np.float32)


def _both(
    module: HearModule, audio: np.ndarray, names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of clips, and those over time."""
    return module.scenes(audio, names), module.timestamps(audio, names)[0]


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest difference, as a share of the largest value."""
    largest = max(float(np.abs(first).max()), float(np.abs(second).max()))
    return float(np.abs(first - second).max()) / largest if largest else 0.0


# --- the API --------------------------------------------------------------------------------


def _check_signature(module: HearModule) -> Iterator[Finding]:
    try:
        signature = inspect.signature(module.module.load_model)
    except (ValueError, TypeError):  # of what is not written in Python
        return
    for arguments, call in (((), "load_model()"), (("path",), 'load_model("path")')):
        try:
            signature.bind(*arguments)
        except TypeError as error:
            yield Finding(
                "error",
                f"{module.name}.{call} is not possible ({error}). The API has one argument that "
                'may be left out: load_model(model_file_path: str = "").',
            )
            return
    yield Finding("ok", "load_model can be called without arguments, and with a path.")


def _check_attributes(module: HearModule) -> Iterator[Finding]:
    rate = module.sample_rate
    if rate in USUAL_RATES:
        yield Finding("ok", f"The model takes audio at {rate} Hz.")
    else:
        yield Finding(
            "error",
            f"The model's sample_rate is {rate} Hz; the API allows "
            f"{', '.join(map(str, USUAL_RATES))}. Resample inside the module.",
        )
    yield Finding(
        "ok",
        f"Scene embeddings have {module.scene_embedding_size} values, timestamp embeddings "
        f"{module.timestamp_embedding_size}.",
    )
    if not isinstance(module.model, torch.nn.Module):
        yield Finding(
            "warning",
            f"The model is a {type(module.model).__name__}, not a torch.nn.Module: it cannot be "
            "moved to a GPU from outside, and the original kit does not take it.",
        )


def _check_timestamps(module: HearModule) -> Iterator[Finding]:
    for seconds in LENGTHS:
        audio = _noise(module, 2, seconds)
        embeddings, times = module.timestamps(audio)
        yield from _check_times(times[0], 1000 * audio.shape[1] / module.sample_rate)
    yield from _check_drift(module, times[0])
    hop = f", one each {np.diff(times[0]).mean():g} ms" if times.shape[1] > 1 else ""
    yield Finding(
        "ok",
        f"get_timestamp_embeddings returns float32 embeddings and their timestamps: "
        f"{embeddings.shape[1]} for {seconds:g} s{hop}.",
    )
    yield from _check_dtype(module, "get_timestamp_embeddings")


def _check_drift(module: HearModule, short: np.ndarray) -> Iterator[Finding]:
    """Compare where the timestamps of a long and a short clip end: rounding errors add up.

    Args:
        module: whose.
        short: the timestamps of a clip of the last of :data:`LENGTHS`, in milliseconds.
    """
    if len(short) == 1:
        return
    started = time.monotonic()
    module.timestamps(_noise(module, 1, LENGTHS[-1]))
    expected = (time.monotonic() - started) * LONG / LENGTHS[-1]
    if expected > LONGEST_WAIT:
        yield Finding(
            "ok",
            f"Whether timestamps drift over {LONG:g} s was not tried: that would take about "
            f"{expected:.0f} s here.",
        )
        return
    try:
        _, times = module.timestamps(_noise(module, 1, LONG))
    except (ModuleError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, ModuleError) or is_out_of_memory(error)):
            raise
        yield Finding("warning", f"A clip of {LONG:g} s cannot be embedded over time: {error}")
        return
    length, long_length, last = 1000 * LENGTHS[-1], 1000 * LONG, times[0, -1]
    drift = (last - long_length) - (short[-1] - length)
    if abs(drift) > np.diff(short).mean() + IRREGULAR:
        yield Finding(
            "error" if last > long_length else "warning",
            f"The timestamps drift, by {drift:g} ms in {LONG:g} s: the last one is {short[-1]:g} "
            f"ms in a clip of {length:g} ms, and {last:g} ms in one of {long_length:g} ms. Compute "
            "each from its index and the hop in samples, neither rounded before.",
        )
    else:
        yield Finding("ok", f"The timestamps of a clip of {LONG:g} s do not drift.")


def _check_times(times: np.ndarray, duration: float) -> Iterator[Finding]:
    """Look where the timestamps of a clip are; both in milliseconds."""
    clip = f"a clip of {duration:g} ms"
    if look_like_seconds(times, duration / 1000):
        yield Finding(
            "error",
            f"The last timestamp of {clip} is {times[-1]:g}: timestamps look like seconds, and "
            "must be milliseconds. Multiply them by 1000.",
        )
        return
    if times[-1] > duration:
        yield Finding(
            "error",
            f"The last timestamp of {clip} is {times[-1]:g} ms, past its end: leave out what lies "
            "there.",
        )
    if len(times) == 1:
        yield Finding(
            "warning",
            f"There is one timestamp in {clip}; events cannot be found in time. Cut shorter "
            "windows, if the task needs them.",
        )
        return
    hops = np.diff(times)
    hop = hops.mean()
    if np.abs(hops - hop).max() > IRREGULAR:
        yield Finding(
            "error",
            f"The timestamps of {clip} are {hops.min():g} to {hops.max():g} ms apart; they must "
            "be regular, within 1 ms. Compute each from its index, and round once.",
        )
    if hops.max() > LARGEST_HOP:
        yield Finding(
            "warning",
            f"The timestamps are {hops.max():g} ms apart. Tasks that score onsets within 50 ms, "
            "such as transcription, need 50 ms or less.",
        )
    if times[0] > hop:
        yield Finding(
            "warning",
            f"The first timestamp of {clip} is {times[0]:g} ms, more than a hop ({hop:g} ms) "
            "after the start: events there are missed. Timestamps are the centres of what was "
            "heard.",
        )
    if (left := duration - times[-1]) > min(hop, LARGEST_HOP):
        yield Finding(
            "error" if left > 2 * hop else "warning",
            f"The last timestamp of {clip} is {times[-1]:g} ms: events in the last {left:g} ms "
            "are missed. Pad the clip, so that the last window is whole.",
        )


def _check_dtype(module: HearModule, function: str) -> Iterator[Finding]:
    """Look at what the function itself returns: HearModule makes other types float32."""
    result = module.call(function, _noise(module, 2, 1.0))
    embeddings = result[0] if isinstance(result, tuple | list) else result
    if embeddings.dtype != torch.float32:
        yield Finding(
            "error",
            f"{function} returns {embeddings.dtype} embeddings; they must be float32: "
            "embeddings.float().",
        )


def _check_scenes(module: HearModule) -> Iterator[Finding]:
    module.scenes(_noise(module, 4, SCENE_LENGTH))
    yield Finding("ok", "get_scene_embeddings returns one embedding for each of 4 clips.")
    yield from _check_dtype(module, "get_scene_embeddings")


# --- what evaluations need ------------------------------------------------------------------


def _check_repetition(module: HearModule) -> Iterator[Finding]:
    audio = _noise(module, 2, 1.0)
    first, second = (_both(module, audio) for _ in range(2))
    distance = max(map(_distance, first, second))
    if distance > SAME:
        yield Finding(
            "error",
            f"The same audio gives other embeddings the second time (by {distance:.2g} of the "
            "largest value). Dropout or noise is at work: call model.eval() in load_model.",
        )
    else:
        yield Finding("ok", "The same audio gives the same embeddings again.")


def _check_batches(module: HearModule) -> Iterator[Finding]:
    audio = _noise(module, 16, 1.0)
    together, alone = _both(module, audio), _both(module, audio[-1:])
    distance = max(_distance(a[-1:], b) for a, b in zip(together, alone, strict=True))
    if distance > SAME:
        yield Finding(
            "error",
            f"A clip gets other embeddings among 16 than alone (by {distance:.2g} of the largest "
            "value), so scores depend on batches. Normalise each clip by itself, and call "
            "model.eval() in load_model.",
        )
    else:
        yield Finding("ok", "A clip gets the same embeddings among 16 as alone.")


def _check_silence(module: HearModule) -> Iterator[Finding]:
    noise = _noise(module, 1, 1.0)
    _both(module, np.zeros_like(noise), ["silence"])
    _both(module, np.sign(noise), ["full-scale noise"])
    yield Finding("ok", "Silence and the loudest noise give finite embeddings.")


def _check_short(module: HearModule) -> Iterator[Finding]:
    try:
        _both(module, _noise(module, 1, SHORT), [f"a clip of {SHORT:g} s"])
    except ModuleError as error:
        yield Finding(
            "warning",
            f"A clip of {SHORT:g} s cannot be embedded, as tasks with clips of any length may "
            f"have: pad it in the module. {error}",
        )
    else:
        yield Finding("ok", f"A clip of {SHORT:g} s can be embedded.")


def _check_channels(module: HearModule) -> Iterator[Finding]:
    """Hand over sound of several channels, as a task in rooms has it."""
    multichannel = getattr(module.model, "multichannel", None)
    if not module.multichannel and multichannel is not None:
        yield Finding(
            "warning",
            f"The model's multichannel is {multichannel!r}; the one value that counts is "
            f"{CHANNELS_FIRST!r}. Files of several channels come as {CHANNELS_LAST_SHAPE}.",
        )
    taken: list[str] = []
    refused: dict[str, ModuleError] = {}
    for channels in (2, 4):
        audio = _noise(module, 2, 1.0, channels)
        try:
            _both(module, audio if module.multichannel else audio.transpose(0, 2, 1))
            taken.append(str(channels))
        except ModuleError as error:
            refused[str(channels)] = error
    if taken:
        order = "first" if module.multichannel else "last, as from the original kit"
        yield Finding("ok", f"Audio of {' and '.join(taken)} channels, channels {order}, is taken.")
    if refused:
        yield _of_refused_channels(module, refused)


def _of_refused_channels(module: HearModule, refused: Mapping[str, ModuleError]) -> Finding:
    """Say from which tasks it keeps a module that it does not take so many channels."""
    shape, axis, other = CHANNELS_FIRST_SHAPE, 1, ""
    if not module.multichannel:
        shape, axis = CHANNELS_LAST_SHAPE, 2
        other = f', or set model.multichannel = "{CHANNELS_FIRST}" to get {CHANNELS_FIRST_SHAPE}'
    failure = next(iter(refused.values()))
    return replace(
        _of_error(module.name, failure, "warning"),
        text=f"Audio of {' and '.join(refused)} channels is not taken: the module cannot be scored "
        f"on tasks in rooms {' or '.join(ROOMS[each] for each in refused)}. Their clips come as "
        f"{shape}. If the encoder is mono, take the mean over channels in the module, "
        f"audio.mean(dim={axis}) where audio.dim() is 3{other}. What went wrong: {failure}",
    )
