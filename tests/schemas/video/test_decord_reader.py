"""decord is used only where an index proves that it gives the same pictures."""

import numpy as np
import pytest

from schemas.video.decord_reader import decord_is_proved, decord_pictures
from schemas.video.errors import VideoError
from schemas.video.file import VideoFile
from schemas.video.stored import encode_mp4
from tests.schemas.video.made import encode, number, numbered
from tests.schemas.video.test_access import FILES
from tests.schemas.video.test_orientation import with_matrix

PROVED = {"closed.mp4", "closed.mkv"}


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_for_every_kind_that_it_gets_wrong(tmp_path, name):
    codec, options, _ = FILES[name]
    path = encode(tmp_path / name, codec, **options)
    with VideoFile(path) as video:
        index = video.index()
        assert decord_is_proved(index) == (name in PROVED)
        if name in PROVED:
            found = decord_pictures(str(path), index, [7, 38, 20])
            assert found is not None
            for n, picture in found:
                assert number(picture) == n
                assert np.array_equal(picture, video.picture(n))
        else:
            assert decord_pictures(str(path), index, [7]) is None


def test_clips_of_our_own_shards_are_proved_and_turned_ones_are_not(tmp_path):
    path = tmp_path / "v.mp4"
    data = encode_mp4(numbered(40), 25)
    for content, proved in ((data, True), (with_matrix(data, 0, 1, -1, 0), False)):
        path.write_bytes(content)
        with VideoFile(path) as video:
            assert decord_is_proved(video.index()) == proved


def test_a_number_that_the_video_does_not_have_is_not_asked_of_it(tmp_path):
    path = encode(tmp_path / "v.mp4", sc_threshold="0")
    with VideoFile(path) as video:
        assert decord_pictures(str(path), video.index(), [40]) is None


def test_another_file_than_the_index_is_of_is_an_error(tmp_path):
    path = encode(tmp_path / "v.mp4", sc_threshold="0")
    with VideoFile(path) as video:
        index = video.index()
    encode(path, frames=numbered(30), sc_threshold="0")
    found = decord_pictures(str(path), index, [3])
    assert found is not None
    with pytest.raises(VideoError, match="decord counts 30 pictures, 40 decode"):
        list(found)
