"""A video is what its bytes say, and reading it opens nothing but itself."""

import io
import shutil
import struct
import subprocess
import sys
import textwrap

import pytest

from schemas.video.container import demuxer_of, open_container
from schemas.video.errors import VideoError
from schemas.video.file import VideoFile
from tests.schemas.video.made import encode, number

KINDS = {
    "v.mp4": ("libx264", {}, "mov"),
    "v.mov": ("libx264", {}, "mov"),
    "v.3gp": ("mpeg4", {}, "mov"),
    "v.mkv": ("libx264", {}, "matroska"),
    "v.webm": ("libvpx-vp9", {}, "matroska"),
    "v.avi": ("mpeg4", {}, "avi"),
    "v.wmv": ("wmv2", {}, "asf"),
    "v.flv": ("libx264", {}, "flv"),
    "v.ts": ("libx264", {}, "mpegts"),
    "v.mpg": ("mpeg2video", {}, "mpeg"),
    "v.vob": ("mpeg2video", {}, "mpeg"),
    "v.mxf": ("mpeg2video", {}, "mxf"),
    "v.ivf": ("libvpx-vp9", {}, "ivf"),
    "v.gif": ("gif", {"pixels": "rgb8"}, "gif"),
    "v.nut": ("libx264", {}, "nut"),
    "v.h264": ("libx264", {"container": "h264"}, "h264"),
    "v.m2v": ("mpeg2video", {"container": "mpeg2video"}, "mpegvideo"),
    "v.m4v": ("mpeg4", {"container": "m4v"}, "m4v"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_container_is_known_by_its_content_and_not_by_its_name(tmp_path, name):
    codec, options, demuxer = KINDS[name]
    path = encode(tmp_path / name, codec, **options)
    disguised = path.rename(tmp_path / "called.jpg")
    with VideoFile(disguised) as video:
        assert (video.index().container, video.index().count) == (demuxer, 40)
        assert number(video.picture(17)) == 17


def test_a_bluray_stream_with_packets_of_192_bytes_is_a_transport_stream(tmp_path):
    data = encode(tmp_path / "v.ts").read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    with VideoFile(b"".join(b"\0\0\0\0" + packet for packet in packets)) as video:
        assert number(video.picture(17)) == 17


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (bytes(9999), "zeros"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "HLS playlist"),
        (b"\xef\xbb\xbf  \n#EXTM3U\n/etc/passwd\n", "HLS playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "concat list"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "SDP"),
        (b"<?xml version='1.0'?><MPD></MPD>", "DASH"),
        (b"<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>", "DASH"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "JPEG picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG picture"),
        (b"\0\0\0\x1cftypheic" + bytes(99), "still picture"),
        (b"\0\0\0\x1cftypavif" + bytes(99), "still picture"),
        (b"PK\x03\x04" + bytes(99), "zip archive"),
        (b"[playlist]\nFile1=/etc/passwd\n", "known here"),
        (b"file '/etc/passwd'\n", "known here"),
        (b"ID3\x04" + bytes(99), "known here"),
        (bytes(range(100, 250)), "known here"),
    ],
)
def test_what_is_no_video_is_refused_with_what_it_is(data, said):
    with pytest.raises(VideoError, match=said):
        open_container(io.BytesIO(data))


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def test_a_movie_whose_pictures_are_in_another_file_is_refused(tmp_path):
    """Its data reference is not "in this file" and has a path."""
    data = encode(tmp_path / "v.mp4").read_bytes()
    inside = struct.pack(">I4sI", 12, b"url ", 1)
    place = data.index(inside)
    elsewhere = data[:place] + struct.pack(">I4sI", 12, b"alis", 0) + data[place + 12 :]
    with VideoFile(elsewhere) as video:  # no path: libav ignores it, and so do we
        assert number(video.picture(5)) == 5
    entry = box(b"alis", bytes(4) + bytes(6) + b"/etc/passwd")
    body = bytes(4) + struct.pack(">I", 1) + entry
    movie = box(b"trak", box(b"mdia", box(b"minf", box(b"dinf", box(b"dref", body)))))
    with pytest.raises(VideoError, match="in another file"):
        open_container(io.BytesIO(box(b"ftyp", b"qt  ") + box(b"moov", movie)))
    with pytest.raises(VideoError, match="reference movie"):
        open_container(io.BytesIO(box(b"moov", box(b"rmra", box(b"rmda", b"file:///x")))))


def test_boxes_that_lie_about_their_size_end_in_one_error():
    for size in (0, 1, 7, 2**31):
        head = struct.pack(">I4s", size, b"moov") + struct.pack(">I4s", 3, b"trak") + bytes(40)
        with pytest.raises(VideoError), VideoFile(head) as video:
            video.index()


def test_a_demuxer_is_named_from_few_bytes():
    assert demuxer_of(b"\x1a\x45\xdf\xa3") == "matroska"
    assert demuxer_of((b"\x47" + bytes(187)) * 5) == "mpegts"
    with pytest.raises(VideoError):
        demuxer_of((b"\x47" + bytes(187)) * 4)


SEGMENT = """
import sys
from pathlib import Path
from schemas.video.errors import VideoError
from schemas.video.file import VideoFile

with VideoFile(sys.argv[1]) as video:  # what Python imports at the first use is not looked at
    video.picture(3)
print("begin", flush=True)
Path("MARK").exists()
for path in sys.argv[1:]:
    try:
        with VideoFile(path) as video:
            video.index()
        print("read", path)
    except VideoError as error:
        print("refused", error)
Path("MARK").exists()
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_system_calls_show_that_nothing_else_is_opened(tmp_path):
    """Playlists under names of videos name a file and an address; neither is touched, nor anything else."""
    secret = encode(tmp_path / "secret.ts")
    good = encode(tmp_path / "good.mp4")
    texts = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{secret}\n#EXT-X-ENDLIST\n",
        "hls_http.ts": "#EXTM3U\n#EXTINF:1.6,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "concat.mkv": f"ffconcat version 1.0\nfile {secret}\n",
        "session.avi": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "dash.mp4": f"<?xml version='1.0'?><MPD><BaseURL>{secret}</BaseURL></MPD>",
    }
    lists = []
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        lists.append(str(tmp_path / name))
    log = tmp_path / "calls"
    command = ["strace", "-f", "-o", log, "-e", "trace=%file,%network", sys.executable, "-c"]
    code = textwrap.dedent(SEGMENT).replace("MARK", str(tmp_path / "mark"))
    done = subprocess.run([*command, code, good, *lists], capture_output=True, text=True)
    if "ptrace" in done.stderr and "begin" not in done.stdout:
        pytest.skip("strace may not trace here")
    assert done.stdout.count("refused") == len(lists), done.stdout + done.stderr
    assert done.stdout.count("read") == 1
    calls = log.read_text().split(str(tmp_path / "mark"))
    assert len(calls) == 3
    during = calls[1].splitlines()[1:-1]
    opened = [line for line in during if "open" in line and "ENOENT" not in line]
    named = [str(good), *lists]
    foreign = [line for line in opened if not any(f'"{path}"' in line for path in named)]
    assert foreign == []
    assert [line for line in during if "socket(" in line or "connect(" in line] == []
    assert str(secret) not in calls[1]
