"""The run report: one file that needs nothing else, says what the manifests say, and never costs a run."""

import base64
import io
import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows import driver
from flows.cli import app
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from flows.report import make_report
from manifests.catalog import connect, query
from manifests.report import data, write_report
from pipeline.presets import configure
from schemas import tables
from tests.manifests.made import make_whole

SOURCES = ("a2d", "hcstvg", "mevis")
PAPER = {"a2d": (3_017, 5_359), "mevis": (1_644, 4_489)}
EVIL = "<script>alert('x')</script>"
START = datetime(2026, 1, 2, tzinfo=UTC)


def dropped(source: str, stage: str, reason: str, n: int) -> list[dict]:
    row = dict.fromkeys(tables.schema("quarantine").names) | {
        "source": source,
        "split": "train",
        "stage": stage,
        "reason": reason,
        "message": f"{EVIL} {stage}",
        "attempt": 1,
        "retryable": False,
        "shard": f"{source}-000000",
    }
    return [row | {"clip_id": f"{source}-{stage}-{i}"} for i in range(n)]


def timing(shard: str, clip: str, stage: str, seconds: float) -> dict:
    return {
        "clip_id": clip,
        "stage": stage,
        "seconds": seconds,
        "frames": 10,
        "bytes": 0,
        "note": "",
        "shard": shard,
    }


def run(source: str, after: float, seconds: float, workers: int) -> dict:
    config = {
        "config": {"preset": "lite"},
        "take": {"max_clips": 2},
        "data_root": "/data/secret",
        "out": "/data/out",
    }
    return dict.fromkeys(tables.schema("runs").names) | {
        "run_id": f"{source}{after}",
        "source": source,
        "split": "train",
        "started": START + timedelta(seconds=after),
        "ended": START + timedelta(seconds=after + seconds),
        "status": "completed",
        "executor": "inline",
        "workers": workers,
        "clips_done": 1,
        "config": json.dumps(config),
        "versions": '{"python": "3.11"}',
        "synthetic": True,
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Three sources with drops, times and runs that are known, and markup where a dataset could have some."""
    out = make_whole(tmp_path_factory.mktemp("report") / "out", SOURCES)
    manifests = out / "manifests"
    lost = {
        "a2d": [("plan", "known_bad", 2), ("decode", "media_unreadable", 1)],
        "mevis": [("agree", "disagrees", 3)],
    }
    for source, rows in lost.items():
        part = next((manifests / "quarantine").glob(f"{source}-*"))
        shard = part.stem
        rows = [row | {"shard": shard} for one in rows for row in dropped(source, *one)]
        tables.write(part, "quarantine", rows)
    for source, clips in {
        "a2d": {"x": (1.0, 3.0)},
        "mevis": {"y": (2.0, 8.0), "z": (0.5, 0.5)},
    }.items():
        part = next((manifests / "timings").glob(f"{source}-*"))
        tables.write(
            part,
            "timings",
            [
                timing(part.stem, clip, stage, s)
                for clip, both in clips.items()
                for stage, s in zip(("decode", "track"), both, strict=True)
            ],
        )
    part = next((manifests / "referents").glob("mevis-*"))
    rows = pq.read_table(part).to_pylist()
    tables.write(part, "referents", [row | {"caption": f"{EVIL} {row['caption']}"} for row in rows])
    # Two runs that overlap for 5 s, and one a day later.
    for row in (run("a2d", 0, 10, 2), run("mevis", 5, 10, 2), run("mevis", 86_400, 20, 4)):
        tables.write(manifests / "runs" / f"{row['run_id']}.parquet", "runs", [row])
    return out


@pytest.fixture(scope="module")
def page(out) -> str:
    return write_report(
        out, PAPER, (30_646, 45_231), planned={"a2d-test": 9, "mevis-valid_u": 2}
    ).read_text()


def text(page: str) -> str:
    """What a reader sees, on one line."""
    return " ".join(
        re.sub(
            r"<[^>]+>", " ", re.sub(r"(?s)<style>.*?</style>|<title>.*?</title>", "", page)
        ).split()
    )


def test_one_file_with_no_script_and_nothing_from_elsewhere(page):
    assert not re.search(r"<script|<link|<iframe|@import|url\(|javascript:| on\w+=", page)
    assert {
        src[:23] for src in re.findall(r'(?:src|href)="([^"]*)"', page) if not src.startswith("#")
    } == {"data:image/jpeg;base64,"}
    assert "default-src 'none'" in page
    assert len(page) < 3_000_000


def test_it_says_what_came_of_the_referents(page):
    seen = text(page)
    assert "12 referents were read, 6 became samples" in seen, seen[:900]
    assert "7 more are planned and not yet curated" in seen
    assert "in the annotations 12 plan 10 −2 decode 9 −1 agree 6 −3" in seen
    assert "agree disagrees 3 25 %" in seen


def test_the_funnel_loses_each_referent_once(out):
    with connect(out) as catalogue:
        steps = data.funnel(catalogue)
    assert [step["stage"] for step in steps] == ["", "plan", "decode", "agree"]
    assert [step["left"] for step in steps] == [
        {"a2d": 5, "hcstvg": 2, "mevis": 5},
        {"a2d": 3, "hcstvg": 2, "mevis": 5},
        {"a2d": 2, "hcstvg": 2, "mevis": 5},
        {"a2d": 2, "hcstvg": 2, "mevis": 2},
    ]
    for before, after in pairwise(steps):
        assert sum(before["left"].values()) - sum(after["left"].values()) == sum(
            after["dropped"].values()
        )


def test_counts_stand_beside_the_papers(page):
    seen = text(page)
    assert re.search(r"a2d test 1 1 3,017 2 2 5,359 3 ", seen)
    assert re.search(r"hcstvg train 1 1 – 2 2 – 0 ", seen)
    assert re.search(r"all 3 3 30,646 6 6 45,231 6 ", seen)


def test_time_is_that_of_stages_and_of_the_clock(out, page):
    with connect(out) as catalogue:
        time = data.time_spent(catalogue)
        slowest = data.slowest(catalogue)
    assert [(row["stage"], row["seconds"]) for row in time["stages"]] == [
        ("track", 11.5),
        ("decode", 3.5),
    ]
    assert (time["spent"], time["wall"]) == (15.0, 35.0)  # 15 s of two runs that overlap, then 20 s
    assert time["cores"] == 15 * 2 + 20 * 4
    assert [(row["clip_id"], row["seconds"], row["stage"]) for row in slowest] == [
        ("y", 10.0, "track"),
        ("x", 4.0, "track"),
        ("z", 1.0, "track" if slowest[2]["stage"] == "track" else "decode"),
    ]
    assert "track 77 % 11.5 s" in text(page)


def test_what_data_say_is_text_and_not_markup(page):
    assert EVIL not in page
    assert "&lt;script&gt;" in page


def test_no_folder_of_this_machine_is_in_it(out, page):
    assert str(out.parent) not in page
    assert "/data/secret" not in page
    assert "max_clips" in page
    assert "&#34;preset&#34;: &#34;lite&#34;" in page


def test_pictures_are_strips_of_four_frames_and_four_crops(page):
    uris = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    # Worst: four have an IoU, one more has lost frames. Sheets: two of each source.
    assert len(uris) == 4 + 1 + 2 * len(SOURCES)
    with Image.open(io.BytesIO(base64.b64decode(uris[0]))) as strip:
        assert strip.format == "JPEG"
        assert strip.width > 9 * strip.height


def test_it_is_bounded_whatever_there_is(out):
    with connect(out) as catalogue:
        catalogue.execute(
            "CREATE OR REPLACE TEMP TABLE many AS SELECT r.* REPLACE (referent_id || i AS referent_id) "
            "FROM referents r, range(500) t(i)"
        )
        catalogue.execute("CREATE OR REPLACE VIEW referents AS FROM many")
        assert len(data.worst(catalogue)) <= 2 * data.WORST
        assert {name: len(rows) for name, rows in data.sheet(catalogue).items()} == dict.fromkeys(
            SOURCES, 3
        )
        assert len(data.slowest(catalogue)) <= data.SLOWEST


def test_a_damaged_shard_costs_its_pictures_only(out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    tar = next(copy.glob("mevis/**/*.tar"))
    tar.write_bytes(tar.read_bytes()[:2000])
    page = write_report(copy, PAPER, (1, 1)).read_text()
    assert "no picture: " in page
    assert page.count('<img src="data:') >= 4


def test_an_output_of_which_nothing_is_left_has_a_report(out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for table in (
        "referents",
        "clips",
        "qa",
        "tracks",
        "masks",
        "tsf",
        "tsf_features",
        "members",
        "timings",
    ):
        for part in (copy / "manifests" / table).iterdir():
            empty = pq.read_table(part).slice(0, 0)
            pq.write_table(empty, part)
    page = text(write_report(copy, PAPER, (1, 1)).read_text())
    assert "6 referents were read, 0 became samples" in page
    assert "No sample survived" in page


def test_no_output_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no committed shards"):
        make_report(tmp_path)


# --- after a run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobs(tiny_root, tmp_path_factory):
    return make_jobs(
        "hcstvg", tiny_root, tmp_path_factory.mktemp("run") / "out", configure("lite"), limit=2
    )


def test_a_failed_report_is_a_warning_and_the_run_is_whole(jobs, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> Path:
        raise OSError("no space left on device\nreally")

    monkeypatch.setattr("manifests.report.write_report", fail)
    [done] = driver.run(jobs, Inline(), Quiet())
    assert done.shards_done == 1
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: the run is complete, but `sparrow report ")
    assert warning.endswith("OSError: no space left on device really")
    assert (Path(jobs[0].out) / "croissant.json").exists()


def test_every_run_that_did_something_leaves_report_and_card(jobs, capsys):
    """After the test above: what is missing is written although the run has nothing left to do, and then kept."""
    out = Path(jobs[0].out)
    files = [out / "report" / "index.html", out / "README.md", out / "croissant.json"]
    driver.run(jobs, Inline(), Quiet())
    before = [file.stat().st_mtime_ns for file in files]
    driver.run(jobs, Inline(), Quiet())
    assert [file.stat().st_mtime_ns for file in files] == before
    assert capsys.readouterr().err == ""
    [row] = query(out, "SELECT count(*) AS n FROM referents")
    assert f" {row['n']} became samples" in text(files[0].read_text())


def test_the_verb_makes_it_anew(jobs):
    out = Path(jobs[0].out)
    (out / "report" / "index.html").unlink()
    done = CliRunner().invoke(app, ["report", str(out), "--json"])
    assert json.loads(done.stdout) == str(out / "report" / "index.html")
    assert Path(json.loads(done.stdout)).exists()


def test_a_readme_of_somebody_elses_is_kept_with_a_warning(out, tmp_path, capsys):
    from flows.report import after_run

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "README.md").write_text("mine")
    after_run(copy, Quiet())
    assert (copy / "README.md").read_text() == "mine"
    assert "`sparrow card" in capsys.readouterr().err


# --- in a browser ----------------------------------------------------------------------------------------------------


def test_it_opens_from_disk_in_a_browser(out, page):
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium on this machine: the page was not opened")
    sync = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: the page was not opened"
    )
    said: list[str] = []
    asked: list[str] = []
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme, dark in (("light", False), ("dark", True)):
            tab = browser.new_page(viewport={"width": 800, "height": 900}, color_scheme=scheme)
            tab.on("console", lambda message: said.append(message.text))
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto((out / "report" / "index.html").resolve().as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") == 800  # nothing sticks out
            tab.evaluate("[...document.images].forEach(i => i.loading = 'eager')")
            tab.wait_for_function(
                "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
            )
            [red] = re.findall(
                r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor")
            )[:1]
            assert (int(red) < 80) is dark
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
