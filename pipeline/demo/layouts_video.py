"""HC-STVG, A2D-Sentences and Ref-SAV as their authors ship them: video files beside tables, masks and sentences.

`write_*_video` writes one rendered video and returns its part of the annotations; `write_*_tables` joins the parts.
"""

import csv
import io
from pathlib import Path

import av
import h5py
import numpy as np

from pipeline.demo.describe import Expression, expressions
from pipeline.demo.parts import Part, Spec, say, write_bytes, write_json, write_text
from pipeline.demo.scene import Scene
from schemas.geometry import rle_encode, to_xywh
from schemas.video.stored import encode_mp4

# --- HC-STVG -------------------------------------------------------------------------------------------------------


def write_hcstvg_video(root: Path, spec: Spec, scene: Scene) -> Part:
    """One person, one sentence, boxes in a tube that starts after the video does. `.mkv` by name."""
    person, count = scene.objects[0], len(scene)
    if "missing_video" not in spec.faults:
        data = encode_mp4(scene.frames, count / 20)
        path = root / "video" / f"part_{1 + spec.copy % 10}" / spec.video
        write_bytes(path, _mkv(data) if path.suffix == ".mkv" else data)
    start, stop = _tube(person.visible, count)
    boxes = to_xywh(person.boxes[start:stop]).astype(int).tolist()
    if "negative_boxes" in spec.faults:
        for i in range(3):
            x, y, w, h = boxes[len(boxes) // 2 + i]
            boxes[len(boxes) // 2 + i] = [x, -y, -w, h]
    sentence = say(scene, (0,), spec).sentence
    row = {
        "bbox": boxes,
        "st_frame": start + 1,
        "st_time": round(start * 20 / count, 2),
        "ed_time": round(stop * 20 / count, 2),
        "img_num": count,
        "img_size": [*scene.size, 3],
        "English": sentence,
        "Chinese": "",
    }
    return Part.of(spec, {"row": row}, [(sentence, scene, (0,))])


def _tube(visible: np.ndarray, count: int) -> tuple[int, int]:
    """(start, stop) of the longest run of frames with the person, a little after the first frame."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], visible.astype(int), [0]])))
    start, stop = max(zip(edges[::2], edges[1::2], strict=True), key=lambda run: run[1] - run[0])
    return max(int(start), count // 12), min(int(stop), count - count // 12)


def _mkv(mp4: bytes) -> bytes:
    """The same packets in a Matroska file, without today's date and random ids in it."""
    out = io.BytesIO()
    with (
        av.open(io.BytesIO(mp4), "r") as source,
        av.open(out, "w", format="matroska", options={"fflags": "+bitexact"}) as target,
    ):
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    return out.getvalue()


def write_hcstvg_tables(root: Path, parts: list[Part]) -> None:
    for split in ("train", "val"):
        rows = {p.spec.video: p.anno["row"] for p in parts if p.spec.split == split}
        write_json(root / "anno_v2" / f"{split}_v2.json", rows)
    write_json(root / "anno_v2" / "query_v2.json", {})


# --- A2D-Sentences -------------------------------------------------------------------------------------------------


def write_a2d_video(root: Path, spec: Spec, scene: Scene) -> Part:
    """A clip 320 pixels high, a sentence per actor, masks in 3 to 5 frames stored as MATLAB does."""
    n, (height, width) = len(scene), scene.size
    data = encode_mp4(scene.frames, 25.0)
    if "truncated_video" in spec.faults:
        data = data[: len(data) * 2 // 3]
    if "missed_video" not in spec.faults:
        write_bytes(root / "Release" / "clips320H" / f"{spec.video}.mp4", data)
    marked = np.linspace(n // 8, n - 1 - n // 8, 3 + (spec.copy + len(scene.objects)) % 3).astype(
        int
    )
    for t in marked:
        _write_h5(
            root / "text_annotations" / "a2d_annotation_with_instances" / spec.video, int(t), scene
        )
    queries = [(i, say(scene, (i,), spec).query) for i in range(len(scene.objects))]
    rows = [[spec.video, str(i), query] for i, query in queries]
    if "copied_row" in spec.faults:
        rows.append([spec.video, "1 (copy)", queries[-1][1]])
    actions = {
        "woman": 18,
        "man": 18,
        "cat": 68,
    }  # actor and action codes of A2D: adult and cat, walking
    labels = "x".join(str(actions.get(o.name, 18)) for o in scene.objects[:1])
    video = [
        spec.video,
        labels,
        "0:00:01",
        "0:00:03",
        height,
        width,
        n,
        len(marked),
        int(spec.split == "test"),
    ]
    anno = {"rows": rows, "video": video, "missed": "missed_video" in spec.faults}
    return Part.of(spec, anno, [(query, scene, (i,)) for i, query in queries])


def _write_h5(folder: Path, frame: int, scene: Scene) -> None:
    """MATLAB's view: transposed masks, and no instance axis when there is a single one."""
    there = [i for i, o in enumerate(scene.objects) if o.visible[frame]]
    if not there:
        return
    masks = np.stack([scene.objects[i].masks[frame].T for i in there]).astype(np.uint8)
    boxes = np.stack([scene.objects[i].boxes[frame] for i in there]).T.astype(np.float64)
    boxes[:2] += 1  # 1-based, and x2 y2 name the last pixel
    if len(there) == 1:
        masks, boxes = masks[0], boxes[:, 0]
    path = folder / f"{frame + 1:05d}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["instance"] = np.array(there, np.int64)
        file.create_dataset("reMask", data=masks, compression="gzip", compression_opts=4)
        file["reBBox"] = boxes


def write_a2d_tables(root: Path, parts: list[Part]) -> None:
    write_text(root / "Release" / "videoset.csv", _csv([p.anno["video"] for p in parts]))
    rows = [["video_id", "instance_id", "query"], *(row for p in parts for row in p.anno["rows"])]
    write_text(root / "text_annotations" / "a2d_annotation.txt", _csv(rows))
    missed = "".join(f"{p.spec.video}\n" for p in parts if p.anno["missed"])
    write_text(root / "text_annotations" / "a2d_missed_videos.txt", missed)


def _csv(rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# --- Ref-SAV -------------------------------------------------------------------------------------------------------

STEP = 4
"""Video frames per labelled frame: 24 fps video, 6 fps labels."""
_BUCKETS = ((32**2, "small"), (96**2, "medium"))


def write_refsav_video(root: Path, spec: Spec, scene: Scene) -> Part:
    """A 24 fps video, the masklets of every 4th frame, and a description of each object."""
    write_bytes(
        root / "sam_v_full" / "sav_train" / "sav_000" / f"{spec.video}.mp4",
        encode_mp4(scene.frames, 24.0),
    )
    write_json(
        root / "sam_v_full" / "sav_train" / "sav_000" / f"{spec.video}_manual.json",
        _masklets(spec, scene),
    )
    texts = []
    for i in range(len(scene.objects)):
        said = say(scene, (i,), spec)
        also = [e for e in expressions(scene, (i,)) if e.claims != said.claims and e.claims]
        texts.append(_paragraph(said, also[0] if also else None, scene.place))
    folder = "sav_000/sav_train/sav_000"  # the release repeats the directory
    objects = {
        str(i): {
            "obj_id": i,
            "video_id": spec.video,
            "formated": text,
            "short_caps": [say(scene, (i,), spec).noun],
        }
        for i, text in enumerate(texts)
    }
    if "object_out_of_range" in spec.faults:
        objects["7"] = dict(objects["0"], obj_id=7)
    paths = {
        "video_path": f"{folder}/{spec.video}.mp4",
        "anno_path": f"{folder}/{spec.video}_manual.json",
    }
    return Part.of(
        spec,
        {"row": {**paths, "objects": objects}},
        [(text, scene, (i,)) for i, text in enumerate(texts)],
    )


def _paragraph(said: Expression, also: Expression | None, place: str) -> str:
    more = f" This is {also.text}." if also else ""
    return f"{said.sentence}{more} The video was made {place}."


def _masklets(spec: Spec, scene: Scene) -> dict:
    (height, width), n, labelled = scene.size, len(scene), range(0, len(scene), STEP)
    masks = [[o.masks[t] for o in scene.objects] for t in labelled]
    areas = np.array([[int(m.sum()) for m in frame] for frame in masks])
    ids, seen = range(len(scene.objects)), areas > 0
    mean = [float(areas[seen[:, i], i].mean()) if seen[:, i].any() else 0.0 for i in ids]
    first = [float(seen[:, i].argmax()) if seen[:, i].any() else -1.0 for i in ids]
    return {
        "video_id": spec.video,
        "video_duration": n / 24.0,
        "video_frame_count": float(n),
        "video_height": float(height),
        "video_width": float(width),
        "video_resolution": float(height * width),
        "video_environment": "Indoor" if "garage" in scene.place else "Outdoor",
        "video_split": "train",
        "masklet_num": len(ids),
        "masklet_id": list(ids),
        "masklet_type": ["manual"] * len(ids),
        "masklet_first_appeared_frame": first,
        "masklet_frame_count": [int(seen[:, i].sum()) for i in ids],
        "masklet_edited_frame_count": [int(seen[:, i].any()) for i in ids],
        "masklet_visibility_changes": [
            int(np.abs(np.diff(seen[:, i].astype(int))).sum()) for i in ids
        ],
        "masklet_size_rel": [m / (height * width) for m in mean],
        "masklet_size_abs": mean,
        "masklet_size_bucket": [
            next((word for limit, word in _BUCKETS if m < limit), "large") for m in mean
        ],
        "masklet_stability_score": [None] * len(ids),
        "masklet": [[rle_encode(m) for m in frame] for frame in masks],
    }


def write_refsav_tables(root: Path, parts: list[Part]) -> None:
    write_json(root / "Ref-SAV.json", {p.spec.video: p.anno["row"] for p in parts})
