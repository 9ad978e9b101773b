"""HC-STVG, VID-Sentence, MeViS, Ref-SAV: sources whose annotations are JSON."""

import json

from tests.badinput.corpora import Files
from tests.badinput.spoil import KINDS, Case, become, both, kind, line, matrix, put, text, word

HCSTVG, MEVIS, MASKS, REFSAV = (
    "anno_v2/train_v2.json",
    "train/meta_expressions.json",
    "train/mask_dict.json",
    "Ref-SAV.json",
)
MASKLETS = "sam_v_full/sav_train/sav_000/sav_000026_manual.json"
TUBE = (
    "data/ILSVRC/Annotations/VID/tubeGt/train/ILSVRC2015_VID_train_0000/"
    "ILSVRC2015_train_00000006.js"
)
LISTS = "data/ILSVRC/Data/VID/annSamples/train_"
_BOX = "null true -1 inf nan 10^30 10^400 text list object"
_HOLDER = "null true 0 10^5000 text list object lists deep"


def hcstvg() -> list[Case]:
    def rows(change) -> Case:
        def spoil(files: Files) -> None:
            whole = json.loads(text(files, HCSTVG))
            first = next(iter(whole))
            whole[first] = change(whole[first]) or whole[first]
            files[HCSTVG] = json.dumps(whole).encode()

        return spoil

    def again(files: Files) -> None:
        whole = text(files, HCSTVG)
        name, row = next(iter(json.loads(whole).items()))
        files[HCSTVG] = f"{whole[:-1]},{json.dumps(name)}:{json.dumps(row)}}}".encode()

    cases = [
        case
        for path, values in (
            ([], _HOLDER),
            ([0], _HOLDER),
            ([0, "bbox"], ""),
            ([0, "bbox", 0], _BOX),
            ([0, "bbox", 0, 2], _BOX),
            ([0, "st_frame"], ""),
            ([0, "img_num"], ""),
            ([0, "img_size"], _HOLDER),
            ([0, "img_size", 0], ""),
            ([0, "English"], ""),
        )
        for case in matrix("hcstvg", HCSTVG, path, values)
    ]
    more = {
        "img_num 10^9": put(HCSTVG, [0, "img_num"], "1000000000"),
        "img_num 10^6": put(HCSTVG, [0, "img_num"], "1000000"),
        "st_frame last": put(HCSTVG, [0, "st_frame"], "12"),
        "size 10^9": put(HCSTVG, [0, "img_size"], "[1000000000,1000000000,3]"),
        "boxes all negative": rows(lambda r: {**r, "bbox": [[-5, -5, -9, -9]] * 5}),
        "boxes beyond": rows(lambda r: {**r, "bbox": [[500, 500, 9, 9]] * 5}),
        "more boxes than frames": rows(lambda r: {**r, "bbox": r["bbox"] * 50}),
        "ragged": rows(lambda r: {**r, "bbox": [*r["bbox"], [1, 2, 3]]}),
        "boxes 1e308": rows(lambda r: {**r, "bbox": [[1e308, 1e308, 1e308, 1e308]] * 5}),
        "row twice": again,
        "10^5 characters": rows(lambda r: {**r, "English": "word " * 20_000}),
        "name with spaces": word(HCSTVG, "1_b11d59350ca.mp4", "1 a b.mp4"),
        "name with newline": word(HCSTVG, "1_b11d59350ca.mp4", r"1\na.mp4"),
        "name non-ascii": word(HCSTVG, "1_b11d59350ca.mp4", "1_čeština_視頻.mp4"),
        "name up": word(HCSTVG, "1_b11d59350ca.mp4", "../../outside/secret.mp4"),
        "name absolute": word(HCSTVG, "1_b11d59350ca.mp4", "/etc/passwd"),
        "name empty": word(HCSTVG, "1_b11d59350ca.mp4", ""),
        "name dot": word(HCSTVG, "1_b11d59350ca.mp4", "."),
        "name long": word(HCSTVG, "1_b11d59350ca.mp4", "a" * 5000),
        "name nul": word(HCSTVG, "1_b11d59350ca.mp4", r"a\u0000b.mp4"),
        "name surrogate": word(HCSTVG, "1_b11d59350ca.mp4", r"a\ud800b.mp4"),
        "name percent": word(HCSTVG, "1_b11d59350ca.mp4", "%s%n%d.mp4"),
        "renamed to non-ascii": both(
            word(HCSTVG, "1_b11d59350ca.mp4", "é ü\\n視.mp4"),
            lambda files: files.update(
                {"video/x y/é ü\n視.mp4": files.pop("video/part_1/1_b11d59350ca.mp4")}
            ),
        ),
    }
    return (
        cases
        + [Case("hcstvg", "row", name, spoil) for name, spoil in more.items()]
        + _files("hcstvg", HCSTVG)
    )


def vid_sentence() -> list[Case]:
    def track(change) -> Case:
        def spoil(files: Files) -> None:
            whole = json.loads(text(files, TUBE))
            whole["annotations"][0]["track"] = change(whole["annotations"][0]["track"])
            files[TUBE] = json.dumps(whole).encode()

        return spoil

    at = ["annotations", 0]
    cases = [
        case
        for path, values in (
            ([], _HOLDER),
            (["annotations"], _HOLDER),
            (at, _HOLDER),
            ([*at, "id"], _HOLDER),
            ([*at, "track"], _HOLDER),
            ([*at, "track", 0], _HOLDER),
            ([*at, "track", 0, "frame"], ""),
            ([*at, "track", -1, "frame"], ""),
            ([*at, "track", 0, "bbox"], _HOLDER),
            ([*at, "track", 0, "bbox", 0], _BOX),
            ([*at, "track", 0, "frame_size"], _HOLDER),
            ([*at, "track", 0, "frame_size", 0], ""),
            ([*at, "track", 0, "class"], "null 10^400 list nul surrogate"),
        )
        for case in matrix("vid_sentence", TUBE, path, values)
    ]
    lists = {
        "no comma": line(f"{LISTS}ann_list_v2.txt", 0, "0 The cat."),
        "no index": line(f"{LISTS}ann_list_v2.txt", 0, ", The cat."),
        "index not there": line(f"{LISTS}ann_list_v2.txt", 0, "99, The cat."),
        "index of 5000 digits": line(f"{LISTS}ann_list_v2.txt", 0, "9" * 5000 + ", The cat."),
        "index in other digits": line(f"{LISTS}ann_list_v2.txt", 0, "٠, The cat."),
        "index superscript": line(f"{LISTS}ann_list_v2.txt", 0, "², The cat."),
        "index negative": line(f"{LISTS}ann_list_v2.txt", 0, "-1, The cat."),
        "no sentence": line(f"{LISTS}ann_list_v2.txt", 0, "0,   "),
        "10^5 characters": line(f"{LISTS}ann_list_v2.txt", 0, "0, " + "word " * 20_000),
        "stray quotes": line(f"{LISTS}ann_list_v2.txt", 0, '0, The "cat, "" and \'so'),
        "sentence twice": line(f"{LISTS}ann_list_v2.txt", 1, "0, The cat again."),
        "byte order mark": become(f"{LISTS}ann_list_v2.txt", lambda data: b"\xef\xbb\xbf" + data),
        "other line ends": become(
            f"{LISTS}ann_list_v2.txt", lambda data: data.replace(b"\n", b"\r\n")
        ),
        "utf-16": become(f"{LISTS}ann_list_v2.txt", lambda data: data.decode().encode("utf-16")),
        "latin-1": line(f"{LISTS}ann_list_v2.txt", 0, "0, placeholder"),
        "empty": become(f"{LISTS}ann_list_v2.txt", b""),
        "list empty": become(f"{LISTS}valid_list.txt", b""),
        "video up": line(f"{LISTS}valid_list.txt", 0, "../../../../../outside/video,0"),
        "video absolute": line(f"{LISTS}valid_list.txt", 0, "/etc/passwd,0"),
        "video not there": line(f"{LISTS}valid_list.txt", 0, "ILSVRC2015_VID_train_0000/none,0"),
        "track not there": line(
            f"{LISTS}valid_list.txt", 0, "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000006,77"
        ),
        "no track": line(
            f"{LISTS}valid_list.txt", 0, "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000006"
        ),
        "video percent": line(f"{LISTS}valid_list.txt", 0, "%s%n/%d,0"),
        "frames far apart": track(lambda t: [*t[:-1], {**t[-1], "frame": 10**9}]),
        "frames out of order": track(lambda t: t[::-1]),
        "one frame twice": track(lambda t: [*t, t[0]]),
        "boxes turned": track(lambda t: [{**b, "bbox": b["bbox"][2:] + b["bbox"][:2]} for b in t]),
        "frame size 10^9": track(lambda t: [{**b, "frame_size": [10**9, 10**9]} for b in t]),
        "one track twice": both(
            put(TUBE, [*at, "id"], '"0"'), lambda files: files.update({TUBE: _twice(files)})
        ),
    }
    lists["latin-1"] = both(
        lists["latin-1"],
        become(f"{LISTS}ann_list_v2.txt", lambda d: d.replace(b"placeholder", b"caf\xe9 \xff")),
    )
    return (
        cases
        + [Case("vid_sentence", "lists", n, s) for n, s in lists.items()]
        + _files("vid_sentence", TUBE)
    )


def _twice(files: Files) -> bytes:
    whole = json.loads(text(files, TUBE))
    whole["annotations"] *= 2
    return json.dumps(whole).encode()


def mevis() -> list[Case]:
    def layer(change):
        def spoil(files: Files) -> None:
            whole = json.loads(text(files, MASKS))
            whole["0"] = change(whole["0"])
            files[MASKS] = json.dumps(whole).encode()

        return spoil

    def counts(new: str):
        return layer(lambda masks: [{**m, "counts": new} if m else m for m in masks])

    a = ["videos", 0]
    said = [*a, "expressions", 0]
    cases = [
        case
        for path, values in (
            ([], _HOLDER),
            (["videos"], _HOLDER),
            (a, _HOLDER),
            ([*a, "frames"], _HOLDER),
            ([*a, "frames", 0], ""),
            ([*a, "expressions"], _HOLDER),
            (said, _HOLDER),
            ([*said, "exp"], ""),
            ([*said, "anno_id"], _HOLDER),
            ([*said, "anno_id", 0], ""),
            ([*said, "obj_id"], _HOLDER),
        )
        for case in matrix("mevis", MEVIS, path, values)
    ]
    cases += [
        case
        for path, values in (
            ([], _HOLDER),
            (["0"], _HOLDER),
            (["0", 0], _HOLDER),
            (["0", 0, "counts"], ""),
            (["0", 0, "size"], _HOLDER),
            (["0", 0, "size", 0], _BOX),
        )
        for case in matrix("mevis", MASKS, path, values)
    ]
    more = {
        "counts short": counts("0"),
        "counts long": counts("0" + "o" * 3),
        "counts unfinished": counts("PPPP"),
        "counts endless": counts("P" * 100_000 + "0"),
        "counts negative": counts("O0"),
        "counts huge run": counts("oooooooooooo0"),
        "counts other letters": counts("~~~é"),
        "counts empty": counts(""),
        "counts as list": layer(lambda masks: [{**m, "counts": [19200]} for m in masks]),
        "size turned": layer(lambda masks: [{**m, "size": m["size"][::-1]} for m in masks]),
        "size of another frame": layer(
            lambda masks: [{"size": [2, 2], "counts": "04"} for m in masks]
        ),
        "size 10^9": layer(lambda masks: [{"size": [10**9, 10**9], "counts": "0"} for m in masks]),
        "size 10^9 x 1": layer(lambda masks: [{"size": [10**9, 1], "counts": "0"} for m in masks]),
        "size 0": layer(lambda masks: [{"size": [0, 0], "counts": ""} for m in masks]),
        "all null": layer(lambda masks: [None] * len(masks)),
        "one mask less": layer(lambda masks: masks[1:]),
        "one mask more": layer(lambda masks: [*masks, None]),
        "polygons": layer(lambda masks: [[[1, 1, 5, 1, 5, 5]]] * len(masks)),
        "masks not there": lambda files: files.pop(MASKS),
        "frame up": put(MEVIS, [*a, "frames", 0], '"../../../../../outside/secret"'),
        "frame absolute": put(MEVIS, [*a, "frames", 0], '"/etc/passwd"'),
        "frame long": put(MEVIS, [*a, "frames", 0], f'"{"a" * 5000}"'),
        "frame twice": put(MEVIS, [*a, "frames", 0], '"00001"'),
        "10^5 characters": put(MEVIS, [*said, "exp"], f'"{"word " * 20_000}"'),
        "right to left": put(MEVIS, [*said, "exp"], '"\u202eقطة \\u0000\\u0007 🐈"'),
        "10^5 mask ids": put(MEVIS, [*said, "anno_id"], f"[{','.join(['0'] * 10_000)}]"),
        "video up": word(MEVIS, "afdd3c5da858", "../../../outside"),
        "video absolute": word(MEVIS, "afdd3c5da858", "/etc"),
        "video newline": word(MEVIS, "afdd3c5da858", r"a\nb c"),
    }
    return (
        cases
        + [Case("mevis", "masks and names", n, s) for n, s in more.items()]
        + _files("mevis", MEVIS, MASKS)
    )


def refsav() -> list[Case]:
    def again(files: Files) -> None:
        whole = text(files, REFSAV)
        files[REFSAV] = f"{whole[:-1]},{whole[1:]}".encode()

    objects = [0, "objects"]
    cases = [
        case
        for path, values in (
            ([], _HOLDER),
            ([0], _HOLDER),
            ([0, "video_path"], ""),
            ([0, "anno_path"], ""),
            (objects, _HOLDER),
            ([*objects, 0], _HOLDER),
            ([*objects, 0, "formated"], ""),
        )
        for case in matrix("refsav", REFSAV, path, values)
    ]
    cases += [
        case
        for path, values in (
            ([], _HOLDER),
            (["video_frame_count"], ""),
            (["video_height"], ""),
            (["masklet"], _HOLDER),
            (["masklet", 0], _HOLDER),
            (["masklet", 0, 0], _HOLDER),
            (["masklet", 0, 0, "counts"], _HOLDER),
            (["masklet", 0, 0, "size"], _HOLDER),
        )
        for case in matrix("refsav", MASKLETS, path, values)
    ]
    more = {
        "row twice": again,
        "object of another spelling": word(
            REFSAV, '"objects":{"0":', '"objects":{"00":{"formated":"Also."},"0":'
        ),
        "object of 5000 digits": word(REFSAV, '"objects":{"0":', f'"objects":{{"{"9" * 5000}":'),
        "object not there": word(REFSAV, '"objects":{"0":', '"objects":{"7":'),
        "object negative": word(REFSAV, '"objects":{"0":', '"objects":{"-1":'),
        "object superscript": word(REFSAV, '"objects":{"0":', '"objects":{"²":'),
        "video up": put(REFSAV, [0, "video_path"], '"../../../outside/secret.mp4"'),
        "video absolute": put(REFSAV, [0, "video_path"], '"/etc/passwd"'),
        "masks up": put(REFSAV, [0, "anno_path"], '"../../../outside/secret.json"'),
        "masks absolute": put(REFSAV, [0, "anno_path"], '"/etc/passwd"'),
        "path long": put(REFSAV, [0, "video_path"], f'"{"a/" * 5000}"'),
        "frames 10^6": put(MASKLETS, ["video_frame_count"], "1000000.0"),
        "frames 19": put(MASKLETS, ["video_frame_count"], "19.0"),
        "10^5 characters": put(REFSAV, [*objects, 0, "formated"], f'"{"word " * 20_000}"'),
    }
    return (
        cases
        + [Case("refsav", "row", n, s) for n, s in more.items()]
        + _files("refsav", REFSAV, MASKLETS)
    )


def _files(source: str, *files: str) -> list[Case]:
    """What may happen to a whole file of JSON."""
    ways = {
        "empty": b"",
        "spaces": b" \n ",
        "cut": lambda d: d[: len(d) // 2],
        "cut at the end": lambda d: d[:-1],
        "tail": lambda d: d + b"]]",
        "two": lambda d: d + d,
        "byte order mark": lambda d: b"\xef\xbb\xbf" + d,
        "utf-16": lambda d: d.decode().encode("utf-16"),
        "zeros": lambda d: bytes(len(d)),
        "html": b"<html><body>404 Not Found</body></html>",
        "deep objects": b'{"a":' * 100_000 + b"}" * 100_000,
        "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n",
        "raw newline in text": lambda d: d.replace(b'":', b'\n":', 1),
        "comments": lambda d: b"// v2\n" + d,
        "unquoted": lambda d: d.replace(b'"', b"'"),
        "trailing comma": lambda d: d[:-1] + b",}",
        "not utf-8": lambda d: d.replace(b"the", b"\xff\xfe\xe9", 1),
    }
    made = [
        Case(source, f"file {n}", name, become(file, way))
        for n, file in enumerate(files)
        for name, way in ways.items()
    ]
    return made + [
        Case(source, f"file {n} is a", what, kind(file, what))
        for n, file in enumerate(files)
        for what in KINDS
    ]
