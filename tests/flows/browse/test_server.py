"""The pages: they answer, and nothing that they show or are sent can do harm."""

import hashlib
import html
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from flows import driver
from flows.browse import where
from flows.browse.flags import Flags
from flows.browse.server import make_app, serve
from flows.browse.where import WhereProcess
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from manifests.catalog import query
from pipeline.presets import configure
from tests.flows.browse.conftest import SCRIPT


def test_the_overview_counts_and_leads_to_what_was_dropped(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "media_missing" in page.text
    assert "/quarantine?source=hcstvg&amp;split=train&amp;stage=" in page.text
    assert page.text.count('class="bar"') > 10


def test_a_caption_is_shown_and_never_run(client, ids):
    for url in ("/gallery", f"/clip/{ids[0]}", f"/gallery?text={SCRIPT[:8]}"):
        text = client.get(url).text
        assert "<script>alert" not in text, url
        assert str(html.escape(SCRIPT[:20])) in text, url
    assert "script-src 'self'" in client.get("/").headers["content-security-policy"]
    assert "'unsafe" not in client.get("/").headers["content-security-policy"]


@pytest.mark.parametrize("field", ["text", "where", "source", "min_iou", "order"])
def test_what_is_typed_comes_back_escaped(client, field):
    text = client.get("/gallery", params={field: '"><script>alert(1)</script>'}).text
    assert "<script>alert" not in text


def test_filters_count_and_page(client, ids):
    assert (
        "<span>5 samples</span>"
        in client.get("/gallery?source=hcstvg&split=train&min_frames=20&max_frames=20").text
    )
    assert "<span>0 samples</span>" in client.get("/gallery?min_frames=21").text
    assert "<span>1 sample</span>" in client.get("/gallery?text=ALERT(1)").text
    assert (
        "<span>2 samples</span>"
        in client.get(
            "/gallery", params={"where": f"referent_id <= '{ids[1]}' -- and no more"}
        ).text
    )
    assert "<span>2 rows</span>" in client.get("/quarantine").text
    assert "<span>1 row</span>" in client.get("/quarantine?reason=media_missing").text
    bad = client.get("/gallery?min_iou=high")
    assert bad.status_code == 400
    assert "min iou: &#39;high&#39; is not a number" in bad.text


def test_a_clip_page_has_all_that_is_known(client, ids, out):
    text = html.unescape(client.get(f"/clip/{ids[1]}?order=id&at=1").text)
    assert f"/clip/{ids[0]}?&at=0" in text
    assert f"/clip/{ids[2]}?&at=2" in text
    assert text.count('class="crop"') == 4
    assert text.count('<g class="representative"') == 4
    (asked,) = query(out, f"SELECT min(question) AS one FROM qa WHERE referent_id = '{ids[1]}'")
    assert asked["one"] in text
    (clip,) = query(
        out,
        f"SELECT c.* FROM clips c JOIN referents USING (clip_id) WHERE referent_id = '{ids[1]}'",
    )
    assert all(str(clip[name]) in text for name in ("media_path", "config_hash", "source_sha256"))


def test_the_lines_that_fetch_a_clip_fetch_it(client, ids):
    text = html.unescape(client.get(f"/clip/{ids[1]}").text)
    lines = text[text.index("with open(") :].split("</pre>")[0]
    found: dict = {}
    exec(lines, found)
    assert found["data"] == client.get(f"/member/{ids[1]}/mp4").content


def test_the_players_data_are_the_manifests(client, ids, out):
    data = client.get(f"/clip/{ids[1]}/data.json").json()
    assert (data["frames"], data["fps"], data["width"], data["height"], data["media"]) == (
        20,
        10.0,
        160,
        96,
        "mp4",
    )
    rows = query(out, f"SELECT * FROM tracks WHERE referent_id = '{ids[1]}' ORDER BY frame")
    assert data["track"][3] == [rows[3][side] for side in ("x1", "y1", "x2", "y2")]
    assert data["annotation"][3] == [12 + 9, 23, 12 + 9 + 32, 23 + 32]
    assert data["kept"] == [row["kept"] for row in rows]
    assert len(data["representatives"]) == 4
    masks = client.get(f"/member/{ids[1]}/masks.json").json()
    assert masks["0"]["size"] == [96, 160]


def test_ranges_are_exact(client, ids, out):
    (tar,) = out.rglob("*.tar")
    with tarfile.open(tar) as file:
        whole = file.extractfile(f"{ids[1]}.mp4").read()
    url = f"/member/{ids[1]}/mp4"
    full = client.get(url)
    assert (full.status_code, full.content, full.headers["content-type"]) == (
        200,
        whole,
        "video/mp4",
    )
    assert (full.headers["accept-ranges"], int(full.headers["content-length"])) == (
        "bytes",
        len(whole),
    )
    spans = {
        "bytes=0-0": whole[:1],
        "bytes=10-99": whole[10:100],
        "bytes=100-": whole[100:],
        "bytes=-7": whole[-7:],
        "bytes=5-99999999": whole[5:],
    }
    for asked, expected in spans.items():
        part = client.get(url, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, expected), asked
    assert part.headers["content-range"] == f"bytes 5-{len(whole) - 1}/{len(whole)}"
    past = client.get(url, headers={"Range": f"bytes={len(whole)}-"})
    assert (past.status_code, past.headers["content-range"]) == (416, f"bytes */{len(whole)}")
    for asked in ("bytes=0-1,4-5", "bytes=9-3", "lines=1-2", "bytes=x-"):
        assert client.get(url, headers={"Range": asked}).status_code == 200, asked
    assert client.get(url, headers={"If-None-Match": full.headers["etag"]}).status_code == 304
    assert client.get(url, headers={"Range": "bytes=0-3", "If-Range": '"old"'}).status_code == 200
    assert client.head(url).headers["content-length"] == str(len(whole))


@pytest.mark.parametrize(
    "url",
    [
        "/member/{id}/json",
        "/member/{id}/..%2f..%2fcatalog.sql",
        "/member/..%2f..%2fetc/mp4",
        "/member/nobody/mp4",
        "/static/..%2fserver.py",
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/clip/%2e%2e%2f%2e%2e",
        "/clip/nobody",
        "/clip/nobody/data.json",
        "/frame/{id}/0",
        "/frame/{id}/-1",
        "/catalog.sql",
        "/clip/' OR true --",
    ],
)
def test_there_is_no_way_to_anything_else(client, ids, url):
    assert client.get(url.format(id=ids[0])).status_code == 404


WRITES = [
    "COPY samples TO '{file}'",
    "ATTACH '{file}' AS x",
    "true; DROP TABLE samples",
    "true) TO '{file}'; --",
    "referent_id IN (SELECT content FROM read_text('{here}'))",
    "true IN (SELECT true FROM read_csv('{here}'))",
    "referent_id IN (SELECT file FROM glob('/*'))",
    "EXISTS (FROM '{here}')",
    "true UNION SELECT 1",
    "SET lock_configuration = false",
    "INSTALL httpfs",
    "true, false",
    "n_kept =",
    "nothing_there = 1",
    "EXISTS (WITH x AS (DELETE FROM samples RETURNING 1) FROM x)",
]


@pytest.mark.parametrize("where", WRITES)
def test_the_where_box_reads_these_tables_and_does_nothing_else(client, where, tmp_path):
    words = where.format(file=tmp_path / "written", here=__file__)
    answer = client.get("/gallery", params={"where": words})
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text
    assert " Error: " in answer.text  # DuckDB's own words
    assert "samples</span>" not in answer.text
    assert not list(tmp_path.rglob("written*"))
    assert "<span>5 samples</span>" in client.get("/gallery").text


def test_an_unknown_column_is_named_with_those_there_are(client):
    text = client.get("/gallery", params={"where": "mean_iu > 0.5"}).text
    assert "mean_iu" in text
    assert "mean_iou" in html.unescape(text).split('role="alert"')[1]


ENDLESS = "(SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range % 7 = b.range % 11) > 0"


def where_process(app) -> WhereProcess:
    return app.state.pages.catalogue._tables.where_process


def has_ended(pid: int) -> bool:
    """Also for a process whose parent is gone and that nobody waits for."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


def test_a_query_without_end_is_stopped(app, client, monkeypatch):
    monkeypatch.setattr("flows.browse.where.SECONDS", 0.5)
    child = where_process(app)._child.pid
    start = time.monotonic()
    answer = client.get("/gallery", params={"where": ENDLESS})
    assert time.monotonic() - start < 60  # unstopped, it takes hours
    assert answer.status_code == 400
    assert "stopped after 0.5 seconds" in answer.text
    assert has_ended(child)
    assert "<span>5 samples</span>" in client.get("/gallery?where=true").text


GREEDY = [
    "len(repeat('x', 4000000000)) > 0",  # folded to a constant before the query runs
    "len(repeat(caption, 30000000)) > 0",
]


@pytest.mark.parametrize("greedy", GREEDY)
def test_a_query_cannot_take_more_memory_than_its_limit(app, client, greedy):
    process = where_process(app)
    child, peak, done = process._child.pid, [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            with suppress(OSError, IndexError):
                status = Path(f"/proc/{child}/status").read_text()
                peak[0] = max(peak[0], int(status.split("VmHWM:")[1].split()[0]) << 10)
            done.wait(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    answer = client.get("/gallery", params={"where": greedy})
    done.set()
    watcher.join()
    assert answer.status_code == 400
    assert "more than 2 GiB of memory" in answer.text
    assert 0 < peak[0] < where.MEMORY * 1.05
    assert has_ended(child)
    assert "<span>5 samples</span>" in client.get("/gallery?where=true").text


def test_the_process_of_the_where_box_ends_with_its_server(out, tmp_path):
    command = [sys.executable, "-m", "flows.cli", "browse", str(out), "--port", "0", "--no-open"]
    with subprocess.Popen(
        [*command, "--flags", str(tmp_path / "flags.txt")], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert "http://" in server.stdout.readline()
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert len(children) == 1
        server.kill()
    for _ in range(100):
        if has_ended(int(children[0])):
            return
        time.sleep(0.1)
    pytest.fail("the process is still there after 10 s")


def test_flags_go_to_their_file_and_back(client, ids, flags):
    assert client.put(f"/flags/{ids[2]}").json() == {"flagged": True, "count": 1}
    client.put(f"/flags/{ids[0]}")
    assert flags.file.read_text() == client.get("/flags.txt").text == f"{ids[0]}\n{ids[2]}\n"
    assert "<span>2 samples</span>" in client.get("/gallery?flagged=1").text
    assert 'aria-pressed="true"' in client.get(f"/clip/{ids[0]}").text
    assert client.delete(f"/flags/{ids[0]}").json() == {"flagged": False, "count": 1}
    assert client.put("/flags/nobody").status_code == 404
    assert flags.read() == {ids[2]}


def test_other_pages_can_neither_look_nor_write(client, app, flags, ids):
    rebound = TestClient(app, base_url="http://evil.example:8787")
    assert rebound.get("/").status_code == 421
    for own in ("http://localhost:8787", "http://[::1]:8787", "http://127.0.0.1"):
        assert TestClient(app, base_url=own).get("/").status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert client.put(f"/flags/{ids[0]}", headers={"Origin": origin}).status_code == 403
    assert (
        client.put(f"/flags/{ids[0]}", headers={"Origin": "http://127.0.0.1:8787"}).status_code
        == 200
    )


def test_nothing_is_written_to_the_output(client, ids, out, flags):
    def state() -> dict[Path, str]:
        return {
            p: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()
        }

    before = state()
    for url in (
        "/",
        "/gallery",
        "/quarantine",
        f"/clip/{ids[0]}",
        f"/member/{ids[0]}/mp4",
        "/flags.txt",
    ):
        assert client.get(url).status_code == 200
    client.put(f"/flags/{ids[0]}")
    assert state() == before


def test_a_clip_of_pictures_is_shown_frame_by_frame(tiny_root, tmp_path):
    config = configure("lite", ["media.media=frames"])
    driver.run(make_jobs("hcstvg", tiny_root, tmp_path / "out", config, limit=1), Inline(), Quiet())
    app = make_app(tmp_path / "out", Flags(tmp_path / "flags.txt", tmp_path / "out"))
    client = TestClient(app, base_url="http://localhost")
    (row,) = query(
        tmp_path / "out", "SELECT referent_id AS id, path FROM referents JOIN shards USING (shard)"
    )
    assert client.get(f"/clip/{row['id']}/data.json").json()["media"] == "frames"
    assert f"/frame/{row['id']}/0" in client.get(f"/clip/{row['id']}").text
    picture = client.get(f"/frame/{row['id']}/19")
    assert Image.open(io.BytesIO(picture.content)).size == (160, 96)
    assert client.get(f"/frame/{row['id']}/20").status_code == 404
    (tmp_path / "out" / row["path"]).write_bytes(b"damaged")
    damaged = client.get(f"/frame/{row['id']}/19")
    assert (damaged.status_code, "sparrow verify" in damaged.text) == (500, True)
    assert client.get(f"/clip/{row['id']}").status_code == 200


@pytest.mark.timeout(60)
def test_the_command_serves_on_loopback_until_it_is_stopped(out, tmp_path):
    command = [
        str(Path(sys.executable).with_name("sparrow")),
        "browse",
        str(out),
        "--port",
        "0",
        "--no-open",
    ]
    env = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as server:
        url = server.stdout.readline().split()[1]
        assert url.startswith("http://127.0.0.1:")
        with pytest.raises(ValueError, match="use --port"):
            serve(
                out,
                "127.0.0.1",
                int(url.rsplit(":", 1)[1].strip("/")),
                tmp_path / "flags.txt",
                open_browser=False,
            )
        with urllib.request.urlopen(url) as answer:
            assert b"Funnel, referents" in answer.read()
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0, server.stderr.read()


def test_an_iou_says_on_how_many_frames_it_rests(client, ids, out, app, monkeypatch):
    first = f"/clip/{ids[0]}"
    row = query(out, f"SELECT * FROM referents WHERE referent_id = '{ids[0]}'")[0]
    words = f"IoU {row['mean_iou']:.2f} on "
    assert words in client.get("/gallery").text
    assert words in client.get(first).text
    assert 'class="agree little"' not in client.get("/gallery").text
    find = app.state.pages.catalogue.find

    def rests_on_one_frame(*given):
        total, page = find(*given)
        little = {"n_kept": 278, "iou_coverage": 6 / 278, "n_compared": 6}
        return total, [one | little for one in page]

    monkeypatch.setattr(app.state.pages.catalogue, "find", rests_on_one_frame)
    text = client.get("/gallery").text
    assert 'class="agree little"' in text
    assert "on 6 of 278 frames" in text


def test_the_player_is_told_which_masks_are_fallbacks(client, ids, out):
    for referent in ids:
        data = client.get(f"/clip/{referent}/data.json").json()
        rows = query(
            out,
            f"SELECT frame FROM masks WHERE referent_id = '{referent}' AND origin LIKE '%-fallback' ORDER BY 1",
        )
        assert data["fallback"] == [row["frame"] for row in rows]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_site_asks_is_refused(client, ids, site):
    """Its page may not make this server work; the user's own address bar and pages may."""
    for url in ("/", "/gallery?where=true", f"/member/{ids[0]}/mp4"):
        assert client.get(url, headers={"Sec-Fetch-Site": site}).status_code == 403
        for own in ("none", "same-origin"):
            assert client.get(url, headers={"Sec-Fetch-Site": own}).status_code == 200
