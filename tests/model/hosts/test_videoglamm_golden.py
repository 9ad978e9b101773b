"""VideoGLaMM against the official model's numbers (README_hosts.md, section 5.1)."""

import importlib
import json
import sys
import zlib

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from model.hosts.base import IGNORE, IMAGE, select
from model.hosts.clip import patch_tokens
from model.hosts.internvideo2 import InternVideo2Config
from model.hosts.videoglamm import VideoGLaMM
from model.hosts.videoglamm_inputs import VideoGLaMMConfig
from model.losses import mask_losses
from model.sam import to_frame
from trackers.seeded import seeded

MERGED, HIDDEN, LOGITS, VIDEO_F32, VIDEO_BF16, PIXELS, LOSS = (
    2e-5,
    1e-4,
    5e-4,
    1e-3,
    5e-3,
    1e-3,
    1e-4,
)
"""The golden vectors' own tolerances (README_hosts.md, section 5)."""
OURS = {
    "model.vision_tower.": "",
    "vision_encoder.": "video_encoder.",
    "model.image_vision_tower.vision_tower.vision_model.": "image_encoder.",
    "model.mm_projector.": "video_projector.",
    "model.image_mm_projector.": "image_projector.",
    "model.visual_model.": "sam.",
    "model.text_hidden_fcs.0.": "seg_head.",
    "lm_head.": "llm.lm_head.",
    "model.": "llm.model.",
}
"""Beginnings of official names -> ours; each is tried once, in this order."""
CONFIG = VideoGLaMMConfig(
    vocab=64,
    llm_dim=64,
    llm_layers=2,
    llm_heads=4,
    llm_mlp=128,
    clip_dim=32,
    clip_layers=3,
    clip_heads=4,
    clip_mlp=64,
    video=InternVideo2Config(
        width=64,
        depth=4,
        heads=4,
        mlp=279,
        pooled=96,
        teacher=80,
        teacher_final=48,
        teacher_layers=1,
    ),
    video_text=32,
    sam="2.0-tiny",
    sam_size=256,
    tokenizer="bytes",
)


def our_name(official: str) -> str:
    for theirs, ours in OURS.items():
        if official.startswith(theirs):
            official = ours + official.removeprefix(theirs)
            if ours:
                break
    fuser = official.startswith("sam.memory_encoder.fuser.layers.") and official.count(".") == 5
    return (
        official.removesuffix("weight") + "gamma"
        if fuser and official.endswith(".weight")
        else official
    )


def collapse(ids: list[int]) -> list[int]:
    """The reference's run of placeholders -> our one IMAGE."""
    return [token for i, token in enumerate(ids) if token != IMAGE or ids[i - 1] != IMAGE]


class Golden:
    """The reference's numbers, and one run of our host on the same inputs."""

    def __init__(self, shared):
        folder = shared / "golden/hosts/videoglamm"
        self.values = np.load(folder / "videoglamm.npz")
        self.meta = json.loads((folder / "videoglamm.json").read_text())
        self.keys = {k["name"]: k for k in json.loads((folder / "keys.json").read_text())}
        sys.path.insert(0, str(shared / "golden"))
        try:
            self.inputs = importlib.import_module("golden_inputs")
        finally:
            sys.path.pop(0)
        self.host = VideoGLaMM(CONFIG).eval()
        state = {
            our_name(name): seeded(self.source(name), tuple(key["shape"]))
            for name, key in self.keys.items()
        }
        wanted = self.host.state_dict()
        assert {name: tuple(t.shape) for name, t in wanted.items()} == {
            n: v.shape for n, v in state.items()
        }
        self.host.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        self.pixels = {
            "image": self.square("context", 16, 336),
            "video": self.square("video", 16, 224),
        }
        ids = collapse(self.meta["input_ids"])
        with torch.no_grad():
            self.packed = self.host.pack([ids], [self.pixels], answer_begins=[ids.index(9) + 1])
            self.logits, self.hidden, _ = self.host.lm(self.packed)
            self.at_seg = select(self.hidden[0], self.packed.ids_bl[0], self.meta["seg_token"])
            self.maps = self.host.sam.features(self.square("sam", 6, 256))

    def source(self, name: str) -> str:
        return self.keys[name].get("alias_of") or name

    def square(self, name: str, frames: int, side: int) -> torch.Tensor:
        clip = self.inputs.moving_square(
            f"hosts/videoglamm/{name}",
            frames,
            side,
            side,
            3 * side // 8,
            5 * side // 16,
            side // 8,
            side // 4,
            max(1, side // 48),
            max(1, side // 64),
            salt="s0:",
        )
        assert zlib.crc32(clip.tobytes()) == self.meta["crc32"][name]
        return torch.from_numpy(np.stack([self.inputs.normalised(frame) for frame in clip]))

    def check(self, ours, name, tolerance):
        theirs = self.values[name]
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(
            ours.detach().numpy(), theirs, rtol=0, atol=tolerance, err_msg=name
        )

    def check_masks(self, masks_tnhw, name):
        theirs = np.unpackbits(self.values[name])[: masks_tnhw.numel()].reshape(masks_tnhw.shape)
        assert (masks_tnhw.numpy() != theirs).mean() <= PIXELS


@pytest.fixture(scope="module")
def golden(shared):
    return Golden(shared)


def test_weights_are_the_reference_ones(golden):
    for name, crc in golden.meta["weights_check"].items():
        assert zlib.crc32(seeded(name, tuple(golden.keys[name]["shape"])).tobytes()) == crc, name


@torch.no_grad()
def test_the_image_tower_equals_the_reference(golden):
    patches = patch_tokens(golden.host.image_encoder, golden.pixels["image"][::4])
    golden.check(patches[:, ::8], "features/clip_every8", HIDDEN)


@torch.no_grad()
def test_the_video_tower_equals_the_reference(golden):
    chunks = golden.pixels["video"].unflatten(0, (4, 4)).transpose(1, 2)
    golden.check(golden.host.video_encoder(chunks)[:, ::16], "features/video_tower_every16", HIDDEN)


def test_the_prompt_equals_the_reference(golden):
    merged = golden.packed.embeds_bld[0]
    assert len(merged) == golden.meta["length"] == 3328 + 18
    assert (
        (golden.packed.ids_bl == IMAGE).sum() == golden.meta["visual_tokens"] == 16 * 144 + 16 * 64
    )
    assert golden.packed.positions[0].tolist() == list(range(3346))
    golden.check(merged[::13], "merged/every13", MERGED)
    text = golden.packed.ids_bl[0] != IMAGE
    around = golden.values["merged/first_and_last"]
    np.testing.assert_allclose(
        torch.cat([merged[:6], merged[-16:]]).detach(), around, rtol=0, atol=MERGED
    )
    assert text.sum() == 18
    golden.check(merged.norm(dim=1), "merged/l2_norm", MERGED)


def test_states_and_logits_equal_the_reference(golden):
    hidden = golden.hidden[0]
    golden.check(hidden[::13], "hidden/every13", HIDDEN)
    golden.check(hidden[-40:], "hidden/last40", HIDDEN)
    golden.check(hidden.norm(dim=1), "hidden/l2_norm", HIDDEN * hidden.shape[1] ** 0.5)
    golden.check(golden.logits[0, -40:], "logits_last40", LOGITS)
    seg = torch.nonzero(golden.packed.ids_bl[0][1:] == golden.meta["seg_token"]).flatten()
    assert seg.tolist() == golden.meta["seg_positions_expanded"]
    golden.check(golden.at_seg, "hidden/at_seg", HIDDEN)
    golden.check(golden.host.seg_prompt(golden.at_seg)[:, 0], "seg_vectors", HIDDEN)


@torch.no_grad()
def test_masks_frame_by_frame_equal_the_reference(golden):
    host = golden.host
    frames = torch.arange(6).repeat_interleave(2)
    prompt = host.prompt(golden.at_seg.repeat(6, 1), None, training=True)
    out = host.sam.decode(golden.maps.rows(frames), prompt, multimask=False)
    low = out.logits_n1hw.unflatten(0, (6, 2))[:, :, 0]
    golden.check(low[..., ::2, ::2], "frame_decode/low_res_logits", LOGITS)
    golden.check(low[0], "frame_decode/low_res_logits_frame0", LOGITS)
    golden.check(out.iou_n.reshape(6, 2, 1), "frame_decode/iou", HIDDEN)
    golden.check(out.object_score_n.reshape(6, 2, 1), "frame_decode/object_score", HIDDEN)
    golden.check_masks(
        to_frame(out.logits_n1hw, 120, 160).unflatten(0, (6, 2)), "frame_decode/masks_packed"
    )


@pytest.mark.parametrize(
    ("memory", "name", "tolerance"),
    [
        (torch.bfloat16, "mask_logits_every2", VIDEO_BF16),
        (None, "mask_logits_f32memory_every2", VIDEO_F32),
    ],
)
@torch.no_grad()
def test_masks_through_memory_equal_the_reference(golden, memory, name, tolerance, monkeypatch):
    host, meta = golden.host, golden.meta["propagate"]
    monkeypatch.setattr(host.sam, "memory_dtype", memory)
    prompt = host.prompt(golden.at_seg, None)
    golden.check(host.sam.sparse(prompt)[:1], "propagate/sparse_first_call", HIDDEN)
    offered: list[torch.Tensor] = []
    hook = host.sam.sam_mask_decoder.register_forward_hook(
        lambda _, __, out: offered.append(out[0])
    )
    steps = list(host.propagate(lambda t: golden.maps.rows([t]), 6, {0: ([0, 1], prompt)}))
    hook.remove()
    golden.check(offered[0][:1, :, ::2, ::2], "propagate/low_res_multimask_first_call", LOGITS)
    assert [(t, objects) for t, objects, _ in steps] == [(t, [0, 1]) for t in range(6)]
    golden.check(steps[0][2].logits_n1hw[:1], "propagate/low_res_first_call", LOGITS)
    ious, scores = (
        meta["predicted_iou"],
        meta["object_scores"],
    )  # two calls for the prompts, then one per frame
    np.testing.assert_allclose(steps[0][2].ious_nm, ious[:2], rtol=0, atol=HIDDEN)
    np.testing.assert_allclose(
        [steps[t][2].ious_nm[0].tolist() for t in range(1, 6)], ious[2:], rtol=0, atol=tolerance
    )
    theirs = [[scores[0][0], scores[1][0]], *scores[2:]]
    np.testing.assert_allclose(
        [s.object_score_n.tolist() for _, _, s in steps], theirs, rtol=0, atol=tolerance
    )
    logits = torch.stack([step.logits_n1hw for _, _, step in steps])[:, :, 0]
    golden.check(
        interpolate(logits, (120, 160), mode="bilinear")[..., ::2, ::2],
        f"propagate/{name}",
        tolerance,
    )
    golden.check_masks(
        torch.stack([to_frame(step.logits_n1hw, 120, 160) for _, _, step in steps]),
        "propagate/masks_packed",
    )


@torch.no_grad()
def test_a_picture_equals_the_reference(golden):
    host, meta = golden.host, golden.meta["image"]
    packed = host.pack([meta["input_ids"]], [{"image": golden.pixels["image"][3:4]}])
    assert len(packed) == meta["length"]
    golden.check(packed.embeds_bld[0, ::13], "image/merged_every13", MERGED)
    golden.check(packed.embeds_bld[0].norm(dim=1), "image/merged_l2_norm", MERGED)
    _, hidden, _ = host.lm(packed)
    golden.check(hidden[0, ::13], "image/hidden_every13", HIDDEN)
    seg = select(hidden[0], packed.ids_bl[0], golden.meta["seg_token"])
    golden.check(seg, "image/hidden_at_seg", HIDDEN)
    golden.check(host.seg_prompt(seg)[:, 0], "image/seg_vectors", HIDDEN)


@torch.no_grad()
def test_the_training_losses_equal_the_reference(golden):
    host, expected = golden.host, golden.meta["training_loss"]["values"]
    labels = golden.packed.labels_bl[0]
    assert (labels != IGNORE).sum() == 6
    ce = cross_entropy(golden.logits[0, :-1], labels[1:], ignore_index=IGNORE)
    targets = torch.zeros(6, 2, 120, 160)
    targets[:, 1, 10:50, 90:150] = 1
    for t in range(6):
        targets[t, 0, 40:80, 30 + 5 * t : 80 + 5 * t] = 1
    host.sam.sam_mask_decoder.train()  # so there is no dynamic fallback
    prompt = host.prompt(golden.at_seg.repeat(6, 1), None, training=True)
    out = host.sam.decode(
        golden.maps.rows(torch.arange(6).repeat_interleave(2)), prompt, multimask=False
    )
    host.sam.sam_mask_decoder.eval()
    masks = interpolate(out.logits_n1hw, (120, 160), mode="bilinear")[:, 0]
    padded = 6 * 4  # the reference divides by its ignored rows too
    bce, dice = mask_losses(masks, targets.flatten(0, 1), num_masks=padded)
    for ours, theirs in (
        (ce, "ce_loss"),
        (2 * bce, "mask_bce_loss"),
        (0.5 * dice, "mask_dice_loss"),
    ):
        assert float(ours) == pytest.approx(expected[theirs], rel=LOSS), theirs
