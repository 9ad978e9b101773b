"""VideoGCG: describe a video, and ground the phrases of the description by mask tracks.

rules "released" scores as VideoGLaMM's and SPARROW's scripts do: blobs of predicted masks under 20 px are dropped,
mIoU is over matched pairs, recall stops early, and queries without a result are left out of recall
(`model.metrics.gcg`). "corrected": nothing is dropped, and misses count.

The phrases' similarity needs BERT (`bert`: folder of bert-base-uncased with weights). Without it, phrases are compared
by the words they share, and the result is called "Recall_words": it is not the benchmark's recall.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from model.evaluate.benchmarks.base import (
    interval,
    mean,
    row,
    scored_rows,
    tracks,
    unscored,
)
from model.evaluate.benchmarks.videogcg_sources import EXPECTED, SOURCES, Case, read_cases
from model.evaluate.task import Prediction, Query, Row, Video
from model.metrics import (
    Clair,
    ClairConfig,
    Interval,
    cider,
    clean_caption,
    cosine_similarity,
    gcg_score,
    meteor,
)
from model.metrics.vidstg import MIN_AREA
from pipeline.sources.base import DataRoot

GCGRules = Literal["released", "corrected"]

QUESTION = (
    "Could you please give me a detailed description of the video? Please respond with interleaved segmentation masks "
    "for the corresponding parts of the answer."
)
"""What both released scripts ask, and the paper (section 4.3)."""


class VideoGCG:
    """See `model.evaluate.task.Benchmark`. One query a video: describe it.

    rules, bert: see above. captions: METEOR and CIDEr in the summary; None: if pycocoevalcap and Java are there.
    clair: the language model that judges captions, asked once for every answer; clair_cache keeps its answers.
    """

    name = "videogcg"
    splits = ("test",)

    def __init__(
        self,
        root: DataRoot,
        split: str = "test",
        rules: GCGRules = "released",
        bert: Path | None = None,
        captions: bool | None = None,
        clair: ClairConfig | None = None,
        clair_cache: Path | None = None,
    ):
        if rules not in get_args(GCGRules):
            raise ValueError(f"rules {rules!r}: one of {', '.join(get_args(GCGRules))}")
        if captions is None:
            captions = find_spec("pycocoevalcap") is not None and shutil.which("java") is not None
        self.split, self.rules, self.captions = split, rules, captions
        present = [source for source, file in SOURCES.items() if root.has(file)]
        if not present:
            raise ValueError(f"VideoGCG is not under {root.path}. Expected:\n{EXPECTED}")
        cases = (
            case for source in present for case in read_cases(root, source, rules == "released")
        )
        self._cases: dict[str, Case] = {case.video.id: case for case in cases}
        self._similarity = bert_similarity(bert) if bert else word_similarity
        self._clair = Clair(clair, clair_cache) if clair else None
        self.recall = "Recall" if bert else "Recall_words"
        self.settings = {
            "rules": rules,
            "sources": "+".join(present),
            "phrases": "bert" if bert else "words",
        }
        texts = (("METEOR", captions), ("CIDEr", captions), ("CLAIR", clair))
        self.headline = ("mIoU", self.recall, *(key for key, wanted in texts if wanted))

    @property
    def scored(self) -> bool:
        return True

    @property
    def truth_places(self) -> tuple[str, ...]:
        return tuple(SOURCES.values())

    def videos(self) -> list[Video]:
        return [case.video for case in self._cases.values()]

    def queries(self, video: Video) -> list[Query]:
        return [Query("0", video.id, QUESTION, "gcg", self._cases[video.id].source)]

    def score(self, video: Video, predictions: Mapping[str, Prediction]) -> list[Row]:
        """Columns beside mIoU: matched and annotated phrases (their sums make recall), caption, reference, CLAIR."""
        case, (query,) = self._cases[video.id], self.queries(video)
        prediction = predictions.get(query.id)
        protocol: Any = "sparrow" if self.rules == "released" else "corrected"
        caption = ""
        if prediction is None or prediction.error:
            # Only how many phrases there are matters.
            score = gcg_score(None, np.zeros((len(case.phrases), 1, 1, 1), bool), None, protocol)
        else:
            caption = clean_caption(prediction.text)
            try:
                gt_gthw = case.truth(prediction.masks_nthw.shape[-2:])
            except ValueError as error:
                columns = ("mIoU", "matched", "phrases", "CLAIR")
                return [unscored(video, query, prediction, error, *columns)]
            pred_pthw = tracks(prediction, video, query, gt_gthw.shape[2:])
            if len(prediction.phrases) != len(pred_pthw):
                raise ValueError(
                    f"{video.id}/{query.id}: {len(pred_pthw)} tracks and {len(prediction.phrases)} phrases"
                )
            if self.rules == "released":
                pred_pthw = without_blobs(pred_pthw, MIN_AREA["official"])
            score = gcg_score(
                pred_pthw, gt_gthw, self._similarity(case.phrases, prediction.phrases), protocol
            )
        clair = (
            {"CLAIR": self._clair(caption, case.caption).score if caption else 0.0}
            if self._clair
            else {}
        )
        return [
            row(
                video,
                query,
                prediction,
                mIoU=score.miou,
                matched=score.matched,
                phrases=score.phrases,
                caption=caption,
                reference=case.caption,
                **clair,
            )
        ]

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Shares in [0, 1], also CLAIR, which the paper prints times 100. A failed query has an empty caption."""
        rows = scored_rows(rows)
        phrases = sum(one["phrases"] for one in rows)
        means = {"mIoU": mean(rows, "mIoU")}
        means[self.recall] = sum(one["matched"] for one in rows) / phrases if phrases else 0.0
        if self.captions:
            texts = [one["caption"] for one in rows], [one["reference"] for one in rows]
            means |= {"METEOR": meteor(*texts), "CIDEr": cider(*texts)}
        if self._clair:
            means["CLAIR"] = mean(rows, "CLAIR")
        return means

    def intervals(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
        """Of mIoU, recall and CLAIR; METEOR and CIDEr belong to the whole set."""
        rows = scored_rows(rows)
        bounds = {"mIoU": interval(rows, "mIoU")}
        if any(one["phrases"] for one in rows):
            bounds[self.recall] = interval(rows, "matched", "phrases")
        return bounds | ({"CLAIR": interval(rows, "CLAIR")} if self._clair else {})


def without_blobs(masks_nthw: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """Masks without their components (4-connected) of fewer than `least` pixels."""
    kept_nthw = np.zeros_like(masks_nthw)
    for index in np.argwhere(masks_nthw.any((2, 3))):
        mask_hw = masks_nthw[tuple(index)].astype(np.uint8)
        _, labels_hw, stats, _ = cv2.connectedComponentsWithStats(mask_hw, connectivity=4)
        large = stats[:, cv2.CC_STAT_AREA] >= least
        large[0] = False
        kept_nthw[tuple(index)] = large[labels_hw]
    return kept_nthw


Similarity = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]
"""Annotated [G] and predicted [P] phrases -> similarities [G, P]."""


def word_similarity(gt: Sequence[str], pred: Sequence[str]) -> NDArray[np.float64]:
    """Cosine of word counts. Weight-free, and stricter than BERT's, which finds most short phrases alike."""
    if not len(gt) or not len(pred):
        return np.zeros((len(gt), len(pred)))
    split = [phrase.lower().split() for phrase in (*gt, *pred)]
    counts = np.array(
        [[words.count(word) for word in sorted(set(chain(*split)))] for words in split]
    )
    return cosine_similarity(counts[: len(gt)], counts[len(gt) :])


def bert_similarity(folder: Path) -> Similarity:
    """Cosine of the means of BERT's last states over a phrase's tokens, marks included, as in the released scripts.

    folder: bert-base-uncased with its weights, read once. ValueError if it is not there.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        bert = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True
        ).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"bert: {folder} is not a folder of bert-base-uncased with config.json, vocab.txt and "
            f"model.safetensors: {error}"
        ) from error

    @cache
    def embed(phrase: str) -> tuple[float, ...]:
        with torch.no_grad():
            ids = tokenizer(phrase, return_tensors="pt", max_length=512, truncation=True)
            return tuple(bert(**ids).last_hidden_state[0].mean(0).tolist())

    def similarity(gt: Sequence[str], pred: Sequence[str]) -> NDArray[np.float64]:
        if not len(gt) or not len(pred):
            return np.zeros((len(gt), len(pred)))
        return cosine_similarity([embed(one) for one in gt], [embed(one) for one in pred])

    return similarity
