"""The leak check: what an output shares with evaluation sets, and its own sources with each other.

What is looked for (`LEVELS`), from the surest to the weakest:

- held_out: the sample is of an official evaluation split.
- same_video: its video has the name of one of an evaluation set.
- same_upload: it is cut from the same YouTube upload as one (HC-STVG, A2D-Sentences).
- same_pictures: several of its frames look alike (64-bit difference hash, at most DISTANCE bits apart).
- same_expression: the same words in the same order.
- near_expression: nearly the same set of words (Jaccard index of at least SIMILARITY, four words or more).

An expression says little about a video ("a dog" is everywhere): the last two tell where to look, not what to drop.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from manifests.catalog import WORDS, rows_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LEVELS = (
    "held_out",
    "same_video",
    "same_upload",
    "same_pictures",
    "same_expression",
    "near_expression",
)
SURE = ("held_out", "same_video", "same_upload", "same_pictures")
"""Those that are about the video, and that an exclusion list holds unless told otherwise."""

HELD_OUT = {
    "hcstvg": ("val", "v1_test"),
    "vid_sentence": ("val", "test"),
    "a2d": ("test",),
    "lasot": ("test",),
    "mevis": ("valid_u",),
    "got10k": ("val",),
}
"""Splits of the sources that are official evaluation sets. (The paper's corpus takes VID-Sentence's all the same.)"""

SIMILARITY, DISTANCE, FEWEST_WORDS, FEWEST_FRAMES = 0.8, 4, 4, 2

_KNOWN = pa.schema(
    [("evaluation", pa.string()), ("video_id", pa.string()), ("caption", pa.string())]
)
LOOKS = pa.schema([("key", pa.string()), ("frame", pa.int32()), ("hash", pa.uint64())])
"""Difference hashes of frames. key: a clip_id, or `<evaluation>/<video>`."""


@dataclass(frozen=True, slots=True)
class Known:
    """One expression of an evaluation set, or one of its videos (then without one). evaluation: "<dataset> <split>"."""

    evaluation: str
    video: str
    expression: str = ""


def check(
    catalogue: "DuckDBPyConnection",
    known: Iterable[Known] = (),
    *,
    looks: pa.Table | None = None,
    known_looks: pa.Table | None = None,
    similarity: float = SIMILARITY,
    distance: int = DISTANCE,
) -> None:
    """Fill the temporary tables `leaks` (a row per level, referent and evaluation set) and `repeats` (of sources).

    Evaluation splits that are in the output are compared with the rest of it. looks, known_looks: `LOOKS` of clips and
    of evaluation videos. ValueError for limits that make no sense.
    """
    if not 0 < similarity <= 1 or not 0 <= distance <= DISTANCE:
        raise ValueError(
            f"similarity {similarity} must be in (0, 1], distance {distance} in 0..{DISTANCE}"
        )
    empty = LOOKS.empty_table()
    rows = list(zip(*(astuple(one) for one in known), strict=True)) or [(), (), ()]
    catalogue.register(
        "given_known", pa.table([pa.array(column, pa.string()) for column in rows], schema=_KNOWN)
    )
    catalogue.register("given_looks", looks if looks is not None else empty)
    catalogue.register("given_known_looks", known_looks if known_looks is not None else empty)
    held = " OR ".join(
        f"(source = '{source}' AND split IN {(*splits, '')})" for source, splits in HELD_OUT.items()
    )
    catalogue.execute(_THINGS.format(held=held))
    catalogue.execute(_NEAR, {"s": similarity, "fewest": FEWEST_WORDS})
    catalogue.execute(_ALIKE, {"distance": distance, "fewest": FEWEST_FRAMES})
    catalogue.execute(_LEAKS)
    catalogue.execute(_REPEATS)
    for name in ("given_known", "given_looks", "given_known_looks"):
        catalogue.unregister(name)


def summary(catalogue: "DuckDBPyConnection") -> list[dict]:
    """Per level, evaluation set, source and split: referents, clips, an example of ours and of theirs."""
    rows = rows_of(
        catalogue,
        """
        SELECT level, evaluation, source, split, count(*) AS referents, count(DISTINCT clip_id) AS clips,
               arg_min(ours, referent_id) AS example, arg_min(theirs, referent_id) AS theirs
        FROM leaks GROUP BY ALL ORDER BY evaluation, source, split""",
    )
    return sorted(rows, key=lambda row: LEVELS.index(row["level"]))


def repeated(catalogue: "DuckDBPyConnection") -> list[dict]:
    """Per level and pair of sources: how many referents of each have a like in the other, and an example."""
    return rows_of(catalogue, "FROM repeats ORDER BY level, source, other")


def found(catalogue: "DuckDBPyConnection") -> list[dict]:
    """All rows of `leaks`."""
    return rows_of(catalogue, "FROM leaks ORDER BY referent_id, level, evaluation")


def keys(catalogue: "DuckDBPyConnection", levels: Iterable[str] = SURE) -> list[str]:
    """Referents that some evaluation set has at one of the levels."""
    rows = rows_of(
        catalogue,
        "SELECT DISTINCT referent_id FROM leaks WHERE list_contains($1, level) ORDER BY 1",
        [list(levels)],
    )
    return [row["referent_id"] for row in rows]


# --- the SQL ---------------------------------------------------------------------------------------------------------

_THINGS = rf"""
CREATE OR REPLACE TEMP MACRO video_name(id) AS
    regexp_replace(regexp_extract(id, '[^/]+$'), '\.(mp4|mkv|avi|webm|mov)$', '');
CREATE OR REPLACE TEMP MACRO upload(dataset, name) AS CASE WHEN dataset IN ('hcstvg', 'a2d')
    THEN nullif(regexp_extract(name, '^(?:[0-9]+_)?([A-Za-z0-9_-]{{{{11}}}})$', 1), '') END;
CREATE OR REPLACE TEMP TABLE ours AS
    SELECT referent_id, clip_id, source::VARCHAR AS source, split::VARCHAR AS split,
           source || ' ' || split AS place, caption, video_name(video_id) AS video,
           upload(source, video_name(video_id)) AS upload, {WORDS.format("caption")} AS words FROM referents;
CREATE OR REPLACE TEMP TABLE known AS
    SELECT DISTINCT evaluation, video, upload(split_part(evaluation, ' ', 1), video) AS upload, caption, words FROM (
        SELECT evaluation, video_name(video_id) AS video, caption, {WORDS.format("caption")} AS words FROM given_known
        UNION ALL SELECT place, video, caption, words FROM ours WHERE {{held}});
CREATE OR REPLACE TEMP TABLE held AS SELECT DISTINCT place FROM ours WHERE {{held}};
CREATE OR REPLACE TEMP TABLE texts AS
    SELECT row_number() OVER (ORDER BY tokens) AS id, tokens, origins FROM (
        SELECT list_sort(list_distinct(words)) AS tokens, list_sort(list(DISTINCT origin)) AS origins FROM (
            SELECT words, source AS origin FROM ours UNION ALL SELECT words, evaluation FROM known)
        WHERE len(words) > 0 GROUP BY tokens);
"""

# Two sets with a Jaccard index of at least s share a word among the few rarest of each (prefix filter), and after it
# enough words are left in both (position filter): exact, and never all pairs.
_NEAR = """
CREATE OR REPLACE TEMP TABLE near AS
WITH single AS (SELECT id, len(tokens) AS size, origins, unnest(tokens) AS word FROM texts
                WHERE len(tokens) >= $fewest),
rare AS (SELECT word, count(*) AS n FROM single GROUP BY word),
ranked AS (SELECT id, size, origins, word, row_number() OVER (PARTITION BY id ORDER BY n, word) AS place
           FROM single JOIN rare USING (word)),
prefix AS (SELECT * FROM ranked WHERE place <= size - ceil($s * size - 1e-9) + 1),
pairs AS (
    SELECT DISTINCT a.id AS a, b.id AS b FROM prefix a JOIN prefix b
    ON a.word = b.word AND a.id < b.id AND b.size >= $s * a.size - 1e-9 AND a.size >= $s * b.size - 1e-9
    AND 1 + least(a.size - a.place, b.size - b.place) >= $s / (1 + $s) * (a.size + b.size) - 1e-9
    WHERE NOT (len(a.origins) = 1 AND a.origins = b.origins)),
scored AS (
    SELECT a, b, shared / (len(x.tokens) + len(y.tokens) - shared) AS score
    FROM (SELECT a, b, x, y, len(list_intersect(x.tokens, y.tokens)) AS shared
          FROM pairs JOIN texts x ON x.id = a JOIN texts y ON y.id = b))
SELECT a, b, score FROM scored WHERE score >= $s - 1e-9
UNION ALL SELECT b, a, score FROM scored WHERE score >= $s - 1e-9
"""

# Hashes at most four bits apart agree in one of five bands of 13 bits (12 the last), since four faults cannot be in all
# five. Flat pictures (a fade, a wall) look like one another and are left out.
_ALIKE = """
CREATE OR REPLACE TEMP TABLE alike AS
WITH looked AS (
    SELECT key, frame, hash, '' AS evaluation, place FROM given_looks JOIN
        (SELECT DISTINCT clip_id, place FROM ours) ON clip_id = key
    UNION ALL SELECT key, frame, hash, split_part(key, '/', 1), split_part(key, '/', 1) FROM given_known_looks),
bands AS (SELECT *, unnest([0, 13, 26, 39, 52]) AS shift FROM looked WHERE bit_count(hash) BETWEEN 6 AND 58),
cut AS (SELECT *, (hash >> shift) & 8191 AS band FROM bands),
hits AS (
    SELECT DISTINCT a.key AS clip_id, b.key AS other, b.place AS place, b.evaluation AS evaluation, a.frame AS frame
    FROM cut a JOIN cut b ON a.shift = b.shift AND a.band = b.band AND a.place <> b.place
    WHERE a.evaluation = '' AND bit_count(xor(a.hash, b.hash)) <= $distance)
SELECT clip_id, other, place, evaluation, count(*) AS n,
       count(*) / any_value(looks) AS score
FROM hits JOIN (SELECT key, count(*) AS looks FROM looked WHERE evaluation = '' GROUP BY key) ON key = clip_id
GROUP BY clip_id, other, place, evaluation HAVING count(*) >= least($fewest, any_value(looks))
"""

_LEAKS = """
CREATE OR REPLACE TEMP TABLE leaks AS
WITH tokens AS (SELECT DISTINCT words, list_sort(list_distinct(words)) AS tokens FROM
                (SELECT words FROM ours UNION ALL SELECT words FROM known)),
named AS (SELECT words, id FROM tokens JOIN texts USING (tokens)),
every AS (
    SELECT 'held_out' AS level, referent_id, place AS evaluation, caption AS theirs, 1.0 AS score
    FROM ours WHERE place IN (FROM held)
    UNION ALL SELECT 'same_video', referent_id, evaluation, video, 1.0 FROM ours JOIN known USING (video)
    WHERE place <> evaluation
    UNION ALL SELECT 'same_upload', referent_id, evaluation, known.video, 1.0 FROM ours JOIN known USING (upload)
    WHERE place <> evaluation AND ours.video <> known.video
    UNION ALL SELECT 'same_pictures', referent_id, alike.place, split_part(other, '/', -1), score
    FROM ours JOIN alike USING (clip_id) WHERE ours.place <> alike.place
    AND (evaluation <> '' OR alike.place IN (FROM held))
    UNION ALL SELECT 'same_expression', referent_id, evaluation, known.caption, 1.0 FROM ours JOIN known USING (words)
    WHERE place <> evaluation AND len(words) > 0
    UNION ALL SELECT 'near_expression', referent_id, evaluation, known.caption, score
    FROM ours JOIN named x ON x.words = ours.words JOIN near ON a = x.id JOIN named y ON y.id = b
    JOIN known ON known.words = y.words WHERE place <> evaluation)
SELECT level, referent_id, clip_id, source, split, caption AS ours, evaluation,
       arg_max(theirs, (score, theirs)) AS theirs, max(score) AS score, count(*) AS matches
FROM every JOIN ours USING (referent_id) GROUP BY ALL
"""

_REPEATS = """
CREATE OR REPLACE TEMP TABLE repeats AS
WITH named AS (SELECT referent_id, source, caption, video, upload, words, id FROM ours LEFT JOIN texts
               ON tokens = list_sort(list_distinct(words))),
texted AS (SELECT DISTINCT id, source FROM named),
every AS (
    SELECT 'same_video' AS level, a.source, b.source AS other, a.referent_id, a.caption, b.video AS theirs
    FROM ours a JOIN (SELECT DISTINCT source, video FROM ours) b ON a.video = b.video AND a.source <> b.source
    UNION ALL SELECT 'same_upload', a.source, b.source, a.referent_id, a.caption, b.upload
    FROM ours a JOIN (SELECT DISTINCT source, upload, video FROM ours) b
    ON a.upload = b.upload AND a.source <> b.source AND a.video <> b.video
    UNION ALL SELECT 'same_pictures', source, split_part(alike.place, ' ', 1), referent_id, caption, other
    FROM ours JOIN alike USING (clip_id) WHERE evaluation = '' AND source <> split_part(alike.place, ' ', 1)
    UNION ALL SELECT 'same_expression', a.source, b.source, a.referent_id, a.caption, b.caption
    FROM ours a JOIN (SELECT source, words, min(caption) AS caption FROM ours GROUP BY ALL) b
    ON a.words = b.words AND a.source <> b.source AND len(a.words) > 0
    UNION ALL SELECT 'near_expression', x.source, y.source, x.referent_id, x.caption, array_to_string(tokens, ' ')
    FROM named x JOIN near ON a = x.id JOIN texted y ON y.id = b AND y.source <> x.source JOIN texts ON texts.id = b)
SELECT level, source, other, count(DISTINCT referent_id) AS referents, arg_min(caption, referent_id) AS example,
       arg_min(theirs, (referent_id, theirs)) AS theirs
FROM every GROUP BY ALL
"""
