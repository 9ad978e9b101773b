"""A data root that is nearly right: each of the seven corpora, a level off, misnamed, in archives, of another version."""

import shutil
from pathlib import Path

import pytest

from pipeline.sources import SOURCES
from pipeline.sources.base import DataRoot, load_source, need_split
from pipeline.sources.hints import ANNOTATIONS, explain, right_level

CHILDREN = {
    "hcstvg": "video",
    "vid_sentence": "data/ILSVRC/Data",
    "a2d": "Release",
    "lasot": "cat",
    "mevis": "train",
    "got10k": "train",
    "refsav": "sam_v_full",
}
GRANDCHILDREN = {
    "hcstvg": "video/part_1",
    "vid_sentence": "data/ILSVRC/Data/VID",
    "a2d": "Release/clips320H",
    "lasot": "cat/cat-2",
    "mevis": "train/JPEGImages",
    "got10k": "train/GOT-10k_Train_000022",
    "refsav": "sam_v_full/sav_train",
}
LISTS = "data/ILSVRC/Data/VID/annSamples/"


def said(source: str, root: Path, split: str = "") -> tuple[str, list[str]]:
    """The first line, and those that say what to try."""
    text = explain(load_source(source), DataRoot(root), split)
    assert text.endswith(f"expected:\n{SOURCES[source].expected.strip()}")
    lines = text.splitlines()
    assert lines[1].startswith("found: ")
    return lines[0], [line.removeprefix("try: ") for line in lines if line.startswith("try: ")]


@pytest.mark.parametrize("source", SOURCES)
def test_the_right_level_is_named_from_one_and_two_levels_above_and_below(corpus, tmp_path, source):
    place = tmp_path / "x" / "y" / source
    place.parent.mkdir(parents=True)
    shutil.copytree(corpus / source, place / "it")
    has = ", ".join(load_source(source).available(DataRoot(place / "it")))
    for root, where in ((place, "one level down"), (place.parent, "two levels down")):
        if not load_source(source).available(
            DataRoot(root)
        ):  # some find their own name one level down
            assert said(source, root)[1] == [
                f"--data-root {place / 'it'}   ({where}; it has {has})"
            ]
    for child in (CHILDREN[source], GRANDCHILDREN[source]):
        assert not load_source(source).available(DataRoot(place / "it" / child))
        first, tries = said(source, place / "it" / child)
        assert first == f"no {source} annotations under {place / 'it' / child}."
        up = Path(tries[0].removeprefix("--data-root ").split("   ")[0])
        assert load_source(source).available(DataRoot(up))
        assert place in up.parents
        assert " up; it has " in tries[0]


@pytest.mark.parametrize("source", SOURCES)
def test_archives_that_are_not_unpacked(tmp_path, source):
    root = tmp_path / "alone" / "deep" / source
    (root / "parts").mkdir(parents=True)
    for name in ("data.zip", "parts/one.tar.gz"):
        (root / name).write_bytes(b"")
    assert said(source, root)[1] == [
        f"unpacking data.zip, parts/one.tar.gz: cd {root} && unzip data.zip"
    ]
    text = explain(load_source(source), DataRoot(root / "data.zip"))
    assert text.startswith(f"the data root {root / 'data.zip'} is an archive: unpack it")


@pytest.mark.parametrize(
    ("source", "moves", "expected"),
    [
        (
            "hcstvg",
            {
                "anno_v2/train_v2.json": "anno_v2/train_v2 (1).json",
                "anno_v2/val_v2.json": "anno_v2/x",
            },
            "renaming anno_v2/train_v2 (1).json: it may be anno_v2/train_v2.json",
        ),
        (
            "hcstvg",
            {"anno_v2/train_v2.json": "anno_v2/train_v3.json", "anno_v2/val_v2.json": "anno_v2/x"},
            "the other version: anno_v2/train_v3.json looks like one of anno_v2/train_v2.json, which is read",
        ),
        (
            "hcstvg",
            {"anno_v2/train_v2.json": "train.json", "anno_v2/val_v2.json": "x"},
            "renaming train.json: it may be anno_v2/train_v2.json",
        ),
        (
            "hcstvg",
            {"anno_v2/train_v2.json": "x", "anno_v2/val_v2.json": "y"},
            "another split: anno_v2/query_v2.json is captions of the test split, which has no boxes",
        ),
        (
            "vid_sentence",
            {
                f"{LISTS}train_ann_list_v2.txt": f"{LISTS}train_ann_list.txt",
                f"{LISTS}val_ann_list_v2.txt": "x",
            },
            f"the other version: {LISTS}train_ann_list.txt looks like one of {LISTS}train_ann_list_v2.txt, which is read",
        ),
        (
            "vid_sentence",
            {
                f"{LISTS}train_ann_list_v2.txt": f"{LISTS}train_ann_list_v2.txt.txt",
                f"{LISTS}val_ann_list_v2.txt": "x",
            },
            f"renaming {LISTS}train_ann_list_v2.txt.txt: it may be {LISTS}train_ann_list_v2.txt",
        ),
        (
            "a2d",
            {"text_annotations/a2d_annotation.txt": "text_annotations/a2d_anotation.txt"},
            "renaming text_annotations/a2d_anotation.txt: it may be text_annotations/a2d_annotation.txt",
        ),
        (
            "mevis",
            {"train/meta_expressions.json": "train/meta_expression.json", "valid_u": "valid"},
            "renaming train/meta_expression.json: it may be train/meta_expressions.json",
        ),
        (
            "mevis",
            {"train": "x", "valid_u": "valid"},
            "another split: valid/ is a split without masks; train and valid_u have them",
        ),
        ("got10k", {"train": "Train", "val": "x"}, "renaming Train/: it may be train"),
        (
            "got10k",
            {"train": "x", "val": "test"},
            "another split: test/ is a split with a box for the first frame only; train and val have all",
        ),
        (
            "refsav",
            {"Ref-SAV.json": "ref_sav.json"},
            "renaming ref_sav.json: it may be Ref-SAV.json",
        ),
        (
            "refsav",
            {"Ref-SAV.json": "sam_v_final_v2.json"},
            "the other version: sam_v_final_v2.json looks like one of sam_v_final_v3.json, which is read",
        ),
    ],
)
def test_misnamed_misplaced_and_of_another_version(altered, source, moves, expected):
    root = altered(source, moves)
    assert not load_source(source).available(DataRoot(root))
    assert expected in said(source, root)[1]


@pytest.mark.parametrize(
    ("source", "moves", "has", "expected"),
    [
        (
            "lasot",
            {"testing_set.txt": "test_set.txt"},
            "all",
            "renaming test_set.txt: it may be testing_set.txt",
        ),
        (
            "a2d",
            {"Release/videoset.csv": "Release/videoset (1).csv"},
            "all",
            "renaming Release/videoset (1).csv: it may be Release/videoset.csv",
        ),
        (
            "hcstvg",
            {"anno_v2/train_v2.json": "annos/hcstvg_v1/train.json", "anno_v2/val_v2.json": "x"},
            "v1_train",
            "--split v1_train",
        ),
    ],
)
def test_a_split_that_is_not_there(altered, source, moves, has, expected):
    root = altered(source, moves)
    first, tries = said(source, root, "train")
    assert first == f"{source} has no split train under {root}: it has {has}."
    assert expected in tries
    with pytest.raises(ValueError, match=f"no split 'train'.*found only {has}"):
        need_split(load_source(source), DataRoot(root), "train")


def test_the_root_of_another_source(altered):
    root = altered("hcstvg", {})
    assert said("mevis", root)[1] == [
        "hcstvg instead of mevis: this is its layout, with train, val"
    ]


def test_a_root_that_does_not_exist_has_a_neighbour_of_a_like_name(altered):
    root = altered("hcstvg", {})
    text = explain(load_source("hcstvg"), DataRoot(root.parent / "HC-STVG" / "video"))
    assert text.splitlines() == [
        f"the data root {root.parent / 'HC-STVG' / 'video'} does not exist.",
        f"found: {root.parent}, with hcstvg",
        f"try: --data-root {root}",
    ]


def test_annotations_without_their_videos_lead_to_the_folder_above(altered):
    root = altered("hcstvg", {})
    assert load_source("hcstvg").available(DataRoot(root / "anno_v2"))
    assert right_level(load_source("hcstvg"), DataRoot(root / "anno_v2")) == root
    assert right_level(load_source("hcstvg"), DataRoot(root)) is None


def test_the_official_names_are_those_that_the_sources_read(corpus):
    """Or a rename would be suggested that helps nobody."""
    for source, names in ANNOTATIONS.items():
        assert any((corpus / source / name).exists() for name in names), source


def test_a_huge_folder_does_not_take_long(tmp_path, monkeypatch):
    import pipeline.sources.hints as hints

    for i in range(120):
        (tmp_path / "alone" / "deep" / "big" / f"{i:03d}").mkdir(parents=True)
        (tmp_path / "alone" / "deep" / "big" / f"{i:03d}" / "a.jpg").touch()
    looked = []
    monkeypatch.setattr(
        hints, "_listdir", lambda path, real=hints._listdir: looked.append(path) or real(path)
    )
    text = explain(load_source("got10k"), DataRoot(tmp_path / "alone" / "deep" / "big"))
    assert "and 92+ more" in text
    assert len(looked) < 400
