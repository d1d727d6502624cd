"""The fields of a SOFA file, read by a process of its own: ``python sofa_fields.py FILE SECONDS``.

The HDF5 library hangs or crashes on some damaged files, and a process can be stopped. Where the
system can limit processor time, it stops itself after the given seconds. It writes an ``.npz`` file
to its standard output: the fields as float64, and under ``attributes`` a JSON text. Errors are on
the last line of its standard error. It imports nothing of this package, since that would take
longer than the reading.
"""

import io
import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

FIELDS = (
    *("Data.IR", "Data.SamplingRate", "Data.Delay", "SourcePosition", "ReceiverPosition"),
    *("ListenerPosition", "ListenerView", "ListenerUp"),
)
OF_FILE = ("SOFAConventions", "RoomType")
OF_FIELD = ("Type", "Units")
SMALL = 1 << 20  # bytes that a field may always have as float64
LONGEST = 100  # characters of an attribute that are returned
COMPRESSED = 32  # a larger field may have so many times the bytes of its whole file


def limit_time(seconds: int) -> None:
    """Let this process be killed after so many seconds of processor time; not on Windows."""
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def main(path: Path) -> None:
    """Write a file's fields to the standard output."""
    import h5py  # type: ignore[import-untyped]

    largest = max(SMALL, COMPRESSED * path.stat().st_size)
    values, attributes = {}, {}
    with h5py.File(path) as file:
        attributes[""] = {name: text(file.attrs.get(name)) for name in OF_FILE}
        for name in FIELDS:
            link = file.get(name, getlink=True)
            if link is None:
                continue
            if not isinstance(link, h5py.HardLink):
                sys.exit(f"{name} lies in another file")
            values[name] = field(name, file[name], largest)
            attributes[name] = {each: text(file[name].attrs.get(each)) for each in OF_FIELD}
    content = io.BytesIO()
    np.savez(content, **values, attributes=np.array(json.dumps(attributes)))  # type: ignore[arg-type]
    sys.stdout.buffer.write(content.getbuffer())


def field(name: str, dataset: Any, largest: int) -> np.ndarray:
    """Return the values of a field, after comparing its claimed size with that of the file."""
    shape = getattr(dataset, "shape", None)
    if shape is None or dataset.dtype.kind not in "fiu":
        sys.exit(f"{name} must hold finite numbers; it is empty, or no number")
    if dataset.is_virtual or dataset.external:
        sys.exit(f"{name} lies in another file")
    for sizes in (shape, dataset.chunks or ()):
        if math.prod(sizes) * 8 > largest:
            sys.exit(f"{name} claims to be {math.prod(sizes) * 8:,} bytes, more than a file of "
                     f"this size can hold; it is damaged")  # fmt: skip
    return np.asarray(dataset).astype(np.float64)


def text(value: Any) -> str:
    """Return the text of an attribute; "" where it holds anything but one text."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else ""
    found = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
    return found[:LONGEST]


if __name__ == "__main__":
    limit_time(int(sys.argv[2]))
    main(Path(sys.argv[1]))
