"""Contact sheets: a row per clip, boxes and masks drawn on its frames, the four representatives, expression and IoU.

Drawn from the shards alone, so a sheet shows what a trainer will read, not what a stage believed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from manifests.catalog import connect, rows_of
from manifests.noise import sample_noise_words
from manifests.quality import iou_words
from schemas.contents import files_in, load_array
from schemas.files import replacing
from schemas.geometry import rle_decode
from schemas.members import read_member, refuse_links
from schemas.records import ORIGINS
from schemas.video.pictures import decode_picture
from schemas.video.stored import stored_pictures

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FRAME = (240, 135)  # width, height of one frame on the sheet
CROP, GAP, TEXT = 135, 6, 40
COLOURS = {
    "tracked": "#ff8c1a",
    "annotation": "#35c46a",
    "detected": "#35c46a",
    "mask": "#3fa7ff",
    "interpolated": "#c98bff",
}
STRIPE = 9  # pixels from one stripe of a hatched mask to the next
_LEGEND = (
    (
        ("box", COLOURS["tracked"], "box: tracked"),
        ("box", COLOURS["annotation"], "box: of the annotation"),
        ("thin", COLOURS["annotation"], "annotated box, for comparison"),
        ("box", COLOURS["mask"], "box: around the mask"),
    ),
    (
        ("dashed", COLOURS["tracked"], "dashed: frame that was dropped"),
        ("fill", COLOURS["tracked"], "filled: mask"),
        ("hatched", COLOURS["tracked"], "hatched: fallback, no segmentation"),
        ("", "", "one of the four representatives, shown on the right"),
    ),
)
"""Two lines of (kind of swatch, colour, words)."""
INK, PAPER, FAINT = "#1d2330", "#ffffff", "#6c7686"


def contact_sheet(
    out: Path, path: Path, *, source: str | None = None, rows: int = 6, frames: int = 4
) -> int:
    """Write a PNG with up to `rows` clips (of one source, or spread over all) and return how many it shows.

    Clips are picked by quantiles of their IoU, so that the sheet has the worst as well as the best.
    """
    refuse_links(out)
    with connect(out) as catalogue:
        found = rows_of(
            catalogue,
            "SELECT referent_id, source, mean_iou FROM referents WHERE source = coalesce($1, source) "
            "ORDER BY source, mean_iou NULLS LAST, 1",
            [source],
        )
        if not found:
            return 0
        picked = [
            (row["referent_id"], fetch(catalogue, out, row["referent_id"]))
            for row in _spread(found, rows)
        ]
    width = GAP + frames * (FRAME[0] + GAP) + 4 * (CROP + GAP) + GAP
    row_height = TEXT + FRAME[1] + 2 * GAP
    sheet = Image.new("RGB", (width, 52 + row_height * len(picked)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (GAP + 2, 8),
        f"{source or 'all sources'}: {len(picked)} of {len(found)} samples",
        INK,
        _font(20),
    )
    _legend(sheet, draw, 420)
    for i, (_, members) in enumerate(picked):
        _row(sheet, draw, 44 + i * row_height, members, frames)
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
    return len(picked)


def _spread(found: list[dict], n: int) -> list[dict]:
    """n entries, evenly spread over sources first and over IoU within each source."""
    by_source: dict[str, list[dict]] = {}
    for row in found:
        by_source.setdefault(row["source"], []).append(row)
    share = {s: max(1, n // len(by_source)) for s in by_source}
    picked = []
    for source, entries in by_source.items():
        take = min(share[source], len(entries))
        places = (
            np.linspace(0, len(entries) - 1, take) if take > 1 else [(len(entries) - 1) / 2]
        )  # or the median
        picked += [entries[int(place)] for place in places]
    return picked[: max(n, len(by_source))]


def _legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, x: int) -> None:
    """What the colours, dashes, fills and the word TSF mean, in two lines from `x` on."""
    for line, entries in enumerate(_LEGEND):
        place, top = x, 5 + 18 * line
        for kind, colour, words in entries:
            swatch = (place, top + 2, place + 17, top + 13)
            if kind in ("fill", "hatched"):
                patch = np.full((12, 18, 3), 255, np.uint8)
                tint_mask(patch, np.ones((12, 18), bool), colour, hatched=kind == "hatched")
                sheet.paste(Image.fromarray(patch), swatch[:2])
                draw.rectangle(swatch, outline=FAINT)
            elif kind:
                width = 1 if kind == "thin" else 2
                box = np.array(swatch, np.float64)
                _rectangle(draw, box, colour, dashed=kind == "dashed", width=width)
            else:
                draw.text((place - 8, top), "TSF", INK, _font(13))
            draw.text((place + 23, top), words, FAINT, _font(13))
            place += 23 + round(draw.textlength(words, _font(13))) + 18


def fetch(catalogue: "DuckDBPyConnection", out: Path, referent_id: str) -> dict[str, bytes]:
    """All members of one sample, by one range read each: file extension -> bytes."""
    places = """SELECT s.path, m.name, m."offset", m.size FROM members m JOIN shards s ON s.shard = m.shard
                WHERE m.key = $1 ORDER BY m."offset" """
    members = {}
    for row in rows_of(catalogue, places, [referent_id]):
        members[row["name"]] = read_member(out, row)
    return members


def _row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, members: dict[str, bytes], frames: int
) -> None:
    info = json.loads(members["json"])["referent"]
    track = load_array(members["track.npy"])
    masks = {int(t): rle for t, rle in json.loads(members["masks.json"]).items()}
    facts = [
        f"{info['source']}/{info['split']}",
        f"{info['n_kept']}/{info['n_frames']} frames kept",
        iou_words({"mean_iou": None, "iou_coverage": None} | info),
        f"{info['n_masks']} masks ({info['n_fallback_masks']} fallback)",
        f"detector: {info['detector']}",
        info["preset"],
    ]
    if noise := sample_noise_words(info):
        facts.append(f"noise on TSF: {noise}")
    caption = info["caption"] if len(info["caption"]) <= 110 else info["caption"][:107] + "..."
    draw.text((GAP + 2, top), f"“{caption}”", INK, _font(16))
    draw.text((GAP + 2, top + 20), "   ·   ".join(facts), FAINT, _font(12))
    chosen = {t["frame"] for t in json.loads(members["json"])["tsf"]}
    shown = shown_frames(track, frames)
    pictures = decode_shown(members, shown)
    y = top + TEXT
    for i, t in enumerate(shown):
        tile = draw_tile(pictures.get(t), track[t], masks.get(t), t in chosen)
        sheet.paste(tile, (GAP + i * (FRAME[0] + GAP), y))
    x = GAP + frames * (FRAME[0] + GAP)
    for rank in range(4):
        if f"crop{rank}.jpg" in members:
            crop = Image.fromarray(decode_picture(members[f"crop{rank}.jpg"]))
            crop.thumbnail((CROP, CROP))
            tile = Image.new("RGB", (CROP, CROP), "#eef0f4")
            tile.paste(crop, ((CROP - crop.width) // 2, (CROP - crop.height) // 2))
            sheet.paste(tile, (x + rank * (CROP + GAP), y))


def shown_frames(track: NDArray, n: int) -> list[int]:
    """n frames spread over the span in which the target has a box."""
    there = np.flatnonzero(np.isfinite(track["x1"]))
    first, last = (there[0], there[-1]) if there.size else (0, len(track) - 1)
    return [round(float(t)) for t in np.linspace(first, last, n)]


def decode_shown(members: dict[str, bytes], wanted: list[int]) -> dict[int, NDArray[np.uint8]]:
    """The wanted frames from the sample's own media; empty where the sample has none."""
    if "mp4" in members:
        return dict(stored_pictures(members["mp4"], set(wanted)))
    pictures: dict[int, NDArray[np.uint8]] = {}
    if "frames.tar" in members:
        files = files_in(members["frames.tar"])
        pictures = {t: decode_picture(files[f"{t:06d}.jpg"]) for t in wanted}
    return pictures


def draw_tile(
    picture: NDArray[np.uint8] | None, row: NDArray, mask: dict | None, chosen: bool
) -> Image.Image:
    """One frame with its mask tinted (hatched for a fallback), its box, the annotated box, and the frame number.

    row: of the sample's track (`pipeline.sample.TRACK_DTYPE`). chosen: the frame is one of the representatives.
    """
    if picture is None:
        tile = Image.new("RGB", FRAME, "#dde1e8")
        ImageDraw.Draw(tile).text((8, 8), "no media", FAINT, _font(12))
        return tile
    height, width = picture.shape[:2]
    scale = min(FRAME[0] / width, FRAME[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    colour = COLOURS.get(ORIGINS[row["origin"]], "#999999")
    if mask is not None:
        area = rle_decode(mask)[:height, :width].astype(np.uint8)  # type: ignore[arg-type]
        inside = cv2.resize(area, size, interpolation=cv2.INTER_AREA).astype(bool)
        tint_mask(small, inside, colour, hatched=bool(row["fallback"]))
    tile = Image.new("RGB", FRAME, "#10131a")
    left, upper = (FRAME[0] - size[0]) // 2, (FRAME[1] - size[1]) // 2
    tile.paste(Image.fromarray(small), (left, upper))
    draw = ImageDraw.Draw(tile)
    boxes = {
        prefix: np.array([row[f"{prefix}{side}"] for side in ("x1", "y1", "x2", "y2")])
        for prefix in ("ann_", "")
    }
    place = np.array([left, upper, left - 1, upper - 1])
    if not np.allclose(boxes["ann_"], boxes[""], atol=0.5, equal_nan=True):
        _rectangle(draw, place + boxes["ann_"] * scale, COLOURS["annotation"], width=1)
    _rectangle(draw, place + boxes[""] * scale, colour, dashed=not row["kept"])
    label = f"{row['frame']}" + (" TSF" if chosen else "")
    draw.rectangle((0, 0, 8 + 7 * len(label), 15), fill="#10131a")
    draw.text((4, 1), label, "#ffffff", _font(11))
    return tile


def tint_mask(
    picture: NDArray[np.uint8], inside: NDArray[np.bool_], colour: str, *, hatched: bool
) -> None:
    """Tint a mask into a picture [H, W, 3], in place: all of it, or in stripes where it is no segmentation."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    tinted = inside
    if hatched:
        rows, columns = np.indices(inside.shape)
        tinted = inside & ((rows + columns) % STRIPE < STRIPE // 3)
    picture[tinted] = (0.55 * picture[tinted] + 0.45 * rgb).astype(np.uint8)
    outline, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outline, -1, (255, 255, 255), 1)


def _rectangle(
    draw: ImageDraw.ImageDraw,
    box: NDArray[np.floating],
    colour: str,
    *,
    dashed: bool = False,
    width: int = 2,
) -> None:
    """A box of four corners; nothing for one that is not there."""
    if not np.isfinite(box).all():
        return
    x1, y1, x2, y2 = box.tolist()
    if not dashed:
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=width)
        return
    for a in np.arange(x1, x2, 8):
        draw.line((a, y1, min(a + 4, x2), y1), colour, 2)
        draw.line((a, y2, min(a + 4, x2), y2), colour, 2)
    for b in np.arange(y1, y2, 8):
        draw.line((x1, b, x1, min(b + 4, y2)), colour, 2)
        draw.line((x2, b, x2, min(b + 4, y2)), colour, 2)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
