"""The memory of training on a CPU: what a step frees is kept for the next one."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # the GNU C library's numbers of these settings


def keep_freed_memory() -> None:
    """Let the GNU C library keep the memory that is freed, for the rest of the process.

    It returns large blocks to the system by itself. Each step of training would get the same
    blocks again, and the system would zero them page by page. With another C library nothing is
    done. Processes that are forked later do the same.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # large blocks are not mapped one by one
        mallopt(M_TRIM_THRESHOLD, -1)  # never
