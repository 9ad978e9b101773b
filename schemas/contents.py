"""Arrays and tars that are members: none holds more than its bytes, whatever its header claims."""

import io
import math
import tarfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.members import MemberError


def load_array(data: bytes) -> NDArray[Any]:
    """The array of a `.npy` member. MemberError if the bytes are none, or fewer or more than its header states."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file)
    except (ValueError, KeyError) as error:
        raise MemberError(f"not an array of numpy: {error}") from error
    values = data[file.tell() :]
    count = math.prod(shape)
    if (
        dtype.hasobject
        or count * dtype.itemsize != len(values)
        or (fortran_order and len(shape) > 1)
    ):
        raise MemberError(f"{len(values)} bytes cannot be an array of {shape} {dtype}")
    return np.frombuffer(values, dtype, count).reshape(shape).copy()


def files_in(data: bytes) -> dict[str, bytes]:
    """The files of a tar that is a member (`frames.tar`), by name. MemberError if it is none, or not a whole one.

    A file is what lies in the tar: a sparse one, which would unpack to more, is refused.
    """
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                if not info.isreg() or info.issparse():
                    raise MemberError(f"{info.name!r:.100} is no plain file")
                end = info.offset_data + info.size
                if end > len(data):
                    raise MemberError(f"{info.name!r:.100} would end at byte {end} of {len(data)}")
                found[info.name] = data[info.offset_data : end]
    except tarfile.TarError as error:
        raise MemberError(f"not a tar: {error}") from error
    return found
