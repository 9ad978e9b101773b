"""Numbers of a run: the benchmark's own, the paper's beside them, and everything that must be said."""

import json

import duckdb
import pytest

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.folder import Folder, write_part
from model.evaluate.results import caveats, conclude
from model.evaluate.run import failed_video, to_rows
from tests.model.evaluate.made import MAKERS, perfect, planted
from tests.model.evaluate.test_folder import SETTINGS

ASKED = {"name": "host", "answer": "generate"}


@pytest.fixture(scope="module")
def mevis(tmp_path_factory):
    return open_benchmark("mevis", MAKERS["mevis"](tmp_path_factory.mktemp("mevis")))


def test_failures_count_and_are_listed(tmp_path, mevis):
    settings = SETTINGS.model_copy(update={"asking": ASKED})
    folder = Folder(tmp_path, settings)
    first, second = mevis.videos()
    write_part(
        tmp_path, first, to_rows(mevis, first, planted(mevis, perfect)[first.id]), folder.mark
    )
    write_part(tmp_path, second, failed_video(mevis, second, "its worker died"), folder.mark)
    results = conclude(folder, mevis, [first, second], 2)
    assert results["summary"] == {"J": 0.5, "F": 0.5, "J&F": 0.5}
    assert results["intervals"]["J&F"] == [0.0, 1.0]
    assert results["paper"]["J&F"] == {"host": 59.8, "sparrow": 61.9, "scale": 100.0}
    assert (results["queries"], results["failed"]) == (6, 3)
    assert results["failures"][0] == {"video": "clip1", "query": "0", "error": "its worker died"}
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert caveats(results) == [
        "tiny glus, random weights: the numbers mean nothing",
        "3 of 6 queries failed and count as zero",
    ]
    found = duckdb.sql(
        f"SELECT video, avg(J), count(*) FROM '{tmp_path}/per_query.parquet' GROUP BY ALL ORDER BY ALL"
    )
    assert found.fetchall() == [("clip0", 1.0, 3), ("clip1", 0.0, 3)]
    parts = duckdb.sql(f"SELECT count(*), sum(tracks) FROM '{tmp_path}/parts/*.parquet'")
    assert parts.fetchall() == [(6, 3)]


def test_a_part_of_the_benchmark_is_not_the_benchmark_s_number(tmp_path, mevis):
    folder = Folder(tmp_path, SETTINGS.model_copy(update={"asking": ASKED | {"answer": "force"}}))
    video = mevis.videos()[0]
    empty = {
        key: type(one)(one.masks_nthw[:0]) for key, one in planted(mevis, perfect)[video.id].items()
    }
    write_part(tmp_path, video, to_rows(mevis, video, empty), folder.mark)
    said = "\n".join(caveats(conclude(folder, mevis, [video], 2)))
    for words in (
        "1 of 2 videos: not the benchmark's number",
        "answers were forced",
        "3 of 3 answers name no object",
    ):
        assert words in said


def test_without_public_truth_there_is_no_score(tmp_path, mevis):
    hidden = open_benchmark("mevis", mevis.root.path, "val")
    folder = Folder(tmp_path, SETTINGS.model_copy(update={"asking": ASKED, "split": "val"}))
    video = hidden.videos()[0]
    write_part(
        tmp_path, video, to_rows(hidden, video, planted(hidden, perfect)[video.id]), folder.mark
    )
    results = conclude(folder, hidden, [video], 2)
    assert results["summary"] == {}
    assert results["failed"] == 0
    assert "make an archive" in caveats(results)[-1]


def test_a_number_of_the_paper_that_others_report_is_marked(tmp_path):
    root = MAKERS["videogcg"](tmp_path / "data")
    gcg = open_benchmark("videogcg", root)
    asked = {"asking": ASKED, "benchmark": "videogcg", "split": "test", "host": "videoglamm"}
    folder = Folder(tmp_path / "run", SETTINGS.model_copy(update=asked))
    videos = gcg.videos()
    for video in videos:
        write_part(folder.out, video, failed_video(gcg, video, "not run"), folder.mark)
    paper = conclude(folder, gcg, videos, len(videos))["paper"]
    assert paper["Recall"] == {"host": 0.375, "sparrow": 0.383, "scale": 1.0, "reported": True}
    assert paper["CLAIR"] == {"host": 28.2, "sparrow": 33.6, "scale": 100.0}
