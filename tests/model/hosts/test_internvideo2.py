"""InternVideo2 against the official tower's numbers, and against its own rules."""

import importlib
import json
import sys
import zlib

import numpy as np
import pytest
import torch

from model.hosts.internvideo2 import InternVideo2, InternVideo2Config, wave_table
from trackers.seeded import normal, seed_module, seeded

TOLERANCE = 1e-4
"""The golden vectors' own (README_hosts.md, section 2)."""
TINY = InternVideo2Config(
    width=64,
    depth=4,
    heads=4,
    mlp=279,
    image_size=56,
    pooled=96,
    teacher=80,
    teacher_final=48,
    teacher_layers=3,
)


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/internvideo2"
    return np.load(folder / "internvideo2.npz"), json.loads(
        (folder / "internvideo2.json").read_text()
    )


@pytest.fixture(scope="module")
def tower():
    return seed_module(InternVideo2(TINY).eval(), "s0:")


@pytest.fixture(scope="module")
def video(shared):
    """[1, 3, 4, 56, 56]: the golden clip."""
    sys.path.insert(0, str(shared / "golden"))
    try:
        inputs = importlib.import_module("golden_inputs")
    finally:
        sys.path.pop(0)
    clip = inputs.moving_square("internvideo2/video", 4, 56, 56, 20, 16, 4, 6, 6, 4, salt="s0:")
    return torch.from_numpy(np.stack([inputs.normalised(frame) for frame in clip], 1))[None]


def check(ours, theirs):
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=TOLERANCE)


def test_names_and_shapes_are_the_official_ones(golden, tower):
    expected = {entry["name"]: tuple(entry["shape"]) for entry in golden[1]["keys"]}
    assert {name: tuple(t.shape) for name, t in tower.state_dict().items()} == expected
    for name, crc in golden[1]["weights_check"].items():
        assert zlib.crc32(seeded(name, expected[name], "s0:").tobytes()) == crc, name


def test_position_tables_start_as_the_official_ones(golden):
    np.testing.assert_allclose(
        wave_table(64, 4, 4), golden[0]["sincos_pos_embed"], rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(
        wave_table(64, 1, 4), golden[0]["sincos_img_pos_embed"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("case", ["gaussian", "video", "image"])
@torch.no_grad()
def test_every_layer_equals_the_reference(golden, tower, video, case):
    values, meta = golden
    shape = tuple(meta["cases"][case]["input_shape"])
    pixels = video if case == "video" else torch.from_numpy(normal(f"internvideo2/{case}", shape))
    seen = {}
    hooks = [
        block.register_forward_hook(
            lambda _, args, out, i=i: seen.update({f"block{i}": out, f"block{i}_input": args[0]})
        )
        for i, block in enumerate(tower.blocks)
    ]
    returned = tower(pixels, return_index=-2)
    for hook in hooks:
        hook.remove()
    patches = tower.patch_embed["proj"](pixels).flatten(3).permute(0, 2, 3, 1)
    check(patches, values[f"{case}/patch_embed"])
    check(seen["block0_input"], values[f"{case}/block0_input"])
    for i in range(3):
        check(seen[f"block{i}"], values[f"{case}/block{i}"])
    assert "block3" not in seen
    check(returned, values[f"{case}/returned_layer"])
    check(returned[:, 1:], values[f"{case}/returned_without_cls"])
    check(tower(pixels, return_index=-1), values[f"{case}/returned_layer_last"])


@torch.no_grad()
def test_positions_of_other_lengths_are_interpolated_in_time():
    tower = InternVideo2(TINY)
    with torch.no_grad():
        tower.pos_embed.normal_()
    table = tower.pos_embed[0, 1:].unflatten(0, (4, 16))
    double = tower.positions(8)
    assert torch.equal(double[0, 0], tower.pos_embed[0, 0])  # the class token has no place in time
    frames = double[0, 1:].unflatten(0, (8, 16))
    torch.testing.assert_close(frames[0], table[0])
    torch.testing.assert_close(frames[1], 0.75 * table[0] + 0.25 * table[1])
    torch.testing.assert_close(frames[7], table[3])
    assert tower(torch.rand(1, 3, 8, 56, 56)).shape == (1, 1 + 8 * 16, 64)


def test_the_full_tower_has_the_official_size(shared):
    with torch.device("meta"):
        tower = InternVideo2()
    assert sum(p.numel() for p in tower.parameters()) == 1_049_117_056
    keys = json.loads(
        (shared / "golden/keys/sparrow_finetune_export_with_video_tower.json").read_text()
    )["tensors"]
    prefix = "model.vision_tower.vision_encoder."
    entries = keys.items() if isinstance(keys, dict) else ((k["name"], k["shape"]) for k in keys)
    expected = {
        name.removeprefix(prefix): tuple(shape)
        for name, shape in entries
        if name.startswith(prefix)
    }
    assert {name: tuple(t.shape) for name, t in tower.state_dict().items()} == expected


@pytest.mark.parametrize("shape", [(1, 3, 56, 56), (1, 4, 4, 56, 56), (1, 3, 4, 56, 48)])
def test_wrong_shapes_are_named(tower, shape):
    with pytest.raises(ValueError, match=r"\[B, 3, T, 56, 56\], not"):
        tower(torch.zeros(shape))


@pytest.mark.parametrize("index", [0, 3, -5])
def test_layers_are_counted_from_the_end(tower, index):
    with pytest.raises(ValueError, match=f"return_index {index}"):
        tower(torch.zeros(1, 3, 4, 56, 56), return_index=index)
