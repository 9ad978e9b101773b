"""`sparrow weights`: what a user types, and downloads from servers that misbehave."""

import hashlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import torch
from typer.testing import CliRunner

from flows import download
from flows.download import Refused, fetch_file, fetch_sums
from flows.weights import app
from pipeline.weights import WEIGHTS, WeightFile

REPO = Path(__file__).resolve().parents[2]
BODY = bytes(range(250)) * 1200  # 300 kB
OTHER = BODY[::-1]
DIGEST = hashlib.sha256(BODY).hexdigest()


class Mirror:
    """A server whose answers a test writes. `log` holds the headers of every request."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = serve()
        self.log: list[dict[str, str]] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                mirror.log.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                self.close_connection = True
                mirror.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/files/"
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()


def say(request: BaseHTTPRequestHandler, code: int, body: bytes = b"", **headers: str) -> None:
    """A whole answer; Content-Length is the body's unless given, "" for none."""
    request.send_response(code)
    for name, value in ({"Content_Length": str(len(body))} | headers).items():
        if value:
            request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


def serve(body: bytes = BODY, etag: str = '"one"', *, ranges: bool = True, send: int | None = None, sums: str = ""):
    """An answer as good servers give it. send: break off after so many bytes; ranges: honour them."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith("SHA256SUMS"):
            return say(request, 200, sums.encode()) if sums else say(request, 404)
        start, total = 0, len(body)
        wanted = request.headers.get("Range")
        if wanted and ranges and request.headers.get("If-Range") == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                return say(request, 416, Content_Range=f"bytes */{total}")
        part, length = body[start:][:send], str(total - start)
        span = {"Content_Range": f"bytes {start}-{total - 1}/{total}"} if start else {}
        return say(request, 206 if start else 200, part, Content_Length=length, ETag=etag, **span)

    return answer


def in_turn(*answers):
    """The first answer to the first request, and so on; the last one from then on."""
    rest = list(answers)
    return lambda request: (rest.pop(0) if len(rest) > 1 else rest[0])(request)


@pytest.fixture(scope="module")
def running():
    mirror = Mirror()
    yield mirror
    mirror.server.shutdown()


@pytest.fixture
def mirror(running, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    running.answer, running.log = serve(), []
    return running


@pytest.fixture
def get(mirror, tmp_path):
    """`get()` fetches a.bin into tmp_path/root; `get.there` is where it goes."""
    root = tmp_path / "root"
    root.mkdir()

    def fetch(path: str = "a.bin", size: int = len(BODY), timeout: float = 5, **words: str) -> str:
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            return fetch_file(client, httpx.URL(mirror.url), root, path, size, **words)

    fetch.root, fetch.there, fetch.part = root, root / "a.bin", root / "a.bin.part"
    return fetch


def leave(get, body: bytes, version: str = '"one"') -> None:
    """What a stopped download leaves behind."""
    get.part.write_bytes(body)
    get.part.with_name("a.bin.part.version").write_text(version)


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --- what goes well ---------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_nothing_else_stays(get):
    assert get() == "0.3 MB, nothing to verify it with except its size"
    assert get.there.read_bytes() == BODY
    assert names(get.root) == ["a.bin"]


def test_a_file_in_a_folder(get):
    get("bert/vocab.txt")
    assert names(get.root) == ["bert/vocab.txt"]


@pytest.mark.parametrize("word", ["listed", "known"])
def test_it_says_what_was_verified(get, word):
    expected = "sha256 as in SHA256SUMS" if word == "listed" else "sha256 as published"
    assert expected in get(**{word: DIGEST})


def test_it_says_when_the_mirror_has_another_file_than_the_published_one(get):
    assert "which is NOT the published file's" in get(listed=DIGEST, known="0" * 64)


def test_what_is_there_is_not_fetched_again_but_verified(get, mirror):
    get.there.write_bytes(BODY)
    assert get(listed=DIGEST) == "is there already, sha256 as in SHA256SUMS"
    assert mirror.log == []
    get.there.write_bytes(OTHER)
    with pytest.raises(Refused, match="move it away"):
        get(listed=DIGEST)
    assert get.there.read_bytes() == OTHER


def test_it_goes_on_where_it_stopped(get, mirror):
    leave(get, BODY[:100_000])
    get(known=DIGEST)
    assert mirror.log[0]["range"] == "bytes=100000-"
    assert mirror.log[0]["if-range"] == '"one"'
    assert get.there.read_bytes() == BODY


def test_the_date_of_the_last_change_serves_where_the_etag_is_weak(get, mirror):
    date = {"ETag": 'W/"x"', "Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    span = {"Content_Range": f"bytes 9-{len(BODY) - 1}/{len(BODY)}"}
    mirror.answer = in_turn(
        lambda request: say(request, 200, BODY[:9], Content_Length=str(len(BODY)), **date),
        lambda request: say(request, 206, BODY[9:], **span, **date),
    )
    get(known=DIGEST)
    assert mirror.log[1]["if-range"] == date["Last_Modified"]


# --- servers that misbehave -------------------------------------------------------------------------------------------


def test_a_file_that_changed_on_the_server_is_fetched_from_the_start(get, mirror):
    leave(get, OTHER[:100_000], '"old"')
    get(known=DIGEST)
    assert mirror.log[0]["if-range"] == '"old"'
    assert get.there.read_bytes() == BODY


def test_a_206_of_another_version_is_not_joined(get, mirror):
    """A server that ignores If-Range."""
    leave(get, OTHER[:100_000], '"old"')
    careless = lambda r: say(r, 206, BODY[100_000:], ETag='"one"', Content_Range=f"bytes 100000-299999/{len(BODY)}")  # noqa: E731
    mirror.answer = lambda request: careless(request) if "Range" in request.headers else serve()(request)
    get()
    assert get.there.read_bytes() == BODY


def test_a_server_without_ranges_sends_it_again(get, mirror):
    leave(get, BODY[:100_000])
    mirror.answer = serve(ranges=False)
    get()
    assert get.there.read_bytes() == BODY


def test_bytes_without_a_version_are_not_trusted(get, mirror):
    get.part.write_bytes(OTHER[:100_000])
    get()
    assert "range" not in mirror.log[0]
    assert get.there.read_bytes() == BODY


def test_416_because_all_of_it_was_here(get):
    leave(get, BODY)
    get(known=DIGEST)
    assert get.there.read_bytes() == BODY


def test_416_because_there_was_too_much(get):
    leave(get, BODY + b"more")
    get()
    assert get.there.read_bytes() == BODY


def test_a_transfer_that_breaks_off_goes_on(get, mirror):
    mirror.answer = serve(send=100_000)  # of what is left, each time
    get(known=DIGEST)
    assert [entry.get("range") for entry in mirror.log] == [None, "bytes=100000-", "bytes=200000-"]


def test_it_gives_up_after_some_attempts_and_keeps_what_it_has(get, mirror):
    mirror.answer = serve(send=10)
    with pytest.raises(Refused, match=r"5 attempts failed.*run the same command again"):
        get()
    assert len(mirror.log) == 5
    assert get.part.read_bytes() == BODY[:50]
    assert not get.there.exists()
    mirror.answer = serve()
    get()
    assert mirror.log[-1]["range"] == "bytes=50-"
    assert get.there.read_bytes() == BODY


def test_a_connection_reset_is_tried_again(get, mirror):
    def reset(request: BaseHTTPRequestHandler) -> None:
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        request.connection.close()

    mirror.answer = in_turn(reset, serve())
    get()
    assert get.there.read_bytes() == BODY


def test_a_server_that_falls_silent_is_tried_again(get, mirror):
    done = threading.Event()

    def hang(request: BaseHTTPRequestHandler) -> None:
        serve(send=1000)(request)
        request.wfile.flush()
        done.wait(5)

    mirror.answer = in_turn(hang, serve())
    get(timeout=0.3)
    done.set()
    assert mirror.log[1]["range"] == "bytes=1000-"
    assert get.there.read_bytes() == BODY


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_tried_again(get, mirror, code):
    mirror.answer = in_turn(lambda request: say(request, code), serve())
    get()
    assert get.there.read_bytes() == BODY


def test_nobody_listens(get, mirror, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        with httpx.Client(trust_env=False) as client, pytest.raises(Refused, match=r"5 attempts.*ConnectError"):
            fetch_file(client, httpx.URL(url), get.root, "a.bin", 1)


def test_a_wrong_digest_leaves_no_file(get):
    with pytest.raises(Refused, match=f"sha256 is {DIGEST}, SHA256SUMS says 0000"):
        get(listed="0" * 64)
    assert names(get.root) == []
    get(listed=DIGEST)
    assert names(get.root) == ["a.bin"]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_file_that_the_mirror_does_not_give_is_one_message_at_once(get, mirror, code):
    mirror.answer = lambda request: say(request, code, b"<html>")
    with pytest.raises(Refused, match=f"a.bin: HTTP {code}"):
        get()
    assert len(mirror.log) == 1
    assert names(get.root) == []


def test_redirects_are_followed_within_http(get, mirror):
    onward = lambda request: say(request, 302, Location="/elsewhere/a.bin?token=secret")  # noqa: E731
    mirror.answer = in_turn(onward, serve())
    get()
    assert [entry["path"] for entry in mirror.log] == ["/files/a.bin", "/elsewhere/a.bin?token=secret"]
    mirror.answer = lambda request: say(request, 302, Location="/again")
    with pytest.raises(Refused, match="more than 5 redirects"):
        get("b.bin")


@pytest.mark.parametrize("onward", ["file:///etc/passwd", "ftp://127.0.0.1/a.bin"])
def test_redirects_to_another_scheme_are_refused(get, mirror, onward):
    mirror.answer = lambda request: say(request, 302, Location=onward)
    with pytest.raises(Refused, match="only http and https"):
        get()
    assert names(get.root) == []


def test_encryption_is_not_given_up(get):
    """https needs a certificate: here the transport is replaced, nothing else."""
    plain = httpx.MockTransport(lambda request: httpx.Response(302, headers={"Location": "http://m.example/a.bin"}))
    with httpx.Client(transport=plain) as client, pytest.raises(Refused, match="only https can be followed"):
        fetch_file(client, httpx.URL("https://m.example/"), get.root, "a.bin", 1)


def test_messages_hold_no_password(get, mirror):
    mirror.answer = lambda request: say(request, 404)
    url = httpx.URL(mirror.url).copy_with(userinfo=b"me:secret")
    with httpx.Client(trust_env=False) as client, pytest.raises(Refused) as caught:
        fetch_file(client, url, get.root, "a.bin", 1)
    assert "secret" not in str(caught.value)


def test_a_file_of_absurd_size_is_refused_before_it_is_written(get, mirror):
    mirror.answer = lambda request: say(request, 200, b"x", Content_Length=str(5 * 10**6), ETag='"one"')
    with pytest.raises(Refused, match="not the file that is meant"):
        get(size=10**6)
    mirror.answer = lambda request: say(request, 200, b"x", Content_Length=str(21 * 10**9), ETag='"one"')
    with pytest.raises(Refused, match=r"over 20,000,000,000 bytes"):
        get(size=0)
    assert names(get.root) == []


def test_a_web_page_in_place_of_the_file_is_refused(get, mirror):
    mirror.answer = lambda request: say(request, 200, b"<html>please log in</html>")
    with pytest.raises(Refused, match=": 26 bytes: not the file that is meant"):
        get()
    assert names(get.root) == []


def test_a_stream_without_length_is_stopped_at_the_limit(get, mirror):
    mirror.answer = lambda request: say(request, 200, bytes(3 << 20), Content_Length="", Connection="close")
    with pytest.raises(Refused, match=r"over 1,048,576 bytes"):
        get(size=1000)
    assert not get.there.exists()
    assert not get.part.exists()


def test_a_full_disk_is_one_message_and_loses_nothing(get, mirror):
    """A limit on the size of files stands for the full disk: the kernel refuses the write, as it would there."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, old[1]))
    try:
        with pytest.raises(Refused, match=r"no room.*what arrived is kept: free some space"):
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert 0 < get.part.stat().st_size <= 150_000
    get(known=DIGEST)
    assert "range" in mirror.log[-1]


def test_too_little_room_is_known_before_the_download(get, mirror, monkeypatch):
    usage = download.shutil.disk_usage(get.root)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(Refused, match="300,000 bytes to come, 1,000 free"):
        get()


def test_nothing_is_written_outside_the_root(get, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (get.root / "bert").symlink_to(outside)
    (get.root / "c.bin.part").symlink_to(outside / "c.bin")
    for path in ("bert/vocab.txt", "c.bin", "../d.bin"):
        with pytest.raises(Refused, match="leads out of the weights root"):
            get(path)
    assert names(outside) == []


def test_two_at_once_do_not_mix(get):
    import fcntl

    with get.part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="being written by another process"):
            get()


# --- SHA256SUMS -------------------------------------------------------------------------------------------------------


def sums(mirror, root: Path) -> dict[str, str]:
    with httpx.Client(trust_env=False) as client:
        return fetch_sums(client, httpx.URL(mirror.url), root)


def test_sums_as_coreutils_writes_them(mirror, tmp_path):
    mirror.answer = serve(sums=f"{DIGEST}  a.bin\n{DIGEST.upper()} *./b/c.txt\n\n")
    assert sums(mirror, tmp_path) == {"a.bin": DIGEST, "b/c.txt": DIGEST}
    assert names(tmp_path) == []


def test_no_sums_is_no_error_but_a_web_page_instead_of_them_is(mirror, tmp_path):
    assert sums(mirror, tmp_path) == {}
    mirror.answer = serve(sums="<html>please log in</html>")
    with pytest.raises(Refused, match="not what sha256sum writes"):
        sums(mirror, tmp_path)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def weights_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPARROW_WEIGHTS", str(tmp_path / "w"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "w"


def sparrow_weights(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output
    return done.stdout


def two_files(monkeypatch, loader: str) -> None:
    small = WeightFile(
        "one", "one.pth", "for a test", "one.pth", "https://example.org", "MIT", 1000, loader, needed=True
    )
    bound = WeightFile(
        "two", "two.pth", "", "2.pth", "https://example.org/two", "none stated", 9, loader, fetchable=False
    )
    monkeypatch.setattr("pipeline.weights.WEIGHTS", (small, bound))


def test_list_names_every_file_its_place_and_its_source(weights_root):
    text = sparrow_weights("list")
    assert str(weights_root) in text
    assert "SPARROW_WEIGHTS" in text
    rows = json.loads(sparrow_weights("list", "--json"))["weights"]
    assert [row["name"] for row in rows] == [entry.name for entry in WEIGHTS]
    assert {row["there"] for row in rows} == {"no"}
    weights_root.mkdir()
    (weights_root / "cldtracker.pth.tar").write_bytes(b"x" * 7)
    (weights_root / "sam2.1_hiera_tiny.pt").write_bytes(b"x" * 9)
    rows = {row["name"]: row for row in json.loads(sparrow_weights("list", "--json"))["weights"]}
    assert (rows["cldtracker"]["there"], rows["cldtracker"]["on_disk"]) == ("not converted", 7)
    assert (rows["sam2.1-t"]["there"], rows["sam2.1-t"]["on_disk"]) == ("yes", 9)


def test_fetch_takes_what_it_may_and_says_what_it_may_not(mirror, weights_root, monkeypatch):
    two_files(monkeypatch, "")
    mirror.answer = serve(sums=f"{DIGEST}  one.pth\n")
    text = sparrow_weights("fetch", "--from", mirror.url)
    assert "one.pth: 0.3 MB, sha256 as in SHA256SUMS" in text
    assert names(weights_root) == ["one.pth"]
    text = sparrow_weights("fetch", "two", "one", "--from", mirror.url.rstrip("/"), code=1)
    assert "problem: two has to be downloaded by hand (none stated): https://example.org/two" in text
    assert "one.pth: is there already" in text


def test_fetch_reports_every_problem_and_fails(mirror, weights_root, monkeypatch):
    two_files(monkeypatch, "")
    mirror.answer = lambda request: say(request, 404)
    assert "problem: " in (text := sparrow_weights("fetch", "--from", mirror.url, code=1))
    assert "one.pth: HTTP 404: not on the mirror" in text


@pytest.mark.parametrize("words", [[], ["--from", "ftp://x/"], ["--from", "file:///tmp"], ["--from", "http:///"]])
def test_fetch_needs_the_url_of_a_mirror(words, weights_root, monkeypatch):
    monkeypatch.delenv("SPARROW_MIRROR", raising=False)
    done = CliRunner().invoke(app, ["fetch", *words])
    assert "is not an http(s) URL" in str(done.exception)


def test_unknown_names_are_answered_with_the_known_ones():
    for verb in (["check"], ["fetch", "--from", "http://127.0.0.1:1"]):
        done = CliRunner().invoke(app, [*verb, "sam3"])
        assert "no weights are called 'sam3': choose from groundingdino-swint" in str(done.exception)


def test_check_prints_what_it_found_and_fails_on_a_bad_file(weights_root, monkeypatch):
    two_files(monkeypatch, "trackers.checkpoints:read_state_dict")
    weights_root.mkdir()
    torch.save({"model": {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.float16)}}, weights_root / "one.pth")
    text = sparrow_weights("check")
    assert "one: good" in text
    assert "2 tensors (1 float32, 1 float16), 5 elements, 0 of them not finite" in text
    assert hashlib.sha256((weights_root / "one.pth").read_bytes()).hexdigest() in text
    assert "all zero: b" in text
    (weights_root / "two.pth").write_bytes(b"no checkpoint")
    text = sparrow_weights("check", "one", "two", code=1)
    assert "one: good" in text
    assert "two: NOT GOOD" in text
    assert "cannot be read as a checkpoint" in text
    found = json.loads(sparrow_weights("check", "two", "--json", code=1))
    assert [(result["name"], result["good"]) for result in found] == [("two", False)]


def test_convert_prints_what_it_wrote_and_what_the_text_branch_is_worth(weights_root, monkeypatch):
    from trackers.cldtracker import checkpoint
    from trackers.cldtracker.config import CLDTrackerConfig
    from trackers.cldtracker.network import CLDTrackerNet

    monkeypatch.setattr(checkpoint, "CLDTrackerConfig", CLDTrackerConfig.tiny)  # the official size takes seconds
    weights_root.mkdir()
    source, out = weights_root / "a.pth.tar", weights_root / "b.safetensors"
    torch.save({"epoch": 300, "net": CLDTrackerNet(CLDTrackerConfig.tiny()).state_dict()}, source)
    text = sparrow_weights("convert", str(source), "--out", str(out))
    assert re.search(r"tensors +\d+\n", text)
    assert "no text branch in this file" in text
    assert out.stat().st_size
    done = CliRunner().invoke(app, ["convert", str(weights_root / "none.pth.tar"), "--out", str(out)])
    assert isinstance(done.exception, ValueError)
    assert "no such file" in str(done.exception)


@pytest.mark.parametrize("verb", ["list", "check", "fetch", "convert"])
def test_every_verb_has_help_with_an_example(verb):
    assert "Example: sparrow weights" in " ".join(sparrow_weights(verb, "--help").split())


def test_help_and_list_load_no_heavy_package():
    code = (
        "import sys, flows.weights, pipeline.weights;"
        "print(*(m for m in ('torch', 'ray', 'prefect', 'cv2', 'httpx', 'numpy', 'transformers') if m in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == []
