"""The repaired network equals the official one (golden vectors), row by row, whoever shares the batch."""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("groundingdino", reason="the `full` extra is not installed")

from pipeline.detect.captions import normalise
from pipeline.detect.grounding_dino import GroundingDINOConfig
from pipeline.detect.groundingdino_model import (
    ARCHITECTURES,
    GroundingDINO,
    build,
    make_model,
    normalised,
)
from pipeline.detect.groundingdino_repairs import Float32Linear
from trackers.seeded import seed_module

CPU = torch.device("cpu")
CASES = [
    "period",
    "two_phrases",
    "inner_periods",
    "question",
    "unknown_words",
    "batch2_same_caption",
]
TEXT, LOGITS, BOXES = 1e-4, 5e-4, 2e-5  # tolerances of the golden vectors


class Golden:
    """Expected outputs of the official implementation, and the pictures they belong to."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.json = json.loads((folder / "groundingdino.json").read_text())
        self.arrays = np.load(folder / "groundingdino.npz")

    def picture(self, name: str) -> torch.Tensor:
        about = self.json["images"][name]
        image = texture(f"s0:{name}", about["height"], about["width"], about["cell"])
        assert zlib.crc32(image.tobytes()) == about["crc32"]
        return normalised(torch.from_numpy(image)[None])[0]

    def check(
        self, case: str, logits: torch.Tensor, boxes: torch.Tensor, row: int | None = None
    ) -> None:
        """logits, boxes: [B, Q, L...] of the case, or of its one row."""
        rows = slice(None) if row is None else slice(row, row + 1)
        wanted = self.arrays[f"{case}/pred_logits"][rows]
        found = logits.numpy()[..., : wanted.shape[-1]]
        assert (np.isfinite(found) == np.isfinite(wanted)).all()
        assert not np.isfinite(logits.numpy()[..., wanted.shape[-1] :]).any()
        real = np.isfinite(wanted)
        np.testing.assert_allclose(found[real], wanted[real], atol=LOGITS, rtol=0)
        np.testing.assert_allclose(
            boxes.numpy(), self.arrays[f"{case}/pred_boxes_cxcywh"][rows], atol=BOXES, rtol=0
        )


def texture(name: str, height: int, width: int, cell: int) -> NDArray[np.uint8]:
    """Blocks of random colour and fine noise, from the CRC-32 of the name (golden README, section 1)."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    blocks = rng.integers(0, 256, (-(-height // cell), -(-width // cell), 3), dtype=np.int64)
    fine = rng.integers(0, 64, (height, width, 3), dtype=np.int64)
    large = blocks.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    return (large * 3 // 4 + fine).astype(np.uint8)


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
    """Swin-T with 100 queries and the golden vectors' small text encoder."""
    model = build(ARCHITECTURES["swint"] | {"num_queries": 100}, golden.folder / "text_encoder")
    assert set(model.net.state_dict()) == {
        k["name"] for k in json.loads((golden.folder / "keys.json").read_text())
    }
    seed_module(model.net, "s0:", extra=True)
    return model


@pytest.fixture(scope="module")
def tiny() -> GroundingDINO:
    return make_model(GroundingDINOConfig.tiny(), CPU)


# --- equality with the official implementation -------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden_cases(case: str, model: GroundingDINO, golden: Golden):
    """Captions are padded to 16 tokens here, and not at all in the reference."""
    captions = golden.json["cases"][case]["captions"]
    image = golden.picture("groundingdino/imageA")
    hidden = []
    hook = model.net.bert.register_forward_hook(
        lambda _, __, out: hidden.append(out["last_hidden_state"])
    )
    out = model(image.expand(len(captions), -1, -1, -1), captions)
    hook.remove()
    golden.check(case, out.logits, out.boxes_cxcywh)
    length = golden.json["cases"][case]["text_length"]
    ids, known, blocks, positions = model.tokenizer.batch(out.texts)
    for name, tensor in (
        ("input_ids", ids),
        ("text_token_mask", known),
        ("position_ids", positions),
    ):
        assert (tensor[:, :length].numpy() == golden.arrays[f"{case}/{name}"]).all(), name
    assert (
        blocks[:, :length, :length].numpy() == golden.arrays[f"{case}/text_self_attention_mask"]
    ).all()
    np.testing.assert_allclose(
        hidden[0][:, :length], golden.arrays[f"{case}/bert_hidden"], atol=TEXT, rtol=0
    )


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


@pytest.mark.parametrize("case", ["batch2_same_image", "batch2_second_without_period"])
def test_with_the_reference_s_mask_order_its_batches_come_out(
    case: str, model: GroundingDINO, golden: Golden
):
    """So that order is the only difference. The package's own forward, text encoder and fusion replaced."""
    image = golden.picture("groundingdino/imageA")
    logits, boxes = package_forward(model, [image, image], golden.json["cases"][case]["captions"])
    golden.check(case, logits, boxes)


def test_two_sizes_in_the_package_s_own_forward(model: GroundingDINO, golden: Golden):
    """Padding is outside our forward; that the replaced parts respect its masks is seen here."""
    pictures = [golden.picture(f"groundingdino/image{x}") for x in "AB"]
    logits, boxes = package_forward(
        model, pictures, golden.json["cases"]["batch2_two_sizes"]["captions"]
    )
    golden.check("batch2_two_sizes", logits, boxes)


def package_forward(
    model: GroundingDINO, images: list[torch.Tensor], captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    from groundingdino.util.misc import nested_tensor_from_tensor_list

    with head_major(model), torch.inference_mode():
        out = model.net(nested_tensor_from_tensor_list(images), captions=captions)
    return out["pred_logits"], out["pred_boxes"]


@contextmanager
def head_major(model: GroundingDINO) -> Iterator[None]:
    """Without the repair of the mask order."""
    layers = model.net.transformer.encoder.text_layers
    hooks = [dict(layer._forward_pre_hooks) for layer in layers]
    for layer in layers:
        layer._forward_pre_hooks.clear()
    yield
    for layer, before in zip(layers, hooks, strict=True):
        layer._forward_pre_hooks.update(before)


def test_a_raw_caption_is_the_same_case(golden: Golden):
    about = golden.json["cases"]["no_period_raw"]
    assert (
        normalise(about["raw_captions"][0])
        == about["captions"][0]
        == golden.json["cases"]["period"]["captions"][0]
    )
    for name in ("pred_logits", "pred_boxes_cxcywh"):
        assert (golden.arrays[f"no_period_raw/{name}"] == golden.arrays[f"period/{name}"]).all()


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


def test_bfloat16_is_close_and_keeps_places_in_float32(model: GroundingDINO, golden: Golden):
    image, caption = golden.picture("groundingdino/imageA")[None, :, :160, :192], ["a man in red."]
    exact = model(image, caption)
    dtypes = set()
    hooks = [
        m.register_forward_hook(lambda _, __, out: dtypes.add(out.dtype))
        for m in model.net.modules()
        if isinstance(m, Float32Linear)
    ]
    model.dtype = torch.bfloat16
    rounded = model(image, caption)
    model.dtype = torch.float32
    for hook in hooks:
        hook.remove()
    assert len(hooks) == 18  # 6 + 6 offsets, 2 x 3 layers of box heads
    assert dtypes == {rounded.logits.dtype, rounded.boxes_cxcywh.dtype} == {torch.float32}
    assert rounded.boxes_cxcywh.isfinite().all()
    assert rounded.logits[..., :7].isfinite().all()
    # a few proposals change places at the cut, so queries are compared with those that found the same place
    distance = torch.cdist(exact.boxes_cxcywh[0], rounded.boxes_cxcywh[0], p=1)
    logits = rounded.logits[0, distance.argmin(1), :7]
    assert np.corrcoef(exact.logits[0, :, :7].ravel(), logits.ravel())[0, 1] > 0.98
    assert distance.min(1).values.median() < 0.03


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
