"""Captions: cleaning, phrase similarity, and METEOR and CIDEr where pycocoevalcap is installed."""

import builtins
import shutil

import numpy as np
import pytest

from model.metrics import cider, clean_caption, cosine_similarity, meteor

CAPTIONS = [
    "a dog jumps over a fence",
    "two children play football on the grass",
    "a red car drives away",
]
OTHERS = ["a woman reads a book", "nobody is there", "rain falls on the roof of a house"]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (
            "<p> A dog </p> [SEG] jumps over <p> a fence </p> [BOX] [SEG].",
            "A dog jumps over a fence.",
        ),
        ("A [SEG:0] cat [BOX:12],\n asleep", "A cat, asleep"),
        ("no tokens", "no tokens"),
    ],
)
def test_tags_and_tokens_are_removed(raw, clean):
    assert clean_caption(raw) == clean


def test_cosines():
    gt, pred = np.array([[3.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [0.0, -1.0], [0.0, 0.0]])
    np.testing.assert_allclose(cosine_similarity(gt, pred), [[0.5**0.5, 0, 0], [0.5**0.5, -1, 0]])
    with pytest.raises(ValueError, match=r"\[G, D\]"):
        cosine_similarity(gt, pred[:, :1])


@pytest.mark.parametrize("measure", [meteor, cider])
def test_what_is_refused(measure):
    for captions, references in (([], []), (["a"], ["a", "b"]), ("a", "a")):
        with pytest.raises(ValueError, match="one reference per caption"):
            measure(captions, references)


@pytest.mark.parametrize("measure", [meteor, cider])
def test_a_missing_package_is_named(measure, monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name: real(f"absent_{name}"))
    with pytest.raises(RuntimeError, match="pip install pycocoevalcap"):
        measure(["a"], ["b"])


needs_java = pytest.mark.skipif(
    shutil.which("java") is None,
    reason="needs Java, which make setup does not install: these two have not run here",
)


@needs_java
def test_meteor_of_two_equal_captions_and_a_foreign_one():
    """One call: each starts Java and reads its table of paraphrases anew."""
    assert 0.4 < meteor([*CAPTIONS[:2], OTHERS[0]], CAPTIONS) < 0.8


@needs_java
def test_cider_of_equal_and_of_foreign_captions():
    assert cider(CAPTIONS, CAPTIONS) == pytest.approx(
        10
    )  # by definition, for captions of four words or more
    assert cider([*CAPTIONS[:2], OTHERS[0]], CAPTIONS) == pytest.approx(20 / 3, abs=0.1)
