"""`make serve`: a local Prefect server with a work pool, a worker and every deployment. Ctrl-C stops all of it.

    python -m flows.serve --data /data --out outputs/tsf

Then, in another terminal: `prefect deployment run curate/hcstvg`. The server is found through `prefect.toml`.
Without --data the deployments point at the demo's synthetic corpus, which is rendered first if it is not there.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

HOST = "127.0.0.1"
PORT = 4200
REPO = Path(__file__).resolve().parents[1]


def environment(port: int = PORT) -> dict[str, str]:
    """Prefect's settings for this project: its own home, loopback, no analytics, no prompts."""
    return {
        "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(REPO / ".prefect")),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
    }


def is_up(port: int = PORT) -> bool:
    """Whether a Prefect server answers on the port."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/api/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Serve:
    """The processes of `make serve`, as a context manager: server, pool, deployments, worker; all gone at exit.

    server_only: just the server, its output in `<PREFECT_HOME>/server.log`; for flows that run in this process.
    (Prefect's own temporary server, which it would start for them, loses their events.)
    """

    def __init__(self, data: Path, out: Path, *, port: int = PORT, server_only: bool = False):
        self.port, self.server_only = port, server_only
        self.env = (
            os.environ
            | environment(port)
            | {
                "SPARROW_DATA": str(data.resolve()),
                "SPARROW_OUT": str(out.resolve()),
                "SPARROW_REPO": str(REPO),
            }
        )
        self.processes: list[subprocess.Popen] = []

    def prefect(self, *words: str) -> None:
        """A prefect command that ends. RuntimeError with its output if it fails."""
        done = subprocess.run(
            [*self._command(), *words], env=self.env, cwd=REPO, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(
                f"prefect {' '.join(words)} failed:\n{(done.stdout + done.stderr).strip()[-2000:]}"
            )

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "prefect"]

    def _spawn(self, *words: str) -> subprocess.Popen:
        with ExitStack() as files:
            log = None
            if self.server_only:
                home = Path(self.env["PREFECT_HOME"])
                home.mkdir(parents=True, exist_ok=True)
                log = files.enter_context((home / "server.log").open("ab"))
            command = [*self._command(), *words]
            process = subprocess.Popen(
                command, env=self.env, cwd=REPO, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def __enter__(self) -> "Serve":
        return self.start()

    def start(self) -> "Serve":
        """Bring everything up; what has been started is stopped again if it cannot all be."""
        if is_up(self.port):
            raise RuntimeError(
                f"port {self.port} already has a Prefect server; stop it, or choose another with --port"
            )
        with (
            ExitStack() as unfinished
        ):  # whatever stops the start, Ctrl-C too, stops what has been started
            unfinished.callback(self.stop)
            server = self._spawn("server", "start", "--host", HOST, "--port", str(self.port))
            deadline = time.monotonic() + 120
            while not is_up(self.port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the Prefect server did not come up on port {self.port}; its output says why"
                    )
                time.sleep(0.3)
            if not self.server_only:
                self._deploy()
            unfinished.pop_all()
        return self

    def _deploy(self) -> None:
        self.prefect("work-pool", "create", "local", "--type", "process", "--overwrite")
        self.prefect("--no-prompt", "deploy", "--all")
        self._start_worker()

    def _start_worker(self) -> None:
        self._spawn("worker", "start", "--pool", "local", "--type", "process")

    def watch(self) -> None:
        """Wait for ever. A worker that dies gets a successor: what it had begun goes on or is run again, and what is
        finished is found. RuntimeError when the server dies."""
        server, worker = self.processes
        while server.poll() is None:
            if worker.poll() is not None:
                print(
                    f"the Prefect worker has ended (exit code {worker.returncode}); starting another one",
                    flush=True,
                )
                self.processes.remove(worker)
                self._start_worker()
                worker = self.processes[-1]
            time.sleep(1.0)
        raise RuntimeError(
            f"the Prefect server has ended (exit code {server.returncode}); its output says why"
        )

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask every process to end, the worker first; after 20 seconds make it."""
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.serve",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, help="folder with one folder per source (default: the demo's corpus)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/tsf"), help="output of the deployments"
    )
    parser.add_argument("--port", type=int, default=PORT)
    options = parser.parse_args()
    if options.data is None:
        from flows.progress import Bars
        from pipeline.demo.corpus import write_corpus

        options.data = Path("outputs/demo/corpus")
        with Bars().stage("render corpus", unit="videos") as tick:
            write_corpus(options.data, progress=lambda done, total, note: tick.to(done))
    print("starting the Prefect server, about ten seconds ...", flush=True)

    def stop(*_: object) -> None:
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
        ):  # stopping takes seconds; a second signal must not cut it short
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with Serve(options.data, options.out, port=options.port) as serve:
        print(
            f"\nready: http://{HOST}:{options.port}   data: {options.data}   out: {options.out}\n"
            "in another terminal, in this folder:  .venv/bin/prefect deployment run curate/hcstvg --watch\n"
            "stop with Ctrl-C",
            flush=True,
        )
        try:
            serve.watch()
        except KeyboardInterrupt:
            print("\nstopping", flush=True)


if __name__ == "__main__":
    main()
