"""Three nodes on this machine, each with a raylet, an object store and a working directory of its own; one dies.

First Ray's own test cluster; then, in the long version, three network namespaces. What else parts real machines
(clocks, file systems that lag) is not tried here.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from flows import driver
from flows.executors import STORE, Inline, RayActors, Work
from flows.progress import Quiet
from manifests.catalog import query
from manifests.verify import verify
from tests.chaos.world import differing, leftovers, make_corpus, make_job, tree

CLIPS, FRAMES, REFERENTS = 6, 6, 2


def watched(place: str, head: str) -> Work:
    """The driver's work with a diary, which goes wrong when told to. In a function, so that Ray sends it by value.

    The first commit outside the head's node ends that node in its middle, unless `place`/no-death is there. A clip
    with a file `place`/hang-<clip> hangs.
    """
    work = driver.work

    def watching(payload):
        import os
        import signal
        import sys
        import time

        import ray

        def for_ever():
            time.sleep(600)

        def until(name):
            end = time.monotonic() + 60
            while not os.path.exists(f"{place}/{name}") and time.monotonic() < end:
                time.sleep(0.02)

        def dies(event, arguments):
            if event == "os.rename" and "/manifests/" in str(arguments[1]):
                os.kill(
                    os.getppid(), signal.SIGKILL
                )  # the raylet: this is what is left of a node that has lost power
                os.kill(os.getpid(), signal.SIGKILL)

        kind, _, item, _ = payload
        node = ray.get_runtime_context().get_node_id()
        name = "" if kind == "commit" else item[0].clip.clip_id
        with open(f"{place}/diary", "a") as file:
            file.write(f"{node} {os.getcwd()} {kind} {name}\n")
        if kind == "commit" and not os.path.exists(f"{place}/no-death"):
            if node == head:
                until("death")
            else:
                try:
                    os.close(os.open(f"{place}/death", os.O_CREAT | os.O_EXCL))
                    sys.addaudithook(dies)
                except FileExistsError:
                    pass
        if name and os.path.exists(f"{place}/hang-{name}"):
            for_ever()
        return work(payload)

    return watching


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def cluster(place):
    """Its nodes listen on this machine alone and want a token, as a local Ray does."""
    RayActors()  # sets what must be set before Ray is imported
    import ray
    from ray._private.authentication.authentication_token_setup import (
        enable_token_auth_by_default as want_token,
    )
    from ray._private.authentication.authentication_token_setup import (
        ensure_token_if_auth_enabled as make_token,
    )
    from ray.cluster_utils import Cluster

    assert not ray.is_initialized()
    want_token()  # and if another test has imported Ray: what ray.init does for a local one
    make_token()
    here, made = Path.cwd(), Cluster()
    quick = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    try:
        for name in ("head", "second", "third"):
            (place / name).mkdir()
            os.chdir(place / name)  # a raylet's workers start where it was started
            made.add_node(wait=False, num_cpus=1, object_store_memory=STORE, **quick)
        os.chdir(here)
        made.wait_for_nodes()
        yield made
    finally:
        os.chdir(here)
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def work(cluster, place):
    return watched(str(place), cluster.head_node.node_id)


@pytest.fixture
def corpus(tmp_path, monkeypatch, work):
    monkeypatch.setattr(driver, "after_run", lambda *_, **__: None)
    job = make_job(
        make_corpus(tmp_path / "corpus", CLIPS, FRAMES), tmp_path / "undisturbed", REFERENTS
    )
    driver.run([job], Inline(), Quiet())
    monkeypatch.setattr(driver, "work", work)
    return job


@pytest.mark.timeout(180)
def test_a_node_that_dies_in_the_middle_of_a_commit_costs_nothing(cluster, place, corpus, tmp_path):
    job = corpus.model_copy(update={"out": str(tmp_path / "out")})
    [run] = driver.run([job], RayActors(address=cluster.address, workers=3), Quiet())
    lines = [line.split() for line in (place / "diary").read_text().splitlines()]
    assert (place / "death").exists()
    assert len({node for node, *_ in lines}) == 3
    assert {Path(cwd) for _, cwd, *_ in lines} == {
        place / name for name in ("head", "second", "third")
    }
    assert (
        len([1 for line in lines if line[2] == "commit"]) == run.shards_done + 1
    )  # the one that died was made again
    assert differing(Path(job.out), tree(Path(corpus.out))) == []
    assert leftovers(Path(job.out)) == []
    assert verify(Path(job.out), deep=True).problems == []


@pytest.mark.timeout(180)
def test_a_clip_that_hangs_on_any_node_is_dropped_with_its_stacks_and_the_rest_is_done(
    cluster, place, corpus, tmp_path
):
    (place / "no-death").touch()
    job = corpus.model_copy(update={"out": str(tmp_path / "out")})
    [clip] = query(Path(corpus.out), "SELECT clip_id FROM clips ORDER BY 1 LIMIT 1")
    (place / f"hang-{clip['clip_id']}").touch()
    driver.run([job], RayActors(address=cluster.address, workers=3, deadline=8.0), Quiet())
    [row] = query(
        Path(job.out), "SELECT clip_id, stage, message FROM quarantine WHERE reason = 'deadline'"
    )
    assert (row["clip_id"], row["stage"]) == (clip["clip_id"], "worker")
    assert "its worker was stopped in for_ever (" in row["message"]
    assert row["message"].endswith(f"; stacks: runs/stacks/{clip['clip_id']}.txt")
    stacks = (Path(job.out) / row["message"].rpartition(" ")[2]).read_text()
    assert " in for_ever\n" in stacks
    counted = "SELECT count(*) AS n FROM clips"
    assert query(Path(job.out), counted)[0]["n"] == query(Path(corpus.out), counted)[0]["n"] - 1
    [log] = (Path(job.out) / "runs").glob("*/log.jsonl")
    assert "in for_ever (" in log.read_text()


# --- three machines, as far as a kernel can make them ---------------------------------------------------------------


def sh(command: str, **more) -> str:
    return subprocess.run(
        command, shell=True, check=True, capture_output=True, text=True, **more
    ).stdout


class Machines:
    """Network namespaces with host names, /tmp/ray and /dev/shm of their own, joined by a bridge; a raylet in each."""

    START = "--num-cpus=1 --object-store-memory=78643200 --include-log-monitor=False --block"

    def __init__(self, place: Path, count: int):
        self.place, self.mark = place, f"sparrow-{os.getpid()}"
        self.env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.env["RAY_USAGE_STATS_ENABLED"] = "0"
        self.env.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
        self.names = [f"{self.mark}-{n}" for n in range(1, count + 1)]
        self.raylets: list[subprocess.Popen] = []

    def start(self) -> None:
        head = self.names[0]
        for n, name in enumerate(self.names, 1):
            sh(f"ip netns add {name} && ip -n {name} link set lo up")
            if name == head:
                sh(
                    f"ip -n {head} link add br0 type bridge && ip -n {head} addr add 10.77.0.1/24 dev br0"
                )
                sh(f"ip -n {head} link set br0 up")
            else:
                sh(f"ip -n {head} link add v{n} type veth peer name eth0 netns {name}")
                sh(
                    f"ip -n {head} link set v{n} master br0 up && ip -n {name} addr add 10.77.0.{n}/24 dev eth0"
                )
                sh(f"ip -n {name} link set eth0 up")
            role = (
                "--head --port=6379 --include-dashboard=False"
                if name == head
                else "--address=10.77.0.1:6379"
            )
            ray = Path(sys.executable).with_name("ray")
            start = f"{ray} start {role} --node-ip-address=10.77.0.{n} {self.START}"
            (self.place / name).mkdir()
            own = "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm"
            script = f"hostname {name} && {own} && cd {self.place / name} && exec {start}"
            with (self.place / f"{name}.log").open("w") as log:
                command = ["ip", "netns", "exec", name, "unshare", "-u", "sh", "-c", script]
                self.raylets.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log))
            self.await_text(name, "will now block forever")

    def await_text(self, name: str, text: str) -> None:
        until = time.monotonic() + 120
        while text not in (said := (self.place / f"{name}.log").read_text()):
            assert time.monotonic() < until, said
            time.sleep(0.1)

    def run(self, *command: object) -> subprocess.Popen:
        """A driver on the first machine."""
        there = [
            "nsenter",
            "-t",
            str(self.raylets[0].pid),
            "-n",
            "-m",
            "-u",
            sys.executable,
            *map(str, command),
        ]
        with (self.place / "driver.log").open("w") as log:
            return subprocess.Popen(
                there, env=self.env | {"RAY_ADDRESS": "10.77.0.1:6379"}, stdout=log, stderr=log
            )

    def processes(self, name: str) -> set[int]:
        return {int(pid) for pid in sh(f"ip netns pids {name}").split()}

    def end(self) -> None:
        for name in self.names:
            for pid in self.processes(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False)
        for raylet in self.raylets:
            raylet.wait(30)


@pytest.fixture
def machines(tmp_path):
    if "KILLS" not in os.environ:
        pytest.skip("two minutes long: set KILLS, as `make chaos` does")
    if (
        os.geteuid()
        or shutil.which("ip") is None
        or subprocess.run(["unshare", "-nmu", "true"], check=False).returncode
    ):
        pytest.skip("network namespaces need root, the right to make them, and the program ip")
    made = Machines(tmp_path, 3)
    try:
        made.start()
        yield made
    finally:
        made.end()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fate", ["dies", "is cut off"])
def test_a_machine_in_a_network_of_its_own_goes_and_the_run_ends_with_the_same_bytes(
    fate, machines, tmp_path, monkeypatch
):
    monkeypatch.setattr(driver, "after_run", lambda *_, **__: None)
    whole = make_job(
        make_corpus(tmp_path / "corpus", CLIPS, FRAMES), tmp_path / "undisturbed", REFERENTS
    )
    driver.run([whole], Inline(), Quiet())
    job = whole.model_copy(update={"out": str(tmp_path / "out")})
    (tmp_path / "job.json").write_text(job.model_dump_json())
    diary = tmp_path / "begun"
    diary.touch()
    process = machines.run(Path(__file__).with_name("child.py"), tmp_path / "job.json", diary, 3)
    last = machines.names[-1]
    lost: set[int] = set()
    until = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < until:
        begun = {int(line.split()[0]) for line in diary.read_text().splitlines()}
        if not lost and begun & machines.processes(last):
            lost = machines.processes(last)
            if fate == "dies":
                for pid in lost:
                    os.kill(pid, signal.SIGKILL)
            else:
                sh(f"ip -n {machines.names[0]} link set v3 down")
        time.sleep(0.05)
    assert process.poll() == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert lost, "no clip was begun on the third machine"
    assert differing(Path(job.out), tree(Path(whole.out))) == []
    assert leftovers(Path(job.out)) == []
    assert verify(Path(job.out), deep=True).problems == []
