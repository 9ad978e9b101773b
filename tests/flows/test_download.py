"""Downloads from servers that misbehave: resumed, verified, and nothing half-finished under its own name."""

import resource
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from flows import download
from flows.download import Refused, fetch_file, fetch_sums
from tests.mirror import BODY, DIGEST, OTHER, in_turn, names, say, serve

REPO = Path(__file__).resolve().parents[2]


def leave(get, body: bytes, version: str = '"one"') -> None:
    """What a stopped download leaves behind."""
    get.part.write_bytes(body)
    get.part.with_name("a.bin.part.version").write_text(version)


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

    def careless(request):
        range_sent = f"bytes 100000-299999/{len(BODY)}"
        return say(request, 206, BODY[100_000:], ETag='"one"', Content_Range=range_sent)

    mirror.answer = lambda request: (
        careless(request) if "Range" in request.headers else serve()(request)
    )
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
        with (
            httpx.Client(trust_env=False) as client,
            pytest.raises(Refused, match=r"5 attempts.*ConnectError"),
        ):
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
    assert [entry["path"] for entry in mirror.log] == [
        "/files/a.bin",
        "/elsewhere/a.bin?token=secret",
    ]
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
    plain = httpx.MockTransport(
        lambda request: httpx.Response(302, headers={"Location": "http://m.example/a.bin"})
    )
    with (
        httpx.Client(transport=plain) as client,
        pytest.raises(Refused, match="only https can be followed"),
    ):
        fetch_file(client, httpx.URL("https://m.example/"), get.root, "a.bin", 1)


def test_messages_hold_no_password(get, mirror):
    mirror.answer = lambda request: say(request, 404)
    url = httpx.URL(mirror.url).copy_with(userinfo=b"me:secret")
    with httpx.Client(trust_env=False) as client, pytest.raises(Refused) as caught:
        fetch_file(client, url, get.root, "a.bin", 1)
    assert "secret" not in str(caught.value)


def test_a_file_of_absurd_size_is_refused_before_it_is_written(get, mirror):
    mirror.answer = lambda request: say(
        request, 200, b"x", Content_Length=str(5 * 10**6), ETag='"one"'
    )
    with pytest.raises(Refused, match="not the file that is meant"):
        get(size=10**6)
    mirror.answer = lambda request: say(
        request, 200, b"x", Content_Length=str(21 * 10**9), ETag='"one"'
    )
    with pytest.raises(Refused, match=r"over 20,000,000,000 bytes"):
        get(size=0)
    assert names(get.root) == []


def test_a_web_page_in_place_of_the_file_is_refused(get, mirror):
    mirror.answer = lambda request: say(request, 200, b"<html>please log in</html>")
    with pytest.raises(Refused, match=": 26 bytes: not the file that is meant"):
        get()
    assert names(get.root) == []


def test_a_stream_without_length_is_stopped_at_the_limit(get, mirror):
    mirror.answer = lambda request: say(
        request, 200, bytes(3 << 20), Content_Length="", Connection="close"
    )
    with pytest.raises(Refused, match=r"over 1,048,576 bytes"):
        get(size=1000)
    assert not get.there.exists()
    assert not get.part.exists()


def test_a_full_disk_is_one_message_and_loses_nothing(get, mirror):
    """A limit on the size of files stands for the full disk: the kernel refuses the write, as it would there."""
    old, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
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
