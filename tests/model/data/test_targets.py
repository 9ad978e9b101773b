"""Targets of a video by the manifests alone: who else is there, and what curation did to trajectories."""

import pyarrow as pa
import pytest

from model.data.index import Index
from model.data.loader import Loader, LoaderOptions
from model.data.targets import NOISE_COLUMNS, Targets, noise_of
from tests.model.data.made import make_output

ROW = {"source": "s", "video_id": "v", "clip_id": "c", "start": 0, "stop": 10, "object_ids": ["0"]}


def others(*changes: dict) -> list[int]:
    return Targets(pa.Table.from_pylist([ROW, *(ROW | change for change in changes)])).others(0)


def test_other_targets_are_looked_for_in_the_whole_video():
    assert others({"object_ids": ["1"]}) == [1]
    elsewhere = {"object_ids": ["1"], "clip_id": "d"}
    assert others(elsewhere | {"start": 9, "stop": 20}) == [1]
    assert others(elsewhere | {"start": 10, "stop": 20}) == []
    assert others(elsewhere | {"video_id": "w"}) == []
    assert others(elsewhere | {"source": "t"}) == []


def test_an_object_in_common_is_no_other_target():
    assert others({"object_ids": ["0", "1"]}) == []
    assert others({"object_ids": []}) == [1]  # who it is, only the boxes show


def test_a_target_with_many_expressions_counts_once_and_this_clip_comes_first():
    far = {"object_ids": ["2"], "clip_id": "d"}
    assert others(far, {"object_ids": ["1"]}, {"object_ids": ["1"]}, far) == [2, 1]
    many = [{"object_ids": [str(n)]} for n in range(1, 40)]
    assert len(others(*many)) == 16


def noise(*rows: tuple) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(NOISE_COLUMNS, row, strict=True)) for row in rows])


def test_the_achieved_rate_and_who_is_alone():
    found = noise_of(noise(("id_switch", 0.5, 4, 10, 8), ("id_switch", 0.5, 0, 10, 0)))
    assert (found.kind, found.level, found.achieved, found.alone) == ("id_switch", 0.5, 0.2, 1)
    assert "20.0% of 20 frames changed; 1 of 2 referents have no other target" in str(found)
    clean = noise_of(noise(("none", None, 0, 10, None)))
    assert (clean.kind, clean.level, clean.achieved, clean.alone) == ("none", 0.0, 0.0, 0)


def test_different_noise_in_one_output_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"different noise .* \(jitter 0\.1, none 0\)"):
        noise_of(noise(("jitter", 0.1, 1, 2, None), ("none", None, 0, 2, None)))


def test_an_index_knows_its_noise(tmp_path):
    index = Index.open(str(make_output(tmp_path, {"a": (1, 1)})))
    assert index.noise.kind == "none"
    assert index.others(0) == [1]
    assert len(list(Loader(index, LoaderOptions(batch=1)))) == 2
