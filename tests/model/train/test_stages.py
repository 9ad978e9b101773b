"""Which tensors train, on every host; that the others stay bit for bit; that losses fall; what is exported."""

import re

import pytest
import torch

from model.checkpoints import CheckpointError, load
from model.proposer.output import Proposals
from model.train.config import TrainConfig
from model.train.export import describe, load_export, save_export, save_whole
from model.train.log import Log, read
from model.train.task import Batch, StageTask
from model.train.trainer import Trainer
from tests.model.made import HOSTS, tiny
from tests.model.train.made_task import ListLoader, corpus

LAYERS = r"host\.llm\..*layers\.\d+\.(self_attn|mlp)\."
STAGE_1 = {
    "videoglamm": {
        "image projector": r"host\.image_projector\..*",
        "video projector": r"host\.video_projector\..*",
        "segmentation adapter": r"host\.seg_head\..*",
        "LoRA": LAYERS + r"qkv_proj\.lora_[AB]\.sparrow\.weight",
        "[BOX] row": r"host\.llm\..*\.trainable_tokens_delta\.rows",
    },
    "unipixel": {
        "projector": r"host\..*(merger|projector).*",
        "segmentation adapter": r"host\.seg_head\..*",
        "LoRA": LAYERS + r"\w+_proj\.lora_[AB]\.sparrow\.weight",
        "[BOX] row": r"host\.llm\..*\.trainable_tokens_delta\.rows",
    },
    "glus": {
        "projector": r"host\.image_projector\..*",
        "segmentation adapter": r"host\.seg_head\..*",
        "LoRA": LAYERS + r"[qv]_proj\.lora_[AB]\.sparrow\.weight",
        "[BOX] row": r"host\.llm\..*\.trainable_tokens_delta\.rows",
    },
}
CONFIG = TrainConfig(steps=40, warmup=0, schedule="constant", lr=3e-3, save_every=100)
STAGE_2 = {"filtration head": r"filter\..*", "[BOX] adapter": r"box_adapter\..*"}


@pytest.mark.parametrize("host", HOSTS)
def test_what_trains_and_what_stays(host, tmp_path):
    sparrow = tiny(host)
    samples = corpus(sparrow, 2)
    for stage, table in (("stage1", STAGE_1[host]), ("stage2", STAGE_2)):
        task = StageTask(sparrow, stage)
        names = set(task.trained)
        for part, pattern in table.items():
            assert any(re.fullmatch(pattern, name) for name in names), part
        assert [n for n in names if not any(re.fullmatch(p, n) for p in table.values())] == []
        before = {n: p.detach().clone() for n, p in sparrow.named_parameters()}
        buffers = {n: b.clone() for n, b in sparrow.named_buffers()}
        config = TrainConfig(steps=2, warmup=0, schedule="constant", lr=1e-3)
        Trainer(task, ListLoader(samples), config, tmp_path / stage).run()
        changed = {n for n, p in sparrow.named_parameters() if not torch.equal(p, before[n])}
        assert changed <= names
        for part, pattern in table.items():
            assert any(re.fullmatch(pattern, name) for name in changed), f"{part} did not move"
        assert all(torch.equal(b, buffers[n]) for n, b in sparrow.named_buffers())


def test_stage_1_fits_one_sample(tmp_path):
    """Not to zero: the frozen table of a random model's words says no word with certainty."""
    sparrow = tiny("videoglamm")
    config = TrainConfig(steps=30, warmup=0, schedule="constant", lr=1e-2, save_every=100)
    rows: list[dict] = []
    Trainer(
        StageTask(sparrow, "stage1"),
        ListLoader(corpus(sparrow, 1)),
        config,
        tmp_path,
        show=rows.append,
    ).run()
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]
    for name in ("ce", "bce", "dice"):
        assert rows[-1][name] < rows[0][name], name


def test_stage_2_learns_which_proposal_is_the_target(tmp_path, monkeypatch):
    """With proposals that can be right. A proposer that has learned nothing reaches no target, and that is seen."""
    sparrow = tiny("videoglamm")
    samples = corpus(sparrow, 1)
    trainer = Trainer(
        StageTask(sparrow, "stage2"), ListLoader(samples), CONFIG, tmp_path / "unused"
    )
    row = trainer._step([Batch(samples, ["x"])]).row
    assert row["reachable"] == 0
    boxes = torch.tensor(
        [[0.05, 0.1, 0.35, 0.5], [0.6, 0.5, 0.95, 0.9], [0.4, 0.1, 0.6, 0.4], [0.1, 0.6, 0.4, 0.95]]
    )
    samples[0].boxes_n4 = boxes[1:2] + 0.01
    found = Proposals(boxes, torch.full((4,), 0.9), torch.zeros(4, 256), torch.arange(4))
    monkeypatch.setattr(
        sparrow, "propose_each", lambda features, frames, texts: [found] * len(frames)
    )
    logits: list[torch.Tensor] = []
    sparrow.filter.register_forward_hook(
        lambda module, args, output: logits.append(output.logits.detach())
    )
    rows: list[dict] = []
    Trainer(
        StageTask(sparrow, "stage2"),
        ListLoader(samples),
        CONFIG,
        tmp_path / "run",
        show=rows.append,
    ).run()
    assert rows[-1]["reachable"] == 1
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert logits[-1].argmax(1).tolist() == [1]
    assert logits[-1][0, 1] > 0 > logits[-1][0, [0, 2, 3]].max()


def test_an_export_goes_on_the_same_weights_and_a_whole_one_needs_none(tmp_path):
    """Stage 1, exported, on a new model stage 2, exported and merged: the answers of the trained model each time."""
    sparrow = tiny("videoglamm")
    samples = corpus(sparrow, 2)
    config = TrainConfig(steps=2, warmup=0, lr=1e-2)

    def answers(model):
        model.eval()
        with torch.no_grad():
            losses = model(samples, model.config.stage1) | model(samples, model.config.stage2)
        return torch.stack([losses[name] for name in ("ce", "bce", "dice", "proposals")])

    Trainer(StageTask(sparrow, "stage1"), ListLoader(samples), config, tmp_path / "one").run()
    save_export(sparrow, tmp_path / "one" / "export", "stage1", 2)
    assert describe(tmp_path / "one" / "export") == {"stage": "stage1", "steps": 2, "after": []}

    second = tiny("videoglamm")
    assert load_export(second, tmp_path / "one" / "export")["stage"] == "stage1"
    torch.testing.assert_close(answers(second), answers(sparrow), atol=0, rtol=0)
    Trainer(StageTask(second, "stage2"), ListLoader(samples), config, tmp_path / "two").run()
    save_export(second, tmp_path / "two" / "export", "stage2", 2)
    assert {n for n, p in second.named_parameters() if p.requires_grad} == set(
        StageTask(second, "stage2").trained
    )
    third = tiny("videoglamm")
    load_export(third, tmp_path / "two" / "export")
    trained = answers(second)
    torch.testing.assert_close(answers(third), trained, atol=0, rtol=0)
    assert not torch.allclose(trained, answers(sparrow))

    full, official = save_whole(third, tmp_path / "two", official=True)
    torch.manual_seed(5)
    fresh = tiny("videoglamm")
    with torch.no_grad():
        for p in fresh.parameters():
            p.add_(1)
    load(fresh, full)
    torch.testing.assert_close(answers(fresh), trained, atol=1e-4, rtol=1e-4)
    assert (official / "model.safetensors").is_file()
    with pytest.raises(CheckpointError, match="not an export of a training"):
        describe(full)


def test_validation_is_the_loss_of_all_held_out_samples_as_one_batch(tmp_path):
    """And it changes neither what is learned nor what random numbers come next."""
    sparrow = tiny("glus")
    samples = corpus(sparrow, 3)
    parts = [Batch(samples[:1], ["a"]), Batch(samples[1:], ["b", "c"])]
    assert StageTask(sparrow, "stage1").validate() == {}
    task = StageTask(sparrow, "stage1", lambda: parts)
    sparrow.eval()
    with torch.no_grad():
        found = task.validate()
        whole = task.losses(Batch(samples, ["a", "b", "c"]))
    assert "ce_host" in found
    assert "ce_region" not in found  # nothing of it was asked
    for name in found.keys() - {"loss"}:
        assert found[name] == pytest.approx(float(whole[name]), rel=1e-5), name
    total = sum(w * found[n] for n, w in task.weights.items() if w)
    assert found["loss"] == pytest.approx(total, rel=1e-6)

    runs = {}
    for every in (0, 1):
        other = tiny("glus")
        config = TrainConfig(steps=2, warmup=0, validate_every=every)
        loader = ListLoader(corpus(other, 3))
        Trainer(
            StageTask(other, "stage1", lambda: parts), loader, config, tmp_path / str(every)
        ).run()
        runs[every] = [row["loss"] for row in read(tmp_path / str(every) / "steps.csv")]
    assert runs[0] == runs[1]
    rows = read(tmp_path / "1" / "validation.csv")
    assert [row["step"] for row in rows] == [1, 2]
    assert {"loss", "ce", "bce", "dice"} <= set(rows[0])


def test_half_precision_below_and_float32_on_top():
    """What trains is float32 on a half-precision model, as it is on a GPU, and one pass of each stage goes through."""
    sparrow = tiny("videoglamm")
    samples = corpus(sparrow, 1)
    for name, module in sparrow.host.named_children():
        if name not in sparrow.host.float32:
            module.to(torch.bfloat16)
    for stage in ("stage1", "stage2"):
        task = StageTask(sparrow, stage)
        trained = dict(sparrow.named_parameters())
        assert {trained[name].dtype for name in task.trained} == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            losses = task.losses(Batch(samples, ["x"]))
        assert set(losses) >= set(task.weights)
        assert all(torch.isfinite(value) for value in losses.values())


def test_resuming_keeps_what_was_measured_at_the_step_of_the_state(tmp_path):
    """Training continues with step 2; what was measured after two steps is not measured again."""
    log = Log(tmp_path)
    for step in range(4):
        log.write({"step": step, "loss": 1.0})
    for step in (2, 4):
        log.write({"step": step, "loss": 2.0}, "validation")
    log.close()
    Log(tmp_path, 2).close()
    steps, validation = (read(tmp_path / name) for name in ("steps.csv", "validation.csv"))
    assert [row["step"] for row in steps] == [0, 1]
    assert [row["step"] for row in validation] == [2]
