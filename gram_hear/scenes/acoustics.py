"""How sound decays in a shoebox room: predicted from its surfaces, and measured in an RIR.

Sound that arrives at time t has travelled c t from its image source. In a direction (x, y, z) it
meets the walls along the x axis c |x| / Lx times a second. So the energy that arrives at time t is
a mean of exponentials over directions, and not one exponential, as Sabine and Eyring assume. In
rooms that are long, or absorb on few surfaces, their formulas deviate from what image sources do.
(See Lehmann and Johansson 2008, J. Acoust. Soc. Am. 124, 269.)
"""

import math
from functools import lru_cache

import numpy as np

from gram_hear.errors import SceneError
from gram_hear.extras import need

SPEED = 343.0  # of sound, m/s, at 20 degrees Celsius
BANDS = (125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)  # centres of octaves, Hz
AIR = (0.0001, 0.0003, 0.0006, 0.0010, 0.0017, 0.0041, 0.0135)  # energy per metre, ISO 9613-1
LARGEST_ABSORPTION = 0.99  # of a surface
STEPS = 10  # of Newton's method to a reverberation time
TRIALS, CLOSE = 60, 1e-6  # steps to an absorption; the time's relative error that is enough
DIRECTIONS = 200  # over which decays are averaged
SPEECH_BAND = BANDS.index(1000.0)  # the octave in which an RT60 is asked for and measured


@lru_cache(maxsize=1)
def _octant() -> np.ndarray:
    """Return directions (DIRECTIONS, 3), even over the sphere's octant of positive axes."""
    k = np.arange(DIRECTIONS) + 0.5
    z, turn = k / DIRECTIONS, k * (math.sqrt(5) - 1) / 2
    azimuth = math.pi / 2 * (turn % 1)
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(azimuth), r * np.sin(azimuth), z], axis=1)


def decay_rates(size: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Return how fast energy decays along each direction, in nepers a second.

    Args:
        size: (3,) metres.
        exponents: (6, bands), -log(1 - absorption) of x-, x+, y-, y+, floor and ceiling.

    Returns:
        (directions, bands), air included.
    """
    pairs = exponents.reshape(3, 2, -1).mean(axis=1)
    return SPEED * ((_octant() / size) @ pairs + np.array(AIR))


def predicted_rt60(rates: np.ndarray) -> np.ndarray:
    """Return the reverberation times (T20) in seconds of decay rates (directions, bands): (bands,).

    What a mean of exponentials has left at a time t is the mean of exp(-rate t) / rate.
    """
    weights = 1 / rates
    weights = weights / weights.sum(axis=0)
    times = []
    for level in (-5.0, -25.0):
        time, wanted = np.zeros(rates.shape[1]), level / 10 * math.log(10)
        for _ in range(STEPS):  # Newton's: the logarithm is convex and falls, so none goes too far
            left = weights * np.exp(-rates * time)
            whole = left.sum(axis=0)
            time = time + whole * (np.log(whole) - wanted) / (rates * left).sum(axis=0)
        times.append(time)
    return 3 * (times[1] - times[0])


def absorption_for(
    size: tuple[float, float, float], rt60: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the absorption that gives a room its reverberation times.

    Args:
        size: (3,) metres.
        rt60: (bands,) seconds.
        weights: (6, bands) the proportions of the surfaces' exponents -log(1 - absorption). No
            surface absorbs more than :data:`LARGEST_ABSORPTION`.

    Returns:
        (6, bands) in (0, 1).

    Raises:
        SceneError: for a time shorter than with the most absorbent surfaces, or longer than with
            the absorption of the air alone.
    """
    extent = np.array(size)
    most = -math.log(1 - LARGEST_ABSORPTION)
    largest, smallest = most / weights.min(axis=0), 1e-6 / weights.max(axis=0)

    def times(scales: np.ndarray) -> np.ndarray:
        return predicted_rt60(decay_rates(extent, np.minimum(scales * weights, most)))

    shortest, longest = times(largest), times(smallest)
    if (wrong := np.flatnonzero((rt60 < shortest) | (rt60 > longest))).size:
        band = wrong[0]
        raise SceneError(
            f"A room of {size[0]:.2f} x {size[1]:.2f} x {size[2]:.2f} m cannot have an RT60 of "
            f"{rt60[band]:.3g} s in the octave of {BANDS[band]:g} Hz; it can have "
            f"{shortest[band]:.2f} to {longest[band]:.1f} s. Choose a time in that range, or "
            "another room."
        )
    low, high = smallest, largest
    scales = np.sqrt(low * high)
    for _ in range(TRIALS):
        ratio = times(scales) / rt60
        if np.abs(ratio - 1).max() < CLOSE:
            break
        low, high = np.where(ratio > 1, scales, low), np.where(ratio > 1, high, scales)
        guess = scales * ratio  # times are nearly inverse to the scale
        inside = (guess > low) & (guess < high)
        scales = np.where(inside, guess, np.sqrt(low * high))
    return -np.expm1(-np.minimum(scales * weights, most))


def energy_decay(energy: np.ndarray) -> np.ndarray:
    """Return the energy decay curve in dB (Schroeder 1965) of an RIR's energy, both (samples,).

    It is 0 at the start, and -inf where nothing follows.
    """
    remaining = np.cumsum(energy[::-1])[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(remaining / remaining[0])


def octave(rir: np.ndarray, rate: int, centre: float) -> np.ndarray:
    """Return an RIR (channels, samples) filtered to an octave around ``centre`` Hz."""
    signal = need("scipy.signal", "scenes")
    edges = (centre / math.sqrt(2), min(centre * math.sqrt(2), 0.49 * rate))
    sections = signal.butter(4, edges, "bandpass", fs=rate, output="sos")
    return signal.sosfilt(sections, rir.astype(np.float64), axis=-1)


def measured_rt60(rir: np.ndarray, rate: int, centre: float = BANDS[SPEECH_BAND]) -> float:
    """Return the reverberation time of an RIR: three times its decay from -5 to -25 dB (T20).

    Args:
        rir: (channels, samples); of Ambisonic RIRs, W alone.
        rate, centre: of the RIR, and of the octave, Hz.

    Returns:
        Seconds; NaN for an RIR that does not decay by 25 dB.
    """
    return decay_time((octave(rir, rate, centre) ** 2).sum(axis=0), rate)


def decay_time(energy: np.ndarray, rate: int) -> float:
    """Return the reverberation time (T20) in seconds of energies (samples,), or NaN."""
    curve = energy_decay(energy)
    inside = np.flatnonzero((curve <= -5) & (curve >= -25))
    if len(inside) < 2 or not curve[inside[-1]] < -24:
        return math.nan
    slope = np.polyfit(inside / rate, curve[inside], 1)[0]
    return float(-60 / slope)
