"""Where decoding may begin is read from the bitstream; a container's key frame flag is not believed."""

from fractions import Fraction

import av
import numpy as np
import pytest

from schemas.video import file as video_file
from schemas.video.access import access_proof
from schemas.video.file import VideoFile
from tests.schemas.video.made import encode, forward, number, numbered

OPEN = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
REFRESH = {"bf": "0", "x264-params": "intra-refresh=1:keyint=12"}
X265 = {"x265-params": "log-level=none:keyint=12:min-keyint=12:scenecut=0"}
RADL = {"x265-params": X265["x265-params"] + ":open-gop=0:radl=2:bframes=3"}
X265_CLOSED = {"x265-params": X265["x265-params"] + ":open-gop=0"}

FILES = {
    # Closed GOPs: every key frame is an IDR picture.
    "closed.mp4": ("libx264", {"sc_threshold": "0"}, [0, 12, 24, 36]),
    "closed.mkv": ("libx264", {"sc_threshold": "0"}, [0, 12, 24, 36]),
    "closed.ts": ("libx264", {"sc_threshold": "0"}, [0, 12, 24, 36]),
    "closed.flv": ("libx264", {"sc_threshold": "0"}, [0, 12, 24, 36]),
    # Open GOPs and intra refresh: only the first packet is.
    "open.mp4": ("libx264", OPEN, [0]),
    "open.ts": ("libx264", OPEN, [0]),
    "refresh.mkv": ("libx264", REFRESH, [0]),
    # HEVC: x265 makes open GOPs unless it is told otherwise; leading pictures are shown before their IDR.
    "closed_265.mp4": ("libx265", X265_CLOSED, [0, 12, 24, 36]),
    "closed_265.ts": ("libx265", X265_CLOSED, [0, 12, 24, 36]),
    "open_265.mkv": ("libx265", X265, [0]),
    "leading_265.mkv": ("libx265", RADL, [0]),
    # Codecs whose key frames forget all that was before.
    "key.webm": ("libvpx-vp9", {}, [0, 12, 24, 36]),
    "key8.webm": ("libvpx", {}, [0, 12, 24, 36]),
    "key.ivf": ("libvpx-vp9", {}, [0, 12, 24, 36]),
    "av1.mp4": ("libsvtav1", {"preset": "10"}, [0, 12, 24, 36]),
    # MPEG-2 marks closed GOPs; older codecs mark nothing.
    "no_b.mpg": ("mpeg2video", {"bf": "0"}, None),
    "b.ts": ("mpeg2video", {"bf": "2"}, [0]),
    "asp.avi": ("mpeg4", {}, []),
    "wmv.wmv": ("wmv2", {}, []),
    # Every picture for itself; FFV1 looks like it and carries its context on.
    "intra.mov": ("prores_ks", {"pixels": "yuv422p10le"}, list(range(40))),
    "context.mkv": ("ffv1", {}, []),
}


@pytest.mark.parametrize("name", FILES)
def test_only_proved_places_are_access_points(tmp_path, name):
    codec, options, expected = FILES[name]
    with VideoFile(encode(tmp_path / name, codec, **options)) as video:
        found = [point.picture for point in video.index().access]
        if expected is not None:
            assert found == expected
        for t in (39, 20, 37, 13, 0, 25):  # whatever is entered gives the picture asked for
            assert number(video.picture(t)) == t


@pytest.mark.parametrize(
    "name", ["closed.mp4", "closed.ts", "closed_265.mp4", "key.webm", "av1.mp4"]
)
def test_going_back_decodes_no_more_than_one_stretch(tmp_path, name, monkeypatch):
    codec, options, _ = FILES[name]
    path = encode(tmp_path / name, codec, **options)
    decoded = []
    real = video_file.decoded_frames

    def counted(*args, **options):
        for frame in real(*args, **options):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_file, "decoded_frames", counted)
    with VideoFile(path) as video:
        video.picture(39)
        decoded.clear()
        assert number(video.picture(25)) == 25
    assert len(decoded) == 2  # 24, which is an access point, and 25


def key_frames_of(path) -> list[tuple[bool, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        proof = access_proof(stream.codec_context)
        packets = [p for p in container.demux(stream) if p.size and p.is_keyframe]
        assert proof is not None
        return [(proof(bytes(p)), bytes(p)) for p in packets]


def test_the_flag_is_set_where_the_proof_is_not(tmp_path):
    """Else these files would show nothing."""
    for name in ("open.ts", "refresh.mkv", "open_265.mkv", "b.ts"):
        codec, options, _ = FILES[name]
        proved = [proof for proof, _ in key_frames_of(encode(tmp_path / name, codec, **options))]
        assert len(proved) > 1
        assert not all(proved)


@pytest.mark.parametrize(
    "name", ["closed.mp4", "closed.ts", "closed_265.mp4", "key.webm", "av1.mp4"]
)
def test_cut_and_senseless_packets_prove_nothing_and_break_nothing(tmp_path, name):
    codec, options, _ = FILES[name]
    path = encode(tmp_path / name, codec, **options)
    with av.open(str(path)) as container:
        proof = access_proof(container.streams.video[0].codec_context)
    assert proof is not None
    [(true, data), *_] = key_frames_of(path)
    assert true
    for size in range(40):
        proof(data[:size])
    for junk in (b"", b"\0", b"\0\0\x01", b"\xff" * 30, bytes(30), bytes(range(256))):
        assert proof(junk) in (True, False)
    assert not proof(b"")


def parameter_sets(extradata: bytes) -> list[bytes]:
    """The units in the header of H.264 in mp4 (avcC): one sequence and one picture parameter set."""
    found, place = [], 6
    for _ in range(2):
        size = int.from_bytes(extradata[place : place + 2])
        found.append(extradata[place + 2 : place + 2 + size])
        place += 2 + size + 1
    return found


@pytest.mark.parametrize("every", [False, True], ids=["once", "at every key frame"])
@pytest.mark.parametrize("name", ["joined.mp4", "joined.mkv", "joined.flv"])
def test_parameter_sets_that_change_are_noticed(tmp_path, name, every):
    """Two parts with closed GOPs, of which the second brings other sets (as a recorder that restarts writes them). An
    IDR picture alone proves nothing then: with the sets of the other part it decodes to other pixels, without an error.
    """
    plain = "keyint=10:scenecut=0:aq-mode=0:weightp=0:chroma-qp-offset="
    frames = numbered(60)
    part_1 = encode(
        tmp_path / "1.mp4",
        gop=10,
        bf="0",
        frames=frames[:30],
        **{"x264-params": plain + "0:qp=12"},
    )
    part_2 = encode(
        tmp_path / "2.mp4",
        gop=10,
        bf="0",
        frames=frames[30:],
        **{"x264-params": plain + "6:qp=24"},
    )
    path, time = tmp_path / name, 0
    with av.open(str(part_1)) as first, av.open(str(part_2)) as second:
        sets = parameter_sets(second.streams.video[0].codec_context.extradata)
        in_band = b"".join(len(unit).to_bytes(4) + unit for unit in sets)
        with av.open(str(path), "w") as target:
            stream = target.add_stream_from_template(first.streams.video[0])
            packets = [*first.demux(video=0), *second.demux(video=0)]
            for packet in (packet for packet in packets if packet.size):
                brings = time == 30 or (every and time > 30 and packet.is_keyframe)
                made = av.Packet((in_band if brings else b"") + bytes(packet))
                made.stream, made.time_base = stream, Fraction(1, 25)
                made.pts = made.dts = time
                made.is_keyframe = packet.is_keyframe
                target.mux(made)
                time += 1
    truth = forward(path)
    for order in ([55], [59, 25], [25, 55, 5], range(59, -1, -7)):
        with VideoFile(path) as video:
            for t in order:
                assert np.array_equal(video.picture(t), truth[t]), (order, t)
