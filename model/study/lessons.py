"""The lessons of a host from nothing, as tasks of `model.train`.

`Pointers` and words as labels of cells are scaffolding, as text was for CLIP and InternVideo2: thrown away afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import StageConfig
from model.hosts.base import Host
from model.hosts.glus_inputs import context_frames
from model.hosts.videoglamm_inputs import sample_frames
from model.losses import mask_losses
from model.sam import Features, Prompt, Sam2, prepare
from model.sparrow import Sparrow
from model.study.world import COLOURS, DIRECTIONS, SHAPES, StudyClip
from model.train.task import Batch, StageTask

LOOKS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SEEN = (*COLOURS, *SHAPES, *DIRECTIONS, "leaves", "stays")
"""Words that can be true of an object."""
WORDS = (*SEEN, "moving", "that")


class Pointers(nn.Module):
    """Vectors [N, 256] that say what an object looks like and where it is: what [SEG] will have to say."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = nn.Embedding(len(LOOKS), 256)
        self.where = nn.Linear(10, 256)

    def forward(self, looks: Sequence[str], boxes_n4: Tensor) -> Tensor:
        """boxes_n4: xyxy in [0, 1]."""
        device = self.looks.weight.device
        centre_n2 = (boxes_n4[:, :2] + boxes_n4[:, 2:]).to(device) - 1
        waves = [f(torch.pi * k * centre_n2) for k in (0.5, 1) for f in (torch.sin, torch.cos)]
        place = torch.cat([centre_n2, *waves], 1)
        return self.looks(
            torch.tensor([LOOKS.index(look) for look in looks], device=device)
        ) + self.where(place)


class Lesson:
    """What the lessons share of the protocol of a task. Batches are lists of things with a key."""

    name: str
    module: nn.Module
    weights: dict[str, float]

    def parameters(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "scale": 1.0}]

    def counts(self, batch: list[Any]) -> dict[str, float]:
        return dict.fromkeys(self.weights, float(len(batch)))

    def tallies(self, batch: list[Any]) -> dict[str, float]:
        return {}

    def size(self, batch: list[Any]) -> tuple[int, int]:
        return len(batch), 0

    def keys(self, batch: list[Any]) -> list[str]:
        return [item.key for item in batch]

    def blocks(self) -> list[nn.Module]:
        return []

    def validate(self) -> dict[str, float]:
        return {}

    def gradient_checkpointing(self) -> None:
        raise ValueError("the study's models are too small for it")


class SegmentTask(Lesson):
    """Of the mask model: every object of a clip by its box and, after `segmenting`, by its pointer. Boxes come first:
    learned together, neither is."""

    def __init__(self, name: str, sam: Sam2, pointers: Pointers, frames: int, side: int):
        self.name = name
        self.module = nn.ModuleDict(
            {"sam": sam.requires_grad_(True), "pointers": pointers.requires_grad_(True)}
        )
        self.sam, self.pointers, self.frames, self.side = sam, pointers, frames, side
        self.weights = {"bce": 2.0, "dice": 1.0}
        sam.sam_mask_decoder.pred_obj_score_head.requires_grad_(False)

    def losses(self, batch: list[StudyClip]) -> dict[str, Tensor]:
        device = self.pointers.looks.weight.device
        length = len(batch[0].frames_thw3)
        stride = int(torch.randint(1, max(2, (length - 1) // max(1, self.frames - 1) + 1), ()))
        start = int(torch.randint(length - stride * (self.frames - 1), ()))
        times = list(range(start, start + stride * self.frames, stride))
        features = self.sam.features(
            torch.cat([prepare(clip.frames_thw3[times], self.side, device) for clip in batch])
        )
        rows = [
            (i, n)
            for i, c in enumerate(batch)
            for n in range(len(c.looks))
            if c.masks_nthw[n, times[0]].any()
        ]
        share = torch.tensor([batch[0].frames_thw3.shape[2], batch[0].frames_thw3.shape[1]] * 2)
        boxes = (
            torch.stack([torch.from_numpy(batch[i].boxes_nt4[n, times[0]]) for i, n in rows])
            / share
        ).to(device)
        masks = (
            torch.from_numpy(np.stack([batch[i].masks_nthw[n, times] for i, n in rows]))
            .float()
            .to(device)
        )
        prompts = [(0.25, Prompt(None, boxes, pads=1))]
        if self.name != "segmenting":
            prompts.append(
                (0.75, Prompt(self.pointers([batch[i].looks[n] for i, n in rows], boxes)[:, None]))
            )
        found: dict[str, Tensor] = {}
        for weight, prompt in prompts:
            logits = self._logits(features, [i for i, _ in rows], prompt)
            logits = F.interpolate(
                logits.float(), masks.shape[-2:], mode="bilinear", align_corners=False
            )
            for name, value in zip(("bce", "dice"), mask_losses(logits, masks), strict=True):
                found[name] = found.get(name, 0) + value * weight / sum(w for w, _ in prompts)
        return found

    def _logits(self, features: Features, clips: list[int], prompt: Prompt) -> Tensor:
        """[N, frames, h, w] of one prompt per entry of `clips`."""
        if self.frames == 1:
            return self.sam.decode(features.rows(clips), prompt, multimask=False).logits_n1hw
        steps = self.sam.propagate(
            lambda t: features.rows([i * self.frames + t for i in clips]),
            self.frames,
            {0: (list(range(len(clips))), prompt)},
            multimask=False,
        )
        return torch.stack([decoded.logits_n1hw[:, 0] for _, _, decoded in steps], 1)


@dataclass(frozen=True)
class Looked:
    """A clip as the towers get it."""

    key: str
    inputs: dict[str, Tensor]
    labels_knw: Tensor
    """Of K kinds of tokens, N each: 1 where a word of `SEEN` is true of what is in the token's cell, 0 where not, -1
    where that kind cannot know."""


class SeeTask(Lesson):
    """Lesson `seeing`, dense: each visual token is pulled to the words that are true of what is in its cell.
    kinds: of tokens, as in `look`."""

    def __init__(self, host: Host, kinds: int):
        self.name, self.host = "seeing", host
        self.bias = nn.Parameter(
            torch.full((kinds, len(SEEN)), -2.0, device=host.token_embeddings().weight.device)
        )
        self.module = nn.ModuleDict({"towers": nn.ModuleList(eyes(host)).requires_grad_(True)})
        self.module.register_parameter("bias", self.bias)
        self.words_wd = (
            host.token_embeddings().weight[[host.token_id(word) for word in SEEN]].detach().clone()
        )
        self.weights = {"words": 1.0}

    def losses(self, batch: list[Looked]) -> dict[str, Tensor]:
        device = self.bias.device
        inputs = [{name: pixels.to(device) for name, pixels in one.inputs.items()} for one in batch]
        labels = torch.stack([one.labels_knw for one in batch]).to(device)
        tokens = torch.stack([torch.cat(blocks) for blocks in self.host.visual_tokens_each(inputs)])
        logits = tokens.reshape(*labels.shape[:-1], -1) @ self.words_wd.T * 0.5 + self.bias[:, None]
        known = labels >= 0
        return {
            "words": F.binary_cross_entropy_with_logits(logits[known], labels[known])
            * len(self.bias)
        }


def eyes(host: Host) -> list[nn.Module]:
    """All that makes visual tokens of pixels."""
    names = {
        "videoglamm": ("image_encoder", "video_encoder", "image_projector", "video_projector"),
        "glus": ("image_encoder", "image_projector"),
        "unipixel": ("visual",),
    }[host.spec.name]
    return [getattr(host, name) for name in names]


def look(host: Any, clip: StudyClip) -> Looked:
    """What the towers of `host` see of a clip, and which words are true of it where. CLIP sees one picture at a time,
    so it cannot know what anything does."""
    inputs, total = host.prepare(clip.frames_thw3), len(clip.frames_thw3)
    moves: tuple[bool, ...] = (True,)
    if host.spec.name == "videoglamm":
        side = host.config.clip_size // 28
        frames = [[t] for t in sample_frames(total, host.config.frames)]
        rows, columns, moves = side, side, (False, True)
    elif host.spec.name == "glus":
        side = host.config.clip_size // 14
        frames = [[t] for t in [*context_frames(total, host.config.context), 0]]
        rows, columns, moves = side, side // host.config.pool, (False,)
    else:
        pairs, height, width = inputs["grid"][0].tolist()
        chosen = sample_frames(total, host.config.frames)
        frames = [chosen[2 * i : 2 * i + 2].tolist() for i in range(pairs)]
        rows, columns = height // 2, width // 2
    labels = np.zeros((len(frames), rows * columns, len(SEEN)), np.float32)
    for group, place in zip(frames, labels, strict=True):
        for masks_thw, words in zip(clip.masks_nthw, clip.words, strict=True):
            shown = masks_thw[group].any(0).astype(np.float32)
            cover = cv2.resize(shown, (columns, rows), interpolation=cv2.INTER_AREA).reshape(-1)
            place[
                np.ix_(cover > 0.4 * max(cover.max(), 1e-9), [SEEN.index(word) for word in words])
            ] = 1
    kinds = np.repeat(labels.reshape(1, -1, len(SEEN)), len(moves), 0)
    for kind, knows in zip(kinds, moves, strict=True):
        if not knows:
            kind[:, len(COLOURS) + len(SHAPES) :] = -1
    return Looked(clip.key, inputs, torch.from_numpy(kinds))


class ListenTask(StageTask):
    """Lesson `listening`: all of the host but its mask model, by the losses of Eq. 11 and without SPARROW's parts.

    "align" pulls the vectors of [SEG] to the pointers at the object (`pointers`: [N, 256] by key of the sample, one per
    [SEG]): mask losses alone hardly find them from nothing.
    """

    def __init__(self, sparrow: Sparrow, pointers: dict[str, Tensor]):
        stage = StageConfig(full=("seg_head",), losses=("language", "masks"))
        sparrow.config = sparrow.config.model_copy(update={"stage1": stage})
        sparrow.lora_names = {"llm": []}  # nothing is wrapped: this is the model below the adapters
        super().__init__(sparrow, "stage1")
        self.name, self.pointers = "listening", pointers
        self.by_family = {}
        self.weights = {"ce": 0.5, "bce": 2.0, "dice": 1.0, "align": 1.0}
        sparrow.lora_names = {}
        sparrow.host.requires_grad_(True)
        sparrow.host.sam.requires_grad_(False)
        for tower in eyes(sparrow.host):
            tower.requires_grad_(False)
        self.trained = [name for name, p in sparrow.named_parameters() if p.requires_grad]
        self._vectors: list[Tensor] = []
        self._hook = sparrow.host.seg_head.register_forward_hook(
            lambda _, args, out: self._vectors.append(out)
        )
        self._tokens: dict[str, list[Tensor]] = {}
        self._look = sparrow.host.visual_tokens_each

    def close(self) -> None:
        """Leave the host as any other."""
        self._hook.remove()
        self.sparrow.host.__dict__.pop("visual_tokens_each", None)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """What the towers, which no longer change, say of a clip is computed once: a third of a step's work."""
        self.sparrow.host.visual_tokens_each = lambda inputs: self._seen(batch.keys, inputs)  # type: ignore[method-assign]
        self._vectors.clear()
        found = super().losses(batch)
        said = torch.cat(self._vectors)
        wanted = torch.cat([self.pointers[key] for key in batch.keys]).to(said)
        return found | {
            "align": F.mse_loss(said, wanted.repeat(1, said.shape[1] // wanted.shape[1]))
        }

    @torch.no_grad()
    def _seen(self, keys: Sequence[str], inputs: Sequence[dict[str, Tensor]]) -> list[list[Tensor]]:
        if new := [i for i, key in enumerate(keys) if key not in self._tokens]:
            self._tokens |= dict(
                zip([keys[i] for i in new], self._look([inputs[i] for i in new]), strict=True)
            )
        return [self._tokens[key] for key in keys]
