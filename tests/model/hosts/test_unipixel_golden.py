"""UniPixel against the official model's numbers (README_hosts.md, section 5.3), from front to back.

The first stage that fails is where the fault is.
"""

import copy
import dataclasses
import importlib
import json
import sys
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from model.hosts import build
from model.hosts.base import IMAGE, select
from model.hosts.unipixel import UniPixel
from model.hosts.unipixel_inputs import UniPixelConfig
from model.hosts.unipixel_reference import Pointed, region_tokens, window_order
from model.sam import to_frame
from trackers.seeded import seeded

MERGED, HIDDEN, LOGITS, VIDEO, PIXELS = 2e-5, 1e-4, 5e-4, 1e-3, 1e-3
"""The golden vectors' own tolerances (README_hosts.md, section 5)."""
CONFIG = UniPixelConfig(
    vocab=128,
    llm_dim=64,
    llm_layers=3,
    llm_heads=4,
    llm_kv_heads=2,
    llm_mlp=128,
    rope_section=(2, 3, 3),
    max_len=4096,
    vit_dim=32,
    vit_layers=4,
    vit_heads=4,
    vit_mlp=64,
    vit_window=56,
    vit_full=(1, 3),
    sam="2.1-tiny",
    sam_size=256,
)


def our_name(official: str) -> str:
    prefixes = {"model.": "llm.model.", "lm_head.": "llm.lm_head.", "sam2.": "sam."}
    for theirs, ours in prefixes.items():
        if official.startswith(theirs):
            official = ours + official.removeprefix(theirs)
            break
    fuser = official.startswith("sam.memory_encoder.fuser.layers.") and official.count(".") == 5
    return (
        official.removesuffix("weight") + "gamma"
        if fuser and official.endswith(".weight")
        else official
    )


class Golden:
    """The reference's numbers, and runs of our host on the same inputs."""

    def __init__(self, shared):
        folder = shared / "golden/hosts/unipixel"
        self.values = np.load(folder / "unipixel.npz")
        self.meta = json.loads((folder / "unipixel.json").read_text())
        self.keys = {k["name"]: k for k in json.loads((folder / "keys.json").read_text())}
        sys.path.insert(0, str(shared / "golden"))
        try:
            self.inputs = importlib.import_module("golden_inputs")
        finally:
            sys.path.pop(0)
        self.host = UniPixel(CONFIG).eval()
        state = {
            our_name(n): seeded(k.get("alias_of") or n, tuple(k["shape"]))
            for n, k in self.keys.items()
        }
        assert {n: tuple(t.shape) for n, t in self.host.state_dict().items()} == {
            n: v.shape for n, v in state.items()
        }
        self.host.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        words = {f"<|{word}|>": self.meta["tokens"][word] for word in ("seg", "ref", "mem")}
        self.host.tokenizer = SimpleNamespace(
            convert_tokens_to_ids=words.get, unk_token_id=None, pad_token_id=None, eos_token_id=2
        )
        patches = torch.from_numpy(
            self.inputs.gaussian("hosts/unipixel/pixel_values", (240, 1176), "s0:")
        )
        self.pixels = {"patches": patches, "grid": torch.tensor([self.meta["video_grid_thw"]])}

    def pack(self, case):
        video = self.meta["tokens"]["video_token_id"]
        ids = self.meta["cases"][case]["input_ids"]
        ids = [
            IMAGE if one == video else one
            for i, one in enumerate(ids)
            if one != video or ids[i - 1] != video
        ]
        return self.host.pack([ids], [self.pixels])

    def check(self, ours, name, tolerance):
        theirs = self.values[name]
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(
            ours.detach().numpy(), theirs, rtol=0, atol=tolerance, err_msg=name
        )

    def regions(self):
        """[objects, t, h / 2, w / 2]"""
        cells = torch.zeros(self.meta["references"]["mask_grid_shape"], dtype=torch.bool)
        cells[tuple(torch.tensor(self.meta["references"]["mask_grid_true_t_obj_h_w"]).T)] = True
        return cells.transpose(0, 1)

    def pointed(self):
        said = self.meta["references"]
        places = [[x / 256 for xy in points[0] for x in xy] for points in said["point_coords"]]
        return [
            Pointed(frame, tuple(xy))
            for (frame,), xy in zip(said["point_frames"], places, strict=True)
        ]


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def golden(shared):
    return Golden(shared)


def test_weights_are_the_reference_ones(golden):
    for name, crc in golden.meta["weights_check"].items():
        assert zlib.crc32(seeded(name, tuple(golden.keys[name]["shape"])).tobytes()) == crc, name


# --- the vision transformer ---


@pytest.fixture(scope="module")
def tower(golden) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for i, block in enumerate(golden.host.visual.blocks):

        def keep(_: Any, __: Any, out: torch.Tensor, name: str = f"block{i}") -> None:
            seen[name] = out

        hooks.append(block.register_forward_hook(keep))
    seen["tokens"] = golden.host.visual_tokens(golden.pixels)[0]
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("block", [f"block{i}" for i in range(4)])
def test_blocks_of_the_tower(block, golden, tower):
    golden.check(tower[block][::5], f"vision/{block}_every5", HIDDEN)


def test_the_merger_of_the_tower(golden, tower):
    merger = golden.host.visual.merger
    rows = merger.ln_q(tower["block3"]).reshape(60, -1)
    golden.check(rows, "vision/pre_merger_mlp_window_order", HIDDEN)
    raster = merger.mlp(rows)[window_order(golden.pixels["grid"], 2).argsort()]
    golden.check(raster, "vision/merger_output", HIDDEN)
    golden.check(tower["tokens"], "vision/merger_output", HIDDEN)


# --- what is pointed at ---


@pytest.fixture(scope="module")
def pointing(golden) -> dict[str, Any]:
    """The prompt with points, a box and regions in it, and what went through their projectors."""
    seen: dict[str, Any] = {}
    host = golden.host
    hooks = [
        host.tem_proj.register_forward_hook(lambda _, __, out: seen.setdefault("tem_proj", out)),
        host.msk_proj.register_forward_pre_hook(
            lambda _, args: seen.setdefault("mem_input", args[0])
        ),
    ]
    pointed, regions = golden.pointed(), golden.regions()
    packed = golden.pack("references")
    packed = host.refer(packed, golden.pixels, pointed=pointed, regions_otyx=regions)
    for hook in hooks:
        hook.remove()
    at = packed.ids_bl[0]
    seen["ref_embeddings"] = packed.embeds_bld[0, at == golden.meta["tokens"]["ref"]]
    seen["mem_embeddings"] = packed.embeds_bld[0, at == golden.meta["tokens"]["mem"]]
    return seen | {"packed": packed}


POINTING = {
    "tem_proj": ("time of points and boxes", HIDDEN),
    "ref_embeddings": ("tokens of points and boxes", MERGED),
    "mem_input": ("means of regions", HIDDEN),
    "mem_embeddings": ("tokens of regions", MERGED),
}
"""Golden name -> (what it is, tolerance)."""


@pytest.mark.parametrize("name", POINTING, ids=lambda name: POINTING[name][0])
def test_what_is_pointed_at(name, golden, pointing):
    golden.check(pointing[name], f"references/{name}", POINTING[name][1])


def test_regions_in_raster_order_are_the_cells_under_the_mask(golden):
    """The reference's rows are another place's; `region_order="raster"` picks the right ones."""
    rows = torch.from_numpy(golden.values["vision/pre_merger_mlp_window_order"])
    right = rows[window_order(golden.pixels["grid"], 2).argsort()].reshape(3, 4, 5, -1)
    regions = golden.regions()
    means = [
        right[t][regions[o, t]].mean(0) for o in range(2) for t in range(3) if regions[o, t].any()
    ]
    mended = copy.copy(golden.host)
    mended.config = CONFIG.model_copy(update={"region_order": "raster"})
    patches = golden.host.visual(
        golden.pixels["patches"], grid_thw=golden.pixels["grid"]
    ).last_hidden_state
    ours = region_tokens(mended, patches, golden.pixels["grid"], regions)
    assert ours.allclose(golden.host.msk_proj(torch.stack(means)), atol=HIDDEN)
    released = region_tokens(golden.host, patches, golden.pixels["grid"], regions)
    assert (ours - released).abs().max() > 0.01


# --- the language model ---


LANGUAGE = {
    "input_ids": ("ids", 0),
    "merged": ("merged embeddings", MERGED),
    "position_ids": ("positions", 0),
    "hidden_pre_norm": ("last layer", HIDDEN),
    "hidden_post_norm": ("last norm", HIDDEN),
    "logits_last8": ("logits", LOGITS),
}
"""Golden name -> (what it is, tolerance)."""


@pytest.fixture(scope="module", params=["two_objects", "references", "half_rate"])
def said(request, golden, pointing) -> tuple[str, dict[str, torch.Tensor]]:
    """(case, stages by golden name). Of `half_rate` the positions are the reference's: ours differ, see below."""
    case, host = request.param, golden.host
    packed = pointing["packed"] if case == "references" else golden.pack(case)
    if case == "half_rate":
        positions = torch.from_numpy(golden.values["half_rate/position_ids"])
        packed = dataclasses.replace(packed, positions=positions[:, None])
    ids = packed.ids_bl[0]
    logits, hidden, _ = host.lm(packed)
    stages = {
        "input_ids": ids.where(ids != IMAGE, golden.meta["tokens"]["video_token_id"]),
        "merged": packed.embeds_bld[0],
        "position_ids": packed.positions[:, 0],
        "hidden_pre_norm": hidden[0],
        "hidden_post_norm": host.final_norm(hidden)[0],
        "logits_last8": logits[0, -8:],
    }
    return case, stages


@pytest.mark.parametrize("name", LANGUAGE, ids=lambda name: LANGUAGE[name][0])
def test_language(name, golden, said):
    case, stages = said
    golden.check(stages[name], f"{case}/{name}", LANGUAGE[name][1])


def test_the_frame_rate_is_not_looked_at(golden):
    """The reference always says one second per frame pair, and collapses time for anything less."""
    ours, theirs = (
        golden.pack("half_rate").positions[:, 0].numpy(),
        golden.values["half_rate/position_ids"],
    )
    np.testing.assert_array_equal(ours[1:], theirs[1:])
    np.testing.assert_array_equal(
        ours[0, 5:65].reshape(3, 20), 5 + np.repeat([[0], [2], [4]], 20, 1)
    )
    assert set(theirs[0, 5:65]) == {5}


# --- masks ---


MASKS = {
    "seg_vectors": ("head of [SEG]", HIDDEN),
    "sparse_first_call": ("prompt", HIDDEN),
    "low_res_logits_frame0": ("logits of frame 0", LOGITS),
    "low_res_logits_every2": ("logits of all frames", VIDEO),
    "object_scores": ("object scores", HIDDEN),
    "mask_logits_every2": ("logits at the size of the video", VIDEO),
}
"""Golden name -> (what it is, tolerance)."""


@pytest.fixture(scope="module")
def masks(golden) -> dict[str, torch.Tensor]:
    """Stages by golden name, and of what is in no golden array `ious` and `low`."""
    host = golden.host
    packed = golden.pack("two_objects")
    _, hidden, _ = host.lm(packed)
    prompt = host.prompt(select(hidden[0], packed.ids_bl[0], host.seg_id), None)
    square = golden.inputs.moving_square(
        "hosts/unipixel/sam", 6, 256, 256, 96, 80, 48, 64, 14, 8, salt="s0:"
    )
    assert zlib.crc32(square.tobytes()) == golden.meta["sam_crc32"]
    frames = np.stack([golden.inputs.normalised(frame) for frame in square])
    maps = host.sam.features(torch.from_numpy(frames))
    steps = list(host.propagate(lambda t: maps.rows([t]), 6, {0: ([0, 1], prompt)}))
    assert [(t, names) for t, names, _ in steps] == [(t, [0, 1]) for t in range(6)]
    low = torch.stack([out.logits_n1hw[:, 0] for _, _, out in steps], 1)
    sized = interpolate(low, (120, 160), mode="bilinear")
    return {
        "seg_vectors": prompt.vectors_nk256,
        "sparse_first_call": host.sam.sparse(prompt)[:1],
        "low_res_logits_frame0": low[:, 0],
        "low_res_logits_every2": low[:, :, ::2, ::2],
        "object_scores": torch.stack([out.object_score_n for _, _, out in steps], 1),
        "mask_logits_every2": sized[:, :, ::2, ::2],
        "ious": torch.stack([out.ious_nm for _, _, out in steps], 1),
        "low": low,
    }


@pytest.mark.parametrize("name", MASKS, ids=lambda name: MASKS[name][0])
def test_masks(name, golden, masks):
    golden.check(masks[name], f"two_objects/{name}", MASKS[name][1])


def test_predicted_ious(golden, masks):
    wanted = golden.meta["cases"]["two_objects"]["predicted_iou"]
    np.testing.assert_allclose(masks["ious"], wanted, rtol=0, atol=HIDDEN)


def test_masks_at_the_size_of_the_video(golden, masks):
    ours = torch.stack([to_frame(one[:, None], 120, 160) for one in masks["low"]])
    bits = np.unpackbits(golden.values["two_objects/masks_packed"])
    assert (ours.numpy() != bits[: ours.numel()].reshape(ours.shape)).mean() <= PIXELS


# --- full size ---


@pytest.fixture(scope="module")
def full() -> Any:
    return build("unipixel", "full", device="meta")


def test_full_size_has_the_official_parameters(full):
    sizes = {
        name: sum(p.numel() for p in full.get_submodule(name).parameters())
        for name, _ in full.named_children()
    }
    sizes["visual"] = sum(p.numel() for p in full.visual.parameters())
    sizes["language"] = sizes.pop("llm") - sizes["visual"]
    sizes["references"] = sum(
        sizes.pop(name) for name in list(sizes) if name.startswith(("ref_", "tem_"))
    )
    assert sizes == {
        "language": 3_085_938_688,
        "visual": 668_684_288,
        "sam": 80_850_178,
        "msk_proj": 36_707_328,
        "seg_head": 5_247_488,
        "references": 4_336_204,
    }
    assert (
        sum(p.numel() for p in full.parameters()) == 3_881_764_174
    )  # 3,881,764,814 with three position codes
    assert full.llm.lm_head.weight is full.token_embeddings().weight


def test_full_size_names_are_the_official_ones(full, shared):
    listed = json.loads((shared / "golden/keys/unipixel_3b.json").read_text())["tensors"]
    official = {our_name(k["in_memory_name"]): tuple(k["shape"]) for k in listed}
    assert {name: tuple(t.shape) for name, t in full.state_dict().items()} == official


def test_full_size_needs_a_checkpoints_tokenizer(full):
    with pytest.raises(ValueError, match="no tokenizer"):
        full.conversation("Where?")
