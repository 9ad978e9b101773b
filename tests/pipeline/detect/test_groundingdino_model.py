"""The repaired network row by row, whoever shares the batch; its phrases; what it refuses."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("groundingdino", reason="the `full` extra is not installed")

from pipeline.detect.grounding_dino import GroundingDINOConfig
from pipeline.detect.groundingdino_model import GroundingDINO, make_model, normalised
from tests.pipeline.detect.groundingdino_golden import Golden, make_golden_model, texture

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread gains little, and waits long where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "golden" / "groundingdino")


@pytest.fixture(scope="module")
def model(golden: Golden) -> GroundingDINO:
    return make_golden_model(golden)


@pytest.fixture(scope="module")
def tiny() -> GroundingDINO:
    return make_model(GroundingDINOConfig.tiny(), CPU)


# --- equality with the official implementation -------------------------------------------------------------------


def test_rows_of_a_batch_equal_the_single_captions(model: GroundingDINO, golden: Golden):
    """Not the reference's own batch, in which captions get each other's masks (logits off by up to 4)."""
    captions = golden.json["cases"]["batch2_same_image"]["captions"]
    image = golden.picture("groundingdino/imageA")
    out = model(image.expand(2, -1, -1, -1), captions)
    assert captions == [golden.json["cases"][c]["captions"][0] for c in ("two_phrases", "period")]
    golden.check("two_phrases", out.logits[:1], out.boxes_cxcywh[:1])
    golden.check("period", out.logits[1:], out.boxes_cxcywh[1:])
    off = out.logits[1, :, :7].numpy() - golden.arrays["batch2_same_image/pred_logits"][1, :, :7]
    assert np.abs(off).max() > 1


PHRASES = ["period", "two_phrases", "inner_periods", "question", "unknown_words"]


@pytest.mark.parametrize("case", PHRASES)
def test_phrases(case: str, model: GroundingDINO, golden: Golden):
    """Kept queries, scores and names at each pair of thresholds. The reference raises in none of these cases."""
    about = golden.json["cases"][case]
    text = model.tokenizer(about["captions"][0])
    probabilities = torch.from_numpy(golden.arrays[f"{case}/pred_logits"][0]).sigmoid()
    for key, wanted in about["phrases"].items():
        _, box_threshold, text_threshold = map(float, key.split("/"))
        kept = [q for q, p in enumerate(probabilities) if p.max() > box_threshold]
        assert kept == wanted["kept"]
        assert wanted["error"] is None
        np.testing.assert_allclose(
            [probabilities[q].max() for q in kept], wanted["score"], atol=1e-6
        )
        assert [
            model.tokenizer.phrase(text, probabilities[q].tolist(), text_threshold) for q in kept
        ] == wanted["phrases"]


# --- our own promises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_change_no_byte_of_a_row(dtype: torch.dtype, tiny: GroundingDINO):
    rng = torch.Generator().manual_seed(0)
    image, other, third = torch.randn(3, 3, 96, 128, generator=rng).mul(2).unbind()
    tiny.dtype = dtype
    a = tiny(torch.stack([image, other]), ["the dog.", "a man in red, on the left."])
    b = tiny(torch.stack([image, third * 5]), ["the dog.", "cat."])
    tiny.dtype = torch.float32
    assert torch.equal(a.logits[0], b.logits[0])
    assert torch.equal(a.boxes_cxcywh[0], b.boxes_cxcywh[0])


def test_padding_to_a_longer_bucket_changes_next_to_nothing(tiny: GroundingDINO):
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    alone = tiny(image, ["the dog."])
    beside = tiny(image.expand(2, -1, -1, -1), ["the dog.", "the dog " * 30 + "."])
    assert (alone.logits.shape[-1], beside.logits.shape[-1]) == (16, 64)
    torch.testing.assert_close(alone.logits[0, :, :16], beside.logits[0, :, :16], atol=1e-4, rtol=0)
    torch.testing.assert_close(alone.boxes_cxcywh[0], beside.boxes_cxcywh[0], atol=1e-5, rtol=0)


def test_a_caption_has_a_period_and_at_most_256_tokens(tiny: GroundingDINO):
    with pytest.raises(ValueError, match="does not end in a period"):
        tiny.tokenizer("a man")
    with pytest.raises(ValueError, match="303 tokens"):
        tiny.tokenizer("dog " * 300 + ".")
    assert tiny.tokenizer("dog " * 253 + ".").bucket == 256


def test_normalisation_equals_the_package_s():
    from groundingdino.datasets.transforms import Compose, Normalize, ToTensor

    image = texture("any", 45, 67, 8)
    theirs, _ = Compose([ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])(
        image, None
    )
    assert torch.equal(normalised(torch.from_numpy(image)[None])[0], theirs)
