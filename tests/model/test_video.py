"""A video that is read on demand is the same video."""

import threading

import av
import numpy as np
import pytest
from PIL import Image

from model.video import BACK, Video, as_frames
from schemas.video.file import VideoFile
from schemas.video.stored import encode_mp4
from tests.made import moving_square
from tests.schemas.video.made import encode, number, numbered


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    file.write_bytes(encode_mp4(moving_square(3, 40, 96, 176)[0], 10.0, gop=12))
    return file


@pytest.fixture(scope="module")
def truth(path):
    """Every frame, decoded from the first to the last."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_in_any_order_are_those_of_a_whole_decode(path, truth):
    video = Video.open(path)
    assert video.shape == truth.shape
    assert (video.ndim, video.dtype, len(video), video.fps) == (4, np.uint8, 40, 10.0)
    orders = [
        range(40),
        range(39, -1, -1),
        np.random.default_rng(0).permutation(40),
        [5, 30, 4, 31, 3, 32],
    ]
    for order in orders:
        for t in order:
            np.testing.assert_array_equal(video[int(t)], truth[t])


def test_it_is_indexed_like_an_array(path, truth):
    video = Video.open(path)
    part = video[5:20]
    assert part.shape == (15, *truth.shape[1:])
    for wanted in ([1, 7], np.array([3, 3, 0]), [-1]):
        np.testing.assert_array_equal(part[wanted], truth[5:20][wanted])
    np.testing.assert_array_equal(part[-1], truth[19])
    np.testing.assert_array_equal(np.ascontiguousarray(video[10:13]), truth[10:13])
    np.testing.assert_array_equal(np.stack(list(video[38:])), truth[38:])
    assert len(Video.open(path, most=7)) == 7
    with pytest.raises(IndexError):
        _ = video[40]


class Spy:
    """A reader that notes which frames are asked for."""

    def __init__(self, reader, asked):
        self.reader, self.asked = reader, asked
        self.decoded_from = reader.decoded_from

    def __call__(self, t):
        self.asked.append(t)
        return self.reader(t)


def test_little_is_kept_and_little_is_decoded_twice(path):
    video = Video.open(path)
    kept, asked = video._reader, []
    inner = kept._reader
    kept._reader = Spy(inner, asked)
    for t in [*range(40), *range(39, -1, -1)]:
        _ = video[t]
        assert len(kept._latest) + len(kept._before) <= BACK + 1
    assert len(asked) <= 40 + 40


def test_going_back_in_a_file_without_access_points_decodes_it_few_times(tmp_path, monkeypatch):
    """40 frames backwards: 16 at a time would be three decodes from the start."""
    options = {"x265-params": "log-level=none:keyint=250"}
    path = encode(tmp_path / "v.mkv", "libx265", frames=numbered(150), **options)
    starts = []
    real = VideoFile._from_start
    monkeypatch.setattr(VideoFile, "_from_start", lambda self: starts.append(1) or real(self))
    monkeypatch.setattr(VideoFile, "_enter", lambda self, point: self._from_start())
    video = Video.open(path)
    assert [number(video[t]) for t in range(149, -1, -1)] == list(range(149, -1, -1))
    assert len(starts) <= 150 // (4 * BACK) + 2


def test_threads_may_share_one(path, truth):
    video, wrong = Video.open(path), []

    def read(order):
        wrong.extend(t for t in order if not np.array_equal(video[t], truth[t]))

    threads = [
        threading.Thread(target=read, args=(o,))
        for o in (range(40), range(39, -1, -1), range(0, 40, 3))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_container_without_times_is_read_too(tmp_path):
    frames = moving_square(3, 6)[0]
    path = tmp_path / "raw.h264"
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    video = Video.open(path)
    assert len(video) == 6
    for t in (0, 5, 2, 3):
        assert np.abs(video[t].astype(int) - frames[t]).mean() < 6


def test_a_turned_phone_video_is_seen_as_players_show_it(path, tmp_path, truth):
    """The display matrix of the track header says: a quarter turn clockwise."""
    data = bytearray(path.read_bytes())
    identity = b"".join(
        n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    )
    turned = b"".join(
        n.to_bytes(4, "big") for n in (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000)
    )
    place = data.find(identity, data.find(b"tkhd"))
    data[place : place + len(turned)] = turned
    (tmp_path / "turned.mp4").write_bytes(data)
    video = Video.open(tmp_path / "turned.mp4")
    assert video.shape == (40, 176, 96, 3)
    np.testing.assert_array_equal(video[3], np.rot90(truth[3], -1))


def test_a_folder_of_pictures_is_a_video(tmp_path):
    frames, _ = moving_square(3, 3)
    for t in (2, 0, 1):
        Image.fromarray(frames[t]).save(tmp_path / f"{t:05d}.png")
    np.testing.assert_array_equal(Video.open(tmp_path, 2), frames[:2])
    Image.fromarray(frames[0][:50]).save(tmp_path / "00007.png")
    with pytest.raises(ValueError, match=r"different sizes: 00007\.png"):
        Video.open(tmp_path)


def test_what_is_no_video_is_refused(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:2000])
    for name, message in (
        ("missing.mp4", "no such"),
        ("empty", r"no \.jpg"),
        ("broken.mp4", "cannot be read"),
        ("cut.mp4", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            Video.open(tmp_path / name)
    for other in (np.zeros((6, 96, 160), np.uint8), np.zeros((2, 96, 160, 3), np.float32), [1, 2]):
        with pytest.raises(ValueError, match="T, H, W, 3"):
            as_frames(other)


def test_names_and_pictures_that_change_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a video"):
        Video.open("x" * 300)
    for t in range(3):
        Image.fromarray(numbered(3)[t]).save(tmp_path / f"{t}.png")
    video = Video.open(tmp_path)
    Image.fromarray(numbered(3, 32, 48)[2]).save(tmp_path / "2.png")
    assert number(video[1]) == 1
    with pytest.raises(ValueError, match=r"2\.png has another size than when it was opened"):
        _ = video[2]


def test_few_large_pictures_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("model.video.KEPT_BYTES", 3 * 3 * 64 * 96)
    video = Video.open(encode(tmp_path / "v.mp4"))
    for t in range(39, -1, -1):
        assert number(video[t]) == t
        assert len(video._reader._before) <= 3
