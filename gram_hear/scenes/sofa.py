"""SOFA files of head-related impulse responses (AES69, convention SimpleFreeFieldHRIR)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gram_hear.errors import SceneError
from gram_hear.extras import need

CONVENTION = "SimpleFreeFieldHRIR"
SAME = 4  # decimals to which two directions are one
LONGEST_DELAY = 0.02  # seconds, by which Data.Delay may differ between responses


@dataclass(frozen=True, eq=False)
class Measured:
    """Responses as they were measured.

    Attributes:
        rate: Hz.
        directions: (M, 3) float64 unit vectors in the head's frame: x front, y left, z up.
        responses: (M, 2, taps) float64, of the left and the right ear.
        delays: (M, 2) samples by which the responses are to be delayed; the least one is 0.
    """

    rate: float
    directions: np.ndarray
    responses: np.ndarray
    delays: np.ndarray


def read_sofa(path: Path) -> Measured:
    """Return the responses of a SOFA file, turned to our axes and ears.

    Of directions that were measured at several distances, the farthest is taken.

    Raises:
        SceneError: for a file that is no HDF5 file, holds another convention, lacks a field, or
            holds something else in it.
    """
    h5py = need("h5py", "scenes")
    try:
        with h5py.File(path) as file:
            return _read(path, file)
    except OSError as error:
        raise SceneError(f"{path} cannot be read as a SOFA file (HDF5): {error}.") from error


def _read(path: Path, file: Any) -> Measured:
    convention = _text(file.attrs.get("SOFAConventions"))
    if convention != CONVENTION:
        raise SceneError(
            f"{path} holds the SOFA convention {convention or 'none'!r}; heads are read from "
            f"{CONVENTION}."
        )
    responses = _responses(path, file)
    rates = np.unique(_field(path, file, "Data.SamplingRate"))
    if len(rates) != 1 or rates[0] <= 0:
        raise SceneError(f"{path}: Data.SamplingRate must be one positive number of Hz.")
    rate = float(rates[0])
    delays = _delays(path, file, len(responses), rate)
    ears = _ears(path, file)
    directions, distances = _directions(path, file, len(responses))
    order = np.argsort(-distances, kind="stable")
    first = np.unique(directions[order].round(SAME) + 0.0, axis=0, return_index=True)[1]
    rows = np.sort(order[first])
    if np.linalg.matrix_rank(directions[rows] - directions[rows[0]], tol=1e-3) < 2:
        raise SceneError(
            f"{path} holds {len(rows)} directions, which do not surround a head; it needs three at "
            "least, not in a row."
        )
    return Measured(rate, directions[rows], responses[rows][:, ears], delays[rows][:, ears])


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _field(path: Path, file: Any, name: str) -> np.ndarray:
    """Return a field as numbers, all finite."""
    if not hasattr(file.get(name), "dtype"):
        raise SceneError(f"{path} has no field {name}, which {CONVENTION} needs.")
    values = np.asarray(file[name])
    if values.dtype.kind not in "fiu" or not values.size or not np.isfinite(values).all():
        raise SceneError(f"{path}: {name} must hold finite numbers; it is empty, NaN or no number.")
    return values.astype(np.float64)


def _vectors(path: Path, file: Any, name: str, rows: int) -> np.ndarray:
    """Return positions in metres (rows, 3), whether the file has them spherical or cartesian."""
    values = _field(path, file, name)
    if values.ndim != 2 or values.shape[1] != 3 or len(values) not in (1, rows):
        raise SceneError(f"{path}: {name} has the shape {values.shape}; it must be ({rows}, 3).")
    return np.broadcast_to(_cartesian(path, file, name, values), (rows, 3))


def _cartesian(path: Path, file: Any, name: str, values: np.ndarray) -> np.ndarray:
    kind = _text(file[name].attrs.get("Type", b"cartesian"))
    if kind == "cartesian":
        return values
    if kind != "spherical":
        raise SceneError(f"{path}: {name} is {kind}; it must be spherical or cartesian.")
    azimuth, elevation = np.radians(values[..., 0]), np.radians(values[..., 1])
    level = np.cos(elevation)
    unit = [np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(elevation)]
    return np.stack(unit, axis=-1) * values[..., 2:]


def _responses(path: Path, file: Any) -> np.ndarray:
    responses = _field(path, file, "Data.IR")
    if responses.ndim != 3 or responses.shape[1] != 2:
        raise SceneError(
            f"{path}: Data.IR has the shape {responses.shape}; it must be (measurements, 2, taps), "
            "of two receivers."
        )
    silent = np.flatnonzero((np.abs(responses).max(axis=2) == 0).any(axis=1))
    if len(silent):
        raise SceneError(
            f"{path}: {len(silent)} of {len(responses)} responses are silent at an ear, the first "
            f"is measurement {silent[0]}; remove them from the file."
        )
    return responses


def _directions(path: Path, file: Any, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors (rows, 3) in the listener's own axes, and distances (rows,)."""
    sources = _vectors(path, file, "SourcePosition", rows)
    if "ListenerPosition" in file:
        sources = sources - _vectors(path, file, "ListenerPosition", rows)
    if "ListenerView" in file or "ListenerUp" in file:
        view = _vectors(path, file, "ListenerView", rows)
        up = _vectors(path, file, "ListenerUp", rows)
        left = np.cross(up, view)
        axes = np.stack([view, left, np.cross(view, left)], axis=1)
        lengths = np.linalg.norm(axes, axis=2, keepdims=True)
        if not lengths.min() > 1e-6:
            raise SceneError(f"{path}: ListenerView and ListenerUp are parallel or zero.")
        sources = np.einsum("mij,mj->mi", axes / lengths, sources)
    distances = np.linalg.norm(sources, axis=1)
    if not distances.min() > 1e-6:
        raise SceneError(f"{path}: SourcePosition has a source inside the listener's head.")
    return sources / distances[:, None], distances


def _ears(path: Path, file: Any) -> list[int]:
    """Return the receivers' numbers, left one first."""
    values = _field(path, file, "ReceiverPosition")
    if values.ndim not in (2, 3) or values.shape[:2] != (2, 3):
        raise SceneError(
            f"{path}: ReceiverPosition has the shape {values.shape}; it must be "
            "(2, 3) or (2, 3, 1)."
        )
    positions = values if values.ndim == 2 else np.moveaxis(values, 1, 2)
    y = np.round(_cartesian(path, file, "ReceiverPosition", positions)[..., 1], 9).reshape(2, -1)
    if (y[0] > 0).all() and (y[1] < 0).all():
        return [0, 1]
    if (y[0] < 0).all() and (y[1] > 0).all():
        return [1, 0]
    raise SceneError(
        f"{path}: ReceiverPosition has y = {y[0, 0]:g} and {y[1, 0]:g} m; one receiver must be on "
        "the left (y > 0) and one on the right (y < 0)."
    )


def _delays(path: Path, file: Any, rows: int, rate: float) -> np.ndarray:
    """Return Data.Delay (rows, 2) in samples, less what all responses have in common."""
    if "Data.Delay" not in file:
        return np.zeros((rows, 2))
    delays = _field(path, file, "Data.Delay")
    if delays.ndim != 2 or delays.shape[1] != 2 or len(delays) not in (1, rows):
        raise SceneError(
            f"{path}: Data.Delay has the shape {delays.shape}; it must be (1, 2) or ({rows}, 2)."
        )
    delays = delays - delays.min()
    if delays.max() > LONGEST_DELAY * rate:
        raise SceneError(
            f"{path}: Data.Delay differs by {delays.max():g} samples; it must be in samples, "
            f"within {1000 * LONGEST_DELAY:g} ms."
        )
    return np.broadcast_to(delays, (rows, 2))
