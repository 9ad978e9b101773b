"""The mp4 in a shard: equal bytes, stated colours, and the pictures that were put in."""

import contextlib
import io

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from schemas.video import stored
from schemas.video.errors import VideoError
from schemas.video.file import VideoFile
from schemas.video.stored import encode_mp4, stored_key_frames, stored_pictures
from tests.schemas.video.made import encode, number, numbered


@pytest.mark.parametrize(
    ("n", "height", "width"),
    [
        (1, 64, 96),
        (13, 64, 96),
        (25, 63, 97),  # odd sizes are padded by a pixel
        (5, 33, 64),
    ],
)
def test_mp4_twice_is_the_same_bytes_and_has_every_frame(n, height, width):
    frames = numbered(n, height, width)
    data = encode_mp4(frames, 30)
    assert data == encode_mp4(frames, 30)
    pictures = [picture for _, picture in stored_pictures(data, count=n)]
    assert [number(p[:height, :width]) for p in pictures] == list(range(n))
    assert pictures[0].shape[:2] == (height + height % 2, width + width % 2)


def test_mp4_can_be_sought_every_few_frames():
    with av.open(io.BytesIO(encode_mp4(numbered(30), 30, gop=6))) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert len(keys) == 30
    assert [i for i, key in enumerate(keys) if key] == list(range(0, 30, 6))


@pytest.mark.parametrize("fps", [6, 23.976, 29.97, 30])
def test_mp4_keeps_the_frame_rate(fps):
    with av.open(io.BytesIO(encode_mp4(numbered(3), fps))) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-3)


def test_its_colours_are_stated_and_true():
    """Whoever decodes by the tags gets the colours that were put in; without them a player guesses by the size."""
    # Grey at the top, then a band of each colour, all from dark to bright.
    ramp = np.linspace(0, 255, 96).astype(np.uint8)
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:16] = ramp[None, :, None]
    for channel in range(3):
        picture[16 + 16 * channel : 32 + 16 * channel, :, channel] = ramp
    data = encode_mp4(np.stack([picture] * 3), 25, crf=4)
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
        codec = container.streams.video[0].codec_context
    for tagged in (frame, codec):
        assert tagged.colorspace == stored.BT601
        assert tagged.color_range == ColorRange.MPEG
        assert tagged.color_trc == ColorTrc.BT709
        assert tagged.color_primaries == ColorPrimaries.BT709
    for decoded in (frame.to_ndarray(format="rgb24"), dict(stored_pictures(data))[0]):
        error = decoded[4:-4].astype(float) - picture[4:-4]
        assert np.abs(error.mean((0, 1))).max() < 2
        assert np.abs(error).mean() < 3
    assert b"colr" in data


def test_real_film_comes_back_as_it_was(shared):
    """The quality of stored pictures that docs/frames.md states."""
    worst = []
    for name in ("01_dog.mp4", "02_cups.mp4", "03_blocks.mp4", "bedroom.mp4"):
        with VideoFile(shared / "data" / "video" / name) as video:
            frames = np.stack([picture for _, picture in video.first_pictures(24)])
        height, width = frames.shape[1:3]
        for t, picture in stored_pictures(encode_mp4(frames, 25), count=24):
            error = np.square(picture[:height, :width].astype(np.float32) - frames[t]).mean()
            worst.append(10 * np.log10(255**2 / error))
    assert min(worst) > 33


def test_only_what_is_needed_is_decoded(monkeypatch):
    data = encode_mp4(numbered(40), 25, gop=12)
    fed = []
    real = stored._stretch

    def spy(codec, packets, number, needed):
        fed.append(len(packets))
        return real(codec, packets, number, needed)

    monkeypatch.setattr(stored, "_stretch", spy)
    found = dict(stored_pictures(data, [30, 3]))
    assert {n: number(p) for n, p in found.items()} == {3: 3, 30: 30}
    assert fed == [12, 12]


def test_another_number_of_pictures_than_the_clip_has_is_an_error():
    data = encode_mp4(numbered(20), 25)
    with pytest.raises(ValueError, match="has 20 pictures, the clip 21"):
        list(stored_pictures(data, [3], count=21))
    with pytest.raises(ValueError, match="no frame 20"):
        list(stored_pictures(data, [3, 20]))


@pytest.mark.parametrize(
    "options",
    [
        {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"},
        {"bf": "0", "x264-params": "intra-refresh=1:keyint=12"},
    ],
)
def test_an_mp4_of_another_maker_is_read_right_too(tmp_path, options):
    """Its key frames are no places to begin: it is decoded from the start."""
    data = encode(tmp_path / "v.mp4", **options).read_bytes()
    for wanted in ([13, 25], [39], range(40)):
        found = {n: number(p) for n, p in stored_pictures(data, wanted)}
        assert found == {n: n for n in wanted}


def test_key_frames_are_known_without_decoding():
    assert stored_key_frames(encode_mp4(numbered(30), 25, gop=12)) == [0, 12, 24]


def test_bytes_that_are_no_such_mp4_are_one_kind_of_error(tmp_path):
    """The loader counts them as corrupt samples; anything else would end a training."""
    data = encode_mp4(numbered(12), 25)
    rng = np.random.default_rng(0)
    cases = [b"", b"no video", data[:100], data[:-200], encode(tmp_path / "v.mkv").read_bytes()]
    for _ in range(150):
        hurt = bytearray(data)
        for place in rng.integers(0, len(hurt), 4):
            hurt[place] = rng.integers(256)
        cases.append(bytes(hurt))
    for case in cases:
        for read in (lambda data: list(stored_pictures(data)), stored_key_frames):
            with contextlib.suppress(VideoError):
                read(case)
    with pytest.raises(VideoError):
        list(stored_pictures(b"no video"))


def test_odd_sizes_of_another_maker_are_read(tmp_path):
    frames = numbered(5, 63, 97)
    data = encode(tmp_path / "v.mp4", frames=frames, pixels="yuv444p").read_bytes()
    found = dict(stored_pictures(data))
    assert [number(picture) for picture in found.values()] == list(range(5))
    assert found[0].shape == (63, 97, 3)
