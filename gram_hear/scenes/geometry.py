"""Directions in the head's frame: x front, y left, z up; angles in degrees."""

import numpy as np


def unit_vector(azimuth: float | np.ndarray, elevation: float | np.ndarray) -> np.ndarray:
    """Return the unit vector (3,) to an azimuth (counter-clockwise, 0 in front) and elevation.

    Of arrays (n,), vectors (3, n).
    """
    a, e = np.radians(azimuth), np.radians(elevation)
    return np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])


def angles(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return azimuth (-180, 180] and elevation [-90, 90] of vectors (..., 3) of any length."""
    x, y, z = np.moveaxis(np.asarray(vectors, dtype=np.float64), -1, 0)
    azimuth = np.degrees(np.arctan2(y, x))
    return np.where(azimuth <= -180, 180.0, azimuth), np.degrees(np.arctan2(z, np.hypot(x, y)))


def turn(vectors: np.ndarray, yaw: float) -> np.ndarray:
    """Turn vectors (..., 3) counter-clockwise about the vertical axis by ``yaw`` degrees."""
    cosine, sine = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    x, y, z = np.moveaxis(np.asarray(vectors, dtype=np.float64), -1, 0)
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1)
