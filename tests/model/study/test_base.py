"""Lessons of a host from nothing: what each trains, and that a base is loaded as it was saved."""

import numpy as np
import pytest
import torch

from model.config import configure
from model.sam import Sam2
from model.sparrow import Sparrow
from model.study.base import _records, load_base, make_base, make_host
from model.study.config import StudyConfig
from model.study.lessons import SEEN, ListenTask, Pointers, SeeTask, SegmentTask, eyes, look
from model.study.measure import evaluate, score
from model.study.world import make_clip
from model.train.task import Batch

CPU = torch.device("cpu")
SMALL = StudyConfig(
    bases=1,
    seeds=1,
    clips=8,
    tested=3,
    batch=2,
    shown=2,
    frames=4,
    segmenting=2,
    pointing=2,
    following=2,
    seeing=2,
    listening=2,
    proposing=2,
    stage1=2,
    stage2=2,
    stage_clips=8,
)


@pytest.fixture(scope="module")
def sam() -> Sam2:
    return make_host(SMALL, 0, CPU).sam


def moved(module: torch.nn.Module, losses: dict, weights: dict) -> set[str]:
    """First names of the parameters that a loss reaches."""
    torch.stack([weights[name] * value for name, value in losses.items()]).sum().backward()
    return {
        n.split(".")[0]
        for n, p in module.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


@pytest.mark.parametrize("name", ["segmenting", "pointing", "following"])
def test_the_mask_model_learns_from_boxes_first_and_from_pointers_then(sam, name):
    sam.zero_grad(set_to_none=True)
    task = SegmentTask(name, sam, Pointers(), 2 if name == "following" else 1, SMALL.side)
    losses = task.losses([make_clip(0, i, SMALL.frames) for i in range(2)])
    assert set(losses) == set(task.weights)
    found = moved(task.module, losses, task.weights)
    assert "sam" in found
    assert ("pointers" in found) == (name != "segmenting")
    memory = sam.memory_encoder.fuser.layers[0].dwconv.weight.grad
    assert (memory is not None and bool(memory.abs().sum() > 0)) == (name == "following")


@pytest.mark.parametrize("host", ["videoglamm", "glus", "unipixel"])
def test_listening_trains_the_language_model_and_leaves_eyes_and_mask_model(host):
    config = SMALL.model_copy(update={"host": host})
    sparrow = Sparrow(make_host(config, 0, CPU), configure("host"))
    clips = [make_clip(0, i, config.frames) for i in range(2)]
    feed, vectors = _records(sparrow, clips, Pointers(), config, 0)
    task = ListenTask(sparrow, vectors)
    batch: Batch = next(iter(feed))
    losses = task.losses(batch)
    assert set(losses) == {"loss", "ce", "bce", "dice", "align"}
    losses.pop("loss")
    assert torch.stack(list(losses.values())).isfinite().all()
    moved(sparrow, losses, task.weights)
    trained = {
        n for n, p in sparrow.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert any(n.startswith("host.llm") for n in trained)
    assert any(n.startswith("host.seg_head") for n in trained)
    assert not any(n.startswith("host.sam") for n in trained)
    assert not {
        id(p) for tower in eyes(sparrow.host) for p in tower.parameters() if p.grad is not None
    }


@pytest.mark.parametrize("name", ["videoglamm", "glus", "unipixel"])
def test_seeing_labels_cells_and_trains_the_eyes(name):
    host = make_host(SMALL.model_copy(update={"host": name}), 0, CPU)
    clips = [make_clip(0, i, SMALL.frames) for i in range(3)]
    looked = [look(host, clip) for clip in clips]
    for clip, one in zip(clips, looked, strict=True):
        labels = one.labels_knw
        tokens = torch.cat(host.visual_tokens(one.inputs))
        assert labels.shape[0] * labels.shape[1] == len(tokens), "a label for every token"
        true = {word for i, word in enumerate(SEEN) if (labels[..., i] == 1).any()}
        known = {word for i, word in enumerate(SEEN) if (labels[..., i] >= 0).any()}
        assert true == {word for words in clip.words for word in words} & known
        assert ("left" in known) == (name != "glus")
    task = SeeTask(host, len(looked[0].labels_knw))
    losses = task.losses(looked)
    assert "towers" in moved(task.module, losses, task.weights)


def test_a_base_is_loaded_as_it_was_saved_and_grounds_the_same(tmp_path):
    make_base(SMALL, 0, tmp_path, CPU, lambda text: None)
    one, two = (load_base(SMALL, 0, tmp_path / "base.safetensors", CPU) for _ in range(2))
    clips = [make_clip(9, i, SMALL.frames) for i in range(2)]
    first, second = evaluate(one, clips), evaluate(two, clips)
    assert first == second
    assert [s.kind for s in first] == ["appearance", "motion"]
    other = StudyConfig.model_validate(SMALL.model_dump() | {"host": "glus"})
    with pytest.raises(ValueError, match="the base of another study"):
        load_base(other, 0, tmp_path / "base.safetensors", CPU)


def test_scores_of_planted_masks():
    clip = make_clip(0, 1)
    target, rival = clip.masks_nthw[:2]
    perfect = score(target, clip)
    assert (perfect.j, perfect.f, perfect.right, perfect.jf) == (1, 1, 1, 1)
    switched = score(np.concatenate([target[:4], rival[4:]]), clip)
    assert switched.right == 0
    assert 0.45 < switched.j < 0.7
    assert score(np.zeros_like(target), clip).right == 0.5
