"""The synthetic corpus: official layouts checked by hand against the exact truth, faults, resuming."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import av
import h5py
import numpy as np
import pytest

from pipeline.demo import corpus as module
from pipeline.demo.corpus import FAULTS, CorpusConfig, corpus_plan, write_corpus
from schemas.geometry import rle_area, rle_box, rle_decode

SMALL = CorpusConfig(
    size=(96, 160),
    a2d_size=(96, 160),
    lasot_size=(96, 160),
    frames={
        "hcstvg": 24,
        "vid_sentence": 24,
        "a2d": 24,
        "lasot": 48,
        "mevis": 20,
        "got10k": 20,
        "refsav": 22,
        "broken": 6,
    },
)
SOURCES = ("hcstvg", "vid_sentence", "a2d", "lasot", "mevis", "got10k", "refsav")


def small(root: Path, **options) -> None:
    write_corpus(root, config=SMALL, **options)


def digests(root: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    small(root)
    return root


def truth(corpus: Path, source: str) -> dict[str, list[dict]]:
    return json.loads((corpus / "truth" / f"{source}.json").read_text())


def video(corpus: Path, source: str, fault: str) -> str:
    """The video with a planted fault."""
    faults = json.loads((corpus / "corpus.json").read_text())["faults"]
    return next(f["video_id"] for f in faults if f["source"] == source and f["fault"] == fault)


def n_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


# --- as a whole ----------------------------------------------------------------------------------------------------


def test_truth_has_an_entry_per_frame_and_boxes_of_the_masks(corpus: Path) -> None:
    for source in SOURCES:
        entries = [e for video in truth(corpus, source).values() for e in video]
        assert entries
        for entry in entries:
            assert len(entry["boxes"]) == len(entry["masks"])
            assert any(entry["boxes"])
            for box, counts in zip(entry["boxes"], entry["masks"], strict=True):
                assert (box is None) == (counts is None)
                if counts is not None:
                    assert rle_box({"size": entry["size"], "counts": counts}).tolist() == box


def test_expressions_of_one_video_differ(corpus: Path) -> None:
    for source in SOURCES:
        for entries in truth(corpus, source).values():
            texts = [e["expression"] for e in entries]
            assert len(set(texts)) == len(texts)


def test_every_fault_is_planted_and_listed(corpus: Path) -> None:
    summary = json.loads((corpus / "corpus.json").read_text())
    assert {f["fault"] for f in summary["faults"]} == set(FAULTS)
    assert sum(f["quarantine"] is not None for f in summary["faults"]) == 6
    assert summary["synthetic"] is True
    assert sum(summary["videos"].values()) == len(corpus_plan(0, 1, SMALL))
    assert not (corpus / ".parts").exists()


def test_the_default_corpus_is_as_large_as_it_says() -> None:
    specs = corpus_plan(0, 1, CorpusConfig())
    assert {spec.source for spec in specs} == set(SOURCES)
    assert sum(spec.frames for spec in specs) < 2700
    assert len({(spec.source, spec.key) for spec in corpus_plan(0, 3, CorpusConfig())}) == 3 * len(
        specs
    )


def test_the_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    small(tmp_path, workers=2)
    assert digests(tmp_path) == digests(corpus)


def test_another_seed_gives_other_videos(corpus: Path, tmp_path: Path) -> None:
    small(tmp_path, seed=1)
    one, two = digests(corpus), digests(tmp_path)
    videos = [path for path in one if path.endswith((".mp4", ".mkv"))]
    assert videos
    assert all(one[path] != two[path] for path in videos)


def test_an_interrupted_corpus_is_resumed_to_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, progress=stop)
    assert not (tmp_path / "corpus.json").exists()
    rendered: list[str] = []
    original: Callable = module.render_video
    monkeypatch.setattr(
        module, "render_video", lambda root, spec: rendered.append(spec.key) or original(root, spec)
    )
    small(tmp_path)
    assert len(rendered) == len(corpus_plan(0, 1, SMALL)) - 9
    assert digests(tmp_path) == digests(corpus)
    small(tmp_path)  # finished: nothing to do
    assert len(rendered) == len(corpus_plan(0, 1, SMALL)) - 9


def test_an_older_corpus_is_replaced_but_nothing_else_is_touched(tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text('{"seed": 5, "scale": 1, "version": 0}')
    (tmp_path / "hcstvg").mkdir()
    (tmp_path / "hcstvg" / "old").write_text("")
    (tmp_path / "mine.txt").write_text("")
    assert module._prepare(tmp_path, {"seed": 0})
    assert not (tmp_path / "hcstvg").exists()
    assert (tmp_path / "mine.txt").exists()


def test_a_folder_with_other_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lasot").mkdir()
    with pytest.raises(ValueError, match="holds lasot of something else"):
        small(tmp_path)
    with pytest.raises(ValueError, match="scale must be at least 1"):
        small(tmp_path / "new", scale=0)


# --- layouts, parsed by hand ---------------------------------------------------------------------------------------


def test_hcstvg(corpus: Path) -> None:
    root = corpus / "hcstvg"
    broken = video(corpus, "hcstvg", "negative_boxes")
    missing = video(corpus, "hcstvg", "missing_video")
    files = {path.name: path for path in (root / "video").rglob("*.m*")}
    suffixes = set()
    for split in ("train", "val"):
        for name, row in json.loads((root / "anno_v2" / f"{split}_v2.json").read_text()).items():
            [entry] = truth(corpus, "hcstvg")[f"{split}/{name}"]
            assert row["English"] == entry["expression"]
            assert row["img_size"] == [96, 160, 3]
            assert row["st_frame"] > 1
            assert (name in files) == (name != missing)
            if name in files:
                assert n_frames(files[name]) == row["img_num"] == 24
                suffixes.add(files[name].suffix)
            negative = 0
            for i, (x, y, w, h) in enumerate(row["bbox"]):
                if w < 0:
                    negative += 1
                else:
                    assert [x, y, x + w, y + h] == entry["boxes"][row["st_frame"] - 1 + i]
            assert negative == (3 if name == broken else 0)
    assert suffixes == {".mp4", ".mkv"}


def test_vid_sentence(corpus: Path) -> None:
    base = corpus / "vid_sentence" / "data" / "ILSVRC"
    gaps = 0
    for split in ("train", "val"):
        lists = base / "Data" / "VID" / "annSamples"
        tracks = (lists / f"{split}_valid_list.txt").read_text().splitlines()
        for line in (lists / f"{split}_ann_list_v2.txt").read_text().splitlines():
            index, sentence = line.split(",", 1)
            path, track_id = tracks[int(index)].split(",")
            assert ("/" in path) == (split == "train")
            tube = json.loads(
                (base / "Annotations" / "VID" / "tubeGt" / split / f"{path}.js").read_text()
            )
            [track] = [a["track"] for a in tube["annotations"] if a["id"] == track_id]
            entries = truth(corpus, "vid_sentence")[f"{split}/{path.split('/')[-1]}"]
            [entry] = [e for e in entries if e["expression"] == sentence.strip()]
            assert [box["frame"] for box in track] == [
                t + 1 for t, b in enumerate(entry["boxes"]) if b
            ]
            for box in track:
                x1, y1, x2, y2 = box["bbox"]
                assert [x1, y1, x2 + 1, y2 + 1] == entry["boxes"][box["frame"] - 1]
                assert (
                    base / "Data" / "VID" / split / path / f"{box['frame'] - 1:06d}.JPEG"
                ).exists()
            gaps += len(track) < track[-1]["frame"] - track[0]["frame"] + 1
    assert gaps
    name = video(corpus, "vid_sentence", "truncated_image")
    [folder] = (base / "Data" / "VID" / "train").glob(f"*/{name}")
    ends = [
        path.read_bytes().endswith(b"\xff\xd9") for path in sorted(folder.iterdir())
    ]  # JPEG's end of image
    assert ends.count(False) == 1


def test_a2d(corpus: Path) -> None:
    root = corpus / "a2d"
    rows = list(
        csv.reader(io.StringIO((root / "text_annotations" / "a2d_annotation.txt").read_text()))
    )
    assert rows[0] == ["video_id", "instance_id", "query"]
    copied, missed, cut = (
        video(corpus, "a2d", f) for f in ("copied_row", "missed_video", "truncated_video")
    )
    assert [row[0] for row in rows if row[1] == "1 (copy)"] == [copied]
    assert (root / "text_annotations" / "a2d_missed_videos.txt").read_text().split() == [missed]
    videoset = list(csv.reader(io.StringIO((root / "Release" / "videoset.csv").read_text())))
    assert {row[8] for row in videoset} == {"0", "1"}
    split = {row[0]: "test" if row[8] == "1" else "train" for row in videoset}
    single = False
    for name, instance, query in rows[1:]:
        if not instance.isdecimal():
            continue
        [entry] = [
            e for e in truth(corpus, "a2d")[f"{split[name]}/{name}"] if e["expression"] == query
        ]
        files = sorted(
            (root / "text_annotations" / "a2d_annotation_with_instances" / name).glob("*.h5")
        )
        assert 3 <= len(files) <= 5
        for path in files:
            frame = int(path.stem) - 1
            with h5py.File(path) as file:
                ids, masks, boxes = list(file["instance"]), file["reMask"][...], file["reBBox"][...]
            assert (int(instance) in ids) == (entry["boxes"][frame] is not None)
            if len(ids) == 1:
                assert masks.shape == (160, 96)
                assert boxes.shape == (4,)
                masks, boxes, single = masks[None], boxes[:, None], True
            if int(instance) in ids:
                i = ids.index(int(instance))
                exact = rle_decode({"size": entry["size"], "counts": entry["masks"][frame]})
                assert (exact == masks[i].T).all()
                x1, y1, x2, y2 = boxes[:, i]
                assert [x1 - 1, y1 - 1, x2, y2] == entry["boxes"][frame]
        clip = root / "Release" / "clips320H" / f"{name}.mp4"
        if name not in (missed, cut):
            assert n_frames(clip) == 24
    assert single
    with pytest.raises(av.error.FFmpegError):
        n_frames(root / "Release" / "clips320H" / f"{cut}.mp4")
    assert {spec.height for spec in corpus_plan(0, 1, CorpusConfig()) if spec.source == "a2d"} == {
        320
    }


def test_lasot(corpus: Path) -> None:
    root, stale = corpus / "lasot", 0
    test = (root / "testing_set.txt").read_text()
    assert not test.endswith("\n")
    for key, [entry] in truth(corpus, "lasot").items():
        split, name = key.split("/")
        assert (name in test.split()) == (split == "test")
        folder = root / name.split("-")[0] / name
        lines = [
            list(map(int, line.split(",")))
            for line in (folder / "groundtruth.txt").read_text().splitlines()
        ]
        texts = [(folder / f"{flag}.txt").read_text() for flag in ("full_occlusion", "out_of_view")]
        assert not any("\n" in text for text in texts)
        hidden, outside = (list(map(int, text.split(","))) for text in texts)
        assert (
            (folder / "nlp.txt").read_text()
            == entry["expression"]
            == entry["expression"].lower().strip()
        )
        assert len(lines) == len(hidden) == len(outside) == len(entry["boxes"]) == 48
        for t, (x, y, w, h) in enumerate(lines):
            assert (folder / "img" / f"{t + 1:08d}.jpg").exists()
            assert (hidden[t] or outside[t]) == (entry["boxes"][t] is None)
            if entry["boxes"][t]:
                assert [x - 1, y - 1, x - 1 + w, y - 1 + h] == entry["boxes"][t]
            else:
                stale += w > 0
    assert stale


def test_mevis(corpus: Path) -> None:
    nulls = shared = 0
    for split in ("train", "valid_u"):
        root = corpus / "mevis" / split
        masks = json.loads((root / "mask_dict.json").read_text())
        for name, row in json.loads((root / "meta_expressions.json").read_text())["videos"].items():
            assert re.fullmatch("[0-9a-f]{12}", name)
            assert all(
                (root / "JPEGImages" / name / f"{frame}.jpg").exists() for frame in row["frames"]
            )
            entries = truth(corpus, "mevis")[f"{split}/{name}"]
            for expression in row["expressions"].values():
                [entry] = [e for e in entries if e["expression"] == expression["exp"]]
                layers = [masks[str(i)] for i in expression["anno_id"]]
                shared += len(layers) > 1
                for t, frame in enumerate(zip(*layers, strict=True)):
                    there = [rle_decode(rle) for rle in frame if rle is not None]
                    nulls += len(there) < len(layers)
                    if not there:
                        assert entry["masks"][t] is None
                    else:
                        exact = rle_decode({"size": entry["size"], "counts": entry["masks"][t]})
                        assert (np.logical_or.reduce(there) == exact).all()
    assert nulls
    assert shared


def test_got10k(corpus: Path) -> None:
    zero, minus = (video(corpus, "got10k", fault) for fault in ("zero_cover", "minus_one_boxes"))
    for split in ("train", "val"):
        root = corpus / "got10k" / split
        for name in (root / "list.txt").read_text().split():
            [entry] = truth(corpus, "got10k")[f"{split}/{name}"]
            folder = root / name
            lines = [
                list(map(float, line.split(",")))
                for line in (folder / "groundtruth.txt").read_text().split()
            ]
            labels = {
                label: list(map(int, (folder / f"{label}.label").read_text().split()))
                for label in ("absence", "cover", "cut_by_image")
            }
            meta = (folder / "meta_info.ini").read_text()
            assert meta.startswith("[METAINFO]\n")
            assert "resolution: (160, 96)\n" in meta
            for t, (x, y, w, h) in enumerate(lines):
                assert (folder / f"{t + 1:08d}.jpg").exists()
                there = entry["boxes"][t] is not None
                assert labels["absence"][t] == (not there)
                if there:
                    assert [x - 1, y - 1, x - 1 + w, y - 1 + h] == entry["boxes"][t]
                if name != zero:
                    assert (labels["cover"][t] > 0) == there
            if name == zero:
                assert not any(labels["cover"])
            if name == minus:
                assert [-1.0] * 4 in lines


def test_refsav(corpus: Path) -> None:
    root = corpus / "refsav"
    rows = json.loads((root / "Ref-SAV.json").read_text())
    for name, row in rows.items():
        assert row["video_path"] == f"sav_000/sav_train/sav_000/{name}.mp4"
        folder = root / "sam_v_full" / "sav_train" / "sav_000"
        data = json.loads((folder / f"{name}_manual.json").read_text())
        assert n_frames(folder / f"{name}.mp4") == data["video_frame_count"] == 22
        assert len(data["masklet"]) == 6  # every 4th of 22 frames
        assert isinstance(data["video_frame_count"], float)
        entries = truth(corpus, "refsav")[f"train/{name}"]
        for key, described in row["objects"].items():
            if int(key) >= data["masklet_num"]:
                assert name == video(corpus, "refsav", "object_out_of_range")
                continue
            [entry] = [e for e in entries if e["expression"] == described["formated"]]
            for k, frame in enumerate(data["masklet"]):
                exact = entry["masks"][4 * k]
                if exact is None:
                    assert rle_area(frame[int(key)]) == 0
                else:
                    assert frame[int(key)]["counts"] == exact
        seen = [[rle_area(rle) > 0 for rle in frame] for frame in data["masklet"]]
        assert data["masklet_frame_count"] == np.sum(seen, axis=0).tolist()
