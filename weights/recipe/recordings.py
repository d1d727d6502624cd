"""Take recorded sounds out of Debian's packages, to train small models on.

    python weights/recipe/recordings.py recordings

Each package is downloaded with ``apt-get download`` into OUTPUT/packages and unpacked there,
without being installed. Its sounds become FLAC files of one channel, the first, in
OUTPUT/KIND/PACKAGE. ``recordings.json`` and ``recordings.md`` say what was taken: hours by kind,
and the licences that each package's copyright file names. A sound that has come already, in this
package or another, is left out, and so is one that is silent or shorter than 0.1 s. Files that are
there are kept, so that an interrupted run goes on.

Run ``apt-get update`` first. Speech of Asterisk is G.722, which ffmpeg decodes; the instruments of
a sound font are played by fluidsynth. Both are Debian's packages of these names.
"""

import argparse
import hashlib
import io
import re
import subprocess
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from gram_hear.audio.files import SUFFIXES
from gram_hear.jobs.writing import write_json, write_text, write_whole

SHORTEST = 0.1  # seconds
QUIETEST = 1e-3  # of full scale: the peak below which a file counts as silent
G722_RATE = 16000  # Hz
NOTES = (36, 48, 60, 72, 84)  # MIDI numbers that instruments play, a second and a half each
SPEECH, WORDS, EFFECTS, MUSIC, INSTRUMENTS = "speech", "words", "effects", "music", "instruments"


@dataclass(frozen=True)
class Package:
    """A Debian package with sounds; ``others`` is the kind of files whose names hold ``marker``."""

    name: str
    kind: str
    marker: str = ""
    others: str = ""

    def kind_of(self, path: str) -> str:
        """Return the kind of a sound by its path in the package."""
        return self.others if self.marker and self.marker in path else self.kind


LANGUAGES = ("en", "fr", "es", "it", "ru")
PACKAGES = (
    *(Package(f"asterisk-core-sounds-{code}-g722", SPEECH) for code in LANGUAGES),
    Package("klettres-data", WORDS),
    Package("tuxpaint-stamps-default", EFFECTS, "_desc", WORDS),
    Package("fillets-ng-data", EFFECTS, "/music/", MUSIC),
    Package("warzone2100-data", EFFECTS, "music/", MUSIC),
    Package("openttd-opensfx", EFFECTS),
    Package("scratch", EFFECTS),
    Package("wesnoth-1.16-music", MUSIC),
    Package("sonic-pi-samples", INSTRUMENTS),
    Package("hydrogen-drumkits", INSTRUMENTS),
    Package("fluid-soundfont-gm", INSTRUMENTS),
)

Sound = tuple[str, bytes]  # a path in the package, and the content of the file


# --- out of the packages --------------------------------------------------------------------


def unpack(name: str, folder: Path) -> Path:
    """Download a package, where it is not there yet, and return the folder of its files."""
    unpacked = folder / name
    if not unpacked.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", name], cwd=folder, check=True, capture_output=True)
        [archive] = folder.glob(f"{name}_*.deb")

        def extract(temporary: Path) -> None:
            subprocess.run(["dpkg-deb", "-x", archive, temporary], check=True)

        write_whole(unpacked, extract)
        archive.unlink()
    return unpacked


def sounds_of(folder: Path) -> Iterator[Sound]:
    """Yield the sounds of an unpacked package, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        name, suffix = path.relative_to(folder).as_posix(), path.suffix.lower()
        if suffix in (*SUFFIXES, ".g722"):
            yield name, path.read_bytes()
        elif suffix == ".wz":
            yield from zipped(path, name)
        elif suffix == ".cat":
            yield from joined(path, name)
        elif suffix == ".sf2":
            yield from played(path, name)


def zipped(path: Path, name: str) -> Iterator[Sound]:
    """Yield the sounds of a game's archive, which is a zip."""
    with zipfile.ZipFile(path) as archive:
        for inner in sorted(archive.namelist()):
            if inner.lower().endswith(SUFFIXES):
                yield f"{name}/{inner}", archive.read(inner)


def joined(path: Path, name: str) -> Iterator[Sound]:
    """Yield the WAV files that stand one after another in a file."""
    content = path.read_bytes()
    for found in re.finditer(rb"RIFF(....)WAVE", content, re.DOTALL):
        size = int.from_bytes(found[1], "little") + 8
        yield f"{name}/{found.start():08d}.wav", content[found.start() : found.start() + size]


def played(path: Path, name: str) -> Iterator[Sound]:
    """Yield what the 128 instruments of a sound font play: the same notes, one after another."""
    for program in range(128):
        with tempfile.TemporaryDirectory() as folder:
            score, wave = Path(folder) / "score.mid", Path(folder) / "sound.wav"
            score.write_bytes(midi(program))
            command = ["fluidsynth", "-ni", "-g", "0.5", "-r", "32000", "-R", "0", "-C", "0"]
            subprocess.run([*command, "-F", wave, path, score], check=True, capture_output=True)
            yield f"{name}/{program:03d}.wav", wave.read_bytes()


def midi(program: int) -> bytes:
    """Return a MIDI file in which an instrument plays :data:`NOTES`."""
    events = bytes([0, 0xC0, program])
    for note in NOTES:  # on for 1440 ticks, a second and a half at the tempo that MIDI starts with
        events += bytes([0, 0x90, note, 96, 0x8B, 0x20, 0x80, note, 0])
    events += bytes([0x83, 0x60, 0xFF, 0x2F, 0])  # the end, 480 ticks later
    header = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 0, 0, 1, 1, 0xE0])
    return header + b"MTrk" + len(events).to_bytes(4, "big") + events


# --- sounds ---------------------------------------------------------------------------------


def decode(name: str, content: bytes) -> tuple[np.ndarray, int]:
    """Return a sound's first channel (samples,) float32, and its rate."""
    if name.endswith(".g722"):
        command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", "-", "-f", "s16le", "-"]
        raw = subprocess.run(command, input=content, check=True, capture_output=True).stdout
        return np.frombuffer(raw, "<i2").astype(np.float32) / 32768, G722_RATE
    audio, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return audio[:, 0], rate


def take(package: Package, output: Path, taken: set[str]) -> dict[str, float]:
    """Write a package's sounds; return the seconds of each kind, and count what was left out."""
    seconds: dict[str, float] = defaultdict(float)
    for name, content in sounds_of(unpack(package.name, output / "packages")):
        try:
            audio, rate = decode(name, content)
        except soundfile.LibsndfileError:
            seconds["unreadable"] += 1
            continue
        digest = hashlib.sha256(np.round(audio * 32768).astype("<i4").tobytes()).hexdigest()
        if len(audio) < SHORTEST * rate or np.abs(audio).max() < QUIETEST:
            seconds["too short or silent"] += 1
        elif digest in taken:
            seconds["duplicate"] += 1
        else:
            taken.add(digest)
            kind = package.kind_of(name)
            path = output / kind / package.name / (re.sub(r"[^\w.-]+", "_", name)[-120:] + ".flac")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_flac(path, audio, rate)
            seconds[kind] += len(audio) / rate
    return dict(seconds)


def write_flac(path: Path, audio: np.ndarray, rate: int) -> None:
    """Write a FLAC file of 16 bits, unless it is there."""
    if not path.exists():
        sound = audio / max(1.0, float(np.abs(audio).max()))
        write_whole(path, lambda file: soundfile.write(file, sound, rate, "PCM_16", format="FLAC"))


def licences(folder: Path, name: str) -> list[str]:
    """Return the licences that a package's copyright file names, in its machine-readable form."""
    text = (folder / "usr/share/doc" / name / "copyright").read_text("utf-8", "replace")
    found = re.findall(r"^License:[ \t]*(\S[^\n]*)$", text, re.MULTILINE)
    return sorted(set(found)) or ["see its copyright file"]


def main() -> None:
    """Take all packages' sounds, and write what was taken."""
    parser = argparse.ArgumentParser(description="Take recorded sounds out of Debian's packages.")
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    taken: set[str] = set()
    table: dict[str, dict] = {}
    for package in PACKAGES:
        found = take(package, output, taken)
        names = licences(output / "packages" / package.name, package.name)
        table[package.name] = {"seconds": found, "licences": names}
        print(package.name, {kind: round(value, 1) for kind, value in found.items()}, flush=True)
    write_json(output / "recordings.json", table)
    lines = ["| package | minutes of sound | licences |", "|---|---|---|"]
    for name, row in table.items():
        minutes = ", ".join(
            f"{kind} {value / 60:.0f}" for kind, value in row["seconds"].items() if kind in KINDS
        )
        lines.append(f"| {name} | {minutes} | {', '.join(row['licences'])} |")
    write_text(output / "recordings.md", "\n".join(lines) + "\n")


KINDS = (SPEECH, WORDS, EFFECTS, MUSIC, INSTRUMENTS)

if __name__ == "__main__":
    main()
