"""A host of the real classes, small and from nothing: what the published weights are to the real study.

Six lessons, one after the other, each through `model.train`:
  segmenting   the mask model learns to cut out what a box points at
  pointing     and what a vector points at that stands for looks and a place
  following    the same through its memory, from the first frame on
  seeing       the towers learn which words are true of what is in a cell: colour, shape, and what it does
  listening    the language model learns to say [SEG], and to make such a vector of it
  proposing    the proposer learns boxes of anything (Eq. 12)
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import configure
from model.data.collate import to_sample
from model.hosts import build
from model.hosts.base import Host
from model.hosts.internvideo2 import InternVideo2Config
from model.proposer.data.batches import Batch as Pictures
from model.proposer.pretrain import ProposerTask
from model.sparrow import Sparrow
from model.study.config import StudyConfig
from model.study.feed import InMemory, to_record
from model.study.lessons import WORDS, ListenTask, Pointers, SeeTask, SegmentTask, look
from model.study.world import StudyClip, make_clip
from model.train.config import TrainConfig
from model.train.resume import choose
from model.train.task import Batch
from model.train.trainer import Trainer

PROPOSER = {
    "proposer.queries": 32,
    "proposer.encoder_layers": 1,
    "proposer.decoder_layers": 2,
    "proposer.ffn": 256,
    "proposer.levels": 2,
    "proposals.keep": 8,
    "filter.roi_size": 4,
}


def make_host(config: StudyConfig, seed: int, device: torch.device) -> Host:
    """An untrained host whose words are tokens.

    Weights of towers and language model start at 1 / sqrt(width): their own start, 0.02, is that of one 50 times as
    wide. The mask model always thinks its object present, and makes one mask: it has not been taught to judge
    itself.
    """
    torch.manual_seed(seed)
    video = InternVideo2Config(
        width=64,
        depth=3,
        heads=4,
        mlp=128,
        image_size=config.look,
        pooled=32,
        teacher=32,
        teacher_final=32,
        teacher_layers=1,
    )
    sizes: dict[str, dict[str, Any]] = {
        "videoglamm": {"frames": 4, "clip_size": config.look, "video": video},
        "glus": {"clip_size": config.look},
        "unipixel": {},
    }
    host = build(
        config.host,
        "tiny",
        "cpu",
        sam_size=config.side,
        llm_layers=config.layers,
        **sizes[config.host],
    )
    host.spec = replace(host.spec, train_memory=True, multimask=False, pads=host.spec.train_pads)
    host.sam.memory_dtype = None
    host.sam.binarize_mask_from_pts_for_mem_enc = False
    host.sam.sam_mask_decoder.dynamic_multimask_via_stability = False
    host.add_tokens(WORDS)
    with torch.no_grad():
        last = host.sam.sam_mask_decoder.pred_obj_score_head.layers[-1]
        last.weight.zero_()
        last.bias.fill_(2.0)
        for name, layer in host.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d) and not name.startswith(
                ("sam.", "llm.lm_head")
            ):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        nn.init.normal_(host.token_embeddings().weight, std=0.5)
    return host.to(device)


def make_base(
    config: StudyConfig, seed: int, run: Path, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Train a host and its proposer from nothing; `<run>/base.safetensors`. What is there already is not done again."""
    host = make_host(config, seed, device)
    sparrow = Sparrow(host, configure("paper", **PROPOSER)).to(device)
    pointers = Pointers().to(device)
    clips = [make_clip(seed, i, config.frames, config.side) for i in range(config.clips)]

    def lesson(task: Any, loader: Any, steps: int, lr: float) -> None:
        options = TrainConfig(
            steps=steps,
            batch=config.batch,
            lr=lr,
            warmup=min(50, steps - 1),
            weight_decay=0.01,
            betas=(0.9, 0.98),
            schedule="cosine",
            save_every=steps,
            seed=seed,
            keep=1,
        )
        tell(f"{config.host} {seed}: {task.name}, {steps} steps")
        train(task, loader, options, run / task.name, tell)

    for name, frames, steps, lr in (
        ("segmenting", 1, config.segmenting, 1e-3),
        ("pointing", 1, config.pointing, 1e-3),
        ("following", config.shown, config.following, 5e-4),
    ):
        feed = InMemory(clips, max(1, config.batch // frames), seed)
        lesson(SegmentTask(name, host.sam, pointers, frames, config.side), feed, steps, lr)
    host.sam.requires_grad_(False)
    looked = [look(host, clip) for clip in clips]
    lesson(
        SeeTask(host, len(looked[0].labels_knw)),
        InMemory(looked, config.batch, seed),
        config.seeing,
        2e-3,
    )
    del looked  # a gigabyte or two
    alone = Sparrow(host, configure("host"))
    feed, vectors = _records(alone, clips, pointers, config, seed)
    listen = ListenTask(alone, vectors)
    lesson(listen, feed, config.listening, 2e-3)
    listen.close()
    host.requires_grad_(False)
    assert sparrow.proposer is not None
    pictures = InMemory(clips, config.batch, seed, lambda batch: _pictures(batch))
    lesson(ProposerTask(host.sam, sparrow.proposer), pictures, config.proposing, 5e-4)
    once = {
        name for name, _ in [*sparrow.named_parameters(), *sparrow.named_buffers()]
    }  # shared ones under one name
    weights = {
        name: value.detach().cpu().clone()
        for name, value in sparrow.state_dict().items()
        if name in once
    }
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, run / "base.safetensors"
    )


def train(
    task: Any, loader: Any, options: TrainConfig, run: Path, tell: Callable[[str], None]
) -> None:
    """By the trainer; a signal ends the process once the state is saved. A damaged state is set aside."""
    chosen = choose(run, "last-good")
    outcome = Trainer(task, loader, options, run, tell=tell, chosen=chosen).run()
    if outcome.stopped:
        raise SystemExit(outcome.exit_code)


def load_base(
    config: StudyConfig, seed: int, file: Path, device: torch.device, **changes: Any
) -> Sparrow:
    """A model on the base of `make_base`; what `changes` add to it (adapters, bridge) starts untrained."""
    sparrow = Sparrow(
        make_host(config, seed, device), configure("paper", **(PROPOSER | changes))
    ).to(device)
    weights = load_file(file, device=str(device))
    missing = [
        name
        for name, _ in sparrow.named_parameters()
        if name not in weights and not name.startswith("tsf.")
    ]
    unexpected = sparrow.load_state_dict(weights, strict=False).unexpected_keys
    if missing or unexpected:
        raise ValueError(f"{file} is the base of another study: {[*missing, *unexpected][:5]}")
    return sparrow.eval()


@torch.no_grad()
def _records(
    sparrow: Sparrow, clips: Sequence[StudyClip], pointers: Pointers, config: StudyConfig, seed: int
) -> tuple[InMemory, dict[str, Tensor]]:
    """Samples of `listening`, and the vectors that their [SEG] should make. One [SEG] for a whole video is about the
    prompted frame, so masks of that one will do."""
    samples, vectors = [], {}
    for i, clip in enumerate(clips):
        record = to_record(clip, i, config.shown, None, sparrow.config.corruption)
        sample, boxes = (
            to_sample(record, sparrow),
            torch.from_numpy(record.boxes_t4[record.times_f]),
        )
        if sparrow.host.spec.seg_granularity == "video":
            sample = replace(
                sample,
                sam_frames_f3ss=sample.sam_frames_f3ss[:1],
                masks_nfhw=sample.masks_nfhw[:, :1],
            )
            boxes = boxes[:1]
        samples.append((clip.key, sample))
        vectors[clip.key] = pointers(clip.looks[:1] * len(boxes), boxes.nan_to_num(0.5))
    feed = InMemory(
        samples,
        config.batch,
        seed,
        lambda pairs: Batch([s for _, s in pairs], [k for k, _ in pairs]),
    )
    return feed, vectors


def _pictures(clips: Sequence[StudyClip]) -> Pictures:
    """The first frames, and boxes of everything in them, as detection data."""
    side = clips[0].frames_thw3.shape[1]
    return Pictures(
        torch.from_numpy(np.stack([clip.frames_thw3[0] for clip in clips])),
        [torch.from_numpy(clip.boxes_nt4[:, 0] / side) for clip in clips],
        "objectness",
        [clip.key for clip in clips],
        False,
        [],
    )
