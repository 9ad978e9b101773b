"""Layouts of the seven datasets that are in circulation, as moves of the files of the official one.

A move is `beginning of a path -> another beginning`; None leaves the files out. `same` maps the splits that are found
to those of the official layout; `hint` is what is advised where nothing, or nothing right, can be found.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layout:
    source: str
    name: str
    moves: dict[str, str | None]
    same: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    hint: str = ""


BOTH = {"train": "train", "val": "val"}
MEVIS = {"train": "train", "valid_u": "valid_u"}
LASOT = {"train": "train", "test": "test"}
A2D = {"train": "train", "test": "test"}
TRAIN = {"train": "train"}
VID = "data/ILSVRC/"
SAV = "sam_v_full/sav_train/"

LAYOUTS = [
    Layout(
        "hcstvg",
        "names of TubeDETR",
        {
            "anno_v2/train_v2.json": "annotations/trainv2.json",
            "anno_v2/val_v2.json": "annotations/valv2.json",
        },
        BOTH,
    ),
    Layout(
        "hcstvg",
        "v2 of CG-STVG and TA-STVG",
        {
            "anno_v2/train_v2.json": "annos/hcstvg_v2/train.json",
            "anno_v2/val_v2.json": "annos/hcstvg_v2/test.json",
            "anno_v2/query_v2.json": None,
            "video/part_1/": "v2_video/",
        },
        BOTH,
    ),
    Layout(
        "hcstvg",
        "v2 where v1 belongs",
        {"anno_v2/train_v2.json": "annos/hcstvg_v1/train.json", "anno_v2/": None},
        hint="has the entries of HC-STVG v2",
    ),
    Layout(
        "hcstvg",
        "v2 without a folder of its version",
        {"anno_v2/train_v2.json": "train.json", "anno_v2/": None},
        hint="renaming train.json: it may be anno_v2/train_v2.json",
    ),
    Layout("hcstvg", "converted videos", {"video/part_1/2_": "video/2_"}, BOTH),
    Layout(
        "hcstvg",
        "a split zip of the videos",
        {"video/": None},
        files={"video/video.zip.001": "", "video/video.zip.002": ""},
        hint="cat video.zip.* > video.zip && unzip video.zip",
    ),
    Layout(
        "hcstvg",
        "another split zip",
        {"video/": None},
        files={"video/v.z01": "", "video/v.zip": ""},
        hint="zip -s 0 v.zip --out v-whole.zip && unzip v-whole.zip",
    ),
    Layout("vid_sentence", "ILSVRC as root", {VID: ""}, BOTH),
    Layout("vid_sentence", "one folder higher", {VID: f"VID-Sentence/{VID}"}, BOTH),
    Layout("a2d", "other name of the clips", {"Release/clips320H": "Release/CLIPS320"}, A2D),
    Layout("a2d", "one folder higher", {"": "a2d_sentences/"}, A2D),
    Layout(
        "a2d",
        "h5 files still packed",
        {"text_annotations/a2d_annotation_with_instances/": None, "Release/clips320H/": None},
        files={"text_annotations/a2d_annotation_with_instances.zip": ""},
        hint="unzip a2d_annotation_with_instances.zip",
    ),
    Layout("lasot", "without classes", {"cat/": "", "coin/": ""}, LASOT),
    Layout("lasot", "one folder higher", {"": "LaSOTBenchmark/"}, LASOT),
    Layout(
        "lasot",
        "list of training sequences only",
        {"testing_set.txt": None},
        TRAIN,
        files={"training_set.txt": "cat-2\n"},
    ),
    Layout(
        "lasot",
        "both lists",
        {},
        LASOT,
        files={"training_set.txt": "cat-2\n"},
    ),
    Layout("mevis", "one folder higher", {"": "MeViS_release/"}, MEVIS),
    Layout(
        "mevis",
        "second version",
        {
            "train/meta_expressions.json": "train/meta_expressions_v2.json",
            "valid_u/meta_expressions.json": "valid_u/meta_expressions_v2.json",
        },
        MEVIS,
    ),
    Layout(
        "mevis",
        "pictures still packed",
        {"train/JPEGImages/": None, "valid_u/JPEGImages/": None},
        files={"train/JPEGImages.tar": ""},
        hint="tar -xf JPEGImages.tar",
    ),
    Layout(
        "got10k",
        "full download",
        {"train/": "full_data/train_data/", "val/": "full_data/val_data/"},
        BOTH,
    ),
    Layout(
        "got10k",
        "full download with folders of parts",
        {
            "train/list.txt": "full_data/train_data/list.txt",
            "train/": "full_data/train_data/GOT-10k_Train_split_01/",
            "val/": "full_data/val_data/",
        },
        BOTH,
    ),
    Layout(
        "got10k",
        "folders of parts without a list",
        {
            "train/list.txt": None,
            "val/list.txt": None,
            "train/GOT-10k_Train_000024": "train/GOT-10k_Train_split_02/GOT-10k_Train_000024",
            "train/": "train/GOT-10k_Train_split_01/",
        },
        BOTH,
    ),
    Layout("refsav", "old name of the text file", {"Ref-SAV.json": "sam_v_final_v3.json"}, TRAIN),
    Layout("refsav", "below video_datas", {"": "video_datas/"}, TRAIN),
    Layout(
        "refsav", "archive unpacked in its folder", {SAV: "sam_v_full/sav_000/sav_train/"}, TRAIN
    ),
    Layout("refsav", "archive beside the text file", {SAV: "sav_train/"}, TRAIN),
    Layout("refsav", "content of the archive only", {SAV: "sam_v_full/"}, TRAIN),
    Layout(
        "refsav",
        "archive still packed",
        {SAV: None},
        files={"sam_v_full/sav_000.tar": ""},
        hint="tar -xf sav_000.tar",
    ),
]
