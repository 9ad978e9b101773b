"""Bytes that a manifest names: only regular files of the output, and only what is there."""

import os
import threading
from pathlib import Path

import pytest

from schemas.members import MemberError, open_regular, open_tar, read_member, read_range, tar_path

TAR = "hcstvg/train/shards/hcstvg-train-000000.tar"


@pytest.fixture
def out(tmp_path) -> Path:
    tar = tmp_path / "out" / TAR
    tar.parent.mkdir(parents=True)
    tar.write_bytes(bytes(range(100)))
    return tmp_path / "out"


def test_a_range_of_a_tar_is_read(out):
    assert read_member(out, {"path": TAR, "offset": 10, "size": 5}) == bytes(range(10, 15))
    with open_tar(out, TAR) as file:
        assert read_range(file, 100, 0) == b""


@pytest.mark.parametrize(
    "path",
    [
        "../secret.tar",
        "/etc/passwd",
        f"./{TAR}",
        "a/b/c.tar",
        f"{TAR}\0",
        "",
        None,
        3,
        "hcstvg/../shards/x.tar",
    ],
)
def test_a_path_that_is_no_name_of_a_tar_is_refused(out, path):
    with pytest.raises(MemberError, match="a tar is not called"):
        tar_path(out, path)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(-1024, 10), (0, 10**12), (90, 11), (10**30, 1), (None, 1), (0, None), (0.5, 1), (True, 1)],
)
def test_a_range_that_is_not_there_allocates_nothing(out, offset, size):
    with pytest.raises(MemberError):
        read_member(out, {"path": TAR, "offset": offset, "size": size})


def test_links_pipes_folders_and_devices_are_refused_without_waiting(out, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("precious")
    tar = out / TAR
    tar.unlink()
    tar.symlink_to(secret)
    with pytest.raises(MemberError, match="is a link"):
        open_tar(out, TAR)
    tar.unlink()
    os.mkfifo(tar)
    done = threading.Event()

    def opens() -> None:
        with pytest.raises(MemberError, match="no regular file"):
            open_tar(out, TAR)
        done.set()

    threading.Thread(target=opens, daemon=True).start()
    assert done.wait(5)
    with pytest.raises(MemberError, match="no regular file"):
        open_regular(out)
    with pytest.raises(MemberError, match="no regular file"):
        open_regular(Path("/dev/null"))
    with pytest.raises(FileNotFoundError):
        open_regular(out / "nothing")


def test_a_folder_that_is_a_link_out_of_the_output_is_refused(out, tmp_path):
    (out / "hcstvg").rename(tmp_path / "elsewhere")
    (out / "hcstvg").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MemberError, match="leaves the output"):
        open_tar(out, TAR)
