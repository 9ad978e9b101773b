"""UniPixel's pictures and words, before its weights (`spec/hosts.md` section 1.2)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from model.hosts.inputs import IMAGE, TSF, Frames, HostInputs
from schemas.config import Config

START, END, VISION, VISION_END = "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"
SEG, VIDEO = "<|seg|>", "<|video_pad|>"
PATCH, CELL, PAIR = 14, 28, 2
"""Pixels of a patch and of a token's cell (2 x 2 patches) on a side; frames of a token."""


class UniPixelConfig(Config):
    """Sizes; the defaults are UniPixel-3B's.

    vit_full: blocks of the vision transformer that see a whole frame pair; the others see windows of `vit_window`
    pixels. frames: sampled from a video. min_tokens, max_tokens: of a frame pair; fewer frames may have more each.
    crop_size: side in pixels of a TSF crop; ours, 576 patches as the paper's CLIP has.
    region_order: which rows of the vision transformer a region mask picks. It gives rows window by window.
    "window" takes them for raster order, as the reference does and the released weights have learned; "raster" picks
    what lies under the mask. tokenizer: comes with a checkpoint, or speaks bytes.
    """

    vocab: int = 151936
    llm_dim: int = 2048
    llm_layers: int = 36
    llm_heads: int = 16
    llm_kv_heads: int = 2
    llm_mlp: int = 11008
    rope_section: tuple[int, int, int] = (16, 24, 24)
    """Frequencies of a head that turn with time, height and width."""
    max_len: int = 128000
    vit_dim: int = 1280
    vit_layers: int = 32
    vit_heads: int = 16
    vit_mlp: int = 3420
    vit_window: int = 112
    vit_full: tuple[int, ...] = (7, 15, 23, 31)
    frames: int = 16
    min_tokens: int = 128
    max_tokens: int = 256
    crop_size: int = Field(default=336, multiple_of=CELL)
    region_order: Literal["window", "raster"] = "window"
    sam: str = "2.1-b+"
    sam_size: int = 768
    tokenizer: Literal["checkpoint", "bytes"] = "checkpoint"


class UniPixelInputs(HostInputs):
    """{"patches": [t * h * w, 1176], "grid": [1, 3] (t, h, w)}: frame pairs, rows and columns of patches."""

    config: UniPixelConfig

    template = "Please segment the {phrase} in this video."
    answer = "The segmentation result is {seg}."

    def prepare(self, frames: Frames) -> dict[str, Tensor]:
        """[T, H, W, 3] uint8 RGB -> {"patches": [t * h * w, 1176], "grid": [1, 3]}, float32 and int64 on the CPU.

        16 frames evenly from the first to the last; a shorter video as it is, the last frame again if their number is
        odd. Resized (bicubic) to multiples of 28 px with 128 to 256 cells of 28 x 28 per frame, aspect ratio kept as
        well as that goes: 480 x 854 -> 308 x 588. n < 16 frames may have int(16 / n) times as many cells. OpenAI CLIP
        statistics. ValueError for other shapes.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype != np.uint8:
            raise ValueError(
                f"frames must be [T, H, W, 3] uint8, not {list(frames.shape)} {frames.dtype}"
            )
        chosen = frames[sample_frames(len(frames), self.config.frames)]
        height, width = self._size(frames.shape[1], frames.shape[2], len(chosen))
        return patchify(np.stack([_resized(frame, height, width) for frame in chosen]))

    def _size(self, height: int, width: int, count: int) -> tuple[int, int]:
        """Height and width that `count` frames are resized to. ValueError for pictures 200 times as long as wide."""
        config = self.config
        most = config.max_tokens * (config.frames // count)
        least = config.min_tokens * CELL**2
        return smart_resize(height, width, CELL, least, most * CELL**2)

    def visual_count(self, height: int, width: int, frames: int, images: int) -> int:
        """A token for each cell of a frame pair."""
        count = min(frames, self.config.frames)
        height, width = self._size(height, width, count)
        pairs = -(-count // PAIR)
        return images * pairs * (height // CELL) * (width // CELL)

    def crop_pixels(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """n pictures [h, w, 3] -> [n, 576, 1176]: patches of each, stretched to 336 x 336 and shown as a frame pair."""
        side = self.config.crop_size
        seen = [patchify(_resized(crop, side, side)[None])["patches"] for crop in crops]
        if not seen:
            return torch.empty(0, (side // PATCH) ** 2, 3 * PAIR * PATCH**2)
        return torch.stack(seen)

    def question(self, phrase: str) -> str:
        """The evaluation script's request: final periods, a capital and a leading article are dropped."""
        phrase = phrase.strip().strip(".")
        phrase = phrase[:1].lower() + phrase[1:]
        for article in ("the ", "an ", "a "):
            phrase = phrase.removeprefix(article)
        return self.template.format(phrase=phrase)

    def conversation(
        self, question: str, answer: str | None = None, tsf: int = 0, *, at: int | None = None
    ) -> tuple[list[int], int]:
        """ChatML with Qwen's system line; the video (between its start and end tokens) right before the question.

        ValueError if there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                "unipixel has no tokenizer: load a checkpoint folder with one, or set host.tokenizer"
            )
        before, after = (question, "") if at is None or not tsf else (question[:at], question[at:])
        own_line = "\n" if tsf and at is None else ""
        ids = [
            *self._ids(f"{START}system\nYou are a helpful assistant.{END}\n{START}user\n{VISION}"),
            IMAGE,
            *self._ids(f"{VISION_END}{before}{own_line}"),
            *[TSF] * tsf,
            *self._ids(f"{after}{END}\n{START}assistant\n"),
        ]
        return (ids, len(ids)) if answer is None else (ids + self._ids(answer + END), len(ids))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def sample_frames(total: int, wanted: int) -> NDArray[np.int64]:
    """Indices of `wanted` frames, evenly and with both ends; of all frames if there are no more."""
    if total <= wanted:
        return np.arange(total)
    return np.linspace(0, total - 1, wanted).round().astype(np.int64)


def _resized(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def patchify(frames_thwc: NDArray[np.uint8]) -> dict[str, Tensor]:
    """[T, H, W, 3] RGB, multiples of 28 px -> {"patches": [t * h * w, 1176], "grid": [1, 3]}: Qwen2-VL's layout.

    A row is (channel, frame of the pair, y, x) of a patch; the four patches of a cell follow each other. An odd number
    of frames repeats the last one.
    """
    if len(frames_thwc) % PAIR:
        frames_thwc = np.concatenate([frames_thwc, frames_thwc[-1:]])
    time, height, width, _ = frames_thwc.shape
    t, h, w = time // PAIR, height // CELL, width // CELL
    mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    pixels = (torch.from_numpy(frames_thwc).float() / 255 - mean) / std
    cells = pixels.reshape(t, PAIR, h, 2, PATCH, w, 2, PATCH, 3).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return {"patches": cells.reshape(4 * t * h * w, -1), "grid": torch.tensor([[t, 2 * h, 2 * w]])}
