"""One made output for all, and one that the pipeline itself curated."""

from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from model.data.index import Index
from pipeline.presets import ShardConfig, configure
from tests.model.data.made import make_output


@pytest.fixture(scope="session")
def out(tmp_path_factory) -> Path:
    """Sources a (3 tars, 12 referents) and b (2 tars, 8 referents)."""
    return make_output(tmp_path_factory.mktemp("made output"), {"a": (3, 2), "b": (2, 2)})


@pytest.fixture(scope="session")
def index(out) -> Index:
    return Index.open(str(out))


@pytest.fixture(scope="session")
def curated(tiny_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("curated") / "out"
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=2)})
    driver.run(make_jobs("hcstvg", tiny_root, out, config), Inline(), Quiet())
    return out
