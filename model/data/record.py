"""Record: a sample's members become frames, masks, boxes, crops and words.

Everything is cut from the clip's own frames, before any model's preprocessing, and boxes are shares of the whole
frame: so frames, masks, boxes and crops agree whatever the shape of the video.
"""

import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from model.data.index import Entry
from model.data.online import Others, boxes_of, online_frames, online_trajectory, read_track
from model.data.questions import Asked
from model.data.read import Corrupt
from model.tsf import TSFConfig
from pipeline.corrupt import Corruption
from pipeline.select import crop, evenly_spaced
from schemas.contents import files_in
from schemas.geometry import rle_check, rle_decode
from schemas.records import ORIGINS
from schemas.video.pictures import decode_picture
from schemas.video.stored import stored_pictures

UNKNOWN = -1
"""In masks: nobody said whether the target is here."""
_GIVEN = [ORIGINS.index(name) for name in ("annotation", "mask", "none")]
NOISE = ("n_corrupted", "n_corruptible")
"""Fields of a curated referent: what `Record.noise` holds."""


@dataclass
class Record:
    """One expression about one target, F frames of its clip. Plain arrays: no model has touched them."""

    key: str
    source: str
    caption: str
    qa: list[dict[str, str]]
    """`qa_id`, `family`, `question`, `answer` of the curated pairs (`pipeline.questions`)."""
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
    noise: tuple[int, int] = (0, 0)
    """Of the frames that the crops were chosen from: how many noise has changed on purpose, and how many there are."""
    asked: Asked = field(default_factory=Asked)
    """What the sample is asked in this epoch."""

    def answer(self, ordinal: int) -> str:
        """The answer to the `ordinal`-th curated question if that is about a region, else the caption."""
        if ordinal < len(self.qa) and self.qa[ordinal]["family"] == "region":
            return self.qa[ordinal]["answer"]
        return self.caption

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


def make_record(
    entry: Entry,
    members: dict[str, bytes],
    rng: np.random.Generator,
    *,
    frames: int = 8,
    tsf: TSFConfig | None = None,
    corruption: Corruption = Corruption(),
    others: Others = tuple,
) -> Record:
    """Members -> record.

    rng: draws the frames. tsf: how crops are chosen, None for a sample that goes without. corruption, others: of
    online selection, the noise on the trajectory; stored crops have theirs from curation. Corrupt if members are
    missing or make no sense.
    """
    try:
        words = json.loads(members["json"])
        track = read_track(members["track.npy"])
        masks = _teaching_masks(members["masks.json"], track)
        boxes_t4 = boxes_of(track)
        _check_boxes(boxes_t4, entry)
        absent = _known_absent(track)
        times = choose_frames(masks, absent, len(track), frames, rng)
        trajectory, picks = None, []
        if tsf is not None and tsf.selection == "online":
            frame_size = entry.height, entry.width
            trajectory = online_trajectory(track, corruption, others, entry.key, frame_size)
            picks = online_frames(trajectory)
        needed = np.union1d(times, np.array(picks, np.int64))
        decoded = decode_frames(entry, members, needed, len(track))
        crops: list[NDArray[np.uint8]] = []
        noise = (0, 0)
        if trajectory is not None:
            crops = [crop(decoded[t], trajectory.boxes[t]) for t in picks]
            noise = trajectory.n_corrupted, trajectory.n_corruptible
        elif tsf is not None:
            crops = _stored_crops(members, words["tsf"], tsf.k)
            noise = tuple(words["referent"].get(name, 0) for name in NOISE)
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
            crops
            or None,  # none where the shard has none, or noise left no box: the sample goes without
            noise if crops else (0, 0),
        )
    except NONSENSE as error:
        if isinstance(error, Corrupt):
            raise
        raise Corrupt(
            f"{entry.tar}: {entry.key}: {type(error).__name__}: {str(error)[:300]}"
        ) from error


FARTHEST = 10
"""So many times the frame's size a box may lie outside of it: trackers draw beyond the border, but not to infinity."""


def _check_boxes(boxes_t4: NDArray[np.float32], entry: Entry) -> None:
    """ValueError for a box that no picture can have: infinite, far outside, or with its corners exchanged."""
    boxes = boxes_t4[~np.isnan(boxes_t4).all(1)]
    most = FARTHEST * np.array([entry.width, entry.height] * 2)
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all(1)
    good = ordered & (np.abs(boxes) <= most).all(
        1
    )  # false for infinities, and for a box that is NaN in part
    if not good.all():
        row = boxes[int(np.argmin(good))].tolist()
        raise ValueError(f"a box of {row} in frames of {entry.width}x{entry.height}")


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


def _teaching_masks(data: bytes, track: NDArray) -> dict[int, dict]:
    """Masks by frame. A fallback is no segmentation: it teaches only where there is nothing else."""
    every = {int(t): rle for t, rle in json.loads(data).items()}
    return {t: rle for t, rle in every.items() if not track["fallback"][t]} or every


def _stored_crops(members: dict[str, bytes], rows: list[dict], k: int) -> list[NDArray[np.uint8]]:
    """k of the curated crops, in time order; none where the shard has none."""
    pictures = [decode_picture(members[f"crop{row['rank']}.jpg"]) for row in rows]
    return [pictures[i] for i in _spread(len(pictures), k)]


def _spread(have: int, want: int) -> list[int]:
    """`want` of `have` numbers, ascending: evenly if there are more, the last ones repeated if there are fewer."""
    picks = evenly_spaced(have, min(have, want)).tolist()
    return picks + picks[-1:] * (want - len(picks)) if picks else []


# --- bytes ----------------------------------------------------------------------------------------------------------


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
