"""Samples as strips: four frames with box and mask, then the four representatives, as a JPEG inside the page.

Frames are key frames of the stored video, so that a strip costs a few pictures and not a whole clip.
"""

import base64
import io
import json
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests import sheet
from manifests.catalog import rows_of
from schemas.contents import load_array
from schemas.members import read_member
from schemas.video.pictures import decode_picture
from schemas.video.stored import stored_key_frames

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

FRAMES, CROPS, GAP = 4, 4, 4
SCALE = 0.84
PAPER = "#10131a"
QUALITY = 74


def places(catalogue: "DuckDBPyConnection", wanted: list[str]) -> dict[str, list[dict]]:
    """Where the members of samples are, by referent: one query for all of them, since each looks at every shard."""
    rows = rows_of(
        catalogue,
        """
        SELECT m.key, s.path, m.name, m."offset", m.size FROM members m JOIN shards s ON s.shard = m.shard
        WHERE list_contains($1, m.key) ORDER BY m.key, m."offset" """,
        [wanted],
    )
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["key"], []).append(row)
    return found


def strip(out: "Path", members_at: list[dict]) -> str:
    """A data URI for one sample, whose `places` are given. Raises what a damaged shard makes its readers raise."""
    members = {}
    for row in members_at:
        members[row["name"]] = read_member(out, row)
    track = load_array(members["track.npy"])
    masks = {int(t): rle for t, rle in json.loads(members["masks.json"]).items()}
    chosen = {one["frame"] for one in json.loads(members["json"])["tsf"]}
    pictures = _pictures(members, sheet.shown_frames(track, FRAMES))
    width = FRAMES * (sheet.FRAME[0] + GAP) + CROPS * (sheet.CROP + GAP) - GAP
    image = Image.new("RGB", (width, sheet.CROP), PAPER)
    for i, (t, picture) in enumerate(pictures):
        tile = sheet.draw_tile(picture, track[t], masks.get(t), t in chosen)
        image.paste(tile, (i * (sheet.FRAME[0] + GAP), 0))
    for rank in range(CROPS):
        crop = Image.fromarray(decode_picture(members[f"crop{rank}.jpg"]))
        crop.thumbnail((sheet.CROP, sheet.CROP))
        x = FRAMES * (sheet.FRAME[0] + GAP) + rank * (sheet.CROP + GAP)
        image.paste(crop, (x + (sheet.CROP - crop.width) // 2, (sheet.CROP - crop.height) // 2))
    return uri(
        image.resize(
            (round(image.width * SCALE), round(image.height * SCALE)), Image.Resampling.LANCZOS
        )
    )


def uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pictures(
    members: dict[str, bytes], wanted: list[int]
) -> list[tuple[int, NDArray[np.uint8] | None]]:
    """(frame, picture) near each wanted frame: the nearest key frame of a video that has enough of them."""
    if "mp4" in members:
        keys = stored_key_frames(members["mp4"])
        if len(keys) >= FRAMES:
            near = [min(keys, key=lambda t, w=w: (abs(t - w), t)) for w in wanted]  # type: ignore[misc]
            if len(set(near)) == FRAMES:
                wanted = near
    found = sheet.decode_shown(members, wanted)
    return [(t, found.get(t)) for t in wanted]
