"""A local server that answers as a test tells it to: well, or as badly as servers do."""

import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
                mirror.log.append(
                    {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}
                )
                self.close_connection = True
                mirror.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/files/"
        threading.Thread(
            target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}
        ).start()


def say(request: BaseHTTPRequestHandler, code: int, body: bytes = b"", **headers: str) -> None:
    """A whole answer; Content-Length is the body's unless given, "" for none."""
    request.send_response(code)
    for name, value in ({"Content_Length": str(len(body))} | headers).items():
        if value:
            request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


def serve(
    body: bytes = BODY,
    etag: str = '"one"',
    *,
    ranges: bool = True,
    send: int | None = None,
    sums: str = "",
):
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


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
