"""What the proposer is fed: the same pictures and boxes for everybody who asks for the same (seed, epoch, index)."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from model.proposer.data.batches import BatchConfig, Batches, once
from model.proposer.data.transform import TransformConfig, transform
from schemas.records import Quarantined, Reason
from tests.model.proposer.made import picture

SMALL = TransformConfig(side=64, short=(80, 100, 120), long=800, crop=(64, 128))
PLAIN = SMALL.model_copy(update={"augment": False})


class Made:
    """Pictures in memory; those in `broken` cannot be read."""

    def __init__(self, name="made", n=10, head="coco", broken=()):
        self.name, self.n, self.head, self.broken = name, n, head, broken

    def __len__(self):
        return self.n

    def key(self, index):
        return f"{self.name}/{index}"

    def load(self, index):
        if index in self.broken:
            raise Quarantined(Reason.MEDIA_UNREADABLE, "truncated")
        return picture(index)


def flat(height: int, width: int, box: tuple[int, int, int, int]) -> tuple[Image.Image, np.ndarray]:
    """A white box on black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels), np.float32([box])


# --- transform ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(90, 200), (200, 90), (500, 500)])
def test_boxes_stay_around_what_they_were_around(shape):
    height, width = shape
    image, boxes = flat(height, width, (width // 4, height // 3, width // 2, height // 3 * 2))
    mirrored = 0
    for seed in range(30):
        square, seen = transform(image, boxes, SMALL, np.random.default_rng(seed))
        assert square.shape == (64, 64, 3)
        ys, xs = np.nonzero(square[..., 0] > 127)
        there = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        np.testing.assert_allclose(seen[0] * 64, there, atol=1.01)
        mirrored += seen[0, [0, 2]].mean() > 0.5
    assert mirrored > 3  # the box is left of the middle


def test_without_augmentation_the_whole_image_is_squashed():
    image, boxes = flat(100, 200, (50, 25, 100, 75))
    square, seen = transform(image, boxes, PLAIN, np.random.default_rng(0))
    np.testing.assert_allclose(seen, [[0.25, 0.25, 0.5, 0.75]])
    assert square[32, 24, 0] == 255
    assert square[10, 24, 0] == 0


def test_parts_have_the_sizes_of_the_recipe():
    """A 1000 x 1000 image becomes 400, 500 or 600; parts of 448 to 896 of it, all where there is less."""
    image, _ = flat(1000, 1000, (0, 0, 1, 1))
    everywhere = np.stack(np.meshgrid(np.arange(0, 1000, 10), np.arange(0, 1000, 10)), -1).reshape(
        -1, 2
    )
    boxes = np.concatenate([everywhere, everywhere + 10], 1).astype(np.float32)
    config = TransformConfig(min_box=0)
    shares = [
        len(transform(image, boxes, config, np.random.default_rng(s))[1]) / 10_000
        for s in range(40)
    ]
    assert max(shares) == 1  # short side 400
    assert min(shares) > (448 / 600) ** 2 - 0.01
    assert len({round(share, 2) for share in shares}) > 10


def test_small_boxes_go_and_a_part_without_any_is_not_taken():
    image, _ = flat(96, 160, (0, 0, 4, 4))
    boxes = np.float32([[0, 0, 20, 20], [50, 50, 51, 90]])
    _, seen = transform(image, boxes, PLAIN, np.random.default_rng(0))
    assert len(seen) == 1  # 1 px of 160 is less than 2 of 64
    tight = SMALL.model_copy(update={"crop": (10, 12), "flip": 0.0})
    for seed in range(10):
        assert len(transform(image, boxes, tight, np.random.default_rng(seed))[1]) >= 1
    assert (
        len(transform(image, np.zeros((0, 4), np.float32), SMALL, np.random.default_rng(0))[1]) == 0
    )


@pytest.mark.parametrize("wrong", [{"short": ()}, {"crop": (9, 8)}, {"side": 0}, {"flip": 2}])
def test_impossible_transforms_are_refused(wrong):
    with pytest.raises(ValidationError):
        TransformConfig(**wrong)


# --- batches -----------------------------------------------------------------------------------------------------


def config(**changes) -> BatchConfig:
    return BatchConfig(**({"batch": 2, "transform": SMALL, "seed": 3} | changes))


def epoch(batches: Batches) -> list:
    return list(batches)


def sums(batches: list) -> list[tuple]:
    return [
        (b.keys, b.pictures_bss3.double().sum().item(), [t.sum().item() for t in b.targets])
        for b in batches
    ]


def test_a_batch_is_of_one_corpus_and_says_which_head_it_trains():
    boxes, masks = Made("boxes", 10), Made("masks", 6, head="sa1b")
    found = epoch(Batches([boxes, masks], config()))
    assert len(found) == 8
    assert {(key.split("/")[0], batch.head) for batch in found for key in batch.keys} == {
        ("boxes", "coco"),
        ("masks", "sa1b"),
    }
    assert all(len({key.split("/")[0] for key in batch.keys}) == 1 for batch in found)
    assert sorted(key for batch in found for key in batch.keys) == sorted(
        [boxes.key(i) for i in range(10)] + [masks.key(i) for i in range(6)]
    )
    assert [batch.head for batch in found] != sorted(batch.head for batch in found)


def test_epochs_differ_and_repeat_exactly():
    batches, again = Batches([Made()], config()), Batches([Made()], config())
    first, second = sums(epoch(batches)), sums(epoch(batches))
    assert first != second
    assert [first, second] == [sums(epoch(again)), sums(epoch(again))]
    assert sums(epoch(Batches([Made()], config(seed=4)))) != first


def test_ranks_and_workers_share_one_order():
    corpora = [Made("a", 17), Made("b", 9)]
    alone = sums(epoch(Batches(corpora, config(batch=4))))
    ranks = [
        sums(epoch(Batches(corpora, config(batch=2, workers=r), rank=r, world=2))) for r in (0, 1)
    ]
    together = [(x[0] + y[0], x[1] + y[1], x[2] + y[2]) for x, y in zip(*ranks, strict=True)]
    assert together == alone
    assert len(alone) == 4 + 2  # what is left of 17 and 9 waits for another epoch


def test_per_corpus_takes_other_images_in_each_epoch():
    batches = Batches([Made(n=10)], config(per_corpus=4))
    epochs = [{key for batch in epoch(batches) for key in batch.keys} for _ in range(6)]
    assert all(len(keys) == 4 for keys in epochs)
    assert len(set.union(*epochs)) > 6


@pytest.mark.parametrize("cut", [1, 4, 5, 7])
def test_a_stopped_run_goes_on_where_it_was(cut):
    whole = Batches([Made()], config())
    wanted = sums([*epoch(whole), *epoch(whole)])

    def steps(batches):
        while True:
            yield from batches

    stopped = Batches([Made()], config())
    run = steps(stopped)
    done = [next(run) for _ in range(cut)]
    other = Batches([Made()], config())
    other.load_state_dict(stopped.state_dict())
    run = steps(other)
    assert sums(done + [next(run) for _ in range(10 - cut)]) == wanted


def test_the_runs_own_random_numbers_are_left_alone():
    torch.manual_seed(0)
    epoch(Batches([Made()], config()))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert after == torch.rand(1)


def test_a_state_of_other_data_is_refused():
    state = Batches([Made(n=10)], config()).state_dict()
    for other in (
        Batches([Made(n=11)], config()),
        Batches([Made()], config(seed=9)),
        Batches([Made()], config(batch=5)),
    ):
        with pytest.raises(ValueError, match="belongs to other training data"):
            other.load_state_dict(state)
    Batches([Made(n=10)], config(workers=1)).load_state_dict(state)
    with pytest.raises(ValueError, match="version 0"):
        Batches([Made()], config()).load_state_dict(state | {"version": 0})


def test_unusable_images_are_replaced_counted_and_in_the_end_too_many():
    batches = Batches([Made(broken={3})], config(bad_share=0.2))
    found = epoch(batches)
    assert all(len(batch) == 2 for batch in found)
    assert sum(batch.keys.count("made/4") for batch in found) == 2
    assert [line for batch in found for line in batch.bad] == [
        "media_unreadable: made/3: truncated"
    ]
    with pytest.raises(
        ValueError, match=r"2 unusable images in epoch 0 .*'media_unreadable': 2.*bad_share"
    ):
        epoch(Batches([Made(broken={3, 7})], config(bad_share=0.1)))
    with pytest.raises(ValueError, match="in a row"):
        epoch(Batches([Made(n=30, broken=set(range(25)))], config(bad_share=1)))


def test_validation_sees_every_usable_image_once_and_whole():
    found = list(once([Made("a", 5, broken={4}), Made("b", 2, broken={0, 1})], config()))
    assert [key for batch in found for key in batch.keys] == ["a/0", "a/1", "a/2", "a/3"]
    assert not any(batch.augmented for batch in found)
    torch.testing.assert_close(
        found[0].targets[1], torch.from_numpy(picture(1)[1] / np.float32([160, 96, 160, 96]))
    )


def test_corpora_that_make_no_batch_are_refused():
    for corpora, message in (
        ([], "no corpus"),
        ([Made(n=1)], "made 1"),
        ([Made(), Made()], "one name"),
    ):
        with pytest.raises(ValueError, match=message):
            Batches(corpora, config())
    with pytest.raises(ValueError, match="rank 2"):
        Batches([Made()], config(), rank=2, world=2)
