"""From a video and a few words to masks: the whole of section 3.3 at inference.

The language model is asked once per prompted frame and phrase; proposals and filtration turn its [BOX] state into one
box per instance; SAM2 decodes {box, [SEG] vector} there and carries every instance through the video. Each frame goes
through the image encoder once, whatever the number of phrases, instances and prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou, masks_to_boxes

from model.filtration import Selected
from model.hosts.base import Frames, Host, PromptState
from model.sam import Decoded, Features, Prompt, to_frame

if TYPE_CHECKING:
    from model.sparrow import Sparrow


@dataclass
class Instance:
    """One object that a phrase refers to, through the whole video."""

    phrase: str
    referent: int
    """Which [SEG] of the answer to that phrase."""
    masks_thw: NDArray[np.bool_]
    scores_t: NDArray[np.float32]
    """SAM2's object score (a logit): below 0 it thinks the object is not in the picture."""
    boxes: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Prompted frame -> the box given to SAM2: xyxy in pixels of the frame, half-open."""
    confidence: dict[int, float] = field(default_factory=dict)
    """Prompted frame -> Eq. 10's confidence."""
    fallback: bool = False
    """No proposal reached the threshold; this one was the best of them."""


@dataclass(frozen=True)
class Grounding:
    """What was said and shown."""

    texts: dict[str, str]
    """Phrase -> the model's answer."""
    instances: list[Instance]
    forced: bool
    """The answers were put into the model's mouth (`answer="force"`)."""

    def union(self, phrase: str) -> NDArray[np.bool_] | None:
        """All instances of a phrase as one mask [T, H, W], as single-mask benchmarks want it; None if there is none."""
        masks = [i.masks_thw for i in self.instances if i.phrase == phrase]
        return np.logical_or.reduce(masks) if masks else None


@torch.no_grad()
def ground(
    sparrow: "Sparrow",
    frames: Frames,
    phrases: str | Sequence[str],
    *,
    prompt_frames: Sequence[int] = (0,),
    answer: str = "generate",
    crops: Mapping[str, Sequence[NDArray[np.uint8]]] | None = None,
    max_new_tokens: int = 512,
) -> Grounding:
    """Masks of everything that `phrases` refer to.

    frames: [T, H, W, 3] uint8 RGB. phrases: put into the host's own request for a mask.
    prompt_frames: frames at which [BOX] and [SEG] are emitted anew, ascending; each corrects what has drifted.
    answer: "generate", or "force" to have the grounding tokens said whatever the model would say (untrained models
    never say them). crops: with `tsf.infer`, phrase -> the pictures [h, w, 3] of its representatives (Table 4's
    "train + infer"). ValueError for bad shapes and frames.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be [T, H, W, 3] uint8, not {list(frames.shape)} {frames.dtype}")
    if list(prompt_frames) != sorted(set(prompt_frames)) or not prompt_frames:
        raise ValueError(f"prompt_frames must ascend without repeats, not {list(prompt_frames)}")
    if not 0 <= prompt_frames[0] <= prompt_frames[-1] < len(frames):
        raise ValueError(f"prompt_frames {list(prompt_frames)} lie outside the video's {len(frames)} frames")
    if answer not in ("generate", "force"):
        raise ValueError(f'answer is "generate" or "force", not {answer!r}')
    phrases = [phrases] if isinstance(phrases, str) else list(dict.fromkeys(phrases))
    host = sparrow.host
    states: dict[str, dict[int, PromptState]] = {}
    with _precision(host):
        for phrase in phrases:
            said = host.states(
                frames,
                host.question(phrase),
                prompt_frames,
                answer=host.answer.format(seg=sparrow.grounding_tokens()) if answer == "force" else None,
                tsf_nd=_tsf_tokens(sparrow, phrase, crops),
                max_new_tokens=max_new_tokens,
            )
            states[phrase] = {state.frame: state for state in said}
        texts = {phrase: next(iter(by_frame.values())).text for phrase, by_frame in states.items()}
        return Grounding(texts, _Run(sparrow, frames, states, prompt_frames).follow(), answer == "force")


def _tsf_tokens(
    sparrow: "Sparrow", phrase: str, crops: Mapping[str, Sequence[NDArray[np.uint8]]] | None
) -> Tensor | None:
    if not sparrow.config.tsf.wanted(training=False):
        if crops:
            raise ValueError("crops were given, but tsf.infer is off: this model is asked without TSF")
        return None
    if not crops or phrase not in crops:
        raise ValueError(f"tsf.infer is on: give crops of {phrase!r} ({sparrow.config.tsf.k} pictures of the target)")
    return sparrow.tsf_tokens(sparrow.host.crop_features(crops[phrase]))


def _precision(host: Host) -> AbstractContextManager:
    """A language model in half precision has its mask model, whose position codes are float32, under autocast."""
    dtype = host.llm.dtype
    return torch.autocast(host.llm.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))


class _Run(Mapping[int, tuple[list[int], Prompt]]):
    """Prompts by frame, made when their frame has come: a new box must be matched with what is followed by then."""

    def __init__(
        self,
        sparrow: "Sparrow",
        frames: Frames,
        states: dict[str, dict[int, PromptState]],
        prompt_frames: Sequence[int],
    ):
        self.sparrow, self.frames, self.states = sparrow, frames, states
        self.boxed = () if sparrow.config.decode.prompts == "seg" else prompt_frames
        self.instances: list[Instance] = []
        self.made: dict[int, tuple[list[int], Prompt]] = {}
        self.seen: dict[int, Features] = {}
        self.last: dict[int, Tensor] = {}
        """Instance -> its latest box [4], xyxy in [0, 1]; NaN while its mask is empty."""
        self.prompted = sorted(
            {t for by_frame in states.values() for t, state in by_frame.items() if self._says(t, state)}
        )

    def _says(self, t: int, state: PromptState) -> bool:
        """Whether anything is prompted by this answer: it has a [SEG], or where only boxes count, a [BOX] too."""
        if self.sparrow.config.decode.prompts != "box":
            return len(state.seg_nd) > 0
        return len(state.seg_nd) > 0 and t in self.boxed and self.sparrow.box_vectors(state) is not None

    def __iter__(self) -> Iterator[int]:
        return iter(self.prompted)

    def __len__(self) -> int:
        return len(self.prompted)

    def __getitem__(self, t: int) -> tuple[list[int], Prompt]:
        if t not in self.prompted:
            raise KeyError(t)
        if t not in self.made:
            self.made[t] = self._prompt(t)
        return self.made[t]

    def features(self, t: int) -> Features:
        if t not in self.seen:
            self.seen.clear()
            self.seen[t] = self.sparrow.host.sam_features(self.frames[t : t + 1])
        return self.seen[t]

    def follow(self) -> list[Instance]:
        if not self.prompted:
            return []
        for t, names, decoded in self._steps():
            masks = to_frame(decoded.logits_n1hw, *self.frames.shape[1:3]).cpu()
            for name, mask, score in zip(names, masks, decoded.object_score_n.tolist(), strict=True):
                self.instances[name].masks_thw[t] = mask.numpy()
                self.instances[name].scores_t[t] = score
                if t < self.prompted[-1]:  # a later prompt will ask where everything was last
                    self.last[name] = _box_of(mask)
        return self.instances

    def _steps(self) -> Iterator[tuple[int, list[int], Decoded]]:
        host, decode = self.sparrow.host, self.sparrow.config.decode
        if decode.mode == "memory":
            yield from host.propagate(self.features, len(self.frames), self)
            return
        names, prompt = self[self.prompted[0]]
        for t in range(len(self.frames)):  # every frame by itself, from the latest prompt
            if t in self.prompted:
                names, prompt = self[t]
            yield t, names, host.sam.decode(self.features(t).rows([0] * len(names)), prompt, multimask=False)

    def _prompt(self, t: int) -> tuple[list[int], Prompt]:
        """{boxes, vectors} of every referent on frame t, and which instances they belong to."""
        names: list[int] = []
        seg: list[Tensor] = []
        boxes: list[Tensor] = []
        for phrase, by_frame in self.states.items():
            state = by_frame.get(t)
            if state is None:
                continue
            found = self.sparrow.locate(state, self.features(t), self.frames[t]) if t in self.boxed else None
            for referent, seg_d in enumerate(state.seg_nd):
                chosen = None if found is None else found[referent]
                ids = self._instances(t, phrase, referent, chosen)
                names += ids
                seg += [seg_d] * len(ids)
                boxes += [torch.full((4,), torch.nan)] * len(ids) if chosen is None else list(chosen.boxes_m4.cpu())
        host, decode = self.sparrow.host, self.sparrow.config.decode
        boxes_n4 = torch.stack(boxes).to(seg[0].device)
        prompt = host.prompt(
            None if decode.prompts == "box" else torch.stack(seg),
            None if boxes_n4.isnan().all() else boxes_n4,
            training=decode.mode == "frame",  # frame by frame is how masks are made in training
        )
        return names, prompt if decode.box_pad or prompt.boxes_n4 is None else replace(prompt, pads=0)

    def _instances(self, t: int, phrase: str, referent: int, chosen: Selected | None) -> list[int]:
        """The instances that new boxes belong to: those that are followed, paired by overlap, and new ones for the
        rest. A pair need not overlap, for what has drifted away is what a new prompt corrects (the paper gives no
        rule). Without boxes: all that are followed, or a first one."""
        known = [i for i, one in enumerate(self.instances) if (one.phrase, one.referent) == (phrase, referent)]
        if chosen is None:
            return known or [self._new(phrase, referent)]
        ids: list[int | None] = [None] * len(chosen.boxes_m4)
        if known and ids:
            overlap = box_iou(chosen.boxes_m4.cpu().float(), torch.stack([self.last[i] for i in known])).nan_to_num()
            for new, old in zip(*linear_sum_assignment(-overlap.numpy()), strict=True):
                ids[new] = known[old]
        final = [self._new(phrase, referent) if i is None else i for i in ids]
        height, width = self.frames.shape[1:3]
        pixels = (chosen.boxes_m4.cpu() * torch.tensor([width, height, width, height])).numpy()
        for i, box, confidence in zip(final, pixels, chosen.confidence_m.tolist(), strict=True):
            self.instances[i].boxes[t], self.instances[i].confidence[t] = box, confidence
            self.instances[i].fallback |= chosen.fallback
        return final

    def _new(self, phrase: str, referent: int) -> int:
        length, height, width = self.frames.shape[:3]
        masks, scores = np.zeros((length, height, width), np.bool_), np.full(length, -np.inf, np.float32)
        self.instances.append(Instance(phrase, referent, masks, scores))
        self.last[len(self.instances) - 1] = torch.full((4,), torch.nan)
        return len(self.instances) - 1


def _box_of(mask_hw: Tensor) -> Tensor:
    """xyxy in [0, 1] around a mask; NaN around nothing."""
    if not mask_hw.any():
        return torch.full((4,), torch.nan)
    height, width = mask_hw.shape
    box = masks_to_boxes(mask_hw[None])[0] + torch.tensor([0, 0, 1, 1])  # indices of the last pixels -> far edges
    return box / torch.tensor([width, height, width, height])
