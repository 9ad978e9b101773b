"""Scores of the six benchmarks, under the names and rules of their own tools. No torch until phrases are encoded."""

from model.metrics.clair import Clair, ClairConfig, Judgement
from model.metrics.davis import davis
from model.metrics.gcg import GCGScore, gcg, gcg_matches, gcg_miou, gcg_recall, gcg_score, track_iou
from model.metrics.masks import boundary_accuracy, region_similarity
from model.metrics.mevis import expression_score, merge_objects, mevis
from model.metrics.phrases import PhraseEncoder
from model.metrics.statistics import Interval, Statistics, bootstrap, frame_statistics
from model.metrics.text import cider, clean_caption, cosine_similarity, meteor
from model.metrics.vidstg import VidSTGScore, mask_boxes, vidstg, vidstg_miou, vidstg_score

__all__ = [
    "Clair",
    "ClairConfig",
    "GCGScore",
    "Interval",
    "Judgement",
    "PhraseEncoder",
    "Statistics",
    "VidSTGScore",
    "bootstrap",
    "boundary_accuracy",
    "cider",
    "clean_caption",
    "cosine_similarity",
    "davis",
    "expression_score",
    "frame_statistics",
    "gcg",
    "gcg_matches",
    "gcg_miou",
    "gcg_recall",
    "gcg_score",
    "mask_boxes",
    "merge_objects",
    "meteor",
    "mevis",
    "region_similarity",
    "track_iou",
    "vidstg",
    "vidstg_miou",
    "vidstg_score",
]
