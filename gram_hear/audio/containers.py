"""What libsndfile does not do: parts of files, unknown sizes, joined MP3s, lost Ogg pages.

Nothing here decodes sound. Files are read in pieces of bounded size, and no memory is allocated by
a size that a file states.
"""

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gram_hear.errors import AudioError

if TYPE_CHECKING:
    import soundfile

AU_HEADER = 32  # bytes of an AU file before its samples, as most programs write it
AU_SIZE = 8  # offset of the data size field of an AU file
UNSIZED = 0xFFFFFFFF  # the stated size of a chunk whose writer did not know it
OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the longest Ogg page
PIECE = 2**20  # bytes that are read at once
MOST_BROKEN = 100  # broken pages after which the search stops
MOST_CHUNKS = 10_000  # chunks of a WAV file that are read
BIT_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

# Commands of sf_command, and their answers (sndfile.h).
GET_CHANNEL_MAP, WAVEX_GET_AMBISONIC, B_FORMAT = 0x1100, 0x1201, 0x41
B_FORMAT_MAP = [23, 24, 25, 26]  # W, X, Y, Z


@dataclass(frozen=True)
class Part:
    """Some bytes of a file, such as a member of a tar: ``size`` of them from ``offset`` on."""

    path: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"


def view_of(file: Path | Part) -> "ByteView":
    """Open a view of a file, or of a part of one."""
    if isinstance(file, Part):
        return ByteView(file.path, file.offset, file.size)
    return ByteView(file)


class ByteView(io.RawIOBase):
    """Some bytes of a file, which libsndfile opens as if they were a whole file.

    Attributes:
        error: the error of a read that failed; libsndfile sees it as the end of the file.
    """

    def __init__(
        self,
        path: Path,
        start: int = 0,
        size: int | None = None,
        *,
        hides_end: bool = False,
        patch: int = 0,
    ) -> None:
        """Open a view.

        Args:
            path: the file.
            start: the byte at which the view begins.
            size: bytes of the view; None reaches to the end of the file.
            hides_end: answer only the first seek to the end, so that mpg123 cannot find the size
                of the file.
            patch: offset of the data size field of a WAV or AU file, which then reads as unknown;
                0 for none. An RF64 file, whose size stands elsewhere, is then read as RIFF.
        """
        self.start = start
        self.error: OSError | None = None
        self._hides_end = hides_end
        self._end_was_found = False
        self._patches = {patch: b"\xff" * 4} if patch else {}
        if patch > AU_SIZE:
            self._patches[0] = b"RIFF"
        self._file = open(path, "rb")  # noqa: SIM115
        self.end = self._file.seek(0, io.SEEK_END) if size is None else start + size
        self._file.seek(start)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the view."""
        return self._file.tell() - self.start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to another position of the view."""
        if whence == io.SEEK_END and self._hides_end:
            if self._end_was_found:
                return 0
            self._end_was_found = True
        base = {io.SEEK_SET: self.start, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self.end}
        self._file.seek(max(self.start, base[whence] + offset))
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return how many bytes were read."""
        position = self.tell()
        view = memoryview(buffer).cast("B")[: max(0, self.end - self.start - position)]
        try:
            count = self._file.readinto(view)
        except OSError as error:
            self.error = error
            return 0
        for offset, content in self._patches.items():
            for i, byte in enumerate(content, offset - position):
                if 0 <= i < count:
                    view[i] = byte
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


@contextmanager
def reading(view: ByteView) -> Iterator[BinaryIO]:
    """Open a view for reading, and close it; errors of the file system are raised at the end."""
    with io.BufferedReader(view) as file:
        yield file
    if view.error is not None:
        raise view.error


def stated_layout(file: "soundfile.SoundFile") -> str | None:
    """Return the kind of channels that an open file states.

    Returns:
        ``"fuma"`` for Ambisonic B-format, stated by the subformat of a WAVEX file (as ``.amb``
        files are) or the channel layout of a CAF file. ``"speakers"`` for positions of
        loudspeakers. None where the file states nothing.
    """
    from soundfile import _ffi, _snd

    positions = _ffi.new("int[]", file.channels)
    size = _ffi.sizeof(positions)
    has_map = _snd.sf_command(file._file, GET_CHANNEL_MAP, positions, size)
    if _snd.sf_command(file._file, WAVEX_GET_AMBISONIC, _ffi.NULL, 0) == B_FORMAT:
        return "fuma"
    # libsndfile gives the subformat of a W64 file in its log alone.
    if file.format == "W64" and re.search(r"^ +format : .*\(Ambisonic B\)$", file.extra_info, re.M):
        return "fuma"
    if has_map and list(positions) == B_FORMAT_MAP:
        return "fuma"
    return "speakers" if has_map and any(positions) else None


def unsized_data(view: ByteView) -> int:
    """Return the offset of the data size field of a WAV, RF64 or AU file that was never completed.

    Such a field holds 0, or stands for unknown, and is not followed by valid chunks up to the end
    of the file. For any other file 0 is returned.
    """
    position, found = 12, 0
    with reading(view) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if file.read(4) in (b".snd", b"dns."):
            return AU_SIZE if size > AU_HEADER and file.read(8)[4:] == bytes(4) else 0
        for _ in range(MOST_CHUNKS):
            if position + 8 > size:
                break
            file.seek(position)
            name, length = file.read(4), int.from_bytes(file.read(4), "little")
            if name == b"data" and length in (0, UNSIZED):
                found, length = position + 4, 0
            elif not all(32 <= byte < 127 for byte in name) or position + 8 + length > size:
                return found  # samples, or what is damaged
            position += 8 + length + length % 2
    return 0


def after_tags(view: ByteView, position: int) -> int:
    """Return the offset of the first byte after the tags (ID3v1, APE) and zeros at ``position``."""
    with reading(view) as file:
        while True:
            file.seek(position)
            head = file.read(4096)
            if head.startswith(b"TAG"):
                position += 128
            elif head.startswith(b"APETAGEX"):
                position += 32 + int.from_bytes(head[12:16], "little")
            elif head.startswith(b"\0"):
                position += len(head) - len(head.lstrip(b"\0"))
            else:
                return position


# --- Ogg --------------------------------------------------------------------------------------


def ogg_streams(view: ByteView, rate: int, name: str) -> tuple[list[int], bool]:
    """Find the streams of an Ogg file, one after another, and check that they are whole.

    A decoder goes on after a lost page as if nothing were missing, so all that follows is early.

    Args:
        view: of the file.
        rate: positions (granules) per second: the sample rate, or 48000 for Opus.
        name: of the file, for messages.

    Returns:
        The offset at which each stream begins, and whether the file ends with a whole page that is
        marked as the last.

    Raises:
        AudioError: where a page is damaged or missing before others. The message says where.
    """
    starts: list[int] = []
    expected: dict[int, int] = {}  # the number of the next page, by stream
    seconds, passed, end, broken = 0.0, 0.0, 0, 0
    in_headers = ended = False
    with reading(view) as file:
        for position, page, intact in _ogg_pages(file):
            flags, granule = page[5], int.from_bytes(page[6:14], "little", signed=True)
            stream, number = (int.from_bytes(page[i : i + 4], "little") for i in (14, 18))
            if not intact:
                broken += 1
                if broken < MOST_BROKEN:
                    continue
            begins = bool(flags & 2)
            if broken >= MOST_BROKEN or (not begins and number != expected.get(stream, number)):
                raise AudioError(
                    f"{name} is damaged: a page of it is lost or broken about "
                    f"{passed + seconds:.2f} s after its start (byte {end}), and all that follows "
                    "would be at wrong times. Get the file again, or cut it there."
                )
            if begins and not in_headers:  # those that begin together are multiplexed
                starts.append(position)
                passed, seconds = passed + seconds, 0.0
            in_headers = begins
            expected[stream] = (number + 1) % 2**32
            if granule > 0:
                seconds = granule / rate
            end, ended = position + len(page), bool(flags & 4)
        return starts, ended and end == file.seek(0, io.SEEK_END)


def _ogg_pages(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Yield what looks like a page of an Ogg file: its offset, the page, whether it is intact.

    Broken pages are searched for others.
    """
    data, base, at, is_all = b"", 0, 0, False
    while True:
        if len(data) - at < OGG_PAGE and not is_all:
            more = file.read(PIECE)
            data, base, at, is_all = data[at:] + more, base + at, 0, not more
        found = data.find(b"OggS", at)
        at = found if found >= 0 else max(at, len(data) - 3)  # the mark may be cut in two
        if is_all and (found < 0 or len(data) - at < 27):
            return
        if found < 0 or (len(data) - at < OGG_PAGE and not is_all):
            continue
        body = at + 27 + data[at + 26]
        page = data[at : body + sum(data[at + 27 : body])]
        intact = _ogg_is_intact(page)
        yield base + at, page, intact
        at += len(page) if intact else 1


def _ogg_is_intact(page: bytes) -> bool:
    """Whether a page has the checksum that it states.

    That is a CRC-32 from the highest bit down, computed with zeros in the checksum's own bytes.
    zlib's is from the lowest bit up, so the bits of each byte, and of the result, are reversed.
    """
    content = page[:22] + bytes(4) + page[26:]
    found = zlib.crc32(content.translate(BIT_REVERSED), UNSIZED) ^ UNSIZED
    return int(f"{found:032b}"[::-1], 2) == int.from_bytes(page[22:26], "little")
