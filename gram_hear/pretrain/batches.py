"""Batches of samples: which samples of the stream each process takes, and how they are stacked."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch.utils.data import Sampler

from gram_hear.errors import OptionError
from gram_hear.pretrain.samples import Sample


def collate(samples: Sequence[Sample]) -> Sample:
    """Return a batch: each value of the samples stacked, RIRs zero-padded to the longest."""
    batch = {
        name: torch.stack([sample[name] for sample in samples])
        for name in samples[0]
        if name != "rirs"
    }
    longest = max(sample["rirs"].shape[-1] for sample in samples)
    padded = [F.pad(s["rirs"], (0, longest - s["rirs"].shape[-1])) for s in samples]
    return batch | {"rirs": torch.stack(padded)}


class EpochSampler(Sampler[int]):
    """The samples that one of several processes takes from the stream.

    The stream is cut into global batches of ``batch`` samples, of which rank r of R takes every
    R-th from its r-th on: a global batch holds the same samples whatever R is. With gradient
    accumulation a global batch is what one optimizer step sees.

    Where the next iteration begins is its ``position``. Iterating does not move it, as data are
    loaded ahead of training: whoever trains sets it.
    """

    def __init__(
        self, batches: int, batch: int, rank: int = 0, ranks: int = 1, position: int = 0
    ) -> None:
        """Say what to take.

        Args:
            batches: global batches between two ends of an epoch of training, which need not be
                those of the clips' epochs.
            batch: samples of a global batch, of all ranks and accumulated steps.
            rank: of this process.
            ranks: how many there are.
            position: samples of the stream that are passed over; a multiple of ``batch``.

        Raises:
            OptionError: where a global batch does not divide evenly.
        """
        if batches < 1 or batch < 1 or not 0 <= rank < ranks or batch % ranks:
            raise OptionError(
                f"{batches} batches of {batch} samples were asked for, for rank {rank} of {ranks}; "
                "at least one is needed, and the batch must be a multiple of the ranks."
            )
        self.batches = batches
        self.batch = batch
        self.rank = rank
        self.ranks = ranks
        self.position = position

    @property
    def position(self) -> int:
        """Samples of the stream, over all ranks, that come before the next iteration."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        if position < 0 or position % self.batch:
            raise OptionError(
                f"The position is {position} samples; it must be a multiple of the global batch of "
                f"{self.batch}. Resume with the batch size that the run began with."
            )
        self._position = position

    def __len__(self) -> int:
        """Return the samples of a whole epoch of training for this rank."""
        return self.batches * self.batch // self.ranks

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's samples from the position to the end of its epoch of training."""
        epoch = self.batches * self.batch
        end = (self.position // epoch + 1) * epoch
        return iter(range(self.position + self.rank, end, self.ranks))
