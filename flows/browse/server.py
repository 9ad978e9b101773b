"""The pages of `sparrow browse`: server-rendered, read-only towards the data, safe to open beside other web pages.

Everything that comes from data is escaped by the templates; a Content-Security-Policy lets only our own files run;
requests that name another host (DNS rebinding) or write from another page are refused.
"""

import ipaddress
import shlex
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import duckdb
import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.browse import charts, media, overview
from flows.browse.flags import Flags, default_file
from flows.browse.queries import ORDERS, PAGE, Catalogue, Filters, Place, pages_of
from flows.text import say
from manifests.noise import sample_noise_words
from manifests.quality import iou_words, rests_on_little
from schemas.records import Quarantined

KINDS = {
    "mp4": "video/mp4",
    "masks.json": "application/json",
    **{f"crop{i}.jpg": "image/jpeg" for i in range(16)},
}
"""Members that the pages show, and their media types."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Refuses foreign hosts, requests that pages of other sites cause, and writes from foreign pages; adds HEADERS to
    every answer."""

    def __init__(self, app: ASGIApp, names: set[str]):
        """names: host names that this server goes by. An IP address needs no entry: it cannot be rebound."""
        self.app, self.names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        app = self.app
        host, origin = given.get("host", ""), given.get("origin")
        if not self._ours(host):
            app = PlainTextResponse(
                f"host {host[:100]!r} is not this server; open it by its address\n", 421
            )
        elif given.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            # A link on another page too: with a WHERE in it, it could keep this server busy.
            app = PlainTextResponse("another site asks; open this address yourself\n", 403)
        elif (
            scope["method"] not in ("GET", "HEAD")
            and origin is not None
            and urlsplit(origin).netloc != host
        ):
            app = PlainTextResponse("only this server's own pages may change flags\n", 403)
        await app(scope, receive, with_headers)

    def _ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name.lower() in self.names


class Pages:
    """The answers. One object per server."""

    def __init__(self, out: Path, flags: Flags):
        self.catalogue, self.flags, self.out = Catalogue(out), flags, out
        self.templates = jinja2.Environment(
            loader=jinja2.PackageLoader("flows.browse"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters |= {"show": show, "shell": shlex.quote, "python": repr}
        self.templates.filters |= {"iou_words": iou_words, "rests_on_little": rests_on_little}
        self.templates.filters |= {"noise": sample_noise_words}
        self.templates.globals |= {
            "out": str(out),
            "orders": list(ORDERS),
            "flags_file": flags.file,
            "flag_count": lambda: len(flags.read()),
        }
        for name in self.templates.list_templates():  # what the first page would wait for
            self.templates.get_template(name)
        self.catalogue.find(Filters(), "samples", set())

    def page(self, name: str, status: int = 200, *, here: str = "", **words: Any) -> HTMLResponse:
        """here: the entry of the menu that this is."""
        html = self.templates.get_template(name).render(here=here, **words)
        return HTMLResponse(html, status, {"Cache-Control": "no-store"})

    def error(self, request: Request, error: Exception) -> Response:
        """A page for what went wrong; a damaged tar or a table that a run is just replacing stops nothing else."""
        code, text = (
            (error.status_code, error.detail)
            if isinstance(error, HTTPException)
            else (500, str(error))
        )
        return self.page("error.html", code, code=code, text=text)

    def overview(self, request: Request) -> Response:
        return self.page("overview.html", here="overview", **overview.numbers(self.catalogue.rows))

    def gallery(self, request: Request) -> Response:
        return self._listing(request, "samples", "gallery.html")

    def quarantine(self, request: Request) -> Response:
        return self._listing(request, "quarantine", "quarantine.html")

    def _listing(self, request: Request, table: str, template: str) -> Response:
        flags, problem, total = self.flags.read(), "", 0
        rows: list[dict] = []
        filters = Filters()
        try:
            filters = Filters.parse(request.query_params)
            total, rows = self.catalogue.find(filters, table, flags)
        except (ValueError, OSError, MemoryError, duckdb.Error) as error:
            problem = str(error)
        counts = self.catalogue.counts(table, ("source", "split"))
        counts |= self.catalogue.counts("quarantine", ("reason", "stage"))
        columns = self.catalogue.rows(f"DESCRIBE SELECT * EXCLUDE (search_text) FROM {table}")
        clips = [row["clip_id"] for row in rows] if table == "quarantine" else []
        others = self.catalogue.rows(
            "SELECT DISTINCT clip_id FROM samples WHERE list_contains(?, clip_id)", [clips]
        )
        pages = pages_of(total)
        filters = replace(filters, page=min(filters.page, pages))
        here = (
            "quarantine" if table == "quarantine" else "flagged" if filters.flagged else "gallery"
        )
        return self.page(
            template,
            400 if problem else 200,
            here=here,
            filters=filters,
            nothing=Filters(),
            problem=problem,
            typed=dict(request.query_params),
            total=total,
            rows=rows,
            flags=flags,
            counts=counts,
            columns=columns,
            has_samples={row["clip_id"] for row in others},
            pages=pages,
            size=PAGE,
        )

    def clip(self, request: Request) -> Response:
        row = self._sample(request)
        referent, flags = row["referent_id"], self.flags.read()
        ask = self.catalogue.rows
        members = self.catalogue.members(referent)
        track = self.catalogue.track(referent, row["shard"])
        back, around, at = "", {}, None
        with suppress(
            ValueError, OSError, MemoryError, duckdb.Error
        ):  # a link that was edited by hand: no neighbours
            filters = Filters.parse(request.query_params)
            at = int(request.query_params.get("at", ""))
            around = self.catalogue.beside(filters, at, flags) if 0 <= at < 10**9 else {}
            back = replace(filters, page=at // PAGE + 1).link()
        neighbours = {
            word: f"/clip/{around[place]}?{filters.link(page=1)}&at={place}"
            for word, place in (("previous", (at or 0) - 1), ("next", (at or 0) + 1))
            if place in around
        }
        return self.page(
            "clip.html",
            here="gallery",
            row=row,
            track=track,
            back=back,
            neighbours=neighbours,
            flagged=referent in flags,
            member={m["name"]: m for m in members},
            tar=members[0]["tar"] if members else "",
            tsf=ask("SELECT * FROM tsf WHERE referent_id = ? ORDER BY rank", [referent]),
            qa=ask("SELECT * FROM qa WHERE referent_id = ? ORDER BY qa_id", [referent]),
            others=ask(
                "SELECT referent_id, caption FROM samples WHERE clip_id = ? AND referent_id <> ? ORDER BY 1",
                [row["clip_id"], referent],
            ),
            score=charts.line(track["score"]),
            iou=charts.line(track["iou"]),
            spans=charts.spans(track["kept"], track["dropped"]),
        )

    def data(self, request: Request) -> Response:
        """What the player draws: the media's rate, boxes of annotation and track by frame, the representatives."""
        row = self._sample(request)
        track = self.catalogue.track(row["referent_id"], row["shard"])
        names = {m["name"] for m in self.catalogue.members(row["referent_id"])}

        def boxes(prefix: str) -> list[list[float] | None]:
            sides = zip(
                *(track[f"{prefix}{side}"] for side in ("x1", "y1", "x2", "y2")), strict=True
            )
            return [None if None in box else list(box) for box in sides]

        tsf = self.catalogue.rows(
            "SELECT frame FROM tsf WHERE referent_id = ? ORDER BY rank", [row["referent_id"]]
        )
        return JSONResponse(
            {
                "fps": (row["fps"] or 25.0) / (row["step"] or 1),
                "width": row["width"],
                "height": row["height"],
                "media": "mp4" if "mp4" in names else "frames" if "frames.tar" in names else "none",
                "frames": len(track["frame"]),
                "track": boxes(""),
                "annotation": boxes("ann_"),
                **{
                    name: track[name]
                    for name in ("source_frame", "origin", "score", "iou", "kept", "dropped")
                },
                "representatives": [r["frame"] for r in tsf],
                "fallback": self.catalogue.fallback_frames(row["referent_id"], row["shard"]),
            },
            headers={"Cache-Control": "no-store"},
        )

    def member(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in KINDS:
            raise HTTPException(
                404, f"{name!r} is not a member that is shown here: {', '.join(KINDS)}"
            )
        return media.send(request, self._place(request, name), KINDS[name])

    def frame(self, request: Request) -> Response:
        place, t = self._place(request, "frames.tar"), request.path_params["t"]
        found = media.frame_of(place, t)
        if found is None:
            raise HTTPException(404, f"{place.member} has no frame {t}")
        return media.send(request, found, "image/jpeg")

    def flag(self, request: Request) -> Response:
        """PUT marks, DELETE unmarks."""
        referent = self._sample(request)["referent_id"]
        flags = self.flags.mark(referent, request.method == "PUT")
        return JSONResponse({"flagged": referent in flags, "count": len(flags)})

    def export(self, request: Request) -> Response:
        """The list of flagged samples, one referent_id a line."""
        headers = {
            "Cache-Control": "no-store",
            "Content-Disposition": 'attachment; filename="flags.txt"',
        }
        return PlainTextResponse(self.flags.text(self.flags.read()), headers=headers)

    def _sample(self, request: Request) -> dict:
        row = self.catalogue.sample(request.path_params["referent"])
        if row is None:
            raise HTTPException(
                404, f"no sample {request.path_params['referent'][:200]!r} in {self.out}"
            )
        return row

    def _place(self, request: Request, name: str) -> Place:
        place = self.catalogue.place(request.path_params["referent"], name)
        if place is None:
            raise HTTPException(
                404, f"no member {name} of a sample {request.path_params['referent'][:200]!r}"
            )
        return place


def show(value: object) -> str:
    """A value for people; empty for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        digits = next((n for n, limit in ((3, 1), (2, 10), (1, 1000)) if abs(value) <= limit), 0)
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if digits else text
    return f"{value:,}" if isinstance(value, int) else str(value)


def make_app(out: Path, flags: Flags, *names: str) -> Starlette:
    """The app over an output. names: host names it may be called by, beside localhost. FileNotFoundError: no shards."""
    pages = Pages(out, flags)
    routes = [
        Route("/", pages.overview),
        Route("/gallery", pages.gallery),
        Route("/quarantine", pages.quarantine),
        Route("/clip/{referent}", pages.clip),
        Route("/clip/{referent}/data.json", pages.data),
        Route("/member/{referent}/{name}", pages.member),
        Route("/frame/{referent}/{t:int}", pages.frame),
        Route("/flags.txt", pages.export),
        Route("/flags/{referent}", pages.flag, methods=["PUT", "DELETE"]),
        Mount("/static", StaticFiles(directory=Path(__file__).with_name("static"))),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, names={"localhost", *names})],
        exception_handlers=dict.fromkeys(
            (HTTPException, Quarantined, ValueError, OSError, duckdb.Error), pages.error
        ),
    )
    app.state.pages = pages
    return app


def serve(out: Path, host: str, port: int, file: Path | None, open_browser: bool) -> None:
    """Serve until Ctrl-C. Port 0 takes any free one. ValueError if the port is taken, or flags are inside `out`."""
    flags = Flags(file or default_file(out), out)
    say(f"reading the manifests of {out} ...", file=sys.stderr, flush=True)
    app = make_app(out, flags, host, socket.gethostname())
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; another `sparrow browse` may run: use --port"
        ) from error
    # asyncio does this only for sockets that it made itself: without it every answer waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    anyio.run(anyio.sleep, 0)  # loads what the first request would wait for
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
    say(f"{out}: {url}   (Ctrl-C stops)", flush=True)
    if host not in ("127.0.0.1", "::1", "localhost"):
        say(
            "whoever can reach this address can look at the data and set flags: there is no password",
            flush=True,
        )
    if open_browser:
        threading.Timer(0.5, webbrowser.open, [url]).start()
    with listener, suppress(KeyboardInterrupt):
        # A browser may hold a half-read video: Ctrl-C does not wait for it.
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run(sockets=[listener])
