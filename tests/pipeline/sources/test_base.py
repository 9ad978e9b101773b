import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sources import SOURCES
from pipeline.sources.base import (
    DataRoot,
    LastJSON,
    box_lines,
    clean,
    clip_key,
    digits,
    first_of,
    load_source,
    locate,
)
from pipeline.sources.json_text import json_members
from schemas.records import KEY, Planned, Quarantined, Reason

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.dictionaries(st.text(max_size=8), values, max_size=6),
    indent=st.sampled_from([None, 0, 1, "\t"]),
    escape=st.booleans(),
    bom=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_json_members_finds_what_json_loads_finds(tmp_path: Path, data, indent, escape, bom, chunk):
    text = json.dumps(data, indent=indent, ensure_ascii=escape)
    encoded = b"\xef\xbb\xbf" * bom + text.encode("utf-8", "surrogatepass")
    path = tmp_path / "one.json"
    path.write_bytes(encoded)
    found = {}
    for key, offset, size in json_members(path, chunk):
        found[key] = json.loads(encoded[offset : offset + size])
    assert found == data


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a"',
        '{"a":',
        '{"a":1',
        '{"a":1,',
        '{"a":1,}',
        '{"a" 1}',
        '{"a":tru}',
        '{"a":[1}',
        "nope",
    ],
)
def test_json_members_says_where_a_file_is_not_json(tmp_path: Path, text: str):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(Quarantined, match=r"bad\.json: .* at byte \d+") as caught:
        list(json_members(path, 2))
    assert caught.value.reason is Reason.ANNOTATION_INVALID


def test_json_members_does_not_overflow_the_stack_on_deep_nesting(tmp_path: Path):
    path = tmp_path / "deep.json"
    path.write_text('{"a":' + "[" * 200_000)
    with pytest.raises(Quarantined, match="nested too deep"):
        list(json_members(path))


def test_half_a_surrogate_pair_becomes_a_question_mark_and_whole_pairs_stay(make_root):
    root = make_root({"a.json": r'{"k\ud800": "\ud83d\ude00 \udc00"}'})
    assert root.read_json("a.json") == {"k?": "\U0001f600 ?"}
    assert [key for key, _, _ in root.json_members("a.json")] == ["k?"]


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "a/../../b", "", "a\0b"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str):
    with pytest.raises(Quarantined) as caught:
        DataRoot(tmp_path).file(path)
    assert caught.value.reason is Reason.UNSAFE_PATH
    assert not DataRoot(tmp_path).has(path)


def test_a_link_out_of_the_root_is_followed_only_if_asked_for(tmp_path: Path):
    (tmp_path / "outside.txt").write_text("x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(Quarantined, match="follow-links"):
        DataRoot(tmp_path / "root").file("link.txt")
    assert DataRoot(tmp_path / "root", follow_links=True).read_text("link.txt") == "x"


def test_a_missing_file_is_quarantined_by_name(tmp_path: Path):
    with pytest.raises(Quarantined, match=r"nothing\.txt: No such file") as caught:
        DataRoot(tmp_path).read_text("nothing.txt")
    assert caught.value.reason is Reason.ANNOTATION_MISSING


def test_walk_and_listdir_are_sorted_and_relative(make_root):
    root = make_root({"b/2.MP4": "", "b/1.mkv": "", "a/3.mp4": "", "a/notes.txt": ""})
    assert list(root.walk(".mp4", ".mkv")) == ["a/3.mp4", "b/1.mkv", "b/2.MP4"]
    assert root.listdir("a") == ["3.mp4", "notes.txt"]
    assert root.listdir("nowhere") == [] == root.listdir("../..")


def test_locate_finds_the_tree_one_folder_down(make_root):
    root = make_root({"LaSOT/split.json": "{}"})
    assert locate(root, ("", "LaSOT/"), ["split.json"]) == "LaSOT/"
    assert locate(root, ("", "other/"), ["split.json"]) == ""
    assert first_of(root, ["split.json", "LaSOT/split.json"]) == "LaSOT/split.json"


def test_clip_keys_are_safe_and_do_not_collide():
    names = ["a-1", "A-1", "a.1", "a/1", "ä" * 200, "ä" * 199, "x" * 300]
    keys = {clip_key("source", name) for name in names}
    assert len(keys) == len(names)
    assert all(KEY.fullmatch(key) and len(key) <= 110 for key in keys)
    assert clip_key("lasot", "train", "airplane-1", 0, 300) == "lasot-train-airplane-1-0-300"


def test_clean_changes_white_space_only():
    assert clean("  A  man,\twalking \n away. ") == "A man, walking away."


def test_digits_read_both_separators_and_refuse_anything_else():
    assert digits(b"0,1, 0\n", "f").tolist() == [0, 1, 0] == digits(b"0\r\n1\r\n0", "f").tolist()
    assert digits(b"8\n0\n", "f", highest=8).tolist() == [8, 0]
    for bad in (b"0,2", b"0,11", b"0.0", b"-1", b"a"):
        with pytest.raises(Quarantined, match="f: expected labels"):
            digits(bad, "f")


def test_box_lines_take_commas_or_blanks_and_refuse_short_rows():
    assert np.array_equal(box_lines("1,2,3,4\n\n5 6\t7 8\r\n", "f"), [[1, 2, 3, 4], [5, 6, 7, 8]])
    for bad in ("1,2,3\n", "1,2,3,x\n", "1,2,3,4\n1,2\n", ""):
        with pytest.raises(Quarantined, match="f: boxes are not rows of four numbers"):
            box_lines(bad, "f")


def test_last_json_reads_a_file_once_and_again_when_it_has_changed(
    make_root, monkeypatch: pytest.MonkeyPatch
):
    root, reads = make_root({"a.json": [1], "b.json": [2]}), []
    read_json = DataRoot.read_json
    monkeypatch.setattr(
        DataRoot, "read_json", lambda self, file: reads.append(file) or read_json(self, file)
    )
    last = LastJSON()
    assert [last.read(root, name) for name in ("a.json", "a.json", "b.json")] == [[1], [1], [2]]
    (root.path / "b.json").write_text("[3]")
    os.utime(root.path / "b.json", ns=(1, 1))
    assert last.read(root, "b.json") == [3]
    assert reads == ["a.json", "b.json", "b.json"]


def test_the_registry_has_the_seven_sources_in_the_order_of_the_paper():
    assert list(SOURCES) == ["hcstvg", "vid_sentence", "a2d", "lasot", "mevis", "got10k", "refsav"]
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.splits
        assert source.licence
        assert "<root>" in source.expected
        assert KEY.fullmatch(name)


def test_importing_the_sources_loads_no_heavy_library():
    code = "import pipeline.sources, sys; print([m for m in ('cv2', 'h5py', 'torch', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_load_source_takes_a_config_and_names_the_choices():
    assert load_source("lasot", '{"segments": 2}').config.model_dump()["segments"] == 2
    with pytest.raises(ValueError, match="unknown source 'nope': choose one of hcstvg"):
        load_source("nope")


@pytest.mark.parametrize("name", list(SOURCES))
def test_an_empty_root_has_no_splits_and_the_error_shows_the_expected_tree(
    name: str, tmp_path: Path
):
    source, root = load_source(name), DataRoot(tmp_path)
    assert source.available(root) == []
    with pytest.raises(ValueError, match=r"found no annotations\. Expected:\n<root>"):
        next(source.plan(root, source.splits[0]))


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("hcstvg", {"boxes": "tracked", "min_iou": 0.5, "masks": "segment"}),
        ("vid_sentence", {"boxes": "tracked", "masks": "segment"}),
        (
            "a2d",
            {"boxes": "tracked", "max_kept_frames": 20, "boxes_from_masks": True, "min_iou": 0.5},
        ),
        ("lasot", {"boxes": "tracked", "masks": "segment"}),
        ("mevis", {"boxes": "masks", "masks": "annotation", "fill_gaps": 5}),
        ("got10k", {"boxes": "annotation", "masks": "segment"}),
        ("refsav", {"boxes": "masks", "masks": "annotation", "fill_gaps": 0}),
    ],
)
def test_default_rules_are_those_of_appendix_a(name: str, rules: dict):
    assert rules.items() <= load_source(name).config.rules.model_dump().items()


def test_error_messages_do_not_tell_machines_or_processes_apart(tmp_path):
    message = f"Invalid data: '{DataRoot(tmp_path).path}/clips/a.mp4' [mov,mp4 @ 0x55706b2a3680] moov atom not found"
    assert (
        DataRoot(tmp_path).words(message)
        == "Invalid data: 'clips/a.mp4' [mov,mp4] moov atom not found"
    )


CP1252 = "a café sign".encode("cp1252")
WRONG_BYTES = {
    "hcstvg": ("anno_v2/train_v2.json", "train"),
    "vid_sentence": ("data/ILSVRC/Data/VID/annSamples/train_ann_list_v2.txt", "train"),
    "a2d": ("text_annotations/a2d_annotation.txt", "train"),
    "lasot": ("cat/cat-2/nlp.txt", "train"),
    "mevis": ("train/meta_expressions.json", "train"),
    "got10k": ("train/GOT-10k_Train_000022/meta_info.ini", "train"),
    "refsav": ("Ref-SAV.json", "train"),
}


@pytest.mark.parametrize("source", WRONG_BYTES)
def test_a_caption_that_is_not_utf_8_is_rejected_with_a_reason(source, corpus, altered):
    """In one of the many encodings of the West: kept with replacement characters it would be trained on."""
    root = altered(source, {})
    file, split = WRONG_BYTES[source]
    reader = load_source(source)
    captions = caption_words(reader, DataRoot(root), split)
    word = next(iter(captions.values())).split()[-1].encode()
    content = (root / file).read_bytes()
    assert word in content
    (root / file).write_bytes(content.replace(word, word[:-1] + b"\xe9"))
    problems = []
    for item in reader.plan(DataRoot(root), split):
        if not isinstance(item, Planned):
            problems.append(item.message)
            continue
        for referent in item.referents:
            try:
                reader.annotate(DataRoot(root), item.clip, referent)
            except Quarantined as problem:
                problems.append(problem.message)
            else:
                assert "\ufffd" not in referent.caption
    assert any("is not UTF-8 text" in message for message in problems)


def caption_words(reader, root: DataRoot, split: str) -> dict[str, str]:
    items = [item for item in reader.plan(root, split) if isinstance(item, Planned)]
    return {r.referent_id: r.caption for item in items for r in item.referents if r.caption}
