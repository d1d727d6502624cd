"""Heads: how sound from each direction reaches the two ears (head-related impulse responses).

A head is the KEMAR dummy that ships with the package (Gardner and Martin 1995), any SOFA file of
the convention SimpleFreeFieldHRIR, or a rigid sphere, computed (Duda and Martens 1998). Directions
are unit vectors in the head's frame: x front, y left, z up. The left ear is first.

Between measured directions, responses are interpolated: their onsets are aligned before they are
averaged, so that no comb filter arises, and the average is delayed by the average onset.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.audio.files import resample
from gram_hear.config import require_rate
from gram_hear.errors import SceneError
from gram_hear.extras import need
from gram_hear.scenes.acoustics import SPEED
from gram_hear.scenes.geometry import unit_vector
from gram_hear.scenes.sofa import Measured, read_sofa

KEMAR = "kemar"
SPHERE = "sphere"
RADIUS = 0.0875  # of the sphere, metres
EAR = 100.0  # degrees from the front to the sphere's ears, as in Duda and Martens 1998
SUBDIVISIONS = 12  # of the icosahedron's edges: 1442 directions, about 5.7 degrees apart
LEVEL_BAND = (150.0, 300.0)  # Hz: below it, loudspeakers of measurements play too little
FLOOR = 1e-4  # share of the energy of all responses that may be cut off at each end
HEADROOM = 0.004  # seconds of zeros before and after measured responses, for filters to ring in
SPHERE_SECONDS = 0.016  # length of the sphere's responses before they are trimmed
ORDERS = 40  # so many more spherical harmonics than the wave number times the radius
MARGIN = 24  # samples kept before the first and after the last, for fractional delays
GAP = 20.0  # degrees: a pole that is farther from every measurement gets a response of its own
RING = 5.0  # degrees of elevation of the ring that a pole's response is computed from
ONSET = 0.1  # share of the peak at which a response sets in
# The frequency at which a response is damped by 3 dB before its onset is looked for:
SMOOTHING = 8000.0  # Hz,
SMOOTHING_OF_RATE = 0.2  # or this share of the sample rate, if that is lower
UPSAMPLING = 8  # times the rate, for the search of an onset
CHUNK = 64  # responses that are worked on at once


@dataclass(frozen=True, eq=False)
class Head:
    """Head-related impulse responses of two ears.

    They are scaled such that low frequencies have the gain 1: the mean energy between 150 and 300
    Hz, over all directions, is 1 at each ear.

    Attributes:
        name: ``"kemar"``, ``"sphere"``, or the name of the file.
        rate: Hz.
        directions: (M, 3) float64 unit vectors, x front, y left, z up.
        responses: (M, 2, taps) float32, of the left and the right ear.
        delay: seconds by which the responses delay a pulse, as their onsets show, averaged over all
            directions.
    """

    name: str
    rate: int
    directions: np.ndarray
    responses: np.ndarray
    delay: float

    @cached_property
    def onsets(self) -> np.ndarray:
        """When each response sets in, (M, 2), in fractional samples after its first sample."""
        return onsets(self.responses, self.rate)

    @cached_property
    def weights(self) -> np.ndarray:
        """The share of the sphere that is nearest to each direction, (M,). The sum is 1."""
        return solid_angles(self.directions)

    @cached_property
    def _tree(self) -> Any:
        return need("scipy.spatial", "scenes").cKDTree(self.directions)

    @cached_property
    def _triangles(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners (T, 3) of the hull's triangles, and the inverses (T, 3, 3) of their vectors."""
        corners = need("scipy.spatial", "scenes").ConvexHull(self.directions).simplices
        vectors = self.directions[corners]
        flat = np.abs(np.linalg.det(vectors)) < 1e-9  # seen from the centre
        return corners[~flat], np.linalg.inv(vectors[~flat])

    @cached_property
    def _correlations(self) -> np.ndarray:
        """The correlations of the ears, averaged over the sphere: (2, 2, 2 * taps), lag 0 first."""
        size = 2 * self.responses.shape[-1]
        covariance = np.zeros((2, 2, size // 2 + 1), dtype=np.complex128)
        for start in range(0, len(self.directions), CHUNK):
            part = slice(start, start + CHUNK)
            spectra = np.fft.rfft(self.responses[part].astype(np.float64), size)
            covariance += np.einsum(
                "m,mif,mjf->ijf", self.weights[part], spectra, spectra.conj(), optimize=True
            )
        return np.fft.irfft(covariance, size)

    def nearest(self, directions: np.ndarray) -> np.ndarray:
        """Return the index of the head's nearest direction for each of (N, 3) vectors, as (N,)."""
        vectors = np.asarray(directions, dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return self._tree.query(vectors / lengths)[1].astype(np.int64)

    def around(self, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices (3,) of the three directions around one, and their weights (3,).

        The sum of the weights is 1. If no three directions surround the one, the nearest direction
        has all the weight.

        Raises:
            SceneError: for a vector that is not finite, or 0.
        """
        vector = np.asarray(direction, dtype=np.float64)
        if vector.shape != (3,) or not 0 < np.linalg.norm(vector) < math.inf:
            raise SceneError(f"The direction is {direction}; it must be three numbers, not all 0.")
        corners, inverses = self._triangles
        gains = vector / np.linalg.norm(vector) @ inverses
        triangle = gains.min(axis=1).argmax()
        if gains[triangle].min() < -1e-6:
            return np.repeat(self.nearest(vector[None]), 3), np.array([1.0, 0.0, 0.0])
        positive = np.clip(gains[triangle], 0, None)
        return corners[triangle], positive / positive.sum()

    def response(self, direction: np.ndarray) -> np.ndarray:
        """Return the responses of the two ears to sound from a direction.

        They are interpolated: the responses of the three directions around it are aligned,
        averaged, and delayed by the average of their delays.

        Args:
            direction: (3,) a vector of any length.

        Returns:
            (2, taps) float32. For one of the head's own directions, it is its own response.

        Raises:
            SceneError: for a vector that is not finite, or 0.
        """
        rows, weights = self.around(direction)
        onsets = self.onsets[rows]
        shifts = weights @ onsets - onsets
        taps = self.responses.shape[-1]
        moved = delayed(self.responses[rows], shifts, taps)
        return np.einsum("m,met->et", weights, moved).astype(np.float32)

    def diffuse_covariance(self, n_fft: int) -> np.ndarray:
        """Return the covariance of the sounds at the two ears in a diffuse field of power 1.

        It is the mean of H H^dagger over the sphere, where H are the spectra of the responses. Each
        direction is weighted by the share of the sphere that is nearest to it.

        Args:
            n_fft: the length of the transform in samples. It may be shorter than the responses.

        Returns:
            (n_fft // 2 + 1, 2, 2) complex128, at the frequencies of an rfft of ``n_fft`` samples.
        """
        size = self._correlations.shape[-1]
        lags = np.arange(size)
        lags = np.where(lags < size // 2, lags, lags - size) % n_fft  # a sampled spectrum wraps
        wrapped = np.zeros((2, 2, n_fft))
        for pair in np.ndindex(2, 2):
            wrapped[pair] = np.bincount(lags, self._correlations[pair], minlength=n_fft)
        return np.moveaxis(np.fft.rfft(wrapped), -1, 0)


def load_head(head: str | Path = KEMAR, rate: int = 32000, *, check: bool = True) -> Head:
    """Return the head-related impulse responses of a head.

    Example::

        left, right = load_head("kemar", 16000).response([0.5, 0.87, 0])  # 60 degrees to the left

    Args:
        head: "kemar", "sphere", or the path of a SOFA file.
        rate: Hz, to which its responses are resampled.
        check: refuse a SOFA file in three cases: its ears contradict its directions (the nearer ear
            is the quieter or the later one), it was measured in a room, or its directions lie in
            one plane.

    Raises:
        SceneError: for a file that is missing, is refused, or is no SOFA file of head-related
            responses.
        OptionError: for a rate out of range, or if the packages of the extra "scenes" are not
            installed.
    """
    require_rate(rate)
    name = str(head)
    if name in (KEMAR, SPHERE):
        return _load(name, 0, int(rate), True)
    path = Path(head)
    if not path.is_file():
        raise SceneError(
            f"There is no head {name!r}: it is neither 'kemar' nor 'sphere', nor a SOFA file."
        )
    return _load(str(path.resolve()), path.stat().st_mtime_ns, int(rate), check)


@lru_cache(maxsize=8)
def _load(name: str, changed: int, rate: int, check: bool) -> Head:
    """Return a head; ``changed`` is the time of the file, so that a new version is read anew."""
    if name == SPHERE:
        directions = icosphere(SUBDIVISIONS)
        responses = sphere_responses(directions, rate)
    else:
        measured = _read_kemar() if name == KEMAR else read_sofa(Path(name), check)
        directions, responses = _with_poles(measured.directions, _at_rate(measured, rate), rate)
    spatial = need("scipy.spatial", "scenes")
    try:
        weights = solid_angles(directions)
    except (ValueError, spatial.QhullError) as error:
        raise SceneError(
            f"{name} holds {len(directions)} directions that do not surround a head: they lie in "
            "one plane with its centre, or two of them are one."
        ) from error
    responses = _trimmed(_levelled(responses, weights, rate)).astype(np.float32)
    delay = _mean_delay(responses, weights, rate)
    directions.setflags(write=False)
    responses.setflags(write=False)
    return Head(Path(name).name, rate, directions, responses, delay)


def _read_kemar() -> Measured:
    """Return the measured head that ships with the package; tests/data/make_kemar.py made it."""
    with (files("gram_hear.scenes") / "data" / "kemar.npz").open("rb") as file:
        data = dict(np.load(file, allow_pickle=False))
    left = ((data["high"].astype(np.int16) << 8) + data["low"]).T / 32768
    positions = zip(data["azimuth"], data["elevation"], strict=True)
    directions = np.array([unit_vector(*position) for position in positions])
    responses = np.stack([left, left[data["mirror"]]], axis=1)
    return Measured(float(data["rate"]), directions, responses, np.zeros(responses.shape[:2]))


def _at_rate(measured: Measured, rate: int) -> np.ndarray:
    """Return responses (M, 2, samples) at a rate, delayed as they are to be, after some zeros."""
    before = math.ceil(HEADROOM * measured.rate)
    samples = measured.responses.shape[-1] + math.ceil(measured.delays.max()) + 2 * before
    responses = delayed(measured.responses, measured.delays + before, samples)
    if rate == measured.rate:
        return responses
    flat = responses.reshape(-1, samples)
    parts = [
        resample(flat[start : start + CHUNK].T, measured.rate, rate, "VHQ").T
        for start in range(0, len(flat), CHUNK)
    ]
    return np.concatenate(parts).reshape(*responses.shape[:2], -1)


def _with_poles(
    directions: np.ndarray, responses: np.ndarray, rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return directions and responses with those of the poles, where measurements lack them.

    Below a head there is often no space for a loudspeaker. The response of the pole is of minimum
    phase, with the mean power of the ring around it at each frequency and the ring's mean onset.
    """
    samples = responses.shape[-1]
    for sign in (-1.0, 1.0):
        elevations = np.degrees(np.arcsin(np.clip(sign * directions[:, 2], -1, 1)))
        if elevations.max() >= 90 - GAP:
            continue
        ring = responses[elevations >= elevations.max() - RING]
        power = (np.abs(np.fft.rfft(ring, 4 * samples)) ** 2).mean(axis=0)
        plain = delayed(_minimum_phase(np.sqrt(power)), np.full(2, MARGIN), samples)
        delays = onsets(ring, rate).mean(axis=0) - onsets(plain, rate)
        directions = np.concatenate([directions, [[0.0, 0.0, sign]]])
        responses = np.concatenate([responses, delayed(plain, delays, samples)[None]])
    return directions, responses


def _levelled(responses: np.ndarray, weights: np.ndarray, rate: int) -> np.ndarray:
    """Return responses whose mean energy at low frequencies is 1 at each ear."""
    size = 4 * responses.shape[-1]
    frequencies = np.arange(size // 2 + 1) * rate / size
    band = (frequencies >= LEVEL_BAND[0]) & (frequencies <= LEVEL_BAND[1])
    phases = np.exp(
        -2j * np.pi * np.outer(np.arange(responses.shape[-1]), frequencies[band]) / rate
    )
    power = (np.abs(responses @ phases) ** 2).mean(axis=-1)
    return responses / np.sqrt(weights @ power)[:, None]


def _trimmed(responses: np.ndarray) -> np.ndarray:
    """Return responses (M, 2, taps) without the silence before and after all of them."""
    energies = responses**2
    curve = np.cumsum((energies / energies.sum(axis=-1, keepdims=True)).mean(axis=(0, 1)))
    start = max(int((curve < FLOOR).sum()) - MARGIN, 0)
    stop = int((curve < 1 - FLOOR).sum()) + MARGIN
    cut = responses[..., start:stop].copy()
    fade = np.sin(np.pi / 2 * (np.arange(MARGIN) + 0.5) / MARGIN) ** 2
    cut[..., :MARGIN] *= fade
    cut[..., -MARGIN:] *= fade[::-1]
    return cut


def _mean_delay(responses: np.ndarray, weights: np.ndarray, rate: int) -> float:
    """Return the mean onset in seconds, relative to that of a pulse at the first sample."""
    pulse = np.zeros(responses.shape[-1])
    pulse[MARGIN] = 1
    early = MARGIN - onsets(pulse, rate)  # smoothed, a pulse sets in before its time
    return float(weights @ onsets(responses, rate).mean(axis=1) + early) / rate


def solid_angles(directions: np.ndarray) -> np.ndarray:
    """Return the share of the sphere that is nearest to each direction, (M,); the sum is 1."""
    spatial = need("scipy.spatial", "scenes")
    areas = spatial.SphericalVoronoi(directions).calculate_areas()
    return areas / areas.sum()


def delayed(signals: np.ndarray, delays: np.ndarray, samples: int) -> np.ndarray:
    """Delay signals (..., n) by (...) samples, which may be fractional or negative.

    Returns:
        (..., samples); what is moved beyond either end is cut off.
    """
    room = math.ceil(np.abs(delays).max()) + signals.shape[-1] + MARGIN
    size = need("scipy.fft", "scenes").next_fast_len(max(room, samples), True)
    turns = np.arange(size // 2 + 1) / size
    spectra = np.fft.rfft(signals, size) * np.exp(-2j * np.pi * delays[..., None] * turns)
    return np.fft.irfft(spectra, size)[..., :samples]


def onsets(responses: np.ndarray, rate: int) -> np.ndarray:
    """Return the onsets of responses (..., taps), in fractional samples: (...).

    The onset is where a response first reaches a tenth of its peak. It is smoothed before, so that
    no ringing comes first.
    """
    flat = responses.reshape(-1, responses.shape[-1]).astype(np.float64)
    parts = [_onsets(flat[start : start + CHUNK], rate) for start in range(0, len(flat), CHUNK)]
    return np.concatenate(parts).reshape(responses.shape[:-1])


def _onsets(responses: np.ndarray, rate: int) -> np.ndarray:
    taps = responses.shape[-1]
    size = need("scipy.fft", "scenes").next_fast_len(taps + MARGIN, True)
    half_power = min(SMOOTHING, SMOOTHING_OF_RATE * rate)
    smooth = 0.5 ** ((np.fft.rfftfreq(size, 1 / rate) / half_power) ** 2 / 2)
    fine = np.fft.irfft(np.fft.rfft(responses, size) * smooth, UPSAMPLING * size)
    envelope = np.abs(fine[:, : UPSAMPLING * taps])
    levels = ONSET * envelope.max(axis=1)
    after = np.maximum((envelope >= levels[:, None]).argmax(axis=1), 1)
    rows = np.arange(len(envelope))
    low, high = envelope[rows, after - 1], envelope[rows, after]
    return (after - (high - levels) / (high - low)) / UPSAMPLING


def _minimum_phase(magnitudes: np.ndarray) -> np.ndarray:
    """Return minimum-phase responses (..., 2 n) of magnitudes (..., n + 1), by the cepstrum."""
    floor = 1e-6 * magnitudes.max(axis=-1, keepdims=True)
    cepstra = np.fft.irfft(np.log(np.maximum(magnitudes, floor)))
    size = cepstra.shape[-1]
    cepstra[..., 1 : size // 2] *= 2
    cepstra[..., size // 2 + 1 :] = 0
    return np.fft.irfft(np.exp(np.fft.rfft(cepstra)))


def icosphere(subdivisions: int) -> np.ndarray:
    """Return 10 n^2 + 2 unit vectors: an icosahedron with each edge divided into n.

    They are symmetric about the planes between the axes. The directions of the axes are among them
    where n is even.
    """
    golden = (1 + math.sqrt(5)) / 2
    signs = [(a, b) for a in (-1, 1) for b in (-golden, golden)]
    vertices = np.array(
        [v for a, b in signs for v in ((0, a, b), (a, b, 0), (b, 0, a))], dtype=np.float64
    )
    triangles = need("scipy.spatial", "scenes").ConvexHull(vertices).simplices
    steps = range(subdivisions + 1)
    parts = [(i, j, subdivisions - i - j) for i in steps for j in steps if i + j <= subdivisions]
    points = (np.array(parts) @ vertices[triangles] / subdivisions).reshape(-1, 3)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points[np.sort(np.unique((points + 0.0).round(9), axis=0, return_index=True)[1])]


def sphere_responses(directions: np.ndarray, rate: int) -> np.ndarray:
    """Return responses (M, 2, samples) of the ears of a rigid sphere to plane waves.

    The wave would reach the centre of the sphere, if that were not there, at half of the samples.
    """
    size = 2 ** math.ceil(math.log2(SPHERE_SECONDS * rate))
    ears = np.stack([unit_vector(EAR, 0), unit_vector(-EAR, 0)])
    frequencies = np.arange(size // 2 + 1) * rate / size
    spectra = sphere_transfer(directions @ ears.T, frequencies)
    band = np.clip((frequencies / (rate / 2) - 0.9) / 0.1, 0, 1)
    spectra = spectra * np.cos(np.pi / 2 * band) ** 2 * (-1.0) ** np.arange(size // 2 + 1)
    return np.fft.irfft(spectra, size)


def sphere_transfer(cosines: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the pressure on a rigid sphere, relative to that at its centre without the sphere.

    Source: Duda and Martens 1998, J. Acoust. Soc. Am. 104, 3048, for a source far away. The sign
    of the phase is that of the DFT: a delay is a falling phase.

    Args:
        cosines: (...) of the angle between the source and the point on the sphere.
        frequencies: (F,) Hz.

    Returns:
        (..., F) complex128.
    """
    special = need("scipy.special", "scenes")
    waves = 2 * np.pi * frequencies[frequencies > 0] * RADIUS / SPEED
    orders = np.arange(math.ceil(waves.max()) + ORDERS)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        outgoing = special.spherical_yn(orders, waves, derivative=True)
    heard = np.isfinite(outgoing)  # where it overflows, the term is 0
    radial = special.spherical_jn(orders, waves, derivative=True) - 1j * np.where(
        heard, outgoing, 1.0
    )
    terms = np.where(heard, -1j / waves**2 * (2 * orders + 1) * 1j**orders / radial, 0)
    legendre = special.eval_legendre(orders[:, 0], np.asarray(cosines)[..., None])
    transfer = np.ones((*np.shape(cosines), len(frequencies)), dtype=np.complex128)
    transfer[..., frequencies > 0] = legendre @ terms
    return transfer
