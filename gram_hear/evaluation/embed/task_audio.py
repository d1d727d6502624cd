"""The audio of a task at the sample rate that a module takes: as it is, or resampled once."""

import io
import os
import shutil
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gram_hear.audio.files import SoundReader, file_status, read_samples, resample, resampled_length
from gram_hear.errors import AudioError, TaskError, reason_of, some
from gram_hear.jobs.writing import write_whole
from gram_hear.tasks import RESAMPLED, Task, holds_no_samples, names_in

SILENCE = 1.0  # seconds that stand for a clip without samples


@dataclass(frozen=True)
class ClipFile:
    """The file that a clip is taken from.

    Attributes:
        file: its name.
        path: where it is.
        rate: its sample rate in Hz.
        samples, channels: of the clip at the module's rate.
        time: when the file was last changed, in nanoseconds.
        empty: whether it holds no samples; the clip is silence of one channel.
    """

    file: str
    path: Path
    rate: int
    samples: int
    channels: int
    time: int = 0
    empty: bool = False


class TaskAudio:
    """The clips of a task at a module's rate: as they are, or resampled once.

    A resampled file has the time of its source, so that a source that was changed is noticed.
    """

    def __init__(self, task: Task, rate: int) -> None:
        self.task = task
        self.rate = rate
        self.target = task.folder / str(rate)
        others = [other for other in task.source_rates() if other != rate]
        self.rates = [rate, *sorted(others, reverse=True)]
        # A folder that holds files of its own is not for us to fill up.
        self.made = (self.target / RESAMPLED).exists()
        self.keep = self.made or not self.target.exists()
        self._said_convention = False

    def clip_files(self, split: str) -> list[ClipFile]:
        """Return the clips of a split in the order of the rows, from their headers.

        Raises:
            TaskError: where files are there at no rate.
            AudioError: for a file that is no sound, or has another rate than its folder.
        """
        files = self.task.row_files(split)
        there = {rate: names_in(self.task.folder / str(rate) / split) for rate in self.rates}
        rates = [
            self._rate_of(split, file, [rate for rate in self.rates if file in there[rate]])
            for file in files
        ]
        if missing := [file for file, rate in zip(files, rates, strict=True) if not rate]:
            folders = ", ".join(str(rate) for rate in self.task.rates()) or "none"
            raise TaskError(
                f"{self.task.name}: {len(missing)} of {len(files)} audio files of {split} are "
                f"missing: {some(missing)}. They belong into "
                f"{self.target / split}, or that of another rate (there: {folders})."
            )
        return [
            self._header(file, self.task.audio(split, file, rate), rate)
            for file, rate in zip(files, rates, strict=True)
        ]

    def _rate_of(self, split: str, file: str, rates: list[int]) -> int:
        """Return which of the rates that have a file it is taken from; 0 where none has it."""
        if self.made and len(rates) > 1 and rates[0] == self.rate:
            made, source = (self.task.audio(split, file, rate).stat() for rate in rates[:2])
            if made.st_mtime_ns != source.st_mtime_ns:
                return rates[1]
        return rates[0] if rates else 0

    def _header(self, file: str, path: Path, rate: int) -> ClipFile:
        if holds_no_samples(path):
            return ClipFile(file, path, rate, round(SILENCE * self.rate), 1, empty=True)
        with SoundReader(path, rate, any_channels=True) as reader:
            reader.check_layout(any_number=True)
            changed = file_status(path).st_mtime_ns
            if reader.file_rate != rate:
                raise AudioError(
                    f"{path} has a sample rate of {reader.file_rate} Hz; in the folder {rate} it "
                    f"must be {rate} Hz."
                )
            if reader.convention not in (None, "ambix") and not self._said_convention:
                self._said_convention = True
                warnings.warn(
                    f"{path} is Ambisonic in {reader.convention!r}; such files are handed over in "
                    "AmbiX. Leave convention out of --model-options.",
                    stacklevel=3,
                )
            samples = max(1, resampled_length(round(reader.duration * rate), rate, self.rate))
            return ClipFile(file, path, rate, samples, reader.channels, changed)

    def load(self, split: str, clip: ClipFile) -> np.ndarray:
        """Return a clip, (samples,) or (samples, channels) float32 at the module's rate."""
        if clip.empty:
            return np.zeros(clip.samples, dtype=np.float32)
        audio, rate = read_samples(clip.path)
        if len(audio) == 0:
            raise AudioError(f"{clip.path} holds no samples.")
        if not np.isfinite(audio).all():
            raise AudioError(f"{clip.path} holds NaN or infinite samples; repair the file.")
        if rate != self.rate:
            audio = resample(audio, rate, self.rate)
            if self.keep:
                self._cache(split, clip, audio)
        return audio[:, 0] if audio.shape[1] == 1 else audio

    def _cache(self, split: str, clip: ClipFile, audio: np.ndarray) -> None:
        """Keep a resampled clip beside the task; it is float32, so that it stays what it is.

        The kept file gets the time of the file that it was made from.
        """
        import soundfile

        encoded = io.BytesIO()
        soundfile.write(encoded, audio, self.rate, subtype="FLOAT", format="WAV")
        path = self.task.audio(split, clip.file, self.rate)
        try:
            self._make_target()
            path.parent.mkdir(exist_ok=True)
            content = encoded.getbuffer()
            write_whole(path, lambda temporary: _write_as_of(temporary, content, clip.time))
        except OSError as error:
            if self.keep:
                self.keep = False
                warnings.warn(
                    f"Resampled audio cannot be kept in {self.target} ({reason_of(error)}); it is "
                    "made anew in every run.",
                    stacklevel=2,
                )

    def _make_target(self) -> None:
        """Make the rate's folder together with what says that it is no original."""
        if self.target.exists():
            return
        temporary = self.target.with_name(f".{uuid.uuid4().hex}.partial")
        temporary.mkdir()
        (temporary / RESAMPLED).write_text('{"by": "gram-hear"}\n', encoding="utf-8")
        try:
            os.rename(temporary, self.target)
        except OSError:
            shutil.rmtree(temporary)
            if not (self.target / RESAMPLED).exists():
                raise  # else another thread or run was faster


def _write_as_of(path: Path, content: memoryview, time: int) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
