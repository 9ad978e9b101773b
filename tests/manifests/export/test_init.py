"""What all exports share: choosing, refusing, replacing, and going on past what is broken."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from manifests.export import export
from schemas.members import EXPORT_MARKER
from tests.manifests.made import make_whole


def about(to):
    return json.loads((to / EXPORT_MARKER).read_text())


def test_source_split_and_where_choose(whole, tmp_path):
    done = export(whole, tmp_path / "a", "coco", sources=["a2d", "lasot"], splits=["test"])
    assert dict(done.samples) == {"a2d-test": 2}
    done = export(
        whole, tmp_path / "b", "coco", where="caption LIKE '%square%' AND category = 'kite'"
    )
    assert dict(done.samples) == {"lasot-train": 1}
    assert about(tmp_path / "b")["licences"] == {"lasot": "terms of lasot"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "voc"}, "unknown format 'voc': choose one of sparrow, artemis, coco"),
        ({"sources": ["nobody"]}, "no samples of nobody; it has a2d"),
        ({"where": "mean_iou > 2"}, "no sample matches"),
    ],
)
def test_one_clear_error_and_nothing_written(whole, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(whole, tmp_path / "to", **{"format": "coco", **options})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_others_is_refused_and_an_own_export_replaced(whole, tmp_path):
    to = tmp_path / "to"
    to.mkdir()
    export(whole, to, "coco", sources=["a2d"])  # empty: fine
    export(whole, to, "artemis", sources=["lasot"])
    assert about(to)["samples"] == {"lasot-train": 2}
    assert not (to / "JPEGImages").exists()
    (to / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        export(whole, to, "coco", sources=["a2d"])
    (to / EXPORT_MARKER).unlink()
    with pytest.raises(ValueError, match="name an empty or new folder"):
        export(whole, to, "coco", sources=["a2d"])
    assert (to / "frames").is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["to"]


def test_a_damaged_clip_is_named_and_the_others_are_exported(tmp_path):
    out = make_whole(tmp_path / "out", ("a2d", "lasot"))
    (tar,) = (out / "lasot").rglob("*.tar")
    member = next(
        m
        for m in pq.read_table(out / "manifests/members/lasot-train-000000.parquet").to_pylist()
        if m["name"] == "mp4"
    )
    data = bytearray(tar.read_bytes())
    data[member["offset"] + 500] ^= 1
    tar.write_bytes(bytes(data))
    done = export(out, tmp_path / "to", "coco")
    assert dict(done.samples) == {"a2d-test": 2}
    ((item, why),) = done.skipped
    assert (item, "damaged" in why) == ("lasot-train-v", True)
    assert [p.name for p in (tmp_path / "to" / "JPEGImages").iterdir()] == ["a2d-test-v"]
    tar.unlink()
    with pytest.raises(ValueError, match="none of the 1 clips could be exported"):
        export(out, tmp_path / "none", "sparrow", sources=["lasot"])
    assert not (tmp_path / "none").exists()


def test_a_target_without_masks_is_left_out_and_the_other_stays(tmp_path):
    out = make_whole(tmp_path / "out", ("got10k",))
    part = out / "manifests/masks/got10k-val-000000.parquet"
    table = pq.read_table(part, partitioning=None)
    keep = [r["referent_id"].endswith("-1") for r in table.to_pylist()]
    pq.write_table(table.filter(keep), part)
    done = export(out, tmp_path / "to", "sparrow")
    assert dict(done.samples) == {"got10k-val": 1}
    assert done.skipped == [("got10k-val-v-0", "no frame has a mask")]


def test_the_same_output_gives_the_same_bytes(whole, tmp_path):
    for name in "ab":
        export(whole, tmp_path / name, "sparrow", sources=["refsav", "mevis", "got10k"])
    one, two = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("*")
            if p.is_file()
        }
        for n in "ab"
    )
    assert one == two


def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path):
    out = make_whole(tmp_path / "out", ("a2d",))
    part = out / "manifests/shards/a2d-test-000000.parquet"
    table = pq.read_table(part, partitioning=None)
    place = table.schema.get_field_index("path")
    pq.write_table(table.set_column(place, table.schema.field("path"), [["../secret.tar"]]), part)
    shutil.copy(next((out / "a2d").rglob("*.tar")), tmp_path / "secret.tar")
    with pytest.raises(ValueError, match="a tar is not called"):
        export(out, tmp_path / "to", "coco")
