"""WAV files of floats. The same samples give the same bytes; libsndfile would add the time."""

import struct
from pathlib import Path

import numpy as np

from gram_hear.errors import AudioError
from gram_hear.jobs.writing import write_whole

FLOAT = 3  # the number of the format in a WAV header
LARGEST = 2**32 - 64  # bytes of samples in a WAV file


def write_wav(path: Path, audio: np.ndarray, rate: int) -> None:
    """Write audio (channels, samples) at ``rate`` Hz as 32-bit floats, whole or not at all.

    Raises:
        AudioError: for audio of more than 4 GiB, which the format cannot hold.
        OSError: where it cannot be written.
    """
    channels, samples = audio.shape
    frame = 4 * channels
    size = samples * frame
    if size > LARGEST:
        raise AudioError(
            f"{path} would hold {size / 2**30:.1f} GiB, and a WAV file holds 4 at most; lower the "
            "rate, or cut the sound."
        )
    header = struct.pack(
        "<4sI4s 4sIHHIIHHH 4sII 4sI",
        *(b"RIFF", 50 + size, b"WAVE"),
        *(b"fmt ", 18, FLOAT, channels, rate, rate * frame, frame, 32, 0),
        *(b"fact", 4, samples),
        *(b"data", size),
    )
    frames = np.ascontiguousarray(audio.T, dtype="<f4")

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(header)
            file.write(frames.data)

    write_whole(path, write)
