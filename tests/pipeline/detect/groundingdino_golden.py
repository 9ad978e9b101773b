"""Expected outputs of the official GroundingDINO, and our network with the same weights and pictures."""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.detect.groundingdino_model import ARCHITECTURES, GroundingDINO, build, normalised
from trackers.seeded import seed_module

LOGITS, BOXES = 5e-4, 2e-5
"""The golden vectors' own tolerances (README_hosts.md, section 3)."""


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

    def check(self, case: str, logits: torch.Tensor, boxes: torch.Tensor) -> None:
        """logits, boxes: [B, Q, L...] of the case."""
        self.check_logits(case, logits)
        wanted = self.arrays[f"{case}/pred_boxes_cxcywh"]
        np.testing.assert_allclose(boxes.numpy(), wanted, atol=BOXES, rtol=0)

    def check_logits(self, case: str, logits: torch.Tensor) -> None:
        wanted = self.arrays[f"{case}/pred_logits"]
        found = logits.numpy()[..., : wanted.shape[-1]]
        assert (np.isfinite(found) == np.isfinite(wanted)).all()
        assert not np.isfinite(logits.numpy()[..., wanted.shape[-1] :]).any()
        real = np.isfinite(wanted)
        np.testing.assert_allclose(found[real], wanted[real], atol=LOGITS, rtol=0)


def texture(name: str, height: int, width: int, cell: int) -> NDArray[np.uint8]:
    """Blocks of random colour and fine noise, from the CRC-32 of the name (golden README, section 1)."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    blocks = rng.integers(0, 256, (-(-height // cell), -(-width // cell), 3), dtype=np.int64)
    fine = rng.integers(0, 64, (height, width, 3), dtype=np.int64)
    large = blocks.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    return (large * 3 // 4 + fine).astype(np.uint8)


def make_golden_model(golden: Golden) -> GroundingDINO:
    """Swin-T with 100 queries and the golden vectors' small text encoder."""
    model = build(ARCHITECTURES["swint"] | {"num_queries": 100}, golden.folder / "text_encoder")
    keys = json.loads((golden.folder / "keys.json").read_text())
    assert set(model.net.state_dict()) == {key["name"] for key in keys}
    seed_module(model.net, "s0:", extra=True)
    return model


def package_forward(
    model: GroundingDINO, images: list[torch.Tensor], captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The package's own forward pass with its own order of the text masks: (logits, boxes)."""
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
    try:
        yield
    finally:
        for layer, before in zip(layers, hooks, strict=True):
            layer._forward_pre_hooks.update(before)
