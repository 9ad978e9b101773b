"""A disk that fails: one file is dropped with its clip, a lost mount stops everything and drops nothing."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.plan import plan_items
from pipeline.sources.base import DataRoot
from pipeline.video import DecodeConfig, decode, fingerprint
from schemas.records import Planned, Quarantined, Reason


@pytest.fixture
def clip(tiny_job):
    """Of part_1/1_video.mp4; others lie beside it."""
    found = next(item.clip for item in plan_items(tiny_job) if isinstance(item, Planned))
    beside = Path(tiny_job.data_root, found.media.path).parent
    assert len(list(beside.iterdir())) > 1
    return found


@pytest.fixture
def broken(monkeypatch):
    """Call it with a test of names: files of such names cannot be opened (`times`: only so often)."""
    opened = Path.open

    def spoil(which, times=10**6, number=errno.EIO):
        left = [times]

        def failing(self, *words, **named):
            if which(self.name) and left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number), str(self))
            return opened(self, *words, **named)

        monkeypatch.setattr(Path, "open", failing)

    return spoil


def test_a_file_that_cannot_be_read_twice_is_dropped_where_others_can(tiny_job, clip, broken):
    own = clip.media.path.rsplit("/", 1)[-1]
    broken(lambda name: name == own)
    with pytest.raises(
        Quarantined, match=r"Input/output error \(twice; the file after it can be read\)"
    ) as problem:
        decode(tiny_job.root, clip, DecodeConfig())
    assert problem.value.reason == Reason.MEDIA_UNREADABLE  # which is worth a retry


def test_a_disk_that_fails_once_is_asked_again(tiny_job, clip, broken):
    broken(lambda name: name.endswith(".mp4"), times=1)
    assert len(decode(tiny_job.root, clip, DecodeConfig()).frames) == len(clip)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_where_the_next_file_fails_too_the_machine_is_to_blame(tiny_job, clip, broken, number):
    broken(lambda name: True, number=number)
    with pytest.raises(OSError, match=os.strerror(number)):
        decode(tiny_job.root, clip, DecodeConfig())
    with pytest.raises(OSError, match=os.strerror(number)):
        tiny_job.root.read_bytes("anno_v2/train_v2.json")


def test_a_file_alone_in_its_folder_cannot_be_told_from_a_lost_mount(tmp_path, broken):
    (tmp_path / "a.json").write_text("{}")
    broken(lambda name: name == "a.json")
    with pytest.raises(OSError, match="Input/output error"):
        DataRoot(tmp_path).read_text("a.json")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(Quarantined, match=r"a\.json: Input/output error"):
        DataRoot(tmp_path).read_text("a.json")


def test_a_mount_that_is_lost_is_no_missing_file(tiny_job, clip, monkeypatch):
    def lost(path, *words, **named):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lost)
        patch.setattr(os, "listdir", lost)
        with pytest.raises(OSError, match="not connected"):
            fingerprint(tiny_job.root, clip)
    assert fingerprint(tiny_job.root, clip).size > 0
