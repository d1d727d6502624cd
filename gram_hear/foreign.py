"""JSON, arrays and archives that other people made, read within bounds.

Files, archives and servers can hold anything. What is allowed here is enough for all that is read,
and keeps a crafted file from costing memory, time or a traceback.
"""

import io
import json
import math
import pickletools
import re
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from gram_hear.errors import GramError, allowed

LARGEST = 64 << 20  # bytes
DEEPEST = 64  # objects and lists inside each other
LONGEST = 100  # characters of a number
LARGEST_HEADER = 1 << 20  # bytes of a tar member's long name, or of its other properties
TAR_FAULTS = (  # what tarfile and gzip raise for a damaged or a crafted archive
    *(tarfile.TarError, EOFError, zlib.error, OSError),
    *(ValueError, ArithmeticError, LookupError, TypeError, RuntimeError, MemoryError),
)
ZIP_FAULTS = (  # what zipfile raises for such a zip, or one without the member
    *(zipfile.BadZipFile, EOFError, zlib.error, KeyError, ValueError, RuntimeError),
)
TORCH_FAULTS = (  # what torch.load raises for a damaged file, or one that holds other objects
    *(UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, ImportError, AttributeError),
    *(ValueError, ArithmeticError, LookupError, TypeError, RuntimeError, MemoryError),
    AssertionError,
)
HEADER_FAULTS = (  # what numpy's reading of a header's Python literal may raise
    *(ValueError, TypeError, KeyError, EOFError, SyntaxError, tokenize.TokenError),
    *(RecursionError, MemoryError, OverflowError),
)
FLOATS = (np.float16, np.float32, np.float64)
LONGEST_HEADER = 1 << 15  # bytes of a .npy file's; NumPy reads a third of that at most
MOST_AXES = 4  # of an array
LARGEST_RATIO = 100  # of an array to its bytes in a zip ...
SMALL = 64 << 20  # ... from so many bytes on
PLAIN_OPCODES = {  # of pickles: those that push a string or a number
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BININT", "BININT1", "BININT2", "BINFLOAT"),
}
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character beyond 16 bits


def parse_json(
    data: bytes | bytearray | str,
    name: str,
    error: type[GramError],
    largest: int = LARGEST,
    *,
    finite: bool = True,
) -> Any:
    """Return what a JSON text holds.

    Args:
        data: the text, as UTF-8 where it is bytes.
        name: what it is, at the start of the message: usually the file's path.
        error: the class that is raised.
        largest: the size in bytes (or characters) up to which it is parsed at all.
        finite: whether NaN and Infinity, which Python writes and the standard lacks, are refused.

    Raises:
        error: for text that is larger or no valid JSON in UTF-8, is nested deeper than 64, holds a
            number longer than 100 characters, beyond float64 or not finite, a key twice in one
            object, or half a surrogate pair.
    """
    try:
        if len(data) > largest:
            raise ValueError(f"it is larger than {largest:,} bytes")
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_real if finite else float,
            object_pairs_hook=_unique,
        )
        _check_depth(value)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise error(f"{name} is nested deeper than {DEEPEST} levels, and was not read.") from None
    except ValueError as fault:
        raise error(f"{name} is no JSON that can be read: {fault}.") from fault
    return value


def _integer(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > LONGEST or not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:20]} is not finite, or too long")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:50]!r} stands twice in one object; every key must be unique")
    return found


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [each for each in level if isinstance(each, (dict, list))]
        if not level:
            return
        level = [child for each in level for child in _children(each)]
    raise RecursionError


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


class BoundedMember(tarfile.TarInfo):
    """A member whose sizes are looked at before tarfile reads what they are of into memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "BoundedMember":
        """Read a header.

        Raises:
            ReadError: for a size below 0, or a name or properties that are absurdly long.
        """
        member = super().frombuf(buf, encoding, errors)
        of_a_header = member.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if member.size < 0 or (of_a_header and member.size > LARGEST_HEADER):
            raise tarfile.ReadError(f"a header has the size {member.size}")
        return member


def parse_header(
    head: bytes, size: int, name: str, error: type[GramError], *types: type[np.generic]
) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return what the header of a ``.npy`` file says: shape, Fortran order, type, where it ends.

    Args:
        head: the file's first :data:`LONGEST_HEADER` bytes, or all of a shorter one.
        size: bytes of the whole file.
        name: of the file, for messages.
        error, types: as for :func:`parse_array`, which has the errors.
    """
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file)
    except HEADER_FAULTS as fault:
        reason = str(fault).partition("\n")[0][:100] or type(fault).__name__
        raise error(f"{name} is no .npy file ({reason}).") from fault
    if dtype.type not in types:
        names = [each.__name__ for each in types]
        raise error(f"{name} holds {str(dtype)[:100]}; {allowed(dtype, names)}")
    start = file.tell()
    if len(shape) > MOST_AXES or any(not 0 <= length <= size for length in shape):
        raise error(
            f"{name} has {len(shape)} axes or lengths that a file of {size} bytes cannot hold."
        )
    needed = math.prod(shape) * dtype.itemsize
    if size - start != needed:
        raise error(
            f"{name} has {size - start} bytes of values; its shape {shape} of {dtype} needs "
            f"{needed}. It is cut or damaged; fetch it anew."
        )
    return shape, fortran_order, dtype, start


def parse_array(
    data: bytes | bytearray, name: str, error: type[GramError], *types: type[np.generic]
) -> np.ndarray:
    """Return the array of a ``.npy`` file's bytes, which messages call by a name.

    Raises:
        error: for what is no ``.npy`` file of one of these types and at most 4 axes, or has
            another size than its header says.
    """
    head = bytes(data[:LONGEST_HEADER])
    shape, fortran_order, dtype, start = parse_header(head, len(data), name, error, *types)
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    return values.reshape(shape, order="F" if fortran_order else "C")


def read_array(
    archive: zipfile.ZipFile, member: str, error: type[GramError], *types: type[np.generic]
) -> np.ndarray:
    """Return an array of an open ``.npz`` file, as :func:`parse_array`.

    Raises:
        error: as there, and for an array that is far larger than its bytes in the zip.
        ZIP_FAULTS: for a damaged zip, or one without the member.
    """
    info, name = archive.getinfo(f"{member}.npy"), f"{archive.filename}: {member}"
    if info.file_size > max(SMALL, LARGEST_RATIO * info.compress_size):
        raise error(
            f"{name} would have {info.file_size:,} bytes, of {info.compress_size:,} in the file; "
            "that is no array of embeddings or scores."
        )
    return parse_array(archive.read(info), name, error, *types)


class NotPlain(ValueError):
    """A pickle that holds something else than lists, strings and numbers."""


def read_pickled_lists(path: Path) -> Any:
    """Return the lists, strings and numbers of a pickle, from its opcodes: nothing is unpickled.

    Raises:
        NotPlain: where it holds something else.
        ValueError, LookupError, AttributeError: where it is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    with open(path, "rb") as file:
        for opcode, value, _ in pickletools.genops(file):
            name = opcode.name
            if name == "EMPTY_LIST":
                stack.append([])
            elif name in PLAIN_OPCODES:
                stack.append(value)
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("APPEND", "APPENDS"):
                start = marks.pop() if name == "APPENDS" else len(stack) - 1
                items = stack[start:]
                del stack[start:]
                stack[-1].extend(items)
            elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if name == "MEMOIZE" else value] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[value])
            elif name == "STOP":
                break
            elif name not in ("PROTO", "FRAME"):
                raise NotPlain(f"{name} is no list, string or number")
    return stack.pop()
