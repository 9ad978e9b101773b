"""What `sparrow train` does: proposer, stage 1, stage 2, each from the one before, on shards; and what it refuses."""

import json

import pytest
import torch

from flows import train as training
from model.checkpoints import CheckpointError, load, require_filled
from model.train.export import describe
from model.train.log import read
from model.train.parallel import World
from tests.model.data.made import make_output
from tests.model.proposer.made import coco_like

COCO = [(f"{k}.jpg", f"train2017/{k}.jpg") for k in range(4)]
COMMON = {"size": "tiny", "workers": 0, "frames": 2, "changes": {"proposer.queries": 16}}


def run(what, data, out, start="", **train):
    said: list[str] = []
    options = {"steps": 3, "batch": 2, "lr": 1e-3} | train
    done = training.run(
        training.Request(
            what=what, data=str(data), out=str(out), start=str(start), train=options, **COMMON
        ),
        said.append,
    )
    assert done
    return "\n".join(said)


def test_the_whole_chain(tmp_path):
    coco_like(tmp_path / "detection" / "coco", "annotations/instances_train2017.json", COCO)
    data = make_output(tmp_path / "detection" / "shards", {"a": (2, 2)})
    text = run("proposer", tmp_path / "detection", tmp_path / "proposer")
    assert "made-up weights" in text
    state = json.loads(next((tmp_path / "proposer").glob("states/*/rank-0.json")).read_text())
    assert state["loader"]["of"]["corpora"] == {"coco": 4, "shards": 48}
    run("stage1", data, tmp_path / "stage1", tmp_path / "proposer" / "export")
    run("stage2", data, tmp_path / "stage2", tmp_path / "stage1" / "export")
    for what, terms in (
        ("proposer", {"ce", "bbox", "giou"}),
        ("stage1", {"ce", "bce", "dice"}),
        ("stage2", {"proposals"}),
    ):
        rows = read(tmp_path / what / "steps.csv")
        assert len(rows) == 3
        assert terms <= set(rows[0])
        after = {"proposer": [], "stage1": ["proposer"], "stage2": ["proposer", "stage1"]}[what]
        assert describe(tmp_path / what / "export") == {"stage": what, "steps": 3, "after": after}
        assert (
            json.loads((tmp_path / what / "config.json").read_text())["settled"]["train"]["batch"]
            == 2
        )
    request = training.Request(what="stage2", data="", out="", **COMMON)
    first, last = (training.make_model(request, World()) for _ in range(2))
    load(last, tmp_path / "stage2" / "export-full")
    require_filled(last)
    one, other = first.state_dict(), last.state_dict()
    for part in ("proposer.", "host.seg_head.", "filter.", "host.image_projector."):
        assert any(
            not torch.equal(one[name], other[name]) for name in one if name.startswith(part)
        ), part
    for part in ("host.sam.", "host.image_encoder."):
        assert all(torch.equal(one[name], other[name]) for name in one if name.startswith(part)), (
            part
        )

    with pytest.raises(ValueError, match="--from RUN_OF_STAGE_1/export"):
        run("stage2", data, tmp_path / "other")
    with pytest.raises(
        ValueError, match="is the export of proposer: stage 2 starts from stage 1's"
    ):
        run("stage2", data, tmp_path / "other", tmp_path / "proposer" / "export")
    with pytest.raises(CheckpointError, match="not an export"):
        run("stage1", data, tmp_path / "other", data)
    with pytest.raises(ValueError, match="no committed shard of split val"):
        run("stage1", data, tmp_path / "other", validate_every=1)
    with pytest.raises(ValueError, match="is no curated output either"):
        run("proposer", tmp_path / "stage1", tmp_path / "other")


def test_fields_are_named_and_sizes_need_weights(tmp_path):
    assert training.parse(["tsf.path=none", "train.lr=1e-4", "box.enabled=false"]) == (
        {"tsf.path": "none", "box.enabled": False},
        {"lr": 1e-4},
    )
    with pytest.raises(ValueError, match="write it as field=value"):
        training.parse(["tsf.path"])
    with pytest.raises(ValueError, match="--size full needs --checkpoint"):
        training.run(training.Request(what="stage1", data=str(tmp_path), out=str(tmp_path)))


def test_what_each_corpus_has_is_printed_before_the_first_step_and_missing_images_stop_it(tmp_path):
    data = tmp_path / "detection"
    coco_like(data / "coco", "annotations/instances_train2017.json", COCO)
    text = run("proposer", data, tmp_path / "whole")
    assert "coco: 4 of 4 images; 8 boxes" in text
    (data / "coco" / "train2017" / "3.jpg").unlink()
    with pytest.raises(ValueError, match=r"25\.0% of the images are missing .* allows 5\.0%"):
        run("proposer", data, tmp_path / "part")
    assert not (tmp_path / "part" / "steps.csv").exists()
