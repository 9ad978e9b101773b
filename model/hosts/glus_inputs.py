"""GLUS's pictures and words, before its weights (`spec/hosts.md` section 1.3)."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from model.hosts import clip
from model.hosts.inputs import BOX_TOKEN, IMAGE, TSF, Frames, HostInputs
from schemas.config import Config

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)
CONTEXT = "\nPlease finished the following tasks on the context frames above.\n"
"""The release's own words."""
START, END, SEG = "<im_start>", "<im_end>", "[SEG]"
PATCH = 14
"""Pixels of a patch of CLIP on a side."""


class GLUSConfig(Config):
    """Sizes; the defaults are the released model's.

    vocab: rows of the embedding table. 32003 gives the paper's count; take the checkpoint's. pool: neighbouring patches
    of a row that become one token. context: pictures that stand for the whole video. window: frames in the dialogue
    at a time. memory_stride: of the frames remembered beyond the previous one, at inference; training has 1.
    tokenizer: comes with a checkpoint, or speaks bytes.
    """

    vocab: int = 32003
    llm_dim: int = 4096
    llm_layers: int = 32
    llm_heads: int = 32
    llm_mlp: int = 11008
    max_len: int = 2048
    clip_dim: int = 1024
    clip_layers: int = 24
    clip_heads: int = 16
    clip_mlp: int = 4096
    clip_size: int = 224
    pool: int = Field(default=4, ge=1)
    context: int = Field(default=4, ge=1)
    window: int = Field(default=4, ge=1)
    memory_stride: int = Field(default=3, ge=1)
    sam: str = "2.0-l"
    sam_size: int = 1024
    tokenizer: Literal["checkpoint", "bytes"] = "checkpoint"


class GLUSInputs(HostInputs):
    """{"context": [4, 3, 224, 224], "query": [n, 3, 224, 224]}, n frames asked about in turn."""

    config: GLUSConfig

    template = "Can you segment the {phrase} in this frame?"
    answer = "Sure, the segmentation result is {seg}."

    def prepare(self, frames: Frames, query: Sequence[int] = (0,)) -> dict[str, Tensor]:
        """[T, H, W, 3] uint8 RGB -> {"context": [4, 3, 224, 224], "query": [n, 3, 224, 224]}: middle squares, as CLIP's
        processor cuts them.

        Context is the middle frame of each quarter (`context_frames`); query, the frames that are asked about.
        float32 on the CPU. ValueError for other shapes.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size or frames.dtype != np.uint8:
            raise ValueError(
                f"frames must be [T, H, W, 3] uint8, not {list(frames.shape)} {frames.dtype}"
            )
        context = context_frames(len(frames), self.config.context)
        wanted = [*context, *query]
        distinct = list(dict.fromkeys(wanted))  # each picture is read and resized once
        places = [distinct.index(frame) for frame in wanted]
        pixels = clip.centre_crops(frames[distinct], self.config.clip_size)[places]
        return {"context": pixels[: len(context)], "query": pixels[len(context) :]}

    def visual_count(self, height: int, width: int, frames: int, images: int) -> int:
        """64 for each picture."""
        return images * ((self.config.clip_size // PATCH) ** 2 // self.config.pool)

    def crop_pixels(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """n pictures [h, w, 3] -> [n, 3, 224, 224]. Stretched to the square, as in curation (`pipeline.encode.clip`)."""
        return clip.whole_crops(crops, self.config.clip_size)

    def question(self, phrase: str) -> str:
        """The evaluation script's request: lower case, without a final period."""
        return self.template.format(phrase=phrase.strip().removesuffix(".").lower())

    def conversation(
        self, question: str, answer: str | None = None, tsf: int = 0, *, at: int | None = None
    ) -> tuple[list[int], int]:
        """A dialogue of one turn: see `dialogue`."""
        ids, begins = self.dialogue([(question, answer)], tsf, at=at)
        return ids, begins[0]

    def dialogue(
        self, turns: Sequence[tuple[str, str | None]], tsf: int = 0, *, at: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Questions and answers about successive frames -> ids, and where each answer begins (Vicuna's format).

        Every question follows its frame's picture. The first one also has the context pictures before it, and the TSF
        slots after it, or in it (`at`, as in `conversation`): so both are there wherever the window of turns stands.
        Without a last answer the ids end where it would begin. ValueError if there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                "glus has no tokenizer: load a checkpoint folder with one, or set host.tokenizer"
            )
        picture: list[str | int] = [START, IMAGE, END]
        pieces: list[str | int] = [SYSTEM]
        known: dict[str, list[int]] = {}
        begins = []
        for i, (question, answer) in enumerate(turns):
            pieces += ["USER: "] if i else ["USER: ", *picture * self.config.context, CONTEXT]
            slots = [TSF] * tsf if i == 0 else []
            if slots and at is not None:
                pieces += [*picture, f"\n{question[:at]}", *slots, question[at:]]
            else:
                pieces += [*picture, f"\n{question}"]
                pieces += ["\n", *slots] if slots else []
            pieces += [" ASSISTANT:"]
            begins.append(len(self._encode(pieces, known)))
            pieces += [] if answer is None else [f" {answer}{self.tokenizer.eos_token}"]
        return self._encode(pieces, known), begins

    def lesson(
        self,
        frames: Frames,
        question: str,
        answer: str,
        tsf: int = 0,
        *,
        at: int | None = None,
        later: tuple[str, str] | None = None,
    ) -> tuple[dict[str, Tensor], list[int], int]:
        """As `HostInputs.lesson`. Only the first frame is looked at, beside the context, where only it is asked about."""
        ids, begin = self.lesson_ids(len(frames), question, answer, tsf, at=at, later=later)
        asked = len(frames) if SEG in answer else 1
        return self.prepare(frames, range(asked)), ids, begin

    def lesson_ids(
        self,
        frames: int,
        question: str,
        answer: str,
        tsf: int = 0,
        *,
        at: int | None = None,
        later: tuple[str, str] | None = None,
    ) -> tuple[list[int], int]:
        """A turn per frame with masks, [BOX] in the first one only. An answer without [SEG] is about the whole video:
        one turn, at the first frame."""
        turns = [(question, answer)]
        if SEG in answer:
            next_question, next_answer = later or (question, answer)
            turns += [(next_question, without_box(next_answer))] * (frames - 1)
        ids, begins = self.dialogue(turns, tsf, at=at)
        return ids, begins[0]

    def everything(self, frames: Frames) -> dict[str, Tensor]:
        return self.prepare(frames, range(len(frames)))

    def _encode(self, pieces: Sequence[str | int], known: dict[str, list[int]]) -> list[int]:
        """Text between sentinels becomes ids in one go: where a word is cut must not depend on how it was put here.

        known: ids of text that was met before, which grows.
        """
        ids: list[int] = []
        for is_text, group in groupby(pieces, lambda piece: isinstance(piece, str)):
            if not is_text:
                ids += [int(sentinel) for sentinel in group]
                continue
            text = "".join(map(str, group))
            if text not in known:
                known[text] = self.tokenizer(text)["input_ids"]
            found = known[text]
            ids += found[1:] if ids and found[0] == self.tokenizer.bos_token_id else found
        return ids


def without_box(answer: str) -> str:
    """An answer as it is on a frame without [BOX]."""
    return answer.replace(f" {BOX_TOKEN}", "").replace(f"{BOX_TOKEN} ", "")


def context_frames(total: int, wanted: int) -> list[int]:
    """The middle frame of each of `wanted` equal parts of a video, as the evaluation script picks them."""
    bounds = np.linspace(0, total, wanted + 1, dtype=int).tolist()
    half = -(-total // wanted) // 2
    return [max(0, min(start + half, stop - 1)) for start, stop in pairwise(bounds)]
