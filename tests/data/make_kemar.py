"""Make gram_hear/scenes/data/kemar.npz, the head that ships with the package, from its SOFA file.

    python tests/data/make_kemar.py mit_kemar_normal_pinna.sofa

The responses of that file are integers of 16 bits, and its right ear mirrors its left one; so one
ear, as integers, holds the whole of it, and nothing is lost. Where a file is not like that, nothing
is written. The source: https://sofacoustics.org/data/database/mit
"""

import sys
from pathlib import Path

import h5py
import numpy as np

OUTPUT = Path(__file__).parents[2] / "gram_hear" / "scenes" / "data" / "kemar.npz"
CITATION = (
    "Gardner, W. G., and Martin, K. D. (1995). HRTF measurements of a KEMAR. "
    "J. Acoust. Soc. Am. 97, 3907-3908."
)
LICENCE = "Provided by the MIT Media Lab without any usage restrictions; citation is requested."


def mirror_of(positions: np.ndarray) -> np.ndarray:
    """The row that stands at the same elevation and the opposite azimuth, for each row."""
    keys = [(round(azimuth % 360, 3), round(elevation, 3)) for azimuth, elevation, _ in positions]
    rows = {key: row for row, key in enumerate(keys)}
    return np.array([rows[round(-azimuth % 360, 3), elevation] for azimuth, elevation in keys])


def main(path: str | Path, output: Path = OUTPUT) -> None:
    with h5py.File(path) as file:
        responses, positions = file["Data.IR"][:], file["SourcePosition"][:]
        rate = int(file["Data.SamplingRate"][0])
        assert not file["Data.Delay"][:].any()
    integers = np.round(responses * 32768).astype(np.int16)
    assert np.array_equal(integers / 32768, responses), "the responses are no 16 bit integers"
    mirror = mirror_of(positions)
    assert np.array_equal(responses[mirror, 0], responses[:, 1]), "the ears are no mirror images"
    left = np.ascontiguousarray(integers[:, 0].T)
    np.savez_compressed(
        output,
        high=(left >> 8).astype(np.int8),  # apart from the low bytes, which are noise: this
        low=(left & 255).astype(np.uint8),  # and the order by time make the file smaller
        mirror=mirror.astype(np.int16),
        azimuth=positions[:, 0],
        elevation=positions[:, 1],
        rate=np.int32(rate),
        name=np.array("KEMAR, normal pinna"),
        licence=np.array(LICENCE),
        citation=np.array(CITATION),
    )
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
