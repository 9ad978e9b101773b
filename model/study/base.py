"""A host of the real classes, small and from nothing: what the published weights are to the real study.

Five lessons, one after the other, each through `model.train`:
  segmenting   the mask model learns to cut out what a box points at
  naming       and what a vector that stands for colour and shape points at
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import StageConfig, configure
from model.data.collate import to_sample
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
    "proposer.levels": 2, "proposals.keep": 8, "filter.roi_size": 4,
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
    host.spec = replace(host.spec, train_memory=True, multimask=False, pads=host.spec.train_pads)
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
    """Lessons of the mask model: every object of a clip by its box and, after `segmenting`, where only one looks so by
    the vector of its looks. Boxes come first: learned together, neither is. A task of `model.train`."""

    def __init__(self, name: str, sam: Sam2, looks: nn.Embedding, frames: int, side: int):
        self.name = name
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
                    if clip.looks.count(look) == 1 and self.name != "segmenting":
                        named.append((i, n))
        share = torch.tensor([batch[0].frames_thw3.shape[2], batch[0].frames_thw3.shape[1]] * 2)
        boxes = torch.stack([torch.from_numpy(batch[i].boxes_nt4[n, times[0]]) / share for i, n in boxed])
        ids = torch.tensor([LOOKS.index(batch[i].looks[n]) for i, n in named], dtype=torch.long, device=device)
        found: dict[str, list[Tensor]] = {"bce": [], "dice": []}
        for rows, prompt in (
            (boxed, Prompt(None, boxes.to(device), pads=1)),
            (named, Prompt(self.looks(ids)[:, None])),
        ):
            if not rows:
                continue
            logits = self._logits(features, [i for i, _ in rows], prompt)
            masks = torch.from_numpy(np.stack([batch[i].masks_nthw[n, times] for i, n in rows])).float().to(device)
            logits = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear", align_corners=False)
            for name, value in zip(found, mask_losses(logits, masks), strict=True):
                found[name].append(value)
        weight = torch.tensor([0.25, 0.75][: len(found["bce"])], device=device)
        return {name: (torch.stack(values) * weight).sum() / weight.sum() for name, values in found.items()}

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
    """Lesson `listening`: all of the host but its mask model, by the losses of Eq. 11 and without SPARROW's parts.

    "align" pulls the vector of [SEG] to that of what the object looks like (`looks`, by key of the sample): from there
    the mask losses find the rest of what the words say.
    """

    def __init__(self, sparrow: Sparrow, looks: dict[str, Tensor]):
        stage = StageConfig(full=("projectors", "seg_head"), losses=("language", "masks"))
        sparrow.config = sparrow.config.model_copy(update={"stage1": stage})
        sparrow.lora_names = {"llm": []}  # nothing is wrapped: this is the model below the adapters
        super().__init__(sparrow, "stage1")
        self.name, self.looks = "listening", looks
        self.weights = {"ce": 0.5, "bce": 2.0, "dice": 1.0, "align": 1.0}
        sparrow.lora_names = {}
        sparrow.host.requires_grad_(True)
        sparrow.host.sam.requires_grad_(False)
        self.trained = [name for name, p in sparrow.named_parameters() if p.requires_grad]
        self._vectors: list[Tensor] = []
        self.hook = sparrow.host.seg_head.register_forward_hook(lambda _, args, out: self._vectors.append(out))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self._vectors.clear()
        found = super().losses(batch)
        said = torch.cat(self._vectors)
        wanted = torch.stack([self.looks[key] for key in batch.keys]).to(said)
        wanted = wanted.repeat_interleave(len(said) // len(wanted), 0).repeat(1, said.shape[1] // wanted.shape[1])
        return found | {"align": F.mse_loss(said, wanted)}


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

    for name, frames, steps, lr in (
        ("segmenting", 1, config.segmenting, 1e-3),
        ("naming", 1, config.naming, 1e-3),
        ("following", config.shown, config.following, 5e-4),
    ):
        feed = InMemory(clips, max(1, config.batch // frames), seed)
        lesson(SegmentTask(name, host.sam, looks, frames, config.side), feed, steps, lr)
    host.sam.requires_grad_(False)
    alone = Sparrow(host, configure("host"))
    vectors = {clip.key: looks.weight[LOOKS.index(clip.looks[0])].detach() for clip in clips}
    listen = ListenTask(alone, vectors)
    lesson(listen, _records(alone, clips, config, seed), config.listening, 2e-3)
    listen.hook.remove()
    host.requires_grad_(False)
    assert sparrow.proposer is not None
    pictures = InMemory(clips, config.batch, seed, lambda batch: _pictures(batch))
    lesson(ProposerTask(host.sam, sparrow.proposer), pictures, config.proposing, 5e-4)
    once = {name for name, _ in [*sparrow.named_parameters(), *sparrow.named_buffers()]}  # shared ones under one name
    weights = {name: value.detach().cpu().clone() for name, value in sparrow.state_dict().items() if name in once}
    save_file({name: value.contiguous() for name, value in weights.items()}, run / "base.safetensors")


def train(task: Any, loader: Any, options: TrainConfig, run: Path, tell: Callable[[str], None]) -> None:
    """By the trainer; SIGTERM ends the process once the state is saved."""
    if Trainer(task, loader, options, run, tell=tell).run().stopped:
        raise SystemExit(TERMINATED)


def load_base(config: StudyConfig, seed: int, file: Path, device: torch.device, **changes: Any) -> Sparrow:
    """A model on the base of `make_base`; what `changes` add to it (adapters, bridge) starts untrained."""
    sparrow = Sparrow(make_host(config, seed, device), configure("paper", **(PROPOSER | changes))).to(device)
    weights = load_file(file, device=str(device))
    missing = [name for name, _ in sparrow.named_parameters() if name not in weights and not name.startswith("tsf.")]
    unexpected = sparrow.load_state_dict(weights, strict=False).unexpected_keys
    if missing or unexpected:
        raise ValueError(f"{file} is the base of another study: {[*missing, *unexpected][:5]}")
    return sparrow.eval()


def _records(sparrow: Sparrow, clips: Sequence[StudyClip], config: StudyConfig, seed: int) -> InMemory:
    """Samples of `listening`. One [SEG] for a whole video is about the prompted frame, so masks of that one will do."""
    samples = []
    for i, clip in enumerate(clips):
        sample = to_sample(to_record(clip, i, config.shown, None, sparrow.config.corruption), sparrow)
        if sparrow.host.spec.seg_granularity == "video":
            sample = replace(sample, sam_frames_f3ss=sample.sam_frames_f3ss[:1], masks_nfhw=sample.masks_nfhw[:, :1])
        samples.append((clip.key, sample))
    return InMemory(samples, config.batch, seed, lambda pairs: Batch([s for _, s in pairs], [k for k, _ in pairs]))


def _pictures(clips: Sequence[StudyClip]) -> Pictures:
    """The first frames, and boxes of everything in them, as detection data."""
    side = clips[0].frames_thw3.shape[1]
    return Pictures(
        torch.from_numpy(np.stack([clip.frames_thw3[0] for clip in clips])),
        [torch.from_numpy(clip.boxes_nt4[:, 0] / side) for clip in clips],
        "objectness", [clip.key for clip in clips], False, [],
    )  # fmt: skip
