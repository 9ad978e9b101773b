"""Noise in words: rates are of the frames that they name, and a clean output says nothing."""

import duckdb
import pytest

from manifests.noise import noise, noise_words, sample_noise_words


def catalogue(*rows: tuple) -> duckdb.DuckDBPyConnection:
    made = duckdb.connect()
    kinds = "VARCHAR, corruption VARCHAR, corruption_level FLOAT, n_corrupted INT"
    made.execute(f"CREATE TABLE referents (source {kinds}, n_corruptible INT, n_switchable INT)")
    for row in rows:
        made.execute("INSERT INTO referents VALUES (?, ?, ?, ?, ?, ?)", row)
    return made


SWITCHED = [
    ("mevis", "id_switch", 0.05, 3, 60, 40),
    ("mevis", "id_switch", 0.05, 1, 20, 1),
    ("lasot", "id_switch", 0.05, 0, 100, 0),
    ("a2d", "id_switch", 0.05, 0, 4, 4),  # a twentieth of four frames is none
]


@pytest.mark.parametrize(
    ("rows", "source", "words"),
    [
        (
            SWITCHED,
            None,
            "id_switch 5 %: 5.0 % of frames in 2 of 4 samples, 2.2 % of all frames; "
            "1 has no other target to switch to",
        ),
        (SWITCHED, "mevis", "id_switch 5 %: 5.0 % of frames in 2 of 2 samples"),
        (
            SWITCHED[2:3] * 2,
            None,
            "id_switch 5 %: no frame of 2 samples; 2 have no other target to switch to",
        ),
        (
            [("a2d", "jitter", 0.05, 9, 10, None)],
            None,
            "jitter 0.05: 90.0 % of frames in 1 of 1 samples",
        ),
        (
            [("a2d", "dropout", 0.5, 5, 10, None)],
            None,
            "dropout 50 %: 50.0 % of frames in 1 of 1 samples",
        ),
    ],
)
def test_words_of_a_corpus(rows, source, words):
    with catalogue(*rows) as made:
        [row] = noise(made, source)
    assert noise_words(row) == words


def test_each_kind_and_level_has_a_row_and_clean_samples_none():
    rows = [
        ("a2d", "none", None, 0, 10, None),
        ("a2d", "jitter", 0.1, 10, 10, None),
        ("a2d", "jitter", 0.2, 10, 10, None),
    ]
    with catalogue(*rows) as made:
        assert [(r["corruption"], r["level"], r["samples"]) for r in noise(made)] == [
            ("jitter", 0.1, 1),
            ("jitter", 0.2, 1),
        ]
    with catalogue(rows[0]) as made:
        assert noise(made) == []


def test_an_output_from_before_there_was_noise_is_clean():
    with duckdb.connect() as made:
        made.execute("CREATE TABLE referents AS SELECT 'a2d' AS source")
        assert noise(made) == []


def test_words_of_a_sample():
    columns = ("corruption", "corruption_level", "n_corrupted", "n_corruptible")
    row = dict(zip(columns, ("id_switch", 0.05, 3, 60), strict=True))
    assert sample_noise_words(row) == "id_switch 5 %, 3 of 60 frames"
    assert sample_noise_words(row | {"corruption": "none"}) == ""
    assert sample_noise_words({}) == ""
