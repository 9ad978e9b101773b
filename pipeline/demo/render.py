"""Render a scene: textured cut-outs that move over a photograph, with the exact truth of every pixel.

A scene is a pile of layers: a background photograph seen by a slightly unsteady (or panning) camera, the objects with
soft shadows, and scenery that may stand in front of them. The layer on top of a pixel owns it; that is the mask.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.demo.describe import expressions
from pipeline.demo.motion import Motion, Path, plan_motion
from pipeline.demo.scene import SLIVER, Scene, SceneObject, mask_boxes
from pipeline.demo.sprites import (
    BACKGROUNDS,
    KINDS,
    TINTS,
    Image,
    backdrop,
    backgrounds_for,
    colour,
    cutout,
    occluder,
)

cv2.setNumThreads(1)

_SHADOW = 0.38
_NOISE = 2.0  # grey levels


@dataclass(slots=True)
class _Layer:
    """A picture to be pasted: colours multiplied by alpha, alpha, a blurred shadow (None for scenery), its path in
    pixels. `owner` is what it writes into the map of owners: 1.. for objects, 255 for scenery."""

    colours: Image
    alpha: Image
    shadow: Image | None
    path: Path
    owner: int


def render(
    seed: int,
    kind: str,
    n_frames: int,
    height: int,
    width: int,
    *,
    fps: float = 25.0,
    names: tuple[str, ...] = (),
    tints: tuple[str, ...] = (),
    background: str = "",
) -> Scene:
    """A scene of `kind` (see `pipeline.demo.motion.SCENE_KINDS`): the same arguments give the same scene.

    names: the things in it (keys of `sprites.KINDS`), the main one first; a name twice makes look-alikes. Default: one
        thing, and in "distract" its twin, in "mixed" a twin or something else.
    tints: their colours ("" = as photographed), default: drawn, the same for look-alikes.
    background: a key of `sprites.BACKGROUNDS`, default: drawn from those that do not show the same thing.
    """
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), n_frames, height, width])
    names = names or _draw_names(kind, rng)
    tints = tints or _draw_tints(names, rng)
    background = background or str(rng.choice(backgrounds_for(names)))
    chosen = list(zip(names, tints, strict=True))
    sprites = [
        _resized(name, tint, height, width, len(names), i) for i, (name, tint) in enumerate(chosen)
    ]
    motion = plan_motion(
        kind, names, [alpha.shape[1] / width for _, alpha in sprites], n_frames, rng
    )

    canvas, origin = _canvas(background, motion, height, width, rng)
    layers = [
        _layer(picture, alpha, _in_pixels(path, height, width), i + 1)
        for i, ((picture, alpha), path) in enumerate(zip(sprites, motion.paths, strict=True))
    ]
    layers.sort(key=lambda layer: float(layer.path.y.mean()))  # lower in the picture is nearer
    layers += _scenery(motion, height, width, rng)
    camera = motion.camera * (width, height)
    frames, owners, areas = _compose(layers, canvas, origin, camera, height, width, rng)

    objects = []
    for i, (name, tint) in enumerate(chosen):
        path = _in_pixels(motion.paths[i], height, width)
        full, inside, covered = areas[:, i].T
        masks = owners == i + 1
        masks[masks.sum((1, 2)) < SLIVER * full] = False
        centre = np.stack([path.x, path.y], 1) - camera
        objects.append(
            SceneObject(
                name,
                colour(name, tint),
                masks,
                mask_boxes(masks),
                centre,
                path.x,
                full,
                inside,
                covered,
            )
        )
    scenery = tuple(o.kind for o in motion.occluders)
    scene = Scene(kind, seed, fps, frames, objects, BACKGROUNDS[background].place, scenery)
    for i, thing in enumerate(objects):
        thing.expressions = [e.text for e in expressions(scene, (i,))]
    return scene


# --- what is in it -------------------------------------------------------------------------------------------------


def _draw_names(kind: str, rng: np.random.Generator) -> tuple[str, ...]:
    first, other = (str(n) for n in rng.choice(list(KINDS), 2, replace=False))
    if kind == "distract":
        return first, first
    if kind == "mixed":
        return (first, first) if rng.random() < 0.5 else (first, other)
    return (first,)


def _draw_tints(names: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    drawn = {name: str(rng.choice(TINTS.get(name, ("",)))) for name in dict.fromkeys(names)}
    return tuple(drawn[name] for name in names)


def _resized(
    name: str, tint: str, height: int, width: int, count: int, index: int
) -> tuple[Image, Image]:
    """A cut-out at the size that it has at zoom 1: at most half the frame's width, smaller in company."""
    picture, alpha = cutout(name, tint)
    share = (
        KINDS[name].size
        * (1.0 if count == 1 else 0.82)
        * (1.0 if index == 0 or count == 1 else 0.97)
    )
    scale = min(share * height / picture.shape[0], 0.42 * width / picture.shape[1])
    size = max(8, round(picture.shape[1] * scale)), max(8, round(picture.shape[0] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, size, interpolation=way), cv2.resize(alpha, size, interpolation=way)


def _layer(picture: Image, alpha: Image, path: Path, owner: int) -> _Layer:
    """Objects get a margin, so that edges and shadows fade out inside their picture."""
    pad = 2 if owner == 255 else 4 + alpha.shape[0] // 12
    picture = cv2.copyMakeBorder(picture, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    alpha = cv2.copyMakeBorder(alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    shadow = None if owner == 255 else cv2.GaussianBlur(alpha, (0, 0), pad / 3.5)
    colours = (picture * (alpha[..., None] / np.float32(255))).astype(np.uint8)
    return _Layer(colours, alpha, shadow, path, owner)


def _scenery(motion: Motion, height: int, width: int, rng: np.random.Generator) -> list[_Layer]:
    layers = []
    n = len(motion.camera)
    for o in motion.occluders:
        h, w = round(o.height * height), max(8, round(o.width * width))
        picture, alpha = occluder(o.kind, h, w, rng)
        y = 0.5 * height if o.kind == "pillar" else height * 1.02 - h / 2
        path = Path(np.full(n, o.x * width), np.full(n, y), np.ones(n), np.zeros(n))
        layers.append(_layer(picture, alpha, path, 255))
    return layers


def _in_pixels(path: Path, height: int, width: int) -> Path:
    return Path(path.x * width, path.y * height, path.zoom, path.angle)


def _canvas(
    background: str, motion: Motion, height: int, width: int, rng: np.random.Generator
) -> tuple[Image, NDArray[np.float64]]:
    """The background of everything that the camera sees, and the world position of its corner, in pixels."""
    size = np.array([width, height])
    low, high = motion.camera.min(0) * size - 2, motion.camera.max(0) * size + size + 2
    w, h = np.ceil(high - low).astype(int)
    return backdrop(background, int(h), int(w), rng), low


# --- pixels --------------------------------------------------------------------------------------------------------


def _compose(
    layers: list[_Layer],
    canvas: Image,
    origin: NDArray,
    camera: NDArray,
    height: int,
    width: int,
    rng: np.random.Generator,
) -> tuple[Image, Image, NDArray[np.float64]]:
    """frames, owners [T, H, W], and areas [T, objects, (full, inside, covered)]."""
    n, count = len(camera), sum(layer.owner != 255 for layer in layers)
    frames = np.empty((n, height, width, 3), np.uint8)
    owners = np.zeros((n, height, width), np.uint8)
    areas = np.zeros((n, count, 3))
    sizes = {layer.owner: float((layer.alpha > 127).sum()) for layer in layers}
    noise = (
        np.clip(rng.normal(32, _NOISE, (height + 64, width + 64, 1)), 0, 64)
        .astype(np.uint8)
        .repeat(3, 2)
    )
    shifts = rng.integers(0, 64, (n, 2))
    gain = 1 + 0.05 * np.sin(
        np.linspace(0, n / 100, n) * 2 * np.pi * rng.uniform(0.3, 0.9) + rng.uniform(0, 6.28)
    )
    for t in range(n):
        picture, owner = frames[t], owners[t]
        shift = np.array([[1, 0, origin[0] - camera[t, 0]], [0, 1, origin[1] - camera[t, 1]]])
        cv2.warpAffine(
            canvas, shift, (width, height), picture, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE
        )
        for layer in layers:
            solid, region = _paste(picture, layer, t, camera[t])
            if region is None:
                continue
            if layer.owner == 255:
                hidden = np.bincount(owner[region][solid], minlength=256)
                areas[t, :, 2] += hidden[1 : count + 1]
            else:
                areas[t, layer.owner - 1, 1] = solid.sum()
            owner[region][solid] = layer.owner
        for layer in layers:
            if layer.owner != 255:
                areas[t, layer.owner - 1, 0] = sizes[layer.owner] * layer.path.zoom[t] ** 2
        y, x = shifts[t]
        grain = noise[y : y + height, x : x + width]
        cv2.addWeighted(picture, round(float(gain[t]), 4), grain, 1.0, -32.0, picture)
    return frames, owners, areas


def _paste(
    picture: Image, layer: _Layer, t: int, camera: NDArray
) -> tuple[NDArray[np.bool_], tuple[slice, slice] | None]:
    """Draw a layer; returns the pixels that it owns inside a region of the frame (None: it is outside)."""
    height, width = picture.shape[:2]
    h, w = layer.alpha.shape
    zoom, angle = float(layer.path.zoom[t]), float(layer.path.angle[t])
    matrix: NDArray[Any] = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), angle, zoom)
    matrix[:, 2] += (
        np.array([layer.path.x[t], layer.path.y[t]]) - camera - ((w - 1) / 2, (h - 1) / 2)
    )
    drop = np.zeros(2) if layer.shadow is None else np.array([0.035, 0.05]) * h * zoom
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]]) @ matrix.T
    x1, y1 = np.maximum(np.floor(corners.min(0)), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(corners.max(0) + drop) + 1, (width, height)).astype(int)
    if x1 >= x2 or y1 >= y2:
        return np.zeros((0, 0), bool), None
    region = slice(y1, y2), slice(x1, x2)
    matrix[:, 2] -= x1, y1
    size = (int(x2 - x1), int(y2 - y1))
    patch = picture[region]
    if layer.shadow is not None:
        moved = matrix.copy()
        moved[:, 2] += drop
        dark = cv2.warpAffine(layer.shadow, moved, size, flags=cv2.INTER_LINEAR)
        patch[:] = _darken(patch, dark)
    colours = cv2.warpAffine(layer.colours, matrix, size, flags=cv2.INTER_LINEAR)
    alpha = cv2.warpAffine(layer.alpha, matrix, size, flags=cv2.INTER_LINEAR)
    rest = cv2.cvtColor(255 - alpha, cv2.COLOR_GRAY2RGB)
    cv2.add(colours, cv2.multiply(np.ascontiguousarray(patch), rest, scale=1 / 255), dst=colours)
    patch[:] = colours
    return alpha > 127, region


def _darken(patch: Image, shadow: Image) -> Image:
    light = cv2.cvtColor(cv2.convertScaleAbs(shadow, alpha=-_SHADOW, beta=255), cv2.COLOR_GRAY2RGB)
    return cv2.multiply(np.ascontiguousarray(patch), light, scale=1 / 255)
