"""An output from a stranger: what its manifests name is not trusted, and its links are not followed (rows X03 to X06)."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.locks import PlanConflict, locked
from flows.progress import Quiet
from manifests.card import write_card
from manifests.catalog import build_catalog
from manifests.export import export
from manifests.report import write_report
from manifests.sheet import contact_sheet
from manifests.verify import verify
from model.data.index import Index
from model.data.read import Corrupt, Reader
from pipeline.presets import configure
from schemas.members import EXPORT_MARKER, MemberError
from tests.e2e.conftest import BIN


@pytest.fixture(scope="module")
def whole(tiny_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "out"
    driver.run(make_jobs("hcstvg", tiny_root, out, configure("lite")), Inline(), Quiet())
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def edit(out: Path, table: str, column: str, value: object) -> None:
    """Change a column of all rows of a table."""
    [part] = (out / "manifests" / table).glob("*.parquet")
    rows = pq.read_table(part, partitioning=None)
    place = rows.schema.get_field_index(column)
    kind = rows.schema.field(column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    values = pa.array([value] * len(rows), plain)
    pq.write_table(rows.set_column(place, pa.field(column, plain), values), part)


def make_fifo(out: Path) -> None:
    [tar] = out.rglob("*.tar")
    tar.unlink()
    os.mkfifo(tar)


def move_tar_out(out: Path) -> None:
    [tar] = out.rglob("*.tar")
    tar.rename(out.parent / "secret.tar")
    edit(out, "shards", "path", "../secret.tar")


def link_tar_out(out: Path) -> None:
    [tar] = out.rglob("*.tar")
    tar.rename(out.parent / "secret.tar")
    tar.symlink_to(out.parent / "secret.tar")


ATTACKS = {
    "a path outside": move_tar_out,
    "a link to outside": link_tar_out,
    "a pipe": make_fifo,
    "a size of a terabyte": lambda out: edit(out, "members", "size", 10**12),
    "a negative offset": lambda out: edit(out, "members", "offset", -1024),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_reader_follows_a_manifest_out_of_its_output(name, out, tmp_path):
    ATTACKS[name](out)
    index = Index.open(str(out))
    reader = Reader(str(out))
    with pytest.raises(Corrupt):
        reader.members(index.entry(0))
    with pytest.raises(ValueError):  # noqa: PT011
        export(out, tmp_path / "exported", "coco")
    with pytest.raises(ValueError):  # noqa: PT011
        contact_sheet(out, tmp_path / "sheet.png")
    for deep in (False, True):
        assert verify(out, deep=deep).problems


@pytest.mark.parametrize(
    ("column", "value"),
    [("bytes", None), ("parts_sha256", "3"), ("sha256", None), ("path", None), ("n_samples", None)],
)
def test_a_damaged_row_of_shards_is_a_problem_and_no_exception(column, value, out):
    edit(out, "shards", column, value)
    for words in (("verify", out, "--deep", "--json"), ("verify", out, "--json")):
        done = subprocess.run([BIN / "sparrow", *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        [first, *_] = json.loads(done.stdout)["problems"]
        assert first["shard"] == "hcstvg-train-000000"
    repaired = subprocess.run([BIN / "sparrow", "repair", out], capture_output=True, text=True)
    assert "Traceback" not in repaired.stderr


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(out, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("hcstvg-train", "hcstvg-train.fence"):
        shutil.rmtree(out / ".lock", ignore_errors=True)
        (out / ".lock").mkdir()
        (out / ".lock" / name).symlink_to(victim)
        with pytest.raises(MemberError, match="is a link"), locked(out, "hcstvg-train"):
            pass
        assert victim.read_text() == "precious"
    shutil.rmtree(out / ".lock")
    (tmp_path / "elsewhere").mkdir()
    (out / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MemberError, match="is a link"), locked(out, "hcstvg-train"):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []


LINKED = (
    "plan",
    "manifests/tracks",
    "hcstvg/train/shards",
    "runs",
    "report",
    "catalog.sql",
    ".staging",
)
WRITERS = {
    "lock": lambda out: locked(out, "hcstvg-train").__enter__(),
    "catalogue": build_catalog,
    "data card": lambda out: write_card(out, {}, (0, 0)),
    "report": lambda out: write_report(out, {}, (0, 0)),
    "contact sheet": lambda out: contact_sheet(out, out / "report" / "all.png"),
}


@pytest.mark.parametrize("linked", LINKED)
def test_nothing_is_written_through_a_link(linked, out, tmp_path):
    elsewhere, place = tmp_path / "elsewhere", out / linked
    if place.exists():
        place.rename(elsewhere)
    else:
        elsewhere.mkdir()
    place.symlink_to(elsewhere)
    before = {p: p.stat().st_mtime_ns for p in [elsewhere, *elsewhere.rglob("*")]}
    for name, write in WRITERS.items():
        with pytest.raises(MemberError, match=r"is a link to .* nothing is written") as caught:
            write(out)
        assert linked in str(caught.value), name
    assert {p: p.stat().st_mtime_ns for p in [elsewhere, *elsewhere.rglob("*")]} == before


def test_an_output_may_be_a_link_and_hold_an_export(out, tmp_path):
    (tmp_path / "link").symlink_to(out)
    export(out, out / "export", "coco")
    (out / "export" / "videos").mkdir()
    (out / "export" / "sav_train").symlink_to("videos")  # as exports of Ref-SAV have one
    with locked(tmp_path / "link", "hcstvg-train"):
        build_catalog(tmp_path / "link")


@pytest.mark.parametrize("marked", [".", "manifests", "hcstvg", "hcstvg/train"])
def test_what_calls_itself_an_export_is_no_way_out(marked, out, tmp_path):
    """The marker of an export excuses links within that folder only, and never in the output itself."""
    (out / marked / EXPORT_MARKER).write_text("{}")
    inside = "manifests/tracks" if marked in (".", "manifests") else "hcstvg/train/shards"
    (out / inside).rename(tmp_path / "elsewhere")
    (out / inside).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MemberError, match="is a link"):
        build_catalog(out)


def test_a_lock_still_keeps_others_out(out):
    with (
        locked(out, "hcstvg-train"),
        pytest.raises(PlanConflict, match=f"process {os.getpid()}"),
        locked(out, "hcstvg-train"),
    ):
        pass
