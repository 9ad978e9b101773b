"""Record: a sample's members become frames, masks, boxes, crops and words.

Everything is cut from the clip's own frames, before any model's preprocessing, and boxes are shares of the whole
frame: so frames, masks, boxes and crops agree whatever the shape of the video.
"""

import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from model.corruption import Corruption, corrupt
from model.data.index import Entry
from model.data.read import Corrupt
from model.tsf import TSFConfig
from pipeline.sample import TRACK_DTYPE
from pipeline.select import candidates, crop, evenly_spaced
from schemas.contents import files_in, load_array
from schemas.geometry import rle_check, rle_decode
from schemas.records import ORIGINS
from schemas.video.pictures import decode_picture
from schemas.video.stored import stored_pictures

UNKNOWN = -1
"""In masks: nobody said whether the target is here."""
_GIVEN = [ORIGINS.index(name) for name in ("annotation", "mask", "none")]
_ONLINE = 16
"""Crops from which "online" selection chooses (the release)."""


@dataclass
class Record:
    """One expression about one target, F frames of its clip. Plain arrays: no model has touched them."""

    key: str
    source: str
    caption: str
    qa: list[dict[str, str]]
    """`qa_id`, `family`, `question`, `answer` as curated (`pipeline.questions`)."""
    times_f: NDArray[np.int64]
    """Which frames of the clip, ascending. The first shows the target."""
    frames_fhw3: NDArray[np.uint8]
    """RGB."""
    masks_fhw: NDArray[np.int8]
    """1 inside, 0 outside, -1 all over where nothing is known."""
    boxes_t4: NDArray[np.float32]
    """The curated trajectory over the whole clip, xyxy in [0, 1], NaN without a box. Never corrupted."""
    crops: list[NDArray[np.uint8]] | None = None
    """Representatives [h, w, 3] for TSF, in time order; None: this sample's prompt goes without TSF."""
    trajectory_t4: NDArray[np.float32] | None = None
    """The corrupted trajectory that `crops` were cut along; None where they are the curated ones."""

    @property
    def box_4(self) -> NDArray[np.float32]:
        """The target on the first frame."""
        return self.boxes_t4[self.times_f[0]]


NONSENSE = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    EOFError,
    RuntimeError,
    tarfile.TarError,
    cv2.error,
    av.FFmpegError,
)
"""What bytes that are not what they should be can raise. Errors of the machine (OSError) are not among them."""

Others = Callable[[], Sequence[bytes]]
"""`.track.npy` members of other targets of the clip; asked for only if needed."""


def make_record(
    entry: Entry,
    members: dict[str, bytes],
    rng: np.random.Generator,
    *,
    frames: int = 8,
    tsf: TSFConfig | None = None,
    corruption: Corruption | None = None,
    others: Others = tuple,
) -> Record:
    """Members -> record.

    rng: draws the frames. tsf: how crops are chosen, None for a sample that goes without. corruption: applied to the
    trajectory before crops are cut. A trajectory's noise is the same in every epoch, as a tracker's would be.
    Corrupt if members are missing or make no sense.
    """
    try:
        words = json.loads(members["json"])
        track = read_track(members["track.npy"])
        masks = {int(t): rle for t, rle in json.loads(members["masks.json"]).items()}
        boxes_t4 = np.stack([track[c] for c in ("x1", "y1", "x2", "y2")], 1)
        absent = _known_absent(track)
        times = choose_frames(masks, absent, len(track), frames, rng)
        trajectory, path, picks = None, boxes_t4, []
        noisy = corruption is not None and corruption.kind != "none"
        stored = tsf is not None and tsf.selection == "offline" and not noisy
        if tsf is not None and not stored:
            if noisy and corruption:
                trajectory = _corrupted(boxes_t4, corruption, others, entry.key)
            path = boxes_t4 if trajectory is None else trajectory
            picks = _picks(path, track["kept"], words["tsf"], tsf)
        needed = np.union1d(times, np.array(picks, np.int64))
        decoded = decode_frames(entry, members, needed, len(track))
        crops = None
        if stored and tsf is not None:
            pictures = [decode_picture(members[f"crop{row['rank']}.jpg"]) for row in words["tsf"]]
            crops = [pictures[i] for i in _spread(len(pictures), tsf.k)]
        elif picks:
            crops = [crop(decoded[t], path[t]) for t in picks]
        size = np.array([entry.width, entry.height] * 2, np.float32)
        return Record(
            entry.key,
            entry.source,
            words["referent"]["caption"],
            words["qa"],
            times,
            np.stack([decoded[t] for t in times]),
            _masks(times, masks, absent, entry),
            (boxes_t4 / size).astype(np.float32),
            crops,
            None if trajectory is None else (trajectory / size).astype(np.float32),
        )
    except NONSENSE as error:
        if isinstance(error, Corrupt):
            raise
        raise Corrupt(
            f"{entry.tar}: {entry.key}: {type(error).__name__}: {str(error)[:300]}"
        ) from error


# --- which frames ---------------------------------------------------------------------------------------------------


def choose_frames(
    masked: Iterable[int],
    absent: NDArray[np.bool_],
    total: int,
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """At most `count` frames, ascending and distinct: one drawn from each of `count` even stretches of those that teach
    something: with a mask, or known to be without the target. The first has a mask: it is the prompted one.

    Where too few teach, frames of the clip that come later than the first mask fill up, evenly: the host should still
    see a video, and their masks are unknown. ValueError without any mask.
    """
    seen = np.array(sorted(masked), np.int64)
    if not len(seen):
        raise ValueError("no frame has a mask")
    knows = np.union1d(seen, np.flatnonzero(absent))
    knows = knows[knows >= seen[0]]
    if len(knows) > count:
        edges = np.linspace(0, len(knows), count + 1).round().astype(int)
        first = seen[
            seen <= knows[edges[1] - 1]
        ]  # of the first stretch, those with a mask; never empty
        rest = [knows[rng.integers(low, high)] for low, high in pairwise(edges[1:])]
        return np.array([first[rng.integers(len(first))], *rest], np.int64)
    others = np.setdiff1d(np.arange(knows[0], total), knows)
    return np.union1d(
        knows, others[evenly_spaced(len(others), min(count - len(knows), len(others)))]
    )


def _known_absent(track: NDArray) -> NDArray[np.bool_]:
    """[T] the dataset looked and did not see the target. Where a tracker made the boxes, a frame without one says that
    the tracker lost it; only a tracked box that meets no annotated one proves the absence."""
    has_box = ~np.isnan(track["x1"])
    meets_none = track["known"] & ~track["kept"] & np.isnan(track["iou"])
    return meets_none & (has_box | np.isin(track["origin"], _GIVEN).all())


def _picks(
    trajectory: NDArray, kept: NDArray[np.bool_], stored: list[dict], tsf: TSFConfig
) -> list[int]:
    """Frames to cut crops from: the curated representatives that still have a box, else others that do."""
    there = ~np.isnan(trajectory).any(1)
    if tsf.selection == "online":
        return candidates(kept & there, _ONLINE).tolist()
    chosen = sorted({row["frame"] for row in stored if there[row["frame"]]})
    if not chosen:
        chosen = candidates(kept & there, tsf.k).tolist()
    return [chosen[i] for i in _spread(len(chosen), tsf.k)]


def _spread(have: int, want: int) -> list[int]:
    """`want` of `have` numbers, ascending: evenly if there are more, the last ones repeated if there are fewer."""
    picks = evenly_spaced(have, min(have, want)).tolist()
    return picks + picks[-1:] * (want - len(picks)) if picks else []


def _corrupted(boxes_t4: NDArray, options: Corruption, others: Others, key: str) -> NDArray | None:
    """The trajectory with noise; None where "id_switch" has nobody to switch to."""
    tracks: tuple[NDArray, ...] = ()
    if options.kind == "id_switch":
        tracks = tuple(
            np.stack([read_track(data)[c] for c in ("x1", "y1", "x2", "y2")], 1)
            for data in others()
        )
        if not tracks:
            return None
    return corrupt(boxes_t4, options, tracks, zlib.crc32(key.encode()))


# --- bytes ----------------------------------------------------------------------------------------------------------


def read_track(data: bytes) -> NDArray:
    """`.track.npy` -> a row of TRACK_DTYPE per frame. ValueError if it is none."""
    track = load_array(data)
    if track.dtype != TRACK_DTYPE or not len(track):
        raise ValueError(
            f"track.npy has {len(track)} rows of {track.dtype}, expected rows of {TRACK_DTYPE}"
        )
    return track


def _masks(
    times: NDArray, masks: dict, absent: NDArray[np.bool_], entry: Entry
) -> NDArray[np.int8]:
    found = np.full((len(times), entry.height, entry.width), UNKNOWN, np.int8)
    for place, t in zip(found, times, strict=True):
        if t in masks:
            place[:] = rle_decode(rle_check(masks[t], (entry.height, entry.width)))
        elif absent[t]:
            place[:] = 0
    return found


def decode_frames(
    entry: Entry, members: dict[str, bytes], times: NDArray[np.int64], count: int | None = None
) -> dict[int, NDArray[np.uint8]]:
    """Frames [H, W, 3] RGB of the clip by number; decoded are they, and what lies between them and a key frame.

    count: frames that the clip has, if the caller knows. One of NONSENSE where the media is not what it should be.
    """
    if "mp4" in members:
        found = dict(stored_pictures(members["mp4"], times.tolist(), count=count))
        pictures = [found[t] for t in times.tolist()]
    else:
        files = files_in(members["frames.tar"])
        pictures = [decode_picture(files[f"{t:06d}.jpg"]) for t in times]
    height, width = pictures[0].shape[:2]
    if (height - entry.height, width - entry.width) not in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        raise ValueError(f"media is {width}x{height}, the clip {entry.width}x{entry.height}")
    return {int(t): p[: entry.height, : entry.width] for t, p in zip(times, pictures, strict=True)}
