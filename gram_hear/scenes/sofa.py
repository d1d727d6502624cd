"""SOFA files of head-related impulse responses (AES69, convention SimpleFreeFieldHRIR)."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gram_hear.errors import SceneError, allowed, reason_of
from gram_hear.extras import need
from gram_hear.scenes import sofa_fields
from gram_hear.scenes.geometry import angles

CONVENTION = "SimpleFreeFieldHRIR"
SAME = 4  # directions that agree to so many decimals are one
MOST = 100_000  # directions of a file
SILENT = 1e-6  # share of the largest peak, at or below which a response is silent
FARTHEST = 1e6  # metres
MEASURED_RATES = (8000, 384_000)  # Hz, the lowest and the highest
LONGEST_DELAY = 0.02  # seconds by which Data.Delay may differ between responses
CPU_SECONDS = 3  # limit of the CPU time to read a file; 1 s more for each MEGABYTE of it
MEGABYTE = 1e6  # bytes
PATIENCE = 20  # limit of the wall-clock time, in CPU limits: the machine may be busy

ANGLES = {"degree": np.pi / 180, "deg": np.pi / 180, "\u00b0": np.pi / 180, "radian": 1, "rad": 1}
METRES = {
    **{"metre": 1, "meter": 1, "m": 1, "decimetre": 0.1, "decimeter": 0.1, "dm": 0.1},
    **{"centimetre": 0.01, "centimeter": 0.01, "cm": 0.01},
    **{"millimetre": 0.001, "millimeter": 0.001, "mm": 0.001},
}
HERTZ = {"hertz": 1, "hz": 1, "kilohertz": 1000, "khz": 1000}
SECONDS = {"second": 1, "sec": 1, "s": 1, "millisecond": 1e-3, "ms": 1e-3, "microsecond": 1e-6}

FREE_FIELD = ("freefield", "anechoic")  # RoomType of a head, without spaces
LATE, LATE_ENERGY = 0.02, 0.01  # seconds after the peak; share of the energy that may come later
FLAT = 0.09  # the sine of 5 degrees: directions that leave a plane by less lie in it
LATERAL = 0.5  # the sine of 30 degrees from the median plane: beyond it the ears clearly differ
LEVEL, TIME = -1.0, -1e-4  # dB, seconds: below these the nearer ear is the quieter or the later one
WRONG = 0.25  # the share of the lateral directions that may be so
LOW = 1500.0  # Hz: arrival times are compared below it, since above they are ambiguous
WIDEST = 1.5e-3  # seconds by which the arrival times at the ears may differ
CRASHED = "the HDF5 library crashed, or did not come to an end"
CHUNK = 256  # responses that are worked on at once


@dataclass(frozen=True, eq=False)
class Measured:
    """The responses of a head as they were measured."""

    rate: float  # Hz
    directions: np.ndarray  # (M, 3) float64 unit vectors in the head's frame: x front, y left, z up
    responses: np.ndarray  # (M, 2, taps) float64, of the left and the right ear
    delays: np.ndarray  # (M, 2) samples by which they are still to be delayed; the least is 0


@dataclass(frozen=True, eq=False)
class _Sofa:
    """The fields of a file, as float64, and its attributes."""

    path: Path
    fields: dict[str, np.ndarray]
    attributes: dict[str, dict[str, str]]  # by the field's name; "" for those of the file

    def field(self, name: str) -> np.ndarray:
        """Return a field's numbers, all finite."""
        if name not in self.fields:
            raise SceneError(f"{self.path} has no field {name}, which {CONVENTION} needs.")
        values = self.fields[name]
        if not values.size or not np.isfinite(values).all():
            raise SceneError(f"{self.path}: {name} must hold finite numbers; it is empty or NaN.")
        return values

    def attribute(self, name: str, attribute: str, default: str) -> str:
        """Return a field's attribute in lower case."""
        return self.attributes.get(name, {}).get(attribute, "").strip().lower() or default


def read_sofa(path: Path, check: bool = True) -> Measured:
    """Return the responses of a SOFA file, in the axes, units and order of ears of this package.

    Where a direction was measured at several distances, the farthest is taken. ``check`` refuses
    what is probably no head: responses of a room, directions in one plane, and ears that contradict
    the directions.

    Raises:
        SceneError: for a file that is no HDF5 file or has another convention, and for a field that
            is missing or wrong.
    """
    need("h5py", "scenes")
    sofa = _read_fields(path)
    convention = sofa.attributes[""]["SOFAConventions"]
    if convention != CONVENTION:
        raise SceneError(
            f"{path} holds the SOFA convention {convention or 'none'!r}; heads are read from "
            f"{CONVENTION}."
        )
    measured = _read(sofa)
    if check:
        doubt = _room(sofa, measured) or _plane(measured) or _swapped_ears(measured)
        if doubt:
            raise SceneError(
                f"{path}: {doubt} Repair the file, or take it as it is with --no-check-head; in "
                "Python with check_head=False, or check=False of load_head."
            )
    return measured


def _read_fields(path: Path) -> _Sofa:
    """Read a file in a process of its own, since the HDF5 library may hang or crash."""
    seconds = CPU_SECONDS + int(path.stat().st_size / MEGABYTE)
    command = [sys.executable, "-P", sofa_fields.__file__, str(path), str(seconds)]
    patience = PATIENCE * seconds
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        reason = f"the HDF5 library did not come to an end in {patience} s"
    except OSError as error:
        reason = reason_of(error)
    else:
        if done.returncode == 0:
            with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
                fields = dict(found)
            return _Sofa(path, fields, json.loads(str(fields.pop("attributes"))))
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said and done.returncode > 0 else CRASHED
    raise SceneError(
        f"{path} cannot be read as a SOFA file (HDF5): {reason}. Fetch or export it anew."
    )


def _read(sofa: _Sofa) -> Measured:
    path = sofa.path
    responses = _responses(sofa)
    rate = _rate(sofa)
    delays = _delays(sofa, len(responses), rate)
    ears = _ears(sofa)
    directions, distances = _directions(sofa, len(responses))
    order = np.argsort(-distances, kind="stable")
    first = np.unique(directions[order].round(SAME) + 0.0, axis=0, return_index=True)[1]
    rows = np.sort(order[first])
    if np.linalg.matrix_rank(directions[rows] - directions[rows[0]], tol=1e-3) < 2:
        raise SceneError(
            f"{path} holds {len(rows)} directions, which do not surround a head; it needs three at "
            "least, not in a row."
        )
    return Measured(rate, directions[rows], responses[rows][:, ears], delays[rows][:, ears])


# --- units ----------------------------------------------------------------------------------


def _factor(sofa: _Sofa, name: str, unit: str, units: Mapping[str, float]) -> float:
    """Return the factor that converts from a unit, in the singular or the plural, into ours."""
    for spelling in (unit, unit.removesuffix("s")):
        if spelling in units:
            return units[spelling]
    raise SceneError(f"{sofa.path}: {name} is in {unit!r}; {allowed(unit, units)}")


def _rate(sofa: _Sofa) -> float:
    name = "Data.SamplingRate"
    rates = np.unique(sofa.field(name))
    rate = float(rates[0]) * _factor(sofa, name, sofa.attribute(name, "Units", "hertz"), HERTZ)
    if len(rates) != 1 or not MEASURED_RATES[0] <= rate <= MEASURED_RATES[1]:
        raise SceneError(
            f"{sofa.path}: {name} is {rate:g} Hz; it must be one number of {MEASURED_RATES[0]} to "
            f"{MEASURED_RATES[1]} Hz."
        )
    return rate


def _cartesian(sofa: _Sofa, name: str, values: np.ndarray, like: str | None = None) -> np.ndarray:
    """Return positions (..., 3) in metres along x, y and z.

    Where the field does not state its own type and units, those of the field ``like`` count.
    """
    owner = like if like and not sofa.attribute(name, "Type", "") else name
    kind = sofa.attribute(owner, "Type", "cartesian")
    if kind not in ("cartesian", "spherical"):
        raise SceneError(f"{sofa.path}: {name} is {kind!r}; it must be spherical or cartesian.")
    spherical = kind == "spherical"
    usual = "degree, degree, metre" if spherical else "metre"
    said = sofa.attribute(name, "Units", sofa.attribute(owner, "Units", usual))
    units = [unit for unit in re.split(r"[\s,;]+", said) if unit]
    if not spherical and len(units) == 1:
        units *= 3
    if len(units) != 3:
        raise SceneError(
            f"{sofa.path}: {name} has the units {said!r}; three are needed, as {usual!r}."
        )
    tables = (ANGLES, ANGLES, METRES) if spherical else (METRES, METRES, METRES)
    if np.abs(values).max() > FARTHEST:
        raise SceneError(f"{sofa.path}: {name} has the value {np.abs(values).max():g}.")
    values = values * [_factor(sofa, name, *each) for each in zip(units, tables, strict=True)]
    if not spherical:
        return values
    azimuth, elevation, distance = np.moveaxis(values, -1, 0)
    level = np.cos(elevation)
    unit_vectors = [np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(elevation)]
    return np.stack(unit_vectors, axis=-1) * distance[..., None]


# --- fields ---------------------------------------------------------------------------------


def _vectors(sofa: _Sofa, name: str, rows: int, like: str | None = None) -> np.ndarray:
    """Return positions in metres (rows, 3); the file has them spherical or cartesian."""
    values = sofa.field(name)
    if values.ndim != 2 or values.shape[1] != 3 or len(values) not in (1, rows):
        raise SceneError(
            f"{sofa.path}: {name} has the shape {values.shape}; it must be ({rows}, 3)."
        )
    return np.broadcast_to(_cartesian(sofa, name, values, like), (rows, 3))


def _responses(sofa: _Sofa) -> np.ndarray:
    responses = sofa.field("Data.IR")
    if responses.ndim != 3 or responses.shape[1] != 2:
        raise SceneError(
            f"{sofa.path}: Data.IR has the shape {responses.shape}; it must be (measurements, 2, "
            "taps), of two receivers."
        )
    if len(responses) > MOST:
        raise SceneError(f"{sofa.path} holds {len(responses):,} responses; {MOST:,} are read.")
    peaks = np.abs(responses).max(axis=2)
    silent = np.flatnonzero((peaks <= SILENT * peaks.max()).any(axis=1))
    if len(silent):
        raise SceneError(
            f"{sofa.path}: {len(silent)} of {len(responses)} responses are silent at an ear, the "
            f"first is measurement {silent[0]}; remove them from the file."
        )
    return responses / peaks.max()


def _directions(sofa: _Sofa, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors (rows, 3) in the listener's own axes, and distances (rows,)."""
    sources = _vectors(sofa, "SourcePosition", rows)
    if "ListenerPosition" in sofa.fields:
        sources = sources - _vectors(sofa, "ListenerPosition", rows)
    if "ListenerView" in sofa.fields or "ListenerUp" in sofa.fields:
        view = _vectors(sofa, "ListenerView", rows)
        up = _vectors(sofa, "ListenerUp", rows, like="ListenerView")
        left = np.cross(up, view)
        axes = np.stack([view, left, np.cross(view, left)], axis=1)
        lengths = np.linalg.norm(axes, axis=2, keepdims=True)
        if not lengths.min() > 1e-6:
            raise SceneError(f"{sofa.path}: ListenerView and ListenerUp are parallel or zero.")
        sources = np.einsum("mij,mj->mi", axes / lengths, sources)
    distances = np.linalg.norm(sources, axis=1)
    if not distances.min() > 1e-6:
        raise SceneError(f"{sofa.path}: SourcePosition has a source inside the listener's head.")
    return sources / distances[:, None], distances


def _ears(sofa: _Sofa) -> list[int]:
    """Return the numbers of the two receivers, the left one first."""
    values = sofa.field("ReceiverPosition")
    if values.ndim not in (2, 3) or values.shape[:2] != (2, 3):
        raise SceneError(
            f"{sofa.path}: ReceiverPosition has the shape {values.shape}; it must be "
            "(2, 3) or (2, 3, 1)."
        )
    positions = values if values.ndim == 2 else np.moveaxis(values, 1, 2)
    y = np.round(_cartesian(sofa, "ReceiverPosition", positions)[..., 1], 9).reshape(2, -1)
    if (y[0] > 0).all() and (y[1] < 0).all():
        return [0, 1]
    if (y[0] < 0).all() and (y[1] > 0).all():
        return [1, 0]
    raise SceneError(
        f"{sofa.path}: ReceiverPosition has y = {y[0, 0]:g} and {y[1, 0]:g} m; one receiver must "
        "be on the left (y > 0) and one on the right (y < 0)."
    )


def _delays(sofa: _Sofa, rows: int, rate: float) -> np.ndarray:
    """Return Data.Delay in samples, (rows, 2), less the delay that all responses share."""
    if "Data.Delay" not in sofa.fields:
        return np.zeros((rows, 2))
    delays = sofa.field("Data.Delay")
    if delays.ndim != 2 or delays.shape[1] != 2 or len(delays) not in (1, rows):
        raise SceneError(
            f"{sofa.path}: Data.Delay has the shape {delays.shape}; it must be (1, 2) or "
            f"({rows}, 2)."
        )
    table = {"sample": 1.0, **{unit: seconds * rate for unit, seconds in SECONDS.items()}}
    unit = sofa.attribute("Data.Delay", "Units", "sample")
    delays = delays * _factor(sofa, "Data.Delay", unit, table)
    delays = delays - delays.min()
    if delays.max() > LONGEST_DELAY * rate:
        raise SceneError(
            f"{sofa.path}: Data.Delay differs by {delays.max():g} samples; it must be in samples "
            f"or say its unit, and within {1000 * LONGEST_DELAY:g} ms."
        )
    return np.broadcast_to(delays, (rows, 2))


# --- what may be no head --------------------------------------------------------------------


def _room(sofa: _Sofa, measured: Measured) -> str | None:
    """Return why responses may have been measured in a room; None where they were not."""
    room = sofa.attribute("", "RoomType", FREE_FIELD[0])
    if re.sub(r"[\s_-]+", "", room) not in FREE_FIELD:
        return f"its RoomType is {room!r}; a head is measured in the free field."
    taps = np.arange(measured.responses.shape[-1])
    parts = []
    for start in range(0, len(measured.responses), CHUNK):
        energies = measured.responses[start : start + CHUNK] ** 2
        late = taps > energies.argmax(axis=2)[..., None] + LATE * measured.rate
        parts.append((energies * late).sum(axis=(1, 2)) / energies.sum(axis=(1, 2)))
    if (part := float(np.median(np.concatenate(parts)))) > LATE_ENERGY:
        return (
            f"{part:.0%} of its responses' energy comes later than {1000 * LATE:g} ms after their "
            "peaks, as in a room; a head is measured in the free field."
        )
    return None


def _plane(measured: Measured) -> str | None:
    """Return why directions do not surround a head; None where they lie in no single plane."""
    centred = measured.directions - measured.directions.mean(axis=0)
    normal = np.linalg.eigh(centred.T @ centred)[1][:, 0]
    if np.abs(centred @ normal).max() > FLAT:
        return None
    elevations = angles(measured.directions)[1]
    return (
        f"its {len(centred)} directions lie in one plane (elevations {elevations.min():.0f} to "
        f"{elevations.max():.0f} degrees); what comes from elsewhere would be heard from there."
    )


def _swapped_ears(measured: Measured) -> str | None:
    """Return how the ears contradict the directions; None where the nearer ear hears first."""
    nearer = np.sign(measured.directions[:, 1])
    lateral = np.abs(measured.directions[:, 1]) >= LATERAL
    if not lateral.any():
        return None
    levels, times = _differences(measured)
    quieter = int((nearer * levels < LEVEL)[lateral].sum())
    later = int((nearer * times < TIME)[lateral].sum())
    total = int(lateral.sum())
    if max(quieter, later) <= WRONG * total:
        return None
    azimuths, elevations = angles(measured.directions)
    shown = ", and ".join(
        f"{abs(levels[row]):.1f} dB {'louder' if levels[row] > 0 else 'quieter'} and "
        f"{abs(1000 * times[row]):.2f} ms {'earlier' if times[row] > 0 else 'later'} at azimuth "
        f"{azimuths[row]:.0f}, elevation {elevations[row]:.0f}"
        for row in (measured.directions[:, 1].argmax(), measured.directions[:, 1].argmin())
    )
    return (
        f"of {total} lateral directions the nearer ear is the quieter one in {quieter} and "
        f"the later one in {later}. The left ear is {shown}. Azimuths count counter-clockwise (90 "
        "is left): here they may count clockwise, or the ears may be swapped."
    )


def _differences(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Return by how many dB and seconds the left ear hears each direction louder and earlier: (M,).

    The seconds are the lag of the largest correlation of the two ears below :data:`LOW`.
    """
    rate, taps = measured.rate, measured.responses.shape[-1]
    widest = int(np.ceil(WIDEST * rate))
    size = 2 * (taps + widest)
    frequencies = np.fft.rfftfreq(size, 1 / rate)
    low = np.exp(-((frequencies / LOW) ** 2)) * (frequencies > 0)
    lags = np.arange(-widest, widest + 1)
    levels, times = [], []
    for start in range(0, len(measured.responses), CHUNK):
        part = slice(start, start + CHUNK)
        energies = (measured.responses[part] ** 2).sum(axis=2)
        levels.append(10 * np.log10(energies[:, 0] / energies[:, 1]))
        left, right = np.moveaxis(np.fft.rfft(measured.responses[part], size) * low, 1, 0)
        ahead = measured.delays[part] @ [-1.0, 1.0]
        turns = np.exp(-2j * np.pi * np.outer(ahead, frequencies / rate))
        correlation = np.fft.irfft(right * left.conj() * turns, size)
        times.append(lags[correlation[:, lags].argmax(axis=1)] / rate)
    return np.concatenate(levels), np.concatenate(times)
