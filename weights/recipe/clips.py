"""Make the clips that gram-tiny learns from: speech of espeak-ng, and synthetic sounds.

    python weights/recipe/clips.py clips --speech 2400 --sounds 600

Writes FLAC files of at most 10 s, one channel, into OUTPUT/speech and OUTPUT/sounds. Clip i depends
on the seed and i alone; files that are there are kept, so that an interrupted run goes on. Needs
the program espeak-ng (Debian's package; version 1.51 was used).

Speech: numbers, which espeak-ng reads in the language at hand, and words without meaning, drawn
from syllables; 89 languages and dialects, 73 voices, of which each clip has one, at a speed, pitch
and length of the vocal tract of its own. Some speak on, others leave pauses between words. A third
is stored at 8 kHz and a quarter at 16 kHz, as recordings are. No recording of a person is in it.
"""

import argparse
import math
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.random import Generator

from gram_hear.audio.synthesis import synthesise_clip
from gram_hear.jobs.workers import cores, work
from gram_hear.jobs.writing import write_whole

SECONDS = 10.0
RATE = 32000  # Hz of synthetic sounds
RATES = {8000: 0.33, 16000: 0.25, 22050: 0.42}  # Hz of speech files, with their shares
COLOUR = 4.0  # dB: deviation of a voice's spectral colour, which microphones and rooms have too
LOUDEST = 0.5  # of a file's samples


def split(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


READS_LATIN = split(
    "af an az bs ca cs cy da de en-029 en-gb en-gb-scotland en-gb-x-rp en-us eo es es-419 et eu "
    "fi fr-be fr-ch fr-fr ga gd hr ht hu ia id is it ku la lb lt lv mi ms mt nb nl om pap pl pt "
    "pt-br ro sk sl sq sv sw tk tn tr uz vi"
)
READS_NUMBERS = split(
    "am ar as bg bn cmn el fa gu hi hy ja ka kn ko ky mk ml mr my ne or pa ru sd si sr ta te ur yue"
)
VOICES = split(
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 Alex Alicia Andrea Andy Annie Denis Diogo Gene "
    "Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen adam anika antonio aunty "
    "belinda benjamin boris caleb david ed edward grandma grandpa gustave iven iven2 john "
    "kaukovalta klatt klatt2 klatt3 klatt4 linda marcelo max michel miguel norbert pablo paul "
    "pedro quincy rob robert sandro shelby steph steph2 travis victor whisper zac"
)
CONSONANTS = split("b d f g h k l m n p r s t v z bl br dr fl fr gl gr kl kr pl pr sk sl sp st tr")
VOWELS = split("a e i o u a e i o u ai au ei oi ou")
ENDINGS = ["", "", "", "", "n", "s", "r", "l", "t", "k", "m"]


def make_text(generator: Generator, latin: bool) -> str:
    """Return words for some 15 seconds: mostly short numbers, and syllables without meaning."""
    words = []
    numbers = generator.uniform(0.2, 0.8) if latin else 1.0
    while len(words) < 30:
        if generator.random() < numbers:
            words.append(str(int(generator.integers(10 ** int(generator.integers(1, 4))))))
        else:
            count = int(generator.integers(1, 4))
            words.append("".join(_syllable(generator) for _ in range(count)))
        if generator.random() < 0.1:
            words[-1] += generator.choice([",", ".", "?"])
    return " ".join(words)


def _syllable(generator: Generator) -> str:
    return "".join(str(generator.choice(part)) for part in (CONSONANTS, VOWELS, ENDINGS))


def speak(generator: Generator) -> tuple[np.ndarray, int]:
    """Return speech (samples,) of one voice, and its rate in Hz."""
    latin = generator.random() < 0.75
    language = str(generator.choice(READS_LATIN if latin else READS_NUMBERS))
    voice = str(generator.choice(VOICES))
    pause = int(generator.choice([0, 0, generator.integers(1, 10), generator.integers(20, 80)]))
    options = {
        "-v": f"{language}+{voice}",
        "-p": int(generator.integers(10, 90)),
        "-s": int(generator.integers(100, 240)),
        "-g": pause,  # 10 ms
    }
    text = make_text(generator, latin)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        words = [str(part) for option in options.items() for part in option]
        subprocess.run(["espeak-ng", *words, "-w", str(file), text], check=True)
        audio, rate = soundfile.read(file, dtype="float32")
    tract = math.exp(generator.uniform(math.log(0.85), math.log(1.2)))
    wanted = int(generator.choice(list(RATES), p=list(RATES.values())))
    audio = soxr.resample(_colour(generator, audio, rate), rate, wanted * tract)
    longest = int(SECONDS * wanted)
    start = int(generator.integers(max(1, len(audio) - longest + 1)))
    return audio[start : start + longest], wanted


def _colour(generator: Generator, audio: np.ndarray, rate: int) -> np.ndarray:
    """Return audio through a filter whose gain in dB wanders over the octaves."""
    spectrum = np.fft.rfft(audio)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(audio), 1 / rate), 50) / 50)
    knots = COLOUR * generator.standard_normal(9)
    gains = 10 ** (np.interp(octaves, np.arange(9), knots) / 20)
    return np.fft.irfft(spectrum * gains, len(audio)).astype(np.float32)


def make_file(output: Path, kind: str, seed: int, i: int) -> None:
    """Write clip ``i`` of a kind, unless it is there."""
    path = output / kind / f"{i:06d}.flac"
    if path.exists():
        return
    if kind == "speech":
        audio, rate = speak(np.random.default_rng([seed, i]))
    else:
        audio, rate = synthesise_clip([seed, i], int(SECONDS * RATE), RATE).audio, RATE
    loud = audio * (LOUDEST / max(float(np.abs(audio).max()), 1e-6))
    write_whole(path, lambda file: soundfile.write(file, loud, rate, format="FLAC"))


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--speech", type=int, default=2400)
    parser.add_argument("--sounds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for kind, count in {"speech": given.speech, "sounds": given.sounds}.items():
        (given.output / kind).mkdir(parents=True, exist_ok=True)
        make = partial(make_file, given.output, kind, given.seed)
        for _ in work(make, range(count), cores()):
            pass
        print(f"{count} clips in {given.output / kind}")


if __name__ == "__main__":
    main()
