"""What is counted, against the published counts."""

import json

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from flows.cli import app
from model.config import configure
from model.describe import TABLE_11, TABLE_15, describe, proposers
from model.tables.headline import TABLE_1
from tests.docs.pages import REPO
from tests.model.made import HOSTS, tiny_host

SHOWN = {row.host: row.name for row in TABLE_1.rows[::2]}


@pytest.fixture(scope="module", params=HOSTS)
def found(request):
    return describe(request.param)


def test_baselines_are_the_papers_within_two_in_ten_thousand(found):
    billions = found.parameters(sparrow=False) / 1e9
    assert billions == pytest.approx(TABLE_15[found.host][0], rel=2e-4)


def test_sparrow_adds_what_its_modules_have(found):
    added = {part.name: part.parameters for part in found.sparrow}
    assert added["proposer"] == 11_181_225 - 6 * 257  # one objectness head in place of two
    assert added["filter"] == 987_141
    page = (REPO / "docs" / "paper_vs_release.md").read_text()
    assert f"{sum(added.values()) / 1e6:.1f} M ({SHOWN[found.host]})" in page
    width = {"videoglamm": 3072, "unipixel": 2048, "glus": 4096}[found.host]
    assert added["box_adapter"] == (width + 1) * width + (width + 1) * 256 + width
    assert added["[BOX] rows"] == width * (1 if found.host == "unipixel" else 2)


def test_the_frozen_image_encoder_is_run_once_per_frame(found):
    encoder = next(part for part in found.components if part.name == "sam.image_encoder")
    per_frame = {"videoglamm": 1823, "unipixel": 353, "glus": 1823}[found.host]
    assert encoder.gflops_clip / 16 == pytest.approx(per_frame, rel=2e-3)


def test_sparrow_costs_far_less_than_the_host(found):
    assert 0 < found.gflops(sparrow=True) / found.gflops(sparrow=False) - 1 < 0.01


def test_towers_cost_what_was_measured(found):
    parts = {part.name: part.gflops_clip for part in found.components}
    known = {
        "videoglamm": {"video_encoder": 4 * 2250, "image_encoder": 16 * 382},
        "glus": {"image_encoder": 20 * 162},
        "unipixel": {"llm.visual": 8 * 1343 * 4 * 231 / 1024},
    }
    for name, gflops in known[found.host].items():
        assert parts[name] == pytest.approx(gflops, rel=2e-2 if name == "llm.visual" else 2e-3)


def test_the_release_counts_its_own_modules():
    added = {
        part.name: part.parameters
        for part in describe("videoglamm", configure("release"), frames=1).sparrow
    }
    assert added["proposer"] == 11_181_225
    assert added["filter"] == 329_732 + 510_465 + 1
    assert "box_adapter" not in added


def test_table_11():
    for kind, own, added, gflops in proposers():
        assert added / 1e6 == pytest.approx(TABLE_11[kind], abs=0.006)
        assert (gflops > 0) == (own > 0)
    deformable = next(row for row in proposers() if row[0] == "deformable")
    assert deformable[1:3] == (11_181_225, 11_378_601)
    assert deformable[3] == pytest.approx(43.1, abs=0.1)


def test_unipixels_formula_is_pytorchs_count():
    host = tiny_host("unipixel")
    inputs = host.prepare(np.zeros((4, 100, 180, 3), np.uint8))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        host.visual_tokens(inputs)
    assert host.visual_flops(inputs) == counter.get_total_flops()


def test_the_command_prints_three_tables_and_json():
    run = CliRunner().invoke(
        app, ["model", "describe", "glus", "--frames", "2", "--set", "proposer.levels=2"]
    )
    assert run.exit_code == 0, run.output
    for words in ("SPARROW proposer", "Table 15", "Table 11", "7.288", "+0.017"):
        assert words in run.output
    run = CliRunner().invoke(app, ["model", "describe", "unipixel", "--frames", "2", "--json"])
    table = json.loads(run.stdout)
    assert table["table_15"]["paper"]["params"] == 3.881
    assert len(table["table_11"]) == 5


def test_unknown_words_are_refused():
    for arguments in (
        ["llava"],
        ["glus", "--preset", "best"],
        ["glus", "--set", "proposer.level=2"],
    ):
        run = CliRunner().invoke(app, ["model", "describe", *arguments])
        assert run.exit_code != 0
        assert isinstance(run.exception, ValueError)
