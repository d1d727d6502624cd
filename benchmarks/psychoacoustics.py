"""How well a model tells apart what the two ears hear: thresholds as in hearing experiments.

    python benchmarks/psychoacoustics.py gram-tiny
    python benchmarks/psychoacoustics.py gram-tiny mine.safetensors logmel_module: -o results

MODEL is what gram_hear's load_model takes, or MODULE:MODEL for another HEAR module. The models are
set beside listeners of known ability: equalise-cancel, cross-correlation, and the left ear alone.

Every experiment has two intervals. A logistic head on the scene embeddings of training trials
learns which interval is which. Then it chooses the interval in each of the test trials, for every
level of the stimulus. A psychometric function is fitted to the shares that are right. The threshold
is where 79.4 % are right, with an interval of 95 % (a parametric bootstrap over trials).

Sounds last one second. A tone in noise: 500 Hz in noise of 50 to 5,000 Hz that is the same in both
ears, the tone in phase (N0S0) or inverted at one ear (N0Spi). The level is that of the tone over
the noise in a band of 1 Hz. Their difference is the masking level difference.

Time and level differences: a tone of 500 Hz or 4 kHz that leads, or is louder, at the left ear in
one interval and at the right ear in the other. Angles: noise without a room, heard by a KEMAR head,
further to the left in one interval. In these the level of each interval is drawn over a range of 10
dB, and the spectrum of noise over 20 dB, so that one ear alone says little. Each ear hears noise of
its own, 30 dB below.

Trials depend on the seed alone. The column of people has the usual figures, of other sounds and
listeners: a tone in noise, Hawkins and Stevens 1950; masking level difference, Hirsh 1948; time,
Klumpp and Eady 1956; level, Mills 1960; angles, Mills 1958.
"""

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import parser_of
from numpy.random import Generator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gram_hear.config import FrontEndConfig
from gram_hear.errors import GramError
from gram_hear.evaluation.embed.hear_module import load_model
from gram_hear.frontend import hann_window, mel_filterbank
from gram_hear.jobs.writing import write_json, write_text
from gram_hear.scenes.heads import load_head
from gram_hear.style import COLOURS, WIDTH, drawing, save_figure

SECONDS = 1.0
RAMP = 0.02  # seconds that a sound takes to begin, and to end
NOISE_BAND = (50.0, 5000.0)  # Hz
WIDE_BAND = (50.0, 15000.0)  # Hz, of the noise at each ear, and of noise from a direction
COLOUR_STEP = 1 / 3  # octaves from one drawn level of a noise's spectrum to the next
NOISE_LEVEL = 0.02  # RMS of the noise
TONE_LEVEL = 0.05  # RMS of tones and noise bursts, before their level is drawn
ROVING = 10.0  # dB, the range of levels
BACKGROUND = -30.0  # dB of the noise at each ear, relative to the middle of the range
RIGHT = 0.794  # the share of right choices at the threshold
LAPSES = 0.01  # of the choices, at any level
SLOPES = np.geomspace(0.2, 20, 40)  # of psychometric functions, per step of the levels
BATCH = 32  # intervals that are embedded at once
CANCELLED = torch.tensor([-500e-6, -250e-6, 0.0, 250e-6, 500e-6])  # seconds
LAGS = torch.linspace(-1e-3, 1e-3, 17)  # seconds
PENALTIES = (1e-3, 1e-2, 1e-1)  # inverse strengths of the head's penalty, one of which is chosen

Intervals = tuple[np.ndarray, np.ndarray]  # each (trials, 2, samples): the other, and the sought
Listener = Callable[[np.ndarray], np.ndarray]  # (n, 2, samples) -> (n, d)


# --- sounds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sounds:
    """What sounds are made with: their rate in Hz, and random numbers."""

    rate: int
    generator: Generator

    @property
    def samples(self) -> int:
        return round(SECONDS * self.rate)

    def gate(self) -> np.ndarray:
        """Return the envelope (samples,) of a sound: ramps of half a cosine."""
        ramp = round(RAMP * self.rate)
        rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(ramp) + 0.5) / ramp)
        return np.concatenate([rise, np.ones(self.samples - 2 * ramp), rise[::-1]])

    def tone(self, frequency: float, trials: int, delay: float = 0.0) -> Intervals:
        """Return tones of RMS 1 at the left and the right ear, each (trials, samples).

        The left ear leads by ``delay`` seconds. The phase is drawn.
        """
        times = np.arange(self.samples) / self.rate
        phase = self.generator.uniform(0, 2 * np.pi, (trials, 1))
        left, right = (
            math.sqrt(2) * np.sin(2 * np.pi * frequency * (times + sign * delay / 2) + phase)
            for sign in (1, -1)
        )
        return left, right

    def noise(self, *shape: int, band: tuple[float, float] = NOISE_BAND, pink: bool = False):
        """Return noise of RMS 1, (*shape, samples)."""
        frequency = np.fft.rfftfreq(self.samples, 1 / self.rate)
        inside = (frequency >= band[0]) & (frequency <= band[1])
        gain = inside / (np.sqrt(np.maximum(frequency, 1)) if pink else 1)
        parts = self.generator.standard_normal((2, *shape, len(frequency)))
        noise = np.fft.irfft(gain * (parts[0] + 1j * parts[1]), self.samples)
        return noise / np.sqrt(np.square(noise).mean(axis=-1, keepdims=True))

    def presented(self, ears: np.ndarray) -> np.ndarray:
        """Return sound (trials, 2, samples) of RMS 1 at drawn levels, with noise at each ear."""
        decibels = self.generator.uniform(-ROVING / 2, ROVING / 2, (len(ears), 1, 1))
        background = 10 ** (BACKGROUND / 20) * self.noise(len(ears), 2, band=WIDE_BAND)
        return TONE_LEVEL * (10 ** (decibels / 20) * ears * self.gate() + background)

    def coloured(self, trials: int) -> np.ndarray:
        """Return pink noise (trials, 1, samples) with a level drawn for each part of its spectrum.

        So no ear alone knows how the source sounded.
        """
        frequency = np.fft.rfftfreq(self.samples, 1 / self.rate)
        octaves = np.log2(np.maximum(frequency, WIDE_BAND[0]) / WIDE_BAND[0])
        bands = np.arange(0, octaves[-1] + COLOUR_STEP, COLOUR_STEP)
        levels = self.generator.uniform(-ROVING, ROVING, (trials, len(bands)))
        decibels = np.stack([np.interp(octaves, bands, each) for each in levels])[:, None]
        pink = np.fft.rfft(self.noise(trials, 1, band=WIDE_BAND, pink=True))
        return np.fft.irfft(pink * 10 ** (decibels / 20), self.samples)


# --- experiments ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """A discrimination of two intervals.

    Attributes:
        name, unit: for the table.
        levels: of the stimulus, ascending, evenly spaced in what ``scale`` makes of them.
        make: the trials of a level.
        logarithmic: whether levels are spaced by ratios.
        human: what people's threshold is, for the table.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    make: Callable[[Sounds, float, int], Intervals]
    logarithmic: bool
    human: str


def detection(sign: float) -> Callable[[Sounds, float, int], Intervals]:
    """Return the trials of a tone in noise; the tone is multiplied by ``sign`` at the right ear."""

    def make(sounds: Sounds, level: float, trials: int) -> Intervals:
        bandwidth = NOISE_BAND[1] - NOISE_BAND[0]
        gain = 10 ** (level / 20) / math.sqrt(bandwidth)
        tone = gain * sounds.tone(500.0, trials)[0]
        quiet, loud = (np.repeat(sounds.noise(trials, 1), 2, axis=1) for _ in range(2))
        gate = NOISE_LEVEL * sounds.gate()
        return gate * quiet, gate * (loud + np.stack([tone, sign * tone], axis=1))

    return make


def time_difference(frequency: float) -> Callable[[Sounds, float, int], Intervals]:
    """Return the trials of a tone that leads at one ear, by half the level in microseconds."""

    def make(sounds: Sounds, level: float, trials: int) -> Intervals:
        right, left = (
            sounds.presented(np.stack(sounds.tone(frequency, trials, sign * level * 1e-6 / 2), 1))
            for sign in (-1, 1)
        )
        return right, left

    return make


def level_difference(frequency: float) -> Callable[[Sounds, float, int], Intervals]:
    """Return the trials of a tone that is louder at one ear, by half the level in dB."""

    def make(sounds: Sounds, level: float, trials: int) -> Intervals:
        right, left = (
            sounds.presented(
                np.stack(sounds.tone(frequency, trials), 1)
                * 10 ** (sign * level / 4 / 20 * np.array([[1.0], [-1.0]]))
            )
            for sign in (-1, 1)
        )
        return right, left

    return make


def angle(azimuth: float) -> Callable[[Sounds, float, int], Intervals]:
    """Return the trials of noise from two directions around an azimuth, ``level`` degrees apart."""

    def make(sounds: Sounds, level: float, trials: int) -> Intervals:
        head = load_head("kemar", sounds.rate)

        def from_azimuth(degrees: float) -> np.ndarray:
            turned = math.radians(degrees)
            response = head.response(np.array([math.cos(turned), math.sin(turned), 0.0]))
            spectra = np.fft.rfft(sounds.coloured(trials)) * np.fft.rfft(response, sounds.samples)
            ears = np.fft.irfft(spectra, sounds.samples)
            return sounds.presented(
                ears / np.sqrt(np.square(ears).mean(axis=(1, 2), keepdims=True))
            )

        return from_azimuth(azimuth - level / 2), from_azimuth(azimuth + level / 2)

    return make


def ratios(first: float, last: float) -> tuple[float, ...]:
    """Return levels from first to last, each twice the one before."""
    return tuple(first * 2.0**i for i in range(round(math.log2(last / first)) + 1))


TONE, LEVELS = tuple(range(-6, 46, 4)), ratios(0.125, 16)  # dB
EXPERIMENTS = {
    "n0s0": Experiment(
        "500 Hz tone in noise, in phase (N0S0)", "dB", TONE, detection(1), False, "17"
    ),
    "n0spi": Experiment(
        "500 Hz tone in noise, inverted (N0Spi)", "dB", TONE, detection(-1), False, "2"
    ),
    "itd-500": Experiment(
        "time difference, 500 Hz", "us", ratios(5, 640), time_difference(500.0), True, "10 to 20"
    ),
    "itd-4000": Experiment(
        "time difference, 4 kHz", "us", ratios(2, 128), time_difference(4000.0), True, "none"
    ),
    "ild-500": Experiment(
        "level difference, 500 Hz", "dB", LEVELS, level_difference(500.0), True, "0.5 to 1"
    ),
    "ild-4000": Experiment(
        "level difference, 4 kHz", "dB", LEVELS, level_difference(4000.0), True, "0.5 to 1"
    ),
    "angle-0": Experiment("angle at 0 degrees", "degrees", ratios(0.25, 64), angle(0.0), True, "1"),
    "angle-60": Experiment(
        "angle at 60 degrees", "degrees", ratios(0.25, 64), angle(60.0), True, "2 to 5"
    ),
}


# --- listeners ------------------------------------------------------------------------------


class Reference:
    """Features of an ideal listener: what the bands of two ears tell, frame by frame."""

    def __init__(self, rate: int, seed: int) -> None:
        self.config = FrontEndConfig(sample_rate=rate, f_max=rate / 2, mels=64)
        self.window, self.filters = hann_window(self.config), mel_filterbank(self.config)
        self.frequency = torch.linspace(0, rate / 2, self.config.n_fft // 2 + 1)
        self.generator = torch.Generator().manual_seed(seed)

    def spectra(self, audio: np.ndarray) -> torch.Tensor:
        """(n, 2, samples) -> complex (n, 2, frames, bins)."""
        sound = torch.from_numpy(audio).float()
        found = torch.stft(
            sound.flatten(0, 1), self.config.n_fft, self.config.n_fft // 2, window=self.window,
            return_complex=True,
        )  # fmt: skip
        return found.unflatten(0, sound.shape[:2]).transpose(-1, -2)

    def banded(self, power: torch.Tensor) -> torch.Tensor:
        return torch.log(power @ self.filters + 1e-9)

    def left_ear(self, audio: np.ndarray) -> np.ndarray:
        """Return the log power of the bands at the left ear, (n, 64)."""
        left = self.spectra(audio)[:, 0]
        return self.banded(left.abs().square()).mean(dim=1).numpy()

    def equalise_cancel(self, audio: np.ndarray) -> np.ndarray:
        """Return log powers at both ears, and of their difference after five delays, (n, 7 * 64).

        Before they are subtracted, the ears' signals are disturbed in gain (0.25) and time (105
        microseconds), as in Durlach's model of 1963; without that it would hear any difference.
        """
        ears = self.spectra(audio)
        shape = (*ears.shape[:3], 1)
        gain = 1 + 0.25 * torch.randn(shape, generator=self.generator)
        delay = 105e-6 * torch.randn(shape, generator=self.generator)
        disturbed = gain * torch.polar(torch.ones(()), 2 * math.pi * delay * self.frequency) * ears
        left, right = disturbed.unbind(1)
        turns = torch.polar(torch.ones(()), 2 * math.pi * CANCELLED[:, None] * self.frequency)
        signals = [ears[:, 0], ears[:, 1], *(left * turn - right for turn in turns)]
        powers = [self.banded(each.abs().square()).mean(dim=1) for each in signals]
        return torch.cat(powers, dim=1).numpy()

    def cross_correlation(self, audio: np.ndarray) -> np.ndarray:
        """Return the normalised cross-correlation of each band at 17 lags to 1 ms, (n, 17 * 64)."""
        left, right = self.spectra(audio).unbind(1)
        both = (left.abs() * right.abs()) @ self.filters + 1e-12
        cross = left.conj() * right
        turns = torch.polar(torch.ones(()), 2 * math.pi * LAGS[:, None] * self.frequency)
        found = [((cross * turn).real @ self.filters / both).mean(dim=1) for turn in turns]
        return torch.cat(found, dim=1).numpy()


# --- thresholds -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """Where :data:`RIGHT` choices are right, with its interval; infinite beyond the levels."""

    value: float
    low: float
    high: float
    shares: tuple[float, ...]
    samples: np.ndarray  # of the bootstrap, in the experiment's own scale

    def to_json(self) -> dict:
        found = {"value": self.value, "low": self.low, "high": self.high}
        plain = {key: value if math.isfinite(value) else str(value) for key, value in found.items()}
        return {**plain, "shares": self.shares}


def choose(
    listen: Listener, experiment: Experiment, given: Namespace, rate: int
) -> tuple[float, ...]:
    """Train the head, let it choose, and return the share of right choices at each level."""
    number = list(EXPERIMENTS.values()).index(experiment)
    trained, tested = (
        [
            embedded(
                listen,
                experiment.make,
                Sounds(rate, np.random.default_rng([given.seed, number, part, i])),
                level,
                trials,
            )
            for i, level in enumerate(experiment.levels)
        ]
        for part, trials in enumerate((given.training, given.trials))
    )
    scaler = StandardScaler().fit(np.concatenate([each for pair in trained for each in pair]))
    differences = [scaler.transform(b) - scaler.transform(a) for a, b in trained]
    head = fitted(differences)
    return tuple(
        float((head.decision_function(scaler.transform(b) - scaler.transform(a)) > 0).mean())
        for a, b in tested
    )


def embedded(
    listen: Listener,
    make: Callable[[Sounds, float, int], Intervals],
    sounds: Sounds,
    level: float,
    trials: int,
) -> Intervals:
    """Return what a listener makes of a level's intervals, each (trials, d); a batch at a time."""
    parts = []
    for first in range(0, trials, BATCH // 2):
        some = make(sounds, level, min(BATCH // 2, trials - first))
        found = listen(np.concatenate(some).astype(np.float32)).astype(np.float64)
        parts.append(np.split(found, 2))
    one, other = (np.concatenate(each) for each in zip(*parts, strict=True))
    return one, other


def fitted(differences: Sequence[np.ndarray]) -> LogisticRegression:
    """Return a head that tells the sought interval, from differences of embeddings by level.

    The penalty is the one with which a head of four fifths of the trials chooses best in the rest.
    """

    def fit(penalty: float, parts: Sequence[np.ndarray]) -> LogisticRegression:
        rows = np.concatenate(parts)
        signs = np.where(np.arange(len(rows)) % 2, 1, -1)
        head = LogisticRegression(C=penalty, fit_intercept=False, max_iter=300)
        return head.fit(signs[:, None] * rows, signs)

    def right(penalty: float) -> float:
        head = fit(penalty, [each[: len(each) * 4 // 5] for each in differences])
        rest = np.concatenate([each[len(each) * 4 // 5 :] for each in differences])
        return float((head.decision_function(rest) > 0).mean())

    return fit(max(PENALTIES, key=right), differences)


def threshold(
    experiment: Experiment, shares: Sequence[float], trials: int, seed: int, resamples: int = 400
) -> Threshold:
    """Fit a psychometric function, and bootstrap it."""
    levels = np.array(experiment.levels, dtype=np.float64)
    scale = np.log2(levels) if experiment.logarithmic else levels
    step = scale[1] - scale[0]
    middles = np.arange(scale[0] - 2 * step, scale[-1] + 2 * step, step / 20)
    grid = 1 / (1 + np.exp(-SLOPES[:, None, None] * (scale - middles[:, None]) / step))
    right = (0.5 + (0.5 - LAPSES) * grid).reshape(-1, len(scale))
    odds = math.log((RIGHT - 0.5) / (1 - LAPSES - RIGHT))
    crossings = (middles[None] + odds / SLOPES[:, None] * step).reshape(-1)

    def fit(found: np.ndarray) -> np.ndarray:
        """(n, levels) shares -> (n,) thresholds, in the experiment's scale."""
        likelihood = found @ np.log(right).T + (1 - found) @ np.log(1 - right).T
        return crossings[likelihood.argmax(axis=1)]

    shares = np.array(shares)
    best = float(fit(shares[None])[0])
    generator = np.random.default_rng(seed)
    drawn = fit(generator.binomial(trials, shares, (resamples, len(scale))) / trials)
    low, high = np.quantile(drawn, (0.025, 0.975))

    def shown(value: float) -> float:
        if not scale[0] <= value <= scale[-1]:
            return math.inf if value > scale[-1] else -math.inf
        return float(2**value if experiment.logarithmic else value)

    return Threshold(shown(best), shown(low), shown(high), tuple(map(float, shares)), drawn)


def masking_difference(in_phase: Threshold, inverted: Threshold) -> dict[str, float] | None:
    """Return the masking level difference in dB and its interval; None where one is not heard."""
    if not (math.isfinite(in_phase.value) and math.isfinite(inverted.value)):
        return None
    low, high = np.quantile(in_phase.samples - inverted.samples, (0.025, 0.975))
    return {"value": in_phase.value - inverted.value, "low": float(low), "high": float(high)}


# --- reports --------------------------------------------------------------------------------


def in_words(found: Threshold, experiment: Experiment) -> str:
    """Return a threshold for the table."""
    if not math.isfinite(found.value):
        last = experiment.levels[-1 if found.value > 0 else 0]
        return f"{'above' if found.value > 0 else 'below'} {last:g}"
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def table(results: dict[str, dict[str, Threshold]], chosen: Sequence[str]) -> str:
    """Return the thresholds as Markdown: a row for each experiment, a column for each listener."""
    lines = [
        f"| threshold | {' | '.join(results)} | people |",
        "|---" * (len(results) + 2) + "|",
    ]
    for key in chosen:
        experiment = EXPERIMENTS[key]
        cells = [in_words(found[key], experiment) for found in results.values()]
        row = [f"{experiment.name}, {experiment.unit}", *cells, experiment.human]
        lines.append(f"| {' | '.join(row)} |")
    if {"n0s0", "n0spi"} <= set(chosen):
        cells = []
        for found in results.values():
            difference = masking_difference(found["n0s0"], found["n0spi"])
            cells.append(
                "undefined"
                if difference is None
                else "{value:.1f} ({low:.1f} to {high:.1f})".format(**difference)
            )
        lines.append(f"| masking level difference, dB | {' | '.join(cells)} | 15 |")
    return "\n".join(lines)


def picture(results: dict[str, dict[str, Threshold]], chosen: Sequence[str], path: Path) -> None:
    """Draw the share of right choices by level, a panel for each experiment."""
    styles = ("-", "--", ":", "-.")
    columns = 2 if len(chosen) > 1 else 1
    rows = -(-len(chosen) // columns)
    with drawing(WIDTH, 0.6 + 1.9 * rows, "Right choices of two intervals") as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes, key in zip(grid, chosen, strict=False):
            experiment = EXPERIMENTS[key]
            for i, (name, found) in enumerate(results.items()):
                axes.plot(
                    experiment.levels, found[key].shares, color=COLOURS[i % len(COLOURS)],
                    ls=styles[i // len(COLOURS) % len(styles)], marker="os^dv"[i % 5], ms=3, lw=1,
                    label=name,
                )  # fmt: skip
            axes.axhline(RIGHT, color="#cccccc", lw=0.8, zorder=0)
            if experiment.logarithmic:
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set(title=experiment.name, xlabel=experiment.unit, ylim=(0.4, 1.03))
        for axes in grid[len(chosen) :]:
            axes.axis("off")
        grid[0].set_ylabel("share right")
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save_figure(figure, path)


def listeners(given: Namespace) -> dict[str, tuple[Listener, int]]:
    """Return the listeners by name, each with the rate of its sound."""
    found: dict[str, tuple[Listener, int]] = {}
    for each in given.models:
        module, colon, model = each.rpartition(":")
        loaded = load_model(module if colon else "gram_hear", model, device=given.device)
        if not loaded.multichannel:
            raise GramError(f"{each} does not take two channels (multichannel = channels_first).")
        found[Path(model).stem or module] = (loaded.scenes, loaded.sample_rate)
    if not given.no_references:
        reference = Reference(32000, given.seed)
        found["equalise-cancel"] = (reference.equalise_cancel, 32000)
        found["cross-correlation"] = (reference.cross_correlation, 32000)
        found["left ear alone"] = (reference.left_ear, 32000)
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--trials", type=int, default=400, help="tested at each level")
    parser.add_argument("--training", type=int, default=150, help="learned from at each level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-references", action="store_true", help="the models alone")
    parser.add_argument("-o", "--output", type=Path, help="folder of table, picture and JSON")
    given = parser.parse_args()
    results: dict[str, dict[str, Threshold]] = {}
    try:
        for name, (listen, rate) in listeners(given).items():
            results[name] = {}
            for key in given.only:
                shares = choose(listen, EXPERIMENTS[key], given, rate)
                results[name][key] = threshold(EXPERIMENTS[key], shares, given.trials, given.seed)
                words = in_words(results[name][key], EXPERIMENTS[key])
                print(f"{name}: {EXPERIMENTS[key].name}: {words}", file=sys.stderr, flush=True)
    except GramError as error:
        sys.exit(f"error: {error}")
    text = table(results, given.only)
    print(text)
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        write_text(given.output / "psychoacoustics.md", text + "\n")
        plain = {
            name: {key: each.to_json() for key, each in found.items()}
            for name, found in results.items()
        }
        options = {key: getattr(given, key) for key in ("trials", "training", "seed")}
        write_json(given.output / "psychoacoustics.json", {"options": options, "listeners": plain})
        picture(results, given.only, given.output / "psychoacoustics.svg")


if __name__ == "__main__":
    main()
