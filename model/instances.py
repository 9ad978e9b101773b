"""Who is followed, and what SAM2 is told of them when a prompted frame has come."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou, masks_to_boxes

from model.filtration import Selected
from model.hosts.base import PromptState
from model.sam import Features, Prompt

if TYPE_CHECKING:
    from model.sparrow import Sparrow


@dataclass
class Target:
    """One object that a phrase refers to."""

    phrase: str
    referent: int
    """Which [SEG] of the answer to that phrase."""
    boxes: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Prompted frame -> the box given to SAM2: xyxy in pixels of the frame, half-open."""
    confidence: dict[int, float] = field(default_factory=dict)
    """Prompted frame -> Eq. 10's confidence."""
    fallback: bool = False
    """No proposal reached the threshold; this one was the best of them."""


class Answers:
    """What the language model says of one phrase. It is asked about a frame when that frame has come (GLUS is asked
    about every one), and no answer is kept."""

    def __init__(self, states: Iterator[PromptState]):
        self._states = states
        self._latest: PromptState | None = None
        self._text: str | None = None

    @property
    def text(self) -> str:
        """Of the first answer."""
        self._begin()
        assert self._text is not None
        return self._text

    @property
    def state(self) -> PromptState | None:
        """The latest answer; None when there are no more."""
        self._begin()
        return self._latest

    def at(self, t: int) -> PromptState | None:
        """The answer about frame t. Frames that were passed have none any more."""
        self._begin()
        while self._latest is not None and self._latest.frame < t:
            self._latest = next(self._states, None)
        return self._latest if self._latest is not None and self._latest.frame == t else None

    def _begin(self) -> None:
        """Ask for the first answer. ValueError if the question does not fit the model."""
        if self._text is None:
            self._latest = next(self._states)
            self._text = self._latest.text


class Prompts(Mapping[int, tuple[list[int], Prompt]]):
    """Frame -> (targets, their prompts), made when the frame has come: new boxes are matched with what is followed by
    then. Of the frames, iteration knows the first alone, and is empty if nothing is ever prompted; later ones are found
    by asking for them, in ascending order."""

    def __init__(
        self,
        sparrow: "Sparrow",
        frames: Any,
        answers: dict[str, Answers],
        prompt_frames: Sequence[int],
        kept: Callable[[int], Features] | None = None,
    ):
        self.sparrow, self.frames, self.answers, self._kept = sparrow, frames, answers, kept
        self.boxed = () if sparrow.config.decode.prompts == "seg" else tuple(prompt_frames)
        self.targets: list[Target] = []
        self._made: dict[int, tuple[list[int], Prompt]] = {}
        """The first, which is asked for again to go backwards, and the latest."""
        self._seen: dict[int, Features] = {}
        self._last: dict[int, Tensor] = {}
        """Target -> its latest box [4], xyxy in [0, 1]; NaN while its mask is empty."""
        self.first = min(
            (t for one in answers.values() if (t := self._first_said(one)) is not None),
            default=None,
        )

    def _first_said(self, answers: Answers) -> int | None:
        while (state := answers.state) is not None:
            if self._says(state):
                return state.frame
            answers.at(state.frame + 1)
        return None

    def _says(self, state: PromptState) -> bool:
        """Whether anything is prompted by this answer: it has a [SEG], or where only boxes count, a [BOX] too."""
        if self.sparrow.config.decode.prompts != "box":
            return len(state.seg_nd) > 0
        return (
            len(state.seg_nd) > 0
            and state.frame in self.boxed
            and self.sparrow.box_vectors(state) is not None
        )

    def __iter__(self) -> Iterator[int]:
        return iter(() if self.first is None else (self.first,))

    def __len__(self) -> int:
        return int(self.first is not None)

    def __getitem__(self, t: int) -> tuple[list[int], Prompt]:
        if t not in self._made:
            said = {
                phrase: state
                for phrase, one in self.answers.items()
                if (state := one.at(t)) is not None
            }
            if not any(map(self._says, said.values())):
                raise KeyError(t)
            self._made = {i: made for i, made in self._made.items() if i == self.first} | {
                t: self._prompt(t, said)
            }
        return self._made[t]

    def features(self, t: int) -> Features:
        """Of one frame; the latest one's are kept, if the caller does not keep them."""
        if self._kept is not None:
            return self._kept(t)
        if t not in self._seen:
            self._seen.clear()
            self._seen[t] = self.sparrow.host.sam_features(self.frames[t : t + 1])
        return self._seen[t]

    def follow(self, t: int, target: int, mask_hw: Tensor) -> None:
        """Where a target is on frame t, for as long as a later prompt may ask."""
        if self.boxed and t < self.boxed[-1]:
            self._last[target] = box_of(mask_hw)

    def _prompt(self, t: int, said: dict[str, PromptState]) -> tuple[list[int], Prompt]:
        names: list[int] = []
        seg: list[Tensor] = []
        boxes: list[Tensor] = []
        located: Sequence[list[Selected] | None] = [None] * len(said)
        if t in self.boxed:
            located = self.sparrow.locate_all(list(said.values()), self.features(t), self.frames[t])
        for (phrase, state), found in zip(said.items(), located, strict=True):
            for referent, seg_d in enumerate(state.seg_nd):
                chosen = None if found is None else found[referent]
                ids = self._targets(t, phrase, referent, chosen)
                names += ids
                seg += [seg_d] * len(ids)
                boxes += (
                    [torch.full((4,), torch.nan)] * len(ids)
                    if chosen is None
                    else list(chosen.boxes_m4.cpu())
                )
        host, decode = self.sparrow.host, self.sparrow.config.decode
        boxes_n4 = torch.stack(boxes).to(seg[0].device)
        prompt = host.prompt(
            None if decode.prompts == "box" else torch.stack(seg),
            None if boxes_n4.isnan().all() else boxes_n4,
            training=decode.mode == "frame",  # frame by frame is how masks are made in training
        )
        return names, prompt if decode.box_pad or prompt.boxes_n4 is None else replace(
            prompt, pads=0
        )

    def _targets(self, t: int, phrase: str, referent: int, chosen: Selected | None) -> list[int]:
        """The targets that new boxes belong to: those that are followed, paired by overlap, and new ones for the
        rest. A pair need not overlap, for what has drifted away is what a new prompt corrects (the paper gives no
        rule). Without boxes: all that are followed, or a first one."""
        known = [
            i
            for i, one in enumerate(self.targets)
            if (one.phrase, one.referent) == (phrase, referent)
        ]
        if chosen is None:
            return known or [self._new(phrase, referent)]
        ids: list[int | None] = [None] * len(chosen.boxes_m4)
        if known and ids:
            overlap = box_iou(
                chosen.boxes_m4.cpu().float(), torch.stack([self._last[i] for i in known])
            ).nan_to_num()
            for new, old in zip(*linear_sum_assignment(-overlap.numpy()), strict=True):
                ids[new] = known[old]
        final = [self._new(phrase, referent) if i is None else i for i in ids]
        height, width = self.frames.shape[1:3]
        pixels = (chosen.boxes_m4.cpu() * torch.tensor([width, height, width, height])).numpy()
        for i, box, confidence in zip(final, pixels, chosen.confidence_m.tolist(), strict=True):
            self.targets[i].boxes[t], self.targets[i].confidence[t] = box, confidence
            self.targets[i].fallback |= chosen.fallback
        return final

    def _new(self, phrase: str, referent: int) -> int:
        self.targets.append(Target(phrase, referent))
        self._last[len(self.targets) - 1] = torch.full((4,), torch.nan)
        return len(self.targets) - 1


def box_of(mask_hw: Tensor) -> Tensor:
    """xyxy in [0, 1] around a mask; NaN around nothing."""
    if not mask_hw.any():
        return torch.full((4,), torch.nan)
    height, width = mask_hw.shape
    box = masks_to_boxes(mask_hw[None])[0] + torch.tensor(
        [0, 0, 1, 1]
    )  # indices of the last pixels -> far edges
    return box / torch.tensor([width, height, width, height])
