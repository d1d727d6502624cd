"""What a binaural RIR costs, against pyroomacoustics' own HRTF rendering of the same images.

    python benchmarks/scenes.py [--head kemar] [--rt60 0.4] [--order 17] [--repeats 3]
    python benchmarks/scenes.py --decays 60    # instead: how far drawn scenes' RT60 is off

Everything runs on one thread, in CPU time. Both get the image sources of one room up to one
reflection order (pyroomacoustics' own), and render each with the head's nearest measured direction,
its octave-band gains as a minimum-phase filter, air absorption, and a fractional delay. No diffuse
tail is added here. Energies of difference are relative to that of pyroomacoustics' RIR.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import statistics
import time

import numpy as np
import pyroomacoustics
from pyroomacoustics.directivities import MeasuredDirectivityFile, Rotation3D

from gram_hear.scenes.acoustics import BANDS, SPEED
from gram_hear.scenes.geometry import angles
from gram_hear.scenes.heads import Head, load_head
from gram_hear.scenes.rendering import render, render_images, tune
from gram_hear.scenes.rooms import (
    SURFACES,
    ImageSources,
    Scene,
    draw_room,
    draw_room_and_scene,
    draw_scene,
    images_of,
)

RATE = 32000
WANTED = 8.0


def their_room(scene: Scene, head: Head, order: int) -> pyroomacoustics.ShoeBox:
    """Return the scene as a room of pyroomacoustics, with an ear of the head as each microphone."""
    pyroomacoustics.constants.set("c", SPEED)
    pyroomacoustics.constants.set("num_threads", 1)
    azimuth, elevation = angles(head.directions)
    grid = np.radians(np.stack([azimuth, 90 - elevation, np.zeros_like(azimuth)]))

    def read(path: object, fs: int) -> tuple:
        return head.responses.astype(np.float64), fs, grid, np.zeros((3, 2)), None, None

    measured = MeasuredDirectivityFile("head", fs=RATE, file_reader_callback=read)
    yaw = Rotation3D([scene.yaw], "z", degrees=True)
    materials = {
        name: pyroomacoustics.Material({"coeffs": list(row), "center_freqs": list(BANDS)})
        for name, row in zip(SURFACES, scene.room.absorption, strict=True)
    }
    box = pyroomacoustics.ShoeBox(
        list(scene.room.size),
        fs=RATE,
        materials=materials,
        max_order=order,
        air_absorption=True,
        temperature=18.3,  # at which its speed of sound is 343 m/s
        humidity=50,
        min_phase=True,
    )
    box.add_source(list(scene.source))
    for ear in range(2):
        box.add_microphone(list(scene.listener), directivity=measured.get_mic_directivity(ear, yaw))
    return box


def theirs(box: pyroomacoustics.ShoeBox) -> tuple[float, np.ndarray]:
    """Render as pyroomacoustics does; return CPU seconds and the RIR (2, samples)."""
    box.image_source_model()
    start = time.process_time()
    box.compute_rir()
    seconds = time.process_time() - start
    rirs = [ear[0] for ear in box.rir]
    shortest = min(map(len, rirs))
    return seconds, np.stack([rir[:shortest] for rir in rirs])


def ours(scene: Scene, sources: ImageSources, head: Head, samples: int) -> tuple[float, np.ndarray]:
    """Render the same images as the package does; return CPU seconds and the RIR (2, samples)."""
    start = time.process_time()
    rir = render_images(sources, head, RATE, (2, samples))
    return time.process_time() - start, rir


def delayed(rir: np.ndarray, samples: float) -> np.ndarray:
    """Delay an RIR as pyroomacoustics does: by its filters, and by the head's own delay."""
    size = 2 * rir.shape[1]
    phases = np.exp(-2j * np.pi * np.fft.rfftfreq(size) * samples)
    return np.fft.irfft(np.fft.rfft(rir, size) * phases, size)[:, : rir.shape[1]]


def print_decays(scenes: int) -> None:
    """Print how far the RT60 of drawn and tuned scenes is from the one that was drawn."""
    drawn = [tune(draw_room_and_scene([1234, i], noise_sources=0)) for i in range(scenes)]
    for layout in ("ambisonic", "binaural"):
        found = [render(scene, layout, RATE).metadata for scene in drawn]
        off = np.array([abs(each["rt60_measured"] / each["rt60"] - 1) for each in found])
        print(
            f"{layout}: RT60 off by {np.median(off):.3f} in the middle, {off.max():.3f} at most; "
            f"{(off > 0.15).mean():.3f} of {scenes} scenes by more than 0.15"
        )


def main() -> None:
    """Print both times, their ratio, and the energy of the difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--head", default="kemar")
    parser.add_argument("--rt60", type=float, default=0.4)
    parser.add_argument("--order", type=int, default=17)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decays", type=int, default=0)
    options = parser.parse_args()
    if options.decays:
        print_decays(options.decays)
        return
    head = load_head(options.head, RATE)
    room = draw_room([1], rt60=options.rt60)
    scene = draw_scene(room, [1], noise_sources=0)
    box = their_room(scene, head, options.order)
    box.image_source_model()
    sources = images_of(scene, box.sources[0].images, box.sources[0].damping)
    pairs = [theirs(box) for _ in range(options.repeats)]
    reference = pairs[0][1]
    runs = [ours(scene, sources, head, reference.shape[1]) for _ in range(options.repeats + 1)][1:]
    their_seconds = statistics.median(seconds for seconds, _ in pairs)
    our_seconds = statistics.median(seconds for seconds, _ in runs)
    found = runs[0][1]
    late = head.delay * RATE + pyroomacoustics.constants.get("frac_delay_length") // 2
    difference = reference - delayed(found, late)
    energy = float((difference**2).sum() / (reference**2).sum())
    images = len(sources.distances)
    print(f"room of {room.volume:.0f} cubic metres, RT60 {options.rt60} s, {images} images")
    print(f"pyroomacoustics {their_seconds:.2f} s, here {our_seconds:.3f} s of CPU time")
    print(f"ratio {their_seconds / our_seconds:.0f} (wanted: at least {WANTED:g})")
    print(f"energy of the difference {energy:.1e} (wanted: below 1e-3)")


if __name__ == "__main__":
    main()
