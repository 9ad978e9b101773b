"""METEOR and CIDEr of captions through pycocoevalcap, and the small text work around them."""

import re
import shutil
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_CHARACTERS = 2000
"""The released script cuts captions and references here."""


def meteor(captions: Sequence[str], references: Sequence[str]) -> float:
    """METEOR of n captions with one reference each, after PTB tokenisation; both steps run Java.

    Raises ValueError for unequal or no input, RuntimeError with what to install where pycocoevalcap or Java lacks.
    """
    pairs = _pairs(captions, references)
    return _corpus_score(_module("meteor.meteor").Meteor(), pairs)


def cider(captions: Sequence[str], references: Sequence[str]) -> float:
    """CIDEr of n captions with one reference each, after PTB tokenisation (Java); document frequencies are those of
    the n references, so the score depends on the whole set. Raises as `meteor`."""
    pairs = _pairs(captions, references)
    return _corpus_score(_module("cider.cider").Cider(), pairs)


def clean_caption(text: str) -> str:
    """A model's answer without tags (`<p>`) and mask and box tokens: what is compared with the reference.

    The released script leaves [BOX] in, and the question where the chat format has no "ASSISTANT:"; give this the
    answer alone.
    """
    text = re.sub(r"<[^<>]*>|\[(?:SEG|BOX)(?::\d+)?\]", " ", text)
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split()))


def cosine_similarity(gt_phrases: ArrayLike, pred_phrases: ArrayLike) -> NDArray[np.float64]:
    """Embeddings [G, D] and [P, D] -> cosines [G, P], as `gcg_matches` needs them. Raises ValueError on bad shapes."""
    gt_gd, pred_pd = np.asarray(gt_phrases, np.float64), np.asarray(pred_phrases, np.float64)
    if gt_gd.ndim != 2 or pred_pd.ndim != 2 or gt_gd.shape[1] != pred_pd.shape[1]:
        raise ValueError(
            f"embeddings must be [G, D] and [P, D], got {gt_gd.shape} and {pred_pd.shape}"
        )
    lengths_gp = np.linalg.norm(gt_gd, axis=1)[:, None] * np.linalg.norm(pred_pd, axis=1)
    return gt_gd @ pred_pd.T / np.maximum(lengths_gp, np.finfo(np.float64).tiny)


def _pairs(captions: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    if (
        isinstance(captions, str)
        or isinstance(references, str)
        or not len(captions) == len(references) > 0
    ):
        raise ValueError(
            "captions and references: two lists of one length, at least 1, one reference per caption"
        )
    return [
        (c[:MAX_CHARACTERS], r[:MAX_CHARACTERS]) for c, r in zip(captions, references, strict=True)
    ]


def _module(name: str) -> ModuleType:
    import importlib

    try:
        module = importlib.import_module(f"pycocoevalcap.{name}")
    except ImportError as error:
        raise RuntimeError(
            f"METEOR and CIDEr need pycocoevalcap ({error}): pip install pycocoevalcap"
        ) from error
    if shutil.which("java") is None:
        raise RuntimeError(
            "METEOR and CIDEr need Java on PATH (Debian: apt-get install default-jre-headless)"
        )
    return module


def _corpus_score(scorer: object, pairs: list[tuple[str, str]]) -> float:
    tokenizer = _module("tokenizer.ptbtokenizer").PTBTokenizer()
    captions, references = (
        tokenizer.tokenize({str(n): [{"caption": pair[side]}] for n, pair in enumerate(pairs)})
        for side in (0, 1)
    )
    score, _ = scorer.compute_score(references, captions)  # type: ignore[attr-defined]
    return float(score)
