"""Batches of samples: which samples of the stream each process takes, and how they are stacked."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler, get_worker_info

from gram_hear.errors import OptionError, TrainingError
from gram_hear.pretrain.samples import Sample


def collate(samples: Sequence[Sample]) -> Sample:
    """Return a batch: the values of the samples stacked, RIRs zero-padded to the longest.

    In a process that loads data, the batch lies in memory shared with the process that trains, so
    that it is written once. Where all clips are dry, the RIRs have no samples.
    """
    first = samples[0]
    longest = max(sample["rirs"].shape[-1] for sample in samples)
    rirs = _new((len(samples), *first["rirs"].shape[:-1], longest), torch.float32)
    for padded, sample in zip(rirs, samples, strict=True):
        own = sample["rirs"].shape[-1]
        padded[..., :own] = sample["rirs"]
        padded[..., own:] = 0
    batch = {"rirs": rirs}
    for name, value in first.items():
        if name not in batch:
            stacked = _new((len(samples), *value.shape), value.dtype)
            batch[name] = torch.stack([sample[name] for sample in samples], out=stacked)
    return batch


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor without values, in shared memory where this process loads data.

    Raises:
        TrainingError: where there is not enough shared memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0 or get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    try:
        storage = torch.UntypedStorage._new_shared(size)
    except RuntimeError as error:
        raise TrainingError(
            f"The memory that processes share (/dev/shm) is full: a part of a batch, of {size:,} "
            "bytes, found no room. In a container give more, as by docker run --shm-size 16g; or "
            "lower data.workers or data.batch_per_device."
        ) from error
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]


class EpochSampler(Sampler[int]):
    """The samples that one of several processes takes from the stream.

    The stream is cut into global batches of ``batch`` samples, one for each optimizer step. Of each
    batch, rank r of R takes every R-th sample, beginning with the r-th. So a global batch holds
    the same samples whatever R is.

    The next iteration begins at ``position``. Iterating does not change it, since data are loaded
    ahead of training: the trainer sets it.
    """

    def __init__(
        self, batches: int, batch: int, rank: int = 0, ranks: int = 1, position: int = 0
    ) -> None:
        """Set which samples are taken.

        Args:
            batches: global batches of an epoch of training, which need not be an epoch of clips.
            batch: samples of a global batch, over all ranks and accumulated batches.
            rank, ranks: the number of this process, and of all.
            position: samples of the stream to skip; a multiple of ``batch``.

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
        """Return how many samples this rank takes in an epoch of training."""
        return self.batches * self.batch // self.ranks

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of this rank's samples, from the position to the end of the epoch."""
        epoch = self.batches * self.batch
        end = (self.position // epoch + 1) * epoch
        return iter(range(self.position + self.rank, end, self.ranks))
