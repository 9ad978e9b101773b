"""Weight files in, networks out: the official layout, OSTrack's, and our own."""

import json
import sys
import types
from collections import OrderedDict

import pytest
import torch
from torch import nn

from trackers.checkpoints import CheckpointError, read_state_dict
from trackers.cldtracker import CLDTrackerConfig, CLDTrackerNet
from trackers.cldtracker.checkpoint import (
    convert_checkpoint,
    load_cldtracker,
    make_net,
    text_branch_report,
)
from trackers.seeded import seed_module, seeded

TINY = CLDTrackerConfig.tiny()
PARITY = TINY.model_copy(update={"text": "parity"})


def text_tensors(dim: int = TINY.dim) -> dict[str, torch.Tensor]:
    """The small tensors of a text branch at torch's initial distribution, as a GPU training run saves them."""
    torch.manual_seed(0)
    convert_vector = nn.Linear(512, dim)
    down, up = nn.Linear(512, 128, bias=False), nn.Linear(128, 512, bias=False)
    return {
        "category_embedding.logit_scale": torch.tensor(4.6052),
        "category_embedding.convert_vector.weight": convert_vector.weight.detach(),
        "category_embedding.convert_vector.bias": convert_vector.bias.detach(),
        "category_embedding.adapter.fc.0.weight": down.weight.detach().half(),
        "category_embedding.adapter.fc.2.weight": up.weight.detach().half(),
    }


def backbone_and_head(config: CLDTrackerConfig = TINY) -> OrderedDict:
    return OrderedDict(seed_module(CLDTrackerNet(config), extra=False).state_dict())


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A file in the official layout, with settings of a class that is not there when it is read."""
    module = types.ModuleType("lib.train.admin.settings")

    class Settings:
        def __init__(self):
            self.env = {"workspace": "/x"}

    Settings.__module__, Settings.__qualname__ = module.__name__, "Settings"
    module.Settings = Settings
    for name in ("lib", "lib.train", "lib.train.admin"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "CLDTracker_ep0300.pth.tar"
    net = backbone_and_head() | text_tensors()
    torch.save(
        {
            "epoch": 300,
            "net_type": "CLDTracker",
            "net": net,
            "settings": Settings(),
            "stats": Settings(),
        },
        path,
    )
    monkeypatch.delitem(sys.modules, module.__name__)
    return path


@pytest.fixture
def ostrack(tmp_path):
    path = tmp_path / "OSTrack_ep0300.pth.tar"
    torch.save({"epoch": 300, "net_type": "OSTrack", "net": backbone_and_head()}, path)
    return path


def same(net: CLDTrackerNet, state: dict[str, torch.Tensor]) -> bool:
    own = net.state_dict()
    return all(torch.equal(own[name], state[name]) for name in own)


def test_the_official_file(official):
    net = load_cldtracker(official, TINY)
    assert (net.origin, net.config.text, net.training) == ("cldtracker", "uniform", False)
    assert same(net, backbone_and_head())


def test_half_precision_is_converted(tmp_path):
    torch.save(
        {
            "net": {
                k: v.half() if v.is_floating_point() else v for k, v in backbone_and_head().items()
            }
        },
        tmp_path / "a.pth",
    )
    net = load_cldtracker(tmp_path / "a.pth", TINY)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_an_ostrack_file_becomes_a_network_without_fusion(ostrack):
    net = load_cldtracker(ostrack, TINY)
    assert (net.origin, net.config.text) == ("ostrack", "none")
    with pytest.raises(CheckpointError, match="no text branch"):
        load_cldtracker(ostrack, PARITY)


def test_the_size_of_ostrack_384(shared):
    names = [e["name"] for e in json.loads((shared / "golden/cldtracker/keys.json").read_text())]
    with torch.device("meta"):
        own = CLDTrackerNet(CLDTrackerConfig(text="none")).state_dict()
    assert sorted(own) == sorted(n for n in names if not n.startswith("category_embedding."))
    assert (len(own), sum(n.startswith("backbone.") for n in own)) == (242, 152)


def test_conversion_keeps_values_and_origin(official, ostrack, tmp_path):
    for source, origin, text in ((official, "cldtracker", "uniform"), (ostrack, "ostrack", "none")):
        summary = convert_checkpoint(source, tmp_path / f"{origin}.safetensors", config=TINY)
        count = len(backbone_and_head())
        assert (summary["tensors"], summary["origin"], summary["source"]) == (
            count,
            origin,
            source.name,
        )
        net = load_cldtracker(summary["path"], TINY)
        assert (net.origin, net.config.text) == (origin, text)
        assert same(net, backbone_and_head())
        assert len(summary["source_sha256"]) == 64
    assert sorted(p.name for p in tmp_path.glob("*.safetensors*")) == [
        "cldtracker.safetensors",
        "ostrack.safetensors",
    ]
    with pytest.raises(ValueError, match="safetensors"):
        convert_checkpoint(official, tmp_path / "a.pth", config=TINY)


def test_the_whole_file_with_its_text_branch(tmp_path):
    """CLIP included: 302 + 5 entries beside the tiny backbone and head."""
    net = CLDTrackerNet(PARITY)
    state = OrderedDict(
        (k, v.half() if "clip_model.visual.conv1" in k else v) for k, v in net.state_dict().items()
    )
    torch.save({"net": state}, tmp_path / "full.pth.tar")
    summary = convert_checkpoint(
        tmp_path / "full.pth.tar", tmp_path / "full.safetensors", subset=False, config=TINY
    )
    assert summary["tensors"] == len(backbone_and_head()) + 307
    found = read_state_dict(tmp_path / "full.safetensors")
    assert (
        found["category_embedding.logit_scale"]
        == found["category_embedding.clip_model.logit_scale"]
    )
    again = load_cldtracker(tmp_path / "full.safetensors", PARITY)
    assert again.config.text == "parity"
    assert same(again, {k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    assert load_cldtracker(tmp_path / "full.safetensors", TINY).origin == "cldtracker"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda net: net.pop("backbone.norm.weight"),
            ["1 missing", "backbone.norm.weight", "(64,)"],
        ),
        (
            lambda net: net.update({"backbone.new": torch.ones(3)}),
            ["1 unknown", "backbone.new", "(3,)"],
        ),
        (
            lambda net: net.update({"box_head.conv5_ctr.bias": torch.ones(2)}),
            ["1 mis-shaped", "conv5_ctr.bias", "(1,)", "(2,)"],
        ),
        (
            lambda net: net.update({"backbone.pos_embed_x": torch.ones(1, 16, 64)}),
            ["1 mis-shaped", "pos_embed_x"],
        ),
    ],
    ids=["missing", "unknown", "mis-shaped", "another search size"],
)
def test_a_file_that_does_not_fit_says_where(tmp_path, change, words):
    net = backbone_and_head()
    change(net)
    torch.save({"net": net}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as error:
        load_cldtracker(tmp_path / "a.pth", TINY)
    assert all(
        word in str(error.value) for word in [str(tmp_path / "a.pth"), "CLDTrackerNet", *words]
    )


def test_seeded_weights():
    net = make_net("seeded:s7:", TINY)
    assert net.origin == "seeded:s7:"
    assert not net.training
    name = "backbone.pos_embed"  # where the two sets of rules differ
    assert torch.equal(
        net.state_dict()[name], torch.from_numpy(seeded(name, (1, 197, 64), "s7:", extra=False))
    )


def test_weights_are_found_under_the_weights_root(official, monkeypatch):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(official.parent))
    assert make_net(official.name, TINY).origin == "cldtracker"
    with pytest.raises(CheckpointError, match=r"CLDTracker: .*missing\.pth is not there"):
        make_net("missing.pth", TINY)


def test_an_untrained_text_branch_is_recognised(official):
    report = text_branch_report(read_state_dict(official))
    assert report["untrained"] is True
    assert "never trained" in report["verdict"]
    rows = {name: (row["bound"], row["expected_std"]) for name, row in report["tensors"].items()}
    assert rows["convert_vector.weight"] == pytest.approx((0.0442, 0.0255), abs=1e-4)
    assert rows["adapter.fc.2.weight"] == pytest.approx((0.0884, 0.0510), abs=1e-4)
    assert len(rows) == 4


@pytest.mark.parametrize(
    "change", [lambda w: w * 1.1, lambda w: w + 0.02 * torch.randn_like(w), lambda w: w * 0.9]
)
def test_a_trained_text_branch_is_recognised(change):
    state = text_tensors(768)
    name = "category_embedding.convert_vector.weight"
    report = text_branch_report(state | {name: change(state[name])})
    assert report["untrained"] is False
    assert report["verdict"].startswith("convert_vector.weight differ")
    assert report["tensors"]["adapter.fc.0.weight"]["initial"]


def test_a_file_without_text_branch_has_no_verdict():
    assert text_branch_report({"a": torch.ones(1)})["untrained"] is None
