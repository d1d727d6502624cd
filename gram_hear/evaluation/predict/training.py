"""Training of shallow predictors: Adam, validation and early stopping, as the original kit does.

Predictors of one shape can be trained side by side, each as if alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gram_hear.errors import TaskError
from gram_hear.evaluation.predict.data import Examples, Rows
from gram_hear.evaluation.predict.grid import Setting
from gram_hear.evaluation.predict.predictors import NORM_EPSILON, Objective, Predictors, views
from gram_hear.evaluation.predict.scoring import ValidationScore

NORM_MOMENTUM = 0.1  # of BatchNorm1d
LEVELS = 2**16  # in how many steps dropout's probability is cut
SIDE_BY_SIDE_WIDTH = 128  # up to which a CPU gains by training predictors side by side


# Given activated outputs (rows, outputs) and their loss.
Validate = Callable[[Tensor, float], ValidationScore]
Bits = torch.Generator | np.random.Generator  # a source of dropout masks


def bit_source(seed: int, device: torch.device) -> Bits:
    """Return a source of random bits; on a CPU numpy's, which takes half the time of PyTorch's."""
    if device.type == "cpu":
        return np.random.Generator(np.random.SFC64(seed))
    return torch.Generator(device).manual_seed(seed)


class Trainer:
    """Forward and backward for predictors, in buffers that are allocated once, and PyTorch's Adam.

    The gradients are written out by hand. On a CPU, allocating tensors of this size in every step
    costs more than all arithmetic but the matrix products.
    """

    def __init__(
        self,
        predictors: Predictors,
        settings: Sequence[Setting],
        sources: Sequence[Bits],
        objective: Objective,
    ) -> None:
        self.predictors, self.objective = predictors, objective
        self.settings, self.sources = list(settings), list(sources)
        flat, first = predictors.flat, settings[0]
        self.gradient = torch.zeros_like(flat)
        self.parameters = [each.detach() for each in flat]  # of each predictor; views
        for each, gradient in zip(self.parameters, self.gradient, strict=True):
            each.grad = gradient
        self.optimizer = torch.optim.Adam(
            [
                {"params": [each], "lr": setting.lr}
                for each, setting in zip(self.parameters, settings, strict=True)
            ],
            fused=flat.device.type in ("cpu", "cuda") or None,
        )
        shape = (len(settings), first.batch_size, first.hidden_dim)
        layers = range(first.hidden_layers)
        self.centred = [torch.empty(shape, device=flat.device) for _ in layers]
        self.hidden = [torch.empty(shape, device=flat.device) for _ in layers]
        self.passing = [torch.empty(shape, device=flat.device) for _ in layers]
        self.product = torch.empty(shape, device=flat.device)
        self.dropped = round(first.dropout * LEVELS)
        self.kept_scale = LEVELS / (LEVELS - self.dropped)

    def keep(self, members: Sequence[int]) -> "Trainer":
        """Return a trainer that goes on with some of the predictors."""
        kept = Trainer(
            self.predictors.select(members),
            [self.settings[i] for i in members],
            [self.sources[i] for i in members],
            self.objective,
        )
        for each, i in zip(kept.parameters, members, strict=True):
            kept.optimizer.state[each] = self.optimizer.state[self.parameters[i]]
        return kept

    def step(self, features: Tensor, targets: Tensor) -> None:
        """Learn from one batch, features (rows, inputs) and targets (rows, outputs)."""
        rows = len(features)
        inputs, deviations = [features.expand(len(self.settings), -1, -1)], []
        for i in range(len(self.hidden)):
            deviations.append(self._forward(i, inputs[-1]))
            inputs.append(self.hidden[i][:, :rows])
        predictors = self.predictors
        outputs = torch.baddbmm(predictors.biases[-1], inputs[-1], predictors.weights[-1])
        outputs.requires_grad_()
        (signal,) = torch.autograd.grad(self.objective.losses(outputs, targets).sum(), outputs)
        self._backward(signal, inputs, deviations)
        self.optimizer.step()

    def _forward(self, i: int, inputs: Tensor) -> Tensor:
        """Compute a hidden layer into its buffers; return the norm's 1 / deviation.

        The bias moves the running mean alone: the norm takes it out again.
        """
        rows, predictors = inputs.shape[1], self.predictors
        centred, hidden = self.centred[i][:, :rows], self.hidden[i][:, :rows]
        torch.bmm(inputs, predictors.weights[i], out=centred)
        mean = centred.mean(dim=1, keepdim=True)
        centred.sub_(mean)
        product = torch.mul(centred, centred, out=self.product[:, :rows])
        variance = product.mean(dim=1, keepdim=True)
        predictors.means[i].lerp_(mean + predictors.biases[i], NORM_MOMENTUM)
        unbiased = variance * (rows / max(rows - 1, 1))
        predictors.variances[i].lerp_(unbiased, NORM_MOMENTUM)
        inverse = (variance + NORM_EPSILON).rsqrt()
        scale = predictors.scales[i] * inverse * self.kept_scale
        torch.addcmul(predictors.shifts[i] * self.kept_scale, centred, scale, out=hidden)
        mask = self._draw_mask(self.passing[i][:, :rows])
        hidden.mul_(mask).clamp_min_(0)
        torch.gt(hidden, 0, out=mask)  # what passes back: neither dropped nor below 0
        return inverse

    def _draw_mask(self, mask: Tensor) -> Tensor:
        """Fill (predictors, rows, width) with 0 where a value is dropped and 1 where it is kept."""
        words = -(-mask[0].numel() // 4)  # a random word of 64 bits serves four values
        for part, source in zip(mask, self.sources, strict=True):
            if isinstance(source, torch.Generator):
                bits = torch.empty(words, dtype=torch.int64, device=mask.device)
                bits.random_(-(2**63), None, generator=source)
            else:
                drawn = source.integers(-(2**63), 2**63 - 1, words, endpoint=True)
                bits = torch.from_numpy(drawn)
            values = bits.view(torch.int16)[: part.numel()].view(part.shape)
            torch.ge(values, self.dropped - LEVELS // 2, out=part)
        return mask

    def _backward(self, signal: Tensor, inputs: list[Tensor], deviations: list[Tensor]) -> None:
        """Fill the gradient from the loss's gradient at the outputs.

        A layer's inputs are overwritten by their gradient as soon as they are not needed any more.
        """
        weights, biases, scales, shifts = views(self.predictors.widths, self.gradient)
        torch.sum(signal, dim=1, keepdim=True, out=biases[-1])
        for i in reversed(range(len(inputs))):
            torch.bmm(inputs[i].transpose(1, 2), signal, out=weights[i])
            if i == 0:
                return
            below = inputs[i]
            torch.bmm(signal, self.predictors.weights[i].transpose(1, 2), out=below)
            self._backward_norm(i - 1, below, deviations[i - 1], scales[i - 1], shifts[i - 1])
            signal = below

    def _backward_norm(
        self, i: int, signal: Tensor, inverse: Tensor, scale: Tensor, shift: Tensor
    ) -> None:
        """Take a gradient back through ReLU, dropout and norm, in place; fill the norm's own."""
        rows = signal.shape[1]
        centred = self.centred[i][:, :rows]
        signal.mul_(self.passing[i][:, :rows])
        torch.sum(signal, dim=1, keepdim=True, out=shift).mul_(self.kept_scale)
        product = torch.mul(signal, centred, out=self.product[:, :rows])
        torch.sum(product, dim=1, keepdim=True, out=scale).mul_(inverse * self.kept_scale)
        if rows == 1:  # one row is its own mean: nothing passes, and Adam must not see rounding
            signal.zero_()
            return
        factor = self.predictors.scales[i] * inverse
        torch.addcmul(factor * shift / -rows, signal, factor * self.kept_scale, out=signal)
        signal.addcmul_(centred, factor * inverse * scale / -rows)


@dataclass(frozen=True)
class Trained:
    """A predictor at its best validation.

    ``epoch`` counts from 0; ``validation`` is the score of that epoch.
    """

    setting: Setting
    objective: Objective
    predictor: Predictors
    epoch: int
    validation: ValidationScore

    def predict(self, features: Rows) -> tuple[Tensor, Tensor]:
        """Return activated outputs and outputs before the activation, (rows, outputs) each."""
        outputs = self.predictor.outputs(features, self.setting.batch_size)[0].cpu()
        return self.objective.activate(outputs), outputs


def side_by_side(
    settings: Sequence[Setting], device: torch.device, shuffle: bool = False
) -> list[list[int]]:
    """Group grid points that are trained as one batched model, by their index.

    Points of a group have one shape and one batch size. On a CPU only narrow predictors gain by
    it. Those that see the rows in an order of their own (``shuffle``) are trained alone.
    """
    groups: dict[tuple, list[int]] = {}
    for i, setting in enumerate(settings):
        wide = device.type == "cpu" and setting.hidden_dim > SIDE_BY_SIDE_WIDTH
        alone = wide or shuffle
        key = (setting.hidden_layers, setting.hidden_dim, setting.batch_size, setting.dropout)
        groups.setdefault((i,) if alone else key, []).append(i)
    return list(groups.values())


def train(
    settings: Sequence[Setting],
    training: Examples,
    validation: Examples,
    objective: Objective,
    validate: Validate,
    seeds: Sequence[int],
    device: torch.device,
    shuffle: bool = False,
) -> list[Trained | None]:
    """Train predictors of one shape side by side, each as if alone.

    Args:
        settings: alike in hidden layers, width, batch size and dropout.
        training: rows, in the order in which every epoch uses them.
        validation: rows that validations score.
        objective: loss and activation.
        validate: scores the validation; the best score wins, the earliest of equals.
        seeds: of weights and dropout, one for each setting.
        device: to train on.
        shuffle: draw a new order of the rows for every epoch (the protocol does not), from the
            first seed: give one setting alone.

    Returns:
        Each setting's predictor at its best validation; None where no validation had a score.

    Raises:
        TaskError: where there are no rows.
    """
    if not len(training.features) or not len(validation.features):
        raise TaskError("There are no rows to train on, or none to validate with.")
    training, validation = training.to(device), validation.to(device)
    run = _TrainingRun(settings, training, objective, seeds, device, shuffle)
    for epoch in range(max(setting.max_epochs for setting in settings)):
        run.train_epoch(training)
        run.validate_epoch(epoch, validation, validate)
        if not run.members:
            break
    return run.best


class _TrainingRun:
    """Predictors in training: which still are, their best, and how often they did not improve."""

    def __init__(
        self,
        settings: Sequence[Setting],
        training: Examples,
        objective: Objective,
        seeds: Sequence[int],
        device: torch.device,
        shuffle: bool,
    ) -> None:
        self.settings = settings
        self.objective = objective
        self.members = list(range(len(settings)))
        self.without_gain = [0] * len(settings)
        self.best: list[Trained | None] = [None] * len(settings)
        starts = [torch.Generator().manual_seed(seed) for seed in seeds]
        inputs, outputs = training.features.width, training.targets.shape[1]
        predictors = Predictors.draw(settings, inputs, outputs, starts).to(device)
        sources = [bit_source(seed, device) for seed in seeds]
        self.trainer = Trainer(predictors, settings, sources, objective)
        self.order = torch.Generator().manual_seed(seeds[0]) if shuffle else None

    def train_epoch(self, training: Examples) -> None:
        """Go through all rows once, in batches, the last one smaller."""
        rows, size = len(training.features), self.settings[0].batch_size
        device = self.trainer.gradient.device
        order = None if self.order is None else torch.randperm(rows, generator=self.order)
        for start in range(0, rows, size):
            if order is None:
                features = training.features.batch(start, start + size)
                targets = training.targets[start : start + size]
            else:
                index = order[start : start + size]
                features = training.features.take(index)
                targets = training.targets[index.to(device)]
            self.trainer.step(features.to(device), targets)

    def validate_epoch(self, epoch: int, validation: Examples, validate: Validate) -> None:
        """Validate the predictors that are due, keep their best, and drop those that are done."""
        every = [self.settings[member].check_val_every_n_epoch for member in self.members]
        due = [i for i, period in enumerate(every) if (epoch + 1) % period == 0]
        stopped = set()
        if due:
            batch = self.settings[0].batch_size
            outputs = self.trainer.predictors.outputs(validation.features, batch)
            losses = self.objective.losses(outputs, validation.targets).tolist()
            activated = self.objective.activate(outputs).cpu()
            stopped = {i for i in due if self._record(i, epoch, validate(activated[i], losses[i]))}
        last = [self.settings[member].max_epochs - 1 for member in self.members]
        staying = [i for i in range(len(self.members)) if i not in stopped and epoch < last[i]]
        if len(staying) < len(self.members):
            self.members = [self.members[i] for i in staying]
            if staying:
                self.trainer = self.trainer.keep(staying)

    def _record(self, i: int, epoch: int, score: ValidationScore) -> bool:
        """Note a validation of the i-th predictor in training; return whether it stops."""
        member = self.members[i]
        best = self.best[member]
        if math.isnan(score.value):  # diverged, or undefined: the kit stops here too
            return True
        if best is None or score.value > best.validation.value:
            chosen = self.trainer.predictors.select([i])
            setting = self.settings[member]
            self.best[member] = Trained(setting, self.objective, chosen, epoch, score)
            self.without_gain[member] = 0
            return False
        self.without_gain[member] += 1
        return self.without_gain[member] >= self.settings[member].patience
