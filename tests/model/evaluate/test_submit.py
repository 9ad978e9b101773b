"""Archives have exactly the servers' layout, and the check finds what a server would refuse."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.submit import check_archive, davis_palette, write_archive
from model.evaluate.task import Prediction
from model.metrics import davis
from tests.model.evaluate import made


def read(archive, name):
    return Image.open(io.BytesIO(archive.read(name)))


def changed(source, target, change):
    """A copy of an archive: change(name, data) -> new name and data, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (entry := change(name, old.read(name))) is not None:
                new.writestr(*entry)
    return target


@pytest.fixture
def mevis(tmp_path):
    benchmark = open_benchmark("mevis", made.make_mevis(tmp_path / "data"), "val")
    write_archive(benchmark, made.planted(benchmark, made.perfect).items(), tmp_path / "good.zip")
    return benchmark, tmp_path / "good.zip"


def test_mevis(mevis):
    benchmark, path = mevis
    assert check_archive(benchmark, path) == []
    with zipfile.ZipFile(path) as archive:
        names = [f"clip{v}/{n}/{t:05d}.png" for v in (0, 1) for n in range(3) for t in range(6)]
        assert archive.namelist() == names
        image = read(archive, "clip1/2/00003.png")
        assert (image.mode, image.size) == ("L", (96, 64))
        expected = made.truth(benchmark.videos()[1], "first and second")[3]
        assert (np.asarray(image) == 255 * expected).all()


def test_ref_ytvos(tmp_path):
    benchmark = open_benchmark("ref-ytvos", made.make_ref_ytvos(tmp_path / "data", truth=False))
    assert (
        write_archive(benchmark, made.planted(benchmark, made.perfect).items(), tmp_path / "a.zip")
        == []
    )
    assert check_archive(benchmark, tmp_path / "a.zip") == []
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(archive.namelist()) == 2 * 2 * 6
        assert {name.split("/")[0] for name in archive.namelist()} == {"Annotations"}
        assert (
            np.asarray(read(archive, "Annotations/clip0/1/00025.png")) == 255 * made.square(0, 2, 5)
        ).all()


def test_ref_davis(tmp_path):
    benchmark = open_benchmark("ref-davis17", made.make_ref_davis(tmp_path / "data"))
    write_archive(benchmark, made.planted(benchmark, made.perfect).items(), tmp_path / "a.zip")
    assert check_archive(benchmark, tmp_path / "a.zip") == []
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(archive.namelist()) == 4 * 2 * 6
        image = read(archive, "anno_3/motorbike/00002.png")
        assert image.mode == "P"
        assert (np.asarray(image) == made.indices(1, 2)).all()
        assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]


def test_the_official_score_of_a_ref_davis_archive_is_ours(tmp_path):
    """The toolkit reads four folders, scores each with the unsupervised protocol, and the user takes their mean."""
    benchmark = open_benchmark("ref-davis17", made.make_ref_davis(tmp_path / "data"))
    predictions = made.planted(benchmark, made.shifted)
    predictions["dogs-scale"]["4"] = Prediction(np.zeros((0, 0, 0, 0), bool), error="lost")
    predictions["motorbike"]["1"] = Prediction(np.ones((1, 6, 64, 96), bool))
    write_archive(benchmark, predictions.items(), tmp_path / "a.zip")
    videos = [video.id for video in benchmark.videos()]
    truth = {
        name: np.stack([made.indices(v, t) for t in range(6)]) for v, name in enumerate(videos)
    }
    means = []
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        for a in range(4):
            saved = {
                name: np.stack(
                    [np.asarray(read(archive, f"anno_{a}/{name}/{t:05d}.png")) for t in range(6)]
                )
                for name in videos
            }
            means.append(davis(saved, truth, "unsupervised")["global"])
    got = made.scores(benchmark, predictions)
    for ours, theirs in (("J", "J-Mean"), ("F", "F-Mean"), ("J&F", "J&F-Mean")):
        assert got[ours] == pytest.approx(np.mean([one[theirs] for one in means]), abs=1e-12)
    assert got["anno_0 J"] < got["anno_2 J"]


def test_the_palette_is_the_official_one(shared):
    assert davis_palette() == [
        int(word) for word in (shared / "data/davis/palette.txt").read_text().split()
    ]


def test_what_failed_or_never_came_is_blank_and_same_input_gives_same_bytes(mevis, tmp_path):
    benchmark, _ = mevis
    predictions = made.planted(benchmark, made.perfect)
    predictions["clip0"]["1"] = Prediction(np.zeros((0, 0, 0, 0), bool), error="lost")
    del predictions["clip1"]
    for name in ("a.zip", "b.zip"):
        assert write_archive(benchmark, iter(predictions.items()), tmp_path / name) == []
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert check_archive(benchmark, tmp_path / "a.zip") == []
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        for name, area in (
            ("clip0/0/00000.png", 400),
            ("clip0/1/00000.png", 0),
            ("clip1/0/00005.png", 0),
        ):
            assert np.count_nonzero(read(archive, name)) == area


def test_a_video_of_unknown_size_is_reported_and_the_rest_written(tmp_path):
    root = made.make_mevis(tmp_path / "data")
    for path in (root / "valid/JPEGImages/clip1").iterdir():
        path.unlink()
    benchmark = open_benchmark("mevis", root, "val")
    predictions = made.planted(benchmark, made.perfect)
    assert (
        write_archive(benchmark, predictions.items(), tmp_path / "a.zip") == []
    )  # predictions tell the size
    assert write_archive(benchmark, [("clip0", predictions["clip0"])], tmp_path / "a.zip") == [
        "clip1"
    ]
    assert check_archive(benchmark, tmp_path / "a.zip") == [
        "missing: clip1/0/00000.png, clip1/0/00001.png, clip1/0/00002.png, clip1/0/00003.png, clip1/0/00004.png"
        " and 13 more"
    ]


def test_wrong_input_leaves_no_file(mevis, tmp_path):
    benchmark, _ = mevis
    for videos, words in ((["other"], "no video 'other'"), (["clip0", "clip0"], "came twice")):
        with pytest.raises(ValueError, match=words):
            write_archive(benchmark, [(name, {}) for name in videos], tmp_path / "x.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "good.zip"]
    vidstg = open_benchmark("vidstg", made.make_vidstg(tmp_path / "vidstg"))
    with pytest.raises(ValueError, match="vidstg has no evaluation server"):
        write_archive(vidstg, [], tmp_path / "x.zip")


def png(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "missing: clip0/1/00002.png"),
        (b"no image", "unreadable (UnidentifiedImageError): clip0/1/00002.png"),
        (
            png(np.zeros((64, 95), np.uint8)),
            "not of the video's size, which is 64x96: clip0/1/00002.png",
        ),
        (
            png(np.zeros((64, 96, 3), np.uint8)),
            "PNG of mode RGB, not a grey or palette PNG: clip0/1/00002.png",
        ),
        (
            png(np.arange(64 * 96).reshape(64, 96).astype(np.uint8)),
            "with more than one value beside 0: any of them counts as the object: clip0/1/00002.png",
        ),
    ],
)
def test_bad_entries(mevis, tmp_path, data, problem):
    benchmark, path = mevis

    def change(name, old):
        if name != "clip0/1/00002.png":
            return name, old
        return None if data is None else (name, data)

    assert check_archive(benchmark, changed(path, tmp_path / "bad.zip", change)) == [problem]


def test_common_mistakes(mevis, tmp_path):
    benchmark, path = mevis
    found = check_archive(
        benchmark, changed(path, tmp_path / "deep.zip", lambda name, data: (f"valid/{name}", data))
    )
    assert (
        found[-1]
        == "all entries lie one folder too deep: zip the contents of valid/, not the folder"
    )
    found = check_archive(
        benchmark, changed(path, tmp_path / "x.zip", lambda name, data: (name, data))
    )
    assert found == []
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
        archive.writestr(".DS_Store", b"")
        archive.writestr("../escape.png", b"")
    assert check_archive(benchmark, tmp_path / "x.zip") == [
        "not expected: ../escape.png, .DS_Store"
    ]
    (tmp_path / "no.zip").write_bytes(b"text")
    assert "is not a zip file" in check_archive(benchmark, tmp_path / "no.zip")[0]


def test_davis_indices_above_the_tools_limit(tmp_path):
    benchmark = open_benchmark("ref-davis17", made.make_ref_davis(tmp_path / "data"))
    write_archive(benchmark, [], tmp_path / "a.zip")
    bad = png(np.full((64, 96), 21, np.uint8))

    def change(name, data):
        return name, bad if name.endswith("00000.png") else data

    (problem,) = check_archive(benchmark, changed(tmp_path / "a.zip", tmp_path / "b.zip", change))
    assert problem.startswith(
        "with an index above 20, which the official tool refuses: anno_0/dogs-scale/00000.png"
    )
