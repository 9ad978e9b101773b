"""Jobs and forecasts: what a plan promises, and clear words when a folder is not what was expected."""

import shutil

import pytest

from flows.forecast import forecast
from flows.jobs import make_jobs, normal, sources_under, totals
from pipeline.plan import build_plan
from pipeline.presets import configure


def test_source_names_are_forgiving_and_unknown_ones_list_the_choices():
    assert normal("VID-Sentence") == "vid_sentence"
    with pytest.raises(ValueError, match="choose one of hcstvg, vid_sentence"):
        normal("coco")


def test_sources_are_the_folders_of_their_names(tmp_path):
    (tmp_path / "refsav").mkdir()
    (tmp_path / "got10k").symlink_to(tmp_path / "refsav")
    (tmp_path / "coco").mkdir()
    (tmp_path / "lasot").write_text("a file")
    assert sources_under(tmp_path) == ["got10k", "refsav"]
    with pytest.raises(ValueError, match="has none of the folders hcstvg, vid_sentence, a2d"):
        sources_under(tmp_path / "coco")


def test_forecast_counts_what_will_be_skipped_and_why(tiny_job):
    row = forecast(tiny_job, build_plan(tiny_job, save=False))
    assert (row["clips"], row["referents"], row["shards"]) == (6, 6, 3)
    assert (row["quarantined"], row["media"]) == (2, "some")
    assert row["skip"] == {"malformed_row": 1, "media_missing": 1}
    assert totals([row, row])["referents"] == 12


def test_forecast_of_annotations_alone_is_about_the_annotations(tiny_job, tmp_path):
    shutil.copytree(f"{tiny_job.data_root}/anno_v2", tmp_path / "bare" / "anno_v2")
    job = tiny_job.model_copy(update={"data_root": str(tmp_path / "bare")})
    row = forecast(job, build_plan(job, save=False))
    assert (row["media"], row["clips"], row["quarantined"]) == ("none", 6, 1)


def test_a_folder_that_is_not_the_dataset_says_what_was_found_and_expected(tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(
        ValueError, match=r"(?s)no lasot annotations.*found: holiday.*expected:.*groundtruth\.txt"
    ):
        make_jobs("lasot", tmp_path, tmp_path / "out", configure("lite"))


def test_an_unknown_split_names_those_that_are_there(tiny_root, tmp_path):
    with pytest.raises(ValueError, match="it has train"):
        make_jobs("hcstvg", tiny_root, tmp_path, configure("lite"), splits=["dev"])


def test_source_overrides_reach_the_source(tiny_root, tmp_path):
    (job,) = make_jobs(
        "hcstvg",
        tiny_root,
        tmp_path,
        configure("lite"),
        source_sets=["rules.min_iou=0.25", "span=tube"],
    )
    config = job.load().config
    assert (config.rules.min_iou, config.rules.boxes, config.span) == (0.25, "tracked", "tube")
    with pytest.raises(ValueError, match="no such field"):
        make_jobs(
            "hcstvg", tiny_root, tmp_path, configure("lite"), source_sets=["rules.min_IoU=0.25"]
        )
