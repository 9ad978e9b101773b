"""`make serve`: a local Prefect server with a work pool, a worker and every deployment. Ctrl-C stops all of it.

    python -m flows.serve --data /data --out outputs/tsf

Then, in another terminal: `prefect deployment run curate/hcstvg`. The server and its secret are found through
`prefect.toml`, which names the folder of a Prefect profile (`flows.prefect_home`). Without --data the deployments point at the demo's synthetic corpus, which is rendered first if it is not there.
"""

import argparse
import hmac
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from flows.prefect_home import DEFAULT, Home, known_secret, profile_of, proof
from flows.prefect_server import HOST, PROOF

PORT = 4200
REPO = Path(__file__).resolve().parents[1]
TEMPLATE = REPO / "flows" / "work_pool.json"
"""Of the work pool: a run can change neither its command nor its environment nor its folder."""


DEATHS, LATELY = 3, 300.0
"""So many times in so many seconds a server may die and get a successor."""
ENDED = "the Prefect {} has ended (exit code {}); starting another one"


def client_environment(home: Path) -> dict[str, str]:
    """Prefect's settings for commands and flows: the profile in `home` has the address and the secret."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(profile_of(home)),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
    }


def is_up(port: int = PORT) -> bool:
    """Whether a Prefect server answers on the port, whoever's it is."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/api/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def proves_ours(port: int, secret: str) -> bool:
    """Whether the server on the port has our secret. It is not sent there: the server has to prove it."""
    nonce = secrets.token_hex(16)
    try:
        address = f"http://{HOST}:{port}{PROOF}?nonce={nonce}"
        with urllib.request.urlopen(address, timeout=2) as answer:
            found = json.load(answer)["proof"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(secret) and hmac.compare_digest(str(found), proof(secret, nonce))


def running() -> Path | None:
    """The folder of the server of `make serve`, if one of ours is up."""
    home = Path(os.environ.get("PREFECT_HOME", DEFAULT))
    return home if proves_ours(PORT, known_secret(home)) else None


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Serve:
    """The processes of `make serve`, as a context manager: server, pool, deployments, worker; all gone at exit.

    server_only: just the server, its output in `server.log` of its home; for flows that run in this process.
    (Prefect's own temporary server, which it would start for them, loses their events.)
    """

    def __init__(self, data: Path, out: Path, *, port: int = PORT, server_only: bool = False):
        self.port, self.server_only = port, server_only
        self.home = Home.take(port)
        self.home.write_profile(f"http://{HOST}:{port}/api")
        self.env = (
            os.environ
            | client_environment(self.home.path)
            | {
                "SPARROW_DATA": str(data.resolve()),
                "SPARROW_OUT": str(out.resolve()),
                "SPARROW_REPO": str(REPO),
            }
        )
        self.processes: list[subprocess.Popen] = []
        self.is_stopping = self.is_shown = False
        """Whether commands typed in the checkout find the server."""

    def prefect(self, *words: str) -> None:
        """A prefect command that ends. RuntimeError with its output if it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            env=self.env,
            cwd=REPO,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                f"prefect {' '.join(words)} failed:\n{(done.stdout + done.stderr).strip()[-2000:]}"
            )

    def _start(self, module: list[str], env: dict[str, str]) -> subprocess.Popen:
        """A module with its arguments, in a process that ends when this one does, even if it is killed."""
        command = [sys.executable, "-m", "flows.with_parent", str(os.getpid()), *module]
        with ExitStack() as files:
            log = None
            if self.server_only:
                log = files.enter_context((self.home.path / "server.log").open("ab"))
            process = subprocess.Popen(
                command, env=env, cwd=REPO, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def _start_server(self) -> subprocess.Popen:
        origin = f"http://{HOST}:{self.port}"
        env = self.env | {
            "PREFECT_API_URL": f"{origin}/api",
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_API_AUTH_STRING": self.home.secret,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
            "PREFECT_UI_API_URL": f"{origin}/api",
        }
        return self._start(["flows.prefect_server", "--port", str(self.port)], env)

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
            self._await(self._start_server())
            if not self.server_only:
                self.is_shown = self.home.show_to(REPO)
                self._deploy()
            unfinished.pop_all()
        return self

    def _await(self, server: subprocess.Popen) -> None:
        """Until the server answers. RuntimeError if it ends, or takes too long."""
        deadline = time.monotonic() + 120
        while not (proves_ours(self.port, self.home.secret) and is_up(self.port)):
            if server.poll() is not None or time.monotonic() > deadline:
                log = self.home.path / "server.log"
                place = str(log) if self.server_only else "its output above"
                raise RuntimeError(
                    f"the Prefect server did not come up on port {self.port}: {place} says why"
                )
            time.sleep(0.3)

    def _deploy(self) -> None:
        pool = ("work-pool", "create", "local", "--type", "process", "--overwrite")
        self.prefect(*pool, "--base-job-template", str(TEMPLATE))
        self.prefect("--no-prompt", "deploy", "--all")
        self._start_worker()

    def _start_worker(self) -> None:
        worker = ["prefect", "worker", "start", "--pool", "local", "--type", "process"]
        self._start(worker, self.env)

    def watch(self) -> None:
        """Wait for ever. A server or worker that dies gets a successor: what a worker had begun goes on or is run
        again, and what is finished is found. RuntimeError when the server dies again and again."""
        deaths: list[float] = []
        while True:
            server, worker = self.processes
            if server.poll() is not None:
                deaths = [*(t for t in deaths if t > time.monotonic() - LATELY), time.monotonic()]
                if len(deaths) > DEATHS:
                    raise RuntimeError(
                        f"the Prefect server ends again and again (exit code {server.returncode}); its output says why"
                    )
                print(ENDED.format("server", server.returncode), flush=True)
                self._await(self._start_server())
                self.processes = [self.processes[-1], worker]
            elif worker.poll() is not None:
                print(ENDED.format("worker", worker.returncode), flush=True)
                self._start_worker()
                self.processes = [server, self.processes[-1]]
            time.sleep(1.0)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask every process to end, the worker first; after 20 seconds make it."""
        self.is_stopping = True
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        self.home.release()


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
        print("\nstopping", flush=True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        _serve(options.data, options.out, options.port)
    except KeyboardInterrupt:
        return
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def _serve(data: Path, out: Path, port: int) -> None:
    """Until a signal or a fault ends it."""
    with Serve(data, out, port=port) as serve:
        home = shlex.quote(str(serve.home.path))
        is_found = serve.is_shown and serve.home.path == DEFAULT
        elsewhere = "in another folder, first" if is_found else "in another terminal, first"
        print(
            f"\nready: http://{HOST}:{port}   data: {data}   out: {out}\n"
            f"its page asks for a password once: PREFECT_API_AUTH_STRING in {profile_of(serve.home.path)}\n"
            "in another terminal, in this folder:  .venv/bin/prefect deployment run curate/hcstvg --watch\n"
            f"{elsewhere}:  export PREFECT_HOME={home}\n"
            "stop with Ctrl-C",
            flush=True,
        )
        serve.watch()


if __name__ == "__main__":
    main()
