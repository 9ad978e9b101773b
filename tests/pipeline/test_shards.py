"""Shards: staged clips survive exactly, commits are atomic and reproducible, garbage is swept, nothing else is."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from flows import driver
from pipeline.curate import curate_clip
from pipeline.plan import Counts, build_plan, read_plan
from pipeline.presets import build_stages
from pipeline.shards import (
    SHARD_TABLES,
    changed_clips,
    commit_shard,
    committed,
    is_staged,
    load_staged,
    part_path,
    shard_path,
    stage_clip,
    staged_path,
    staging,
    sweep,
    unchanged,
)
from schemas.tables import schema
from tests.conftest import make_tiny_job


@pytest.fixture(scope="module")
def whole(tiny_root, tmp_path_factory):
    """The first shard of the tiny plan, its clips curated and staged; never changed."""
    job = make_tiny_job(tiny_root, tmp_path_factory.mktemp("whole") / "out")
    build_plan(job)
    stages = build_stages(job.config)
    shard = next(read_plan(job, stages.digest))
    for planned in shard.clips:
        result = curate_clip(planned, job, job.load(), stages)
        stage_clip(staged_path(Path(job.out), shard, planned.clip.clip_id), result)
    return Path(job.out), shard, stages


@pytest.fixture
def staged(tiny_job, whole):
    """A copy of it for the test."""
    out, shard, stages = whole
    shutil.copytree(out, tiny_job.out)
    return tiny_job, shard, stages


def test_a_staged_clip_reads_back_exactly(staged):
    job, shard, stages = staged
    planned = shard.clips[0]
    again = load_staged(staged_path(Path(job.out), shard, planned.clip.clip_id))
    fresh = curate_clip(planned, job, job.load(), stages)
    assert again.samples[0].members == fresh.samples[0].members
    assert again.clip_row == fresh.clip_row
    for table, rows in fresh.samples[0].rows.items():
        np.testing.assert_equal(again.samples[0].rows[table], rows)  # NaN equal to NaN


def test_features_are_staged_as_they_are_stored_and_older_clips_are_still_read(staged, monkeypatch):
    job, shard, stages = staged
    path = staged_path(Path(job.out), shard, shard.clips[0].clip.clip_id)
    packed, size = load_staged(path), path.stat().st_size
    [feature, *_] = [row["feature"] for row in packed.samples[0].rows["tsf_features"]]
    assert len(feature) == stages.encoder.dim
    assert isinstance(feature[0], float)
    monkeypatch.setattr("pipeline.shards._packed", lambda rows: rows)  # how it was before
    stage_clip(path, packed)
    assert (
        load_staged(path).samples[0].rows["tsf_features"] == packed.samples[0].rows["tsf_features"]
    )
    assert path.stat().st_size > size + 2 * 4 * stages.encoder.dim


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:200] + b"X" + b[201:], lambda b: b""]
)
def test_a_damaged_staged_clip_is_not_used(staged, damage):
    job, shard, _ = staged
    path = staged_path(Path(job.out), shard, shard.clips[0].clip.clip_id)
    path.write_bytes(damage(path.read_bytes()))
    assert not is_staged(path)
    assert not path.exists()


def test_tar_is_ustar_with_nothing_of_today(staged):
    job, shard, stages = staged
    row = commit_shard(job, shard, stages.encoder.dim)
    path = Path(job.out) / row["path"]
    assert path == shard_path(Path(job.out), job, shard.name)
    assert path.read_bytes()[257:265] == b"ustar\x0000"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o444)}
    keys = [m.name.split(".", 1)[0] for m in members]
    assert keys == [k for key in dict.fromkeys(keys) for k in [key] * keys.count(key)]  # contiguous


def test_members_table_leads_to_the_bytes(staged):
    job, shard, stages = staged
    row = commit_shard(job, shard, stages.encoder.dim)
    data = (Path(job.out) / row["path"]).read_bytes()
    members = pq.read_table(
        part_path(Path(job.out), "members", shard.name), partitioning=None
    ).to_pylist()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    assert {
        f"{m['key']}.{m['name']}": data[m["offset"] : m["offset"] + m["size"]] for m in members
    } == files


def test_plain_webdataset_reads_the_shard(staged):
    job, shard, stages = staged
    row = commit_shard(job, shard, stages.encoder.dim)
    samples = list(wds.WebDataset(str(Path(job.out) / row["path"]), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [p.referents[0].referent_id for p in shard.clips]
    features = np.load(io.BytesIO(samples[0]["tsf.npy"]), allow_pickle=False)
    assert features.shape == (4, stages.encoder.dim)
    assert samples[0]["mp4"][4:8] == b"ftyp"


def test_every_part_has_its_schema_and_names_its_shard(staged):
    job, shard, stages = staged
    commit_shard(job, shard, stages.encoder.dim)
    for table in (*SHARD_TABLES, "shards"):
        part = pq.read_table(part_path(Path(job.out), table, shard.name), partitioning=None)
        assert part.schema.equals(schema(table, dim=stages.encoder.dim), check_metadata=True), table
        assert set(part["shard"].to_pylist()) <= {shard.name}


def test_committing_twice_gives_the_same_bytes(staged, tmp_path):
    job, shard, stages = staged
    keep = tmp_path / "keep"
    shutil.copytree(staging(Path(job.out), shard), keep)
    first = commit_shard(job, shard, stages.encoder.dim)
    before = {p: p.read_bytes() for p in Path(job.out).rglob(f"{shard.name}.*")}
    shutil.copytree(keep, staging(Path(job.out), shard))
    assert commit_shard(job, shard, stages.encoder.dim) == first
    assert {p: p.read_bytes() for p in Path(job.out).rglob(f"{shard.name}.*")} == before


def test_without_its_shards_row_a_shard_is_garbage_and_swept(staged):
    job, shard, stages = staged
    out = Path(job.out)
    commit_shard(job, shard, stages.encoder.dim)
    assert committed(out, job) == {shard.name: shard.hash}
    assert sweep(out, job, set()) == []
    part_path(out, "shards", shard.name).unlink()
    assert committed(out, job) == {}
    removed = sweep(out, job, set())
    assert len(removed) == 1 + len(SHARD_TABLES)
    assert not list(out.rglob(f"{shard.name}.*"))


def test_a_publisher_s_claim_is_no_shard(staged):
    job, shard, stages = staged
    commit_shard(job, shard, stages.encoder.dim)
    part = part_path(Path(job.out), "shards", shard.name)
    pq.write_table(pq.read_table(part, partitioning=None).slice(0, 0), part)
    assert committed(Path(job.out), job) == {}


def test_sweep_leaves_other_sources_and_wanted_staging_alone(staged):
    job, shard, _ = staged
    out = Path(job.out)
    other = part_path(out, "clips", "lasot-train-000000")
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x")
    assert sweep(out, job, {staging(out, shard).name}) == []
    assert other.exists()
    assert [Path(p).name for p in sweep(out, job, set())] == [staging(out, shard).name]


def test_a_replaced_source_file_is_noticed(staged, tmp_path):
    job, shard, stages = staged
    commit_shard(job, shard, stages.encoder.dim)
    assert changed_clips(job, shard) == []
    copy = tmp_path / "data"
    shutil.copytree(job.data_root, copy, copy_function=shutil.copy2)
    moved = job.model_copy(update={"data_root": str(copy)})
    assert changed_clips(moved, shard) == []
    os.utime(copy / shard.clips[1].clip.media.path, ns=(1, 1))
    assert changed_clips(moved, shard) == [shard.clips[1].clip.clip_id]


def test_a_quick_look_is_sure_only_of_videos_that_are_as_they_were(staged, tmp_path):
    job, shard, stages = staged
    commit_shard(job, shard, stages.encoder.dim)
    assert unchanged(job, shard.name)
    copy = tmp_path / "data"
    shutil.copytree(job.data_root, copy, copy_function=shutil.copy2)
    moved = job.model_copy(update={"data_root": str(copy)})
    assert unchanged(moved, shard.name)
    video = copy / shard.clips[1].clip.media.path
    os.utime(video, ns=(1, 1))
    assert not unchanged(moved, shard.name)
    video.unlink()  # that does not undo what was made, but the quick look cannot know
    assert not unchanged(moved, shard.name)
    assert changed_clips(moved, shard) == []
    video.symlink_to(Path(job.data_root) / shard.clips[1].clip.media.path)
    assert not unchanged(moved, shard.name)
    assert changed_clips(moved.model_copy(update={"follow_links": True}), shard) == []
    part = part_path(Path(job.out), "clips", shard.name)
    table = pq.read_table(part, partitioning=None)
    kinds = pa.array(["frames"] * len(table)).cast(table.schema.field("media_kind").type)
    pq.write_table(
        table.set_column(table.schema.get_field_index("media_kind"), "media_kind", kinds), part
    )
    assert not unchanged(job, shard.name)


def test_a_resume_reads_the_plan_s_rows_of_what_is_left_alone(staged, tmp_path, monkeypatch):
    job, shard, stages = staged
    copy = tmp_path / "data"
    shutil.copytree(job.data_root, copy, copy_function=shutil.copy2)
    job = job.model_copy(update={"data_root": str(copy)})
    commit_shard(job, shard, stages.encoder.dim)
    leftover = staged_path(Path(job.out), shard, "left")
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    asked, ticks = [], []

    def spied(job, digest, *, only):
        asked.append(sorted(only))
        return read_plan(job, digest, only=only)

    monkeypatch.setattr(driver, "read_plan", spied)

    def left():
        entry = driver.Run(job, Counts())
        driver.prepare(entry, False)
        ticks.clear()
        return [
            s.name for s in driver.pending(entry, ticks.append, ticks.append)
        ], entry.shards_skipped

    names = [f"{job.name}-{n:06d}" for n in range(3)]
    assert left() == (names[1:], 1)
    assert ticks == [2, 1]  # clips, shards
    assert asked == [names[1:]]
    assert not leftover.parent.exists()
    os.utime(copy / shard.clips[0].clip.media.path, ns=(1, 1))
    assert left() == (names, 0)
    (
        copy / shard.clips[0].clip.media.path
    ).unlink()  # gone is not changed: only a look at the plan tells
    assert left() == (names[1:], 1)
    assert asked[-1] == names
