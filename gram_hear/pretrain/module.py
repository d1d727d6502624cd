"""One training step: mix, front-end, windows, autoencoder and loss; optimizer and schedule.

Only the first weights are random here, from a seed. Everything else that is drawn comes with a
batch (:mod:`gram_hear.pretrain.samples`).

Nothing that a batch goes through here asks the GPU for a value, since the processor would wait
for it. What has to be known (loss, norm of the gradient, sounds that could not be read) is asked
for at once, in one answer for each optimizer step.
"""

import math
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gram_hear.audio.layouts import to_soundspaces
from gram_hear.checkpoints.store import CONFIG_KEY
from gram_hear.config import ModelConfig
from gram_hear.devices import matmul_precision
from gram_hear.errors import CheckpointError, OptionError, TrainingError, count, require_known
from gram_hear.frontend import FrontEnd
from gram_hear.nn.mae import Reconstruction
from gram_hear.pretrain.memory import keep_freed_memory
from gram_hear.pretrain.new_model import first_weights, make_config, require_same
from gram_hear.pretrain.samples import Sample
from gram_hear.scenes.mixing import mix
from gram_hear.windows import cut_windows

CONVENTION = "ambix"  # of Ambisonic RIRs, and so of the mixtures
MATMUL_PRECISIONS = ("highest", "high", "medium")
# Steps in a row that 16-mixed passes over because gradients overflow. Each halves their scale, so
# after so many it is no scale that makes them overflow.
MOST_OVERFLOWS = 32


class _Seen(NamedTuple):
    """What is kept of each batch of an optimizer step, on the device."""

    loss: Tensor  # ()
    samples: Tensor  # (clips,) their numbers in the stream
    finite: Tensor  # (clips,) bool, whether all windows of the clip are
    skipped: Tensor  # () int64


class Pretraining(LightningModule):
    """A masked autoencoder that learns from batches of :mod:`gram_hear.pretrain.samples`."""

    def __init__(
        self,
        layout: str = "binaural",
        size: str = "base",
        patching: str = "frame",
        backbone: str = "transformer",
        depth: int | None = None,
        decoder_depth: int | None = None,
        log_floor: float | None = None,
        window_fill: str = "silence",
        seed: int = 0,
        init: str | None = None,
        compile: bool = False,
        matmul_precision: str = "high",
        learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
        warmup: int = 10_000,
    ) -> None:
        """The model and its optimizer. The defaults are the published binaural GRAM-T.

        Args:
            layout: Channels that the model hears: mono, binaural or ambisonic.
            size: Named size: tiny, small or base.
            patching: Shape of patches: frame (16 mels x 8 frames) or time (128 mels x 2 frames).
            backbone: Encoder: transformer (GRAM-T), mamba2 (GRAM-M) or mamba1.
            depth: Number of layers of the encoder. null takes that of the size.
            decoder_depth: Number of layers of the decoder. null takes that of the size.
            log_floor: Number added to the mel power before the logarithm. null takes that of the
                published training, 1e-5, or 1e-6 for Ambisonic models.
            window_fill: Content of windows beyond the end of a clip: silence, or zero (the value 0
                in the log-mel).
            seed: Seed of the first weights, or of those that init does not have.
            init: A checkpoint to start from, instead of random weights: a registered model, a
                file, a folder or a repository of the Hub. Its encoder must have the shape of this
                model's. Where its decoder is missing or has another shape, a new one is drawn.
            compile: Use torch.compile.
            matmul_precision: Precision of float32 matrix products on NVIDIA GPUs: highest
                (float32), high (TF32 where the GPU has it) or medium. The front-end always has the
                highest.
            learning_rate: Learning rate of AdamW after the warm-up. From there it falls as a half
                cosine, to zero at trainer.max_steps.
            betas: Betas of AdamW.
            weight_decay: Weight decay of AdamW.
            warmup: Number of optimizer steps in which the learning rate rises linearly.
        """
        super().__init__()
        self.config = make_config(
            layout, size, patching, backbone, depth, decoder_depth, log_floor, window_fill
        )
        if not (learning_rate > 0 and weight_decay >= 0 and warmup >= 0):
            raise OptionError(
                f"learning_rate is {learning_rate}, weight_decay {weight_decay} and warmup "
                f"{warmup}; the first must be above 0, the others at least 0."
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise OptionError(f"betas is {list(betas)}; both must be at least 0 and below 1.")
        require_known("matmul_precision", matmul_precision, MATMUL_PRECISIONS)
        self.matmul_precision = matmul_precision
        self.learning_rate = learning_rate
        self.betas = betas
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.front_end = FrontEnd(self.config.front_end)
        self.noise_gain = "scene"  # of the data, which set it
        self.autoencoder, self.origin = first_weights(self.config, seed, init)
        if compile:
            self.autoencoder.compile()
        # Over all processes: the mean loss and the norm of the gradient before clipping, of the
        # last optimizer step; what could not be read since training began.
        self.step_loss = 0.0
        self.gradient_norm = 0.0
        self.skipped = 0
        self._overflows = 0  # steps in a row
        self._seen: list[_Seen] = []

    def on_fit_start(self) -> None:
        """Keep the memory of a step for the next one, on a CPU."""
        if self.device.type == "cpu":
            keep_freed_memory()

    # --- the step ---------------------------------------------------------------------------

    def log_mel_windows(self, batch: Sample) -> Tensor:
        """Mix a batch's scenes and cut their windows, in the order of the batch.

        Returns:
            (clips * windows, feature channels, window frames, mels) float32, not normalised.
        """
        with matmul_precision("highest"):  # the features that embedding will compute
            features = self.front_end(self._mixtures(batch))
        return cut_windows(features, batch["window_starts"], self.config, self.config.window_fill)

    def _mixtures(self, batch: Sample) -> Tensor:
        """Return the mixtures, (clips, channels, samples); Ambisonic ones in the model's axes."""
        clip, dry, channels = batch["clip"], batch["dry"], self.config.front_end.audio_channels
        copied = clip[:, None].expand(-1, channels, -1)
        if batch["rirs"].shape[-1] == 0:  # all are dry
            return copied
        drawn = (batch[name] for name in ("rirs", "noise", "start", "length", "snr"))
        # Those who drew the values have checked them.
        mixed = mix(clip, *drawn, noise_gain=self.noise_gain, check_values=False)
        audio = mixed.audio
        if self.config.front_end.layout == "ambisonic":
            audio = to_soundspaces(audio, CONVENTION)
        return torch.where(dry[:, None, None], copied, audio)

    def forward(self, batch: Sample) -> Reconstruction:
        """Reconstruct a batch's windows."""
        indices = (batch[name].flatten(0, 1) for name in ("visible", "hidden"))
        reconstruction: Reconstruction = self.autoencoder(self.log_mel_windows(batch), *indices)
        return reconstruction

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        found = self(batch)
        seen = (found.loss.detach(), batch["index"], _are_finite(found, batch))
        self._seen.append(_Seen(*seen, batch["skipped"].sum()))
        return found.loss

    def validation_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """Return a batch's target and prediction; its loss counts towards validation/loss."""
        found = self(batch)
        finite = _are_finite(found, batch)
        if not finite.all():
            raise TrainingError(_why_not_finite(batch["index"][~finite]))
        size = len(batch["index"])
        self.log("validation/loss", found.loss, logger=False, sync_dist=True, batch_size=size)
        return {"target": found.target, "prediction": found.prediction}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient.

        In float16 a gradient that overflows is no error: the scaler passes the step over, and
        lowers its scale.

        Raises:
            TrainingError: where it or the loss is not finite; the message names the samples.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise OptionError(
                f"trainer.gradient_clip_algorithm is {gradient_clip_algorithm!r}; gradients are "
                "clipped by their norm. Leave it out."
            )
        limit = float(gradient_clip_val or math.inf)  # 0 is none, as Lightning has it
        if limit < 0:
            raise OptionError(
                f"trainer.gradient_clip_val is {limit:g}; it must be above 0, or 0 to clip nothing."
            )
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and optimizer.defaults.get("fused"):
            scaler.unscale_(optimizer)  # which Lightning would leave to the step, after clipping
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit)
        self._take_stock(norm)
        overflowed = not math.isfinite(self.gradient_norm)
        self._overflows = self._overflows + 1 if overflowed else 0
        allowed = 0 if scaler is None else MOST_OVERFLOWS
        if not math.isfinite(self.step_loss) or self._overflows > allowed:
            raise TrainingError(self._why_stopped())
        self._seen.clear()

    def _take_stock(self, norm: Tensor) -> None:
        """Ask the device what came of a step, the only time that the processor waits for it.

        All processes get the same, so that all of them stop where one must.
        """
        loss = torch.stack([seen.loss for seen in self._seen]).mean()
        skipped = torch.stack([seen.skipped for seen in self._seen]).sum()
        here = torch.stack([loss, norm.to(loss.dtype), skipped.to(loss.dtype)])
        total = self.trainer.strategy.reduce(here, reduce_op="sum")
        assert isinstance(total, Tensor)
        losses, norms, skips = total.tolist()
        self.step_loss = losses / self.trainer.world_size
        self.gradient_norm = norms / self.trainer.world_size
        self.skipped += round(skips)

    def _why_stopped(self) -> str:
        """Return a message with the samples of a step whose loss or gradient is not finite.

        They are gathered from all processes, since the gradient is the mean over all.
        """
        gather = self.trainer.strategy.all_gather
        losses = gather(torch.stack([seen.loss for seen in self._seen])).flatten()
        indices = gather(torch.stack([seen.samples for seen in self._seen])).flatten(0, -2)
        finite = gather(torch.stack([seen.finite for seen in self._seen])).flatten(0, -2)
        if not finite.all():
            return _why_not_finite(indices[~finite])
        wrong = ~losses.isfinite()
        what = "loss" if wrong.any() else "gradient"
        samples = indices[wrong if wrong.any() else torch.ones_like(wrong)]
        return (
            f"The {what} of step {self.global_step + 1} is not finite, and training stopped before "
            f"it. Samples of the stream in it: {_numbers(samples)}. What was "
            "saved is kept. Go on from it (--ckpt_path last, or best) with a lower "
            "model.learning_rate, or in float32 (trainer.precision 32-true), or without the clips "
            "of these samples."
        )

    # --- optimizer --------------------------------------------------------------------------

    @property
    def fused(self) -> bool:
        """Whether AdamW computes all in one kernel, as it does on CUDA."""
        return self.trainer.strategy.root_device.type == "cuda"

    def configure_optimizers(self) -> Any:
        """Return AdamW for all parameters, and the schedule of the learning rate by step."""
        steps = self.trainer.max_steps
        optimizer = AdamW(
            self.parameters(),
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=self.fused,
        )
        schedule = LambdaLR(optimizer, lambda step: schedule_factor(step, self.warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --- checkpoints ------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the model's configuration into a checkpoint."""
        checkpoint[CONFIG_KEY] = self.config.to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model; the message says how it differs."""
        if CONFIG_KEY not in checkpoint:
            raise CheckpointError(
                "The checkpoint to resume from is not one of gram_hear.pretrain. To start from "
                "another's weights, give it as --model.init."
            )
        found = ModelConfig.from_json(checkpoint[CONFIG_KEY])
        require_same(found, self.config, "The checkpoint to resume from")
        there, here = checkpoint["state_dict"], self.state_dict()
        if wrong := [
            name
            for name in sorted(there.keys() | here.keys())
            if getattr(there.get(name), "shape", None) != getattr(here.get(name), "shape", None)
        ]:
            raise CheckpointError(
                f"The checkpoint to resume from is damaged, or of another version of gram_hear: "
                f"{count(len(wrong), 'tensor')} of it are missing, unknown or of another shape, "
                f"such as {wrong[0]}."
            )
        _recount(checkpoint, self.trainer.accumulate_grad_batches)
        self._renew_options(checkpoint)

    def _renew_options(self, checkpoint: dict[str, Any]) -> None:
        """Resume with the optimizer options of this run instead of those of the checkpoint."""
        step = checkpoint["global_step"]
        factor = schedule_factor(step, self.warmup, self.trainer.max_steps)
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group["initial_lr"], group["lr"] = self.learning_rate, self.learning_rate * factor
            group["betas"], group["weight_decay"] = self.betas, self.weight_decay
            group["fused"] = self.fused  # the checkpoint may come from another kind of device
        checkpoint["lr_schedulers"][0]["base_lrs"] = [self.learning_rate]


def _are_finite(found: Reconstruction, batch: Sample) -> Tensor:
    """Return which clips of a batch have finite windows, (clips,) bool.

    A window is normalised as a whole, so one value tells of all.
    """
    return found.target[:, 0, 0].isfinite().view(len(batch["index"]), -1).all(dim=1)


def _why_not_finite(indices: Tensor) -> str:
    """Return what is wrong with samples whose windows are not finite."""
    return (
        f"Samples {_numbers(indices)} of the stream: the mixture overflows float32, or holds NaN. "
        "A clip, noise or RIR of theirs is too loud or damaged; leave it out. What was saved is "
        "kept."
    )


def _numbers(indices: Tensor) -> str:
    return ", ".join(map(str, indices.flatten().sort().values.tolist()))


def _recount(checkpoint: dict[str, Any], accumulation: int) -> None:
    """Set a checkpoint's count of batches to that of its whole steps with this accumulation.

    So a run can be resumed with another number of devices. One that trainer.max_time ended within
    a step repeats that step.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        missing = checkpoint["global_step"] * accumulation - counts["processed"]
        for name in counts:
            counts[name] += missing


def schedule_factor(step: int, warmup: int, steps: int) -> float:
    """Return the factor of the learning rate in a step, counted from 0.

    It rises linearly to 1 in the last step of the warm-up, then falls as a half cosine, which would
    be 0 in step ``steps``.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * done))
