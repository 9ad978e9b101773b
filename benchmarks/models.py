"""GroundingDINO, CLIP and SAM2 at their batch sizes, against one picture at a time.

Paper (Table 7, A100): GroundingDINO 90 ms per image, CLIP ViT-L/14@336 2 ms per crop. SAM2 is not in its table; its own
README gives 25.3 ms per frame for 2.1-L, compiled. Uploads of the pictures are part of every figure.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Row, Setting, flops, matmul_ceiling, moving_clip, seconds
from pipeline.detect.grounding_dino import GroundingDINOConfig, resized
from pipeline.encode.clip import CLIPConfig
from pipeline.segment.sam2 import SAM2Config

CAPTION = "a textured block that moves to the right."


def run(setting: Setting) -> Iterator[Row]:
    for measure in (grounding_dino, clip, sam2):
        yield from measure(setting)
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def _at_batches(
    setting: Setting,
    what: str,
    unit: str,
    batches: tuple[int, ...],
    call: Callable[[int], Callable[[], Any]],
) -> Iterator[Row]:
    """A row per batch size; the first is the baseline. call(n) -> a function that does n pictures."""
    ceiling = matmul_ceiling(setting.device, setting.dtype, setting.quick)
    with torch.inference_mode():
        work, single = flops(call(1)), 0.0
        for n in batches:
            one = seconds(call(n), setting.device, repeat=1 if _slow(setting) else 7) / n
            single = single or one
            rate = work / one / 1e12
            first = n == batches[0]
            baseline, ratio = ("", None) if first else ("batch 1", single / one)
            note = f"{work / 1e9:.0f} GFLOP" if first else ""
            yield Row(
                f"{what}, batch {n}", one * 1e3, unit, baseline, ratio, rate, rate / ceiling, note
            )


def _name(setting: Setting) -> Any:
    return str(setting.dtype).removeprefix("torch.")


def grounding_dino(setting: Setting) -> Iterator[Row]:
    """Short side 800 of 640x360: 1333 x 750 pixels."""
    from pipeline.detect.groundingdino_model import make_model, normalised

    full = GroundingDINOConfig(weights="seeded:s0:", dtype=_name(setting))
    config = GroundingDINOConfig.tiny() if setting.quick else full
    model = make_model(config, setting.device)
    picture = resized(moving_clip(1)[0], config.short_side, config.long_side)

    def call(n: int) -> Callable[[], Any]:
        pictures = np.stack([picture] * n)
        return lambda: model(
            normalised(torch.from_numpy(pictures).to(setting.device)), [CAPTION] * n
        )

    yield from _at_batches(
        setting, "GroundingDINO", "ms/image", (1, 4, 8) if not _slow(setting) else (1, 2), call
    )


def clip(setting: Setting) -> Iterator[Row]:
    from pipeline.encode.clip import hidden_tokens, make_tower, prepare

    full = CLIPConfig(weights="seeded:s0:", dtype=_name(setting))
    config = CLIPConfig.tiny() if setting.quick else full
    tower, side = make_tower(config, setting.device), 56 if setting.quick else 336
    crops = [moving_clip(1, 90 + i % 7, 80 + i % 11)[0] for i in range(128)]

    def call(n: int) -> Callable[[], Any]:
        def encode() -> None:
            with torch.autocast(
                setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32
            ):
                images = torch.stack([prepare(crop, side, setting.device) for crop in crops[:n]])
                hidden_tokens(tower, images, config.layer).float().mean(1)

        return encode

    yield from _at_batches(
        setting, "CLIP", "ms/crop", (1, 16, 64, 128) if not _slow(setting) else (1, 8), call
    )


def sam2(setting: Setting) -> Iterator[Row]:
    """Image mode: encoder, box prompt, mask at the size of the frame as 0 and 1 on the host."""
    from pipeline.segment.sam2_model import boxes_to_masks, make_sam2, prepare, to_frame

    full = SAM2Config(weights="seeded:s0:", dtype=_name(setting))
    config = SAM2Config.tiny() if setting.quick else full
    model: Any = make_sam2(config, setting.device, False)
    frames = moving_clip(16)
    box = torch.tensor([[200.0, 120, 290, 200]], device=setting.device)

    def call(n: int) -> Callable[[], Any]:
        def segment() -> None:
            with torch.autocast(
                setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32
            ):
                images = torch.stack(
                    [prepare(frame, model.image_size, setting.device) for frame in frames[:n]]
                )
                logits, _, _ = boxes_to_masks(model, images, box.expand(n, 4))
                for i in range(n):
                    to_frame(logits[i, 0], *frames.shape[1:3])

        return segment

    yield from _at_batches(
        setting,
        "SAM2, image mode",
        "ms/frame",
        (1, 4, 8, 16) if not _slow(setting) else (1, 2),
        call,
    )


def _slow(setting: Setting) -> bool:
    """Full models on a CPU take seconds per picture: few of them."""
    return setting.device.type == "cpu" and not setting.quick
