"""VideoGLaMM's pictures and words, before its weights (`spec/hosts.md` section 1.1)."""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import sam
from model.hosts import clip
from model.hosts.inputs import IMAGE, TSF, Frames, HostInputs
from model.hosts.internvideo2 import InternVideo2Config
from schemas.config import Config

SYSTEM = "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n"
ASSISTANT = "<|end|>\n<|assistant|>\n"
END = "<|end|>"
PATCH = 14
"""Pixels of a patch of either tower on a side."""


class VideoGLaMMConfig(Config):
    """Sizes; the defaults are the released model's.

    vocab: rows of the embedding table. The release shrinks Phi-3's 32064 to its tokenizer's 32011 plus [SEG].
    sliding_window: positions that a token attends to, itself included. Phi-3's config says 2047 and meant one more
    under the transformers it was trained with: 2048 here gives the same numbers (`spec/hosts.md` section 9).
    frames: sampled from a video for both towers. tokenizer: comes with a checkpoint, or speaks bytes.
    """

    vocab: int = 32012
    llm_dim: int = 3072
    llm_layers: int = 32
    llm_heads: int = 32
    llm_mlp: int = 8192
    max_len: int = 4096
    sliding_window: int = 2048
    clip_dim: int = 1024
    clip_layers: int = 24
    clip_heads: int = 16
    clip_mlp: int = 4096
    clip_size: int = 336
    video: InternVideo2Config = InternVideo2Config()
    video_text: int = 512
    """Width of InternVideo2's projection to its text space: in checkpoints and counts, never run."""
    frames: int = 16
    sam: str = "2.0-l"
    sam_size: int = 1024
    tokenizer: Literal["checkpoint", "bytes"] = "checkpoint"


class VideoGLaMMInputs(HostInputs):
    """{"image": [16, 3, 336, 336], "video": [16, 3, 224, 224]} of a video, {"image": [1, ...]} of a picture."""

    config: VideoGLaMMConfig

    template = "What is {phrase} in this video? Please respond with segmentation masks."
    answer = "Sure, it is {seg}."

    def prepare(self, frames: Frames) -> dict[str, Tensor]:
        """[T, H, W, 3] uint8 RGB -> {"image": [16, 3, 336, 336], "video": [16, 3, 224, 224]}; one frame is a picture.

        16 frames evenly from the first to the last (rounded down); a shorter video repeats its last frame. CLIP sees
        the middle square, InternVideo2 the whole frame stretched (bilinear, ImageNet statistics): `spec/hosts.md`
        section 1.1. float32 on the CPU. ValueError for other shapes.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype != np.uint8:
            raise ValueError(
                f"frames must be [T, H, W, 3] uint8, not {list(frames.shape)} {frames.dtype}"
            )
        if len(frames) == 1:
            return {"image": clip.centre_crops(frames, self.config.clip_size)}
        wanted = sample_frames(len(frames), self.config.frames)
        distinct, places = np.unique(wanted, return_inverse=True)  # each picture is resized once
        chosen = frames[distinct]
        side = self.config.video.image_size
        small = np.stack([cv2.resize(frame, (side, side)) for frame in chosen])
        mean, std = (torch.tensor(values)[:, None, None] for values in (sam.MEAN, sam.STD))
        video = (torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255 - mean) / std
        image = clip.centre_crops(chosen, self.config.clip_size)
        return {"image": image[places], "video": video[places]}

    def visual_count(self, height: int, width: int, frames: int, images: int) -> int:
        """A quarter of both towers' patches for each frame of a video, all of CLIP's patches for a picture."""
        spatial = (self.config.clip_size // PATCH) ** 2
        if frames == 1:
            return images * spatial
        temporal = (self.config.video.image_size // PATCH) ** 2
        return images * self.config.frames * (spatial // 4 + temporal // 4)

    def crop_pixels(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """n pictures [h, w, 3] -> [n, 3, 336, 336]. Stretched to the square, as in curation (`pipeline.encode.clip`)."""
        return clip.whole_crops(crops, self.config.clip_size)

    def question(self, phrase: str) -> str:
        """The evaluation scripts' request: lower case, without a final period."""
        return self.template.format(phrase=phrase.strip().removesuffix(".").lower())

    def conversation(
        self, question: str, answer: str | None = None, tsf: int = 0, *, at: int | None = None
    ) -> tuple[list[int], int]:
        """Phi-3's turns: system, user (visual block, question, TSF slots: a line each), assistant.

        The release repeats its visual placeholder 16 times and replaces the run by one block; here it is one IMAGE.
        Prompt and answer become ids separately, so that a trained and a generated answer follow the same prompt.
        ValueError if there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                "videoglamm has no tokenizer: load a checkpoint folder with one, or set host.tokenizer"
            )
        ids = [*self._ids(SYSTEM, first=True), IMAGE]
        if tsf and at is not None:
            ids += self._ids(f"\n{question[:at]}") + [TSF] * tsf
            ids += self._ids(f"{question[at:]}{ASSISTANT}")
        elif tsf:
            ids += self._ids(f"\n{question}\n") + [TSF] * tsf + self._ids(ASSISTANT)
        else:
            ids += self._ids(f"\n{question}{ASSISTANT}")
        return (ids, len(ids)) if answer is None else (ids + self._ids(answer + END), len(ids))

    def _ids(self, text: str, *, first: bool = False) -> list[int]:
        ids = self.tokenizer(text)["input_ids"]
        return ids[1:] if not first and ids[0] == self.tokenizer.bos_token_id else ids


def sample_frames(total: int, wanted: int) -> NDArray[np.int64]:
    """Indices of `wanted` frames, evenly from the first to the last; the last again and again if there are fewer."""
    if total < wanted:
        return np.minimum(np.arange(wanted), total - 1)
    return np.linspace(0, total - 1, wanted).astype(np.int64)
