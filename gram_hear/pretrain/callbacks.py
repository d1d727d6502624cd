"""What a run shows: curves, speed, and pictures of reconstructions."""

import io
import sys
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from gram_hear.console import say
from gram_hear.errors import OptionError
from gram_hear.extras import need
from gram_hear.jobs.writing import write_whole
from gram_hear.plots.reconstruction import reconstruction_figure, unpatchify
from gram_hear.pretrain.curve_file import CurveFile
from gram_hear.pretrain.datamodule import PretrainingData, TimedLoader
from gram_hear.pretrain.module import Pretraining

PICTURES, CURVES = "pictures", "curves.csv"  # in the folder of the run
DPI = 150
RECENT = 10  # entries of the log that the time to go is computed from
COLUMNS = (  # of curves.csv
    "time",
    "train/loss",
    "validation/loss",
    "train/learning_rate",
    "train/gradient_norm",
    "speed/steps_per_second",
    "speed/windows_per_second",
    "speed/audio_hours_per_hour",
    "speed/data_wait",
    "speed/hours_to_go",
    "data/skipped",
)


class StepCounter(Callback):
    """A callback for optimizer steps, however many batches are accumulated in each."""

    _seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count at the first step of this run."""
        self._seen = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Call :meth:`on_step` where this batch completed a step."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.on_step(trainer, pl_module, self._seen)

    def on_step(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Act after ``step`` optimizer steps; for subclasses."""


def is_training(trainer: Trainer) -> bool:
    """Whether a validation is part of training, not one of its own or Lightning's sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def is_trial(trainer: Trainer) -> bool:
    """Whether this is Lightning's fast_dev_run, which writes nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def is_validated(trainer: Trainer, step: int) -> bool:
    """Whether a validation follows after a step."""
    return bool(trainer.enable_validation) and step % data_of(trainer).validate_every == 0


class Curves(StepCounter):
    """Logs loss, learning rate, gradient norm and speed every trainer.log_every_n_steps steps.

    Where that is 0, it logs the last step alone. All is written into curves.csv too. Without a
    progress bar, as off a terminal, it also prints a line for each entry.
    """

    _file: CurveFile | None = None  # in the first process
    _unwritten: dict[str, float] | None = None  # of a step that is being validated

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and begin or go on with curves.csv."""
        super().on_train_start(trainer, pl_module)
        self._entries = deque[tuple[float, int]](maxlen=RECENT)  # time and step, from the first one
        if trainer.is_global_zero and not is_trial(trainer):
            path = Path(trainer.default_root_dir) / CURVES
            self._file = CurveFile(path, COLUMNS, trainer.global_step)
        self._restart(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of a last step that was not validated, since the run was to end."""
        self._write(trainer.global_step, {})

    def _restart(self, trainer: Trainer) -> None:
        self._time, self._step = time.perf_counter(), trainer.global_step
        self._waited = _loader(trainer).waited
        self._validated = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again, and log the validation loss."""
        if not is_training(trainer):
            return
        self._validated += time.perf_counter() - self._validation_start
        loss = float(trainer.callback_metrics["validation/loss"])
        step = trainer.global_step  # Lightning would log it one step earlier
        for logger in trainer.loggers:
            logger.log_metrics({"validation/loss": loss}, step=step)
        self._unwritten = self._unwritten or {}
        self._write(step, {"validation/loss": loss})
        _report(trainer, f"step {step}: validation loss {loss:.4f}")

    def on_step(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Log every trainer.log_every_n_steps steps, and the last step."""
        assert isinstance(module, Pretraining)
        if not self._entries:
            self._entries.append((time.perf_counter(), step))
            seconds = self._entries[0][0] - self._time
            _report(trainer, f"The first step of this run took {spoken_time(seconds)}.")
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step < trainer.max_steps and (not every or step % every):
            return
        values = {
            "train/loss": module.step_loss,
            "train/learning_rate": self._rate(trainer),
            "train/gradient_norm": module.gradient_norm,
            "data/skipped": float(module.skipped),
            **self._speed(trainer, step),
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        self._unwritten = values
        if not is_validated(trainer, step):
            self._write(step, {})
        hours = values.get("speed/hours_to_go")
        _report(
            trainer,
            f"step {step} of {trainer.max_steps}: loss {module.step_loss:.4f}, "
            f"{values['speed/steps_per_second']:.3g} steps/s, "
            f"{values['speed/windows_per_second']:.1f} windows/s, "
            f"{100 * values['speed/data_wait']:.0f} % of the time waiting for data"
            + (f", {spoken_time(3600 * hours)} to go" if hours else "")
            + (f", {module.skipped} sounds or rooms could not be read" if module.skipped else ""),
        )
        self._restart(trainer)

    def _write(self, step: int, more: dict[str, float]) -> None:
        """Write a row of curves.csv, if there is one to write."""
        if self._file is not None and self._unwritten is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._file.add(step, {"time": now, **self._unwritten, **more})
        self._unwritten = None

    def _rate(self, trainer: Trainer) -> float:
        """Return the learning rate of the step that was just made."""
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        factor = scheduler.lr_lambdas[0](trainer.global_step - 1)  # type: ignore[union-attr]
        return float(scheduler.base_lrs[0] * factor)

    def _speed(self, trainer: Trainer, step: int) -> dict[str, float]:
        data, now = data_of(trainer), time.perf_counter()
        seconds = max(1e-9, now - self._time - self._validated)
        steps = (step - self._step) / seconds
        speed = {
            "speed/steps_per_second": steps,
            "speed/windows_per_second": steps * data.batch * data.windows,
            "speed/audio_hours_per_hour": steps * data.batch * data.seconds,
            "speed/data_wait": (_loader(trainer).waited - self._waited) / seconds,
        }
        begin, first = self._entries[0]
        if step > first:  # with validation and checkpoints
            each = (now - begin) / (step - first)
            speed["speed/hours_to_go"] = (trainer.max_steps - step) * each / 3600
            self._entries.append((now, step))
        return speed


class Pictures(Callback):
    """Draws the reconstruction of a validation window, for TensorBoard and as PNG files."""

    def __init__(self, every: int = 1) -> None:
        """Pictures of reconstructions.

        Args:
            every: Number of validations from one picture to the next.
        """
        if every < 1:
            raise OptionError(f"pictures.every is {every}; it must be at least 1.")
        self.every = every
        self._validations = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first window of the first batch."""
        if batch_idx or not is_training(trainer) or not trainer.is_global_zero:
            return
        self._validations += 1
        if (self._validations - 1) % self.every:
            return
        assert isinstance(outputs, dict)
        assert isinstance(pl_module, Pretraining)
        step, target = trainer.global_step, outputs["target"]
        figure = reconstruction_figure(
            _window(pl_module, target),
            _window(pl_module, outputs["prediction"]),
            _window(pl_module, batch["masks"][0, :1, :, None].expand_as(target[:1])) > 0,
            pl_module.config,
            f"Step {step}: a window of a held-out room",
        )
        png, pixels = rasterise(figure)
        path = Path(trainer.default_root_dir) / PICTURES / f"step-{step:09d}.png"
        if not is_trial(trainer):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda temporary: temporary.write_bytes(png))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    "validation/reconstruction", pixels, step, dataformats="HWC"
                )


def _window(module: Pretraining, patches: Tensor) -> np.ndarray:
    """Return the first window of patches, (channels, frames, mels)."""
    return unpatchify(patches[:1].float(), module.config)[0].detach().cpu().numpy()


def rasterise(figure: Any) -> tuple[bytes, np.ndarray]:
    """Return a matplotlib figure as a PNG file's bytes, and as pixels (height, width, 3) uint8."""
    figure.set_dpi(DPI)
    canvas = need("matplotlib.backends.backend_agg", "pretrain").FigureCanvasAgg(figure)
    png = io.BytesIO()
    canvas.print_png(png, metadata={"Software": None})
    return png.getvalue(), np.asarray(canvas.buffer_rgba())[..., :3].copy()


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar, which counts training as one epoch, as it is here."""

    _validation: float | None = None  # kept, since each look at the value waits for a GPU

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation loss, to be shown until the next."""
        if not trainer.sanity_checking:
            self._validation = float(trainer.callback_metrics["validation/loss"])
        super().on_validation_end(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the losses, which the bar shows."""
        assert isinstance(pl_module, Pretraining)
        shown: dict[str, int | str | float | dict[str, float]] = {}
        if pl_module.gradient_norm:  # there was a step
            shown["loss"] = f"{pl_module.step_loss:.4f}"
        if self._validation is not None:
            shown["validation"] = f"{self._validation:.4f}"
        return shown


def _report(trainer: Trainer, line: str) -> None:
    """Print a line, where no progress bar is in its way."""
    if trainer.is_global_zero and trainer.progress_bar_callback is None:
        say(line)


def data_of(trainer: Trainer) -> PretrainingData:
    """Return the data of a run."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, PretrainingData)
    return data


def _loader(trainer: Trainer) -> TimedLoader:
    loader = trainer.train_dataloader
    assert isinstance(loader, TimedLoader)
    return loader


def spoken_time(seconds: float) -> str:
    """Return a time with its two largest units: ``"2 d 9 h"``, ``"4 h 12 min"``, ``"40 s"``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 1:
        return f"{minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def shows_progress() -> bool:
    """Whether a progress bar would be seen."""
    return sys.stdout.isatty()
