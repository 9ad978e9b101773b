"""A2D-Sentences, LaSOT, GOT-10k: sources whose annotations are lines of text, and HDF5."""

import io
from collections.abc import Callable

import h5py
import numpy as np

from tests.badinput.corpora import Files
from tests.badinput.spoil import KINDS, Case, become, both, gone, kind, line, word

TABLE, VIDEOSET = "text_annotations/a2d_annotation.txt", "Release/videoset.csv"
H5 = "text_annotations/a2d_annotation_with_instances/f10ba829F9c"
CAT, GOT = "cat/cat-2", "train/GOT-10k_Train_000022"


def _encodings(source: str, *files: str) -> list[Case]:
    """What may happen to a whole text file."""
    ways = {
        "empty": b"",
        "blank lines": lambda d: b"\n\n" + d.replace(b"\n", b"\n\n"),
        "crlf": lambda d: d.replace(b"\n", b"\r\n"),
        "cr": lambda d: d.replace(b"\n", b"\r"),
        "byte order mark": lambda d: b"\xef\xbb\xbf" + d,
        "utf-16": lambda d: d.decode().encode("utf-16"),
        "zeros": lambda d: bytes(len(d) + 1),
        "not utf-8": lambda d: b"\xff" + d,
        "cut": lambda d: d[: len(d) // 2],
        "html": b"<html><body>404</body></html>",
        "one long line": b"9" * 1_000_000,
    }
    made = [
        Case(source, file.rsplit("/", 1)[-1], name, become(file, way))
        for file in files
        for name, way in ways.items()
    ]
    made += [
        Case(source, f"{file.rsplit('/', 1)[-1]} is", "not there", gone(file)) for file in files
    ]
    return made + [
        Case(source, f"{file.rsplit('/', 1)[-1]} is", what, kind(file, what))
        for file in files
        for what in KINDS
    ]


def _h5(change: Callable[[h5py.File], None]) -> Callable[[Files], None]:
    """Every HDF5 file of the video is opened and changed."""

    def spoil(files: Files) -> None:
        for file in [f for f in files if f.startswith(f"{H5}/")]:
            content = files[file]
            assert isinstance(content, bytes)
            buffer = io.BytesIO(content)
            with h5py.File(buffer, "r+") as frame:
                change(frame)
            files[file] = buffer.getvalue()

    return spoil


def _set(name: str, value: object, **how: object) -> Callable[[Files], None]:
    def change(frame: h5py.File) -> None:
        del frame[name]
        frame.create_dataset(name, data=value, **how)

    return _h5(change)


def _link(name: str, link: object) -> Callable[[Files], None]:
    def change(frame: h5py.File) -> None:
        del frame[name]
        frame[name] = link

    return _h5(change)


def _shape(
    name: str, shape: tuple[int, ...], dtype: str = "u1", **how: object
) -> Callable[[Files], None]:
    def change(frame: h5py.File) -> None:
        del frame[name]
        frame.create_dataset(name, shape, dtype, **how)

    return _h5(change)


def _virtual(name: str) -> Callable[[Files], None]:
    def change(frame: h5py.File) -> None:
        shape = frame[name].shape
        del frame[name]
        layout = h5py.VirtualLayout(shape, "u1")
        layout[...] = h5py.VirtualSource("../../../../outside/secret.mp4", "x", shape)
        frame.create_virtual_dataset(name, layout)

    return _h5(change)


def a2d() -> list[Case]:
    first = "f10ba829F9c,0,"
    cells = {
        "stray quote": line(TABLE, 1, first + 'a "cat'),
        "open quote": line(TABLE, 1, first + '"a cat, that never ends'),
        "quote inside": line(TABLE, 1, first + '"a "big" cat"'),
        "no columns": line(TABLE, 1, "f10ba829F9c"),
        "more columns": line(TABLE, 1, first + "a cat,9,9,9"),
        "no sentence": line(TABLE, 1, first),
        "instance (copy)": line(TABLE, 1, "f10ba829F9c,1 (copy),a cat"),
        "instance -1": line(TABLE, 1, "f10ba829F9c,-1,a cat"),
        "instance nan": line(TABLE, 1, "f10ba829F9c,nan,a cat"),
        "instance 1e3": line(TABLE, 1, "f10ba829F9c,1e3,a cat"),
        "instance of 5000 digits": line(TABLE, 1, f"f10ba829F9c,{'9' * 5000},a cat"),
        "instance of 17 digits": line(TABLE, 1, f"f10ba829F9c,{'9' * 17},a cat"),
        "instance not there": line(TABLE, 1, "f10ba829F9c,77,a cat"),
        "instance superscript": line(TABLE, 1, "f10ba829F9c,²,a cat"),
        "video not there": line(TABLE, 1, "none,0,a cat"),
        "video up": line(TABLE, 1, "../../outside/secret,0,a cat"),
        "video absolute": line(TABLE, 1, "/etc/passwd,0,a cat"),
        "video with newline": line(TABLE, 1, '"f10ba\n829F9c",0,a cat'),
        "10^5 characters": line(TABLE, 1, first + "word " * 20_000),
        "2*10^5 characters": line(TABLE, 1, first + "word " * 40_000),
        "row twice": line(TABLE, 2, first + "a cat"),
        "nul": line(TABLE, 1, first + "a\0cat"),
        "right to left": line(TABLE, 1, first + "\u202eقطة 🐈"),
    }
    set_row = "f10ba829F9c,18,0:00:01,0:00:03,72,96,{},4,{}"
    videoset = {
        f"frames {n[:9]} {len(n)}": line(VIDEOSET, 0, set_row.format(n, "0"))
        for n in ("", "-5", "0", "nan", "1e9", "5", "999999999", "9" * 18, "9" * 5000, "٢٤")
    } | {f"subset {n}": line(VIDEOSET, 0, set_row.format(12, n)) for n in ("2", "", "train", "-0")}
    rng = np.zeros((2, 96, 72), np.uint8)
    h5 = {
        "no mask": _h5(lambda f: f.__delitem__("reMask")),
        "no instance": _h5(lambda f: f.__delitem__("instance")),
        "no box": _h5(lambda f: f.__delitem__("reBBox")),
        "group": _h5(lambda f: (f.__delitem__("reMask"), f.create_group("reMask"))),
        "text": _set("reMask", "text"),
        "texts": _set("instance", ["a", "b"]),
        "nan ids": _set("instance", [np.nan]),
        "two masks": _set("reMask", rng),
        "scalar": _set("reMask", 1),
        "four axes": _set("reMask", rng[None]),
        "no ids": _set("instance", np.zeros(0, int)),
        "float mask": _set("reMask", np.full((96, 72), np.nan)),
        "empty mask": _set("reMask", np.zeros((96, 72), np.uint8)),
        "box of inf": _set("reBBox", [np.inf, -np.inf, np.nan, 1e308]),
        "box of texts": _set("reBBox", ["a"] * 4),
        "null dataspace": _link("reMask", h5py.Empty("u1")),
        "mask 10^9 x 10^9": _shape("reMask", (10**9, 10**9), chunks=(64, 64)),
        "mask 10^9 deep": _shape("reMask", (10**9, 96, 72), chunks=(1, 96, 72)),
        "ids 10^12": _shape("instance", (10**12,), chunks=(64,)),
        "boxes 10^12": _shape("reBBox", (4, 10**12), chunks=(4, 64)),
        "wide items": _shape("reMask", (96, 72), "S100000", chunks=(1, 1)),
        "soft link": _link("reMask", h5py.SoftLink("/instance")),
        "link to itself": _link("reMask", h5py.SoftLink("/reMask")),
        "external link": _link("reMask", h5py.ExternalLink("../../../../outside/secret.mp4", "/x")),
        "external link box": _link(
            "reBBox", h5py.ExternalLink("../../../../outside/secret.mp4", "/x")
        ),
        "external storage": _shape("reMask", (96, 72), external=[("/etc/passwd", 0, 96 * 72)]),
        "external storage box": _shape("reBBox", (4,), external=[("/etc/passwd", 0, 4)]),
        "virtual": _virtual("reMask"),
        "virtual box": _virtual("reBBox"),
        "cut": lambda files: (
            [become(f, lambda d: d[: len(d) // 2])(files) for f in files if f.startswith(H5)]
            and None
        ),
        "not hdf5": lambda files: (
            [become(f, b"<html>")(files) for f in files if f.startswith(H5)] and None
        ),
        "name 0": lambda files: files.update({f"{H5}/00000.h5": b""}),
        "name huge": lambda files: files.update({f"{H5}/{'9' * 200}.h5": b""}),
        "name 10^9": lambda files: files.update({f"{H5}/1000000000.h5": b""}),
        "name beyond the video": lambda files: files.update({f"{H5}/00099.h5": b""}),
        "name of words": lambda files: files.update({f"{H5}/a b\nč.h5": b""}),
    }
    made = [
        Case("a2d", g, n, s)
        for g, t in (("row", cells), ("videoset", videoset), ("h5", h5))
        for n, s in t.items()
    ]
    return made + _encodings("a2d", TABLE, VIDEOSET)


_LINES = {
    "letters": "a,b,c,d",
    "three": "1,2,3",
    "five": "1,2,3,4,5",
    "nan": "nan,nan,nan,nan",
    "inf": "inf,1,inf,1",
    "-inf": "-inf,1,inf,1",
    "1e400": "1e400,1,1,1",
    "1e308": "1e308,1e308,1e308,1e308",
    "negative": "5,5,-9,-9",
    "zero": "5,5,0,0",
    "5000 digits": "9" * 5000 + ",1,1,1",
    "hex": "0x10,1,1,1",
    "underscores": "1_0,1,1,1",
    "semicolons": "1;2;3;4",
    "quotes": '"1","2","3","4"',
    "decimal commas": "1,5;2,5;3,5;4,5",
    "other digits": "١,٢,٣,٤",
    "empty cells": "1,,3,4",
    "blank": "",
    "beyond": "90000,90000,5,5",
    "spaces": " 1 2  3\t4 ",
}


def lasot() -> list[Case]:
    made = [
        Case("lasot", "box", n, line(f"{CAT}/groundtruth.txt", 0, new)) for n, new in _LINES.items()
    ]
    flags = {
        "2": "2",
        "letters": "x",
        "negative": "-1",
        "floats": "0.0",
        "two digits": "00",
        "more": "0,0",
        "words": "True",
    }
    made += [
        Case("lasot", "flag", n, word(f"{CAT}/full_occlusion.txt", "0", f))
        for n, f in flags.items()
    ]
    lists = {
        "sequence of no class": "cat",
        "sequence of 5000 digits": f"dog-{'9' * 5000}",
        "sequence up": "../../outside-1",
        "sequence absolute": "/etc-1",
        "sequence not there": "dog-9",
        "not a list": "\x00",
        "long": "a" * 5000 + "-1",
    }
    split = {
        n: f'{{"train": ["cat-2", "coin-2", "{s}"], "test": []}}'
        for n, s in lists.items()
        if s.isprintable()
    }
    split |= {
        "null": "null",
        "list": "[]",
        "no lists": '{"train": 5}',
        "of numbers": '{"train": [1, null, {}, "cat-2"]}',
        "text": '{"train": "cat-2"}',
        "deep": "[" * 100_000,
        "surrogate": r'{"train": ["a\ud800-1", "cat-2"]}',
    }
    made += [
        Case("lasot", "split.json", n, lambda f, s=s: f.update({"split.json": s.encode()}))
        for n, s in split.items()
    ]
    made += [
        Case("lasot", "testing_set", n, become("testing_set.txt", f"cat-2\n{s}".encode()))
        for n, s in lists.items()
    ]
    whole = {
        "all absent": lambda f: become(f"{CAT}/out_of_view.txt", ",".join("1" * 12).encode())(f),
        "phrase of 10^5": become(f"{CAT}/nlp.txt", b"word " * 20_000),
        "phrase of spaces": become(f"{CAT}/nlp.txt", b" \n\t"),
        "folder not utf-8": lambda f: f.update({"cat/cat-\udcff/groundtruth.txt": b"1,1,1,1"}),
        "folder with newline": lambda f: f.update({"cat/cat-\n7/groundtruth.txt": b"1,1,1,1"}),
    }
    made += [Case("lasot", "sequence", n, s) for n, s in whole.items()]
    files = (f"{CAT}/groundtruth.txt", f"{CAT}/full_occlusion.txt", f"{CAT}/nlp.txt")
    return made + _encodings("lasot", *files, "testing_set.txt")


def got10k() -> list[Case]:
    meta, first = f"{GOT}/meta_info.ini", "GOT-10k_Train_000022"
    made = [
        Case("got10k", "box", n, line(f"{GOT}/groundtruth.txt", 0, new))
        for n, new in _LINES.items()
    ]
    flags = {
        "2": "2",
        "9": "9",
        "letters": "x",
        "negative": "-1",
        "floats": "0.0",
        "more": "0\n0",
        "nothing": "",
    }
    made += [
        Case("got10k", "absence", n, line(f"{GOT}/absence.label", 0, f)) for n, f in flags.items()
    ]
    made += [Case("got10k", "cover", n, line(f"{GOT}/cover.label", 0, f)) for n, f in flags.items()]
    values = (
        "",
        "0Hz",
        "-5Hz",
        "nan",
        "inf",
        "1e400",
        "9" * 400,
        "9" * 5000,
        "0." + "0" * 400 + "1",
        "٩Hz",
    )
    made += [
        Case(
            "got10k",
            "anno_fps",
            f"{v[:9]} {len(v)}",
            word(meta, "anno_fps: 10Hz", f"anno_fps: {v}"),
        )
        for v in values
    ]
    sizes = (
        "",
        "(0, 0)",
        "(-5, 5)",
        "(1e9, 5)",
        f"({10**9}, {10**9})",
        f"({10**30}, 5)",
        f"({'9' * 5000}, 5)",
        "5x5",
        "(5)",
    )
    made += [
        Case(
            "got10k",
            "resolution",
            f"{v[:12]} {len(v)}",
            word(meta, "resolution: (96, 72)", f"resolution: {v}"),
        )
        for v in sizes
    ]
    names = {
        "up": "../../outside",
        "absolute": "/etc",
        "not there": "GOT-10k_Train_999999",
        "known bad": "GOT-10k_Train_008623",
        "long": "a" * 5000,
        "nul": "a\0b",
        "dot": ".",
        "percent": "%s%n",
        "twice": first,
        "non-ascii": "čeština",
    }
    made += [
        Case("got10k", "list", n, line("train/list.txt", 2, name)) for n, name in names.items()
    ]
    whole = {
        "class of 10^5": word(meta, "object_class: flower", "object_class: " + "word " * 20_000),
        "no labels": become(meta, b"[METAINFO]\n"),
        "label twice": word(meta, "url: synthetic", "object_class: a: b"),
        "label with nul": word(meta, "object_class: flower", "object_class: a\0b"),
        "folder not utf-8": both(
            gone("train/list.txt"),
            lambda f: f.update({"train/GOT-10k_\udcff/groundtruth.txt": b"1,1,1,1"}),
        ),
    }
    made += [Case("got10k", "sequence", n, s) for n, s in whole.items()]
    return made + _encodings(
        "got10k", f"{GOT}/groundtruth.txt", f"{GOT}/absence.label", meta, "train/list.txt"
    )
