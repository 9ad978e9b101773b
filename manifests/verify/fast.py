"""Tables of one shard against each other: counts, keys, references, frames, and where the members say they lie."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from manifests.verify.problem import Problem, some
from schemas.records import KEY

KEYS = {
    "clips": ["clip_id"],
    "referents": ["referent_id"],
    "tracks": ["referent_id", "frame"],
    "masks": ["referent_id", "frame"],
    "tsf": ["referent_id", "rank"],
    "tsf_features": ["referent_id", "rank"],
    "qa": ["qa_id"],
    "members": ["key", "name"],
}
OF_REFERENT = ("tracks", "masks", "tsf", "tsf_features", "qa", "members")
OF_CLIP = ("tracks", "masks", "tsf", "qa")
REQUIRED = ("json", "track.npy", "tsf.npy", "masks.json")
MEDIA = ("mp4", "frames.tar")
BLOCK = 512
"""Of a tar: a member begins with a header of one block, and ends at a multiple of it."""

Parts = dict[str, pa.Table]


def check_tables(name: str, row: dict, parts: Parts) -> list[Problem]:
    """What the tables of shard `name`, whose row of `shards` is `row`, say against each other."""
    return [
        *_shard_row(name, row, parts),
        *_keys(name, row, parts),
        *_references(name, parts),
        *_per_referent(name, parts),
        *_members(name, row, parts),
    ]


def _shard_row(name: str, row: dict, parts: Parts) -> Iterator[Problem]:
    where = "manifests/shards"
    place = f"{row['source']}-{row['split']}-{row['index'] or 0:06d}"
    if place != name:
        yield Problem(name, where, f"source, split and index say {place}")
    if row["path"] != f"{row['source']}/{row['split']}/shards/{name}.tar":
        yield Problem(name, where, f"its tar cannot be {row['path']!r:.80}")
    counts = {
        "n_clips": "clips",
        "n_samples": "referents",
        "n_qa": "qa",
        "n_quarantined": "quarantine",
    }
    for column, table in counts.items():
        if row[column] != len(parts[table]):
            yield Problem(
                name, where, f"{column} is {row[column]}, the part has {len(parts[table])} rows"
            )
    for table in ("clips", "referents", "qa", "quarantine"):
        for column in ("source", "split"):
            others = sorted(
                set(map(str, pc.unique(parts[table][column]).to_pylist())) - {row[column]}
            )
            if others:
                yield Problem(name, f"manifests/{table}", f"rows of another {column}: {others[:3]}")


def _keys(name: str, row: dict, parts: Parts) -> Iterator[Problem]:
    for table, columns in KEYS.items():
        where = f"manifests/{table}"
        values = list(zip(*[parts[table][c].to_pylist() for c in columns], strict=True))
        if any(None in value for value in values):
            yield from some(
                name, where, "NULL in a key", (_named(v, columns) for v in values if None in v)
            )
        twice = [(value, n) for value, n in Counter(values).items() if n > 1]
        if twice:
            what = f"{' and '.join(columns)}: a key appears {max(n for _, n in twice)} times"
            yield from some(name, where, what, (_named(value, columns) for value, _ in twice))
    for table, column in (("clips", "clip_id"), ("referents", "referent_id")):
        bad = [
            repr(key)[:80]
            for key in parts[table][column].to_pylist()
            if not KEY.fullmatch(str(key))
        ]
        yield from some(name, f"manifests/{table}", f"{column} is not a key ({KEY.pattern})", bad)


def _named(values: tuple, columns: list[str]) -> str:
    """("a", 3) of referent_id, frame -> "a frame 3"; of key, name -> "a.name"."""
    first, *rest = values
    return f"{first}" + "".join(
        f".{v}" if c == "name" else f" {c} {v}" for v, c in zip(rest, columns[1:], strict=True)
    )


def _references(name: str, parts: Parts) -> Iterator[Problem]:
    clip_of = dict(
        zip(
            parts["referents"]["referent_id"].to_pylist(),
            parts["referents"]["clip_id"].to_pylist(),
            strict=True,
        )
    )
    clips = set(parts["clips"]["clip_id"].to_pylist())
    lost = [f"{key} of clip {clip}" for key, clip in clip_of.items() if clip not in clips]
    yield from some(name, "manifests/referents", "its clip is not in clips", lost)
    yield from some(
        name, "manifests/clips", "a clip without a referent", sorted(clips - set(clip_of.values()))
    )
    for table in OF_REFERENT:
        here = set(parts[table]["referent_id"].to_pylist())
        orphans = sorted(map(str, here - clip_of.keys()))
        yield from some(name, f"manifests/{table}", "rows without a referent", orphans)
    for table in OF_CLIP:
        pairs = set(
            zip(
                parts[table]["referent_id"].to_pylist(),
                parts[table]["clip_id"].to_pylist(),
                strict=True,
            )
        )
        other = sorted(f"{key} has {clip}" for key, clip in pairs if clip_of.get(key, clip) != clip)
        yield from some(name, f"manifests/{table}", "the clip is not the referent's", other)
    both = sorted({key for key in parts["quarantine"]["referent_id"].to_pylist() if key in clip_of})
    yield from some(
        name, "manifests/quarantine", "the referent is dropped here, and kept in referents", both
    )


def _per_referent(name: str, parts: Parts) -> Iterator[Problem]:
    """Each referent has the rows that it counts: a track row for every frame, ranks that match."""
    per = {table: Counter(parts[table]["referent_id"].to_pylist()) for table in OF_REFERENT}
    referents = (
        parts["referents"].select(["referent_id", "n_frames", "n_masks", "n_qa"]).to_pylist()
    )
    expected = {
        "tracks": {r["referent_id"]: r["n_frames"] for r in referents},
        "masks": {r["referent_id"]: r["n_masks"] for r in referents},
        "qa": {r["referent_id"]: r["n_qa"] for r in referents},
        "tsf": {r["referent_id"]: per["tsf_features"][r["referent_id"]] for r in referents},
    }
    for table, wanted in expected.items():
        wrong = [(key, per[table][key], n) for key, n in wanted.items() if per[table][key] != n]
        if wrong:
            rows = (f"{key}: {have} of {n}" for key, have, n in wrong)
            yield from some(
                name,
                f"manifests/{table}",
                "rows are missing or too many, rows found of rows expected",
                rows,
            )
    frames = {(k, f) for k, f in _pairs(parts["tracks"], "frame")}
    outside = [
        f"{k} frame {f}"
        for k, f in sorted(frames, key=str)
        if not 0 <= (f or 0) < expected["tracks"].get(k, 0)
    ]
    yield from some(name, "manifests/tracks", "frames outside the clip", outside)
    for table in ("masks", "tsf"):
        loose = [f"{k} frame {f}" for k, f in _pairs(parts[table], "frame") if (k, f) not in frames]
        yield from some(name, f"manifests/{table}", "frames that the track does not have", loose)
    features, tsf = set(_pairs(parts["tsf_features"], "rank")), set(_pairs(parts["tsf"], "rank"))
    only = [f"{k} rank {r}" for k, r in sorted(features ^ tsf, key=str)]
    yield from some(name, "manifests/tsf_features", "ranks differ from those of tsf", only)


def _pairs(table: pa.Table, column: str) -> list[tuple]:
    return list(zip(table["referent_id"].to_pylist(), table[column].to_pylist(), strict=True))


def _members(name: str, row: dict, parts: Parts) -> Iterator[Problem]:
    """Members follow each other, those of a key together, inside the tar; each key has all it needs."""
    where, end, last, left = "manifests/members", 0, None, set[str]()
    names: dict[str, set[str]] = {}
    overlaps, apart = [], []
    members = parts["members"].to_pylist()
    for m in members:
        label = f"{m['key']}.{m['name']}"
        if m["offset"] - BLOCK < end or m["size"] < 0 or m["offset"] % BLOCK:
            overlaps.append(label)
        if m["key"] != last:
            if m["key"] in left:
                apart.append(label)
            left.add(m["key"])
            last = m["key"]
        end = m["offset"] + m["size"]
        names.setdefault(m["key"], set()).add(m["name"])
    yield from some(name, where, "overlaps the one before, or is out of order", overlaps)
    yield from some(name, where, "a key's members are apart", apart)
    if end > row["bytes"]:
        yield from some(
            name,
            where,
            "ends behind the end of the tar",
            [f"{members[-1]['key']}.{members[-1]['name']}"],
        )
    strangers = [f"{m['key']}: {m['referent_id']}" for m in members if m["key"] != m["referent_id"]]
    yield from some(name, where, "the key is not the referent_id", strangers)
    media = dict(
        zip(parts["clips"]["clip_id"].to_pylist(), parts["clips"]["media"].to_pylist(), strict=True)
    )
    crops = Counter(parts["tsf"]["referent_id"].to_pylist())
    lacking = []
    for referent in parts["referents"].select(["referent_id", "clip_id"]).to_pylist():
        key, have = referent["referent_id"], names.get(referent["referent_id"], set())
        wanted = {*REQUIRED, *(f"crop{rank}.jpg" for rank in range(crops[key]))}
        lacking += [f"{key}.{what}" for what in sorted(wanted - have)]
        if media.get(referent["clip_id"], "none") != "none" and not have & set(MEDIA):
            lacking.append(f"{key}: no media")
    yield from some(name, where, "members are missing", lacking)
