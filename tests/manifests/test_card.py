"""The data card and croissant.json: what they claim is what is there."""

import hashlib
import json
import logging
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from typer.testing import CliRunner

from flows.cli import app
from manifests.card import OURS, _cell, write_card
from schemas import tables
from schemas.tables import TABLES
from tests.manifests.made import make_whole

PAPER = {"a2d": (3_017, 5_359), "mevis": (1_644, 4_489)}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    out = make_whole(tmp_path_factory.mktemp("card") / "out", ("a2d", "mevis"))
    run = pq.read_table(out / "manifests" / "runs" / "r0.parquet").to_pylist()[0]
    times = {"started": datetime(2026, 1, 2, tzinfo=UTC), "ended": datetime(2026, 1, 3, tzinfo=UTC)}
    tables.write(out / "manifests" / "runs" / "r0.parquet", "runs", [run | times])
    write_card(out, PAPER, (30_646, 45_231))
    return out


def about(out: Path) -> dict:
    return json.loads((out / "croissant.json").read_text())


def cells(text: str, source: str) -> list[str]:
    return next(
        [c.strip() for c in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith(f"| {source} ")
    )


def test_counts_stand_beside_the_papers(out):
    text = (out / "README.md").read_text()
    # source, videos, clips, referents, QA, frames kept (12 of one target, 9 of the other, one lost), masks, quarantined
    assert cells(text, "a2d") == [
        "a2d",
        "1",
        "1",
        "2",
        "2",
        "21",
        "21",
        "0",
        "0.90 on 100%",
        "3,017",
        "5,359",
    ]
    assert cells(text, "mevis") == [
        "mevis",
        "1",
        "1",
        "2",
        "2",
        "22",
        "22",
        "0",
        "0.90",
        "1,644",
        "4,489",
    ]
    assert cells(text, "**all**") == [
        "**all**",
        "2",
        "2",
        "4",
        "4",
        "43",
        "43",
        "0",
        "",
        "30,646",
        "45,231",
    ]
    assert "demonstration, not data" in text


def test_a_source_of_which_nothing_is_left_is_not_hidden(tmp_path):
    out = make_whole(tmp_path / "out", ("a2d", "mevis"))
    for table in ("clips", "referents"):
        part = out / "manifests" / table / "mevis-valid_u-000000.parquet"
        pq.write_table(pq.read_table(part, partitioning=None).slice(0, 0), part)
    write_card(out, PAPER, (30_646, 45_231))
    assert cells((out / "README.md").read_text(), "mevis") == [
        "mevis",
        *"0000000",
        "-",
        "1,644",
        "4,489",
    ]


def test_licences_and_what_may_not_be_passed_on(out):
    licences = (out / "README.md").read_text().split("## Licences")[1]
    assert cells(licences, "a2d")[1:] == [
        "terms of a2d",
        "**no**: no licence stated, YouTube videos. Boxes, masks and text only",
    ]
    assert cells(licences, "mevis")[2].startswith("non-commercial")


def test_front_matter_is_yaml_whose_files_are_there(out):
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert front["license"] == "other"
    assert front["size_categories"] == ["n<1K"]
    names = [config["config_name"] for config in front["configs"]]
    assert names[0] == "referents", "the hub shows the first"
    assert set(names) == set(TABLES) - {"timings", "runs", "quarantine"}, "nothing is in quarantine"
    for config in front["configs"]:
        found = {
            part["split"]: [p.name for p in out.glob(part["path"])] for part in config["data_files"]
        }
        assert {split: len(names) for split, names in found.items()} == {"test": 1, "valid_u": 1}
        assert found["test"][0].startswith("a2d-test-")


def test_the_loading_lines_load(out):
    tar = next(out.glob("a2d/*/shards/*.tar"))
    assert tar.relative_to(out).as_posix() in (out / "README.md").read_text()
    keys = {sample["__key__"] for sample in webdataset.WebDataset(str(tar), shardshuffle=False)}
    assert keys == {"a2d-test-v-0", "a2d-test-v-1"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """`datasets`, offline, with its cache in a folder of its own."""
    home = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        }.items():
            patch.setenv(name, value)
        datasets = pytest.importorskip(
            "datasets", reason="the `datasets` package is not installed (make setup)"
        )
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        yield datasets


def snippet(out: Path) -> str:
    """The card's lines for `datasets`, up to the definition of the features."""
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    return code[: code.index('load_dataset("webdataset"')]


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_the_tars_with_the_features_that_the_card_states(
    out, hub, streaming, monkeypatch
):
    monkeypatch.chdir(out)
    names: dict = {}
    exec(snippet(out), names)
    masks, features, referents = (
        pq.read_table(out / "manifests" / table, partitioning=None).to_pylist()
        for table in ("masks", "tsf_features", "referents")
    )
    captions = {row["referent_id"]: row["caption"] for row in referents}
    seen = set()
    for split, media in (("test", "frames.tar"), ("valid_u", "mp4")):
        files = {split: f"*/{split}/shards/*.tar"}
        rows = hub.load_dataset(
            "webdataset",
            data_files=files,
            split=split,
            streaming=streaming,
            features=names["features"],
        )
        for row in rows:
            seen.add(key := row["__key__"])
            assert row["json"]["referent"]["referent_id"] == key
            assert {int(t): m["counts"] for t, m in row["masks.json"].items()} == {
                m["frame"]: m["counts"] for m in masks if m["referent_id"] == key
            }
            assert row["json"]["referent"]["caption"] == captions[key]
            expected = [f["feature"] for f in features if f["referent_id"] == key]
            np.testing.assert_array_equal(
                np.array(row["tsf.npy"], np.float16), np.array(expected, np.float16)
            )
            assert row["crop0.jpg"].size == (8, 8)
            assert (
                row[media][:6] == b"000000" if media == "frames.tar" else row[media][4:8] == b"ftyp"
            )
    assert seen == {f"{clip}-{i}" for clip in ("a2d-test-v", "mevis-valid_u-v") for i in (0, 1)}


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_every_table_by_the_card(out, hub, streaming):
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    for table in [config["config_name"] for config in front["configs"]]:
        found = hub.load_dataset(str(out), table, streaming=streaming)
        assert set(found) == {"test", "valid_u"}
        rows = {split: list(part) for split, part in found.items()}
        for split, source in (("test", "a2d"), ("valid_u", "mevis")):
            expected = pq.read_table(
                out / "manifests" / table / f"{source}-{split}-000000.parquet", partitioning=None
            )
            assert repr(rows[split]) == repr(expected.to_pylist()), (table, split)


def test_a_part_without_rows_does_not_stop_the_reader(tmp_path, hub, monkeypatch):
    """datasets takes the batch size from a file's first row group, and zero is none."""
    out = make_whole(tmp_path / "out", ("a2d", "lasot"))
    for table in ("masks", "referents"):
        nothing = pq.read_table(
            out / "manifests" / table / "a2d-test-000000.parquet", partitioning=None
        ).slice(0, 0)
        pq.write_table(nothing, out / "manifests" / table / "a2d-train-000000.parquet")
    write_card(out, PAPER, (30_646, 45_231))
    assert len(hub.load_dataset(str(out), "masks")["train"]) == 21
    monkeypatch.chdir(out)
    names: dict = {}
    exec(snippet(out).replace('load_dataset("parquet"', 'found = load_dataset("parquet"'), names)
    assert len(names["found"]["train"]) == 2


def test_croissant_names_every_tar_and_every_column_with_its_type(out):
    data = about(out)
    assert data["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert data["license"] == ["a2d: terms of a2d", "mevis: terms of mevis"]
    tars = [d for d in data["distribution"] if d["@type"] == "cr:FileObject"]
    assert {t["contentUrl"] for t in tars} == {
        p.relative_to(out).as_posix() for p in out.glob("*/*/shards/*.tar")
    }
    for tar in tars:
        assert tar["sha256"] == hashlib.sha256((out / tar["contentUrl"]).read_bytes()).hexdigest()
    sets = {d["@id"]: d["includes"] for d in data["distribution"] if d["@type"] == "cr:FileSet"}
    assert [r["@id"] for r in data["recordSet"]] == list(TABLES)
    types = {
        "string": "sc:Text",
        "bool": "sc:Boolean",
        "int32": "sc:Integer",
        "int64": "sc:Integer",
        "float": "sc:Float",
        "double": "sc:Float",
        "halffloat": "sc:Float",
        "timestamp[us, tz=UTC]": "sc:DateTime",
    }
    for records in data["recordSet"]:
        form = pq.read_schema(next(out.glob(sets[f"{records['@id']}-parquet"])))
        assert [f["source"]["extract"]["column"] for f in records["field"]] == form.names
        for field, column in zip(records["field"], form, strict=True):
            kind = str(column.type)
            if "list" in kind:
                assert field["repeated"]
                kind = str(column.type.value_type)
            assert field["dataType"] == types["string" if kind.startswith("dictionary") else kind]
    ids = [d["@id"] for d in data["distribution"] + data["recordSet"]] + [
        f["@id"] for r in data["recordSet"] for f in r["field"]
    ]
    assert len(ids) == len(set(ids))


@pytest.fixture(scope="module")
def croissant(out):
    """The reference reader over croissant.json. It warns of every recommended property that is not there."""
    mlcroissant = pytest.importorskip(
        "mlcroissant", reason="the Croissant validator is not installed (make setup)"
    )
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append
    loggers = [logging.getLogger(), logging.getLogger("absl")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield mlcroissant.Dataset(jsonld=str(out / "croissant.json")), said
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def test_croissant_passes_the_reference_validator_without_a_warning(croissant):
    dataset, said = croissant
    assert not dataset.metadata.ctx.issues.errors
    assert not dataset.metadata.ctx.issues.warnings
    assert [record.getMessage() for record in said] == []


@pytest.mark.parametrize("table", [t for t in TABLES if t not in ("timings", "quarantine")])
def test_croissant_records_are_the_manifests_rows(out, croissant, table):
    """Every row and value, through the file set that croissant.json names."""
    rows = pq.read_table(out / "manifests" / table, partitioning=None).to_pylist()
    found = [
        {k.partition("/")[2]: v for k, v in record.items()}
        for record in croissant[0].records(table)
    ]
    assert len(found) == len(rows) > 0

    def plain(row: dict) -> str:
        return repr([(name, _plain(row[name])) for name in rows[0]])

    assert sorted(map(plain, found)) == sorted(map(plain, rows))


def _plain(value: object) -> object:
    """A value without what differs between Arrow's and pandas's: bytes for text, NaN for None, precision of floats."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) or type(value).__name__ == "ndarray":
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None or value != value:
        return None
    return (
        round(float(value), 4)
        if isinstance(value, float | int) or hasattr(value, "dtype")
        else value
    )


def test_a_licence_cannot_break_the_table():
    assert _cell("a | b\n<script>") == "a \\| b &lt;script>"


def test_a_readme_of_others_is_not_overwritten(tmp_path):
    out = make_whole(tmp_path / "out", ("a2d",))
    (out / "README.md").write_text("my notes")
    with pytest.raises(ValueError, match="not a data card of ours"):
        write_card(out, {}, (0, 0))
    assert (out / "README.md").read_text() == "my notes"


def test_both_verbs_from_the_command_line(tmp_path):
    out = make_whole(tmp_path / "out", ("a2d",))
    done = CliRunner().invoke(app, ["card", str(out), "--url", "https://example.org/data"])
    assert done.exit_code == 0, done.output
    assert OURS in (out / "README.md").read_text()
    assert about(out)["url"] == "https://example.org/data"
    done = CliRunner().invoke(
        app, ["export", str(out), "--format", "sparrow", "--to", str(tmp_path / "to")]
    )
    assert done.exit_code == 0, done.output
    assert f"written to: {tmp_path / 'to'}" in done.output
    done = CliRunner().invoke(
        app, ["export", str(out), "--format", "coco", "--to", str(tmp_path / "j"), "--json"]
    )
    assert json.loads(done.stdout)["samples"] == {"a2d-test": 2}
