"""The network is built offline, leaves the package alone, and takes official files strictly or not at all."""

import runpy
import socket
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("groundingdino", reason="the `full` extra is not installed")

from pipeline.detect.grounding_dino import GroundingDINOConfig
from pipeline.detect.groundingdino_model import (
    ARCHITECTURES,
    GroundingDINO,
    build,
    load,
    make_model,
)
from pipeline.detect.groundingdino_text import write_text_encoder
from trackers.checkpoints import CheckpointError, read_state_dict

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> GroundingDINO:
    return make_model(GroundingDINOConfig.tiny(), CPU)


def test_building_leaves_the_package_as_it_was_and_asks_no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    make_model(GroundingDINOConfig.tiny(), CPU)
    from groundingdino.models.GroundingDINO import groundingdino as package

    assert package.BertModelWarper.__module__ == "groundingdino.models.GroundingDINO.bertwarper"
    assert package.get_tokenlizer.__name__ == "groundingdino.util.get_tokenlizer"
    assert (
        package.build_backbone.__module__ == "groundingdino.models.GroundingDINO.backbone.backbone"
    )


def test_the_deformable_attention_is_the_package_s_in_pure_pytorch(tiny: GroundingDINO):
    """Its own function, on the same numbers; no compiled op anywhere."""
    from groundingdino.models.GroundingDINO.ms_deform_attn import MultiScaleDeformableAttention

    from pipeline.detect.groundingdino_repairs import DeformableAttention

    ours = [m for m in tiny.net.modules() if isinstance(m, DeformableAttention)]
    assert len(ours) == 3  # one encoder layer, two decoder layers
    tiny(torch.zeros(1, 3, 64, 96), ["dog."])
    attention, levels = ours[0], ours[0].levels
    assert levels == [(8, 12), (4, 6), (2, 3), (1, 2)]
    torch.manual_seed(0)
    count = sum(h * w for h, w in levels)
    padding = torch.zeros(2, count, dtype=torch.bool)
    padding[1, 90:] = True
    for last in (2, 4):
        inputs = {
            "query": torch.randn(2, 7, 256),
            "value": torch.randn(2, count, 256),
            "key_padding_mask": padding,
            "reference_points": torch.rand(2, 7, 4, last),
            "spatial_shapes": torch.tensor(levels),
            "level_start_index": torch.tensor([0, 96, 120, 126]),
        }
        expected = MultiScaleDeformableAttention.forward(attention, **inputs)  # type: ignore[arg-type]
        torch.testing.assert_close(attention(**inputs), expected, rtol=0, atol=2e-6)
    assert not any(name.endswith("._C") and "groundingdino" in name for name in sys.modules)


@pytest.mark.parametrize(
    ("name", "file"),
    [("swint", "GroundingDINO_SwinT_OGC.py"), ("swinb", "GroundingDINO_SwinB_cfg.py")],
)
def test_the_architectures_are_those_that_the_package_ships(name: str, file: str):
    import groundingdino

    theirs = runpy.run_path(str(Path(groundingdino.__file__).parent / "config" / file))
    training = {"use_checkpoint", "use_transformer_ckpt"}
    for key, value in ARCHITECTURES[name].items():
        assert key in training or theirs[key] == value, key


@pytest.mark.parametrize(
    ("architecture", "tensors", "millions"), [("swint", 938, 172.8), ("swinb", 1106, 232.9)]
)
def test_full_size_tensors(architecture: str, tensors: int, millions: float, tmp_path: Path):
    write_text_encoder(tmp_path, tiny=False)
    net = build(ARCHITECTURES[architecture], tmp_path).net
    assert len(net.state_dict()) == tensors
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.fixture
def fresh(tmp_path: Path) -> GroundingDINO:
    write_text_encoder(tmp_path, tiny=True)
    return build(ARCHITECTURES["tiny"], tmp_path)


def same(a: GroundingDINO, b: GroundingDINO) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.net.state_dict().values(), b.net.state_dict().values(), strict=True)
    )


def test_the_official_layout_loads_strictly(
    tiny: GroundingDINO, fresh: GroundingDINO, tmp_path: Path
):
    """{"model": ...}, names of DistributedDataParallel, BERT's position_ids as older releases saved them."""
    state = {f"module.{name}": tensor for name, tensor in tiny.net.state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state}, tmp_path / "official.pth")
    load(fresh, read_state_dict(tmp_path / "official.pth"), "official.pth")
    assert same(tiny, fresh)


def test_safetensors_without_the_aliases_of_shared_tensors(
    tiny: GroundingDINO, fresh: GroundingDINO, tmp_path: Path
):
    from safetensors.torch import save_model

    save_model(tiny.net, str(tmp_path / "converted.safetensors"))
    state = read_state_dict(tmp_path / "converted.safetensors")
    assert len(state) < len(tiny.net.state_dict())
    load(fresh, state, "converted.safetensors")
    assert same(tiny, fresh)


def test_whatever_does_not_fit_is_named(tiny: GroundingDINO, fresh: GroundingDINO):
    before = {k: v.clone() for k, v in fresh.net.state_dict().items()}
    state = dict(tiny.net.state_dict())
    with pytest.raises(CheckpointError, match=r"1 missing[\s\S]*feat_map.bias"):
        load(fresh, {k: v for k, v in state.items() if k != "feat_map.bias"}, "a.pth")
    with pytest.raises(CheckpointError, match=r"1 unknown[\s\S]*label_enc"):
        load(fresh, state | {"label_enc": torch.zeros(3)}, "a.pth")
    with pytest.raises(CheckpointError, match=r"1 mis-shaped[\s\S]*feat_map.bias"):
        load(fresh, state | {"feat_map.bias": torch.zeros(3)}, "a.pth")
    different = {"bbox_embed.1.layers.0.bias": state["bbox_embed.1.layers.0.bias"] + 1}
    with pytest.raises(CheckpointError, match="are one tensor"):
        load(fresh, state | different, "a.pth")
    assert all(torch.equal(v, before[k]) for k, v in fresh.net.state_dict().items())


def test_an_unreadable_text_encoder_is_one_error(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(CheckpointError, match="text encoder"):
        build(ARCHITECTURES["tiny"], tmp_path)
