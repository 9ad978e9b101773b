"""GLUS against the official model's numbers (README_hosts.md, section 5.2)."""

import importlib
import json
import sys
import zlib

import numpy as np
import pytest
import torch

from model.hosts.base import IMAGE, select
from model.hosts.glus import GLUS
from model.hosts.glus_inputs import GLUSConfig, context_frames
from model.hosts.glus_memory import MemoryBank
from model.sam import to_frame
from trackers.seeded import seeded

MERGED, HIDDEN, LOGITS, VIDEO, PIXELS = 2e-5, 1e-4, 5e-4, 1e-3, 1e-3
"""The golden vectors' own tolerances (README_hosts.md, section 5)."""
OURS = {
    "model.vision_tower.vision_tower.vision_model.": "image_encoder.",
    "model.mm_projector.": "image_projector.",
    "model.visual_model.": "sam.",
    "model.text_hidden_fcs.0.": "seg_head.",
    "lm_head.": "llm.lm_head.",
    "model.": "llm.model.",
}
"""Beginnings of official names -> ours; the first that fits."""
CONFIG = GLUSConfig(
    vocab=128,
    llm_dim=64,
    llm_layers=2,
    llm_heads=4,
    llm_mlp=128,
    clip_dim=32,
    clip_layers=3,
    clip_heads=4,
    clip_mlp=64,
    sam="2.0-tiny",
    sam_size=256,
    memory_stride=1,
    tokenizer="bytes",
)


def our_name(official: str) -> str:
    return next(
        ours + official.removeprefix(theirs)
        for theirs, ours in OURS.items()
        if official.startswith(theirs)
    )


class Golden:
    """The reference's numbers, and our host on the same inputs."""

    def __init__(self, shared):
        folder = shared / "golden/hosts/glus"
        self.values = np.load(folder / "glus.npz")
        self.meta = json.loads((folder / "glus.json").read_text())
        self.keys = {
            k["name"]: tuple(k["shape"]) for k in json.loads((folder / "keys.json").read_text())
        }
        sys.path.insert(0, str(shared / "golden"))
        try:
            self.inputs = importlib.import_module("golden_inputs")
        finally:
            sys.path.pop(0)
        self.host = GLUS(CONFIG).eval()
        wanted = {n: tuple(t.shape) for n, t in self.host.state_dict().items()}
        official = {n: shape for n, shape in self.keys.items() if not n.endswith("inv_freq")}
        assert wanted == {our_name(n): shape for n, shape in official.items()}
        self.host.load_state_dict(
            {our_name(n): torch.as_tensor(seeded(n, s)) for n, s in official.items()}
        )
        clip = self.square("clip", 224, 84, 70, 28, 56, 10, 6)
        with torch.no_grad():
            self.patches = self.host.look(clip)
            self.maps = self.host.sam.features(self.square("sam", 256, 96, 80, 32, 64, 12, 7))
            self.steps = [self.ask(step) for step in self.meta["stride1"]]

    def square(self, name, side, *numbers):
        clip = self.inputs.moving_square(f"hosts/glus/{name}", 8, side, side, *numbers, salt="s0:")
        assert zlib.crc32(clip.tobytes()) == self.meta["crc32"][name]
        return torch.from_numpy(np.stack([self.inputs.normalised(frame) for frame in clip]))

    def ask(self, step):
        """The dialogue of one step, [SEG] said at its end as the reference does -> packed, states, states at [SEG]."""
        inputs = {
            "context": self.patches[self.meta["context_frames"]],
            "query": self.patches[step["window"]],
        }
        packed = self.host.pack([[*step["input_ids"], self.meta["tokens"]["seg"]]], [inputs])
        _, hidden, _ = self.host.lm(packed)
        return packed, hidden[0], select(hidden[0], packed.ids_bl[0], self.meta["tokens"]["seg"])

    def check(self, ours, name, tolerance):
        theirs = self.values[name]
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(
            ours.detach().numpy(), theirs, rtol=0, atol=tolerance, err_msg=name
        )


@pytest.fixture(scope="module")
def golden(shared):
    return Golden(shared)


def test_weights_are_the_reference_ones(golden):
    for name, crc in golden.meta["weights_check"].items():
        assert zlib.crc32(seeded(name, golden.keys[name]).tobytes()) == crc, name


def test_context_frames_are_the_reference_ones(golden):
    assert context_frames(8, 4) == golden.meta["context_frames"]


def test_the_tower_equals_the_reference(golden):
    every = golden.values["features/clip_every16"]
    looked = [*(golden.patches[i] for i in golden.meta["context_frames"]), golden.patches[0]]
    np.testing.assert_allclose(torch.stack(looked)[:, ::16], every, rtol=0, atol=HIDDEN)


@pytest.mark.parametrize("t", range(8), ids=lambda t: f"frame {t}")
def test_dialogues_equal_the_reference(t, golden):
    step, (packed, hidden, at_seg) = golden.meta["stride1"][t], golden.steps[t]
    assert (step["frame"], len(golden.steps)) == (t, 8)
    name, length = f"stride1/frame{t}", step["length"]
    assert len(packed) == length + 1  # and the [SEG] that is said
    assert packed.positions[0].tolist() == list(range(length + 1))
    assert (packed.ids_bl == IMAGE).sum() == 64 * (4 + len(step["window"]))
    seg = torch.nonzero(packed.ids_bl[0, 1:] == golden.meta["tokens"]["seg"]).flatten()
    assert seg.tolist() == step["seg_positions"]
    merged = packed.embeds_bld[0, :length]
    golden.check(merged.norm(dim=1), f"{name}/merged_l2_norm", 1e-4)
    if f"{name}/merged_every7" in golden.values:
        golden.check(merged[::7], f"{name}/merged_every7", MERGED)
        golden.check(hidden[:length:7], f"{name}/hidden_every7", HIDDEN)
    golden.check(hidden[:length].norm(dim=1), f"{name}/hidden_l2_norm", 1e-3)
    golden.check(at_seg, f"{name}/hidden_at_seg", HIDDEN)
    golden.check(golden.host.seg_prompt(at_seg[-1:])[0, 0], f"{name}/seg_vector", HIDDEN)


@pytest.mark.parametrize("stride", [1, 3])
@torch.no_grad()
def test_masks_and_memories_equal_the_reference(golden, stride, monkeypatch):
    host = golden.host
    monkeypatch.setattr(host, "config", CONFIG.model_copy(update={"memory_stride": stride}))
    remembered = []
    add = MemoryBank.add

    def spy(self, position, objects, embedding, logits):
        add(self, position, objects, embedding, logits)
        remembered.append((embedding, self.memories[position][0]))

    monkeypatch.setattr(MemoryBank, "add", spy)
    prompts = {
        t: ([0], host.prompt(at_seg[-1:], None)) for t, (_, _, at_seg) in enumerate(golden.steps)
    }
    assert prompts[0][1].pads == 0
    for t, (_, prompt) in prompts.items():
        golden.check(prompt.vectors_nk256[0, 0], f"stride{stride}/frame{t}/seg_vector", HIDDEN)
    steps = list(host.propagate(lambda t: golden.maps.rows([t]), 8, prompts))
    assert [(t, objects) for t, objects, _ in steps] == [(t, [0]) for t in range(8)]
    for (t, _, step), (embedding, memory) in zip(steps, remembered, strict=True):
        name, meta = f"stride{stride}/frame{t}", golden.meta[f"stride{stride}"][t]
        tolerance = LOGITS if t == 0 else VIDEO
        every = 1 if stride == 1 and t < 2 else 2
        golden.check(embedding[0, ::8], f"{name}/image_embedding_every8", tolerance)
        golden.check(step.logits_n1hw[0, 0, ::every, ::every], f"{name}/low_res_logits", tolerance)
        golden.check(memory[::4], f"{name}/memory_every4", tolerance)
        assert float(step.iou_n) == pytest.approx(meta["iou"][0], abs=1e-4)
        assert float(step.object_score_n) == pytest.approx(meta["object_score"], abs=1e-4)
        mask = to_frame(step.logits_n1hw, *golden.meta["mask_size"])[0].numpy()
        packed = np.unpackbits(golden.values[f"{name}/mask_packed"])[: mask.size].reshape(
            mask.shape
        )
        assert (mask != packed).mean() <= PIXELS
        assert mask.mean() == pytest.approx(meta["foreground"], abs=PIXELS)
