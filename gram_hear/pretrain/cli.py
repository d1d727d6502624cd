"""The command line of pretraining, on LightningCLI."""

import codecs
import locale
import logging
import math
import os
import sys
import warnings
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import set_dumper
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from gram_hear.console import results, say, show_warning
from gram_hear.devices import matmul_precision
from gram_hear.errors import GramError, OptionError, TrainingError, nearest
from gram_hear.jobs.locks import locked
from gram_hear.pretrain.callbacks import Curves, Pictures, ProgressBar, is_trial, shows_progress
from gram_hear.pretrain.checkpoints import (
    FOLDER,
    LAST,
    Checkpoints,
    Stopped,
    WholeCheckpointIO,
    checkpoint_to_validate,
    find_checkpoint,
)
from gram_hear.pretrain.datamodule import PretrainingData
from gram_hear.pretrain.module import Pretraining
from gram_hear.pretrain.start_report import StartReport, log_hyperparameters
from gram_hear.pretrain.stopping import stop_signals
from gram_hear.pretrain.trust import LARGEST_TEXT, TRUST, Parser, restrict

CONFIGS = Path(__file__).parent / "configs"
SUFFIXES = (".yaml", ".yml", ".json")
DEFAULT = ["fit", "--config", "tiny"]
INTERRUPTED = "Interrupted, without saving. Checkpoints that were written before are kept."
BOARD = "tensorboard"  # in the folder of the run
DESCRIPTION = (
    "Pretrain a GRAM model (fit), or print the validation loss of a checkpoint (validate). Without "
    "a command, this is fit. Without arguments, it trains a tiny model on synthetic sounds. To "
    "learn about the options, write fit --help or validate --help."
)
CHECKPOINT = (
    "The checkpoint that training goes on from, or that is validated: last or best of the run's "
    "folder, or a file. Training with last begins anew where nothing was saved yet."
)
FIT = "Train a model, or go on training it with --ckpt_path last."
FIT_EXAMPLE = (
    "Example: python -m gram_hear.pretrain fit --config gramt-binaural --data.clips clips "
    "--trainer.default_root_dir runs/mine"
)
VALIDATE = (
    "Print the validation loss of a checkpoint, as training did at its step. Nothing is written. "
    "Give the options of the training. Of its data, those of the validation alone are opened."
)
VALIDATE_EXAMPLE = (
    "Example: python -m gram_hear.pretrain validate --config gramt-binaural --data.clips clips "
    "--trainer.default_root_dir runs/mine --ckpt_path best"
)
TRUST_HELP = f"{TRUST} lets configurations name any class: they can then run any code."


class PretrainingCLI(LightningCLI):
    """``python -m gram_hear.pretrain fit`` and ``validate``: a model, its data and a trainer."""

    trainer: Trainer
    model: Pretraining
    datamodule: PretrainingData

    def __init__(self, held: ExitStack) -> None:
        """Run the command line; whoever closes ``held`` lets go of the lock of the run's folder."""
        self.held = held
        self.report = StartReport()
        super().__init__(
            Pretraining,
            PretrainingData,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": "python -m gram_hear.pretrain",
                "description": DESCRIPTION,
                "fit": {"description": FIT, "epilog": f"{TRUST_HELP} {FIT_EXAMPLE}"},
                "validate": {
                    "description": VALIDATE,
                    "epilog": f"{TRUST_HELP} {VALIDATE_EXAMPLE}",
                },
            },
            trainer_defaults={
                # The stream is shared out here, and begins where it should after a restart.
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "callbacks": [self.report, Curves()],
            },
            seed_everything_default=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands, and the arguments of Lightning that they leave out."""
        skipped = {"model", "datamodule", "ckpt_path", "weights_only"}
        return {
            "fit": skipped | {"train_dataloaders", "val_dataloaders"},
            "validate": skipped | {"dataloaders", "verbose"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the callbacks, and the checkpoint."""
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=CHECKPOINT)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line without ``--trust-config``, which Lightning does not know.

        ``sys.argv`` keeps it, since Lightning starts further processes with that.
        """
        try:
            self.config = parser.parse_args([each for each in sys.argv[1:] if each != TRUST])
        except UnicodeDecodeError as error:
            raise OptionError(
                f"A configuration is no text in {error.encoding} (byte {error.start}: "
                f"{error.reason}). Save it as UTF-8."
            ) from error
        self._find_checkpoint()

    def _parse_ckpt_path(self) -> None:
        """Read nothing from the checkpoint, where Lightning would read hyperparameters."""

    def _find_checkpoint(self) -> None:
        """Find the checkpoint to go on from, or to validate, before anything is made."""
        options = self.config[self.config.subcommand]
        root = Path(options.trainer.default_root_dir or ".")
        self.asked = options.ckpt_path
        if self.config.subcommand == "fit":
            self.found = find_checkpoint(self.asked, root)
        else:
            self.found = checkpoint_to_validate(self.asked, root, options.model.init)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer with this package's precision, logger and checkpoints."""
        given = self._get(self.config_init, "trainer")
        _check_share(given)
        root = Path(given.default_root_dir or ".")
        progress = given.enable_progress_bar is not False and shows_progress()
        if progress:
            self.trainer_defaults["callbacks"] += [ProgressBar()]
        kwargs |= {
            "default_root_dir": root,
            "precision": given.precision or best_precision(given.accelerator),
            "enable_progress_bar": progress,
        }
        if self.subcommand == "validate":
            kwargs["logger"] = False
            self.save_config_callback = None
        elif given.logger is None:
            kwargs["logger"] = TensorBoardLogger(root, name=None, version=BOARD)
        try:
            asked = given.plugins or []
            asked = asked if isinstance(asked, list) else [asked]
            plugins = [*asked, *_cluster(), WholeCheckpointIO()]
            trainer = super().instantiate_trainer(**kwargs, plugins=plugins)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise OptionError(f"The trainer cannot be made so: {error}") from error
        _check_processes(trainer)
        return trainer

    def before_fit(self) -> None:
        """Take the folder for this run alone, and say what is going to be trained.

        Raises:
            OptionError: where trainer.max_steps is missing, or another run writes the folder.
        """
        if self.trainer.max_steps < 1:
            raise OptionError(
                f"trainer.max_steps is {self.trainer.max_steps}; the schedule needs it. Begin with "
                "a config, such as --config gramt-binaural, or give --trainer.max_steps."
            )
        stop_signals.is_first = _rank() == 0
        if _rank() == 0:
            data = self.datamodule
            if not is_trial(self.trainer):
                self._take_folder()
            options = self.config[self.config.subcommand]
            self.report.announce(self.trainer, self.model, data, options.checkpoints.keep_every)
            if self.model.origin and self.found is None:
                say(self.model.origin)
            if data.clean_fraction == 1 and data.clips and not data.validation_clips:
                say(
                    "All clips stay dry and data.validation_clips is not given: the validation "
                    "loss will be of clips that are learned from."
                )
            made_with = {name: options[name].as_dict() for name in ("model", "data")}
            log_hyperparameters(self.trainer.loggers, made_with)
            say("Opening the clips, rooms and noises.")

    def _take_folder(self) -> None:
        """Keep other runs out of the folder until this process ends.

        The first process of a run holds the lock for all of them. A process that is killed lets go
        of it at once, so a job that is queued again can go on.

        Raises:
            OptionError: where another run holds it, or has written a checkpoint meanwhile.
        """
        root = Path(self.trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        self.held.enter_context(locked(root))
        if find_checkpoint(self.asked, root) != self.found:
            raise OptionError(
                f"Another run has written checkpoints into {root} since this one was started. "
                "Start it again, to go on from them."
            )
        if self.asked == "last" and self.found is None:
            say(f"There is no {root / FOLDER / LAST} yet; training begins anew.")

    def fit(self, **arguments: Any) -> None:
        """Train."""
        with self._products():
            self.trainer.fit(**arguments, ckpt_path=self.found)

    def _products(self) -> AbstractContextManager[None]:
        """Return in what float32 matrix products on a GPU have their precision."""
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return matmul_precision(self.model.matmul_precision) if on_gpu else nullcontext()

    def validate(self, **arguments: Any) -> None:
        """Compute the validation loss, and print it as one line on stdout.

        Raises:
            TrainingError: where it is not finite.
        """
        with self._products():
            self.trainer.validate(**arguments, ckpt_path=self.found, verbose=False)
        loss = float(self.trainer.callback_metrics["validation/loss"])
        if not math.isfinite(loss):
            raise TrainingError(f"The validation loss of {self.found or 'the model'} is {loss}.")
        if _rank() == 0:
            step = self.datamodule.position // self.datamodule.batch
            say(f"step {step}: validation loss {loss:.7g}", results)

    def after_fit(self) -> None:
        """Print what was trained, and what to do with it."""
        trainer, data = self.trainer, self.datamodule
        if _rank() or is_trial(trainer):
            return
        steps = trainer.global_step
        if steps >= trainer.max_steps and data.position == steps * data.batch:
            say(
                f"The checkpoint has all {steps} steps of this run already; nothing was done. To "
                "train longer, raise trainer.max_steps: the learning rate then follows "
                "the longer schedule."
            )
            return
        if data.position == steps * data.batch:
            raise OptionError(
                "No step was made: trainer.max_time (which counts over all restarts), max_epochs "
                "or the like had ended the run before."
            )
        last = Path(trainer.default_root_dir) / FOLDER / LAST
        say(
            f"Trained {steps} steps; {last} is saved. To embed with it: gram-hear "
            f"convert {last} -o model.safetensors"
        )


def _check_share(given: Any) -> None:
    """Refuse options of Lightning that cut an epoch short, since samples would then repeat."""
    whole = {"limit_train_batches": (None, 1.0), "overfit_batches": (None, 0.0)}
    for name, allowed in whole.items():
        if given.get(name) not in allowed and not given.fast_dev_run:
            raise OptionError(
                f"trainer.{name} is {given.get(name):g}; it would begin the stream of samples anew "
                "after so many. Train on fewer clips with data.clips, for fewer steps with "
                "trainer.max_steps, or try a step with trainer.fast_dev_run."
            )


def _uses_srun() -> bool:
    """Whether srun starts the processes; torchrun in a job has its own count of them."""
    return SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()


def _cluster() -> list[SLURMEnvironment]:
    """Return SLURM's environment under srun, without Lightning's own requeueing and saving."""
    return [SLURMEnvironment(auto_requeue=False)] if _uses_srun() else []


def _check_processes(trainer: Trainer) -> None:
    """Refuse processes of srun or torchrun that are not one for each device.

    They would train the same model side by side, or wait for others.
    """
    if TorchElasticEnvironment.detect():
        count, options = "WORLD_SIZE", "--nproc_per_node as trainer.devices, --nnodes"
    elif _uses_srun():
        count, options = "SLURM_NTASKS", "--ntasks-per-node as trainer.devices, --nodes"
    else:
        return
    if int(os.environ[count]) != trainer.num_devices * trainer.num_nodes:
        raise OptionError(
            f"{os.environ[count]} processes were started, and the trainer uses "
            f"{trainer.num_devices} devices on each of {trainer.num_nodes} nodes. Start one for "
            f"each device: {options} as trainer.num_nodes."
        )


def best_precision(accelerator: Any) -> str:
    """Return bf16-mixed where a GPU that supports it will be used, else 32-true."""
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(False) else "32-true"


def find_config(name: str) -> str:
    """Return the path of a config: a file, or a bare name here or among the shipped ones."""
    here = [Path(name), *(Path(name + suffix) for suffix in SUFFIXES)]
    shipped = [CONFIGS / f"{name}.yaml"] if Path(name).name == name else []
    for path in [*here, *shipped]:
        if path.is_file():
            if path.stat().st_size > LARGEST_TEXT:
                raise OptionError(
                    f"{path} has {path.stat().st_size} bytes; a config has at most {LARGEST_TEXT}."
                )
            return str(path)
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    raise OptionError(
        f"There is no config {name}, here or among the shipped ones: {', '.join(names)}."
        + nearest(name, names)
    )


def complete(arguments: list[str]) -> list[str]:
    """Return a command line with the command, and the toy config, where they were left out."""
    if arguments and (not arguments[0].startswith("-") or arguments[0] in ("-h", "--help")):
        return arguments
    named = any(each.partition("=")[0] in ("--config", "-c") for each in arguments)
    return ["fit", *arguments] if named else [*DEFAULT, *arguments]


def find_configs(arguments: list[str]) -> list[str]:
    """Return a command line with the names of configs replaced by their paths."""
    found = []
    for before, argument in pairwise(["", *arguments]):
        option, equals, value = argument.partition("=")
        if before in ("--config", "-c"):
            argument = find_config(argument)
        elif equals and option in ("--config", "-c"):
            argument = f"{option}={find_config(value)}"
        found.append(argument)
    return found


def _dump_yaml(data: Any) -> str:
    """Return YAML that jsonargparse writes and reads again in the encoding of the system."""
    is_utf8 = codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8"
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=is_utf8)


def run() -> int:
    """Run the command line of this process, and return its exit code."""
    warnings.showwarning = show_warning
    # Lightning starts further processes with this process's command line, so it is changed.
    try:
        sys.argv[1:] = find_configs(complete(sys.argv[1:]))
        restrict(sys.argv[1:])
        set_dumper("yaml", _dump_yaml)
        _quieten()
        with stop_signals, ExitStack() as held:
            PretrainingCLI(held)
    except Stopped as stopped:
        return _leave(str(stopped), stopped.code)
    except (KeyboardInterrupt, SystemExit) as leaving:  # the latter is Lightning's, on Ctrl-C too
        cause = leaving.__context__ if isinstance(leaving, SystemExit) else leaving
        if not isinstance(cause, KeyboardInterrupt):
            raise
        return _leave(INTERRUPTED, stop_signals.code, anyway=True)
    except (GramError, MisconfigurationException) as error:
        return _leave(f"error: {error}", 1)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # as of one that was killed
            raise
        return _leave(
            f"error: a process that loads data ended by itself ({error}). It may have run out of "
            "memory: lower data.workers. What was saved is kept; go on with --ckpt_path last.",
            1,
        )
    except OSError as error:  # of pictures, curves and the like: a full disk
        return _leave(
            f"error: {error}. What was saved is kept; see to the disk, and go on with "
            "--ckpt_path last.",
            1,
        )
    return 0


def _rank() -> int:
    """Return the number of this process among all of a run."""
    return getattr(rank_zero_only, "rank", None) or 0


def _leave(message: str, code: int, anyway: bool = False) -> int:
    """Print why this process ends, and return its exit code.

    Where a run was stopped, its first process alone prints that, and returns another code than 0,
    unless ``anyway`` asks for it: the others may wait for this one, and must be ended.
    """
    rank = _rank()
    if rank == 0:
        say(message)
        return code
    if message.startswith("error"):
        say(f"process {rank}: {message}")
        return code
    return code if anyway else 0


def _quieten() -> None:
    """Hide messages of Lightning that do not hold here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")
    warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before.*")
