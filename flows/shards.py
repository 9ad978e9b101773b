"""`sparrow shards`: every source under a folder through the parent Prefect flow, and to the end also without Prefect.

The flow's runs can be watched on Prefect's pages. If no server can be started, or it ends on the way, one line says so
and curation continues: what is finished is in the manifests, so only the rest is left to do.
"""

import atexit
import os
import sys
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.text import say

if TYPE_CHECKING:
    from flows.serve import Serve
    from pipeline.presets import CurateConfig

BOUNDS = {"PREFECT_API_REQUEST_TIMEOUT": "20", "PREFECT_CLIENT_MAX_RETRIES": "1"}
"""Seconds and further attempts of a request to Prefect: with its own five it takes a minute to say that it is gone."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to curate, as the parameters of the flow `shards` have it."""

    data_root: Path
    out: Path
    config: "CurateConfig"
    corpus: Literal["all", "paper"] = "all"
    limit: int | None = None
    workers: int = 2
    replan: bool = False
    exclude: Path | None = None
    max_dropped: float | None = None

    def parameters(self) -> dict[str, Any]:
        """For Prefect, which wants paths as text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def run_shards(request: Request) -> None:
    """Curate all sources. OverBudget, with everything committed, if one has dropped more than `max_dropped`."""
    from flows.jobs import sources_under

    sources_under(request.data_root)
    if not _find_server(request):
        without_prefect(request)
        return
    from flows.curate import shards as flow  # Prefect reads its settings when it is imported
    from flows.run_page import has_lost_server, hide_failures, report_lost_server

    hide_failures()
    try:
        flow(**request.parameters())
    except Exception as error:
        if not has_lost_server(error):
            raise
        report_lost_server()
        without_prefect(request)


def _find_server(request: Request) -> bool:
    """The server of the user's PREFECT_API_URL, that of `make serve`, or one for this run; False if it does not start."""
    from flows.serve import Serve, client_environment, free_port, running

    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" in os.environ:
        return True
    home = running()
    if home is None:
        words = "starting a Prefect server for this run, about ten seconds ..."
        say(words, file=sys.stderr, flush=True)
        try:
            server = Serve(
                request.data_root, request.out, port=free_port(), server_only=True
            ).start()
        except (OSError, RuntimeError) as error:
            say(f"no Prefect server: {error}; curation continues without", file=sys.stderr)
            return False
        # Stopped at exit, after Prefect has sent its last logs there: handlers run in reverse order.
        atexit.register(server.stop)
        threading.Thread(target=_watch, args=(server,), daemon=True).start()
        home = server.home.path
    os.environ.update(client_environment(home))
    return True


def _watch(server: "Serve") -> None:
    """Report at once a server that ends before it is stopped."""
    server.processes[0].wait()
    if not server.is_stopping:
        from flows.run_page import report_lost_server

        report_lost_server()


def without_prefect(request: Request) -> None:
    """What the flow does, with progress on this terminal. Finished work is found finished."""
    from flows import driver
    from flows.executors import executor_for
    from flows.jobs import make_jobs, sources_under
    from flows.progress import Bars
    from manifests.quarantine import splits_of, tally
    from manifests.sheet import contact_sheet

    out, found = request.out, sources_under(request.data_root)
    engine, progress = executor_for(request.config, "ray", request.workers), Bars()
    try:
        engine.open()
        for source in found:
            jobs = make_jobs(
                source,
                request.data_root / source,
                out,
                request.config,
                corpus=request.corpus,
                limit=request.limit,
                exclude=request.exclude,
            )
            driver.run(jobs, engine, progress, replan=request.replan)
            contact_sheet(out, out / "report" / f"{source}.png", source=source)
    finally:
        engine.close()
    tallies = {source: tally(out, splits_of(out, source)) for source in found}
    for source, one in tallies.items():
        say(f"{source}: {one}")
    for source, one in tallies.items():
        one.judge(request.max_dropped, source)
