"""Contact sheets: a row per clip, boxes and masks drawn on its frames, the four representatives, expression and IoU.

Drawn from the shards alone, so a sheet shows what a trainer will read, not what a stage believed.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from manifests.catalog import connect, rows_of
from schemas.geometry import rle_decode
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
INK, PAPER, FAINT = "#1d2330", "#ffffff", "#6c7686"


def contact_sheet(
    out: Path, path: Path, *, source: str | None = None, rows: int = 6, frames: int = 4
) -> int:
    """Write a PNG with up to `rows` clips (of one source, or spread over all) and return how many it shows.

    Clips are picked by quantiles of their IoU, so that the sheet has the worst as well as the best.
    """
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
    _legend(draw, width)
    for i, (_, members) in enumerate(picked):
        _row(sheet, draw, 44 + i * row_height, members, frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
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


def _legend(draw: ImageDraw.ImageDraw, width: int) -> None:
    x = width - 560
    for name in ("annotation", "tracked", "mask"):
        draw.rectangle((x, 14, x + 16, 26), outline=COLOURS[name], width=3)
        draw.text((x + 22, 10), f"box: {name}", FAINT, _font(14))
        x += 130
    draw.text((x, 10), "dashed: dropped frame", FAINT, _font(14))


def fetch(catalogue: "DuckDBPyConnection", out: Path, referent_id: str) -> dict[str, bytes]:
    """All members of one sample, by one range read each: file extension -> bytes."""
    places = """SELECT s.path, m.name, m."offset", m.size FROM members m JOIN shards s ON s.shard = m.shard
                WHERE m.key = $1 ORDER BY m."offset" """
    members = {}
    for row in rows_of(catalogue, places, [referent_id]):
        with (out / row["path"]).open("rb") as file:
            file.seek(row["offset"])
            members[row["name"]] = file.read(row["size"])
    return members


def _row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, members: dict[str, bytes], frames: int
) -> None:
    info = json.loads(members["json"])["referent"]
    track = np.load(io.BytesIO(members["track.npy"]), allow_pickle=False)
    masks = {int(t): rle for t, rle in json.loads(members["masks.json"]).items()}
    iou = info.get("mean_iou")
    facts = [
        f"{info['source']}/{info['split']}",
        f"{info['n_kept']}/{info['n_frames']} frames kept",
        f"IoU of tracked with annotated boxes {iou:.2f}"
        if iou is not None
        else f"boxes: {info['box_rule']}",
        f"{info['n_masks']} masks ({info['n_fallback_masks']} fallback)",
        f"detector: {info['detector']}",
        info["preset"],
    ]
    caption = info["caption"] if len(info["caption"]) <= 110 else info["caption"][:107] + "..."
    draw.text((GAP + 2, top), f"“{caption}”", INK, _font(16))
    draw.text((GAP + 2, top + 20), "   ·   ".join(facts), FAINT, _font(12))
    chosen = {t["frame"] for t in json.loads(members["json"])["tsf"]}
    shown = shown_frames(track, frames)
    pictures = decode_shown(members, shown)
    y = top + TEXT
    for i, t in enumerate(shown):
        tile = draw_tile(
            pictures.get(t), track[t], masks.get(t), ORIGINS[track[t]["origin"]], t, t in chosen
        )
        sheet.paste(tile, (GAP + i * (FRAME[0] + GAP), y))
    x = GAP + frames * (FRAME[0] + GAP)
    for rank in range(4):
        if f"crop{rank}.jpg" in members:
            crop = Image.open(io.BytesIO(members[f"crop{rank}.jpg"])).convert("RGB")
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
        with tarfile.open(fileobj=io.BytesIO(members["frames.tar"])) as tar:
            for t in wanted:
                if file := tar.extractfile(f"{t:06d}.jpg"):
                    pictures[t] = decode_picture(file.read())
    return pictures


def draw_tile(
    picture: NDArray[np.uint8] | None,
    row: NDArray,
    mask: dict | None,
    origin: str,
    t: int,
    chosen: bool,
) -> Image.Image:
    """One frame with its mask tinted, its outline, its box, and the frame number."""
    if picture is None:
        tile = Image.new("RGB", FRAME, "#dde1e8")
        ImageDraw.Draw(tile).text((8, 8), "no media", FAINT, _font(12))
        return tile
    height, width = picture.shape[:2]
    scale = min(FRAME[0] / width, FRAME[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    colour = COLOURS.get(origin, "#999999")
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    if mask is not None:
        area = rle_decode(mask)[:height, :width].astype(np.uint8)  # type: ignore[arg-type]
        tint = cv2.resize(area, size, interpolation=cv2.INTER_AREA).astype(bool)
        small[tint] = (0.55 * small[tint] + 0.45 * rgb).astype(np.uint8)
        outline, _ = cv2.findContours(
            tint.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(small, outline, -1, (255, 255, 255), 1)
    tile = Image.new("RGB", FRAME, "#10131a")
    left, upper = (FRAME[0] - size[0]) // 2, (FRAME[1] - size[1]) // 2
    tile.paste(Image.fromarray(small), (left, upper))
    draw = ImageDraw.Draw(tile)
    if np.isfinite(row["x1"]):
        box = [
            left + row["x1"] * scale,
            upper + row["y1"] * scale,
            left + row["x2"] * scale - 1,
            upper + row["y2"] * scale - 1,
        ]
        _rectangle(draw, box, colour, dashed=not row["kept"])
    label = f"{t}" + (" TSF" if chosen else "")
    draw.rectangle((0, 0, 8 + 7 * len(label), 15), fill="#10131a")
    draw.text((4, 1), label, "#ffffff", _font(11))
    return tile


def _rectangle(draw: ImageDraw.ImageDraw, box: list[float], colour: str, dashed: bool) -> None:
    x1, y1, x2, y2 = box
    if not dashed:
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=2)
        return
    for a in np.arange(x1, x2, 8):
        draw.line((a, y1, min(a + 4, x2), y1), colour, 2)
        draw.line((a, y2, min(a + 4, x2), y2), colour, 2)
    for b in np.arange(y1, y2, 8):
        draw.line((x1, b, x1, min(b + 4, y2)), colour, 2)
        draw.line((x2, b, x2, min(b + 4, y2)), colour, 2)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
