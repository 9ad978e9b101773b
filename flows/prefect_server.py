"""Prefect's server as we start it: it answers only to its own address, to its own pages, and to who has the secret.

    python -m flows.prefect_server --port 4200

Prefect itself checks the secret (PREFECT_SERVER_API_AUTH_STRING). It has no check of Host, and lets health and readiness
through without a secret. So its app is wrapped here.
"""

import argparse
import json
import os
from typing import Any
from urllib.parse import parse_qs

from flows.prefect_home import proof

HOST = "127.0.0.1"
PROOF = "/sparrow/proof"
"""Answers `?nonce=...` with a proof that this server has the secret (`flows.prefect_home.proof`)."""

Scope = dict[str, Any]


class Guarded:
    """An ASGI app around Prefect's: another Host is refused with 421, another Origin or site with 403."""

    def __init__(self, app: Any, port: int, secret: str):
        self.app, self.secret = app, secret
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        status, words = self._verdict(scope)
        if status == 200 and scope["type"] == "http" and scope["path"] == PROOF:
            words = self._proof(scope)
        elif status == 200:
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": words})
            return
        headers = [(b"content-type", b"text/plain"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": words.encode()})

    def _verdict(self, scope: Scope) -> tuple[int, str]:
        given: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if len(given.get("host", [])) != 1 or given["host"][0].lower() not in self.hosts:
            return 421, "this server is called by its own address only\n"
        if any(origin not in self.origins for origin in given.get("origin", [])):
            return 403, "only this server's own pages may ask\n"
        if any(site not in ("none", "same-origin") for site in given.get("sec-fetch-site", [])):
            return 403, "another site asks; open this address yourself\n"
        return 200, ""

    def _proof(self, scope: Scope) -> str:
        [nonce, *_] = parse_qs(scope["query_string"].decode("latin-1")).get("nonce", [""])
        return json.dumps({"proof": proof(self.secret, nonce[:200])})


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m flows.prefect_server", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "")
    if not secret:
        parser.error(
            "PREFECT_SERVER_API_AUTH_STRING is not set: without a secret it does not start"
        )

    import uvicorn
    from prefect.server.api.server import create_app

    app = Guarded(create_app(final=True), port, secret)
    uvicorn.run(app, host=HOST, port=port, log_level="warning", lifespan="on")


if __name__ == "__main__":
    main()
