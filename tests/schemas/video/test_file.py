"""A video file by number: streams, timestamps, damage, sizes, and what is remembered of a file."""

import io
import os
import stat
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from schemas.video import file as video_file
from schemas.video.errors import TooLargeError, VideoError
from schemas.video.file import VideoFile
from tests.schemas.video.made import encode, forward, number, numbered, packed

NOISE = np.random.default_rng(0).integers(0, 80, (40, 64, 96, 3)).astype(np.uint8)
"""Makes packets of some size, so that damage finds them."""


def numbers(path_or_bytes, wanted=range(40)) -> list[int]:
    with VideoFile(path_or_bytes) as video:
        return [number(picture) for _, picture in video.pictures(wanted)]


# --- which stream ---


def test_the_default_stream_is_read_and_recorded(tmp_path):
    first = encode(tmp_path / "first.mp4")
    second = encode(tmp_path / "second.mp4", frames=numbered(80)[40:])
    # name, streams with the disposition "default", stream that is read
    for name, default, chosen in (
        ("a.mkv", [1], 1),
        ("b.mkv", [], 0),
        ("c.mkv", [0, 1], 0),
        ("d.mp4", [1], 1),
    ):
        path = packed(tmp_path / name, first, second, default=default)
        with VideoFile(path) as video:
            assert number(video.picture(3)) == 3 + 40 * chosen
            assert (video.index().stream, video.index().streams) == (chosen, 2)


def test_cover_art_is_no_video(tmp_path):
    cover = encode(tmp_path / "cover.mov", "mjpeg", frames=numbered(10)[9:], pixels="yuvj420p")
    film = encode(tmp_path / "film.mp4")
    for name, sources in (("both.mp4", (cover, film)), ("cover.mp4", (cover,))):
        path = tmp_path / name
        with av.open(str(path), "w") as target:
            opened = [av.open(str(source)) for source in sources]
            streams = [target.add_stream_from_template(one.streams.video[0]) for one in opened]
            streams[0].disposition = av.stream.Disposition.attached_pic
            for one, stream in zip(opened, streams, strict=True):
                for packet in one.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        target.mux(packet)
    assert numbers(tmp_path / "both.mp4") == list(range(40))
    with pytest.raises(VideoError, match="only cover art"):
        numbers(tmp_path / "cover.mp4")


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        tone.sample_rate, tone.pts = 8000, 0
        container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        numbers(tmp_path / "a.mp4")


# --- time ---


def test_a_variable_rate_keeps_its_timestamps(tmp_path):
    path = encode(tmp_path / "v.mp4", times=lambda t: t * t)
    with VideoFile(path) as video:
        index = video.index()
        assert index.times.tolist() == pytest.approx([t * t / 25 for t in range(40)])
        assert index.variable_rate
    assert numbers(path, range(5, 40, 7)) == list(range(5, 40, 7))
    with VideoFile(encode(tmp_path / "steady.mkv")) as video:
        assert not video.index().variable_rate


def test_times_that_do_not_ascend_are_not_given(tmp_path):
    with VideoFile(encode(tmp_path / "v.avi", "libx264")) as video:
        assert np.isnan(video.index().times).all()
        assert video.index().fps == pytest.approx(25)
        assert video.index().access == ()


def test_a_stream_without_timestamps_is_read(tmp_path):
    path = encode(tmp_path / "v.h264", container="h264")
    assert numbers(path, [39, 5, 17]) == [5, 17, 39]
    with VideoFile(path) as video:
        assert [number(video.picture(t)) for t in (39, 5, 17)] == [39, 5, 17]


# --- pixels ---


def brightness(path) -> float:
    with VideoFile(path) as video:
        return float(video.picture(0).mean())


def test_full_range_is_honoured(tmp_path):
    white = np.full((3, 64, 96, 3), 255, np.uint8)
    for pixels in ("yuv420p", "yuvj420p"):
        assert brightness(encode(tmp_path / f"{pixels}.mp4", frames=white, pixels=pixels)) > 250
    dark = np.full((3, 64, 96, 3), 16, np.uint8)
    for pixels in ("yuv420p", "yuvj420p"):
        path = encode(tmp_path / f"dark_{pixels}.mp4", frames=dark, pixels=pixels)
        assert brightness(path) == pytest.approx(16, abs=2)


def red_of(path) -> np.ndarray:
    with VideoFile(path) as video:
        return video.picture(0)[32, 48].astype(int)


def test_the_colour_matrix_that_is_stated_is_used(tmp_path):
    red = np.zeros((3, 64, 96, 3), np.uint8)
    red[..., 0] = 200

    def stated(matrix: int):
        def prepare(stream):
            stream.codec_context.colorspace = matrix

        return prepare

    found = {}
    for name, matrix in (("unstated", 2), ("bt601", 6), ("bt709", 1)):
        path = encode(tmp_path / f"{name}.mp4", frames=red, crf="4", prepare=stated(matrix))
        found[name] = red_of(path)
    assert found["unstated"].tolist() == found["bt601"].tolist()
    assert np.abs(found["bt601"] - found["bt709"]).max() > 10


def test_10_bits_alpha_and_fields_become_plain_rgb(tmp_path):
    ten = encode(
        tmp_path / "ten.mkv", "libx265", pixels="yuv420p10le", **{"x265-params": "log-level=none"}
    )
    alpha = encode(tmp_path / "alpha.mkv", "ffv1", pixels="bgra")
    fields = encode(tmp_path / "fields.mp4", **{"x264-params": "interlaced=1:tff=1"})
    for path in (ten, alpha, fields):
        assert numbers(path) == list(range(40))
    with VideoFile(fields) as video:
        assert video.index().interlaced == 40


def test_pixels_are_not_stretched_by_their_aspect(tmp_path):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    with VideoFile(encode(tmp_path / "v.mp4", prepare=wide)) as video:
        assert (video.index().pixel_aspect, video.picture(0).shape) == ("4:3", (64, 96, 3))


def test_a_size_that_changes_is_refused(tmp_path):
    first = encode(tmp_path / "a.ts").read_bytes()
    second = encode(tmp_path / "b.ts", frames=numbered(20, 128, 192)).read_bytes()
    with pytest.raises(VideoError, match="picture 40 is 192x128, those before are 96x64"):
        numbers(first + second, range(3))


def test_pictures_that_are_too_large_are_refused_by_the_decoder(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4")
    monkeypatch.setattr(video_file, "MAX_PIXELS", 100)
    with pytest.raises(TooLargeError, match="96x64"):
        numbers(path)


# --- damage ---


def damaged(path, at: float, size: int) -> bytes:
    data = bytearray(path.read_bytes())
    place = int(at * len(data))
    data[place : place + size] = np.random.default_rng(1).bytes(size)
    return bytes(data)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    pictures = np.maximum(numbered(40), NOISE)
    return encode(tmp_path_factory.mktemp("noisy") / "v.mp4", frames=pictures, sc_threshold="0")


def test_pictures_with_damage_that_was_covered_up_are_counted(noisy):
    with VideoFile(damaged(noisy, 0.5, 50)) as video:
        index = video.index()
        assert index.count == 40
        assert len(index.concealed) == 1
        assert index.access == ()  # what follows damage depends on what came before it
    with VideoFile(noisy) as video:
        assert video.index().concealed == ()


def test_a_packet_that_fails_in_the_middle_is_an_error(noisy):
    """A picture would be missing, and every later number wrong."""
    with pytest.raises(VideoError, match=r"a packet behind picture \d+ cannot be decoded"):
        numbers(damaged(noisy, 0.45, 2000))


def test_packets_that_fail_before_the_first_picture_are_a_lost_head(noisy, tmp_path):
    whole = encode(tmp_path / "v.ts", frames=np.maximum(numbered(40), NOISE), sc_threshold="0")
    data = whole.read_bytes()
    lost = []
    for share in (0.1, 0.2, 0.4, 0.5):
        with VideoFile(data[int(share * len(data)) + 50 :]) as video:
            index = video.index()
            first = number(video.picture(0))
            assert first % 12 == 0
            assert [number(video.picture(t)) for t in range(index.count)] == list(range(first, 40))
            lost.append(index.lost_head)
    assert max(lost) > 0


def test_a_packet_that_fails_before_the_first_picture_comes_out_is_an_error(noisy, tmp_path):
    """The decoder has the first picture and keeps it for reordering: this is no lost head."""
    path = tmp_path / "cut.mkv"
    with av.open(str(noisy)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            if i == 1:
                cut = av.Packet(bytes(packet)[:20])
                cut.pts, cut.dts, cut.time_base = packet.pts, packet.dts, packet.time_base
                packet = cut
            packet.stream = stream
            new.mux(packet)
    with pytest.raises(VideoError, match="a packet behind the start cannot be decoded"):
        numbers(path)


def test_side_data_that_pyav_does_not_know_is_no_error(tmp_path):
    """EXIF in the first picture of a motion JPEG, as cameras write it."""
    path = tmp_path / "v.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        exif = Image.Exif()
        exif[0x010F] = "a maker of cameras"
        for t, picture in enumerate(numbered(5)):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "JPEG", exif=exif, quality=95)
            packet = av.Packet(buffer.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = t
            packet.is_keyframe = True
            container.mux(packet)
    assert numbers(path, range(5)) == list(range(5))


def test_what_says_that_pictures_are_missing_before_the_tail(noisy, tmp_path):
    def verdict(source) -> str:
        with VideoFile(source) as video:
            return video.index().missing_before_the_tail()

    assert verdict(noisy) == ""
    assert verdict(encode(tmp_path / "a.mkv")) == ""
    assert verdict(encode(tmp_path / "a.ts")) == ""
    assert "s late" in verdict(encode(tmp_path / "late.mp4", times=lambda t: t + 9))
    assert "damaged" in verdict(damaged(noisy, 0.5, 50))
    unknown = verdict(encode(tmp_path / "a.avi", "libx264"))
    assert unknown == "its timestamps do not show where pictures are missing"
    assert verdict(encode(tmp_path / "a.m2v", "mpeg2video", container="mpeg2video")) == unknown
    gap = encode(tmp_path / "gap.mp4", times=lambda t: t + (t > 20))
    assert verdict(gap) == "time is missing before picture 21"


# --- what is remembered ---


def test_the_second_reader_of_a_file_decodes_only_what_it_needs(noisy, monkeypatch):
    passes = []
    real = VideoFile._first_pass
    monkeypatch.setattr(VideoFile, "_first_pass", lambda *a: passes.append(1) or real(*a))
    video_file._kept.clear()
    for wanted in ([3], [30], [39, 0]):
        assert numbers(noisy, wanted) == sorted(wanted)
    assert len(passes) == 1


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    """Also where its size and its mtime are as before, as after `cp -p` and `rsync -t`."""
    path = encode(tmp_path / "v.mp4", gop=12)
    other = encode(tmp_path / "w.mp4", frames=numbered(80)[40:], gop=5, times=lambda t: 2 * t)
    size = max(path.stat().st_size, other.stat().st_size) + 8
    for file in (path, other):
        free = size - file.stat().st_size
        file.write_bytes(file.read_bytes() + struct.pack(">I4s", free, b"free") + bytes(free - 8))
    assert numbers(path, [7]) == [7]
    before = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert numbers(path, [7]) == [47]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    pictures = np.maximum(numbered(80), np.concatenate([NOISE, NOISE]))
    path = encode(tmp_path / "v.avi", "ffv1", frames=pictures[:40])
    other = encode(tmp_path / "w.avi", "ffv1", frames=pictures[40:])
    with VideoFile(path) as video:
        assert number(video.picture(35)) == 35
        path.write_bytes(other.read_bytes())
        with pytest.raises(VideoError, match="changed since it was opened"):
            video.picture(2)


def test_no_more_indexes_are_kept_than_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(video_file, "KEPT_INDEXES", 2)
    video_file._kept.clear()
    path = encode(tmp_path / "v.mp4", frames=numbered(3))
    for n in range(4):
        copy = tmp_path / f"{n}.mp4"
        copy.write_bytes(path.read_bytes())
        numbers(copy, [1])
    assert len(video_file._kept) == 2


def test_few_pictures_are_read_without_decoding_the_rest(tmp_path):
    path = encode(tmp_path / "v.mp4")
    video_file._kept.clear()
    with VideoFile(path) as video:
        assert video.index(most=10).count == 10
        assert not video.index().complete
        with pytest.raises(VideoError, match="the video has 10"):
            video.picture(10)
    assert len(video_file._kept) == 0
    with VideoFile(path) as video:
        assert [n for n, _ in video.first_pictures(30, 12)] == [0, 12, 24]
    assert numbers(path, [39]) == [39]


def test_an_access_point_that_the_demuxer_does_not_find_is_not_needed(noisy, monkeypatch):
    """Then, and from then on, everything is decoded from the start."""
    video_file._kept.clear()
    with VideoFile(noisy) as video:
        video.index()
        real = video_file.decoded_frames
        entered = []

        def nothing_found(container, stream, *, start=None, note=None):
            if start is None:
                return real(container, stream, note=note)
            entered.append(start.picture)
            return iter(())

        monkeypatch.setattr(video_file, "decoded_frames", nothing_found)
        assert [number(video.picture(t)) for t in (39, 26, 38)] == [39, 26, 38]
        assert entered == [36]


@pytest.mark.parametrize("field", ["pts", "sketches"])
def test_a_second_decode_that_differs_is_an_error(noisy, field):
    """First from an access point, then from the start: both are another picture than in the first decode."""
    video_file._kept.clear()
    with VideoFile(noisy) as video:
        index = video.index()
        values = list(getattr(index, field))
        values[20] += 1
        object.__setattr__(index, field, tuple(values))
        assert number(video.picture(19)) == 19
        with pytest.raises(VideoError, match="picture 20 is another one when it is decoded again"):
            video.picture(20)
    video_file._kept.clear()


MEMORY = """
import resource, sys
from schemas.video.file import VideoFile
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
with VideoFile(sys.argv[1]) as video:
    video.index(most=30)
before = peak()
with VideoFile(sys.argv[1]) as video:
    for t, _ in video.pictures(range(289)): pass
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_length_of_a_video(shared):
    """289 pictures of 1280x720 are 381 MiB as the decoder has them."""
    film = shared / "data" / "video" / "01_dog.mp4"
    command = [sys.executable, "-c", MEMORY, str(film)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30


def test_readings_of_one_file_may_take_turns(noisy):
    video_file._kept.clear()
    with VideoFile(noisy) as video:
        first = video.pictures(range(0, 40, 4))
        assert number(next(first)[1]) == 0
        assert number(video.picture(33)) == 33
        second = video.pictures(range(1, 40, 4))
        found = [number(next(reading)[1]) for _ in range(9) for reading in (first, second)]
        assert found == [n for t in range(0, 36, 4) for n in (t + 4, t + 1)]


# --- what may be asked ---


def test_a_picture_past_the_end_is_refused_and_never_a_repeat(noisy):
    for _ in range(2):  # without and with an index
        with pytest.raises(VideoError, match="picture 40 was asked for, the video has 40"):
            numbers(noisy, [39, 40])
    with pytest.raises(VideoError, match="begin at 0"):
        numbers(noisy, [-1, 3])


def test_what_is_not_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    for name in ("pipe", "."):
        with pytest.raises(VideoError, match="not a regular file"):
            VideoFile(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        VideoFile(tmp_path / "nothing.mp4")


def test_it_gives_what_a_forward_decode_gives(noisy):
    truth = forward(noisy)
    with VideoFile(noisy) as video:
        for t in np.random.default_rng(0).permutation(40).tolist():
            assert np.array_equal(video.picture(t), truth[t])
