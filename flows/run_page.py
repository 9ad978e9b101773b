"""Progress on a flow run's page. Curation never waits for Prefect: a thread of its own sends what has changed, and when
the server no longer answers, one line says so."""

import contextvars
import logging
import sys
import threading
from typing import Any

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.logging.handlers import PrefectConsoleHandler

from flows.progress import Quiet
from flows.text import say

LOST = "Prefect's server does not answer any more: curation continues without a run page"
_lost = threading.Event()


def has_lost_server(error: BaseException | None) -> bool:
    """Whether an error is one of the way to Prefect's server, or was caused by such."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code >= 500
        if isinstance(error, httpx.TransportError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def report_lost_server() -> None:
    """Say that the server is gone, the first time; from then on nothing that Prefect logs is of use."""
    if _lost.is_set():
        return
    _lost.set()
    for handler in _prefect_handlers():
        handler.addFilter(_is_not_of_prefect)
    logging.raiseExceptions = (
        False  # else Prefect prints of each batch of logs that it was not sent
    )
    say(LOST, file=sys.stderr, flush=True)


def _prefect_handlers() -> set[logging.Handler]:
    """Wherever records of Prefect's loggers go: some loggers have handlers of their own."""
    names = ["", *(n for n in logging.root.manager.loggerDict if n.split(".")[0] == "prefect")]
    return {handler for name in names for handler in logging.getLogger(name).handlers}


def _is_not_of_prefect(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] != "prefect"


class OneLine(logging.Filter):
    """A known error is logged once, as one line, instead of a traceback for each level of flows and tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        if has_lost_server(error) or error is self.logged:
            return False
        if not isinstance(error, (ValueError, OSError, RuntimeError, KeyboardInterrupt)):
            return True
        self.logged = error
        record.exc_info = record.exc_text = None
        record.msg, record.args = f"{type(error).__name__}: {error}", ()
        return True


ONE_LINE = OneLine()


def shorten_logs() -> None:
    """Let the loggers of flows and tasks show known errors as one line, on the terminal and on the run's page."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(ONE_LINE)


def hide_failures() -> None:
    """Keep failures off the terminal of a command that ends with the error's own line."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(_is_no_failure)


def _is_no_failure(record: logging.LogRecord) -> bool:
    ends = record.getMessage().startswith(("Finished in state Failed", "Finished in state Crashed"))
    return record.levelno < logging.ERROR and not ends


class RunPage(Quiet):
    """An artifact with the share of clips done, and a log line now and then. A context manager: at its end what is
    left is sent, for `LAST` seconds at most."""

    LAST = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.log: Any = get_run_logger()
        self._share: float | None = None
        self._changed_share, self._ends = threading.Event(), threading.Event()
        context = contextvars.copy_context()  # artifacts belong to the run that is in it
        self._thread = threading.Thread(target=context.run, args=(self._send,), daemon=True)
        self._thread.start()

    def __enter__(self) -> "RunPage":
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._changed_share.set()
        self._thread.join(self.LAST)

    def on_change(self) -> None:
        stage = self.stages.get("curate")
        if stage and stage["total"]:
            self._share = 100.0 * stage["done"] / stage["total"]
            self._changed_share.set()
        for name, state in self.stages.items():
            if "seconds" not in state or not state.get("logged"):
                state["logged"] = "seconds" in state
                of = state["total"] or "?"
                words = f"{name}: {state['done']} of {of} {state['unit']} {state['note']}"
                self.log.info("%s", words)

    def _send(self) -> None:
        artifact: Any = None
        sent, ended = None, False
        while not ended:
            self._changed_share.wait()
            self._changed_share.clear()
            ended = self._ends.is_set()
            share = self._share
            if share is None or share == sent:
                continue
            try:
                if artifact is None:
                    artifact = create_progress_artifact(share, description="clips curated")
                else:
                    update_progress_artifact(artifact, progress=share)
            except (httpx.HTTPError, PrefectException) as error:
                if has_lost_server(error):
                    report_lost_server()
                return
            sent = share
