"""A run's folder: parts are whole and of this run, or not there."""

import os
from pathlib import Path

import numpy as np
import pytest

from model.evaluate.folder import Folder, Settings, part_path, prediction, write_part
from model.evaluate.run import to_rows
from model.evaluate.task import Prediction, Query
from tests.model.evaluate.made import MAKERS, perfect, planted

SETTINGS = Settings(
    version="1",
    benchmark="mevis",
    split="val_u",
    scoring={},
    host="glus",
    size="tiny",
    preset="paper",
    model={"box": {"enabled": True}},
    weights=(),
    asking={"name": "host"},
    seed=0,
)


@pytest.fixture(scope="module")
def mevis(tmp_path_factory):
    from model.evaluate.benchmarks import open_benchmark

    return open_benchmark("mevis", MAKERS["mevis"](tmp_path_factory.mktemp("mevis")))


@pytest.fixture
def rows(mevis):
    video = mevis.videos()[0]
    return to_rows(mevis, video, planted(mevis, perfect)[video.id])


def test_a_part_gives_back_what_was_predicted(tmp_path, mevis, rows):
    video, query = mevis.videos()[0], Query("0", "clip0", "x")
    folder = Folder(tmp_path, SETTINGS)
    assert not folder.finished(video)
    write_part(tmp_path, video, rows, folder.mark)
    assert folder.finished(video)
    back = folder.rows(video, masks=True)
    assert back == rows
    assert "masks" not in folder.rows(video)[0]
    np.testing.assert_array_equal(
        prediction(back[0]).masks_nthw, planted(mevis, perfect)["clip0"][query.id].masks_nthw
    )
    caption = Prediction(np.zeros((2, 3, 4, 5), bool), "two [SEG] [SEG]", ("a", "b"))
    again = prediction(
        {
            "height": 4,
            "width": 5,
            "tracks": 2,
            "frames": 3,
            "answer": caption.text,
            "answer_phrases": ["a", "b"],
            "error": "",
            "masks": [["d0"] * 3] * 2,
        }
    )
    assert (again.phrases, again.text) == (caption.phrases, caption.text)


def test_same_rows_same_bytes_and_nothing_but_the_part_is_left(tmp_path, mevis, rows):
    video = mevis.videos()[0]
    contents = []
    for _ in range(2):
        write_part(Path(Folder(tmp_path, SETTINGS).out), video, rows, "mark")
        contents.append(part_path(tmp_path, video).read_bytes())
    assert contents[0] == contents[1]
    assert os.listdir(tmp_path / "parts") == ["clip0.parquet"]


def test_a_part_that_is_cut_or_of_another_run_is_made_again(tmp_path, mevis, rows):
    video = mevis.videos()[0]
    folder = Folder(tmp_path, SETTINGS)
    write_part(tmp_path, video, rows, "another")
    assert not folder.finished(video)
    write_part(tmp_path, video, rows, folder.mark)
    path = part_path(tmp_path, video)
    path.write_bytes(path.read_bytes()[:-20])
    assert not folder.finished(video)


def test_retry_finds_what_failed(tmp_path, mevis, rows):
    video = mevis.videos()[0]
    folder = Folder(tmp_path, SETTINGS)
    write_part(tmp_path, video, rows, folder.mark)
    assert folder.finished(video, retry=True)
    write_part(tmp_path, video, [rows[0] | {"error": "out of memory"}, *rows[1:]], folder.mark)
    assert folder.finished(video)
    assert not folder.finished(video, retry=True)


def test_another_run_is_refused_with_the_fields_that_differ(tmp_path):
    Folder(tmp_path, SETTINGS)
    Folder(tmp_path, SETTINGS)
    other = SETTINGS.model_copy(update={"seed": 1, "model": {"box": {"enabled": False}}})
    with pytest.raises(ValueError, match="other settings") as caught:
        Folder(tmp_path, other)
    assert "model.box.enabled: there True, now False" in str(caught.value)
    assert "seed: there 0, now 1" in str(caught.value)
    assert "host" not in str(caught.value)


def test_timings_survive_a_cut_line(tmp_path):
    from model.evaluate.finished import RunCost

    folder = Folder(tmp_path, SETTINGS)
    line = {
        "video": "a",
        "queries": 2,
        "frames_asked": 20,
        "seconds": 2.0,
        "device": "cpu",
        "parameters": 7,
        "peak_mib": 0.0,
    }
    folder.add_timing(line)
    with (tmp_path / "timings.csv").open("a") as file:
        file.write("b,2,2")
    folder.add_timing(line | {"video": "c", "seconds": 3.0})
    folder.add_timing(line | {"video": "a", "seconds": 1.0})
    assert RunCost.read(tmp_path / "timings.csv") == RunCost(7, 10.0)
    assert RunCost.read(tmp_path / "none.csv") == RunCost()
