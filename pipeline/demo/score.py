"""Score curated output against the exact truth of the synthetic corpus.

The headline is `iou` and `success`: all boxes of a track, also those that the agreement filter drops, on all frames
that truly show the target, with a missing box counted as IoU 0. The key frame, whose box was given, is left out.
Numbers over kept frames are conditional on agreeing with the annotation, and nothing here is coverage.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from schemas.geometry import RLE, absent, iou, is_box, rle_iou
from schemas.parts import part_names

TRACKED = "tracked"
OVERALL = "all tracked"
"""Name of the row over all sources whose boxes are tracked."""


@dataclass(slots=True)
class _Tally:
    """Per-frame values of the referents of one source."""

    n_referents: int = 0
    n_unmatched: int = 0
    rules: Counter = field(default_factory=Counter)
    masks: Counter = field(default_factory=Counter)
    all: list[float] = field(default_factory=list)
    tracked: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    j: list[float] = field(default_factory=list)
    absent: list[bool] = field(default_factory=list)

    def add(self, other: "_Tally") -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def row(self, source: str) -> dict:
        return {
            "source": source,
            "synthetic": True,
            "box_rule": _words(self.rules),
            "n_referents": self.n_referents,
            "n_unmatched": self.n_unmatched,
            "n_frames": len(self.all),
            "iou": _mean(self.all),
            "success": _success(self.all),
            "n_tracked": len(self.tracked),
            "iou_tracked": _mean(self.tracked),
            "success_tracked": _success(self.tracked),
            "n_kept": len(self.kept),
            "iou_kept": _mean(self.kept),
            "success_kept": _success(self.kept),
            "n_masks": len(self.j),
            "mask_j": _mean(self.j),
            "mask_origin": _words(self.masks),
            "n_absent": len(self.absent),
            "absent_with_box": _mean(self.absent),
        }


def score(out: Path, corpus: Path) -> list[dict]:
    """A row per source that has referents in the committed shards of `out`, then one over the tracked sources.

    n_referents: matched with the truth; n_unmatched: not, and so not scored
    n_frames, iou, success: frames that show the target, all boxes; success is the share with IoU above 0.5
    *_tracked: of those, frames whose box has origin "tracked"; *_kept: frames that passed the agreement filter
    mask_j: region similarity on kept frames that show the target, a missing mask counted as 0; mask_origin: of those
    absent_with_box: share of the n_absent frames without the target in which the track has a box all the same
    A mean over no frames is None. Raises FileNotFoundError if `corpus` is not a finished synthetic corpus.
    """
    if not (corpus / "corpus.json").is_file():
        raise FileNotFoundError(
            f"{corpus} has no corpus.json: it is not a finished synthetic corpus"
        )
    tallies: dict[str, _Tally] = {}
    truths: dict[str, dict] = {}
    for name in part_names(out):
        for referent, track, masks in _samples(out, name):
            source = referent["source"]
            if source not in truths:
                truths[source] = json.loads((corpus / "truth" / f"{source}.json").read_text())
                tallies[source] = _Tally()
            tally = tallies[source]
            truth = _match(referent, truths[source])
            if truth is None:
                tally.n_unmatched += 1
            else:
                _add(tally, referent, track, masks, truth)
    overall = _Tally()
    for tally in tallies.values():
        if TRACKED in tally.rules:
            overall.add(tally)
    rows = [tally.row(source) for source, tally in tallies.items()]
    return [*rows, overall.row(OVERALL)] if overall.n_referents else rows


def _samples(out: Path, shard: str) -> list[tuple[dict, list[dict], dict[int, dict]]]:
    """(referent, rows of its track, frame -> row of its mask) of a committed shard."""
    tracks: dict[str, list[dict]] = {}
    masks: dict[str, dict[int, dict]] = {}
    for row in _rows(
        out, "tracks", shard, ["frame", "source_frame", "x1", "y1", "x2", "y2", "origin", "kept"]
    ):
        tracks.setdefault(row["referent_id"], []).append(row)
    for row in _rows(out, "masks", shard, ["frame", "height", "width", "counts", "origin"]):
        masks.setdefault(row["referent_id"], {})[row["frame"]] = row
    videos = {
        row["clip_id"]: row["video_id"]
        for row in _rows(out, "clips", shard, ["video_id"], "clip_id")
    }
    samples = []
    columns = ["clip_id", "source", "split", "raw_caption", "key_frame", "box_rule"]
    for referent in _rows(out, "referents", shard, columns):
        referent["video_id"] = videos[referent["clip_id"]]
        key = referent["referent_id"]
        samples.append(
            (referent, sorted(tracks.get(key, []), key=lambda r: r["frame"]), masks.get(key, {}))
        )
    return samples


def _rows(
    out: Path, table: str, shard: str, columns: list[str], key: str = "referent_id"
) -> list[dict]:
    path = out / "manifests" / table / f"{shard}.parquet"
    return pq.read_table(path, columns=[key, *columns], partitioning=None).to_pylist()


def _match(referent: dict, truths: dict[str, list[dict]]) -> dict | None:
    """The truth of a referent: its video's only one, or the one with its caption, white space aside."""
    entries = truths.get(f"{referent['split']}/{referent['video_id']}", [])
    if len(entries) == 1:
        return entries[0]
    caption = " ".join((referent["raw_caption"] or "").split())
    return next((e for e in entries if " ".join(e["expression"].split()) == caption), None)


def _add(
    tally: _Tally, referent: dict, track: list[dict], masks: dict[int, dict], truth: dict
) -> None:
    tally.n_referents += 1
    tally.rules[referent["box_rule"]] += 1
    height, width = truth["size"]
    given = referent["key_frame"] if referent["box_rule"] == TRACKED else None
    for row in track:
        if not 0 <= row["source_frame"] < len(truth["boxes"]):
            raise ValueError(
                f"{referent['referent_id']}: frame {row['source_frame']} of a video of {len(truth['boxes'])} frames"
            )
        box, counts = (truth[name][row["source_frame"]] for name in ("boxes", "masks"))
        found = (
            absent(1)[0]
            if row["x1"] is None
            else np.array([row[c] for c in ("x1", "y1", "x2", "y2")], np.float32)
        )
        if box is None:
            tally.absent.append(bool(is_box(found)))
            continue
        if row["kept"]:
            mask = masks.get(row["frame"])
            tally.masks[mask["origin"] if mask else "none"] += 1
            tally.j.append(_j(mask, {"size": [height, width], "counts": counts}))
        if row["frame"] == given:
            continue
        value = float(np.nan_to_num(iou(found, box)))
        tally.all.append(value)
        if row["origin"] == TRACKED:
            tally.tracked.append(value)
        if row["kept"]:
            tally.kept.append(value)


def _j(mask: dict | None, truth: RLE) -> float:
    if mask is None or [mask["height"], mask["width"]] != truth["size"]:
        return 0.0
    return rle_iou({"size": truth["size"], "counts": mask["counts"]}, truth)


def _mean(values: list) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _success(values: list[float]) -> float | None:
    return _mean([value > 0.5 for value in values])


def _words(counts: Counter) -> str:
    """ "grabcut 120, annotation 4" """
    return ", ".join(
        f"{name} {n}" if len(counts) > 1 else str(name) for name, n in counts.most_common()
    )
