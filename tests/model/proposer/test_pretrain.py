"""Pretraining of the proposer: its losses, its groups, its cache, and that it learns."""

import pytest
import torch

from model.losses import ProposerLossConfig, proposer_loss
from model.proposer import ProposerConfig, build_proposer
from model.proposer.data.batches import Batch, BatchConfig, Batches, once
from model.proposer.data.readers import read_coco
from model.proposer.data.transform import TransformConfig
from model.proposer.feature_cache import FeatureCache
from model.proposer.output import ProposerOutput
from model.proposer.pretrain import ProposerTask, cache_identity
from model.sam import build_sam
from pipeline.sources.base import DataRoot
from tests.model.proposer.made import coco_like
from tests.model.proposer.test_batches import Made

SIDE = 128
EPOCHS = 50
PLAIN = BatchConfig(batch=8, transform=TransformConfig(side=SIDE, augment=False))


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_sam("tiny", postprocess=False, image_size=256)


def proposer(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_proposer(ProposerConfig.tiny(**changes))


def batch(task_config: BatchConfig = PLAIN, **made) -> Batch:
    return next(iter(Batches([Made(n=8, **made)], task_config)))


class Fixed(torch.nn.Module):
    """Answers the same output whatever it is shown."""

    config = ProposerConfig.tiny(heads=("objectness",))

    def __init__(self, boxes, logits):
        super().__init__()
        self.boxes, self.logits = (
            torch.nn.Parameter(torch.tensor(boxes)),
            torch.nn.Parameter(torch.tensor(logits)),
        )

    def forward(self, maps):
        return ProposerOutput(
            boxes_all_layers_cxcywh=self.boxes[None, None],
            logits_all_layers={"objectness": self.logits[None, None]},
        )


def test_losses_by_hand(sam):
    """Two proposals, one target. The first is the target moved by a tenth of the frame: |dx| = 0.1, IoU = 0.3 * 0.4 /
    (2 * 0.4 * 0.4 - 0.3 * 0.4) = 0.6, hull 0.5 * 0.4 = union, so GIoU = 0.6. Both objectness logits are 0: focal terms
    alpha * 0.5^2 * ln 2 for the matched one, (1 - alpha) * 0.5^2 * ln 2 for the other: 0.25 * ln 2 together."""
    fixed = Fixed([[0.6, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]], [0.0, 0.0])
    task = ProposerTask(sam, fixed)
    one = batch()
    one = Batch(
        one.pictures_bss3[:1],
        [torch.tensor([[0.3, 0.3, 0.7, 0.7]])],
        "coco",
        one.keys[:1],
        False,
        [],
    )
    found = task.losses(one)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"ce": 0.25 * 0.693147, "bbox": 0.1, "giou": 0.4}, rel=1e-5
    )
    assert task.weights == {"ce": 2.0, "bbox": 5.0, "giou": 2.0}
    assert task.counts(one) == {"ce": 1.0, "bbox": 1.0, "giou": 1.0}


def test_weighted_terms_are_equation_12_over_all_layers(sam):
    task, one = ProposerTask(sam, proposer().eval(), ProposerLossConfig(l1_weight=3)), batch()
    found = task.losses(one)
    whole = proposer_loss(task.module(task.features(one)), one.targets, "coco", task.loss)
    assert sum(task.weights[name] * value for name, value in found.items()).item() == pytest.approx(
        whole["total"].item()
    )


def test_parts_of_a_batch_add_up_to_the_whole(sam):
    task, one = ProposerTask(sam, proposer().eval()), batch()
    one.targets[0] = one.targets[0][:1]  # so that halves count differently
    halves = [
        Batch(one.pictures_bss3[part], one.targets[part], one.head, one.keys[part], False, [])
        for part in (slice(0, 4), slice(4, 8))
    ]
    whole, count = task.losses(one), task.counts(one)
    for name in whole:
        summed = sum(task.losses(half)[name] * task.counts(half)[name] for half in halves)
        assert (summed / count[name]).item() == pytest.approx(whole[name].item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["deformable", "detr", "fcos", "mlp"])
def test_every_parameter_gets_a_gradient_and_the_encoder_none(sam, kind):
    """Two heads: the one that has no part in the batch too, or ranks would wait for it."""
    task, before = (
        ProposerTask(sam, proposer(kind=kind).train()),
        [p.clone() for p in sam.parameters()],
    )
    sum(task.losses(batch()).values()).backward()
    missing = [name for name, p in task.module.named_parameters() if p.grad is None]
    assert missing == []
    other = [p.grad for name, p in task.module.named_parameters() if "sa1b" in name]
    assert other
    assert not any(grad.any() for grad in other)
    assert all(
        p.grad is None and torch.equal(p, q) for p, q in zip(sam.parameters(), before, strict=True)
    )


def test_the_head_of_the_source_is_the_one_that_learns(sam):
    for head, silent in (("coco", "sa1b"), ("sa1b", "coco")):
        task = ProposerTask(sam, proposer())
        sum(task.losses(batch(head=head)).values()).backward()
        grads = {
            name: p.grad.abs().sum()
            for name, p in task.module.named_parameters()
            if "class_embed_" in name
        }
        assert all(value == 0 for name, value in grads.items() if silent in name)
        assert all(value > 0 for name, value in grads.items() if head in name)
    single = ProposerTask(sam, proposer(heads=("objectness",)))
    assert single.losses(batch(head="sa1b"))["ce"] > 0


def test_places_of_attention_learn_slower(sam):
    task = ProposerTask(sam, proposer())
    rest, slow = task.parameters()
    names = {id(p): name for name, p in task.module.named_parameters()}
    assert (rest["scale"], slow["scale"]) == (1.0, 0.1)
    assert all("sampling_offsets" in names[id(p)] for p in slow["params"])
    assert sorted(names[id(p)] for group in (rest, slow) for p in group["params"]) == sorted(
        names.values()
    )


def test_a_proposer_without_parameters_is_refused(sam):
    with pytest.raises(ValueError, match="nothing to train"):
        ProposerTask(sam, proposer(kind="coords"))


# --- cache -------------------------------------------------------------------------------------------------------


def test_cached_features_are_the_encoders(sam, tmp_path):
    net = proposer(levels=2)
    identity = cache_identity(sam, SIDE, net.config)
    plain, one = ProposerTask(sam, net), batch()
    wanted = plain.features(one)
    for cache in (
        FeatureCache(tmp_path, identity),
        FeatureCache(tmp_path, identity),
    ):  # the second reads what is there
        found = ProposerTask(sam, net, cache=cache).features(one)
        assert [tuple(m.shape) for m in found] == [(8, 256, 16, 16), (8, 256, 8, 8)]
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert len(cache) == 8
    torch.testing.assert_close(cache.get(one.keys[::-1])[1], cache.get(one.keys)[1].flip(0))


def test_a_full_cache_needs_no_encoder(sam, tmp_path):
    net = proposer()
    cache = FeatureCache(tmp_path, cache_identity(sam, SIDE, net.config))
    one = batch()
    wanted = ProposerTask(sam, net, cache=cache).features(one)
    found = ProposerTask(None, net, cache=cache).features(one)
    torch.testing.assert_close(found, wanted)


def test_a_cache_of_other_features_or_of_augmented_pictures_is_refused(sam, tmp_path):
    net = proposer()
    cache = FeatureCache(tmp_path, cache_identity(sam, SIDE, net.config))
    with pytest.raises(ValueError, match="side 128"):
        FeatureCache(tmp_path, cache_identity(sam, 256, net.config))
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="encoder"):
        FeatureCache(
            tmp_path, cache_identity(build_sam("tiny", postprocess=False), SIDE, net.config)
        )
    augmented = PLAIN.model_copy(update={"transform": TransformConfig(side=SIDE)})
    with pytest.raises(ValueError, match="augmented"):
        ProposerTask(sam, net, cache=cache).features(batch(augmented))


# --- learning ----------------------------------------------------------------------------------------------------


def test_validation_is_oracle_recall_of_the_best(sam):
    boxes = [[0.25, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 0.5]]
    fixed = Fixed(boxes, [0.0, 1.0])

    def forward(maps):
        n = len(maps[-1])
        return ProposerOutput(
            boxes_cxcywh=fixed.boxes.expand(n, -1, -1),
            objectness=fixed.logits.expand(n, -1),
            decoder_last_hidden=torch.zeros(n, 2, 4),
        )

    fixed.forward = forward
    one = batch()
    one.targets = [torch.tensor([[0.0, 0.25, 0.5, 0.75], [0.5, 0.25, 1.0, 0.65]])] * 8
    task = ProposerTask(sam, fixed, validation=lambda: [one])
    assert task.validate() == {"recall@0.5": 1.0, "recall@0.75": 1.0, "images": 8.0, "boxes": 16.0}
    task.top = 1  # the right one is better
    assert task.validate()["recall@0.5"] == 0.5
    assert ProposerTask(sam, fixed).validate() == {}


def test_it_learns_its_training_shapes(sam, tmp_path):
    """From files in COCO's format to recall. About 10 s on one thread."""
    coco_like(
        tmp_path,
        "annotations/instances_train2017.json",
        [(f"{k}.jpg", f"train2017/{k}.jpg") for k in range(16)],
    )
    data = [read_coco(DataRoot(tmp_path))]
    net = proposer(heads=("objectness",), dropout=0.0)
    cache = FeatureCache(tmp_path / "cache", cache_identity(sam, SIDE, net.config))
    task = ProposerTask(sam, net, validation=lambda: once(data, PLAIN), top=32, cache=cache)
    groups = [
        {"params": group["params"], "lr": 1e-3 * group["scale"]} for group in task.parameters()
    ]
    optimiser, batches = torch.optim.AdamW(groups, weight_decay=1e-4), Batches(data, PLAIN)
    before, losses = task.validate(), []
    for _ in range(EPOCHS):
        for one in batches:
            loss = sum(task.weights[name] * value for name, value in task.losses(one).items())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
    after = task.validate()
    print(before, after, losses[0], losses[-1])
    assert before["recall@0.5"] < 0.6
    assert after["recall@0.5"] > 0.95
    assert losses[-1] < losses[0] / 3
