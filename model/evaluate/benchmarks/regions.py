"""Region questions on held-out curated shards: does the model describe the target that TSF shows?

Not one of the paper's benchmarks: it shows the learning of stage 1. A query is a curated referent: its crops become the
TSF tokens at `<region>` of one template, the same for all, and the answer is compared with the curated one. Scores:

exact     the answer is the caption, but for case, spaces and final periods
word_F1   of the words of answer and caption, counted as often as they occur
CIDEr     of all answers, if pycocoevalcap and Java are there
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from model.data.index import Index
from model.data.online import read_track
from model.data.read import Corrupt, Reader
from model.data.record import NONSENSE, decode_frames
from model.evaluate.benchmarks.base import interval, mean, row, scored_rows
from model.evaluate.task import Frames, Prediction, Query, Row, Video
from model.metrics import Interval, cider, clean_caption
from pipeline.sources.base import DataRoot
from schemas.records import Media
from schemas.video.pictures import decode_picture

FRAMES = 16
"""Frames of a clip that the model is shown, evenly spaced."""
_EXPECTED = """\
  <root>/                  an output of `sparrow curate` with clips of the split
    manifests/shards/*.parquet
    <source>/<split>/shards/*.tar"""


@dataclass(frozen=True)
class ShardVideo(Video):
    """A referent's clip, read from its shard. row: of the index."""

    shards: "Regions | None" = field(default=None, repr=False, compare=False)
    row: int = 0

    def read(self) -> Frames:
        """At most FRAMES frames [T, H, W, 3] uint8 RGB of the clip. ValueError where they cannot be had."""
        assert self.shards is not None
        return self.shards.frames(self.row)


class Regions:
    """See `model.evaluate.task.Benchmark`. Every referent is a video with one query.

    template: which one of the shard's pool of questions is asked, from 0. k: crops of the target that are shown, as
    many as the model's `tsf.k`. captions: CIDEr in the summary; None: if pycocoevalcap and Java are there.
    """

    name = "regions"
    splits = ("val", "valid_u", "test", "train")
    scored = True
    truth_places = ("manifests/qa",)

    def __init__(
        self,
        root: DataRoot,
        split: str,
        template: int = 0,
        k: int = 4,
        captions: bool | None = None,
    ):
        if not root.has("manifests/shards"):
            raise ValueError(f"manifests/shards is not under {root.path}. Expected:\n{_EXPECTED}")
        if captions is None:
            captions = find_spec("pycocoevalcap") is not None and shutil.which("java") is not None
        self.root, self.split, self.template, self.k = root, split, template, k
        self.captions = captions
        self.index = Index.open(str(root.path), splits=(split,))
        last = min(len(self.index.templates(row).region) for row in range(len(self.index))) - 1
        if not 0 <= template <= last:
            raise ValueError(f"benchmark.template {template}: the pool has 0 to {last}")
        self.settings = {"template": self.index.templates(0).region[template]}
        self.headline = ("exact", "word_F1", *(["CIDEr"] if captions else []))
        self._latest: dict[int, tuple[tuple[Frames, ...], str]] = {}

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.index.out)

    def videos(self) -> list[Video]:
        names = self.index.referents["referent_id"].to_pylist()
        return [self._video(row, name) for row, name in enumerate(names)]

    def _video(self, row: int, name: str) -> Video:
        tar = Media("video", self.index.entry(row).tar)
        frames = tuple(f"{t:06d}" for t in range(FRAMES))
        return ShardVideo(name, frames, None, self.root, tar, shards=self, row=row)

    def frames(self, row: int) -> Frames:
        """[T, H, W, 3] uint8 RGB of a referent's clip, evenly spaced. ValueError for damaged members."""
        entry = self.index.entry(row)
        try:
            members = self._reader.members(entry)
            count = len(read_track(members["track.npy"]))
            times = np.unique(np.linspace(0, count - 1, FRAMES).round().astype(np.int64))
            found = decode_frames(entry, members, times, count)
        except (*NONSENSE, OSError) as error:
            raise ValueError(f"{entry.tar}: {entry.key}: {error}") from error
        return np.stack([found[int(t)] for t in times])

    def queries(self, video: Video) -> list[Query]:
        """One query; with a fault where the referent has no crops, or its members cannot be read."""
        assert isinstance(video, ShardVideo)
        source = str(self.index.referents["source"][video.row])
        question = self.index.templates(video.row).region[self.template]
        try:
            crops, _ = self._read(video.row)
        except ValueError as error:
            return [Query("0", video.id, question, "region", source, fault=str(error))]
        fault = "" if crops else "the referent has no crops: there is nothing to ask about"
        return [Query("0", video.id, question, "region", source, fault=fault, crops=crops)]

    def _read(self, row: int) -> tuple[tuple[Frames, ...], str]:
        """The referent's crops, and the caption that answers. ValueError for damaged members."""
        if row in self._latest:
            return self._latest[row]
        entry = self.index.entry(row)
        try:
            members = self._reader.members(entry)
            words = json.loads(members["json"])
            names = [f"crop{one['rank']}.jpg" for one in words["tsf"]][: self.k]
            crops = [decode_picture(members[name]) for name in names]
            answers = [qa["answer"] for qa in words["qa"] if qa["family"] == "region"]
            caption = answers[0] if answers else words["referent"]["caption"]
        except Corrupt:
            raise
        except NONSENSE as error:
            raise ValueError(f"{entry.tar}: {entry.key}: {error}") from error
        missing = self.k - len(crops) if crops else 0
        found = tuple(crops + crops[-1:] * missing), str(caption)
        self._latest = {row: found}  # it is read for the question, and again for the score
        return found

    def score(self, video: Video, predictions: Mapping[str, Prediction]) -> list[Row]:
        """exact, word_F1; caption and reference for CIDEr."""
        (query,) = self.queries(video)
        prediction = predictions.get(query.id)
        scores: dict[str, Any] = {"exact": None, "word_F1": None, "caption": "", "reference": ""}
        if query.fault:
            return [
                row(video, query, prediction, **scores) | {"error": "", "unscored": query.fault}
            ]
        assert isinstance(video, ShardVideo)
        _, reference = self._read(video.row)
        failed = prediction is None or prediction.error
        caption = "" if failed or prediction is None else clean_caption(prediction.text)
        scores = {
            "exact": float(plain_words(caption) == plain_words(reference)),
            "word_F1": word_f1(caption, reference),
            "caption": caption,
            "reference": reference,
        }
        return [row(video, query, prediction, **scores)]

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Shares in [0, 1]; a failed query has an empty answer."""
        known = scored_rows(rows)
        found = {key: mean(rows, key) for key in ("exact", "word_F1")}
        if self.captions:
            texts = [one["caption"] for one in known], [one["reference"] for one in known]
            found["CIDEr"] = cider(*texts)
        return found

    def intervals(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
        """Of the shares; CIDEr belongs to the whole set."""
        return {key: interval(rows, key) for key in ("exact", "word_F1")}


def plain_words(text: str) -> str:
    """In lower case, with single spaces, without final periods."""
    return " ".join(text.lower().split()).rstrip(". ")


def word_f1(caption: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the caption's words, each counted as often as it occurs."""
    given, wanted = (Counter(plain_words(text).split()) for text in (caption, reference))
    common = (given & wanted).total()
    if not common:
        return float(not given and not wanted)
    return 2 * common / (given.total() + wanted.total())
