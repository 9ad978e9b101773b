"""SPARROW on every host: what trains in which stage, that new tokens learn, that every ablation runs a step."""

import pytest
import torch

from model.adapt import merge
from model.config import ABLATIONS, configure, release
from model.hosts.base import BOX_TOKEN, TSF
from tests.model.made import HOSTS, sample, tiny, tiny_host


@pytest.fixture(scope="module", params=HOSTS)
def name(request):
    return request.param


def step(sparrow, stage, batch):
    """One optimiser step; returns losses and the names of tensors that changed."""
    before = {n: p.detach().clone() for n, p in sparrow.named_parameters()}
    sparrow.train()
    losses = sparrow(batch, stage)
    losses["loss"].backward()
    torch.optim.SGD([p for p in sparrow.parameters() if p.requires_grad], 1e-2).step()
    return losses, {n for n, p in sparrow.named_parameters() if not torch.equal(p, before[n])}


def test_stages_train_what_the_paper_says_and_nothing_else(name):
    sparrow = tiny(name)
    sparrow.adapt()
    config = sparrow.config
    first = sparrow.train_stage(config.stage1)
    losses, changed = step(sparrow, config.stage1, [sample(sparrow)])
    assert set(losses) == {"loss", "ce", "bce", "dice"}
    assert changed <= set(first)
    for part in ("projector", "seg_head", ".lora_B."):
        assert any(part in n for n in changed) or (
            part == "projector" and any("merger" in n for n in changed)
        ), part
    assert any("trainable_tokens_delta" in n for n in changed)
    second = sparrow.train_stage(config.stage2)
    assert not set(first) & set(second)
    losses, changed = step(sparrow, config.stage2, [sample(sparrow)])
    assert set(losses) == {"loss", "proposals"}
    assert changed <= set(second)
    assert (
        {n.split(".")[0] for n in second}
        == {"filter", "box_adapter"}
        == {n.split(".")[0] for n in changed}
    )


def test_the_release_trains_through_lora_and_never_the_new_row():
    sparrow = tiny("videoglamm", "release")
    sparrow.adapt()
    first = sparrow.train_stage(sparrow.config.stage1)
    assert all(".lora_" in n for n in first)
    assert {n.split(".")[1] for n in first} == {
        "llm",
        "image_projector",
        "video_projector",
        "seg_head",
    }
    second = sparrow.train_stage(sparrow.config.stage2)
    assert {n.split(".")[0] for n in second} == {"filter", "host"}
    losses, changed = step(sparrow, sparrow.config.stage2, [sample(sparrow)])
    assert set(losses) == {"loss", "ce", "bce", "dice", "proposals"}
    assert changed <= set(second)


def test_a_new_token_starts_as_the_mean_and_learns(name):
    host = tiny_host(name)
    old = host.token_embeddings().weight.detach()[: len(host.tokenizer)].clone()
    sparrow = tiny(name, host=host)
    row = host.token_id(BOX_TOKEN)
    assert row not in range(len(old))
    torch.testing.assert_close(host.token_embeddings().weight[row], old.mean(0))
    sparrow.adapt()
    sparrow.train_stage(sparrow.config.stage1)
    step(sparrow, sparrow.config.stage1, [sample(sparrow)])
    merge(host)
    table = host.token_embeddings().weight
    assert not torch.allclose(table[row], old.mean(0))
    torch.testing.assert_close(table[: len(old)], old)


def test_merged_adapters_say_the_same(name):
    sparrow = tiny(name)
    sparrow.adapt()
    sparrow.train_stage(sparrow.config.stage1)
    step(sparrow, sparrow.config.stage1, [sample(sparrow)])
    sparrow.eval()
    batch = sample(sparrow)
    host = sparrow.host

    def states():
        with torch.no_grad():
            packed = host.pack(
                [batch.ids],
                [batch.inputs],
                tsf=[None if batch.crops is None else sparrow.tsf_tokens(batch.crops)],
            )
            return host.lm(packed)[:2]

    before = states()
    merge(host)
    for a, b in zip(before, states(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not [n for n, _ in host.named_parameters() if "lora" in n or "base_layer" in n]


ROWS = [(table, row) for table, rows in ABLATIONS.items() for row in rows]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{t}: {r}" for t, r in ROWS])
def test_every_ablation_takes_a_step(table, row):
    config = configure(**ABLATIONS[table][row])
    sparrow = tiny("videoglamm", **ABLATIONS[table][row])
    tokens = {"none": 0, "concat": 8}.get(config.tsf.path, 4)
    batch = sample(sparrow)
    assert batch.ids.count(TSF) == tokens
    sparrow.adapt()
    for stage in (sparrow.config.stage1, sparrow.config.stage2):
        names = sparrow.train_stage(stage)
        if names:
            losses, changed = step(sparrow, stage, [batch])
            assert changed
            assert torch.isfinite(losses["loss"])
    modules = {n.split(".")[0] for n, _ in sparrow.named_parameters()} - {"host", "tsf"}
    wanted = {"proposer", "box_adapter", "filter"} if config.box.enabled else set()
    assert modules == wanted - ({"proposer"} if config.proposer.kind == "coords" else set())
    assert (sparrow.tsf.bridge is None) == (config.tsf.path in ("none", "spatial"))


def test_temporal_paths_need_a_temporal_projector():
    with pytest.raises(ValueError, match="temporal projector"):
        tiny("glus", **{"tsf.path": "sum"})


def test_lora_of_the_release_has_the_published_size():
    from model.hosts import build
    from model.sparrow import Sparrow

    sparrow = Sparrow(build("videoglamm"), release())
    sparrow.adapt()
    names = sparrow.train_stage(sparrow.config.stage1)
    sizes = {n: p.numel() for n, p in sparrow.named_parameters()}
    by_part = {
        part: sum(sizes[n] for n in names if n.startswith(f"host.{part}"))
        for part in ("llm", "video_projector", "image_projector", "seg_head")
    }
    assert by_part == {
        "llm": 3_145_728,
        "video_projector": 84_992,
        "image_projector": 81_920,
        "seg_head": 75_776,
    }
    assert sum(by_part.values()) == 3_388_416


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tsf.path": "both"}, "tsf.path"),
        ({"decode.prompt": "seg"}, "decode.prompt"),
        ({"boxes.enabled": True}, "boxes"),
        ({"box.enabled": False}, "box.enabled"),
        ({"proposals.input": 100}, "multiple of 32"),
        ({"loss.filter.negative": 0.9}, "negative"),
        ({"corruption.level": 1.5}, "corruption.level"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        configure("paper", **changes)


def test_what_is_frozen_adds_no_noise(name):
    """Dropout of LoRA that a stage does not train would make its losses differ from run to run."""
    sparrow = tiny(name, **{"lora.dropout": 0.5})
    sparrow.adapt()
    for stage, same in ((sparrow.config.stage1, False), (sparrow.config.stage2, True)):
        sparrow.train_stage(stage)
        step(
            sparrow, stage, [sample(sparrow)]
        )  # LoRA starts at zero, where dropout changes nothing
        losses = [
            float(sparrow.train()([sample(sparrow)], stage)["loss"].detach()) for _ in range(3)
        ]
        assert (len(set(losses)) == 1) is same


LOOSE = {"loss.filter": {"positive": 1e-3, "negative": 1e-3, "l1_weight": 1.0, "giou_weight": 1.0}}
"""Untrained proposals hardly overlap a target: any overlap makes one positive."""


@pytest.mark.parametrize("name", HOSTS)
def test_a_batch_has_the_losses_of_its_samples(name):
    """Samples go through the mask model together, also of one and of two objects."""
    sparrow = tiny(name, **LOOSE).eval()
    for stage in (sparrow.config.stage1, sparrow.config.stage2):
        with torch.no_grad():
            samples = [sample(sparrow, objects=n) for n in (1, 2)]
            samples[1].sam_frames_f3ss = samples[1].sam_frames_f3ss.flip(0)
            alone = [sparrow([one], stage) for one in samples]
            together = sparrow(samples, stage)
        for loss in set(together) - {"ce", "loss"}:  # language is a mean over tokens
            mean = torch.stack([one[loss] for one in alone]).mean()
            assert together[loss] == pytest.approx(float(mean), rel=1e-4), (stage.losses, loss)


def test_masks_of_objects_that_look_absent_still_teach():
    sparrow = tiny("unipixel")
    with torch.no_grad():
        sparrow.host.sam.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(-8.0)
    sparrow.adapt()
    sparrow.train_stage(sparrow.config.stage1)
    _, changed = step(sparrow, sparrow.config.stage1, [sample(sparrow)])
    assert any("seg_head" in n for n in changed)


def test_the_release_s_box_term_reaches_its_box_head():
    sparrow = tiny("videoglamm", "release", **LOOSE)
    sparrow.adapt()
    sparrow.train_stage(sparrow.config.stage2)
    _, changed = step(sparrow, sparrow.config.stage2, [sample(sparrow)])
    assert any("box_head" in n for n in changed)
