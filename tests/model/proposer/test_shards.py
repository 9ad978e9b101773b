"""Frames of curated clips teach the boxes of their targets, and of nothing else."""

import numpy as np
import pytest

from model.data.index import Index
from model.proposer.data.batches import BatchConfig, Batches
from model.proposer.data.shards import ShardBoxes
from model.proposer.data.transform import TransformConfig
from schemas.records import Quarantined
from tests.model.data.made import AWAY, COLOURS, HEIGHT, THINNED, WIDTH, make_output


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return make_output(tmp_path_factory.mktemp("shards"), {"a": (1, 4)})


def test_a_frame_has_a_box_around_each_target(out):
    corpus = ShardBoxes(Index.open(str(out)), per_clip=4)
    assert len(corpus) == 3 * 4  # the fourth clip is held out
    for i in range(len(corpus)):
        image, boxes_n4 = corpus.load(i)
        assert image.size == (WIDTH, HEIGHT)
        assert len(boxes_n4) == 2
        for colour, (x1, y1, x2, y2) in zip(COLOURS, boxes_n4.astype(int), strict=True):
            inside = np.asarray(image)[y1 + 8 : y2 - 8, x1 + 8 : x2 - 8].reshape(-1, 3)
            close = np.abs(inside.astype(int) - colour).max(1) < 40
            assert close.mean() > 0.5  # the squares cross


def test_only_frames_that_show_most_targets_are_taken(out):
    corpus = ShardBoxes(Index.open(str(out)), per_clip=100)
    shown = 24 - len(AWAY) - len(THINNED)
    assert len({corpus.load(i)[0].tobytes() for i in range(100)}) == shown  # then they repeat


def test_no_clip_is_in_training_and_in_validation(out):
    index = Index.open(str(out))
    clips = {
        split: {ShardBoxes(index, split).key(i).split("/")[1] for i in range(16)}
        for split in ("train", "val")
    }
    assert len(clips["val"]) == 1
    assert not clips["train"] & clips["val"]
    keys = [ShardBoxes(index).key(i) for i in range(48)]
    assert len(set(keys)) == 48
    assert len({key.split("/")[1] for key in keys}) == 3


def test_an_object_is_one_target_and_groups_are_none(out):
    index = Index.open(str(out))
    objects = index.referents["object_ids"].to_pylist()
    place = index.referents.column_names.index("object_ids")
    same = index.referents.set_column(
        place, "object_ids", index.referents["object_ids"].take([0] * len(objects))
    )
    one = Index(index.out, index.shards, same, index._members, index._starts)
    assert len(ShardBoxes(one).load(0)[1]) == 1  # two expressions, one object
    grouped = [["0", "1"]] * len(objects)
    many = index.referents.set_column(place, "object_ids", [grouped])
    with pytest.raises(ValueError, match="0 clips have expressions about single objects"):
        ShardBoxes(Index(index.out, index.shards, many, index._members, index._starts))


def test_it_is_a_corpus_like_others(out):
    config = BatchConfig(batch=6, transform=TransformConfig(side=32))
    batches = Batches([ShardBoxes(Index.open(str(out)), per_clip=4)], config)
    batch = next(iter(batches))
    assert batch.pictures_bss3.shape == (6, 32, 32, 3)
    assert not batch.bad
    assert all(len(boxes) and (boxes >= 0).all() and (boxes <= 1).all() for boxes in batch.targets)


def test_broken_members_are_unusable_images(tmp_path):
    out = make_output(tmp_path, {"a": (1, 2)})
    index = Index.open(str(out))
    tar = out / index.entry(0).tar
    data = bytearray(tar.read_bytes())
    for row in range(4):
        media = next(m for m in index.entry(row).members if m.name == "mp4")
        data[media.offset : media.offset + media.size] = bytes(media.size)
    tar.write_bytes(data)
    with pytest.raises(Quarantined, match="shards/a-c"):
        ShardBoxes(Index.open(str(out))).load(0)
