"""The rows S and Q of ../shared/cases/README.md: layouts that people have, plans that tell the truth, true counts."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from manifests.catalog import query
from tests.conftest import ABSENT, SHARED
from tests.e2e.conftest import BIN

TREES = SHARED / "cases" / "trees"

pytestmark = pytest.mark.skipif(not TREES.is_dir(), reason=ABSENT)


def sparrow(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def plan(source: str, root: Path) -> dict:
    told = sparrow("plan", source, "--data-root", root, "--json")
    assert told.exit_code == 0, told.output
    return json.loads(told.stdout)


def curate(source: str, root: Path, out: Path, *more: object) -> Result:
    words = ("--data-root", root, "--out", out, "--executor", "inline", "--workers", 1)
    return sparrow("curate", source, *words, *more)


def splits_of(found: dict) -> dict[str, tuple[int, str]]:
    return {row["split"]: (row["clips"], row["media"]) for row in found["splits"]}


@pytest.fixture
def tree(tmp_path):
    """A copy that may be written to; links that a checkout has made text files are links again."""

    def copy(name: str) -> Path:
        place = tmp_path / "tree" / name
        shutil.copytree(TREES / name, place)
        for path in place.rglob("*"):
            path.chmod(0o755)
            if path.is_file() and not path.suffix and path.stat().st_size < 100:
                target = path.read_text().strip()
                path.unlink()
                path.symlink_to(target)
        return place

    return copy


def test_s01_the_second_version_of_mevis_is_read():
    found = plan("mevis", TREES / "mevis_v2_file")
    assert splits_of(found) == {"valid_u": (1, "all")}
    assert found["skip"] == {"no_object": 1}


@pytest.mark.parametrize("is_link", [True, False])
def test_s02_a_split_that_is_a_link_is_named_with_the_option(tree, is_link):
    """As a link, and as the text file that a checkout has made of it."""
    root = tree("links") / "root" if is_link else TREES / "links" / "root"
    process = subprocess.run(
        [BIN / "sparrow", "plan", "mevis", "--data-root", root], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "--follow-links" in process.stderr + process.stdout
    assert "valid_u" in process.stderr + process.stdout


def test_s03_pictures_behind_a_link_are_counted_as_skipped(tree):
    root = tree("links") / "root_pictures"
    found = plan("mevis", root)
    assert found["quarantined"] == found["referents"] == found["skip"]["unsafe_path"] == 2
    told = sparrow("plan", "mevis", "--data-root", root)
    assert "try: --follow-links: valid_u/JPEGImages is a link" in told.stdout
    followed = sparrow("plan", "mevis", "--data-root", root, "--follow-links", "--json")
    assert json.loads(followed.stdout)["quarantined"] == 0


def test_s04_v2_of_hcstvg_under_annos_is_read_as_v2():
    found = plan("hcstvg", TREES / "hcstvg_v2_under_annos" / "hc-stvg2")
    assert {row["split"]: row["clips"] for row in found["splits"]} == {"train": 1, "val": 1}


@pytest.mark.parametrize("name", ["got10k_full_data", "got10k_split_folders"])
def test_s05_s06_got10k_as_downloaded_is_read(name):
    found = plan("got10k", TREES / name)
    assert splits_of(found)["train"] == (2, "all")
    assert found["quarantined"] == 0


def test_s07_a_list_of_training_sequences_makes_the_split():
    assert splits_of(plan("lasot", TREES / "lasot_training_list_only")) == {"train": (1, "all")}


def test_s08_a_phrase_in_another_encoding_has_its_reason(tmp_path):
    curate("lasot", TREES / "lasot_latin1", tmp_path / "out")
    [row] = query(tmp_path / "out", "SELECT reason, message FROM quarantine")
    assert row["reason"] == "annotation_invalid"
    assert "toy/toy-1/nlp.txt" in row["message"]
    assert "not UTF-8" in row["message"]
    captions = query(tmp_path / "out", "SELECT caption FROM referents")
    assert len(captions) == 1
    assert "\ufffd" not in captions[0]["caption"]


@pytest.mark.parametrize(
    ("source", "name"), [("vid_sentence", "vid_jpg_names"), ("a2d", "a2d_appledouble")]
)
def test_s09_s10_what_the_plan_promises_is_kept(source, name, tmp_path):
    found = plan(source, TREES / name)
    assert (found["clips"], found["quarantined"]) == (1, 0)
    told = curate(source, TREES / name, tmp_path / "out")
    assert told.exit_code == 0, told.output
    assert "dropped: 0 of 1 clips" in told.stdout


def test_s11_a_root_with_closed_folders_has_the_usual_message():
    process = subprocess.run(
        [BIN / "sparrow", "plan", "hcstvg", "--data-root", "/"], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "no hcstvg annotations under /" in process.stderr
    assert "expected:" in process.stderr


def test_q01_equal_runs_give_equal_quarantine(tmp_path):
    parts = []
    for n in range(2):
        out = tmp_path / str(n)
        curate("hcstvg", TREES / "clock_in_quarantine", out)
        [part] = (out / "manifests" / "quarantine").glob("*.parquet")
        parts.append(part.read_bytes())
    assert parts[0] == parts[1]


def test_q02_a_rejected_expression_is_no_dropped_clip(tmp_path):
    told = curate("mevis", TREES / "mevis_no_target", tmp_path, "--max-dropped", 0.1)
    assert told.exit_code == 0, told.output
    assert "dropped: 0 of 1 clips" in told.stdout
    [row] = query(tmp_path, "SELECT reason FROM quarantine")
    assert row["reason"] == "no_object"


def test_q03_a_web_page_instead_of_masks_is_named():
    process = subprocess.run(
        [BIN / "sparrow", "plan", "mevis", "--data-root", TREES / "mevis_html_masks"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    for words in (
        "valid_u/mask_dict.json",
        "a web page",
        "download mask_dict.json of valid_u again",
    ):
        assert words in process.stderr
