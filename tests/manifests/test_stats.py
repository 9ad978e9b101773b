"""Statistics: the numbers are those that plain Python gets from what was put in."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.catalog import connect, query
from manifests.charts import bar, histogram, nice, spread
from manifests.stats import MEASURED, distributions, measure, statistics
from tests.manifests.made import (
    AWAY,
    CAPTIONS,
    FRAMES,
    LOST,
    MASKED,
    SIZE,
    SIZES,
    boxes,
    make_whole,
)

SOURCES = ("hcstvg", "mevis", "refsav")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return make_whole(tmp_path_factory.mktemp("stats") / "out", SOURCES)


@pytest.fixture(scope="module")
def measured(out):
    with connect(out) as catalogue:
        measure(catalogue)
        yield statistics(catalogue), distributions(catalogue)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def kept_boxes(source: str, target: int) -> dict[int, np.ndarray]:
    lost = source not in MASKED and target == 0
    return {
        t: box
        for t, box in enumerate(boxes(target))
        if np.isfinite(box[0]) and not (lost and t == LOST)
    }


def expected(source: str) -> dict[str, float]:
    """The columns of `statistics`, counted by hand from tests/manifests/made.py."""
    height, width = SIZES.get(source, SIZE)
    areas, motions = [], []
    for target in (0, 1):
        kept = kept_boxes(source, target)
        areas.append(
            np.mean([(b[2] - b[0]) * (b[3] - b[1]) / (height * width) for b in kept.values()])
        )
        ways = []
        for t, box in kept.items():
            if t - 1 in kept:
                before = kept[t - 1]
                way = math.dist((box[:2] + box[2:]) / 2, (before[:2] + before[2:]) / 2)
                ways.append(way / math.sqrt((before[2] - before[0]) * (before[3] - before[1])))
        motions.append(np.mean(ways))
    lost = source not in MASKED
    return {
        "videos": 1,
        "clips": 1,
        "referents": 2,
        "qa": 2,
        "words": np.mean([len(words(c)) for c in CAPTIONS]),
        "vocabulary": len({w for c in CAPTIONS for w in words(c)}),
        "clip_frames": FRAMES,
        "track_length": (FRAMES - len(AWAY) + FRAMES) / 2,
        "area": np.mean(areas),
        "motion": np.mean(motions),
        # made.py's annotation knows every frame; target 0 is away in AWAY.
        "occlusion": len(AWAY) / FRAMES / 2,
        "iou": 0.9,
        "kept_share": (2 * FRAMES - len(AWAY) - lost) / (2 * FRAMES),
        "quarantined": 0,
    }


def test_a_source_has_the_numbers_that_plain_python_counts(measured):
    rows = {row["source"]: row for row in measured[0]}
    assert list(rows) == [*SOURCES, "all"]
    for source in SOURCES:
        want = expected(source)
        assert {name: rows[source][name] for name in want} == pytest.approx(want, rel=1e-5)


def test_all_is_of_all_and_not_the_sum_of_what_does_not_add_up(measured):
    rows = {row["source"]: row for row in measured[0]}
    assert rows["all"]["referents"] == 6
    assert rows["all"]["vocabulary"] == rows["hcstvg"]["vocabulary"]  # the same captions everywhere
    assert rows["all"]["area"] == pytest.approx(np.mean([rows[s]["area"] for s in SOURCES]))


def test_the_view_has_the_same_rows(out, measured):
    for row, seen in zip(measured[0], query(out, "FROM statistics"), strict=True):
        assert seen == pytest.approx(row)


def test_one_source_alone(out, measured):
    with connect(out) as catalogue:
        measure(catalogue, source="mevis")
        assert statistics(catalogue, source="mevis") == [
            row for row in measured[0] if row["source"] == "mevis"
        ]


def test_a_sample_of_tracks_leaves_the_counts_and_is_always_the_same(out):
    seen = []
    for _ in range(2):
        with connect(out) as catalogue:
            measure(catalogue, most=1)
            seen.append(statistics(catalogue))
            looked = catalogue.execute(
                "SELECT source, count(area) FROM measured GROUP BY 1"
            ).fetchall()
        assert dict(looked) == dict.fromkeys(SOURCES, 1)
    assert seen[0] == seen[1]
    assert [row["referents"] for row in seen[0]] == [2, 2, 2, 6]


def test_a_source_of_which_nothing_is_left_has_a_row(out, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for table in ("referents", "clips", "qa", "tracks"):
        for part in (copy / "manifests" / table).glob("hcstvg-*"):
            part.unlink()
    rows = {row["source"]: row for row in query(copy, "FROM statistics")}
    assert (rows["hcstvg"]["referents"], rows["hcstvg"]["words"]) == (0, None)


def test_words_keep_apostrophes_and_hyphens_and_other_scripts(out):
    from manifests.catalog import WORDS

    with connect(out) as catalogue:
        [[found]] = catalogue.execute(
            f"SELECT {WORDS.format('$1')}", ["The man's T-shirt, bien sûr: 狗 2x!"]
        ).fetchall()
    assert found == ["the", "man's", "t-shirt", "bien", "sûr", "狗", "2x"]


def test_expressions_and_videos_that_several_sources_share(out):
    rows = query(out, "FROM expressions ORDER BY expression")
    assert [(r["expression"], r["referents"], r["sources"]) for r in rows] == [
        ("a blue one", 3, list(SOURCES)),
        ("the red square which moves", 3, list(SOURCES)),
    ]
    [video] = query(out, "FROM videos")
    assert video["splits"] == ["hcstvg-train", "mevis-valid_u", "refsav-train"]


def test_every_sample_is_in_one_bin(measured):
    for one in measured[1]:
        assert sum(sum(b.values()) for b in one.bins) == one.spread["all"][0] == 6, one.measure
    assert {one.measure.column for one in measured[1]} == {m.column for m in MEASURED}


def test_a_distribution_is_where_its_values_are(measured):
    [length] = [one for one in measured[1] if one.measure.column == "n_boxes"]
    assert (length.end, len(length.bins)) == (15, 15)  # a bin a frame
    assert length.bins[FRAMES - len(AWAY)] == length.bins[FRAMES] == dict.fromkeys(SOURCES, 1)
    [share] = [one for one in measured[1] if one.measure.column == "kept_share"]
    assert share.bins[-1] == dict.fromkeys(SOURCES, 1)  # 1.0 is in the last bin, not behind it
    n, low, middle, high = length.spread["mevis"]
    assert (n, middle) == (2, 11)
    assert low < middle < high


# --- charts ----------------------------------------------------------------------------------------------------------


def rects(svg: str) -> list[dict[str, str]]:
    return [dict(re.findall(r'(\w+)="([^"]*)"', rect)) for rect in re.findall(r"<rect [^>]*>", svg)]


def test_parts_of_a_bar_are_as_wide_as_their_share():
    found = rects(bar([("a", 1, "one"), ("b", 0, "none"), ("c", 3, "three")], 8))
    assert [(r["class"], float(r["x"]), float(r["width"])) for r in found] == [
        ("a", 0, 12.5),
        ("c", 12.5, 37.5),
    ]


def test_the_tallest_pile_is_as_high_as_the_chart():
    found = rects(histogram([[("a", 1, "")], [("a", 3, ""), ("b", 1, "")], []]))
    assert [float(r["height"]) for r in found] == [25, 75, 25]
    assert float(found[2]["y"]) == 0


def test_a_chart_of_nothing_is_no_error():
    assert rects(bar([], 0)) == rects(histogram([])) == rects(histogram([[]])) == []
    assert len(rects(spread("a", 0, 0, 0, 0, ""))) == 3


def test_titles_are_text_and_not_markup():
    assert "<b>" not in str(bar([("a", 1, "<b>&")], 1))


@given(st.floats(1e-9, 1e9))
def test_the_end_of_a_scale_is_never_below_the_value_and_not_far_above(value):
    assert value * (1 - 1e-9) <= nice(value) <= 1.7 * value
