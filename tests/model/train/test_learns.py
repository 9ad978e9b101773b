"""That it learns, as small as it can be shown: proposer, stage 1 and stage 2 on four clips, over a host that knows
nothing but to cut out what a box of these clips' first frames points at."""

from dataclasses import replace

import torch
from torchvision.ops import box_iou

from model.config import configure
from model.data.collate import to_sample
from model.losses import oracle_recall
from model.metrics import region_similarity
from model.proposer.pretrain import ProposerTask
from model.sparrow import Sparrow
from model.study.base import PROPOSER, _pictures, make_host
from model.study.config import StudyConfig
from model.study.feed import InMemory, to_record
from model.study.lessons import Pointers, SegmentTask
from model.study.world import make_clip
from model.train.config import TrainConfig
from model.train.task import Batch, StageTask
from model.train.trainer import Trainer
from pipeline.corrupt import Corruption

CPU = torch.device("cpu")
CONFIG = StudyConfig(clips=8, frames=4, batch=4)


def test_the_filter_picks_what_was_named_and_both_prompts_beat_one(tmp_path):
    host = make_host(CONFIG, 0, CPU)
    clips = [make_clip(0, 3 * i, CONFIG.frames) for i in range(4)]  # told apart by appearance

    def train(task, feed, steps, lr):
        options = TrainConfig(
            steps=steps,
            batch=4,
            lr=lr,
            warmup=min(10, steps - 1),
            save_every=steps,
            weight_decay=0.0,
        )
        Trainer(task, feed, options, tmp_path / task.name).run()

    first = [
        replace(
            clip,
            frames_thw3=clip.frames_thw3[:1],
            masks_nthw=clip.masks_nthw[:, :1],
            boxes_nt4=clip.boxes_nt4[:, :1],
        )
        for clip in clips
    ]
    train(
        SegmentTask("segmenting", host.sam, Pointers(), 1, CONFIG.side),
        InMemory(first, 4, 0),
        100,
        1e-3,
    )
    host.sam.requires_grad_(False)
    sparrow = Sparrow(host, configure("paper", **PROPOSER, **{"tsf.path": "none"}))
    assert sparrow.proposer is not None
    train(ProposerTask(host.sam, sparrow.proposer), InMemory(clips, 4, 0, _pictures), 80, 1e-3)
    samples = [
        (clip.key, to_sample(to_record(clip, i, CONFIG.frames, None, Corruption()), sparrow))
        for i, clip in enumerate(clips)
    ]
    feed = InMemory(
        samples, 4, 0, lambda pairs: Batch([s for _, s in pairs], [k for k, _ in pairs])
    )
    train(StageTask(sparrow, "stage1"), feed, 6, 3e-3)
    train(StageTask(sparrow, "stage2"), feed, 60, 2e-3)

    sparrow.eval()
    boxes = [torch.from_numpy(clip.boxes_nt4[:, 0] / CONFIG.side) for clip in clips]
    proposals = [
        sparrow.propose(host.sam_features(clip.frames_thw3[:1]), None).boxes_xyxy for clip in clips
    ]
    assert oracle_recall(proposals, boxes)[0.5] > 0.95
    for clip, wanted in zip(clips, boxes, strict=True):
        found = sparrow.ground(clip.frames_thw3, clip.phrase, answer="force").instances
        best = max(found, key=lambda instance: instance.confidence[0])
        overlap = box_iou(torch.from_numpy(best.boxes[0])[None] / CONFIG.side, wanted)[0]
        assert overlap.argmax() == 0, clip.phrase
        assert overlap[0] > 0.5, clip.phrase

    trained, overlaps = sparrow.config, {}
    for prompts in ("seg", "box+seg"):
        sparrow.config = trained.with_(**{"decode.prompts": prompts})
        masks = [
            sparrow.ground(clip.frames_thw3, clip.phrase, answer="force").union(clip.phrase)
            for clip in clips
        ]
        overlaps[prompts] = [
            0.0 if mask is None else float(region_similarity(mask[:1], clip.masks_nthw[0, :1])[0])
            for mask, clip in zip(masks, clips, strict=True)
        ]
    assert min(overlaps["box+seg"]) > 0.8
    assert sum(overlaps["box+seg"]) > sum(overlaps["seg"]) + 1
