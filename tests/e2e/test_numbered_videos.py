"""Picture i is picture i, for all readers, in any order: 47 numbered videos, judged by the number in each picture.

The videos are codec x container x kind of GOP x damage x display matrix. The truth is one forward decode by PyAV; a
file with two sizes of pictures is refused by all readers.
"""

from pathlib import Path

import numpy as np
import pytest

from flows.jobs import make_jobs
from model.video import Video
from pipeline.curate import ClipResult, curate_clip
from pipeline.plan import plan_items
from pipeline.presets import MediaConfig, build_stages, configure
from pipeline.sample import encode_media
from pipeline.sources.base import DataRoot
from pipeline.video import DecodeConfig, decode
from schemas.records import Clip, Media, Planned, Quarantined, Reason
from schemas.video.file import VideoFile
from schemas.video.stored import stored_pictures
from tests.conftest import ABSENT, SHARED
from tests.numbered import READERS, load_case_module, upright

CASES = SHARED / "cases"
TREES = CASES / "trees"
GIVEN = sorted(path.name for path in (CASES / "frames").glob("*"))
MADE = sorted(load_case_module("make_numbered").MATRIX) if CASES.is_dir() else []
TWO_SIZES = {"sizechange.ts", "size_change.ts"}

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=ABSENT)


def read_number(picture: np.ndarray) -> int:
    return load_case_module("read_number").read_number(picture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("numbered")


@pytest.fixture(scope="module")
def truth_of():
    """The numbers of a file's pictures in one forward decode; decoded once for all tests."""
    known: dict[Path, list[int]] = {}

    def numbers(path: Path) -> list[int]:
        if path not in known:
            pictures = load_case_module("make_numbered").forward(path)
            known[path] = [read_number(picture) for picture in pictures]
        return known[path]

    return numbers


@pytest.fixture
def path(request, folder) -> Path:
    """A video of the matrix, made when it is first asked for."""
    name = request.param
    if name in GIVEN:
        return CASES / "frames" / name
    made = folder / name
    return made if made.exists() else load_case_module("make_numbered").MATRIX[name](made)


def numbers_in(pictures, name: str) -> list[int]:
    return [read_number(upright(picture, name)) for picture in pictures]


def orders(n: int) -> list[range | list[int]]:
    """In order, in steps, from the middle, backwards, and at random."""
    forward = [
        range(n),
        range(7, n, 3),
        range(n // 2, n),
        range(0, n, 4),
    ]
    other = [
        range(n - 1, -1, -1),
        [n // 2, 3, n - 1, 0, n // 3, n // 3],
    ]
    return forward + other


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", [*GIVEN, *MADE], indirect=True)
def test_every_reader_gives_the_pictures_asked_for(path, reader, truth_of):
    if path.name in TWO_SIZES:
        with pytest.raises(ValueError, match="picture 30 is 320x256, those before are 160x128"):
            READERS[reader](path, range(20))
        return
    truth = truth_of(path)
    for wanted in [*orders(len(truth)), range(7, len(truth), 3)]:  # the second request again
        found = numbers_in(READERS[reader](path, wanted), path.name)
        assert found == [truth[t] for t in wanted], wanted


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", [n for n in [*GIVEN, *MADE] if n not in TWO_SIZES], indirect=True)
def test_a_picture_past_the_end_is_refused(path, reader, truth_of):
    count = len(truth_of(path))
    with pytest.raises((ValueError, IndexError)):
        READERS[reader](path, range(count - 2, count + 1))
    with VideoFile(path) as video:
        assert video.index().count == count == len(Video.open(path))


@pytest.mark.parametrize("path", [n for n in [*GIVEN, *MADE] if n not in TWO_SIZES], indirect=True)
def test_the_mp4_in_a_shard_has_the_pictures_of_the_clip(path, truth_of):
    truth, root = truth_of(path), DataRoot(path.parent)
    wanted = range(3, len(truth), 2)
    media = Media("video", path.name)
    clip = Clip("c", "hcstvg", "train", "v", media, wanted.start, wanted.stop, wanted.step)
    decoded = decode(root, clip, DecodeConfig())
    data = encode_media(decoded, clip, MediaConfig())["mp4"]
    stored = dict(stored_pictures(data, count=len(wanted)))
    assert numbers_in(stored.values(), path.name) == [truth[t] for t in wanted]
    height, width = decoded.frames.shape[1:3]
    for t, picture in stored.items():
        error = picture[:height, :width].astype(float) - decoded.frames[t]
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 24  # of coarse noise: film has more


# --- the rows of ../shared/cases/README.md that are whole data sets ---------------------------------------------------


def curated(root: Path, source: str = "hcstvg") -> dict[str, list[ClipResult]]:
    """What becomes of the clips of a data root: split -> results, in the order of the plan."""
    found: dict[str, list[ClipResult]] = {}
    for job in make_jobs(source, root, root / "no-output", configure("lite")):
        reader, stages = job.load(), build_stages(job.config)
        for planned in plan_items(job):
            assert isinstance(planned, Planned), planned
            result = curate_clip(planned, job, reader, stages)
            found.setdefault(job.split, []).append(result)
    return found


def stored_numbers(result: ClipResult) -> list[int]:
    [sample] = result.samples
    return [read_number(picture) for _, picture in stored_pictures(sample.members["mp4"])]


def reasons(result: ClipResult) -> list[str]:
    return [row["reason"] for row in result.quarantine]


def test_f10_a_whole_video_is_curated_picture_by_picture():
    [result] = curated(TREES / "frames_control")["train"]
    assert stored_numbers(result) == list(range(98))  # the last 2 are within the tolerance


def test_f11_a_video_without_its_first_packet_is_refused():
    [result] = curated(TREES / "frames_lost_key")["train"]
    assert result.samples == []
    [row] = result.quarantine
    assert row["reason"] == Reason.FRAME_MISMATCH
    assert "75 pictures decode, the annotation counts 100" in row["message"]


def test_f12_an_edit_list_decides_how_many_pictures_there_are():
    found = curated(TREES / "frames_edit_list")
    [train], [val] = found["train"], found["val"]
    assert reasons(train) == [Reason.FRAME_MISMATCH]  # annotated for 200 pictures, 190 decode
    assert stored_numbers(val) == list(range(10, 198))  # the last 2 are within the tolerance


def test_f13_a_transport_stream_called_mp4_is_read_as_what_it_is():
    [result] = curated(TREES / "frames_ts_called_mp4")["train"]
    numbers = stored_numbers(result)
    assert numbers == list(range(len(numbers)))
    assert result.clip_row is not None
    assert result.clip_row["container"] == "mpegts"


def test_f14_open_gops_are_read_and_a_lost_first_packet_is_refused():
    first, second = curated(TREES / "frames_refsav", "refsav")["train"]
    numbers = stored_numbers(first)
    assert numbers == list(range(0, 4 * len(numbers), 4))
    assert second.samples == []
    assert reasons(second) == [Reason.FRAME_MISMATCH]


def test_f15_a_folder_is_read_by_the_numbers_in_its_names():
    video = Video.open(TREES / "frames_folder_unpadded")
    assert [read_number(picture) for picture in video] == list(range(12))


def test_f16_pictures_of_16_bits_are_scaled():
    picture = Video.open(TREES / "pictures_16bit")[0]
    assert (picture == 255).mean() < 0.1
    assert len(np.unique(picture)) > 50


def test_x02_a_playlist_is_no_video():
    [result] = curated(TREES / "playlist" / "root")["train"]
    assert result.samples == []
    [row] = result.quarantine
    assert row["reason"] == Reason.MEDIA_UNREADABLE
    assert "not a video but an HLS playlist" in row["message"]


def test_equal_requests_give_equal_pictures_where_timestamps_repeat(tmp_path):
    """A file in which every fourth packet has the time of the one before."""
    make = load_case_module("make_numbered")
    source = make.MATRIX["h264_without_b.mkv"](tmp_path / "source.mkv")
    path = tmp_path / "repeated.mkv"
    make.remux(source, path, keep=_repeat_every_fourth())
    root, media = DataRoot(tmp_path), Media("video", path.name)
    clip = Clip("c", "hcstvg", "train", "v", media, 7, 60, 3)
    for _ in range(6):
        frames = decode(root, clip, DecodeConfig()).frames
        assert [read_number(f) for f in frames] == list(range(7, 60, 3))


def _repeat_every_fourth():
    times: list[int] = []

    def keep(i: int, packet) -> bool:
        times.append(packet.pts)
        if i % 4 == 3:
            packet.pts = packet.dts = times[-2]
        return True

    return keep


def test_a_refused_video_has_its_reason():
    media = Media("video", "playlist/root/part_1/0_madePlaylist.mp4")
    clip = Clip("c", "hcstvg", "train", "v", media, 0, 5)
    with pytest.raises(Quarantined, match="HLS playlist"):
        decode(DataRoot(TREES), clip, DecodeConfig())
