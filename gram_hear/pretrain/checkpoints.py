"""Checkpoints of a run: written whole or not at all, and resumed exactly."""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from gram_hear.errors import CheckpointError, GramError, reason_of
from gram_hear.foreign import TORCH_FAULTS, parse_json
from gram_hear.jobs.interrupts import interrupts_held
from gram_hear.jobs.writing import link_or_copy, write_json, write_whole
from gram_hear.pretrain.callbacks import StepCounter, is_training, is_trial, is_validated
from gram_hear.pretrain.datamodule import PretrainingData
from gram_hear.pretrain.stopping import stop_signals

FOLDER = "checkpoints"  # in the folder of the run
LAST, BEST = "last.ckpt", "best.ckpt"
PARTS = {  # of a checkpoint, which Lightning would go on without, or stop with a traceback
    *("state_dict", "loops", "global_step", "optimizer_states", "lr_schedulers"),
    PretrainingData.__name__,
}


class Stopped(GramError):
    """Training was asked to stop, and has saved its state."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(f"{message} The same command with --ckpt_path last goes on from there.")
        self.code = code  # of the process: 128 plus the number of the signal


class WholeCheckpointIO(TorchCheckpointIO):
    """Files of torch.save that appear when they are whole, and are read without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; where that fails, as on a full disk, the one before is kept."""

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # or a crash may leave the name without the content

        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, write)
        except (OSError, RuntimeError) as error:  # torch's writer of archives raises the latter
            kept = "; the last one that was written is kept" if path.exists() else ""
            raise CheckpointError(
                f"The checkpoint {path} could not be written ({reason_of(_cause(error))})"
                f"{kept}. Make room on the disk, and resume with --ckpt_path last."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint into main memory; see :func:`read_checkpoint`."""
        return read_checkpoint(Path(path))


def _cause(error: BaseException) -> BaseException:
    """Return the system's error behind one of torch's writer, whose message leaves it out."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__context__
    return seen or error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run.

    Raises:
        CheckpointError: where it is missing, damaged, or holds more than plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except TORCH_FAULTS as error:
        raise CheckpointError(
            f"{path} cannot be resumed from: it is not a whole checkpoint of gram_hear.pretrain "
            f"({type(error).__name__})."
        ) from error
    if not isinstance(content, dict) or not content.keys() >= PARTS:
        raise CheckpointError(
            f"{path} is no checkpoint of a run, which has its optimizer and position in it. To "
            "start from its weights, give it as --model.init."
        )
    return content


class Checkpoints(StepCounter, Checkpoint):
    """Writes last.ckpt and best.ckpt, keeps some checkpoints, and saves before a run is stopped."""

    def __init__(self, every: int = 1000, keep_every: int = 50_000) -> None:
        """When checkpoints are written and kept.

        Args:
            every: Number of optimizer steps after which last.ckpt is replaced. It is also written
                at the end, and when the process is told to stop (SIGTERM, SIGUSR1, Ctrl-C).
            keep_every: Number of steps after which a checkpoint is kept, as step-000050000.ckpt.
        """
        super().__init__()
        for name, value in {"every": every, "keep_every": keep_every}.items():
            if value < 1:
                raise CheckpointError(f"checkpoints.{name} is {value}; it must be at least 1.")
        self.every = every
        self.keep_every = keep_every
        self.best: float | None = None  # the validation loss of best.ckpt
        self._saved: int | None = None  # the step of last.ckpt

    # --- signals ----------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the signals to stop, until they are taken back from Lightning."""
        stop_signals.hold()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals to stop, on which Lightning would act in the middle of a step.

        Raises:
            Stopped: where a process was asked to stop before its first step.
        """
        super().on_train_start(trainer, pl_module)
        # From the folder, not the checkpoint: best.ckpt may be newer than what is resumed from.
        self.best = trainer.strategy.broadcast(read_best(self.folder(trainer)))
        stop_signals.begin()
        if asked := _asked(trainer):
            raise Stopped(f"Stopped at step {trainer.global_step}, as it began.", 128 + asked)

    # --- saving -----------------------------------------------------------------------------

    def folder(self, trainer: Trainer) -> Path:
        """Return where the checkpoints of a run are."""
        return Path(trainer.default_root_dir) / FOLDER

    def on_step(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Save where it is due, or the process was told to stop.

        After a step that is followed by validation, this waits for it: a run that is resumed from
        here would leave the validation out.
        """
        if not is_validated(trainer, step):
            self._save_if_due(trainer, step)

    def _save_if_due(self, trainer: Trainer, step: int) -> None:
        stop = _asked(trainer)
        keep = step % self.keep_every == 0
        due = stop or keep or step % self.every == 0 or step >= trainer.max_steps
        if not due or is_trial(trainer):
            return
        last = self._save_last(trainer)
        if keep and trainer.is_global_zero:
            # last.ckpt is only ever replaced, so a second name for it keeps its content.
            write_whole(last.with_name(f"step-{step:09d}.ckpt"), partial(link_or_copy, last))
        if stop:
            raise Stopped(f"Stopped after step {step}; {last} is saved.", 128 + stop)

    def _save_last(self, trainer: Trainer) -> Path:
        last = self.folder(trainer) / LAST
        with interrupts_held():
            trainer.save_checkpoint(last)
        self._saved = trainer.global_step
        return last

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where training ended before its last step, as trainer.max_time does."""
        if trainer.global_step not in (0, self._saved) and not is_trial(trainer):
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save best.ckpt where no validation loss was lower."""
        if not is_training(trainer) or is_trial(trainer):
            return
        loss = float(trainer.callback_metrics["validation/loss"])
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best = loss
            path = self.folder(trainer) / BEST
            with interrupts_held():
                trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                found = {"step": trainer.global_step, "validation/loss": loss}
                write_json(path.with_suffix(".json"), found, indent=None)
        self._save_if_due(trainer, trainer.global_step)


def _asked(trainer: Trainer) -> int:
    """Return the number of the signal by which any process of a run was asked to stop, or 0.

    The first process, whose exit code counts, may not have received it yet.
    """
    number = stop_signals.received or 0
    if trainer.world_size == 1:
        return number
    here = torch.tensor(number, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(here, reduce_op="max"))


def read_best(folder: Path) -> float | None:
    """Return the validation loss of best.ckpt; None where there is none."""
    path = (folder / BEST).with_suffix(".json")
    try:
        return float(parse_json(path.read_bytes(), str(path), CheckpointError)["validation/loss"])
    except (OSError, CheckpointError, ValueError, KeyError, TypeError):
        return None


def own_checkpoints(root: Path) -> dict[str, Path]:
    """Return the checkpoints of a run that have names on the command line."""
    return {"last": root / FOLDER / LAST, "best": root / FOLDER / BEST}


def find_checkpoint(asked: str | None, root: Path) -> Path | None:
    """Return the checkpoint that a run resumes from; None where it begins anew.

    Args:
        asked: a file, "last" or "best" of the run's own, or None. With "last", a run that has
            saved nothing yet begins anew, so that one command serves for both.
        root: the folder of the run.

    Raises:
        CheckpointError: where the file is not there, or a new run would begin in the folder of
            another.
    """
    own = own_checkpoints(root)
    there = next((name for name, path in own.items() if path.exists()), None)
    if there and (asked is None or (asked == "last" and there == "best")):
        raise CheckpointError(
            f"There is a run in {root} already. Go on with it: --ckpt_path {there}; or begin "
            "another elsewhere: --trainer.default_root_dir FOLDER."
        )
    if asked is None:
        return None
    path = own.get(asked, Path(asked))
    if asked == "last" and not path.exists():
        return None
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path} to resume from.")
    return path


def checkpoint_to_validate(asked: str | None, root: Path, init: str | None) -> Path | None:
    """Return the checkpoint to validate; None for the first weights of ``--model.init``.

    Args:
        asked: a file, "last" or "best" of the run's own, or None.
        root: the folder of the run.
        init: the checkpoint that a model would start from.

    Raises:
        CheckpointError: where none was given, or it is not there.
    """
    if asked is None and init is None:
        raise CheckpointError(
            "Which checkpoint is to be validated? Give --ckpt_path best, --ckpt_path last or "
            "--ckpt_path FILE; or a model without its training as --model.init."
        )
    if asked is None:
        return None
    path = own_checkpoints(root).get(asked, Path(asked))
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path} to validate.")
    return path
