"""From a video and a few words to masks: the whole of section 3.3 at inference.

The language model is asked once per prompted frame and phrase; proposals and filtration turn its [BOX] state into one
box per instance; SAM2 decodes {box, [SEG] vector} there and carries every instance through the video.

Phrases share what they have in common. The host's towers look at the video once for each prompted frame (GLUS: at each
frame once), whatever the number of phrases; the language model reads the beginning that all prompts share once, and the
rest of them in batches (`model.hosts.asking`). SAM2's image encoder sees each frame once, whatever the number of phrases,
instances and prompts.

`stream` gives masks frame by frame, and holds nothing that grows with the video: frames are read when they are needed
(`model.video.Video`), answers are asked for when their frame has come. `ground` collects them into arrays.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.hosts.asking import VideoQuestion
from model.hosts.base import Frames, Host
from model.instances import Answers, Prompts, Target
from model.sam import Decoded, Features, to_frame
from model.video import Video, as_frames

if TYPE_CHECKING:
    from model.sparrow import Sparrow

K = TypeVar("K")
Crops = Mapping[str, Sequence[NDArray[np.uint8]]]
"""Phrase -> pictures [h, w, 3] of its representatives (TSF at inference); none: that phrase is asked about without."""


@dataclass
class Instance(Target):
    """A target through the whole video."""

    masks_thw: NDArray[np.bool_] = field(kw_only=True)
    scores_t: NDArray[np.float32] = field(kw_only=True)
    """SAM2's object score (a logit): below 0 it thinks the object is not in the picture; -inf: not followed here."""


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


@dataclass(frozen=True)
class FrameMasks:
    """Masks of one frame, a row per target that is followed there."""

    frame: int
    targets: list[int]
    """Places in `Stream.targets`."""
    masks_nhw: NDArray[np.bool_]
    scores_n: NDArray[np.float32]
    """As `Instance.scores_t`."""


class Stream:
    """The frames of a grounding, each once, from the first prompted one to the end and then backwards from there to
    frame 0; none if nothing was found. Iterate once. `texts` are there at once, `targets` grow on the way."""

    def __init__(
        self,
        sparrow: "Sparrow",
        frames: Frames | Video,
        answers: dict[str, Answers],
        prompts: Prompts,
        forced: bool,
    ):
        self.sparrow, self.frames, self.forced = sparrow, frames, forced
        self.texts = {phrase: one.text for phrase, one in answers.items()}
        self._prompts = prompts

    @property
    def targets(self) -> list[Target]:
        return self._prompts.targets

    def __iter__(self) -> Iterator[FrameMasks]:
        steps = self._steps()
        while True:
            with (
                torch.no_grad(),
                precision(self.sparrow.host),
            ):  # not in force while the caller has the frame
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _steps(self) -> Iterator[FrameMasks]:
        height, width = self.frames.shape[1:3]
        for t, names, decoded in self._decoded():
            masks = to_frame(decoded.logits_n1hw, height, width).cpu()
            for name, mask in zip(names, masks, strict=True):
                self._prompts.follow(t, name, mask)
            yield FrameMasks(
                t, list(names), masks.numpy(), decoded.object_score_n.float().cpu().numpy()
            )

    def _decoded(self) -> Iterator[tuple[int, list[int], Decoded]]:
        host, prompts = self.sparrow.host, self._prompts
        if prompts.first is None:
            return
        if self.sparrow.config.decode.mode == "memory":
            yield from host.propagate(prompts.features, len(self.frames), prompts)
            return
        names, prompt = prompts[prompts.first]
        for t in range(len(self.frames)):  # every frame by itself, from the latest prompt
            names, prompt = prompts.get(t, (names, prompt))
            yield (
                t,
                names,
                host.sam.decode(
                    prompts.features(t).rows([0] * len(names)), prompt, multimask=False
                ),
            )


def stream(
    sparrow: "Sparrow",
    frames: Frames | Video | str | Path,
    phrases: str | Sequence[str],
    *,
    prompt_frames: Sequence[int] = (0,),
    answer: str = "generate",
    crops: Crops | None = None,
    max_new_tokens: int = 512,
    questions: Mapping[str, str] | None = None,
    features: Callable[[int], Features] | None = None,
    asked: Mapping[str, Answers] | None = None,
) -> Stream:
    """Masks of everything that `phrases` refer to, frame by frame, in memory that does not grow with the video.

    frames: [T, H, W, 3] uint8 RGB, or a path (`Video.open`). phrases: put into the host's own request for a mask, or
    asked as `questions` (phrase -> whole question) has them.
    prompt_frames: frames at which [BOX] and [SEG] are emitted anew, ascending; each corrects what has drifted.
    answer: "generate", or "force" to have the grounding tokens said whatever the model would say (untrained models
    never say them). crops: with `tsf.infer`, of every phrase (Table 4's "train + infer"; `model.tsf_inference` makes
    them). features: `Host.sam_features` of frame t, from a caller who asks more than once about a video; asked: what
    `ask_together` gave for these phrases, from a caller who asked them together with others. ValueError for bad shapes and
    frames, and for a phrase that is too long.
    """
    video = as_frames(frames)
    phrases = [phrases] if isinstance(phrases, str) else list(dict.fromkeys(phrases))
    if asked is None:
        wanted = {
            phrase: GroundingQuestion(
                sparrow.host.question(phrase) if questions is None else questions[phrase],
                _crops_of(sparrow, phrase, crops),
            )
            for phrase in phrases
        }
        asked = ask_together(
            sparrow,
            video,
            wanted,
            prompt_frames=prompt_frames,
            answer=answer,
            max_new_tokens=max_new_tokens,
        )
    answers = {phrase: asked[phrase] for phrase in phrases}
    with torch.no_grad(), precision(sparrow.host):
        prompts = Prompts(sparrow, video, answers, prompt_frames, features)
    return Stream(sparrow, video, answers, prompts, answer == "force")


@dataclass(frozen=True)
class GroundingQuestion:
    """A question about a video. crops: pictures of its target for the prompt; None: it is asked without TSF."""

    question: str
    crops: Sequence[NDArray[np.uint8]] | None = None


def ask_together(
    sparrow: "Sparrow",
    frames: Frames | Video,
    questions: Mapping[K, GroundingQuestion],
    *,
    prompt_frames: Sequence[int] = (0,),
    answer: str = "generate",
    max_new_tokens: int = 512,
) -> dict[K, Answers]:
    """What the language model says to each question, when it is looked for: all that have not been answered by then are
    asked together. One that is too long raises its ValueError where its own answer is looked for.

    answer, prompt_frames: as in `stream`. ValueError for bad ones.
    """
    if list(prompt_frames) != sorted(set(prompt_frames)) or not prompt_frames:
        raise ValueError(f"prompt_frames must ascend without repeats, not {list(prompt_frames)}")
    if not 0 <= prompt_frames[0] <= prompt_frames[-1] < len(frames):
        raise ValueError(
            f"prompt_frames {list(prompt_frames)} lie outside the video's {len(frames)} frames"
        )
    if answer not in ("generate", "force"):
        raise ValueError(f'answer is "generate" or "force", not {answer!r}')
    host, video = sparrow.host, as_frames(frames)
    forced = host.answer.format(seg=sparrow.grounding_tokens()) if answer == "force" else None
    with torch.no_grad(), precision(host):
        tokens = _tsf_tokens(sparrow, [one.crops for one in questions.values()])
        asks = [
            VideoQuestion(one.question, tsf_nd)
            for one, tsf_nd in zip(questions.values(), tokens, strict=True)
        ]
        states = host.states_of_all(
            video, asks, prompt_frames, answer=forced, max_new_tokens=max_new_tokens
        )
    return {key: Answers(one) for key, one in zip(questions, states, strict=True)}


def ground(
    sparrow: "Sparrow",
    frames: Frames | Video | str | Path,
    phrases: str | Sequence[str],
    *,
    prompt_frames: Sequence[int] = (0,),
    answer: str = "generate",
    crops: Crops | None = None,
    max_new_tokens: int = 512,
    questions: Mapping[str, str] | None = None,
) -> Grounding:
    """As `stream`, with all masks in arrays: T x H x W bytes an instance."""
    steps = stream(
        sparrow,
        frames,
        phrases,
        prompt_frames=prompt_frames,
        answer=answer,
        crops=crops,
        max_new_tokens=max_new_tokens,
        questions=questions,
    )
    shape = steps.frames.shape[:3]
    masks: list[NDArray[np.bool_]] = []
    scores: list[NDArray[np.float32]] = []
    for step in steps:
        while len(masks) < len(steps.targets):
            masks.append(np.zeros(shape, np.bool_))
            scores.append(np.full(shape[0], -np.inf, np.float32))
        for name, mask, score in zip(step.targets, step.masks_nhw, step.scores_n, strict=True):
            masks[name][step.frame], scores[name][step.frame] = mask, score
    instances = [
        Instance(**vars(target), masks_thw=mask, scores_t=score)
        for target, mask, score in zip(steps.targets, masks, scores, strict=True)
    ]
    return Grounding(steps.texts, instances, steps.forced)


def _crops_of(
    sparrow: "Sparrow", phrase: str, crops: Crops | None
) -> Sequence[NDArray[np.uint8]] | None:
    """The pictures that a phrase is asked with. ValueError where the model takes some and there are none, or the other
    way round."""
    if not sparrow.config.tsf.wanted(training=False):
        if crops and any(len(pictures) for pictures in crops.values()):
            raise ValueError(
                "crops were given, but tsf.infer is off: this model is asked without TSF"
            )
        return None
    if crops is None or phrase not in crops:
        raise ValueError(
            f"tsf.infer is on: give crops of {phrase!r} ({sparrow.config.tsf.k} pictures of the target)"
        )
    return crops[phrase]


def _tsf_tokens(
    sparrow: "Sparrow", crops: Sequence[Sequence[NDArray[np.uint8]] | None]
) -> list[Tensor | None]:
    """Of each question's pictures, which go through the spatial encoder together; None where there are none."""
    pictures = [picture for some in crops for picture in some or ()]
    if not pictures:
        return [None] * len(crops)
    features = sparrow.host.crop_features(pictures)
    parts = features.split([len(some or ()) for some in crops])
    return [sparrow.tsf_tokens(part) if len(part) else None for part in parts]


def precision(host: Host) -> AbstractContextManager:
    """A language model in half precision has its mask model, whose position codes are float32, under autocast."""
    dtype = host.llm.dtype
    return torch.autocast(
        host.llm.device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16)
    )
