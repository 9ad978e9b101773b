"""`sparrow shards`: every source under a folder through the parent Prefect flow, and to the end also without Prefect.

The flow's runs can be watched on Prefect's pages. If no server can be started, or it ends on the way, one line says so
and curation continues: what is finished is in the manifests, so only the rest is left to do.
"""

import atexit
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.text import say

if TYPE_CHECKING:
    from flows.serve import Serve
    from pipeline.presets import CurateConfig

BOUNDS = {"PREFECT_API_REQUEST_TIMEOUT": "20", "PREFECT_CLIENT_MAX_RETRIES": "1"}
"""Seconds and attempts of a request to a server on this machine: five attempts would take a minute to say that it is
gone."""


def run_shards(
    data_root: Path,
    out: Path,
    config: "CurateConfig",
    *,
    corpus: str,
    limit: int | None,
    workers: int,
    replan: bool,
    exclude: Path | None,
    max_dropped: float | None,
) -> None:
    """Curate all sources. OverBudget, with everything committed, if one has dropped more than `max_dropped`."""
    from flows.jobs import sources_under

    sources_under(data_root)
    choice: dict[str, Any] = {
        "corpus": corpus,
        "limit": limit,
        "workers": workers,
        "replan": replan,
        "exclude": str(exclude) if exclude else None,
        "max_dropped": max_dropped,
    }
    if not _find_server(data_root, out):
        without_prefect(data_root, out, config, **choice)
        return
    from flows.curate import shards as flow  # Prefect reads its settings when it is imported
    from flows.run_page import has_lost_server, hide_failures, tell_gone

    hide_failures()
    try:
        flow(data_root=str(data_root), out=str(out), config=config, **choice)
    except Exception as error:
        if not has_lost_server(error):
            raise
        tell_gone()
        without_prefect(data_root, out, config, **choice)


def _find_server(data_root: Path, out: Path) -> bool:
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
            server = Serve(data_root, out, port=free_port(), server_only=True).start()
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
        from flows.run_page import tell_gone

        tell_gone()


def without_prefect(
    data_root: Path,
    out: Path,
    config: "CurateConfig",
    *,
    corpus: str,
    limit: int | None,
    workers: int,
    replan: bool,
    exclude: str | None,
    max_dropped: float | None,
) -> None:
    """What the flow does, with progress on this terminal. Finished work is found finished."""
    from flows import driver
    from flows.executors import executor_for
    from flows.jobs import make_jobs, sources_under
    from flows.progress import Bars
    from manifests.quarantine import splits_of, tally
    from manifests.sheet import contact_sheet

    found = sources_under(data_root)
    engine, progress = executor_for(config, "ray", workers), Bars()
    try:
        engine.open()
        for source in found:
            jobs = make_jobs(
                source,
                data_root / source,
                out,
                config,
                corpus=corpus,
                limit=limit,
                exclude=exclude,
            )
            driver.run(jobs, engine, progress, replan=replan)
            contact_sheet(out, out / "report" / f"{source}.png", source=source)
    finally:
        engine.close()
    tallies = {source: tally(out, splits_of(out, source)) for source in found}
    for source, one in tallies.items():
        say(f"{source}: {one}")
    for source, one in tallies.items():
        one.judge(max_dropped, source)
