"""What a run says before its first step, and which of its options are logged."""

import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from gram_hear.checkpoints.store import describe
from gram_hear.console import say
from gram_hear.errors import count
from gram_hear.pretrain.callbacks import data_of, is_trial, spoken_time
from gram_hear.pretrain.datamodule import PretrainingData
from gram_hear.pretrain.module import Pretraining
from gram_hear.pretrain.new_model import flatten
from gram_hear.pretrain.samples import SampleSet

STATE = 12  # bytes of a parameter in a checkpoint: itself and AdamW's two moments, in float32


class StartReport(Callback):
    """Says what a run is made of, what it opens and what it waits for, until its first step."""

    _begun = 0.0

    def announce(
        self, trainer: Trainer, model: Pretraining, data: PretrainingData, kept: int
    ) -> None:
        """Say what is going to be trained, before any data are opened.

        Args:
            trainer, model, data: of the run.
            kept: checkpoints.keep_every.
        """
        self._begun = time.perf_counter()
        root = Path(trainer.default_root_dir)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        say(
            f"A {describe(model.config)} with {parameters / 1e6:.1f} million parameters, "
            f"{data.batch} clips x {data.windows} windows a step; "
            f"{'synthetic sounds' if data.clips is None else 'recorded sounds'}; "
            f"{'nothing is written' if is_trial(trainer) else f'into {root}'}."
        )
        say(
            f"{count(trainer.max_steps, 'step')} in {trainer.precision} on "
            f"{count(trainer.world_size, 'process', 'processes')} "
            f"({trainer.strategy.root_device.type})."
        )
        if not is_trial(trainer):
            size = STATE * parameters / 1e9
            written = 2 + trainer.max_steps // kept  # last.ckpt and best.ckpt beside those kept
            free = shutil.disk_usage(root).free / 1e9
            say(
                f"A checkpoint takes about {size:.2g} GB. In the end, {written} of them take "
                f"{written * size:.2g} GB; {free:.3g} GB are free there."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was opened, and which processes are ready."""
        data = data_of(trainer)
        if trainer.is_global_zero:
            say(
                f"Opened in {spoken_time(time.perf_counter() - self._begun)}. Training: "
                f"{_contents(data.training)}. Validation: {_contents(data.validation)}."
            )
        if trainer.world_size > 1:
            say(
                f"process {trainer.global_rank}: ready on {socket.gethostname()}, "
                f"{pl_module.device}; it waits for the other {trainer.world_size - 1}."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where training begins, and why its first step takes longer."""
        if trainer.is_global_zero:
            data = data_of(trainer)
            loading = count(data.workers, "loading process", "loading processes")
            say(
                f"Training begins with step {trainer.global_step + 1}, the slowest: it waits until "
                f"{loading if data.workers else 'this process'} has the first samples."
            )


def _contents(samples: SampleSet | None) -> str:
    assert samples is not None
    rooms = count(len(samples.rooms), "scene") if samples.rooms is not None else "no rooms"
    return f"{count(len(samples), 'clip')}, {rooms}"


def log_hyperparameters(loggers: Iterable[Logger], options: Mapping[str, Any]) -> None:
    """Log the options of a run, by their names on the command line.

    TensorBoard shows them beside the last validation loss. Lightning would add a point to the curve
    of that to begin with.
    """
    named = {name: _plain(value) for name, value in flatten(dict(options)).items()}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for summary in hparams(named, {"validation/loss": 0.0}):
                logger.experiment.file_writer.add_summary(summary)
        else:
            logger.log_hyperparams(named)


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
