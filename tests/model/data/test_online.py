"""Noise of the loader's own crops: exact rates, by source frame, the same in every epoch; never on what losses see."""

import numpy as np
import pytest

from benchmarks.loader import Clip, write_shard
from model.data.index import Index
from model.data.loader import Loader, LoaderOptions
from model.data.online import online_frames, online_trajectory
from model.tsf import TSFConfig
from pipeline.corrupt import Corruption
from pipeline.sample import npy
from schemas.contents import load_array
from schemas.geometry import is_box
from schemas.video.stored import encode_mp4
from tests.model.data.made import COLOURS, FRAMES, HEIGHT, THINNED, WIDTH, boxes, frames_of, members

ONLINE = TSFConfig(dropout=0.0, selection="online")
SIZE = (HEIGHT, WIDTH)


def noisy(kind: str, level: float, **more) -> LoaderOptions:
    noise = Corruption(kind=kind, level=level, **more)
    return LoaderOptions(batch=1, frames=2, tsf=ONLINE, corruption=noise)


def records(index, options):
    return [record for batch in Loader(index, options) for record in batch]


def shows(picture, target: int) -> bool:
    return bool((np.abs(picture.astype(int) - COLOURS[target]).max(-1) < 60).mean() > 0.5)


def track_of(target: int, clip: int = 0, start: int = 0):
    track = load_array(members(clip, target, frames_of(clip), b"")["track.npy"]).copy()
    track["source_frame"] += start
    return track


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5])
def test_rates_are_exact_through_the_loader(index, level):
    for record in records(index, noisy("dropout", level)):
        target = int(record.key[-1])
        kept = 16 if target == 0 else 20
        assert record.noise == (round(level * kept), kept)
        assert len(record.crops) == min(16, kept - round(level * kept))
        assert all(shows(crop, target) for crop in record.crops)
    wrong = 0
    for record in records(index, noisy("id_switch", level, segments=2)):
        target = int(record.key[-1])
        kept = 16 if target == 0 else 20
        assert record.noise == (round(level * kept), kept)
        wrong += sum(shows(crop, 1 - target) for crop in record.crops)
        assert all(shows(crop, 0) or shows(crop, 1) for crop in record.crops)
    assert wrong > 0


def test_noise_never_moves_what_the_losses_see(index):
    clean = {r.key: r.boxes_t4 for r in records(index, LoaderOptions(batch=1, frames=2))}
    for record in records(index, noisy("jitter", 0.2)):
        np.testing.assert_array_equal(record.boxes_t4, clean[record.key])
        assert record.noise[0] > 0


def test_noise_is_the_trajectorys_own_in_every_epoch(index):
    loader = Loader(index, noisy("dropout", 0.5))
    first, second = ({r.key: r.crops for batch in loader for r in batch} for _ in range(2))
    for key, crops in first.items():
        assert [c.tobytes() for c in crops] == [c.tobytes() for c in second[key]]


def test_a_trajectory_is_switched_by_source_frame_across_clips():
    """The other clip begins 5 source frames earlier: its frame t + 5 is our frame t."""
    ours, theirs = track_of(1, start=5), track_of(0, start=0)
    noise = Corruption(kind="id_switch", level=0.3)
    found = online_trajectory(ours, noise, lambda: [npy(theirs)], "a", SIZE)
    clean = online_trajectory(ours, Corruption(), tuple, "a", SIZE).boxes
    switched = np.flatnonzero(is_box(clean) & (found.boxes != clean).any(1))
    assert len(switched) == found.n_corrupted == round(0.3 * 20)
    other = boxes(0)[0]
    for t in switched:
        np.testing.assert_array_equal(found.boxes[t], other[t + 5])


def test_the_same_target_in_another_clip_is_nobody_to_switch_to():
    ours = track_of(1)
    noise = Corruption(kind="id_switch", level=0.3)
    for others in ([npy(track_of(1))], [npy(track_of(0, start=1000))], []):
        found = online_trajectory(ours, noise, lambda others=others: others, "a", SIZE)
        assert (found.n_corrupted, found.n_switchable) == (0, 0)


def test_dropout_leaves_distinct_frames_to_choose_from():
    found = online_trajectory(track_of(1), Corruption(kind="dropout", level=0.5), tuple, "a", SIZE)
    frames = online_frames(found)
    assert len(set(frames)) == len(frames) == 10
    assert is_box(found.boxes[frames]).all()


def test_a_target_that_is_alone_is_counted(tmp_path):
    frames = frames_of(0)
    only = ("a-c0-1", ["1"], members(0, 1, frames, encode_mp4(frames, 10.0)))
    write_shard(tmp_path, "a", 0, [Clip("a-c0", HEIGHT, WIDTH, [only], {"n_masks": 16})])
    loader = Loader(Index.open(str(tmp_path)), noisy("id_switch", 0.5))
    for n, (record,) in enumerate(loader, 1):
        assert record.noise == (0, FRAMES - len(THINNED))
        assert loader.state_dict()["uncorrupted"] == n


def test_everything_dropped_leaves_a_prompt_without_tsf(index):
    for record in records(index, noisy("dropout", 1.0)):
        assert record.crops is None
        assert record.noise == (0, 0)


def test_stored_crops_are_not_changed_by_the_loader():
    """They were cut when the data was curated: noise there is a step of curation."""
    with pytest.raises(
        ValueError, match=r"--set corrupt\.kind=id_switch --set corrupt\.level=0\.2"
    ):
        LoaderOptions(corruption=Corruption(kind="id_switch", level=0.2))
