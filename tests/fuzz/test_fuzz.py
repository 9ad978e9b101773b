"""Every parser of what others wrote, on bytes that hypothesis makes up: a stated reason or a value, nothing else.

A round of a few examples each in the suite; FUZZ_MINUTES=10 (`make fuzz MINUTES=10`) shares so many minutes among them.
Equal seeds try equal examples: FUZZ_SEED=1000000 tries others.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pipeline.sources.a2d import _fields
from pipeline.sources.base import (
    DataRoot,
    box_lines,
    box_rows,
    clean,
    clip_key,
    digits,
    json_members,
)
from pipeline.sources.got10k import parse_meta, sentence
from schemas.config import canonical_json
from schemas.geometry import (
    MAX_PIXELS,
    clip_boxes,
    from_xywh,
    from_xyxy,
    rle_area,
    rle_box,
    rle_check,
    rle_decode,
)
from schemas.records import KEY, Quarantined
from schemas.video.errors import VideoError
from schemas.video.pictures import decode_picture
from tests.badinput.corpora import Files, good, write
from tests.badinput.harness import bounded, outcome
from tests.badinput.media_cases import IMAGES, VIDEOS

MINUTES = float(os.environ.get("FUZZ_MINUTES", 0))
SEED = int(os.environ.get("FUZZ_SEED", 0))
ANNOTATIONS = (".json", ".js", ".txt", ".csv", ".ini", ".label")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["put", "cut", "flip", "swap", "twice"]),
        st.binary(max_size=8)
        | st.sampled_from(
            [
                b"-1",
                b"NaN",
                b"1e999",
                b'"',
                b",",
                b"\n",
                b"[",
                b"}",
                b"null",
                b"../",
                b"\0",
                b"9" * 30,
            ]
        ),
    ),
    min_size=1,
    max_size=4,
)
"""(where as a share, what, with which bytes) of the changes to a good file."""


def changed(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for share, what, extra in changes:
        at = int(share * len(data))
        head, tail = data[:at], data[at:]
        match what:
            case "put":
                data = head + extra + tail
            case "cut":
                data = head + tail[1 + len(extra) :]
            case "flip":
                data = head + bytes(b ^ 0x55 for b in tail[:4]) + tail[4:]
            case "swap":
                data = head + extra + tail[len(extra) :]
            case "twice":
                data = head + tail[:64] + tail
    return data


# --- the targets: each takes one example ---------------------------------------------------------------------------


def members(data: bytes, chunk: int) -> None:
    """The lazy reader and the whole one agree on what is an object, and on its values."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_bytes(data)
        try:
            found = [(key, data[at : at + size]) for key, at, size in json_members(path, chunk)]
        except Quarantined:
            return
    for _, value in found:
        json.loads(value.decode("utf-8", "replace"))
    try:
        whole = json.loads(
            data.decode("utf-8"), object_pairs_hook=lambda pairs: [key for key, _ in pairs]
        )
    except UnicodeDecodeError:
        return  # of these the lazy reader is more patient
    except ValueError:
        assert "\ufeff".encode() in data  # so with a byte order mark
        return
    assert [key for key, _ in found] == [k.encode("utf-8", "replace").decode() for k in whole]


def masks(rle: object) -> None:
    try:
        checked = rle_check(rle)
    except ValueError:
        return
    height, width = checked["size"]
    assert height * width <= MAX_PIXELS
    if height * width < 1 << 16:
        mask = rle_decode(checked)
        assert mask.shape == (height, width)
        assert int(mask.sum()) == rle_area(checked)
        rle_box(checked)


def boxes(rows: object) -> None:
    try:
        found = box_rows(rows, "here")
    except Quarantined:
        return
    for converted in (from_xywh(found, base=1), from_xyxy(found, inclusive=True)):
        cut = clip_boxes(converted, 100, 200)
        assert cut.shape == found.shape
        assert not ((cut < 0) | np.isinf(cut)).any()


def lines(text: str) -> None:
    for read in (
        lambda: box_lines(text, "here"),
        lambda: digits(text.encode("utf-8", "replace"), "here"),
    ):
        try:
            assert len(read()) <= len(text)
        except Quarantined:
            continue
    assert all(isinstance(cell, str) for cell in _fields(text.split("\n")[0]))
    canonical_json(clean(sentence(parse_meta(text)))).encode("utf-8", "replace")
    assert KEY.fullmatch(clip_key("x", text))


def paths(name: str) -> None:
    with TemporaryDirectory() as folder:
        root = DataRoot(folder)
        with suppress(Quarantined):
            assert root.file(name).resolve().is_relative_to(root.path)
        assert not root.has(name) or name.strip("./") == ""


def picture(data: bytes) -> None:
    try:
        found = decode_picture(data)
    except VideoError:
        return
    assert (found.ndim, found.shape[2], found.dtype) == (3, 3, np.uint8)


def corpus(source: str, suffixes: tuple[str, ...], pick: float, changes: list) -> None:
    """One file of a good corpus is changed; the source has to read, drop or refuse it."""
    files: Files = dict(good(source))
    names = [
        name
        for name in files
        if name.lower().endswith(suffixes) or name in (*VIDEOS.values(), *IMAGES.values())
    ]
    name = names[int(pick * (len(names) - 1))]
    content = files[name]
    assert isinstance(content, bytes)
    files[name] = changed(content, changes)
    with TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        (place / "outside").mkdir()
        write(files, place / "root", place / "outside")
        with bounded(place / "outside", place / "out"):
            words, rows = outcome(source, place / "root", place / "out")
        assert "stage_error" not in words, rows


_image = good("lasot")[IMAGES["lasot"]]
assert isinstance(_image, bytes)
_RLE = st.fixed_dictionaries(
    {
        "size": st.lists(st.integers(-1, 40) | st.just(10**9), min_size=1, max_size=3) | JSON,
        "counts": st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20)
        | st.binary(max_size=5)
        | JSON,
    }
)
_OBJECT = st.dictionaries(st.text(max_size=5), JSON, max_size=5).map(
    lambda d: json.dumps(d).encode()
)
TARGETS: dict[str, tuple[Callable, tuple, int]] = (
    {
        "json_members": (
            members,
            (st.builds(changed, _OBJECT, CHANGES) | _OBJECT | st.binary(), st.integers(1, 64)),
            60,
        ),
        "rle": (masks, (_RLE | JSON,), 200),
        "boxes": (
            boxes,
            (
                st.lists(
                    st.lists(
                        st.floats() | st.integers() | st.text(max_size=3), min_size=3, max_size=5
                    )
                )
                | JSON,
            ),
            150,
        ),
        "lines": (lines, (st.text() | st.text("0123456789,.-e \n:\"'"),), 200),
        "paths": (
            paths,
            (
                st.text()
                | st.lists(st.sampled_from(["..", ".", "a", "", "/", "\0", "~"])).map("/".join),
            ),
            100,
        ),
        "pictures": (picture, (st.builds(changed, st.just(_image), CHANGES) | st.binary(),), 100),
    }
    | {
        source: (partial(corpus, source, ANNOTATIONS), (st.floats(0, 1), CHANGES), 5)
        for source in ("hcstvg", "vid_sentence", "a2d", "lasot", "mevis", "got10k", "refsav")
    }
    | {
        f"{source} {suffix}": (partial(corpus, source, (suffix,)), (st.floats(0, 1), CHANGES), 4)
        for source, suffix in (("a2d", ".h5"), ("hcstvg", ".mp4"))
    }
)
"""Parser -> its target, what it is given, and the examples of one round."""


@pytest.mark.timeout(int(60 * MINUTES) + 120)
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name):
    target, strategies, examples = TARGETS[name]
    end, round_, tried = time.monotonic() + 60 * MINUTES / len(TARGETS), 0, 0

    def try_one(example: tuple) -> None:
        nonlocal tried
        tried += 1
        target(*example)

    while round_ == 0 or time.monotonic() < end:
        plain = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        seed(SEED + round_)(plain(given(st.tuples(*strategies))(try_one)))()
        round_ += 1
    print(f"{name}: {tried} examples in {round_} rounds")  # pytest -rP shows it
