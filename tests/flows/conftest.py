"""A mirror for downloads."""

import httpx
import pytest

from flows import download
from flows.download import fetch_file
from tests.mirror import BODY, Mirror, serve


@pytest.fixture(scope="module")
def running():
    mirror = Mirror()
    yield mirror
    mirror.server.shutdown()


@pytest.fixture
def mirror(running, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    running.answer, running.log = serve(), []
    return running


@pytest.fixture
def get(mirror, tmp_path):
    """`get()` fetches a.bin into tmp_path/root; `get.there` is where it goes."""
    root = tmp_path / "root"
    root.mkdir()

    def fetch(path: str = "a.bin", size: int = len(BODY), timeout: float = 5, **words: str) -> str:
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            return fetch_file(client, httpx.URL(mirror.url), root, path, size, **words)

    fetch.root, fetch.there, fetch.part = root, root / "a.bin", root / "a.bin.part"
    return fetch
