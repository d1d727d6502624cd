"""The shallow predictor of the HEAR protocol, and what it learns.

[Linear -> BatchNorm -> Dropout -> ReLU] x hidden_layers -> Linear. Predictors of one shape can
stand side by side as one batched model, in the first dimension of every tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from gram_hear.evaluation.predict.data import Rows
from gram_hear.evaluation.predict.grid import Setting

NORM_EPSILON = 1e-5  # of BatchNorm1d


@dataclass(frozen=True)
class Objective:
    """What is learned: ``"multiclass"``, ``"multilabel"`` or ``"localisation"``."""

    prediction_type: str

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each predictor's mean loss, (predictors,).

        Args:
            outputs: (predictors, rows, outputs), before the activation.
            targets: (rows, outputs).
        """
        predictors, rows, _ = outputs.shape
        if self.prediction_type == "multiclass":
            index = targets.argmax(dim=1).repeat(predictors)
            losses = F.cross_entropy(outputs.flatten(0, 1), index, reduction="none")
            return losses.view(predictors, rows).mean(dim=1)
        expanded = targets.expand_as(outputs)
        if self.prediction_type == "multilabel":
            losses = F.binary_cross_entropy_with_logits(outputs, expanded, reduction="none")
        else:
            losses = F.mse_loss(outputs.tanh(), expanded, reduction="none")
        return losses.mean(dim=(1, 2))

    def activate(self, outputs: Tensor) -> Tensor:
        """Turn outputs into probabilities, or into coordinates in [-1, 1]."""
        if self.prediction_type == "multiclass":
            return outputs.softmax(dim=-1)
        return outputs.sigmoid() if self.prediction_type == "multilabel" else outputs.tanh()


class Predictors:
    """Shallow predictors of one shape, side by side.

    Attributes:
        widths: of the inputs, the hidden layers and the outputs.
        flat: (predictors, numbers), everything that is trained.
        weights: views of ``flat``, (predictors, inputs, outputs) for each layer.
        biases, scales, shifts: the same of biases and norms, (predictors, 1, outputs).
        running: (predictors, numbers), the running statistics of the norms.
        means, variances: views of ``running``, (predictors, 1, outputs) for each hidden layer.
    """

    def __init__(self, widths: Sequence[int], flat: Tensor, running: Tensor) -> None:
        self.widths = tuple(widths)
        self.flat, self.running = flat, running
        self.weights, self.biases, self.scales, self.shifts = views(self.widths, flat)
        hidden = self.widths[1:-1]
        pieces = running.split([*hidden, *hidden], dim=1)
        self.means = [piece[:, None] for piece in pieces[: len(hidden)]]
        self.variances = [piece[:, None] for piece in pieces[len(hidden) :]]

    @classmethod
    def draw(
        cls,
        settings: Sequence[Setting],
        inputs: int,
        outputs: int,
        generators: Sequence[torch.Generator],
    ) -> "Predictors":
        """Draw new predictors on the CPU: Xavier weights, and biases at PyTorch's default."""
        first = settings[0]
        widths = (inputs, *[first.hidden_dim] * first.hidden_layers, outputs)
        hidden = sum(widths[1:-1])
        flat = torch.zeros(len(settings), sum(a * b + b for a, b in pairwise(widths)) + 2 * hidden)
        zeros, ones = torch.zeros(len(settings), hidden), torch.ones(len(settings), hidden)
        drawn = cls(widths, flat, torch.cat([zeros, ones], dim=1))
        for scale in drawn.scales:
            scale.fill_(1.0)
        for k, (setting, generator) in enumerate(zip(settings, generators, strict=True)):
            initialise = getattr(torch.nn.init, setting.initialization)
            for i, (weight, bias) in enumerate(zip(drawn.weights, drawn.biases, strict=True)):
                initialise(weight[k], gain=math.sqrt(2) if i else 1.0, generator=generator)
                bound = 1 / math.sqrt(widths[i])
                bias[k].uniform_(-bound, bound, generator=generator)
        return drawn

    def select(self, members: Sequence[int]) -> "Predictors":
        """Return copies of some of the predictors, by their index."""
        chosen = torch.tensor(members, device=self.flat.device)
        return Predictors(
            self.widths, self.flat.index_select(0, chosen), self.running.index_select(0, chosen)
        )

    def to(self, device: torch.device) -> "Predictors":
        """Return the predictors on a device."""
        return Predictors(self.widths, self.flat.to(device), self.running.to(device))

    def outputs(self, features: Rows, batch: int) -> Tensor:
        """Return the outputs for any number of rows, before the activation.

        Args:
            features: (rows, inputs).
            batch: rows at once.

        Returns:
            (predictors, rows, outputs).
        """
        parts = [self._outputs(part.to(self.flat.device)) for part in features.batches(batch)]
        return torch.cat(parts, dim=1)

    def _outputs(self, hidden: Tensor) -> Tensor:
        hidden = hidden.expand(len(self.flat), -1, -1)
        for i, scale in enumerate(self.scales):
            mixed = torch.baddbmm(self.biases[i], hidden, self.weights[i])
            factor = scale * (self.variances[i] + NORM_EPSILON).rsqrt()
            offset = self.shifts[i] - self.means[i] * factor
            hidden = torch.addcmul(offset, mixed, factor).clamp_min_(0)
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1])


def views(widths: Sequence[int], flat: Tensor) -> tuple[list[Tensor], ...]:
    """Return weights, biases, scales and shifts as views of (predictors, numbers)."""
    layers = list(pairwise(widths))
    hidden = list(widths[1:-1])
    sizes = [a * b for a, b in layers] + [b for _, b in layers] + hidden + hidden
    pieces = list(flat.split(sizes, dim=1))
    weights = [pieces.pop(0).unflatten(1, layer) for layer in layers]
    vectors = [piece[:, None] for piece in pieces]
    n, m = len(layers), len(layers) + len(hidden)
    return weights, vectors[:n], vectors[n:m], vectors[m:]
