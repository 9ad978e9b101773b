"""What scenes are made of: cut-outs, backgrounds and occluder textures from photographs inside installed packages.

scikit-image and scikit-learn ship these pictures in their wheels (public domain or CC0/CC BY, see the packages'
data/README.txt); they are read from the packages' folders, never downloaded. Outlines are fixed polygons in pixels of
the original photograph, so that a cut-out is the same on every machine.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
"""uint8 [H, W, 3] RGB, or [H, W] alpha; OpenCV's own types promise less."""

_SKIMAGE = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "horse",
    "moon",
    "motorcycle_left",
    "hubble_deep_field",
    "rocket",
)

OUTLINES = {
    "woman": (
        "276,31 248,18 227,16 205,21 156,58 153,68 157,104 170,116 174,128 182,132 184,152 154,157 136,172 "
        "129,172 124,205 119,206 114,200 113,205 90,227 76,235 62,250 44,282 39,306 26,342 26,366 19,390 18,416 "
        "24,432 23,460 28,494 21,501 25,511 274,511 276,460 295,395 330,361 364,350 360,344 362,330 357,323 "
        "352,287 347,282 340,262 303,233 299,219 289,203 255,173 266,137 275,134 290,117 300,92 296,58 288,43"
    ),
    "man": (
        "219,68 192,69 172,87 161,106 150,107 130,125 116,125 77,142 59,164 28,219 18,227 17,234 7,250 3,269 "
        "0,270 0,359 3,360 10,431 27,448 148,448 148,423 140,381 173,342 204,296 210,295 233,308 247,312 291,287 "
        "291,280 298,279 304,273 298,252 302,242 301,231 313,226 323,211 324,201 331,194 330,176 326,169 321,168 "
        "318,170 319,183 308,183 299,187 273,187 271,207 262,215 243,214 242,205 238,204 241,180 245,177 245,171 "
        "254,167 251,152 266,146 267,140 257,139 257,131 268,130 269,112 255,92 243,80"
    ),
    "shuttle": (
        "407,0 398,24 397,48 380,63 381,96 384,106 378,115 378,183 358,208 357,219 359,223 375,224 380,229 "
        "379,236 367,260 367,270 378,261 383,261 397,268 413,268 416,265 425,265 428,270 452,273 453,267 458,262 "
        "454,247 454,224 452,223 452,215 454,213 453,117 455,67 449,57 443,51 437,49 434,23 424,0"
    ),
    "cat": (
        "50,0 40,21 30,97 38,131 50,161 74,197 106,226 144,250 174,262 202,267 231,276 259,280 282,271 299,259 "
        "314,236 329,192 346,163 355,139 358,98 354,75 378,32 392,0 344,2 323,10 302,9 273,4 208,3 136,8 96,14 "
        "78,0"
    ),
    "motorcycle": (
        "680,421 679,384 662,345 638,315 638,308 643,301 610,274 581,266 578,257 571,258 548,207 552,193 547,181 "
        "556,166 564,164 563,143 579,139 582,124 573,117 573,114 536,113 530,99 535,98 540,102 544,99 524,92 "
        "520,83 509,76 499,75 492,82 493,91 496,92 497,111 472,110 464,118 459,119 458,143 455,150 427,144 "
        "408,149 392,166 385,187 364,196 359,196 355,190 348,188 346,183 339,185 338,189 322,194 291,195 267,185 "
        "248,168 196,169 191,164 175,158 160,161 157,153 153,151 151,167 145,166 145,158 138,159 139,173 142,177 "
        "141,192 132,196 108,195 94,203 92,216 96,222 109,224 113,246 134,234 154,234 155,248 133,267 134,286 "
        "128,294 122,327 128,346 143,369 158,383 180,395 219,395 232,391 249,381 259,370 267,370 279,360 293,360 "
        "334,371 380,378 388,371 435,364 454,345 466,321 474,318 478,290 472,275 478,267 479,254 488,251 474,250 "
        "473,235 484,229 495,229 505,232 524,273 524,280 516,288 508,288 510,299 505,315 505,329 513,331 517,348 "
        "528,348 540,376 555,397 574,415 596,428 596,442 612,449 634,448 645,444 654,436 669,438"
    ),
    "flower": (
        "319,85 291,91 285,97 263,95 243,101 232,112 214,116 205,126 204,134 195,138 188,148 188,169 180,170 "
        "176,176 178,194 170,200 169,208 170,232 173,236 172,263 178,269 186,293 197,304 200,314 219,332 232,337 "
        "248,351 270,351 290,359 335,357 370,344 384,333 397,330 405,322 408,309 430,280 430,273 443,244 445,226 "
        "443,202 439,190 432,183 432,166 427,148 411,133 409,124 399,114 388,113 382,104 372,99 358,98 348,92 "
        "332,92"
    ),
}
"""x,y of each corner, in pixels of the photograph."""


@dataclass(frozen=True)
class Kind:
    """A thing that scenes show. `wearing` makes "woman in the orange suit" out of a person and a colour.

    photo: the photograph; `outline` in OUTLINES, or None for the shapes that `cutout` builds itself
    size: height as a share of the frame's, at zoom 1
    box: x1, y1, x2, y2 of the coin in its photograph
    """

    name: str
    plural: str
    photo: str
    size: float
    outline: str | None = None
    wearing: str = ""
    box: tuple[int, int, int, int] | None = None


KINDS = {
    kind.name: kind
    for kind in (
        Kind("woman", "women", "astronaut", 0.62, "woman", wearing="suit"),
        Kind("man", "men", "camera", 0.58, "man", wearing="coat"),
        Kind("cat", "cats", "chelsea", 0.40, "cat"),
        Kind("cup", "cups", "coffee", 0.38),
        Kind("flower", "flowers", "flower", 0.38, "flower"),
        Kind("motorcycle", "motorcycles", "motorcycle_left", 0.42, "motorcycle"),
        Kind("horse", "horses", "horse", 0.46),
        Kind("coin", "coins", "coins", 0.27, box=(313, 154, 383, 220)),
        Kind("rocket", "rockets", "astronaut", 0.56, "shuttle"),
    )
}
TINTS = {
    "cat": ("", "grey"),
    "cup": ("", "blue", "green"),
    "flower": ("", "pink", "blue", "purple"),
    "motorcycle": ("", "blue", "green"),
    "horse": ("", "grey"),
    "coin": ("", "yellow"),
}
"""Recolourings that still look natural; "" is the photograph's own colour."""
_HUES = {"pink": 162, "blue": 108, "purple": 140, "green": 64, "yellow": 26}


@dataclass(frozen=True)
class Background:
    """`place`: how a sentence says where things happen. `tint`: BGR factors for grey photographs."""

    photo: str
    place: str
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 1.0


BACKGROUNDS = {
    "lake": Background("china", "in front of a lake"),
    "night": Background("rocket", "at night"),
    "stars": Background("hubble_deep_field", "in front of the stars", blur=0.6),
    "moon": Background("moon", "on the moon", (1.0, 1.04, 1.1)),
    "grass": Background("grass", "on the grass", (0.55, 1.0, 0.72)),
    "bricks": Background("brick", "on a brick floor", (0.62, 0.74, 1.1)),
    "gravel": Background("gravel", "on gravel", (0.86, 0.97, 1.06)),
    "garage": Background("motorcycle_left", "in a garage", blur=1.6),
}
_SHOWS = {"garage": ("motorcycle",), "night": ("rocket",)}


def backgrounds_for(names: tuple[str, ...]) -> list[str]:
    """Backgrounds that do not show one of these things themselves."""
    return [b for b in BACKGROUNDS if not set(_SHOWS.get(b, ())) & set(names)]


@cache
def photo(name: str) -> Image:
    """A bundled photograph, RGB. Raises FileNotFoundError naming the package if it is not in the installed wheel."""
    package, folder = ("skimage", "data") if name in _SKIMAGE else ("sklearn", "datasets/images")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"package {package}, whose photographs make the synthetic corpus, is not installed"
        )
    for suffix in (".png", ".jpg"):
        path = Path(spec.origin).parent / folder / (name + suffix)
        if path.is_file():
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if picture is not None:
                return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    raise FileNotFoundError(
        f"{package} has no bundled photograph {name!r}: install the pinned version"
    )


@cache
def cutout(name: str, tint: str = "") -> tuple[Image, Image]:
    """(RGB, alpha) of one thing, tight, at the photograph's own resolution; alpha has a soft edge of about a pixel."""
    kind = KINDS[name]
    picture = photo(kind.photo)
    if kind.box is not None:
        x1, y1, x2, y2 = kind.box
        picture = cv2.resize(picture[y1:y2, x1:x2], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    height, width = picture.shape[:2]
    fine = np.zeros((4 * height, 4 * width), np.uint8)  # drawn four times larger, for a smooth edge
    if name == "cup":
        cv2.ellipse(fine, (4 * 278, 4 * 222), (4 * 201, 4 * 163), 12, 0, 360, 255, -1)
        cv2.ellipse(fine, (4 * 290, 4 * 112), (4 * 116, 4 * 93), 8, 0, 360, 255, -1)
    elif name == "coin":
        cv2.ellipse(
            fine,
            (2 * width, 2 * height),
            (int(1.84 * width), int(1.84 * height)),
            0,
            0,
            360,
            255,
            -1,
        )
    elif name == "horse":
        dark = (picture[..., 0] < 128).astype(np.uint8) * 255
        fine = cv2.resize(dark, fine.shape[::-1], interpolation=cv2.INTER_CUBIC)
        picture = _furry(dark)
    else:
        corners = [
            tuple(map(int, corner.split(","))) for corner in OUTLINES[kind.outline or name].split()
        ]
        cv2.fillPoly(fine, [np.array(corners, np.int32) * 4 + 2], 255)
    alpha = cv2.GaussianBlur(
        cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), (3, 3), 0.6
    )
    x, y, w, h = cv2.boundingRect(alpha)
    picture, alpha = (
        picture[y : y + h, x : x + w],
        np.ascontiguousarray(alpha[y : y + h, x : x + w]),
    )
    return _tinted(picture, tint), alpha


def _furry(silhouette: Image) -> Image:
    """Fur for the horse, which is bundled as a black silhouette: the cat's, shaded as on a round body."""
    height, width = silhouette.shape
    fur = cv2.resize(
        photo("chelsea")[150:215, 90:200], (width, height), interpolation=cv2.INTER_CUBIC
    ).astype(np.float32)
    depth = cv2.GaussianBlur(cv2.distanceTransform(silhouette, cv2.DIST_L2, 5), (0, 0), 3)
    shade = 0.45 + 0.75 * np.clip(depth / 40, 0, 1)
    shade *= np.linspace(1.1, 0.8, height, dtype=np.float32)[:, None]
    return np.clip(fur * np.array([0.82, 0.62, 0.5], np.float32) * shade[..., None], 0, 255).astype(
        np.uint8
    )


def _tinted(picture: Image, tint: str) -> Image:
    """The picture with its hues moved so that its dominant one is `tint`."""
    if not tint:
        return picture
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    hue, saturation = hsv[..., 0].astype(np.int32), hsv[..., 1]
    if tint == "grey":
        hsv[..., 1] = saturation // 10
    elif saturation.mean() < 30:  # a grey photograph: give it the colour
        hsv[..., 0], hsv[..., 1] = _HUES[tint], 150
    else:
        weights = np.bincount(hue.ravel(), saturation.ravel().astype(np.float64), 180)
        hsv[..., 0] = (hue + _HUES[tint] - int(weights.argmax())) % 180
        if tint == "green":  # as vivid as the original, it would look like neon
            hsv[..., 1:] = hsv[..., 1:] * np.array([0.7, 0.85])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


_NAMES = (
    (3, "red"),
    (19, "orange"),
    (33, "yellow"),
    (85, "green"),
    (130, "blue"),
    (150, "purple"),
    (169, "pink"),
)


@cache
def colour(name: str, tint: str = "") -> str:
    """The colour word of a cut-out: the name of its dominant hue, or of its brightness where it has none."""
    picture, alpha = cutout(name, tint)
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[alpha > 127].astype(np.int64)
    vivid = hsv[(hsv[:, 1] > 70) & (hsv[:, 2] > 60)]
    if len(vivid) < 0.2 * len(hsv):
        if np.median(hsv[:, 2]) < 70:
            return "black"
        return "white" if np.percentile(hsv[:, 2], 75) > 190 else "grey"
    weights = np.bincount(vivid[:, 0], vivid[:, 1].astype(np.float64), 180)
    hue = int(
        np.convolve(
            np.concatenate([weights[-2:], weights, weights[:2]]), np.ones(5), "valid"
        ).argmax()
    )
    word = next((word for limit, word in _NAMES if hue <= limit), "red")
    if word not in ("red", "orange"):
        return word
    brightness = np.median(
        vivid[:, 2]
    )  # dark orange is brown; between red and orange the darker ones look red
    return "brown" if brightness < 120 else "red" if hue <= 9 and brightness < 190 else word


def backdrop(name: str, height: int, width: int, rng: np.random.Generator) -> Image:
    """A piece of a background photograph, resized to cover height x width."""
    background = BACKGROUNDS[name]
    picture = photo(background.photo)
    scale = max(height / picture.shape[0], width / picture.shape[1]) * rng.uniform(1.0, 1.15)
    picture = cv2.resize(
        picture,
        None,
        fx=scale,
        fy=scale,
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
    )
    y = int(rng.integers(0, max(1, picture.shape[0] - height + 1)))
    x = int(rng.integers(0, max(1, picture.shape[1] - width + 1)))
    picture = picture[y : y + height, x : x + width]
    picture = cv2.GaussianBlur(picture, (0, 0), background.blur)
    return cv2.convertScaleAbs(picture * np.array(background.tint[::-1], np.float32), alpha=0.94)


def occluder(kind: str, height: int, width: int, rng: np.random.Generator) -> tuple[Image, Image]:
    """(RGB, alpha) of height x width: a round "pillar" of wood or stone, or a leafy "hedge" with an uneven top."""
    alpha: Image = np.full((height, width), 255, np.uint8)
    if kind == "pillar":
        wood = rng.random() < 0.5
        source = (
            photo("coffee")[:, 495:600]
            if wood
            else cv2.convertScaleAbs(photo("gravel")[:400, :200], beta=30)
        )
        picture = cv2.resize(source, (width, height), interpolation=cv2.INTER_CUBIC)
        across = np.sin(np.pi * (0.06 + 0.88 * np.linspace(0, 1, width)))
        picture = np.clip(picture * (0.3 + 0.8 * across**0.8)[None, :, None], 0, 255).astype(
            np.uint8
        )
        if not wood:
            picture = (picture * np.array([1.0, 0.97, 0.9])).astype(np.uint8)
    else:
        leaves = np.tile(photo("grass"), (2, 2, 1))
        reach = max(height, width)
        picture = cv2.resize(leaves[:768, :768], (reach, reach), interpolation=cv2.INTER_AREA)[
            :height, :width
        ]
        light = np.linspace(1.15, 0.45, height)[:, None, None]
        picture = np.clip(picture * light * np.array([0.42, 0.72, 0.3]), 0, 255).astype(np.uint8)
        alpha[:] = 0
        x = np.arange(width)
        bumps = sum(
            rng.uniform(0.4, 1) * np.sin(2 * np.pi * (f * x / width + rng.random()))
            for f in (2, 3, 5, 9)
        )
        dome = np.sqrt(np.clip(1 - (2 * (x + 0.5) / width - 1) ** 4, 0, 1))  # round shoulders
        tops = np.round(height * (1 - dome * (0.9 + 0.025 * bumps))).astype(int)
        alpha[np.arange(height)[:, None] >= tops] = 255
        alpha = cv2.GaussianBlur(alpha, (3, 3), 0.8)
    return picture, alpha
