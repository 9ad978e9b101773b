"""A curated output with hostile captions, and a client of the app over it."""

import json
import shutil
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from flows import driver
from flows.browse.flags import Flags
from flows.browse.server import make_app
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from pipeline.presets import configure

SCRIPT = "<script>alert(1)</script> the square & its \"quotes'"


@pytest.fixture(scope="package")
def out(tiny_root, tmp_path_factory) -> Path:
    """Five samples, two rows in quarantine; one expression is a script."""
    root = tmp_path_factory.mktemp("browse")
    shutil.copytree(tiny_root, root / "data")
    words = root / "data" / "anno_v2" / "train_v2.json"
    rows = json.loads(words.read_text())
    rows["0_video.mp4"]["English"] = SCRIPT
    words.write_text(json.dumps(rows))
    driver.run(
        make_jobs("hcstvg", root / "data", root / "out", configure("lite")), Inline(), Quiet()
    )
    return root / "out"


@pytest.fixture(scope="package")
def app(out, tmp_path_factory) -> Starlette:
    return make_app(out, Flags(tmp_path_factory.mktemp("marks") / "new" / "flags.txt", out))


@pytest.fixture
def flags(app) -> Flags:
    """No flags yet."""
    app.state.pages.flags.file.unlink(missing_ok=True)
    return app.state.pages.flags


@pytest.fixture
def client(app) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8787")


@pytest.fixture(scope="package")
def ids(app) -> list[str]:
    """The samples' ids, in order."""
    return [
        row["referent_id"]
        for row in app.state.pages.catalogue.rows("SELECT referent_id FROM samples ORDER BY 1")
    ]
