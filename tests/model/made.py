"""Tiny hosts with SPARROW on them, and made samples."""

import numpy as np
import torch

from model.config import SparrowConfig, configure
from model.hosts import build
from model.hosts.base import Host
from model.sam import prepare
from model.sample import Sample
from model.sparrow import Sparrow
from pipeline.corrupt import corrupt
from pipeline.select import crop
from tests.made import moving_square

HOSTS = ("videoglamm", "unipixel", "glus")
SMALL = {
    "proposer.queries": 32,
    "proposer.encoder_layers": 1,
    "proposer.decoder_layers": 2,
    "proposer.ffn": 64,
}


def tiny_host(name: str, seed: int = 0) -> Host:
    """With random weights SAM2 thinks any object absent or not; here it thinks it is there, or memory has no masks."""
    torch.manual_seed(seed)
    host = build(name, "tiny", "cpu")
    with torch.no_grad():
        host.sam.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(2.0)
    return host


def tiny(name: str, preset: str = "paper", host: Host | None = None, **changes) -> Sparrow:
    """A tiny host with a proposer of 32 queries; release's 448 px input becomes 128."""
    small = SMALL | ({"proposals.input": 128} if preset == "release" else {})
    host = host or tiny_host(name)
    torch.manual_seed(1)
    return Sparrow(host, configure(preset, **(small | changes)))


def clip(frames: int = 6, height: int = 96, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A moving square: frames [T, H, W, 3], and its boxes [T, 4] xyxy in [0, 1]."""
    pictures, xywh = moving_square(3, frames)
    boxes = np.asarray(xywh, np.float32)
    boxes[:, 2:] += boxes[:, :2]
    shape = np.asarray(pictures).shape
    return np.asarray(pictures), boxes / np.float32([shape[2], shape[1], shape[2], shape[1]])


def sample(
    sparrow: Sparrow, *, objects: int = 1, frames: int = 4, config: SparrowConfig | None = None
) -> Sample:
    """One training sample about the moving square; every object is the same square."""
    config, host = config or sparrow.config, sparrow.host
    pictures, boxes = clip(frames)
    height, width = pictures.shape[1:3]
    pixels = boxes * np.float32([width, height, width, height])
    masks = torch.zeros(objects, frames, height, width)
    for t, (x1, y1, x2, y2) in enumerate(pixels.round().astype(int)):
        masks[:, t, y1:y2, x1:x2] = 1
    wanted = config.tsf.wanted(training=True)
    corners = ",".join(f"{share:.2f}" for share in boxes[0])
    spelled = f" [{corners}]" if config.proposer.kind == "coords" else ""
    answer = host.answer.format(seg=" and ".join([sparrow.grounding_tokens()] * objects)) + spelled
    inputs, ids, begins = host.lesson(
        pictures, host.question("square"), answer, config.tsf.tokens if wanted else 0
    )
    track = corrupt(pixels, config.corruption, (pixels[::-1],), key=1)
    there = np.flatnonzero(~np.isnan(track).any(1))
    crops = [crop(pictures[t], track[t]) for t in np.resize(there, config.tsf.k)]
    return Sample(
        inputs=inputs,
        ids=ids,
        answer_begins=begins,
        sam_frames_f3ss=prepare(pictures, host.spec.sam_size),
        masks_nfhw=masks,
        boxes_n4=torch.from_numpy(boxes[:1]).repeat(objects, 1),
        crops=host.crop_features(crops) if wanted else None,
        text=answer,
        frame=pictures[0],
    )
