"""What `sparrow train` does: proposer, stage 1, stage 2, each from the one before, on shards; and what it refuses."""

import json

import pytest
import torch

from flows import train as training
from model.checkpoints import CheckpointError, load, require_filled
from model.checkpoints import describe as checkpoint
from model.data.questions import FAMILIES, MASKED
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
    assert done == 0
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
        about = describe(tmp_path / what / "export")
        assert about.pop("run")["settings"]["stage"] == what
        assert about == {"stage": what, "steps": 3, "after": after}
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


NOISE = {
    "corruption": "id_switch",
    "corruption_level": 0.25,
    "n_corrupted": 4,
    "n_corruptible": 20,
    "n_switchable": 18,
}


def test_stage_1_asks_curated_questions_and_counts_them(tmp_path):
    data = make_output(tmp_path / "data", {"a": (1, 2)}, questions=2)
    text = run("stage1", data, tmp_path / "run", steps=4)
    assert "an epoch: 8 question-answer pairs about 4 referents" in text
    rows = read(tmp_path / "run" / "steps.csv")
    counts = [sum(row[f"n_{name}"] for name in FAMILIES) for row in rows]
    assert counts == [2] * 4
    assert sum(row["n_tsf"] for row in rows) == 4
    for row in rows:
        for name in FAMILIES:
            assert (f"ce_{name}" in row) == (row[f"n_{name}"] > 0)
            if name in MASKED:
                assert (f"dice_{name}" in row) == (row[f"n_{name}"] > 0)
        assert row["n_region"] < 2  # every step has a mask
    asked = {name: int(sum(row[f"n_{name}"] for row in rows)) for name in FAMILIES}
    assert f"region {asked['region']}, region_mask {asked['region_mask']}" in text
    assert "4 of 8 samples with TSF" in text
    assert (tmp_path / "run" / "losses.png").stat().st_size > 10_000


def test_a_single_sample_in_a_step_is_asked_for_its_mask_too(tmp_path):
    data = make_output(tmp_path / "data", {"a": (1, 2)})
    text = run("stage1", data, tmp_path / "run", steps=4, batch=1)
    assert "`region` is asked as `region_mask`" in text
    assert sum(row["n_region"] for row in read(tmp_path / "run" / "steps.csv")) == 0


def test_a_run_states_the_noise_that_its_data_was_curated_with(tmp_path):
    data = make_output(tmp_path / "data", {"a": (1, 2)}, noise=NOISE)
    text = run("stage1", data, tmp_path / "run", steps=2)
    assert "id_switch 0.25, 20.0% of 80 frames changed; 0 of 4 referents have no" in text
    settled = json.loads((tmp_path / "run" / "config.json").read_text())["settled"]["model"]
    assert (settled["corruption"]["kind"], settled["corruption"]["level"]) == ("id_switch", 0.25)
    assert settled["corruption_achieved"] == pytest.approx(0.2)
    for row in read(tmp_path / "run" / "steps.csv"):
        assert row["n_corrupted"] == 4 * row["n_tsf"]
        assert row["n_corruptible"] == 20 * row["n_tsf"]
    exported = checkpoint(tmp_path / "run" / "export")["sparrow"]
    assert exported["corruption"] == settled["corruption"]
    assert exported["corruption_achieved"] == settled["corruption_achieved"]
    for changes, message in (
        ({"corruption.kind": "jitter", "corruption.level": 0.1}, "is a step of curation"),
        ({"tsf.selection": "online"}, "does not see"),
    ):
        request = training.Request(
            what="stage1",
            data=str(data),
            out=str(tmp_path / "other"),
            **(COMMON | {"changes": COMMON["changes"] | changes}),
        )
        with pytest.raises(ValueError, match=message):
            training.run(request, print)


def test_both_stages_have_the_same_noise(tmp_path):
    noisy = make_output(tmp_path / "noisy", {"a": (1, 2)}, noise=NOISE)
    clean = make_output(tmp_path / "clean", {"a": (1, 2)})
    run("stage1", noisy, tmp_path / "stage1", steps=2)
    with pytest.raises(
        ValueError, match=r"noise id_switch 0\.25 .* stage 2 has none 0: train both"
    ):
        run("stage2", clean, tmp_path / "stage2", tmp_path / "stage1" / "export", steps=2)
    run("stage2", noisy, tmp_path / "stage2", tmp_path / "stage1" / "export", steps=2)
    exported = checkpoint(tmp_path / "stage2" / "export-full")["sparrow"]
    assert exported["corruption"]["kind"] == "id_switch"
    assert exported["corruption_achieved"] == pytest.approx(0.2)


def test_check_names_what_a_host_cannot_take(tmp_path, capsys):
    from typer.testing import CliRunner

    from flows.cli import app

    data = make_output(tmp_path / "data", {"a": (1, 2)})
    asked = ["train", "check", "--data", str(data), "--size", "tiny", "--host"]
    assert "all 4 referents fit" in CliRunner().invoke(app, [*asked, "unipixel"]).output
    text = CliRunner().invoke(app, [*asked, "glus", "--frames", "20"]).output
    assert "glus takes 2,048 positions: 4 of 4 referents may not fit" in text
    assert "a-c0-0: " in text
    missing = CliRunner().invoke(app, ["train", "stage1", "--data", str(data)])
    assert missing.exit_code == 2
    assert "--out is missing" in missing.output
    full = CliRunner().invoke(app, ["train", "check", "--data", str(data), "--host", "glus"])
    assert isinstance(full.exception, ValueError)
    assert "needs a tokenizer" in str(full.exception)


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
