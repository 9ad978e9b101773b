"""Representatives at inference are those that curation would store."""

import numpy as np
import pytest

from model.tsf_inference import LOOKS, Extractor
from model.video import Video
from schemas.geometry import iou
from schemas.records import Detection, Quarantined, Reason
from schemas.video.stored import encode_mp4
from tests.made import moving_square

FRAMES, XYWH = moving_square(3, 24, 96, 160)
TRUTH = np.float32(XYWH)
TRUTH[:, 2:] += TRUTH[:, :2]


class Finds:
    """A detector that knows the square, on some frames."""

    name, version = "fake", "1"

    def __init__(self, frames, there):
        self.frames, self.there, self.asked = frames, there, []

    def detect(self, frames, caption, annotation, key_frames=1):
        assert len(frames) == len(annotation.known) == key_frames
        times = [
            next(t for t, one in enumerate(self.frames) if np.array_equal(one, frame))
            for frame in frames
        ]
        self.asked.append(times)
        good = [i for i, t in enumerate(times) if t in self.there]
        if not good:
            raise Quarantined(Reason.NO_DETECTION, "not there", stage="detect")
        return Detection(good[0], TRUTH[times[good[0]]], self.name, True, 0.9, 0.5)

    def find(self, frame, caption):
        return None


def with_detector(there):
    extractor = Extractor("lite")
    object.__setattr__(extractor.stages, "detector", Finds(FRAMES, there))
    return extractor


def test_a_given_box_is_followed_and_shown_four_times():
    found = Extractor("lite")(FRAMES, "the square", 0, TRUTH[0])
    assert found.detection.detector == "annotation"
    assert not found.detection.text_used
    assert np.median(iou(found.track.boxes, TRUTH)) > 0.8
    assert found.frames == sorted(set(found.frames))
    assert len(found.crops) == 4
    assert len(found.candidates) == 16
    for t, crop in zip(found.frames, found.crops, strict=True):
        x1, y1, x2, y2 = found.track.boxes[t]
        assert abs(crop.shape[0] - (y2 - y1)) <= 2
        assert abs(crop.shape[1] - (x2 - x1)) <= 2


def test_a_video_read_on_demand_gives_the_same(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_mp4(FRAMES[:8], 10.0))
    video = Video.open(path)
    one, other = (
        Extractor("lite")(frames, "x", 3, TRUTH[3]) for frames in (video, np.asarray(video))
    )
    assert one.frames == other.frames
    np.testing.assert_array_equal(one.track.boxes, other.track.boxes)


def test_the_prompted_frame_is_searched_first_and_then_others(monkeypatch):
    extractor = with_detector({5})
    assert extractor.find(FRAMES, "the square", 5).frame == 5
    assert extractor.stages.detector.asked == [[5]]
    extractor = with_detector({23})
    assert extractor.find(FRAMES, "the square", 5).frame == 23
    assert [len(asked) for asked in extractor.stages.detector.asked] == [1, LOOKS]
    assert extractor.clock.rows["detect"][1] == 1 + LOOKS
    with pytest.raises(Quarantined, match="was found in no frame"):
        with_detector(set()).find(FRAMES, "the square", 5)


@pytest.fixture(autouse=True)
def detects(monkeypatch, request):
    if "searched_first" in request.node.name:
        monkeypatch.setattr(Extractor, "detects", True)


def test_a_short_track_repeats_its_last_crop():
    found = Extractor("lite")(FRAMES[:3], "x", 0, TRUTH[0])
    assert found.frames == [0, 1, 2, 2]
    assert len(found.candidates) == 3


def test_lite_says_that_it_needs_a_box():
    with pytest.raises(ValueError, match=r"has no detector here.*--box x1,y1,x2,y2"):
        Extractor("lite")(FRAMES, "the square")
    with pytest.raises(ValueError, match="x2 > x1"):
        Extractor("lite")(FRAMES, "the square", 0, np.float32([5, 5, 5, 9]))
    with pytest.raises(Quarantined, match="less than a pixel"):
        Extractor("lite")(FRAMES, "the square", 0, np.float32([500, 500, 510, 510]))


def test_full_names_every_file_that_is_missing_but_no_segmenter(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"groundingdino_swint_ogc\.pth") as error:
        Extractor("full")
    assert "sam2" not in str(error.value)
    with pytest.raises(ValueError, match=r"cldtracker\.safetensors") as error:
        Extractor("full", boxes=True)
    assert "groundingdino" not in str(error.value)


def test_the_papers_models_work_together():
    extractor = Extractor("full-tiny")
    extractor.warm_up(FRAMES[:6])
    assert extractor.clock.rows == {}
    found = extractor(FRAMES[:6], "the square", 0, TRUTH[0])
    assert found.track.origin[0] == "annotation"
    assert set(extractor.clock.rows) == {"track", "encode", "select"}
