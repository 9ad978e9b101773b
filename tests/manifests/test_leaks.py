"""The leak check: what evaluation sets have too is found, for the stated reason, and nothing else is."""

import json
import random
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.references import read_references
from manifests.catalog import connect, query
from manifests.leaks import LOOKS, SURE, Known, check, found, keys, repeated, summary
from manifests.leaks import looks as looking
from manifests.leaks.looks import Footage, clips, dhash, look, of_video
from schemas.video.stored import encode_mp4
from tests.manifests.made import CAPTIONS, make_whole, pictures
from tests.model.evaluate import made as benchmarks

SOURCES = ("hcstvg", "lasot", "mevis", "a2d")
"""hcstvg and lasot: train; mevis valid_u and a2d test are evaluation splits. All four show the same video `../v.1`, but
lasot: `kite-3`."""


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return make_whole(tmp_path_factory.mktemp("leaks") / "out", SOURCES)


def leaks(out: Path, known: list[Known] = [], **words) -> set[tuple[str, str, str]]:  # noqa: B006
    """(level, source, evaluation set) of everything found."""
    with connect(out) as catalogue:
        check(catalogue, known, **words)
        return {(row["level"], row["source"], row["evaluation"]) for row in found(catalogue)}


def test_evaluation_splits_in_the_output_are_found(out):
    got = leaks(out)
    assert {row for row in got if row[0] == "held_out"} == {
        ("held_out", "mevis", "mevis valid_u"),
        ("held_out", "a2d", "a2d test"),
    }


def test_what_an_evaluation_split_of_the_output_shares_with_the_rest_is_found_and_not_itself(out):
    got = leaks(out)
    assert {(source, e) for level, source, e in got if level == "same_video"} == {
        ("hcstvg", "mevis valid_u"),
        ("hcstvg", "a2d test"),
        ("a2d", "mevis valid_u"),
        ("mevis", "a2d test"),
    }
    assert ("same_expression", "lasot", "a2d test") in got
    assert ("same_expression", "a2d", "a2d test") not in got


@pytest.mark.parametrize(
    ("known", "level", "source"),
    [
        (Known("lasot test", "kite-3"), "same_video", "lasot"),
        (Known("lasot test", "testing/kite-3.mp4"), "same_video", "lasot"),
        (Known("mevis valid", "x", "the RED square which -- moves"), "same_expression", "lasot"),
        (
            Known("mevis valid", "x", "the red square, which slowly moves"),
            "near_expression",
            "lasot",
        ),
    ],
)
def test_each_level_is_found(out, known, level, source):
    assert (level, source, known.evaluation) in leaks(out, [known])


def test_what_is_like_but_not_the_same_is_not_found(out):
    known = [
        Known("lasot test", "kite-30"),
        Known("lasot test", "kite-3b", "the blue circle that rests"),
        Known("lasot test", "x", "one"),
        Known("lasot test", "y", ""),
    ]
    assert not {row for row in leaks(out, known) if row[2] == "lasot test"}


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("3_AbCdEfGhIjK.mkv", "41_AbCdEfGhIjK.mp4", True),
        ("3_AbCdEfGhIjK.mkv", "3_abCdEfGhIjK.mkv", False),
    ],
)
def test_another_span_of_the_same_upload_is_found(out, tmp_path, ours, theirs, same):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out / "manifests", copy / "manifests")
    part = next((copy / "manifests" / "referents").glob("hcstvg-*"))
    table = pq.read_table(part)
    column = pa.array([ours] * table.num_rows)
    pq.write_table(
        table.set_column(table.schema.get_field_index("video_id"), "video_id", column), part
    )
    got = leaks(copy, [Known("hcstvg val", theirs)])
    assert (("same_upload", "hcstvg", "hcstvg val") in got) is same
    assert ("same_video", "hcstvg", "hcstvg val") not in got


def test_a_pair_of_referent_and_set_is_one_row_with_the_nearest_of_theirs(out):
    known = [Known("mevis valid", v, f"the red square, which {v} moves") for v in ("now", "then")]
    with connect(out) as catalogue:
        check(
            catalogue,
            [*known, Known("mevis valid", "z", "the red square which slowly but surely moves")],
            similarity=0.5,
        )
        rows = [
            r for r in found(catalogue) if (r["level"], r["source"]) == ("near_expression", "lasot")
        ]
    [row] = [r for r in rows if r["evaluation"] == "mevis valid"]
    assert (row["score"], row["matches"], row["theirs"]) == (
        5 / 6,
        3,
        "the red square, which then moves",
    )


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 1.0])
def test_near_expressions_are_exactly_those_of_all_pairs(out, similarity):
    """The filters of the join lose nothing: the same as comparing every text with every other."""
    rng = random.Random(7)
    vocabulary = [f"w{i}" for i in range(14)]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(2, 9))) for _ in range(160)]
    known = [Known(f"set {i % 3}", str(i), text) for i, text in enumerate(texts)]
    with connect(out) as catalogue:
        check(catalogue, known, similarity=similarity)
        near = catalogue.execute(
            "SELECT x.tokens, y.tokens, score FROM near JOIN texts x ON x.id = a "
            "JOIN texts y ON y.id = b"
        ).fetchall()
        sets = dict(
            catalogue.execute("SELECT array_to_string(tokens, ' '), origins FROM texts").fetchall()
        )
    want = set()
    for one, places in sets.items():
        for two, others in sets.items():
            a, b = set(one.split()), set(two.split())
            alone = len(places) == 1 and places == others
            if (
                one != two
                and min(len(a), len(b)) >= 4
                and len(a & b) / len(a | b) >= similarity - 1e-9
                and not alone
            ):
                want.add((one, two))
    assert {(" ".join(a), " ".join(b)) for a, b, _ in near} == want
    assert len(near) == len(want)
    assert similarity == 1.0 or want


def test_limits_that_make_no_sense_are_refused(out):
    with connect(out) as catalogue:
        for words in ({"similarity": 0.0}, {"similarity": 1.5}, {"distance": 9}):
            with pytest.raises(ValueError, match="must be in"):
                check(catalogue, **words)


def test_sources_that_share_something_are_named_both_ways(out):
    with connect(out) as catalogue:
        check(catalogue)
        rows = {(r["level"], r["source"], r["other"]): r for r in repeated(catalogue)}
    assert rows["same_expression", "hcstvg", "lasot"]["referents"] == 2
    assert ("same_expression", "lasot", "hcstvg") in rows
    assert ("same_video", "hcstvg", "a2d") in rows
    assert not [key for key in rows if key[0] == "same_video" and "lasot" in key]


def test_what_is_in_texts_is_not_sql(out):
    evil = "'); DROP TABLE referents; --"
    assert leaks(out, [Known(f"set {evil}", evil, evil)])
    assert query(out, "SELECT count(*) AS n FROM referents") == [{"n": 8}]


# --- pictures --------------------------------------------------------------------------------------------------------


def textured(seed: int, n: int = 20, size: tuple[int, int] = (96, 160)) -> np.ndarray:
    """Frames [T, H, W, 3] of a patchwork that pans."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(
        rng.integers(0, 255, (9, 40), np.uint8),
        (size[1] * 2, size[0]),
        interpolation=cv2.INTER_CUBIC,
    )
    return np.stack([np.repeat(wide[:, t : t + size[1], None], 3, 2) for t in range(n)])


def test_a_hash_survives_another_size_and_codec_and_tells_pictures_apart():
    def apart(a: int, b: int) -> int:
        return (a ^ b).bit_count()

    frame = textured(1)[0]
    large = cv2.resize(frame, (640, 384), interpolation=cv2.INTER_LINEAR)
    _, jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 60])
    grey = looking.picture(jpeg.tobytes(), "x.jpg")
    assert apart(dhash(frame), dhash(large)) <= 4
    assert apart(dhash(frame), dhash(grey)) <= 4
    assert apart(dhash(frame), dhash(textured(2)[0])) > 16
    assert dhash(np.full((50, 50, 3), 90, np.uint8)) == 0


def test_bits_say_whether_the_right_neighbour_is_brighter():
    ramp = np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1))
    assert dhash(ramp) == 2**64 - 1
    assert dhash(ramp[:, ::-1].copy()) == 0


def table(entries: dict[str, list[int]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"key": k, "frame": t, "hash": h} for k, hs in entries.items() for t, h in enumerate(hs)],
        LOOKS,
    )


def test_looks_at_most_four_bits_apart_are_alike_whichever_bits_they_are(out):
    rng = random.Random(3)
    base = [rng.getrandbits(64) for _ in range(2)]
    theirs = {
        f"{apart} {i}/v": [h ^ sum(1 << b for b in rng.sample(range(64), apart)) for h in base]
        for apart in (0, 1, 4, 5, 9)
        for i in range(20)
    }
    got = leaks(out, looks=table({"lasot-train-v": base}), known_looks=table(theirs))
    alike = {evaluation for level, _, evaluation in got if level == "same_pictures"}
    assert alike == {f"{apart} {i}" for apart in (0, 1, 4) for i in range(20)}


def test_one_frame_alike_of_many_is_chance_and_flat_frames_say_nothing(out):
    mine = "lasot-train-v"
    base = [0x123456789ABCDEF0, 0xF0E1D2C3B4A59687, 0x0F1E2D3C4B5A6978]
    one = leaks(
        out, looks=table({mine: base}), known_looks=table({"lasot test/k": [base[0], 1 << 60, 77]})
    )
    flat = leaks(
        out, looks=table({mine: [0, 1, 0]}), known_looks=table({"lasot test/k": [0, 0, 1]})
    )
    assert not {row for row in one | flat if row[0] == "same_pictures"}


def test_clips_are_looked_at_once_and_a_changed_one_again(out, tmp_path):
    cache = tmp_path / "report" / "looks.parquet"
    with connect(out) as catalogue:
        footage, blind = clips(catalogue, out)
    assert (len(footage), blind) == (4, 0)
    first, problems = look(footage, cache)
    assert problems == {}
    assert set(first["key"].to_pylist()) == {one.key for one in footage}
    never = [Footage(one.key, one.stamp, lambda: 1 / 0) for one in footage[1:]]
    changed = Footage(footage[0].key, "another", lambda: [(5, textured(4)[0])])
    second, problems = look([changed, *never], cache)
    assert problems == {}
    rows = second.to_pylist()
    assert [row for row in rows if row["key"] == changed.key] == [
        {"key": changed.key, "frame": 5, "hash": dhash(textured(4)[0])}
    ]
    assert [r for r in rows if r["key"] != changed.key] == [
        r for r in first.to_pylist() if r["key"] != changed.key
    ]


def test_a_clip_that_cannot_be_read_is_named_and_costs_no_other(tmp_path):
    good = Footage("good", "1", lambda: [(0, textured(1)[0])])
    file = tmp_path / "broken.mp4"
    file.write_bytes(b"no video")
    seen, problems = look(
        [Footage("bad", "1", lambda: of_video(file)), good], tmp_path / "looks.parquet"
    )
    assert seen["key"].to_pylist() == ["good"]
    assert "not a video" in problems["bad"]


def test_the_same_video_in_two_sources_is_found_by_its_pictures(out, tmp_path):
    """made.py shows the same squares everywhere; stored as mp4 in three sources and as JPEGs in A2D."""
    with connect(out) as catalogue:
        footage, _ = clips(catalogue, out)
        seen, _ = look(footage, tmp_path / "looks.parquet")
        check(catalogue, looks=seen)
        pairs = {
            (r["source"], r["other"]) for r in repeated(catalogue) if r["level"] == "same_pictures"
        }
        held = {r["source"] for r in found(catalogue) if r["level"] == "same_pictures"}
    assert ("lasot", "mevis") in pairs
    assert {"hcstvg", "lasot"} <= held


# --- evaluation sets on disk -----------------------------------------------------------------------------------------


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def sets(folder: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    named: dict[str, dict[str, tuple[str, ...]]] = {}
    for one in read_references(folder):
        named.setdefault(one.evaluation, {})[one.video] = one.texts
    return named


def test_got10k_val_and_test_are_read_and_train_is_not(tmp_path):
    for split in ("Train", "Val", "Test"):
        name = f"GOT-10k_{split}_000001"
        folder = tmp_path / "GOT-10k" / split.lower() / name
        write(folder.parent / "list.txt", name)
        write(folder / "groundtruth.txt", "1,1,9,9\n")
        write(
            folder / "meta_info.ini",
            "[METAINFO]\nobject_class: bear\nmotion_class: walking\nmotion_adverb: slowly\n",
        )
    assert sets(tmp_path) == {
        "got10k val": {"GOT-10k_Val_000001": ("a bear is slowly walking",)},
        "got10k test": {"GOT-10k_Test_000001": ()},
    }


def test_lasot_test_is_read_from_the_official_annotations(shared, tmp_path):
    """`split.json` and the toolkit's flattened files: 280 test sequences with their phrases."""
    import tarfile

    write(tmp_path / "split.json", (shared / "data" / "lasot" / "split.json").read_bytes())
    with tarfile.open(shared / "data" / "lasot" / "lasot_annotations.tar.gz") as tar:
        tar.extractall(
            tmp_path,
            [m for m in tar.getmembers() if m.name.endswith("/airplane-1.txt")],
            filter="data",
        )
    found_sets = sets(tmp_path)
    assert set(found_sets) == {"lasot test"}
    assert len(found_sets["lasot test"]) == 280
    assert found_sets["lasot test"]["airplane-1"] == ("white airplane landing on ground",)


def test_hcstvg_test_captions_and_val_are_read(tmp_path):
    entry = {
        "bbox": [[1, 1, 9, 9]],
        "st_frame": 1,
        "img_num": 40,
        "img_size": [96, 160, 3],
        "English": "The man sits.",
    }
    write(tmp_path / "anno_v2" / "val_v2.json", json.dumps({"3_abcdefghijk.mp4": entry}))
    write(
        tmp_path / "anno_v2" / "query_v2.json",
        json.dumps({"4_abcdefghijk.mp4": {"English": " The  man runs. "}}),
    )
    assert sets(tmp_path) == {
        "hcstvg val": {"3_abcdefghijk.mp4": ("The man sits.",)},
        "hcstvg test": {"4_abcdefghijk.mp4": ("The man runs.",)},
    }


META = {
    "videos": {
        "0123456789": {
            "frames": ["00000"],
            "expressions": {"0": {"exp": "a cat"}, "1": {"exp": "a  cat"}},
        }
    }
}


def test_ref_youtube_vos_and_davis_are_told_apart_by_their_names(tmp_path):
    write(tmp_path / "y" / "meta_expressions" / "valid" / "meta_expressions.json", json.dumps(META))
    davis = {
        "videos": {
            "dogs": {"frames": ["00000"], "expressions": {"0": {"exp": "a dog", "obj_id": 1}}}
        }
    }
    for split in ("valid", "train"):
        write(
            tmp_path / "d" / "meta_expressions" / split / "meta_expressions.json", json.dumps(davis)
        )
    assert sets(tmp_path / "y") == {"ref-ytvos val": {"0123456789": ("a cat",)}}
    assert sets(tmp_path / "d") == {
        "ref-davis17 val": {"dogs": ("a dog",)},
        "ref-davis17 train": {"dogs": ("a dog",)},
    }


@pytest.mark.parametrize(
    ("make", "evaluation", "videos"),
    [
        (benchmarks.make_mevis, "mevis valid_u", {"clip0", "clip1"}),
        (benchmarks.make_vidstg, "vidstg test", {"1000", "1001"}),
        (benchmarks.make_ref_davis, "ref-davis17 val", {"dogs-scale", "motorbike"}),
    ],
)
def test_the_benchmarks_layouts_are_read_with_their_pictures(tmp_path, make, evaluation, videos):
    make(tmp_path)
    references = [one for one in read_references(tmp_path) if one.evaluation == evaluation]
    assert {one.video for one in references} == videos
    assert all(one.texts for one in references)
    footage = [one.footage() for one in references]
    seen, problems = look([one for one in footage if one], tmp_path / "looks.parquet")
    assert problems == {}
    assert set(seen["key"].to_pylist()) == {f"{evaluation}/{video}" for video in videos}


def test_nothing_to_compare_with_is_an_error_that_lists_what_is_read(tmp_path):
    write(tmp_path / "readme.txt", "")
    with pytest.raises(
        ValueError, match=r"no evaluation set .* Looked for: .*lasot.*MeViS valid_u"
    ):
        read_references(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read_references(tmp_path / "nowhere")


def test_names_in_a_list_cannot_lead_out_of_the_folder(tmp_path):
    write(tmp_path / "secret" / "00001.jpg", b"x")
    root = tmp_path / "root"
    write(root / "ImageSets" / "2017" / "train.txt", "../../../../secret\n")
    [one] = read_references(root)
    assert one.footage() is None


# --- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked(out, tmp_path_factory):
    """`sparrow stats` against MeViS valid_u as somebody else has it, pictures too: out, JSON, exclusion list."""
    against = tmp_path_factory.mktemp("against")
    write(against / "LaSOT" / "testing_set.txt", "kite-3")
    folder = against / "LaSOT" / "kite" / "kite-3"
    for name, text in (
        ("nlp", "the red square, which slowly moves"),
        ("full_occlusion", "0"),
        ("out_of_view", "0"),
        ("groundtruth", "1,1,9,9"),
    ):
        write(folder / f"{name}.txt", text)
    for t, frame in enumerate(pictures((97, 161))):
        write(folder / "img" / f"{t + 1:08d}.jpg", cv2.imencode(".jpg", frame)[1].tobytes())
    listed = against / "exclude.txt"
    words = [
        "stats",
        str(out),
        "--against",
        str(against),
        "--videos",
        "--leaks-out",
        str(listed),
        "--json",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout), listed


def test_the_verb_prints_json_alone_and_saves_the_same(checked):
    out, report, _ = checked
    assert [row["source"] for row in report["statistics"]] == [*sorted(SOURCES), "all"]
    saved = json.loads((out / "report" / "leaks.json").read_text())
    assert saved["rows"] == report["leaks"]["rows"]
    assert saved["against"] == ["lasot test (1 videos)"]
    levels = {
        row["level"]
        for row in saved["rows"]
        if (row["evaluation"], row["source"]) == ("lasot test", "lasot")
    }
    assert levels == {"same_video", "same_pictures", "near_expression"}
    lines = (out / "report" / "leaks.csv").read_text().splitlines()
    assert lines[0].startswith("level,referent_id,")
    assert len(lines) - 1 == sum(row["referents"] for row in saved["rows"])


def test_the_list_is_one_that_exclude_takes_and_has_no_mere_expressions(checked):
    from pipeline.exclude import read_exclude

    out, report, listed = checked
    with connect(out) as catalogue:
        check(catalogue, [Known("lasot test", "kite-3")])
        want = keys(catalogue, SURE)
    assert "lasot-train-v-0" in want
    assert set(read_exclude(listed).keys) >= set(want)
    assert report["leaks"]["listed"] == len(read_exclude(listed).keys)
    assert "expression" not in listed.read_text()


def test_the_report_tells_of_the_check(checked):
    out, _, _ = checked
    page = (out / "report" / "index.html").read_text()
    assert "same pictures" in page
    assert "lasot test (1 videos)" in page
    assert "<th>has like</th>" in page


@pytest.mark.parametrize("content", ["", "[]", "{", '{"rows": [{}]}', '{"rows": 3, "repeats": []}'])
def test_a_check_whose_file_is_damaged_is_none(tmp_path, content):
    from flows.stats import saved_check

    assert saved_check(tmp_path) is None
    write(tmp_path / "report" / "leaks.json", content)
    assert saved_check(tmp_path) is None


def test_tables_for_people_and_errors_in_one_line(out):
    from flows.cli import main  # noqa: F401 - the runner sees exceptions as they are

    table = CliRunner().invoke(app, ["stats", str(out), "--source", "mevis"])
    assert table.exit_code == 0
    assert "mevis" in table.stdout
    assert "a2d" not in table.stdout
    for words, message in (
        (["--source", "got10k"], "holds nothing of got10k; it has a2d, hcstvg"),
        (["--level", "nonsense"], "choose one of held_out"),
    ):
        failed = CliRunner().invoke(app, ["stats", str(out), *words])
        assert message in str(failed.exception)


def test_examples_and_captions_are_those_of_the_output(out):
    with connect(out) as catalogue:
        check(catalogue)
        assert {row["example"] for row in summary(catalogue)} <= set(CAPTIONS)


def test_videos_are_read_at_every_twelfth_frame(tmp_path):
    file = tmp_path / "v.mp4"
    file.write_bytes(encode_mp4(textured(1, 30), 10.0))
    assert [t for t, _ in of_video(file)] == [0, 12, 24]
