"""Sounds and arrays as the bytes of files, and tars of them."""

import io
import tarfile

import numpy as np
import soundfile


def npy(array):
    """Return the bytes of an array's file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def encoded(audio, rate=32000, format="FLAC", **options):
    """Return the bytes of a sound file of (samples,) or (samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=format, **options)
    return file.getvalue()


def write_tar(path, members):
    """Write a tar of name -> bytes, in a folder that may be new; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
