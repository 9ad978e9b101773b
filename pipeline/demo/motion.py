"""Where each thing, the camera and the scenery are in each frame. Units: shares of the frame's width and height."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SCENE_KINDS = ("easy", "scale", "occlude", "leave", "pan", "distract", "mixed")


@dataclass(slots=True)
class Path:
    """[T] each. x, y: the centre, in the frame's coordinates while the camera has not moved. angle: degrees."""

    x: Array
    y: Array
    zoom: Array
    angle: Array


@dataclass(slots=True)
class Occluder:
    """Scenery in front: "pillar" or "hedge", x its centre, width and height as shares."""

    kind: str
    x: float
    width: float
    height: float


@dataclass(slots=True)
class Motion:
    """paths: of the objects. camera: [T, 2] world position of the picture's corner."""

    paths: list[Path]
    camera: Array
    occluders: list[Occluder]


def plan_motion(
    kind: str, names: tuple[str, ...], widths: list[float], n_frames: int, rng: np.random.Generator
) -> Motion:
    """Smooth random motion of one kind of scene. `widths`: of each object, as a share of the frame's width."""
    laps = max(1, round(n_frames / 120))
    d = 1.0 if rng.random() < 0.5 else -1.0
    camera = np.zeros((n_frames, 2))
    occluders: list[Occluder] = []
    reach = rng.uniform(0.2, 0.26)
    stops, zooms = [0.5 - d * reach, 0.5 + d * reach], [1.0, 1.0]
    times: list[float] | None = None
    if kind == "scale":
        stops, zooms = (
            [0.5 - d * 0.1, 0.5 + d * 0.1],
            [0.62, 1.3] if rng.random() < 0.6 else [1.25, 0.62],
        )
    elif kind == "occlude":
        stops = [0.5 - d * 0.33, 0.5 + d * 0.33]
        occluders.append(_occluder(rng, widths[0]))
    elif kind == "leave":
        out = 0.5 + d * (0.54 + 0.6 * widths[0])
        stops, times = [0.5 - d * 0.12, out, out, 0.5 + d * 0.08], [0, 0.4, 0.55, 1]
    elif kind == "pan":
        camera[:, 0] = _smooth([0, d * 0.5], n_frames, laps)
        stops = [0.5 - d * 0.14, 0.5 + d * 0.64]
    elif kind == "mixed":
        camera[:, 0] = _smooth([0, d * 0.2], n_frames, laps)
        stops, zooms = [0.5 - d * 0.3, 0.5 + d * 0.52], [0.85, 1.12]
        occluders.append(_occluder(rng, 0.8 * widths[0]))
        if rng.random() < 0.4:  # and goes for good
            stops, times = (
                [0.5 - d * 0.3, 0.5 + d * 0.1, 0.5 + d * (0.78 + 0.6 * widths[0])],
                [0, 0.4, 0.92],
            )
    elif kind not in SCENE_KINDS:
        raise ValueError(f"unknown kind of scene {kind!r}: choose one of {', '.join(SCENE_KINDS)}")

    lanes = _lanes(len(names), rng)
    paths = [_path(stops, times, zooms, lanes[0], n_frames, laps, rng)]
    for i in range(1, len(names)):
        twin = names[i] == names[0]
        if twin and kind == "distract" and i == 1 and rng.random() < 0.5:  # walks along, smaller
            shift = -d * rng.uniform(0.12, 0.2)
            paths.append(
                _path(
                    [s + shift for s in stops], times, [0.66, 0.66], lanes[i], n_frames, laps, rng
                )
            )
        elif twin or kind == "distract":  # crosses over
            paths.append(
                _path(
                    [0.5 + d * 0.27, 0.5 - d * 0.25],
                    None,
                    [0.92, 0.92],
                    lanes[i],
                    n_frames,
                    laps,
                    rng,
                )
            )
        else:
            here = 0.5 + d * 0.14 * (-1) ** i + float(camera[-1, 0]) / 2
            ends = [here + d * 0.12, here - d * 0.12]
            paths.append(_path(ends, None, [0.85, 0.85], lanes[i], n_frames, laps, rng))
    camera += 0.004 * np.stack([_wave(n_frames, rng), _wave(n_frames, rng)], 1)  # a hand holds it
    return Motion(paths, np.round(camera, 6), occluders)


def _occluder(rng: np.random.Generator, width: float) -> Occluder:
    if rng.random() < 0.7:
        return Occluder(
            "pillar",
            rng.uniform(0.46, 0.54),
            float(np.clip(width * rng.uniform(0.7, 1.1), 0.08, 0.3)),
            1.2,
        )
    return Occluder(
        "hedge", rng.uniform(0.46, 0.54), width * rng.uniform(1.4, 1.8), rng.uniform(0.66, 0.8)
    )


def _lanes(count: int, rng: np.random.Generator) -> list[float]:
    """Heights of the paths: one below the middle, more spread apart in random order."""
    if count == 1:
        return [rng.uniform(0.48, 0.58)]
    spread = np.linspace(0.36, 0.64, count) + rng.uniform(-0.02, 0.02, count)
    return list(rng.permutation(spread))


def _path(
    stops: list[float],
    times: list[float] | None,
    zooms: list[float],
    lane: float,
    n: int,
    laps: int,
    rng: np.random.Generator,
) -> Path:
    x = _smooth(stops, n, laps, times) + 0.008 * _wave(n, rng)
    y = lane + 0.035 * _wave(n, rng)
    zoom = _smooth(zooms, n, laps) * (1 + 0.04 * _wave(n, rng))
    angle = 5 * _wave(n, rng)
    # Rounded: sines differ in the last bit between processors, pictures must not.
    return Path(*(np.round(values, 6) for values in (x, y, zoom, angle)))


def _smooth(stops: list[float], n: int, laps: int = 1, times: list[float] | None = None) -> Array:
    """[n] values through `stops` at `times` (0 to 1), to and fro for `laps`, with rounded corners."""
    at = np.linspace(0, 1, len(stops)) if times is None else np.array(times, float)
    phase = np.linspace(0, laps, n)
    phase = np.where(np.floor(phase) % 2 == 0, phase % 1, 1 - phase % 1)
    if laps == 1:
        phase[-1] = 1.0
    values = np.interp(phase, at, stops)
    width = max(3, n // (8 * laps)) | 1
    window = np.hanning(width + 2)[1:-1]
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, window / window.sum(), "valid")


def _wave(n: int, rng: np.random.Generator) -> Array:
    """[n] two slow sines, within -1 and 1."""
    t = np.linspace(0, n / 100, n)
    f, p = rng.uniform(0.5, 1.3, 2), rng.uniform(0, 2 * np.pi, 2)
    return 0.65 * np.sin(2 * np.pi * f[0] * t + p[0]) + 0.35 * np.sin(
        2 * np.pi * 2 * f[1] * t + p[1]
    )
