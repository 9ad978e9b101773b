"""Decoding: the right pictures in the right order, and a stated reason when that cannot be."""

import struct
import sys
import zlib
from dataclasses import replace

import av
import numpy as np
import pytest

from pipeline.sources.base import DataRoot
from pipeline.video import DecodeConfig, decode, fingerprint
from schemas.records import Clip, Media, Quarantined, Reason
from schemas.video.file import VideoFile
from schemas.video.pictures import encode_jpeg
from schemas.video.stored import encode_mp4
from tests.schemas.video.made import encode, number, numbered

N = 30


def clip_of(media: Media, start: int = 0, stop: int = N, **changes) -> Clip:
    return replace(Clip("clip", "lasot", "train", "v", media, start, stop), **changes)


VIDEO = Media("video", "v.mp4")
FOLDER = Media("frames", "img", "%04d.jpg", 1)


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return encode_mp4(numbered(N), 25)


@pytest.fixture
def root(tmp_path, mp4) -> DataRoot:
    (tmp_path / "v.mp4").write_bytes(mp4)
    (tmp_path / "img").mkdir()
    for t, frame in enumerate(numbered(5), start=1):
        (tmp_path / "img" / f"{t:04d}.jpg").write_bytes(encode_jpeg(frame))
    return DataRoot(tmp_path)


def refused(root: DataRoot, clip: Clip, config: DecodeConfig | None = None) -> Quarantined:
    with pytest.raises(Quarantined) as caught:
        decode(root, clip, config or DecodeConfig())
    return caught.value


# --- video files ---


def test_it_gives_the_frames_that_were_written(root):
    decoded = decode(root, clip_of(VIDEO, frame_count=N), DecodeConfig())
    assert decoded.decoder == "pyav"
    assert decoded.times.tolist() == pytest.approx([t / 25 for t in range(N)])
    assert decoded.frames.shape == (N, 64, 96, 3)
    assert [number(f) for f in decoded.frames] == list(range(N))
    assert decoded.fps == pytest.approx(25)
    assert (decoded.scale == 1).all()


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(0, N, 1), (7, 20, 1), (3, N, 4), (N - 1, N, 1)]
)
def test_decord_gives_the_same_pictures_where_it_is_proved(root, start, stop, step):
    clip, wanted = clip_of(VIDEO, start, stop, step=step), DecodeConfig(decoder="decord")
    one = decode(root, clip, DecodeConfig())  # makes the index that decord is judged by
    two = decode(root, clip, wanted)
    assert (one.decoder, two.decoder) == ("pyav", "decord")
    assert [number(f) for f in one.frames] == list(clip.source_frames)
    assert np.array_equal(one.frames, two.frames)
    assert two.fps == pytest.approx(one.fps)


def test_decord_is_not_asked_before_an_index_proves_it(root):
    assert decode(root, clip_of(VIDEO), DecodeConfig(decoder="decord")).decoder == "pyav"


def test_without_decord_pyav_reads(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    decode(root, clip_of(VIDEO), DecodeConfig())
    assert decode(root, clip_of(VIDEO), DecodeConfig(decoder="decord")).decoder == "pyav"


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.8])
@pytest.mark.parametrize("index", ["at the end", "at the start"])
def test_a_truncated_video_is_unreadable(root, mp4, index, share):
    """With its index at the start a cut video still opens, and promises frames that are not there."""
    path = root.path / "v.mp4"
    if index == "at the start":
        with (
            av.open(path) as old,
            av.open(str(path) + ".mp4", "w", options={"movflags": "faststart"}) as new,
        ):
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
        mp4 = (root.path / "v.mp4.mp4").read_bytes()
        assert mp4.find(b"moov") < mp4.find(b"mdat")
        share = (share + 1) / 2
    path.write_bytes(mp4[: int(len(mp4) * share)])
    error = refused(root, clip_of(VIDEO))
    assert error.reason in (Reason.MEDIA_UNREADABLE, Reason.FRAME_MISMATCH)
    assert error.stage == "decode"
    assert "v.mp4" in error.message


def test_what_is_no_video_is_unreadable(root):
    (root.path / "v.mp4").write_bytes(b"<html>404</html>" * 50)
    error = refused(root, clip_of(VIDEO))
    assert error.reason is Reason.MEDIA_UNREADABLE
    assert error.message == "v.mp4: not a video but a web page; the download has failed"


def test_the_reason_does_not_depend_on_where_the_data_lies(tmp_path):
    said = set()
    for folder in ("a", "a/" + "/".join(["long-name"] * 20)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "v.mp4").write_bytes(b"no video" * 50)
        with pytest.raises(Quarantined) as caught:
            decode(DataRoot(tmp_path / folder), clip_of(VIDEO), DecodeConfig())
        said.add(str(caught.value))
    assert len(said) == 1


def test_a_missing_file_is_missing(root):
    assert refused(root, clip_of(Media("video", "w.mp4"))).reason is Reason.MEDIA_MISSING
    assert (
        refused(root, clip_of(replace(FOLDER, path="nowhere"), stop=3)).reason
        is Reason.MEDIA_MISSING
    )


def test_a_path_out_of_the_root_is_refused(root):
    assert refused(root, clip_of(Media("video", "../v.mp4"))).reason is Reason.UNSAFE_PATH


@pytest.mark.parametrize("count", [N - 2, N + 2])
def test_another_number_of_frames_than_annotated_is_a_mismatch(root, count):
    error = refused(root, clip_of(VIDEO, 0, 5, frame_count=count))
    assert error.reason is Reason.FRAME_MISMATCH
    assert str(N) in error.message
    assert str(count) in error.message
    assert (
        len(
            decode(
                root, clip_of(VIDEO, 0, 5, frame_count=count, frame_tolerance=2), DecodeConfig()
            ).frames
        )
        == 5
    )


@pytest.fixture
def hurt(root) -> DataRoot:
    """Videos that have N - 1 of N pictures, for different reasons."""
    encode(root.path / "late.mp4", frames=numbered(N)[1:], times=lambda t: t + 1)
    encode(root.path / "gap.mp4", frames=numbered(N)[1:], times=lambda t: t + (t > 9))
    whole = encode(root.path / "whole.mkv", frames=numbered(N), gop=1, bf="0", preset="ultrafast")
    with av.open(str(whole)) as old, av.open(str(root.path / "lost.mkv"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            if i == 0:  # its bytes are lost, its place is not
                packet = av.Packet(b"\0\0\0\x02\x09\x10")
                packet.pts, packet.dts, packet.time_base = 0, 0, stream.time_base
            packet.stream = stream
            new.mux(packet)
    return root


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lost.mkv", "the first 1 cannot be decoded"),
        ("late.mp4", "the video begins 0.04 s late"),
        ("gap.mp4", "time is missing before picture 10"),
    ],
)
def test_the_tolerance_is_for_the_tail_only(hurt, name, said):
    clip = clip_of(Media("video", name), 0, 5, frame_count=N, frame_tolerance=2)
    error = refused(hurt, clip)
    assert error.reason is Reason.FRAME_MISMATCH
    assert f"{N - 1} of {N} annotated pictures decode, and {said}" in error.message
    assert len(decode(hurt, replace(clip, frame_count=N - 1), DecodeConfig()).frames) == 5


def test_a_missing_tail_is_tolerated(root):
    encode(root.path / "short.mp4", frames=numbered(N)[:-1])
    clip = clip_of(Media("video", "short.mp4"), 0, 5, frame_count=N, frame_tolerance=2)
    assert [number(f) for f in decode(root, clip, DecodeConfig()).frames] == list(range(5))


def test_a_clip_with_too_much_damage_is_refused(root):
    noise = np.random.default_rng(0).integers(0, 80, (N, 64, 96, 3)).astype(np.uint8)
    path = encode(root.path / "hurt.mp4", frames=np.maximum(numbered(N), noise), sc_threshold="0")
    whole = path.read_bytes()
    for place in range(len(whole) // 2, len(whole), 501):  # not every place is one of pixels
        path.write_bytes(whole[:place] + bytes(5) + whole[place + 5 :])
        with VideoFile(path) as video:
            if video.index().count == N and len(video.index().concealed) == 1:
                break
    clip = clip_of(Media("video", "hurt.mp4"))
    error = refused(root, clip)
    assert error.reason is Reason.MEDIA_UNREADABLE
    assert f"1 of the clip's {N} pictures are damaged" in error.message
    decoded = decode(root, clip, DecodeConfig(max_concealed=0.1))
    assert decoded.concealed == 1
    damaged = decoded.index.concealed[0]
    elsewhere = decode(root, clip_of(Media("video", "hurt.mp4"), 0, damaged), DecodeConfig())
    assert elsewhere.concealed == 0


def test_a_clip_behind_the_end_is_a_mismatch(root):
    for start in (0, N, N + 5):
        assert refused(root, clip_of(VIDEO, start, N + 6)).reason is Reason.FRAME_MISMATCH


def test_a_clip_that_is_too_large_is_refused(root):
    error = refused(root, clip_of(VIDEO), DecodeConfig(max_bytes=1000))
    assert error.reason is Reason.TOO_LARGE


def test_large_clips_live_in_a_file(root):
    there = decode(root, clip_of(VIDEO), DecodeConfig(spill_bytes=1)).frames
    assert isinstance(there, np.memmap)
    assert np.array_equal(there, decode(root, clip_of(VIDEO), DecodeConfig()).frames)


# --- folders of images ---


def test_a_folder_is_read_in_order(root):
    decoded = decode(root, clip_of(FOLDER, 1, 5, step=2), DecodeConfig())
    assert [number(f) for f in decoded.frames] == [1, 3]
    assert decoded.decoder == "opencv"


def test_images_are_rgb(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    (tmp_path / "0.jpg").write_bytes(encode_jpeg(red))
    decoded = decode(
        DataRoot(tmp_path), clip_of(Media("frames", ".", "%d.jpg"), 0, 1), DecodeConfig()
    )
    assert decoded.frames[0, 8, 8, 0] > 200
    assert decoded.frames[0, 8, 8, 2] < 50


def test_images_of_another_size_are_resized_to_the_first(root):
    (root.path / "img" / "0003.jpg").write_bytes(encode_jpeg(numbered(3, 128, 96)[2]))
    decoded = decode(root, clip_of(FOLDER, 0, 5), DecodeConfig())
    assert decoded.frames.shape == (5, 64, 96, 3)
    assert decoded.scale.tolist() == [[1, 1], [1, 1], [1, 0.5], [1, 1], [1, 1]]
    assert [number(f) for f in decoded.frames] == list(range(5))


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9])
def test_a_truncated_jpeg_is_unreadable(root, share):
    path = root.path / "img" / "0002.jpg"
    rng = np.random.default_rng(0)
    whole = encode_jpeg(rng.integers(0, 255, (64, 96, 3), np.uint8))
    path.write_bytes(whole[: int(len(whole) * share)])
    error = refused(root, clip_of(FOLDER, 0, 5))
    assert error.reason is Reason.MEDIA_UNREADABLE
    assert "0002.jpg" in error.message


def test_a_header_that_promises_too_much_is_refused_before_pixels_are_allocated(root):
    """A PNG of a few bytes that says it is 60000 x 60000: 10 GiB if believed."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    (root.path / "img" / "0001.jpg").write_bytes(bomb)
    error = refused(root, clip_of(FOLDER, 0, 1))
    assert error.reason in (Reason.TOO_LARGE, Reason.MEDIA_UNREADABLE)
    assert "0001.jpg" in error.message


def test_names_shorter_than_the_clip_are_a_mismatch(root):
    media = Media("frames", "img", names=("0001.jpg", "0002.jpg"))
    assert refused(root, clip_of(media, 0, 3)).reason is Reason.FRAME_MISMATCH


# --- fingerprints ---


def test_a_fingerprint_follows_the_content(root):
    one = decode(root, clip_of(FOLDER, 0, 5), DecodeConfig()).fingerprint
    assert one == decode(root, clip_of(FOLDER, 0, 5), DecodeConfig()).fingerprint
    assert fingerprint(root, clip_of(FOLDER, 0, 5)).size == one.size
    (root.path / "img" / "0004.jpg").write_bytes(encode_jpeg(numbered(9)[8]))
    assert decode(root, clip_of(FOLDER, 0, 5), DecodeConfig()).fingerprint.sha256 != one.sha256
