"""The detector stage: what goes into the network, what is taken from its answer, and who may ask at once."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

pytest.importorskip("groundingdino", reason="the `full` extra is not installed")

from pipeline.detect.annotation import key_frames
from pipeline.detect.grounding_dino import (
    GroundingDINOConfig,
    GroundingDINODetector,
    Item,
    candidates,
    resized,
)
from pipeline.detect.groundingdino_model import make_model, normalised
from schemas.geometry import from_xywh, iou
from schemas.records import Annotation, Quarantined, Reason
from tests.made import moving_square
from trackers.batching import memory_events
from trackers.runtime import CheckpointError

H, W = 96, 160


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    """One thread: small tensors, and other tests use the other cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARROW_DEVICE", "cpu")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def detector() -> GroundingDINODetector:
    return GroundingDINODetector(GroundingDINOConfig.tiny())


@pytest.fixture(scope="module")
def clip() -> tuple[NDArray[np.uint8], Annotation]:
    frames, boxes = moving_square(0, 20)
    return frames, Annotation(from_xywh(boxes), np.ones(20, bool))


# --- into the network ---------------------------------------------------------------------------------------------

SIZES = [
    (480, 854),
    (360, 640),
    (1080, 1920),
    (97, 331),
    (333, 100),
    (800, 800),
    (801, 1333),
    (800, 1333),
    (50, 1000),
    (1000, 47),
    (599, 1000),
    (600, 1000),
    (720, 405),
    (256, 320),
]


@pytest.mark.parametrize("size", SIZES)
def test_the_picture_equals_the_package_s(size: tuple[int, int]):
    """Every value, also at sizes where the long side decides or a side is truncated."""
    from groundingdino.datasets.transforms import Compose, Normalize, RandomResize, ToTensor

    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs, _ = Compose(
        [
            RandomResize([800], max_size=1333),
            ToTensor(),
            Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(Image.fromarray(frame), None)
    ours = normalised(torch.from_numpy(resized(frame, 800, 1333))[None])[0]
    assert torch.equal(ours, theirs)


# --- out of the network -------------------------------------------------------------------------------------------


def test_boxes_scores_and_names_equal_predict(detector: GroundingDINODetector, clip):
    """groundingdino.util.inference.predict, on the same network and picture; thresholds that divide its answers."""
    frame, caption = clip[0][3], "a man in red."
    model = make_model(detector.config, torch.device("cpu"))
    image = normalised(torch.from_numpy(resized(frame, 160, 256))[None])
    out = model(image, [caption])
    text = out.texts[0]
    found = candidates(out.logits[0].sigmoid().numpy(), out.boxes_cxcywh[0].numpy(), text, H, W)
    box_threshold, text_threshold = (
        float(np.median(found.highest)),
        float(np.quantile(found.probabilities, 0.7)),
    )
    kept = np.flatnonzero(found.highest > box_threshold)

    from groundingdino.util.inference import predict

    boxes, scores, phrases = predict(
        model.net, image[0], caption, box_threshold, text_threshold, device="cpu"
    )
    assert len(boxes) == len(kept) == 10
    np.testing.assert_allclose(found.highest[kept], scores, atol=1e-5)
    cx, cy, w, h = (boxes.numpy() * np.array([W, H, W, H])).T
    theirs = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1).clip(0, [W, H, W, H])
    np.testing.assert_allclose(found.boxes[kept], theirs, atol=1e-3)
    names = [
        model.tokenizer.phrase(text, found.probabilities[q].tolist(), text_threshold) for q in kept
    ]
    assert names == phrases
    assert len(set(phrases)) > 1


Query = tuple[list[float], dict[str, float]]
"""A box xyxy and the probabilities of words; every other token gets 0.01."""


def scripted(
    monkeypatch: pytest.MonkeyPatch, answers: list[list[Query]], **changes
) -> GroundingDINODetector:
    """A detector whose network gives these queries, one list per picture, in the order of the pictures."""
    config = GroundingDINOConfig(
        weights="seeded:s0:", architecture="tiny", batch=8, dtype="float32", **changes
    )
    detector = GroundingDINODetector(config)
    model = make_model(GroundingDINOConfig.tiny(), torch.device("cpu"))

    def run(items: list[Item]) -> list:
        out = []
        for (_, caption), queries in zip(items, answers, strict=True):
            text = model.tokenizer(caption)
            probabilities = np.full((len(queries), text.bucket), 0.01, np.float32)
            boxes = np.zeros((len(queries), 4), np.float32)
            for q, ((x1, y1, x2, y2), words) in enumerate(queries):
                boxes[q] = (x1 + x2) / 2 / W, (y1 + y2) / 2 / H, (x2 - x1) / W, (y2 - y1) / H
                for word, p in words.items():
                    start = caption.index(word)
                    probabilities[q, text.tokens((start, start + len(word)))] = p
            out.append((probabilities, boxes))
        return out

    monkeypatch.setattr(detector, "_model", model)
    monkeypatch.setattr(detector._batcher, "run", run)
    return detector


MAN, CAR, OTHER = [10, 10, 40, 80], [80, 20, 150, 90], [50, 10, 75, 80]


def test_the_head_noun_decides_not_the_context(monkeypatch, clip):
    queries: list[Query] = [
        (CAR, {"car": 0.95, "man": 0.30}),
        (MAN, {"man": 0.60, "car": 0.1}),
        (OTHER, {"man": 0.45}),
    ]
    detector = scripted(monkeypatch, [queries])
    found = detector.detect(*clip_and("the man next to a car", clip))
    np.testing.assert_allclose(found.box, MAN, atol=1e-4)
    assert (found.detector, found.text_used) == ("groundingdino", True)
    assert found.score == pytest.approx(0.60)
    assert found.margin == pytest.approx(0.15)
    assert found.box.dtype == np.float32


def clip_and(caption: str, clip) -> tuple:
    return clip[0], caption, clip[1]


def test_an_unsure_head_noun_leaves_it_to_all_tokens(monkeypatch, clip):
    detector = scripted(monkeypatch, [[(CAR, {"left": 0.7}), (MAN, {"one": 0.6})]])
    np.testing.assert_allclose(detector.detect(*clip_and("the left one", clip)).box, CAR, atol=1e-4)


def test_the_margin_ignores_boxes_on_the_same_thing(monkeypatch, clip):
    detector = scripted(monkeypatch, [[(MAN, {"man": 0.8}), ([11, 10, 41, 81], {"man": 0.79})]])
    assert detector.detect(*clip_and("a man", clip)).margin == pytest.approx(0.8)


def test_the_best_of_several_key_frames(monkeypatch, clip):
    answers: list[list[Query]] = [[(MAN, {"man": p})] for p in (0.5, 0.9, 0.7)]
    detector = scripted(monkeypatch, answers)
    found = detector.detect(*clip_and("a man", clip), key_frames=3)
    assert (found.frame, found.score) == (key_frames(clip[1], 3)[1], pytest.approx(0.9))


@pytest.mark.parametrize(
    ("words", "origin"),
    [
        ({"man": 0.36}, "groundingdino"),
        (
            {"man": 0.26, "red": 0.5},
            "groundingdino",
        ),  # the package keeps the box, and calls it "man red"
        (
            {"man": 0.24, "red": 0.5},
            "groundingdino-fallback",
        ),  # it keeps the box, and calls it "red"
        ({"man": 0.30}, "groundingdino-fallback"),
        ({"man": 0.19, "red": 0.5}, None),
    ],
)
def test_thresholds_and_the_fallback(monkeypatch, clip, words, origin):
    detector = scripted(monkeypatch, [[(MAN, words)]])
    if origin is not None:
        assert detector.detect(*clip_and("man in red", clip)).detector == origin
        return
    with pytest.raises(Quarantined, match=r"the best scores 0.19 \('red'\)") as caught:
        detector.detect(*clip_and("man in red", clip))
    assert (caught.value.reason, caught.value.stage) == (Reason.NO_DETECTION, "detect")


def test_without_a_fallback_there_is_no_second_chance(monkeypatch, clip):
    detector = scripted(monkeypatch, [[(MAN, {"man": 0.30})]], fallback_threshold=None)
    with pytest.raises(Quarantined, match="no box is good enough"):
        detector.detect(*clip_and("man in red", clip))


def test_finding_again_needs_the_full_thresholds(monkeypatch, clip):
    assert scripted(monkeypatch, [[(MAN, {"man": 0.30})]]).find(clip[0][0], "a man") is None
    found = scripted(monkeypatch, [[(MAN, {"man": 0.40})]]).find(clip[0][0], "a man")
    assert found is not None
    np.testing.assert_allclose(found[0], MAN, atol=1e-4)
    assert found[1] == pytest.approx(0.40)


def test_boxes_end_at_the_frame_and_none_lies_outside(monkeypatch, clip):
    queries: list[Query] = [([-20, -30, -5, -1], {"man": 0.9}), ([-10, 50, 60, 120], {"man": 0.8})]
    found = scripted(monkeypatch, [queries]).detect(*clip_and("a man", clip))
    np.testing.assert_allclose(found.box, [0, 50, 60, H], atol=1e-4)
    with pytest.raises(Quarantined, match="no box inside"):
        scripted(monkeypatch, [queries[:1]]).detect(*clip_and("a man", clip))


@pytest.mark.parametrize(
    ("caption", "reason"),
    [("?!", Reason.ANNOTATION_INVALID), ("red " * 300 + "car", Reason.TOO_LARGE)],
)
def test_expressions_that_cannot_be_read(detector, clip, caption, reason):
    with pytest.raises(Quarantined) as caught:
        detector.detect(*clip_and(caption, clip))
    assert (caught.value.reason, caught.value.stage) == (reason, "detect")


def test_no_visible_frame_is_no_target(detector, clip):
    nothing = Annotation(np.full((20, 4), np.nan, np.float32), np.ones(20, bool))
    with pytest.raises(Quarantined) as caught:
        detector.detect(clip[0], "a man", nothing)
    assert caught.value.reason == Reason.NO_TARGET


# --- the whole stage, name-seeded ---------------------------------------------------------------------------------


def test_the_tiny_detector_gives_a_box_and_says_what_it_is(detector, clip):
    found = detector.detect(*clip_and("the square moves to the right", clip), key_frames=2)
    assert detector.version == "1+seeded"
    assert found.frame in key_frames(clip[1], 2)
    assert (found.box[2:] > found.box[:2]).all()
    assert (found.box >= 0).all()
    assert (found.box <= [W, H, W, H]).all()
    assert iou(found.box, found.box) == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_share_batches_and_get_the_same_results(batch: int, clip):
    """Other captions in the batch, other lengths, other order. Same bytes at batch 1; else a row's place in the batch
    may show in the last digits."""
    frames, annotation = clip
    detector = GroundingDINODetector(GroundingDINOConfig.tiny().model_copy(update={"batch": batch}))
    captions = [
        "a man",
        "the square on the left",
        "cat.",
        "a dog, running",
        "the red car of the man",
        "two birds",
    ] * 2
    serial = [detector.detect(frames, caption, annotation, 2) for caption in captions]
    with ThreadPoolExecutor(6) as pool:
        parallel = list(
            pool.map(lambda caption: detector.detect(frames, caption, annotation, 2), captions)
        )
    for a, b in zip(serial, parallel, strict=True):
        assert a.frame == b.frame
        assert (a.score, a.margin) == pytest.approx(
            (b.score, b.margin), abs=0 if batch == 1 else 1e-5
        )
        np.testing.assert_allclose(a.box, b.box, rtol=0, atol=0 if batch == 1 else 1e-3)


def test_out_of_memory_halves_the_batch_and_goes_on(clip, monkeypatch):
    frames, annotation = clip
    detector = GroundingDINODetector(GroundingDINOConfig.tiny().model_copy(update={"batch": 4}))
    model, sizes = detector._load(), []
    forward = model.forward

    def small(images: torch.Tensor, captions: list[str]):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("too much")
        return forward(images, captions)

    monkeypatch.setattr(model, "forward", small)
    with memory_events() as events:
        detector.detect(frames, "a man", annotation, key_frames=3)
    assert sizes == [4, 2, 2]
    assert {(e.model, e.batch) for e in events} == {("groundingdino", 2)}


# --- configuration ------------------------------------------------------------------------------------------------


def test_missing_files_are_one_error_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"swint_ogc.pth is not there[\s\S]*bert-base-uncased is not there"
    ):
        GroundingDINODetector()
    (tmp_path / "groundingdino_swint_ogc.pth").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"text encoder: .*bert-base-uncased is not there"):
        GroundingDINODetector()
    (tmp_path / "bert-base-uncased").mkdir()
    with pytest.raises(CheckpointError, match=r"config.json and vocab.txt"):
        GroundingDINODetector()
    (tmp_path / "bert-base-uncased" / "config.json").write_text("{}")
    (tmp_path / "bert-base-uncased" / "vocab.txt").write_text("")
    detector = GroundingDINODetector()  # no model is built: the weights are not even readable
    version = detector.version
    assert re.fullmatch(r"1\+[0-9a-f]{12}\+[0-9a-f]{6}-[0-9a-f]{6}", version)
    (tmp_path / "bert-base-uncased" / "vocab.txt").write_text("another")
    assert GroundingDINODetector().version != version
    with pytest.raises(CheckpointError, match=r"text encoder|cannot be read"):
        detector.load()


def test_the_tiny_architecture_has_no_checkpoint():
    with pytest.raises(ValidationError, match="architecture tiny has no checkpoint"):
        GroundingDINOConfig(architecture="tiny")


def test_the_paper_s_values_are_the_defaults():
    config = GroundingDINOConfig()
    assert (config.box_threshold, config.text_threshold, config.short_side, config.long_side) == (
        0.35,
        0.25,
        800,
        1333,
    )
