"""Bytes that a manifest names: only regular files of the output, and only what is there."""

import io
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from schemas.contents import files_in, load_array
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


def npy(array, **more):
    buffer = io.BytesIO()
    np.save(buffer, array, **more)
    return buffer.getvalue()


def npy_header(shape):
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype="<f2").reshape(2, 3), np.zeros(3, [("a", "<f4"), ("b", "u1")])]
)
def test_an_array_comes_back(array):
    found = load_array(npy(array))
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert np.array_equal(found, array)
    found[:] = 0  # may be changed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an array",
        npy_header((10**12,)),
        npy_header((10**6, 10**6)) + bytes(8),
        npy_header((3,)) + bytes(13),
        npy_header((-1,)) + bytes(4),
        npy(np.array([{}], object), allow_pickle=True),
        npy(np.zeros((2, 3), order="F")),
    ],
)
def test_an_array_of_another_size_allocates_nothing(data):
    with pytest.raises(MemberError):
        load_array(data)


def tar_of(**files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sparse_tar(claimed):
    """GNU tar's sparse file: 512 bytes that claim to be `claimed` of them."""
    info = tarfile.TarInfo("000000.jpg")
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398], block[398:410] = b"00000000000\0", b"00000001000\0"  # where its bytes belong
    block[483:495] = f"{claimed:011o}\0".encode()
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + bytes(512) + bytes(1024)


def test_files_of_a_tar_are_what_lies_in_it():
    assert files_in(tar_of(a=b"one", b=b"", c=b"x" * 600)) == {
        "a": b"one",
        "b": b"",
        "c": b"x" * 600,
    }


def test_a_sparse_file_is_not_unpacked():
    data = sparse_tar(8 << 30)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmembers()[0].size == 8 << 30  # what it would become
    with pytest.raises(MemberError, match="is no plain file"):
        files_in(data)


def test_a_tar_that_breaks_off_is_refused():
    data = tar_of(a=b"x" * 2000)
    for wrong in (b"", b"x" * 1024, data[:1024]):
        with pytest.raises(MemberError):
            files_in(wrong)
