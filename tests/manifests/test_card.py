"""The data card and croissant.json: what they claim is what is there."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from typer.testing import CliRunner

from flows.cli import app
from manifests.card import OURS, _cell, write_card
from schemas.tables import TABLES
from tests.manifests.made import make_whole

PAPER = {"a2d": (3_017, 5_359), "mevis": (1_644, 4_489)}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    out = make_whole(tmp_path_factory.mktemp("card") / "out", ("a2d", "mevis"))
    write_card(out, PAPER, (30_646, 45_231))
    return out


def about(out: Path) -> dict:
    return json.loads((out / "croissant.json").read_text())


def cells(text: str, source: str) -> list[str]:
    return next(
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(f"| {source} ")
    )


def test_counts_stand_beside_the_papers(out):
    text = (out / "README.md").read_text()
    # source, videos, clips, referents, QA, frames kept (12 of one target, 9 of the other, one lost), masks, quarantined
    assert cells(text, "a2d") == ["a2d", "1", "1", "2", "2", "21", "21", "0", "0.90", "3,017", "5,359"]
    assert cells(text, "mevis") == ["mevis", "1", "1", "2", "2", "22", "22", "0", "0.90", "1,644", "4,489"]
    assert cells(text, "**all**") == ["**all**", "2", "2", "4", "4", "43", "43", "0", "", "30,646", "45,231"]
    assert "demonstration, not data" in text


def test_a_source_of_which_nothing_is_left_is_not_hidden(tmp_path):
    out = make_whole(tmp_path / "out", ("a2d", "mevis"))
    for table in ("clips", "referents"):
        part = out / "manifests" / table / "mevis-valid_u-000000.parquet"
        pq.write_table(pq.read_table(part, partitioning=None).slice(0, 0), part)
    write_card(out, PAPER, (30_646, 45_231))
    assert cells((out / "README.md").read_text(), "mevis") == ["mevis", *"0000000", "-", "1,644", "4,489"]


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
    assert [config["config_name"] for config in front["configs"]] == [
        "samples",
        *(t for t in TABLES if t not in ("timings", "runs")),
    ]
    for config in front["configs"]:
        found = {part["split"]: [p.name for p in out.glob(part["path"])] for part in config["data_files"]}
        assert {split: len(names) for split, names in found.items()} == {"test": 1, "valid_u": 1}
        assert found["test"][0].startswith("a2d-test-")


def test_the_loading_lines_load(out):
    tar = next(out.glob("a2d/*/shards/*.tar"))
    assert tar.relative_to(out).as_posix() in (out / "README.md").read_text()
    keys = {sample["__key__"] for sample in webdataset.WebDataset(str(tar), shardshuffle=False)}
    assert keys == {"a2d-test-v-0", "a2d-test-v-1"}


def test_croissant_names_every_tar_and_every_column_with_its_type(out):
    data = about(out)
    assert data["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert data["license"] == ["a2d: terms of a2d", "mevis: terms of mevis"]
    tars = [d for d in data["distribution"] if d["@type"] == "cr:FileObject"]
    assert {t["contentUrl"] for t in tars} == {p.relative_to(out).as_posix() for p in out.glob("*/*/shards/*.tar")}
    for tar in tars:
        assert tar["sha256"] == hashlib.sha256((out / tar["contentUrl"]).read_bytes()).hexdigest()
    sets = {d["@id"]: d["includes"] for d in data["distribution"] if d["@type"] == "cr:FileSet"}
    assert [r["@id"] for r in data["recordSet"]] == list(TABLES)
    types = {"string": "sc:Text", "bool": "sc:Boolean", "int32": "sc:Integer", "int64": "sc:Integer", "float": "sc:Float",
             "halffloat": "sc:Float", "timestamp[us, tz=UTC]": "sc:DateTime"}  # fmt: skip
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


def test_croissant_passes_the_reference_validator(out):
    mlcroissant = pytest.importorskip("mlcroissant", reason="the Croissant validator is not installed")
    dataset = mlcroissant.Dataset(jsonld=str(out / "croissant.json"))
    records = list(dataset.records("referents"))
    assert {r["referents/referent_id"].decode() for r in records} == {
        f"{c}-{i}" for c in ("a2d-test-v", "mevis-valid_u-v") for i in (0, 1)
    }


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
    done = CliRunner().invoke(app, ["export", str(out), "--format", "sparrow", "--to", str(tmp_path / "to")])
    assert done.exit_code == 0, done.output
    assert f"written to: {tmp_path / 'to'}" in done.output
    done = CliRunner().invoke(app, ["export", str(out), "--format", "coco", "--to", str(tmp_path / "j"), "--json"])
    assert json.loads(done.stdout)["samples"] == {"a2d-test": 2}
