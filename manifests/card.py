"""The data card: README.md as Hugging Face shows it, and croissant.json (Croissant 1.0, JSON-LD) for programs.

Both are made from the manifests alone, so they cannot say more than is there; the same output gives the same bytes.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from manifests.catalog import connect, rows_of
from manifests.noise import noise, noise_words
from manifests.quality import COVERAGE
from schemas.files import write_whole
from schemas.members import refuse_links
from schemas.tables import TABLES, VOLATILE, schema

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

OURS = "<!-- made by `sparrow card` from the manifests; edits are lost -->"

PICTURES = {
    "hcstvg": "**no**: frames of films. Boxes, masks and text only",
    "vid_sentence": "**no**: ImageNet terms. Boxes, masks and text, non-commercial",
    "a2d": "**no**: no licence stated, YouTube videos. Boxes, masks and text only",
    "lasot": "**no**: YouTube videos. Boxes, masks and text only",
    "mevis": "non-commercial, with attribution, under the same licence",
    "got10k": "non-commercial, with attribution, under the same licence",
    "refsav": "with attribution; the expressions only under the terms of Sa2VA's training data",
}
"""Whether media and crops may be passed on, by source: what its licence says, or, where none is stated, the careful
reading. No legal advice."""
CITATION = """\
@inproceedings{alansari2026sparrow,
    title={SPARROW: Learning Spatial Precision and Temporal Referential Consistency in Pixel-Grounded Video MLLMS},
    author={Alansari, Mohamad and Suryanto, Naufal and Velayudhan, Divya and Javed, Sajid and Werghi, Naoufel and \
Naseer, Muzammal},
    booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
    year={2026}
}"""
"""As on the paper's project page."""
UNKNOWN = "**no**: nothing is known about its terms"

KEYS = {"clips": "clip_id", "referents": "referent_id", "qa": "qa_id", "shards": "shard"}
"""Columns that name a row."""

_TYPES = (
    (pa.types.is_boolean, "sc:Boolean"),
    (pa.types.is_integer, "sc:Integer"),
    (pa.types.is_floating, "sc:Float"),
    (pa.types.is_timestamp, "sc:DateTime"),
)

_TERMS = (
    "citeAs column conformsTo dataBiases dataCollection extract field fileProperty fileObject fileSet format includes "
    "equivalentProperty isLiveDataset jsonPath key md5 parentField path personalSensitiveInformation recordSet "
    "references regex repeated replace samplingRate separator source subField transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    **{term: f"cr:{term}" for term in _TERMS.split()},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
"""The context that Croissant 1.0 asks for."""

_EXAMPLE = "SELECT path AS shard, split FROM shards ORDER BY split <> 'train', path LIMIT 1"

_COUNTS = f"""
    WITH c AS (SELECT source, count(*) AS clips, min(licence) AS licence FROM clips GROUP BY source),
         r AS (SELECT source, count(*) AS referents, sum(n_qa) AS qa, sum(n_kept) AS kept, sum(n_masks) AS masks,
                      avg(mean_iou) AS iou, {COVERAGE} AS coverage, count(DISTINCT video_id) AS videos FROM referents GROUP BY source),
         q AS (SELECT source, count(*) AS quarantined FROM quarantine GROUP BY source)
    SELECT * FROM (SELECT DISTINCT source FROM shards) LEFT JOIN r USING (source) LEFT JOIN c USING (source)
    LEFT JOIN q USING (source) ORDER BY source"""
"""A source of which everything was dropped has a row too."""


def write_card(
    out: Path, paper: dict[str, tuple[int, int]], paper_total: tuple[int, int], *, url: str = ""
) -> list[Path]:
    """Write README.md and croissant.json into an output, each in one step; returns their paths.

    paper, paper_total: clips and QA that the paper has, by source and in all. url: where the dataset will be found.
    ValueError where a README.md is there that is not ours.
    """
    refuse_links(out)
    card = out / "README.md"
    if card.exists() and OURS not in card.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{card} is not a data card of ours; move it away first")
    with connect(out) as catalogue:
        texts = {
            card: readme(catalogue, paper, paper_total),
            out / "croissant.json": croissant(catalogue, out, url),
        }
    for path, text in texts.items():
        write_whole(path, text)
    return list(texts)


# --- README.md ------------------------------------------------------------------------------------------------------


def readme(
    catalogue: "DuckDBPyConnection", paper: dict[str, tuple[int, int]], paper_total: tuple[int, int]
) -> str:
    """The data card: front matter for the hub, then what a reader needs."""
    rows = rows_of(catalogue, _COUNTS)
    n = sum(row["referents"] or 0 for row in rows)
    synthetic = rows_of(catalogue, "SELECT coalesce(bool_or(synthetic), false) AS made FROM runs")[
        0
    ]["made"]
    members = [
        row["name"] for row in rows_of(catalogue, "SELECT DISTINCT name FROM members ORDER BY 1")
    ]
    made = rows_of(
        catalogue,
        "SELECT preset, detector, tracker, segmenter, encoder, count(*) AS samples FROM referents GROUP BY ALL "
        "ORDER BY ALL",
    )
    return "\n\n".join(
        [
            _front(n, _splits(catalogue), synthetic),
            OURS,
            "# Target-Specific Features for pixel-grounded video MLLMs",
            "Referring expressions about one target in a short clip, each with a track, masks, question-answer pairs, "
            "and four representatives (crop and feature) of its appearance: the training data of SPARROW, curated with "
            "SPARROW-TSF."
            + (" **Made-up videos: a demonstration, not data.**" if synthetic else ""),
            "## What is here",
            _counts(rows, paper, paper_total),
            "Clips and QA of the paper: it prints the totals only; its rows by source are inferred. For VID-Sentence, "
            "whose sentences have spans of their own, the paper's clips are videos. Quarantined: clips, referents and "
            "rows that were dropped, each with a reason (`FROM quarantine`).",
            "## How it was made",
            _table(
                ["preset", "detector", "tracker", "segmenter", "encoder", "samples"],
                [[_cell(v) for v in row.values()] for row in made],
            ),
            "`annotation` is the dataset's own box: no model looked for the target. Boxes are x1 y1 x2 y2 in pixels of "
            "the original frame, 0-based and half-open; frames count from 0; masks are COCO compressed RLE.",
            *(
                f"**Noise on purpose** on the trajectories that TSF is made of (the paper's Table 10), {noise_words(row)}. "
                "Tracks and masks are clean."
                for row in noise(catalogue)
            ),
            "## Licences",
            "Each source keeps its own terms (column `licence` of `clips`). Tars hold pictures of the source: media "
            "and crops. What may be passed on:",
            _table(
                ["source", "licence", "pictures: media and crops"],
                [
                    [r["source"], _cell(r["licence"]), PICTURES.get(r["source"], UNKNOWN)]
                    for r in rows
                ],
            ),
            _LOADING.format(**rows_of(catalogue, _EXAMPLE)[0], features=_features(members)),
            f"## Citation\n\nThe method, and the sources each on their own terms:\n\n```bibtex\n{CITATION}\n```\n",
        ]
    )


def _front(samples: int, splits: dict[str, list[str]], synthetic: bool) -> str:
    """YAML that the hub and `datasets` read. splits: of each table, those with rows; nothing else can be loaded.

    Splits are told apart, or all would be loaded as training data. Tables only: one reader reads all configs of a
    dataset, so tars among them would break the tables. batch_size: or a part without rows would stop the reader.
    """
    size = next((name for limit, name in _SIZES if samples < limit), "n>1M")
    lines = [
        "---",
        "license: other",
        "license_name: by-source",
        "license_link: README.md#licences",
        "language: [en]",
        "task_categories: [image-segmentation, visual-question-answering, video-text-to-text]",
        f"tags: [video, referring-expressions, segmentation, tracking, webdataset{', synthetic' * synthetic}]",
        f"size_categories: [{size}]",
        "configs:",
    ]
    for table, names in splits.items():
        lines += [f"- config_name: {table}", "  batch_size: 8192", "  data_files:"]
        lines += [
            f'  - {{split: {split}, path: "manifests/{table}/*-{split}-*.parquet"}}'
            for split in names
        ]
    return "\n".join([*lines, "---"])


def _splits(catalogue: "DuckDBPyConnection") -> dict[str, list[str]]:
    """Splits of each table that have rows. The first table is the one that is shown first."""
    count = (
        "SELECT DISTINCT split FROM shards WHERE shard IN (SELECT shard FROM {table}) ORDER BY 1"
    )
    tables = ("referents", *(table for table in TABLES if table not in ("referents", *VOLATILE)))
    found = {t: [row["split"] for row in rows_of(catalogue, count.format(table=t))] for t in tables}
    return {table: splits for table, splits in found.items() if splits}


def _features(names: list[str]) -> str:
    """Features of a sample, as code for `datasets`, from the names of its members.

    Stated, because inferring them from the first samples fails (records of track.npy have no Arrow type) or loses data
    (masks.json has a key per frame). Videos are bytes: decoding them would ask for torchcodec. Left out: track.npy,
    whose rows are those of the table `tracks`.
    """
    kinds = {"json": "Json()", "jpg": "Image()", "mp4": 'Value("binary")', "tar": 'Value("binary")'}
    arrays = {
        "tsf.npy": 'List(List(Value("float16")))',
        "tsf_patches.npy": 'List(List(List(Value("float16"))))',
    }
    words = {
        name: arrays.get(name) or kinds[name.rsplit(".", 1)[-1]]
        for name in names
        if name != "track.npy"
    }
    words |= {"__key__": 'Value("string")', "__url__": 'Value("string")'}
    return "\n".join(f"    {json.dumps(name)}: {word}," for name, word in words.items())


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def _counts(
    rows: list[dict], paper: dict[str, tuple[int, int]], paper_total: tuple[int, int]
) -> str:
    columns = ("videos", "clips", "referents", "qa", "kept", "masks", "quarantined")
    body = [
        [
            row["source"],
            *(f"{row[c] or 0:,}" for c in columns),
            _iou(row),
            *(f"{v:,}" for v in paper.get(row["source"], ())),
        ]
        for row in rows
    ]
    totals = ["**all**", *(f"{sum(row[c] or 0 for row in rows):,}" for c in columns), ""]
    head = [
        "source",
        "videos",
        "clips",
        "referents",
        "QA",
        "frames kept",
        "masks",
        "quarantined",
        "mean IoU, on kept frames",
    ]
    return _table(
        [*head, "paper: clips", "paper: QA"], [*body, [*totals, *(f"{v:,}" for v in paper_total)]]
    )


def _iou(row: dict) -> str:
    if row["iou"] is None:
        return "-"
    return f"{row['iou']:.2f}" + ("" if row["coverage"] is None else f" on {row['coverage']:.0%}")


def _table(head: list[str], body: list[list[str]]) -> str:
    width = len(head)
    lines = [head, ["---"] * width, *([*row, *[""] * (width - len(row))] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    """Text of a dataset inside a table: it can neither end its cell nor be markup."""
    text = " ".join(str("not stated" if value in (None, "") else value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


_LOADING = """## Loading

```python
import webdataset  # samples: json, track.npy, tsf.npy, crop0.jpg .. crop3.jpg, masks.json, mp4

for sample in webdataset.WebDataset("{shard}", shardshuffle=False):
    print(sample["__key__"], sample["json"][:80])
```

```python
from datasets import Features, Image, Json, List, Value, load_dataset  # 5 or newer

files = {{"{split}": "manifests/referents/*-{split}-*.parquet"}}
load_dataset("parquet", data_files=files, batch_size=8192)  # any table; some parts may have no rows
features = Features({{  # left to guess them, it fails
{features}
}})
load_dataset("webdataset", data_files={{"{split}": "*/{split}/shards/*.tar"}}, features=features)
```

`load_dataset(FOLDER, "referents")` takes a table of all splits; FOLDER is the whole path, or the name on the hub.

```sql
-- duckdb -init catalog.sql, in this folder
SELECT source, count(*), avg(mean_iou) FROM referents GROUP BY source;
SELECT caption, tar, "offset", size FROM samples WHERE member = 'mp4' LIMIT 3;  -- one range read leads to a clip
```

Only what a row of `manifests/shards` names is committed. `croissant.json` describes the same files for programs."""

# --- croissant.json -------------------------------------------------------------------------------------------------


def croissant(catalogue: "DuckDBPyConnection", out: Path, url: str = "") -> str:
    """Croissant 1.0: a FileObject per tar with its sha256, a FileSet and a RecordSet with typed fields per table."""
    shards = rows_of(
        catalogue, "SELECT shard, path, bytes, sha256, code_version FROM shards ORDER BY path"
    )
    licences = rows_of(
        catalogue, "SELECT DISTINCT source || ': ' || licence AS text FROM clips ORDER BY 1"
    )
    ended = rows_of(
        catalogue, "SELECT strftime(max(coalesce(ended, started)), '%Y-%m-%d') AS day FROM runs"
    )[0]["day"]
    version = max((s["code_version"] or "" for s in shards), default="")
    tars = [
        {
            "@type": "cr:FileObject",
            "@id": shard["shard"],
            "name": shard["shard"],
            "description": "WebDataset tar: samples of one shard",
            "contentUrl": shard["path"],
            "contentSize": f"{shard['bytes'] or (out / shard['path']).stat().st_size} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard["sha256"],
        }
        for shard in shards
    ]
    parts = [
        {
            "@type": "cr:FileSet",
            "@id": f"{table}-parquet",
            "name": f"{table}-parquet",
            "description": f"Part files of the table {table}, one per {'run' if table == 'runs' else 'shard'}",
            "encodingFormat": "application/x-parquet",
            "includes": f"manifests/{table}/*.parquet",
        }
        for table in TABLES
    ]
    about = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "sparrow-tsf",
        "description": "Referring expressions about one target in a short clip, each with a track, masks, "
        "question-answer pairs, and four representatives of its appearance (Target-Specific Features).",
        "license": [row["text"] for row in licences if row["text"]],
        "citeAs": CITATION,
        **({"url": url} if url else {}),
        **({"version": version} if re.fullmatch(r"\d+\.\d+\.\d+", version) else {}),
        **({"datePublished": ended} if ended else {}),
        "distribution": [*tars, *parts],
        "recordSet": [_records(table) for table in TABLES],
    }
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


def _records(table: str) -> dict[str, Any]:
    key = {"key": {"@id": f"{table}/{KEYS[table]}"}} if table in KEYS else {}
    fields = [_field(table, column) for column in schema(table, dim=1)]  # any dim: a list
    return {"@type": "cr:RecordSet", "@id": table, "name": table, **key, "field": fields}


def _field(table: str, column: pa.Field) -> dict[str, Any]:
    kind, repeated = (
        column.type,
        pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type),
    )
    element = kind.value_type if repeated else kind
    name = f"{table}/{column.name}"
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "dataType": next((word for is_kind, word in _TYPES if is_kind(element)), "sc:Text"),
        **({"repeated": True} if repeated else {}),
        "source": {"fileSet": {"@id": f"{table}-parquet"}, "extract": {"column": column.name}},
    }
