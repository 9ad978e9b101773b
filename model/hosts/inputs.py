"""What a host does before a weight is met: pictures become pixels, and words become ids.

All of it runs on the CPU, in any process: the workers of a loader do it ahead of the training step. A host gives such
an object out (`Host.inputs`), and does the same through its own methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IMAGE, TSF = -200, -201
"""Sentinel ids of visual and of TSF positions (the release's numbers)."""
IGNORE = -100
"""The label of positions without a language loss."""
BOX_TOKEN = "[BOX]"

Frames = NDArray[np.uint8]
"""[T, H, W, 3] RGB."""


@dataclass(frozen=True)
class HostSpec:
    """Everything in which hosts differ, as numbers and words."""

    name: str
    llm_dim: int
    patch_dim: int
    """Width of the spatial encoder's patch features, from which TSF tokens are made."""
    seg_token: str
    seg_vectors: int
    """Prompt vectors per [SEG]: 1, or UniPixel's 2."""
    seg_read: Literal["post_norm", "pre_norm"]
    """Which hidden state [SEG] and [BOX] are read from: after or before the final norm."""
    seg_granularity: Literal["video", "frame"]
    """One [SEG] per object and video, or (GLUS) per object and frame."""
    max_len: int
    """Positions of the language model, visual ones included."""
    sam: str
    """Architecture of the mask model, as `trackers.sam2.build` names it."""
    sam_size: int
    sam_postprocess: bool
    """SAM2's dynamic multimask fallback and binarised memory of prompted frames."""
    pads: int
    """"Not a point" tokens before the vectors when there is no box (inference)."""
    box_pads: int = 1
    """The same, after the corners of a box."""
    train_pads: int = 0
    multimask: bool = True
    """Best of three masks where there is no box (inference). With a box: always one mask."""
    temporal_dim: int | None = None
    """Width of what the temporal projector reads, for hosts that have one."""
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Last names of the language model's decoder layers that LoRA wraps (the host's own training)."""
    projectors: tuple[str, ...] = ("image_projector",)
    """Module names of the V->L adapters."""
    train_memory: bool = False
    """Training masks come from propagation through memory, not frame by frame."""
    loss_on_tokens_only: bool = False
    """Language loss on grounding tokens only (GLUS)."""
    visual_token: str = ""
    """What stands in the host's own ids where we have IMAGE; empty if it uses IMAGE too."""


@dataclass(frozen=True)
class HostInputs(ABC):
    """The part of a host that has no weights. config, spec, tokenizer: the host's own."""

    config: Any
    spec: HostSpec
    tokenizer: Any

    template: ClassVar[str]
    """The host's own request for a mask of {phrase}."""
    answer: ClassVar[str]
    """What it would answer; {seg} stands for the grounding tokens."""

    @abstractmethod
    def prepare(self, frames: Frames) -> dict[str, Tensor]:
        """Pixels for the language model's eyes, sampled and sized as the host wants them. No batch axis."""

    @abstractmethod
    def crop_pixels(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """n pictures [h, w, 3] -> what the frozen spatial encoder reads of them, one row or block for each."""

    @abstractmethod
    def visual_count(self, height: int, width: int, frames: int, images: int) -> int:
        """How many tokens a lesson about frames of this size has in place of its IMAGE sentinels, without running a
        tower. images: how many sentinels there are."""

    @abstractmethod
    def conversation(
        self, question: str, answer: str | None = None, tsf: int = 0, *, at: int | None = None
    ) -> tuple[list[int], int]:
        """Ids of a whole dialogue, IMAGE and `tsf` TSF sentinels in place, and where the answer begins.

        at: where in the question the TSF slots stand, in characters; None: after it, on a line of their own. Without
        an answer the ids end where it would begin.
        """

    def question(self, phrase: str) -> str:
        """The host's own request for a mask of `phrase`, which is put the way its evaluation puts it."""
        return self.template.format(phrase=phrase)

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
        """What the host is trained on: inputs, ids, and where the answers begin. frames: those that have masks.

        at, later: as in `lesson_ids`.
        """
        ids, begin = self.lesson_ids(len(frames), question, answer, tsf, at=at, later=later)
        return self.everything(frames), ids, begin

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
        """Ids of a lesson about so many frames, and where the answers begin.

        at: as in `conversation`. later: question and answer about each frame after the first, for a host that is
        asked about every frame; None: the same as about the first.
        """
        return self.conversation(question, answer, tsf, at=at)

    def everything(self, frames: Frames) -> dict[str, Tensor]:
        """Inputs with all that the towers see of a video in the course of grounding, each picture once."""
        return self.prepare(frames)

    def prompt_length(self, ids: Sequence[int], height: int, width: int, frames: int) -> int:
        """Positions of the language model that a lesson takes, its visual tokens included."""
        images = ids.count(IMAGE)
        return len(ids) - images + self.visual_count(height, width, frames, images)
