"""A record and a sample: frames, masks, boxes and crops say the same of a non-square, odd-sized video."""

import io
import tarfile

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from model.data.collate import collate
from model.data.index import Index
from model.data.loader import Loader, LoaderOptions
from model.data.questions import QuestionMix
from model.data.read import Corrupt, Reader, plain_webdataset
from model.data.record import choose_frames, make_record
from model.tsf import TSFConfig
from pipeline.sample import add_member
from schemas.video.pictures import encode_jpeg
from schemas.video.stored import encode_mp4, stored_pictures
from tests.model.data.made import AWAY, COLOURS, FRAMES, HEIGHT, THINNED, WIDTH, boxes, frames_of
from tests.model.made import tiny

ALWAYS = TSFConfig(dropout=0.0)


def records(index, **options):
    options = {"tsf": ALWAYS, **options}
    return [
        record for batch in Loader(index, LoaderOptions(batch=1, **options)) for record in batch
    ]


def target_of(record) -> tuple[int, int]:
    clip, target = record.key.split("-c")[1].split("-")
    return int(clip), int(target)


def near(picture, target):
    return np.abs(picture.astype(int) - COLOURS[target]).max(-1) < 60


def test_frame_mask_box_and_crop_agree(index):
    for record in records(index, frames=6):
        clip, target = target_of(record)
        assert record.frames_fhw3.shape == (6, HEIGHT, WIDTH, 3)
        original = frames_of(clip)[record.times_f]
        assert (
            np.abs(record.frames_fhw3.astype(int) - original).mean() < 4
        )  # h264, the right frames
        pixels = record.boxes_t4 * np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT])
        np.testing.assert_allclose(pixels, boxes(clip)[target], atol=1e-3)
        np.testing.assert_array_equal(record.box_4, record.boxes_t4[record.times_f[0]])
        for t, frame, mask in zip(
            record.times_f, record.frames_fhw3, record.masks_fhw, strict=True
        ):
            if t in THINNED and target == 0:
                assert (mask == -1).all()
                continue
            if t in AWAY and target == 0:
                assert (mask == 0).all()
                continue
            if t in THINNED:
                assert (mask == -1).all()
                continue
            ys, xs = np.nonzero(mask == 1)
            np.testing.assert_allclose(
                [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], pixels[t], atol=1e-3
            )
            if target == 1 or (near(frame, 0) == (mask == 1)).mean() > 0.9:
                assert near(frame, target)[mask == 1].mean() > 0.5
        assert len(record.crops) == 4
        for crop in record.crops:
            assert crop.shape == (33, 33, 3)
            assert near(crop, target).mean() > 0.5


def test_first_frame_shows_the_target_and_every_stretch_is_drawn_from():
    rng = np.random.default_rng(0)
    absent = np.zeros(40, bool)
    absent[[3, 4, 30, 31]] = True
    masked = [*range(5, 30), 32]
    drawn = np.stack([choose_frames(masked, absent, 40, 7, rng) for _ in range(200)])
    assert (np.diff(drawn, axis=1) > 0).all()
    assert set(drawn.flat) == {*masked, 30, 31}  # known absences after it has appeared teach too
    assert set(drawn[:, 0]) <= set(masked)
    few = choose_frames(
        [10], np.zeros(40, bool), 40, 4, rng
    )  # filled up with unknown ones, later ones only
    assert few[0] == 10
    assert len(few) == 4
    with pytest.raises(ValueError, match="no frame has a mask"):
        choose_frames([], absent, 40, 4, rng)


def test_media_as_a_tar_of_jpegs_gives_the_same_frames(index):
    entry = index.entry(0)
    members = Reader(index.out).members(entry)
    video = make_record(entry, members, np.random.default_rng(0))
    frames = frames_of(0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for t, frame in enumerate(frames):
            add_member(tar, f"{t:06d}.jpg", encode_jpeg(frame))
    del members["mp4"]
    with pytest.raises(Corrupt, match=entry.key):
        make_record(entry, members, np.random.default_rng(0))
    tarred = make_record(
        entry, members | {"frames.tar": buffer.getvalue()}, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(video.times_f, tarred.times_f)
    assert np.abs(video.frames_fhw3.astype(int) - tarred.frames_fhw3).mean() < 4


def test_any_frames_of_a_video_are_those_of_decoding_it_all():
    ramp = np.arange(40, dtype=np.uint8)[:, None, None, None] * 5 + np.zeros(
        (40, 64, 96, 3), np.uint8
    )
    video = encode_mp4(ramp, 25.0, gop=12)
    for wanted in ({0}, {39}, {11, 12, 13}, {5, 30}, set(range(40))):
        found = dict(stored_pictures(video, wanted, count=40))
        assert found.keys() == wanted
        for t, frame in found.items():
            assert abs(float(frame.mean()) - 5 * t) < 2


def test_frames_are_drawn_anew_in_each_epoch(index):
    loader = Loader(index, LoaderOptions(batch=20, frames=3))
    times = [{r.key: tuple(r.times_f) for batch in loader for r in batch} for _ in range(2)]
    assert times[0].keys() == times[1].keys()
    assert sum(times[0][key] != times[1][key] for key in times[0]) > 15


def test_online_selection_is_offered_up_to_16_crops(index):
    assert {
        len(r.crops)
        for r in records(index, frames=2, tsf=TSFConfig(dropout=0.0, selection="online"))
    } == {16}
    assert {len(r.crops) for r in records(index, frames=2, tsf=TSFConfig(dropout=0.0, k=6))} == {6}


@pytest.mark.parametrize("which", ["out", "curated"])
def test_plain_webdataset_reads_the_same(which, request):
    index = Index.open(str(request.getfixturevalue(which)))
    reader = Reader(index.out, verify=True)
    plain = list(plain_webdataset(index))
    assert [entry.key for entry, _ in plain] == index.referents["referent_id"].to_pylist()
    for row, (entry, members) in enumerate(plain):
        ours = reader.members(index.entry(row))
        assert ours == members
        one, two = (
            make_record(entry, m, np.random.default_rng(0), tsf=ALWAYS) for m in (ours, members)
        )
        np.testing.assert_array_equal(one.frames_fhw3, two.frames_fhw3)
    reader.close()


def test_a_folder_behind_fsspec_reads_the_same(out, index):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(out), "/there", recursive=True)
    far = Index.open("memory://there")
    assert far.fingerprint == index.fingerprint
    assert Reader("memory://there").members(far.entry(3)) == Reader(str(out)).members(
        index.entry(3)
    )


def test_what_curation_wrote_is_what_training_sees(curated):
    index = Index.open(str(curated))
    seen = records(index, frames=4)
    assert len(seen) == 5
    for record in seen:
        assert record.frames_fhw3.shape[1:] == (96, 160, 3)
        x1, y1, x2, y2 = record.box_4 * np.float32([160, 96, 160, 96])
        ys, xs = np.nonzero(record.masks_fhw[0] == 1)
        assert x1 - 4 <= xs.min() <= xs.max() < x2 + 4
        assert y1 - 4 <= ys.min() <= ys.max() < y2 + 4
        assert "square" in record.caption


def test_where_selects_by_any_column_of_the_manifests(out):
    index = Index.open(str(out), sources=["a"], where=pc.field("mean_iou") > 0.35)
    assert index.referents["referent_id"].to_pylist() == [
        f"a-c{n}-{target}" for n in (4, 5) for target in (0, 1)
    ]
    with pytest.raises(ValueError, match="no referent with a mask"):
        Index.open(str(out), where=pc.field("mean_iou") > 99)


@pytest.mark.parametrize("host", ["videoglamm", "unipixel", "glus"])
def test_a_batch_of_records_trains_a_host(index, host):
    sparrow = tiny(host)
    options = LoaderOptions(
        batch=2, frames=4, tsf={"dropout": 0.5}, questions=QuestionMix.host_only()
    )
    batch = next(iter(Loader(index, options)))
    samples = collate(batch, sparrow)
    assert [sample.crops is None for sample in samples].count(True) <= 2
    for record, sample in zip(batch, samples, strict=True):
        assert sample.masks_nfhw.shape == (1, 4, HEIGHT, WIDTH)
        assert sample.boxes_n4.tolist() == [record.box_4.tolist()]
        assert sparrow.grounding_tokens() in sample.text
    with torch.no_grad():
        for stage in (sparrow.config.stage1, sparrow.config.stage2):
            assert all(value.isfinite() for value in sparrow(samples, stage).values())


def test_boxes_are_spelled_out_where_words_are_the_proposer(index):
    sparrow = tiny("videoglamm", **{"proposer.kind": "coords"})
    record = records(index, frames=2)[0]
    sample = collate([record], sparrow)[0]
    assert f"[{record.box_4[0]:.2f},{record.box_4[1]:.2f}," in sample.text


def test_crops_of_a_record_need_a_model_with_tsf(index):
    with pytest.raises(ValueError, match=r"tsf\.path"):
        collate(records(index, frames=2)[:1], tiny("videoglamm", **{"tsf.path": "none"}))
    assert FRAMES == 24
