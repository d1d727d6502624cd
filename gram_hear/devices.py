"""The device that computes, by its name; how exactly it multiplies matrices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gram_hear.errors import OptionError


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of this name; ``"auto"`` is CUDA, then MPS, then the CPU.

    Raises:
        OptionError: for an unknown device, or one that is not there.
    """
    if str(name) == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).tolist()  # a device that holds no values, as meta, fails
    except (RuntimeError, AssertionError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise OptionError(
            f"The device {str(name)!r} is not available here ({said}). Use 'cpu', or 'auto' for "
            "the best that is there."
        ) from error
    return device


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Multiply float32 matrices with this precision in a block, and as before after it.

    Args:
        name: ``"highest"`` is float32, ``"high"`` allows TF32 on GPUs that have it, ``"medium"``
            allows bfloat16 too.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
