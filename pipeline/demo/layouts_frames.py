"""VID-Sentence, LaSOT, MeViS and GOT-10k as their authors ship them: folders of JPEG images beside their annotations.

`write_*_video` writes one rendered video and returns its part of the annotations; `write_*_tables` joins the parts.
"""

from pathlib import Path

import numpy as np

from pipeline.demo.describe import expressions
from pipeline.demo.parts import Part, Spec, say, write_bytes, write_json, write_text
from pipeline.demo.scene import Scene, SceneObject
from schemas.geometry import to_xywh, to_xyxy
from schemas.video.pictures import encode_jpeg

QUALITY = 90


def _write_images(folder: Path, scene: Scene, pattern: str, first: int) -> None:
    for t, picture in enumerate(scene.frames):
        write_bytes(folder / (pattern % (t + first)), encode_jpeg(picture, QUALITY))


# --- VID-Sentence --------------------------------------------------------------------------------------------------

_WORDNET = {
    "cat": ("domestic_cat", 9, "n02121808"),
    "horse": ("horse", 14, "n02374451"),
    "motorcycle": ("motorcycle", 18, "n03790512"),
}
_BUCKET = "ILSVRC2015_VID_train_0000"


def write_vid_sentence_video(root: Path, spec: Spec, scene: Scene) -> Part:
    """Images numbered from 0, a track per object whose frames count from 1; frames without the object are skipped."""
    path = f"{_BUCKET}/{spec.video}" if spec.split == "train" else spec.video
    base = root / "data" / "ILSVRC"
    folder = base / "Data" / "VID" / spec.split / path
    _write_images(folder, scene, "%06d.JPEG", 0)
    if "truncated_image" in spec.faults:
        image = folder / f"{len(scene) // 2:06d}.JPEG"
        data = image.read_bytes()
        write_bytes(image, data[: len(data) // 3])
    described = [
        (i, say(scene, (i,), spec))
        for i in range(len(scene.objects) if "two_tracks" in spec.faults else 1)
    ]
    tracks = [
        {"id": str(i), "track": _vid_track(scene.objects[i], scene.size)} for i, _ in described
    ]
    write_json(
        base / "Annotations" / "VID" / "tubeGt" / spec.split / f"{path}.js",
        {"video": spec.video, "annotations": tracks},
        indent=1,
    )
    sentences = [
        (i, said.sentence if i % 2 == 0 else said.sentence.rstrip(".")) for i, said in described
    ]
    anno = {"tracks": [[f"{path},{i}", sentence] for i, sentence in sentences]}
    return Part.of(spec, anno, [(sentence, scene, (i,)) for i, sentence in sentences])


def _vid_track(thing: SceneObject, size: tuple[int, int]) -> list[dict]:
    name, index, wordnet = _WORDNET[thing.name]
    return [
        {
            "frame": int(t) + 1,
            "bbox": to_xyxy(thing.boxes[t], inclusive=True).astype(int).tolist(),
            "frame_size": list(size),
            "class": name,
            "class_index": index,
            "name": wordnet,
            "occluded": int(thing.masks[t].sum() < 0.9 * thing.inside[t]),
            "generated": int(t % 2),
        }
        for t in np.flatnonzero(thing.visible)
    ]


def write_vid_sentence_tables(root: Path, parts: list[Part]) -> None:
    folder = root / "data" / "ILSVRC" / "Data" / "VID" / "annSamples"
    for split in ("train", "val"):
        mine = [p for p in parts if p.spec.split == split]
        tracks = [track for p in mine for track in p.anno["tracks"]]
        write_text(folder / f"{split}_valid_list.txt", "".join(f"{path}\n" for path, _ in tracks))
        write_text(
            folder / f"{split}_ann_list_v2.txt",
            "".join(f"{i}, {s}\n" for i, (_, s) in enumerate(tracks)),
        )
        videos = "".join(f"{p.anno['tracks'][0][0].rpartition(',')[0]}\n" for p in mine)
        write_text(
            root / "data" / "ILSVRC" / "Annotations" / "VID" / "tubeGt" / f"{split}.txt", videos
        )


# --- LaSOT ---------------------------------------------------------------------------------------------------------


def write_lasot_video(root: Path, spec: Spec, scene: Scene) -> Part:
    """1-based integer boxes, flags in a single line, and stale boxes under the flags."""
    thing, folder = scene.objects[0], root / spec.video.rpartition("-")[0] / spec.video
    _write_images(folder / "img", scene, "%08d.jpg", 1)
    outside = ~thing.visible & (thing.inside < 0.1 * thing.full)
    hidden = ~thing.visible & ~outside
    lines, last = [], [1, 1, 0, 0]
    for t, seen in enumerate(thing.visible):
        if seen:
            last = to_xywh(thing.boxes[t], base=1).astype(int).tolist()
        lines.append(last if seen or t % 5 else [0, 0, 0, 0])
    write_text(
        folder / "groundtruth.txt", "".join(",".join(map(str, line)) + "\n" for line in lines)
    )
    for name, flags in (("full_occlusion", hidden), ("out_of_view", outside)):
        write_text(folder / f"{name}.txt", ",".join(str(int(flag)) for flag in flags))
    phrase = f"{say(scene, (0,), spec, motion=False).noun} {scene.place}"
    write_text(folder / "nlp.txt", phrase)
    return Part.of(spec, {"absent": int((~thing.visible).sum())}, [(phrase, scene, (0,))])


def write_lasot_tables(root: Path, parts: list[Part]) -> None:
    write_text(
        root / "testing_set.txt", "\n".join(p.spec.video for p in parts if p.spec.split == "test")
    )


# --- MeViS ---------------------------------------------------------------------------------------------------------


def write_mevis_video(root: Path, spec: Spec, scene: Scene) -> Part:
    """Expressions about each object, and about all look-alikes together; null masks where an object is absent."""
    _write_images(root / spec.split / "JPEGImages" / spec.video, scene, "%05d.jpg", 0)
    groups = [(i,) for i in range(len(scene.objects))]
    alike = tuple(i for i, o in enumerate(scene.objects) if o.name == scene.objects[0].name)
    said: list[tuple[str, tuple[int, ...]]] = [
        (say(scene, targets, spec).text, targets) for targets in groups
    ]
    if len(alike) > 1:
        said += [(e.text, alike) for e in expressions(scene, alike)[:2]]
    said += [
        (e.text, (0,))
        for e in expressions(scene, (0,))[1:]
        if e.text not in {text for text, _ in said}
    ][:1]
    anno = {
        "frames": [f"{t:05d}" for t in range(len(scene))],
        "expressions": [[text, list(targets)] for text, targets in said],
        "masks": [o.rles() for o in scene.objects],
        "size": list(scene.size),
    }
    return Part.of(spec, anno, [(text, scene, targets) for text, targets in said])


def write_mevis_tables(root: Path, parts: list[Part]) -> None:
    for split in ("train", "valid_u"):
        videos: dict[str, dict] = {}
        masks: dict[str, list] = {}
        for number, p in enumerate(p for p in parts if p.spec.split == split):
            ids = {i: len(masks) + i for i in range(len(p.anno["masks"]))}
            videos[p.spec.video] = {
                "vid_id": number,
                "height": p.anno["size"][0],
                "width": p.anno["size"][1],
                "frames": p.anno["frames"],
                "expressions": {
                    str(k): {"exp": text, "obj_id": targets, "anno_id": [ids[i] for i in targets]}
                    for k, (text, targets) in enumerate(p.anno["expressions"])
                },
            }
            masks |= {str(ids[i]): layer for i, layer in enumerate(p.anno["masks"])}
        write_json(root / split / "meta_expressions.json", {"videos": videos})
        write_json(root / split / "mask_dict.json", masks)


# --- GOT-10k -------------------------------------------------------------------------------------------------------

_CLASSES = {
    "flower": ("plant", "plant"),
    "cup": ("vessel", "object"),
    "rocket": ("spacecraft", "vehicle"),
    "horse": ("ungulate", "animal"),
    "coin": ("currency", "object"),
    "cat": ("feline", "animal"),
}


def write_got10k_video(root: Path, spec: Spec, scene: Scene) -> Part:
    """1-based float boxes; absence as a label, with a box of -1 or of no size; cover in eighths."""
    thing, folder = scene.objects[0], root / spec.split / spec.video
    _write_images(folder, scene, "%08d.jpg", 1)
    boxes = to_xywh(thing.boxes, base=1)
    gone = [-1.0] * 4 if "minus_one_boxes" in spec.faults else [0.0] * 4
    rows = [box.tolist() if seen else gone for box, seen in zip(boxes, thing.visible, strict=True)]
    write_text(
        folder / "groundtruth.txt",
        "".join(",".join(f"{v:.4f}" for v in row) + "\n" for row in rows),
    )
    shown = thing.masks.sum((1, 2)) / thing.full
    cover = np.where(thing.visible, np.clip(np.round(8 * shown), 1, 8), 0).astype(int)
    if "zero_cover" in spec.faults:
        cover[:] = 0
    cut = (thing.inside < 0.97 * thing.full) & thing.visible
    flags = {
        "absence": (~thing.visible).astype(int),
        "cover": cover,
        "cut_by_image": cut.astype(int),
    }
    for name, values in flags.items():
        write_text(folder / f"{name}.label", "".join(f"{value}\n" for value in values))
    path = np.linalg.norm(np.diff(thing.centre, axis=0), axis=1).sum() / len(scene)
    major, top = _CLASSES[thing.name]
    labels = {
        "url": "synthetic",
        "begin": "00:00:00",
        "end": f"00:00:{len(scene) // 10:02d}",
        "anno_fps": "10Hz",
        "object_class": thing.name,
        "motion_class": "gliding",
        "major_class": major,
        "root_class": top,
        "motion_adverb": "slowly" if path < 0.008 * scene.size[1] else "quickly",
        "resolution": f"({scene.size[1]}, {scene.size[0]})",
    }
    write_text(
        folder / "meta_info.ini", "[METAINFO]\n" + "".join(f"{k}: {v}\n" for k, v in labels.items())
    )
    said = " / ".join(labels[key] for key in ("object_class", "motion_class", "motion_adverb"))
    return Part.of(spec, {}, [(said, scene, (0,))])


def write_got10k_tables(root: Path, parts: list[Part]) -> None:
    for split in ("train", "val"):
        names = "".join(f"{p.spec.video}\n" for p in parts if p.spec.split == split)
        write_text(root / split / "list.txt", names)
