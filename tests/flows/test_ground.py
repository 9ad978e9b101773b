"""`sparrow ground`: what it writes, what it refuses, what it says, and asking on."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows import ground as grounding
from flows.cli import app
from flows.masks import read_masks
from model.grounding import FrameMasks
from model.instances import Target
from model.video import Video
from schemas.geometry import rle_area, rle_box, rle_check
from schemas.video.stored import encode_mp4
from tests.made import moving_square


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    path.write_bytes(encode_mp4(moving_square(3, 5)[0], 10.0))
    return path


def sparrow_ground(*words, code=0, **options):
    run = CliRunner().invoke(
        app, ["ground", *map(str, words), "--size", "tiny", "--answer", "force"], **options
    )
    if code == 0:
        assert run.exit_code == 0, run.output + repr(run.exception)
    return run


def test_masks_boxes_words_and_pictures_come_out(video, tmp_path):
    run = sparrow_ground(
        video,
        "the square",
        "the dog",
        "--host",
        "glus",
        "--out",
        tmp_path,
        "--png",
        "--prompt-frame",
        1,
        "--prompt-frame",
        3,
    )
    for words in (
        "random weights: the masks mean nothing",
        "frames/s",
        str(tmp_path / "overlay.mp4"),
        "(forced)",
    ):
        assert words in run.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert "mean nothing" in result["note"]
    assert result["answers_forced"] is True
    assert set(result["answers"]) == {"the square", "the dog"}
    assert (result["frames"], result["frames_written"], result["size"], result["fps"]) == (
        5,
        5,
        [96, 160],
        10.0,
    )
    assert [one["phrase"] for one in result["instances"]] == ["the square", "the dog"]
    assert list(result["instances"][0]["prompted"]) == ["1", "3"]
    lines = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(
        range(5)
    )  # frame 0, before the prompt, was found last
    for line in lines:
        for one in line["instances"]:
            rle = rle_check(one["mask"], (96, 160))
            assert one["box"] == (rle_box(rle).tolist() if rle_area(rle) else None)
            with Image.open(
                tmp_path / "png" / str(one["instance"]) / f"{line['frame']:05d}.png"
            ) as png:
                assert np.asarray(png).astype(bool).sum() == rle_area(rle)
    overlay = Video.open(tmp_path / "overlay.mp4")
    assert overlay.shape == (5, 96, 160, 3)
    with Image.open(tmp_path / "overlay.png") as sheet:
        assert sheet.size[0] == 4 * 160


def test_nothing_found_is_an_answer_too(video, tmp_path):
    words = [
        "ground",
        str(video),
        "x",
        "--size",
        "tiny",
        "--out",
        str(tmp_path),
        "--host",
        "unipixel",
    ]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    assert "0 instances" in run.output
    assert (tmp_path / "masks.jsonl").read_text() == ""
    assert json.loads((tmp_path / "result.json").read_text())["instances"] == []


def test_follow_up_questions_prompt_on_any_frame_and_have_their_own_results(video, tmp_path):
    said = "3: the dog\n99: the dog\n12:\nthe ball: red\nq\nnever asked\n"
    run = sparrow_ground(video, "the square", "--out", tmp_path, "--interactive", input=said)
    assert "no frame 99 to prompt on: frames are 0 to 4" in run.output
    assert "a phrase is missing" in run.output
    found = {
        p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("followup-*/result.json")
    }
    assert {name: (one["prompt_frames"], list(one["answers"])) for name, one in found.items()} == {
        "followup-1": ([3], ["the dog"]),
        "followup-3": ([0], ["the ball: red"]),
    }
    assert not any("never asked" in str(one) for one in found.values())
    assert json.loads((tmp_path / "result.json").read_text())["prompt_frames"] == [0]


def test_tsf_at_inference_with_a_given_box(video, tmp_path):
    run = sparrow_ground(
        video,
        "the square",
        "--out",
        tmp_path,
        "--tsf",
        "on",
        "--tsf-preset",
        "lite",
        "--box",
        "12,20,44,52",
        "--timing",
        "--interactive",
        input="the dog\n",
    )
    assert "annotation box on frame 0, followed on 5 of 5 frames" in run.output
    assert "Table 7 (A100)" in run.output
    assert "TSF preset lite, host videoglamm (tiny)" in run.output
    assert "asked without TSF: --box is of the first phrases" in run.output
    about = json.loads((tmp_path / "result.json").read_text())["tsf"]["the square"]
    assert about["detector"] == "annotation"
    assert about["detected_box"] == [12.0, 20.0, 44.0, 52.0]
    assert len(list((tmp_path / "tsf").glob("0-*.jpg"))) == 4


def test_auto_says_what_it_decided_and_why(video, tmp_path):
    run = sparrow_ground(
        video,
        "the square",
        "--out",
        tmp_path,
        "--tsf",
        "auto",
        "--tsf-preset",
        "lite",
        "--box",
        "12,20,44,52",
    )
    assert "TSF for 'the square' off: " in run.output
    assert "keep TSF off" in run.output
    assert not (tmp_path / "tsf").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--tsf", "on", "--tsf-preset", "lite"],
            "lite has no detector: it follows a box that you give, --box",
        ),
        (["--tsf", "on", "--tsf-preset", "lite", "--box", "1,2,3"], "write it as x1,y1,x2,y2"),
        (["--tsf", "on", "--tsf-preset", "lite", "--box", "9,2,3,4"], "x2 has to exceed x1"),
        (["--tsf", "on", "--box", "1,2,3,4", "--box", "1,2,3,4"], "2 --box for 1 phrases"),
        (["--box", "1,2,3,4"], "about TSF at inference"),
        (["--timing"], "about TSF at inference"),
        (["--tsf", "on", "--preset", "host"], "without SPARROW"),
        (["--prompt-frame", "9"], "no frame 9"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_loaded(
    video, tmp_path, words, message, monkeypatch
):
    monkeypatch.setattr(grounding, "make_model", lambda *_, **__: pytest.fail("loaded"))
    run = sparrow_ground(video, "x", "--out", tmp_path / "out", *words, code=1)
    assert isinstance(run.exception, ValueError)
    assert message in str(run.exception)
    assert not (tmp_path / "out").exists()


def test_official_size_needs_weights(video):
    run = CliRunner().invoke(app, ["ground", str(video), "x"])
    assert isinstance(run.exception, ValueError)
    assert "--checkpoint" in str(run.exception)


class Film:
    """A made video of any length, and a model that sees its square in every frame."""

    height, width, fps, forced = 72, 128, 10.0, True

    def __init__(self, length):
        self.length, self.texts, self.targets = length, {"x": "it is"}, [Target("x", 0)]
        self.host, self.config = None, None

    def __call__(self, t):
        frame = np.zeros((self.height, self.width, 3), np.uint8)
        frame[:, t % 100 : t % 100 + 20] = 200
        return frame

    def stream(self, frames, phrases, **_):
        return self

    def __iter__(self):
        for t, frame in enumerate(Video(self)):
            yield FrameMasks(t, [0], frame[None, :, :, 0] > 0, np.float32([1.0]))


def test_long_videos_take_the_memory_of_short_ones(tmp_path):
    """Everything but the model, which has a test of its own: masks of 1000 frames alone would be 9 MB."""
    peaks = {}
    for length in (100, 1000):
        film, request = (
            Film(length),
            grounding.Request(video=tmp_path, phrases=("x",), out=tmp_path / str(length)),
        )
        tracemalloc.start()
        grounding._ground(request, film, Video(film), None, "", lambda _: None)
        peaks[length] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(1 for _ in read_masks(request.out)) == length
    assert peaks[1000] < peaks[100] + 500_000, peaks


def test_a_video_that_breaks_off_leaves_what_was_found(tmp_path):
    film, request = Film(9), grounding.Request(video=tmp_path, phrases=("x",), out=tmp_path)

    def broken(self=film):
        yield from list(Film.__iter__(film))[:4]
        raise ValueError("frame 4 cannot be decoded")

    film.stream = lambda *_, **__: type(
        "Broken",
        (),
        {"texts": {}, "targets": film.targets, "forced": False, "__iter__": lambda _: broken()},
    )()
    with pytest.raises(ValueError, match="frame 4"):
        grounding._ground(request, film, Video(film), None, "", lambda _: None)
    assert [t for t, _ in read_masks(tmp_path)] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "result.json").read_text())["frames_written"] == 4


@pytest.mark.parametrize(
    ("phrase", "words"),
    [("", "a phrase is empty"), (" \t", "a phrase is empty"), ("a \udcff dog", "is not UTF-8")],
)
def test_a_phrase_has_words_in_utf_8(phrase, words, tmp_path):
    request = grounding.Request(video=tmp_path / "x.mp4", phrases=("the dog", phrase), out=tmp_path)
    with pytest.raises(ValueError, match=words):
        request.check()


def test_a_pipe_is_no_video_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "x.mp4")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        Video.open(tmp_path / "x.mp4")
