"""Room impulse responses (RIRs) of a scene, binaural or Ambisonic, from image sources.

Images are rendered in short frames of the frequency domain. The spectrum of an image holds its
octave-band gains, as a minimum-phase filter, and its delay within the frame. Spectra of one frame
and one direction are added up, and multiplied once by the head's response to that direction. Then
the frames are overlapped and added. Where there would be too many images, diffuse noise follows,
with the decay of the room and the coherence of the head's ears in a diffuse field.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from gram_hear.audio.layouts import CHANNEL_NAMES, encode_ambix
from gram_hear.config import AUDIO_CHANNELS, RIR_RATES
from gram_hear.errors import OptionError, require_known
from gram_hear.extras import need
from gram_hear.scenes.acoustics import (
    BANDS,
    LARGEST_ABSORPTION,
    SPEECH_BAND,
    SPEED,
    decay_rates,
    decay_time,
    measured_rt60,
    octave,
)
from gram_hear.scenes.heads import Head, load_head
from gram_hear.scenes.rooms import ImageSources, Position, Room, Scene, image_sources

SCENE_LAYOUTS = tuple(CHANNEL_NAMES)  # the layouts that a scene can be rendered in
IMAGES = 5000  # about how many images of a source are rendered before the diffuse tail takes over
HOP = 128  # samples from one frame to the next
LEAD = 40  # samples kept free before an image, for the ringing of its fractional delay
FILTER_SECONDS = 1 / 64  # after so long an octave-band filter has died away
# Share of the Nyquist frequency above which images fade out, so that delays ring briefly.
TOP = 0.95
TOGETHER = 128  # images that are filtered at once: as many as fit a core's cache
MORE = 3  # in rooms that ring briefly, up to so many times as many images are rendered
TAIL_FADE = 0.25  # share of the images' time over which the tail takes over
STREAM = {"binaural": 3, "ambisonic": 4}  # of the scene's seed, for the tail; see gram_hear.scenes
LONGEST_RIR = 60.0  # seconds
TUNINGS, TUNED = 12, 0.02  # how often surfaces are tuned at most; the deviation that is enough


@dataclass(frozen=True, eq=False)
class Rendered:
    """The room impulse responses (RIRs) of a scene.

    Attributes:
        rirs: (1 + noise sources, channels, samples) float32, that of the source first. Binaural
            channels are the left and the right ear, Ambisonic ones AmbiX. An image source at a
            distance of d metres has the amplitude 1 / d.
        rate: Hz.
        layout: ``"binaural"`` or ``"ambisonic"``.
        metadata: the scene and what is known of its RIRs, as plain data for JSON.
    """

    rirs: np.ndarray
    rate: int
    layout: str
    metadata: dict[str, Any]


def render(
    scene: Scene,
    layout: str,
    rate: int = 32000,
    head: Head | None = None,
    seconds: float | None = None,
    images: int = IMAGES,
) -> Rendered:
    """Render the RIRs of a scene, from the source and from every noise source.

    Example::

        scene = gram_hear.make_scene(sound, 32000, distance=2.0, seed=1).scene
        rirs = render(scene, "ambisonic").rirs  # (1 + noise sources, 4, samples)

    Args:
        scene: the room, the listener and the sources.
        layout: ``"binaural"`` or ``"ambisonic"``.
        rate: Hz.
        head: whose ears hear a binaural scene. None is the bundled KEMAR head.
        seconds: the length of the RIRs. None is the time in which the room decays by 60 dB.
        images: about how many image sources of each source are rendered one by one. What comes
            later is the modelled tail.

    Returns:
        The RIRs, and what is known of them.

    Raises:
        OptionError: for an unknown layout, a head of another rate, or numbers out of range.
    """
    require_known("layout", layout, SCENE_LAYOUTS)
    if rate < 8000 or images < 1 or (seconds is not None and not 0 < seconds < math.inf):
        raise OptionError(
            f"rate is {rate}, images {images}, seconds {seconds}; at least 8000 Hz, one image and "
            "some time are needed."
        )
    if layout == "binaural":
        head = head or load_head("kemar", rate)
        if head.rate != rate:
            raise OptionError(
                f"The head {head.name} is sampled at {head.rate} Hz and the RIRs at {rate} Hz; "
                "load the head at that rate."
            )
    else:
        head = None
    positions = (scene.source, *scene.noises)
    seconds = seconds or _ringing(scene, positions)
    if seconds > LONGEST_RIR or rate > RIR_RATES[1]:
        raise OptionError(
            f"RIRs of {seconds:.1f} s at {rate} Hz would be rendered; they may be "
            f"{LONGEST_RIR:g} s long, at {RIR_RATES[1]} Hz, at most."
        )
    samples = math.ceil(seconds * rate)
    if samples < (least := math.ceil((scene.distance / SPEED + FILTER_SECONDS) * rate)):
        raise OptionError(
            f"RIRs of {seconds} s were asked for, and the direct sound of this scene needs "
            f"{least / rate:.3f} s."
        )
    shape = (AUDIO_CHANNELS[layout], samples)
    rirs = np.empty((len(positions), *shape), dtype=np.float32)
    for i, position in enumerate(positions):
        generator = np.random.default_rng([*scene.seed, STREAM[layout], i])
        rirs[i], direct = _render(scene, position, head, rate, shape, images, generator)
        if i == 0:
            energy = float((direct.astype(np.float64) ** 2).sum())
            rest = float(((rirs[0].astype(np.float64) - direct) ** 2).sum())
    heard = rirs[0] if head else rirs[0, :1]
    metadata = {
        **scene.to_dict(),
        "azimuth": scene.azimuth,
        "elevation": scene.elevation,
        "distance": scene.distance,
        "direction": scene.direction.tolist(),
        "rt60": scene.room.rt60,
        "rt60_measured": _finite(measured_rt60(heard, rate)),
        "direct_to_reverberant_ratio": 10 * math.log10(energy / max(rest, 1e-20 * energy)),
        "direct_delay": [math.dist(position, scene.listener) / SPEED for position in positions],
        "head": head.name if head else None,
        "convention": None if head else "ambix",
        "layout": layout,
        "rate": rate,
    }
    return Rendered(rirs, rate, layout, metadata)


def tune(scene: Scene, rate: int = 8000) -> Scene:
    """Return the scene with surfaces altered until its RT60 is the one that was asked for.

    A room's reverberation time is a mean over positions. At one position a few strong early
    reflections move it, the more the shorter it is. So the exponents of all surfaces are scaled
    alike until the RIR from the source to an omnidirectional microphone has the room's ``rt60`` in
    the octave of 1 kHz, or comes as close as it can. It is measured at ``rate`` Hz.
    """
    exponents = scene.room.exponents
    most = -math.log(1 - LARGEST_ABSORPTION)
    low, high = math.log(0.1), math.log(most / exponents.min())
    best, smallest, scale = scene, math.inf, 0.0
    for _ in range(TUNINGS):
        absorption = -np.expm1(-np.minimum(math.exp(scale) * exponents, most))
        room = replace(scene.room, absorption=tuple(tuple(map(float, r)) for r in absorption))
        tried = replace(scene, room=room)
        longer = math.log(_expected_rt60(tried, rate) / room.rt60)
        if not math.isfinite(longer):
            break
        if abs(longer) < smallest:
            best, smallest = tried, abs(longer)
        if smallest < TUNED:
            break
        low, high = (scale, high) if longer > 0 else (low, scale)
        scale += 0.5 * longer
        if not low < scale < high:
            scale = (low + high) / 2
    return best


def _expected_rt60(scene: Scene, rate: int) -> float:
    """Return the RT60 of the source's RIR at an omnidirectional microphone.

    The images are rendered; of the tail, which is noise, the mean energy is added.
    """
    samples = math.ceil(_ringing(scene, (scene.source,)) * rate)
    rir, _ = _render(scene, scene.source, None, rate, (1, samples), IMAGES, None)
    begin = _reach(scene, scene.source, IMAGES) / SPEED
    tail = _envelopes(scene.room, begin, rate, samples)[SPEECH_BAND] ** 2
    pulse = np.zeros((1, samples))
    pulse[0, 0] = 1
    centre = BANDS[SPEECH_BAND]
    passed = float((octave(pulse, rate, centre) ** 2).sum())  # of white noise's energy
    energy = (octave(rir, rate, centre) ** 2).sum(axis=0) + passed * tail
    return decay_time(energy, rate)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ringing(scene: Scene, positions: tuple[Position, ...]) -> float:
    """Return the seconds after which the slowest band has decayed by 60 dB."""
    rates = _rates(scene.room)
    times = np.linspace(0, 6 * math.log(10) / rates.min(), 200)
    left = (np.exp(-rates[..., None] * times) / rates[..., None]).mean(axis=0)
    above = (left > 1e-6 * left[:, :1]).any(axis=0)
    farthest = max(math.dist(position, scene.listener) for position in positions)
    return float(times[above].max()) + farthest / SPEED + FILTER_SECONDS


def _rates(room: Room) -> np.ndarray:
    return decay_rates(np.array(room.size), room.exponents)


def _render(
    scene: Scene,
    position: Position,
    head: Head | None,
    rate: int,
    shape: tuple[int, int],
    images: int,
    generator: np.random.Generator | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the RIR (channels, samples) from one position, and its direct sound alone.

    Without a generator there is no tail.
    """
    end = shape[1] / rate * SPEED
    radius = min(_reach(scene, position, images), end)
    sources = image_sources(scene, position, radius)
    tail = np.zeros(shape, dtype=np.float32)
    if radius < end:
        into = np.clip((sources.distances / radius - 1 + TAIL_FADE) / TAIL_FADE, 0, 1)
        sources.gains[:] += np.log(np.maximum(np.cos(math.pi / 2 * into), 1e-6))[:, None]
        if generator is not None:
            tail = diffuse_tail(scene.room, radius / SPEED, head, rate, shape, generator)
    direct = render_images(_select(sources, slice(0, 1)), head, rate, shape, exact=True)
    others = render_images(_select(sources, slice(1, None)), head, rate, shape)
    return tail + others + direct, direct


def _reach(scene: Scene, position: Position, images: int) -> float:
    """Return the distance in metres up to which images are computed.

    A ball of radius r holds 4/3 pi r^3 / volume images. There may be :data:`MORE` times as many as
    asked for, where images alone then make the decay in which the reverberation time is measured.
    """

    def ball(count: float) -> float:
        return (3 * count * scene.room.volume / (4 * math.pi)) ** (1 / 3)

    seconds = 0.45 * scene.room.rt60 + scene.distance / SPEED  # until the decay is at -25 dB
    decayed = seconds / (1 - TAIL_FADE) * SPEED
    wanted = min(max(ball(images), decayed), ball(MORE * images))
    return max(wanted, 3 * math.dist(position, scene.listener))


def _select(sources: ImageSources, which: slice) -> ImageSources:
    return ImageSources(sources.directions[which], sources.distances[which], sources.gains[which])


# --- image sources --------------------------------------------------------------------------


def render_images(
    sources: ImageSources,
    head: Head | None,
    rate: int,
    shape: tuple[int, int],
    exact: bool = False,
) -> np.ndarray:
    """Render image sources into an RIR of a shape (channels, samples), float32.

    The head's ears hear, at ``rate`` Hz; without a head it is AmbiX, whose first channels may be
    rendered alone. Where it is to be exact, the head's response is interpolated for each image;
    otherwise each takes that of the nearest direction.
    """
    rir = np.zeros(shape, dtype=np.float32)
    taps = head.responses.shape[2] if head else 1
    n_fft = 2 ** math.ceil(math.log2(HOP + 2 * LEAD + taps + FILTER_SECONDS * rate))
    ahead = head.delay if head else 0.0
    arrivals = (sources.distances / SPEED - ahead) * rate
    frames = np.floor(arrivals / HOP).astype(np.int64)
    if head is None:
        groups, table = np.zeros(len(frames), dtype=np.int64), None
        weights = encode_ambix(sources.directions)[:, : len(rir)]
    elif exact:
        groups = np.arange(len(frames))
        responses = np.stack([head.response(each) for each in sources.directions])
        table = _spectra(responses, n_fft)
    else:
        groups = head.nearest(sources.directions)
        table = _spectra_of(head, n_fft)
    first = int(frames.min(initial=0))
    spectra = np.zeros(
        (int(frames.max(initial=0)) - first + 1, len(rir), n_fft // 2 + 1), dtype=np.complex64
    )
    order = np.lexsort((groups, frames))
    within = (arrivals - frames * HOP + LEAD)[order]
    for part, spectrum in _spectra_of_images(sources.gains[order], within, rate, n_fft):
        chosen = order[part]
        starts = _starts(frames[chosen], groups[chosen])
        at = frames[chosen[starts]] - first
        if table is not None:
            summed = np.add.reduceat(spectrum, starts, axis=0)
            filtered = table[groups[chosen[starts]]] * summed[:, None]
        else:
            weighed = weights[chosen, :, None] * spectrum[:, None]
            filtered = np.add.reduceat(weighed, starts, axis=0)
        begins = _starts(at)
        spectra[at[begins]] += np.add.reduceat(filtered, begins, axis=0)
    heard = np.fft.irfft(spectra * _fade_out(n_fft), n_fft, axis=-1)
    _overlap(rir, heard, first * HOP - LEAD)
    return rir


def _starts(*keys: np.ndarray) -> np.ndarray:
    """Return the indices at which runs of equal keys start."""
    changes = np.zeros(len(keys[0]), dtype=bool)
    changes[:1] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changes)


def _spectra_of_images(
    gains: np.ndarray, delays: np.ndarray, rate: int, n_fft: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield images' spectra (images, bins), some at a time.

    A minimum-phase filter's logarithm is linear in the gains' logarithms, and so is a delay's
    phase in the delay: one product with a basis gives both.
    """
    basis = _basis(rate, n_fft)
    factors = np.concatenate([gains, delays[:, None]], axis=1).astype(np.float32)
    bins = n_fft // 2 + 1
    for start in range(0, len(gains), TOGETHER):
        part = slice(start, start + TOGETHER)
        exponents = factors[part] @ basis
        size, phase = np.exp(exponents[:, :bins]), exponents[:, bins:]
        spectrum = np.empty(size.shape, dtype=np.complex64)
        np.multiply(size, np.cos(phase), out=spectrum.real)
        np.multiply(size, np.sin(phase), out=spectrum.imag)
        yield part, spectrum


def band_weights(frequencies: np.ndarray) -> np.ndarray:
    """Return how the octave bands share each frequency in Hz, (bands, frequencies); sums are 1.

    They are raised cosines over the logarithm of frequency. The outermost bands go on to 0 Hz and
    to the Nyquist frequency.
    """
    octaves = np.log2(np.maximum(frequencies, 1.0) / BANDS[0])
    octaves = np.clip(octaves, 0, len(BANDS) - 1)
    apart = np.abs(octaves - np.arange(len(BANDS))[:, None])
    return np.where(apart < 1, 0.5 + 0.5 * np.cos(np.pi * apart), 0.0)


@lru_cache(maxsize=8)
def _basis(rate: int, n_fft: int) -> np.ndarray:
    """Return what an image's gains and delay are multiplied by, (bands + 1, 2 * bins) float32.

    The product holds the logarithm of the magnitude at each bin, then the phase. The phase is that
    of the minimum-phase filter, from the folded cepstrum of its log-magnitude.
    """
    fine = 8 * n_fft
    weights = band_weights(np.fft.rfftfreq(fine, 1 / rate))
    cepstrum = np.fft.irfft(weights, fine)
    cepstrum[:, 1 : fine // 2] *= 2
    cepstrum[:, fine // 2 + 1 :] = 0
    bands = np.fft.rfft(cepstrum)[:, ::8]
    frequencies = np.fft.rfftfreq(n_fft)  # cycles a sample
    basis = np.zeros((len(BANDS) + 1, 2, len(frequencies)))
    basis[:-1, 0], basis[:-1, 1] = bands.real, bands.imag
    basis[-1, 1] = -2 * np.pi * frequencies
    return basis.reshape(len(BANDS) + 1, -1).astype(np.float32)


@lru_cache(maxsize=8)
def _spectra_of(head: Head, n_fft: int) -> np.ndarray:
    return _spectra(head.responses, n_fft)


def _spectra(responses: np.ndarray, n_fft: int) -> np.ndarray:
    """Return (directions, ears, bins) complex64."""
    return np.fft.rfft(responses, n_fft).astype(np.complex64)


def _fade_out(n_fft: int) -> np.ndarray:
    """Return gains (bins,) that fade out towards the Nyquist frequency."""
    upper = np.clip((2 * np.fft.rfftfreq(n_fft) - TOP) / (1 - TOP), 0, 1)
    return 0.5 + 0.5 * np.cos(np.pi * upper)


def _overlap(rir: np.ndarray, frames: np.ndarray, offset: int) -> None:
    """Add frames (frames, channels, n) to an RIR, HOP apart, the first one from ``offset``."""
    count, channels, n = frames.shape
    whole = np.zeros((channels, (count - 1) * HOP + n), dtype=np.float32)
    for i, frame in enumerate(frames):
        whole[:, i * HOP : i * HOP + n] += frame
    start, stop = max(offset, 0), min(offset + whole.shape[1], rir.shape[1])
    if stop > start:
        rir[:, start:stop] += whole[:, start - offset : stop - offset]


# --- the diffuse tail -----------------------------------------------------------------------


def diffuse_tail(
    room: Room,
    begin: float,
    head: Head | None,
    rate: int,
    shape: tuple[int, ...],
    generator: np.random.Generator,
) -> np.ndarray:
    """Return the late reverberation of a room, as noise.

    At time t, 4 pi c^3 t^2 / volume images arrive a second, each with the energy 1 / (c t)^2, less
    what surfaces and air absorbed. Together that is 4 pi c / volume times the mean decay.

    The noise fades in until ``begin``, in seconds, and decays as the room does in each octave band.
    It has the covariance of the head's diffuse field; None is an Ambisonic microphone.

    Returns:
        (channels, samples) float32, at ``rate`` Hz.
    """
    channels, samples = shape
    n_fft = need("scipy.fft", "scenes").next_fast_len(samples + 2 * HOP, real=True)
    noise = np.fft.rfft(generator.standard_normal((samples, channels)).T, n_fft)
    weights = band_weights(np.fft.rfftfreq(n_fft, 1 / rate))
    shaped = np.zeros((channels, samples))
    for weight, envelope in zip(weights, _envelopes(room, begin, rate, samples), strict=True):
        shaped += np.fft.irfft(noise * weight, n_fft)[:, :samples] * envelope
    spectra = np.fft.rfft(shaped, n_fft) * _fade_out(n_fft)
    if head is None:
        spectra[1:] /= math.sqrt(3)  # a diffuse field has a third of W's energy on each axis
    else:
        roots = _diffuse_roots(head, n_fft)
        spectra = np.einsum("fed,df->ef", roots, spectra)
    return np.fft.irfft(spectra, n_fft)[:, :samples].astype(np.float32)


def _envelopes(room: Room, begin: float, rate: int, samples: int) -> np.ndarray:
    """Return the tail's deviation (bands, samples) at an omnidirectional microphone."""
    times = np.arange(samples) / rate
    rates = _rates(room)
    coarse = np.linspace(0, times[-1], 256)
    decay = np.log(np.exp(-rates[..., None] * coarse).mean(axis=0))  # (bands, 256)
    level = math.log(4 * math.pi * SPEED / room.volume / rate)
    into = np.sin(math.pi / 2 * np.clip((times / begin - 1 + TAIL_FADE) / TAIL_FADE, 0, 1))
    return np.stack([np.exp(0.5 * (np.interp(times, coarse, b) + level)) for b in decay]) * into


@lru_cache(maxsize=8)
def _diffuse_roots(head: Head, n_fft: int) -> np.ndarray:
    """Return (bins, 2, 2) matrices that give two noises the ears' covariance in a diffuse field."""
    taps = head.responses.shape[2]
    coarse = 2 ** math.ceil(math.log2(2 * taps))
    covariance = head.diffuse_covariance(coarse)
    covariance = covariance + 1e-9 * np.abs(covariance).max() * np.eye(2)
    found = np.fft.rfftfreq(coarse)
    wanted = np.fft.rfftfreq(n_fft)
    fine = np.empty((len(wanted), 2, 2), dtype=np.complex128)
    for i, j in np.ndindex(2, 2):
        fine[:, i, j] = np.interp(wanted, found, covariance[:, i, j].real)
        fine[:, i, j] += 1j * np.interp(wanted, found, covariance[:, i, j].imag)
    return np.linalg.cholesky(fine)
