"""`sparrow verify --against-source`: the pictures in the shards are those of the data set, or it says which are not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows import against_source, driver
from flows.against_source import compare_with_source
from flows.cli import app
from flows.executors import Inline
from flows.progress import Quiet
from schemas.video.stored import encode_mp4
from tests.conftest import make_tiny_job
from tests.made import moving_square


@pytest.fixture(scope="module")
def made(tiny_root, tmp_path_factory) -> tuple[Path, Path]:
    """A data set of the module's own, and what was curated from it."""
    folder = tmp_path_factory.mktemp("against")
    root = folder / "root"
    shutil.copytree(tiny_root, root)
    job = make_tiny_job(root, folder / "out")
    driver.run([job], Inline(), Quiet())
    return root, Path(job.out)


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy of the data set, which a test may change."""
    shutil.copytree(made[0], tmp_path / "moved")
    return tmp_path / "moved"


def test_an_output_that_was_made_from_this_source_has_its_pictures(made):
    done = CliRunner().invoke(app, ["verify", str(made[1]), "--against-source"])
    assert done.exit_code == 0, done.output
    assert "0 problems" in done.output
    assert "against the source: 5 clips, 100 pictures, PSNR" in done.output


def test_the_numbers_are_in_the_json(made):
    done = CliRunner().invoke(app, ["verify", str(made[1]), "--against-source", "--json"])
    compared = json.loads(done.stdout)["against_source"]
    assert (compared["clips"], compared["pictures"], compared["without_media"]) == (5, 100, 0)
    assert 24 < compared["worst_psnr"] < compared["mean_psnr"] < 60


def test_other_pictures_under_the_same_name_are_found(made, root):
    frames, _ = moving_square(77, 20)
    (root / "part_1" / "2_video.mp4").write_bytes(encode_mp4(frames, 10.0))
    report = compare_with_source(made[1], root)
    [problem] = report.problems
    assert problem.where == "part_1/2_video.mp4"
    assert "is another picture than in the source (" in problem.what
    assert report.clips == 5


@pytest.mark.parametrize(("move", "words"), [(1, "1 frame earlier"), (-1, "1 frame later")])
def test_pictures_that_are_one_frame_off_are_found(made, root, move, words, monkeypatch):
    """The same number of pictures, each a frame later or earlier than it was: the square moves by three pixels."""
    frames, _ = moving_square(2, 20)
    frames = np.concatenate([frames[1:], frames[-1:]] if move > 0 else [frames[:1], frames[:-1]])
    (root / "part_1" / "2_video.mp4").write_bytes(encode_mp4(frames, 10.0))
    monkeypatch.setattr(against_source, "LEAST_PSNR", 5.0)  # as if the motion were slow
    [problem] = compare_with_source(made[1], root).problems
    assert words in problem.what


def test_a_source_that_is_gone_is_a_problem_of_its_clip(made, root):
    (root / "part_1" / "4_video.mp4").unlink()
    [problem] = compare_with_source(made[1], root).problems
    assert "cannot be read any more" in problem.what
    done = CliRunner().invoke(
        app, ["verify", str(made[1]), "--against-source", "--data-root", str(root)]
    )
    assert done.exit_code == 1
    assert "--replan" in done.output


def test_a_data_root_that_is_gone_is_one_line(made, tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        compare_with_source(made[1], tmp_path / "nowhere")


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_verify_writes_nothing(made):
    """So an output on a disk that is mounted read-only can be checked."""
    out = made[1]
    (out / "catalog.duckdb").unlink(missing_ok=True)
    before = times(out)
    for words in ([], ["--deep"], ["--deep", "--workers", "2"]):
        done = CliRunner().invoke(app, ["verify", str(out), *words])
        assert done.exit_code == 0, done.output
    assert times(out) == before
