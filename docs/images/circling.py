"""Draw circling.png, the picture of the README: a sound that circles a listener in a room.

    python docs/images/circling.py    (in a clone, with the extras scenes and plot)

A bundled sound of noise pulses is put at 24 places around one listener, a pulse at each, and the
bundled Ambisonic head says where each time step comes from. The median error is printed; with the
seeds 1 to 5 it is 7 to 11 degrees.
"""

from pathlib import Path
from typing import Any

import numpy as np

import gram_hear
from gram_hear.style import BLUE, GRID, drawing, save_figure

CLONE = Path(__file__).parents[2]
SOUND = CLONE / "tests" / "data" / "sounds" / "ambix_circling.wav"
RATE, PULSE, PLACES = 32000, 8000, 24  # Hz, samples (0.25 s), and how many of them
ROOM = {"seed": 5, "elevation": 0.0, "distance": 1.2, "rt60": 0.3}
COLOURS = {"cmap": "viridis", "vmin": 0, "vmax": 7, "zorder": 3}  # of time, up to a dark yellow


def circle() -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Return the sound (4, samples), the azimuth of each place, and the scenes."""
    pulses = gram_hear.read_audio(SOUND, RATE).audio[0].reshape(-1, PULSE)
    azimuths = (np.arange(PLACES) * 360 / PLACES + 180) % 360 - 180  # from the front leftwards
    heard, scenes = np.zeros((4, PLACES * PULSE + RATE), np.float32), []
    for place, azimuth in enumerate(azimuths):
        pulse = pulses[place % len(pulses)]
        made = gram_hear.make_scene(pulse, RATE, "ambisonic", azimuth=float(azimuth), **ROOM)
        start = place * PULSE
        heard[:, start : start + made.audio.shape[1]] += made.audio  # each rings into the next
        scenes.append(made.scene)
    return heard[:, : PLACES * PULSE], azimuths, scenes


def from_above(axes: Any, scenes: list[Any], times: np.ndarray) -> None:
    """Draw the room, turned so that the listener looks up, with a dot for each place."""
    scene = scenes[0]
    turn = np.radians(90 - scene.yaw)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    width, depth = scene.room.size[:2]

    def at(points: Any) -> np.ndarray:
        return (np.array(points)[:, :2] - scene.listener[:2]) @ turned.T

    walls = at([(0, 0), (width, 0), (width, depth), (0, depth), (0, 0)])
    sources = at([each.source for each in scenes])
    axes.plot(*walls.T, color="black", lw=2)
    axes.scatter(*sources.T, c=times, s=45, **COLOURS)
    axes.plot([-0.14, 0, 0.14], [0.16, 0.42, 0.16], color=BLUE, lw=2)
    axes.plot(0, 0, "o", color=BLUE, ms=15)
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.set_title("A sound circles a listener in a room")
    axes.spines[:].set_visible(False)


def over_time(axes: Any, azimuths: np.ndarray, found: Any) -> None:
    """Draw where the sound is, and where it is heard."""
    edges = np.arange(PLACES + 1) * PULSE / RATE
    axes.hlines(azimuths, edges[:-1], edges[1:], color="black", lw=1.5, label="where it is")
    times = found.timestamps / 1000
    axes.scatter(times, found.azimuth, c=times, s=22, label="where it is heard", **COLOURS)
    names = {-180: "behind", -90: "right", 0: "front", 90: "left", 180: "behind"}
    axes.set_yticks(list(names), [f"{name} {angle}°" for angle, name in names.items()])
    axes.set(ylim=(-190, 190), xlim=(0, edges[-1]), xlabel="time (s)")
    axes.set_title("Azimuth over time, from embeddings of the sound")
    axes.grid(axis="y", **GRID)
    axes.legend(loc="upper right")


if __name__ == "__main__":
    heard, azimuths, scenes = circle()
    found = gram_hear.load_locator(layout="ambisonic").locate(heard, RATE)
    places = np.minimum(found.timestamps * RATE / 1000 / PULSE, PLACES - 1).astype(int)
    errors = np.abs((found.azimuth - azimuths[places] + 180) % 360 - 180)
    print(f"median error {np.nanmedian(errors):.0f} degrees of {np.sum(~found.silent)} time steps")
    with drawing(9, 3.6) as figure:
        plan, line = figure.subplots(1, 2, width_ratios=(1, 2))
        from_above(plan, scenes, (np.arange(PLACES) + 0.5) * PULSE / RATE)
        over_time(line, azimuths, found)
    save_figure(figure, Path(__file__).with_suffix(".png"))
