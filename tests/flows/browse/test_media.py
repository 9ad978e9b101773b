"""Members that are not where the manifests say, and frames inside a `.frames.tar`."""

import io
import tarfile
from pathlib import Path

import pytest

from flows.browse.media import check, frame_of
from flows.browse.queries import Place
from pipeline.sample import add_member


@pytest.fixture
def place(tmp_path) -> Place:
    """A member of three frames, behind another."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for t in range(3):
            add_member(tar, f"{t:06d}.jpg", bytes([t]) * (500 + t * 100))
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        add_member(tar, "a.json", b"{}")
        add_member(tar, "a.frames.tar", inner.getvalue())
    return Place(path, "a.frames.tar", 3 * tarfile.BLOCKSIZE, len(inner.getvalue()), '"e"')


def test_frames_are_found_inside(place):
    data = Path(place.tar).read_bytes()
    for t in range(3):
        frame = frame_of(place, t)
        assert data[frame.offset : frame.offset + frame.size] == bytes([t]) * (500 + t * 100)
    assert frame_of(place, 3) is None


@pytest.mark.parametrize(("offset", "size"), [(512, 2), (1536, 3), (0, 2), (1537, 10), (10**12, 5)])
def test_a_place_that_is_wrong_is_told_from_the_tars_own_header(place, offset, size):
    with pytest.raises(ValueError, match="sparrow verify"):
        check(Place(place.tar, place.member, offset, size, '"e"'))
