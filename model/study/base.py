"""A host of the real classes, small and from nothing: what the published weights are to the real study.

Four lessons, one after the other, each through `model.train`:
  segmenting   the mask model learns to cut out what a box, or a vector that stands for colour and shape, points at
  following    the same through its memory, from the first frame on
  listening    the rest of the host learns to say [SEG], and to make a vector of its state that the mask model knows
  proposing    the proposer learns boxes of anything (Eq. 12)
Vectors for looks are scaffolding, as text encoders were for grounding models: they are thrown away after `listening`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from model.config import StageConfig, configure
from model.hosts import build
from model.hosts.base import Host
from model.hosts.internvideo2 import InternVideo2Config
from model.losses import mask_losses
from model.proposer.data.batches import Batch as Pictures
from model.proposer.pretrain import ProposerTask
from model.sam import Features, Prompt, Sam2, prepare
from model.sparrow import Sparrow
from model.study.config import StudyConfig
from model.study.feed import InMemory, to_record
from model.study.world import COLOURS, DIRECTIONS, SHAPES, StudyClip, make_clip
from model.train.config import TrainConfig
from model.train.task import Batch, StageTask
from model.train.trainer import TERMINATED, Trainer

LOOKS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
WORDS = (*COLOURS, *SHAPES, *DIRECTIONS, "moving", "that", "leaves", "stays")
PROPOSER = {
    "proposer.queries": 32, "proposer.encoder_layers": 1, "proposer.decoder_layers": 2, "proposer.ffn": 256,
    "proposer.levels": 2, "proposals.keep": 16,
}  # fmt: skip


def make_host(config: StudyConfig, seed: int, device: torch.device) -> Host:
    """An untrained host whose words are tokens.

    Weights of the language model start at 1 / sqrt(width): its own start, 0.02, is that of a model 50 times as wide.
    The mask model always thinks its object present, and makes one mask: it has not been taught to judge itself.
    """
    torch.manual_seed(seed)
    video = InternVideo2Config(
        width=64, depth=3, heads=4, mlp=128, image_size=config.look, pooled=32, teacher=32, teacher_final=32,
        teacher_layers=1,
    )  # fmt: skip
    sizes: dict[str, dict[str, Any]] = {
        "videoglamm": {"frames": 4, "clip_size": config.look, "video": video},
        "glus": {"clip_size": config.look},
        "unipixel": {},
    }
    host = build(config.host, "tiny", "cpu", sam_size=config.side, llm_layers=config.layers, **sizes[config.host])
    host.spec = replace(host.spec, train_memory=True, multimask=False)
    host.sam.memory_dtype = None
    host.sam.binarize_mask_from_pts_for_mem_enc = False
    host.sam.sam_mask_decoder.dynamic_multimask_via_stability = False
    host.add_tokens(WORDS)
    with torch.no_grad():
        last = host.sam.sam_mask_decoder.pred_obj_score_head.layers[-1]
        last.weight.zero_()
        last.bias.fill_(2.0)
        for name, layer in [*host.llm.named_modules(), *host.seg_head.named_modules()]:
            if isinstance(layer, nn.Linear) and name != "lm_head":
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.normal_(host.token_embeddings().weight, std=0.5)
    return host.to(device)


class SegmentTask:
    """Lessons `segmenting` (frames 1) and `following` (more): every object of a clip by its box, and where only one
    looks so, by the vector of its looks. A task of `model.train`."""

    def __init__(self, sam: Sam2, looks: nn.Embedding, frames: int, side: int):
        self.name = "segmenting" if frames == 1 else "following"
        self.module: nn.Module = nn.ModuleDict({"sam": sam.requires_grad_(True), "looks": looks.requires_grad_(True)})
        self.sam, self.looks, self.frames, self.side = sam, looks, frames, side
        self.weights = {"bce": 2.0, "dice": 1.0}
        sam.sam_mask_decoder.pred_obj_score_head.requires_grad_(False)

    def parameters(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "scale": 1.0}]

    def losses(self, batch: list[StudyClip]) -> dict[str, Tensor]:
        device = self.looks.weight.device
        length = len(batch[0].frames_thw3)
        times = sorted(torch.randperm(length)[: self.frames].tolist())
        features = self.sam.features(torch.cat([prepare(clip.frames_thw3[times], self.side, device) for clip in batch]))
        boxed, named = [], []
        for i, clip in enumerate(batch):
            for n, look in enumerate(clip.looks):
                if clip.masks_nthw[n, times[0]].any():
                    boxed.append((i, n))
                    if clip.looks.count(look) == 1:
                        named.append((i, n))
        share = torch.tensor([batch[0].frames_thw3.shape[2], batch[0].frames_thw3.shape[1]] * 2)
        boxes = torch.stack([torch.from_numpy(batch[i].boxes_nt4[n, times[0]]) / share for i, n in boxed])
        looks = torch.tensor([LOOKS.index(batch[i].looks[n]) for i, n in named], device=device)
        found: dict[str, list[Tensor]] = {"bce": [], "dice": []}
        for rows, prompt in (
            (boxed, Prompt(None, boxes.to(device), pads=1)),
            (named, Prompt(self.looks(looks)[:, None])),
        ):
            logits = self._logits(features, [i for i, _ in rows], prompt)
            masks = torch.from_numpy(np.stack([batch[i].masks_nthw[n, times] for i, n in rows])).float().to(device)
            logits = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear", align_corners=False)
            for name, value in zip(found, mask_losses(logits, masks), strict=True):
                found[name].append(value)
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _logits(self, features: Features, clips: list[int], prompt: Prompt) -> Tensor:
        """[N, frames, h, w] of one prompt per entry of `clips`."""
        if self.frames == 1:
            return self.sam.decode(features.rows(clips), prompt, multimask=False).logits_n1hw
        steps = self.sam.propagate(
            lambda t: features.rows([i * self.frames + t for i in clips]),
            self.frames, {0: (list(range(len(clips))), prompt)}, multimask=False,
        )  # fmt: skip
        return torch.stack([decoded.logits_n1hw[:, 0] for _, _, decoded in steps], 1)

    def counts(self, batch: list[StudyClip]) -> dict[str, float]:
        return dict.fromkeys(self.weights, float(len(batch)))

    def size(self, batch: list[StudyClip]) -> tuple[int, int]:
        return len(batch), 0

    def keys(self, batch: list[StudyClip]) -> list[str]:
        return [clip.key for clip in batch]

    def blocks(self) -> list[nn.Module]:
        return []

    def validate(self) -> dict[str, float]:
        return {}

    def gradient_checkpointing(self) -> None:
        raise ValueError("the study's models are too small for it")


class ListenTask(StageTask):
    """Lesson `listening`: all of the host but its mask model, by the losses of Eq. 11 and without SPARROW's parts."""

    def __init__(self, sparrow: Sparrow):
        stage = StageConfig(full=("projectors", "seg_head"), losses=("language", "masks"))
        sparrow.config = sparrow.config.model_copy(update={"stage1": stage})
        sparrow.lora_names = {"llm": []}  # nothing is wrapped: this is the model below the adapters
        super().__init__(sparrow, "stage1")
        self.name = "listening"
        sparrow.lora_names = {}
        sparrow.host.requires_grad_(True)
        sparrow.host.sam.requires_grad_(False)
        self.trained = [name for name, p in sparrow.named_parameters() if p.requires_grad]


def make_base(config: StudyConfig, seed: int, run: Path, device: torch.device, tell: Callable[[str], None]) -> None:
    """Train a host and its proposer from nothing; `<run>/base.safetensors`. What is there already is not done again."""
    host = make_host(config, seed, device)
    sparrow = Sparrow(host, configure("paper", **PROPOSER)).to(device)
    looks = nn.Embedding(len(LOOKS), 256).to(device)
    clips = [make_clip(seed, i, config.frames, config.side) for i in range(config.clips)]

    def lesson(task: Any, loader: Any, steps: int, lr: float) -> None:
        options = TrainConfig(steps=steps, batch=config.batch, lr=lr, warmup=min(50, steps - 1), weight_decay=0.01,
                              betas=(0.9, 0.98), schedule="cosine", save_every=steps, seed=seed, keep=1)  # fmt: skip
        tell(f"{config.host} {seed}: {task.name}, {steps} steps")
        train(task, loader, options, run / task.name, tell)

    feed = InMemory(clips, config.batch, seed)
    lesson(SegmentTask(host.sam, looks, 1, config.side), feed, config.segmenting, 1e-3)
    lesson(SegmentTask(host.sam, looks, config.shown, config.side), feed, config.following, 5e-4)
    host.sam.requires_grad_(False)
    alone = Sparrow(host, configure("host"))
    lesson(ListenTask(alone), _records(alone, clips, config, seed), config.listening, 2e-3)
    host.requires_grad_(False)
    assert sparrow.proposer is not None
    pictures = InMemory(clips, config.batch, seed, lambda batch: _pictures(batch))
    lesson(ProposerTask(host.sam, sparrow.proposer), pictures, config.proposing, 5e-4)
    save_model(sparrow.eval(), str(run / "base.safetensors"))


def train(task: Any, loader: Any, options: TrainConfig, run: Path, tell: Callable[[str], None]) -> None:
    """By the trainer; SIGTERM ends the process once the state is saved."""
    if Trainer(task, loader, options, run, tell=tell).run().stopped:
        raise SystemExit(TERMINATED)


def load_base(config: StudyConfig, seed: int, file: Path, device: torch.device, **changes: Any) -> Sparrow:
    """A model on the base of `make_base`; what `changes` add to it (adapters, bridge) starts untrained."""
    sparrow = Sparrow(make_host(config, seed, device), configure("paper", **(PROPOSER | changes))).to(device)
    missing, unexpected = load_model(sparrow, file, strict=False, device=str(device))
    if unexpected or [name for name in missing if not name.startswith("tsf.")]:
        raise ValueError(f"{file} is the base of another study: {[*missing, *unexpected][:5]}")
    return sparrow.eval()


def _records(sparrow: Sparrow, clips: Sequence[StudyClip], config: StudyConfig, seed: int) -> InMemory:
    from model.data.collate import to_sample

    none = sparrow.config.corruption
    samples = [
        (clip.key, to_sample(to_record(clip, i, config.shown, None, none), sparrow)) for i, clip in enumerate(clips)
    ]
    return InMemory(samples, config.batch, seed, lambda pairs: Batch([s for _, s in pairs], [k for k, _ in pairs]))


def _pictures(clips: Sequence[StudyClip]) -> Pictures:
    """The first frames, and boxes of everything in them, as detection data."""
    side = clips[0].frames_thw3.shape[1]
    return Pictures(
        torch.from_numpy(np.stack([clip.frames_thw3[0] for clip in clips])),
        [torch.from_numpy(clip.boxes_nt4[:, 0] / side) for clip in clips],
        "objectness", [clip.key for clip in clips], False, [],
    )  # fmt: skip
