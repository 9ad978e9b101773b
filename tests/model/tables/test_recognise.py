"""A run stands in exactly the rows whose whole config it has; every other run in none, with the fields named."""

import copy
from typing import Any

import pytest

from model.config import SparrowConfig, configure
from model.tables.recognise import FREE, deviations, flat, nearest, rows_of_run
from model.tables.registry import TABLES
from tests.model.tables.made import run_of

ROWS = [(table, row) for table in TABLES for row in table.rows]
NAMES = [f"{table.key(row)}: {row.name}" for table, row in ROWS]
FIELDS = sorted(set(flat(SparrowConfig().model_dump(mode="json"))) - set(FREE))


def names(run: dict[str, Any]) -> list[str]:
    return [f"{table.key(row)}: {row.name}" for table, row in rows_of_run(run)]


def config_of(preset: str, changes: dict[str, Any]) -> dict[str, Any]:
    config = configure(preset, **changes).model_dump(mode="json", exclude={"preset"})
    if not config["box"]["enabled"]:  # a host alone: by whichever preset
        config["loss"] = None
    return config


def same(row: Any, config: dict[str, Any]) -> bool:
    """Whether a row stands for this config; of proposers, only what their recall depends on."""
    wanted = [config_of(preset, row.changes) for preset in row.presets]
    if row.compared:
        config = {"proposer": config["proposer"]}
        wanted = [{"proposer": one["proposer"]} for one in wanted]
    return config in wanted


@pytest.mark.parametrize(("table", "row"), ROWS, ids=NAMES)
def test_a_run_of_a_row_is_found_in_exactly_the_rows_of_its_config(table, row):
    for preset in row.presets:
        for column in {c.benchmark: c for c in table.columns_of(row) if c.key}.values():
            run = run_of(
                preset,
                changes=dict(row.changes),
                host=row.host,
                benchmark=column.benchmark,
                split=column.split,
            )
            config = config_of(preset, dict(row.changes))
            wanted = [
                f"{other.key(line)}: {line.name}"
                for other, line in ROWS
                if line.host == row.host
                and same(line, config)
                and any(
                    (c.benchmark, c.split) == (column.benchmark, column.split)
                    for c in other.columns_of(line)
                )
            ]
            assert f"{table.key(row)}: {row.name}" in wanted
            assert names(run) == wanted


def test_no_tsf_with_box_is_a_row_of_five_tables_and_the_default_of_others():
    assert names(run_of(changes={"tsf.path": "none"})) == [
        "Table 4: BOX only",
        "Table 5A: box",
        "Table 5B: head",
        "Table 5C: box+seg",
        "Table 9: none",
        "Table 10: no TSF",
        "Table 11: deformable",
    ]
    assert names(run_of()) == [
        "Table 2: VideoGLaMM + SPARROW",
        "Table 4: TSF in training + BOX",
        "Table 9: spatial",
        "Table 10: clean",
        "Table 15: VideoGLaMM + SPARROW",
    ]
    assert names(run_of("host")) == [
        "Table 2: VideoGLaMM",
        "Table 4: neither",
        "Table 15: VideoGLaMM",
    ]
    assert names(run_of("release")) == [
        "Table 2: VideoGLaMM + SPARROW",
        "Table 15: VideoGLaMM + SPARROW",
    ]


@pytest.mark.parametrize("field", FIELDS)
def test_a_run_that_deviates_in_any_field_is_in_no_row(field):
    """Also a field that no table knows: it never stands as the default row."""
    run = run_of(size="full")
    *path, last = field.split(".")
    section = run["model"]
    for name in path:
        section = section[name]
    section[last] = "another"
    assert names(run) == []
    table, _, lines = nearest(run)
    assert table.name == "Table 2"
    assert [line.field for line in lines] == [field]


def test_the_faults_of_the_old_table_4_are_gone():
    """Identity switches, the temporal path, the MLP proposer and [SEG] alone were printed as the default row."""
    assert names(run_of(changes={"corruption.kind": "id_switch", "corruption.level": 0.1})) == [
        "Table 10: id_switch 0.1"
    ]
    assert names(run_of(changes={"tsf.path": "temporal"})) == ["Table 9: temporal"]
    assert names(run_of(changes={"proposer.kind": "mlp"})) == []
    assert names(run_of(changes={"proposer.kind": "mlp", "tsf.path": "none"})) == ["Table 11: mlp"]
    assert names(run_of(changes={"decode.prompts": "seg"})) == []
    assert names(run_of(changes={"corruption.kind": "jitter", "corruption.level": 0.07})) == []


def test_fields_without_effect_do_not_matter():
    alone = names(run_of("host"))
    assert names(run_of("host", changes={"filter.nms": 0.5, "tsf.k": 8})) == alone
    no_tsf = {"tsf.path": "none"}
    noisy = no_tsf | {"corruption.kind": "jitter", "corruption.level": 0.3}
    assert names(run_of(changes=noisy)) == names(run_of(changes=no_tsf))
    noise = {"corruption.kind": "jitter", "corruption.level": 0.1, "corruption.segments": 2}
    assert names(run_of(changes=noise)) == []


@pytest.mark.parametrize("preset", ["host", "release"])
def test_runs_of_earlier_versions_are_found_where_nothing_of_theirs_changed(preset):
    """Their results name no questions, and a host's record has the old numbers of a head that it has not."""
    run = run_of(preset, size="full")
    del run["model"]["questions"]
    if preset == "host":
        del run["model"]["filter"]["descriptor"]
        run["model"]["loss"]["filter"] |= {"negative": 0.3, "l1_weight": 5.0}
    assert names(run) == names(run_of(preset, size="full"))


def test_names_of_presets_and_seeds_do_not_matter():
    run = run_of()
    run["model"] |= {"preset": "mine"}
    run["model"]["corruption"]["seed"] = 7
    assert names(run) == names(run_of())


def test_sizes_are_free_in_a_tiny_model_only():
    changes = {"proposer.queries": 100}
    assert names(run_of(changes=changes)) == names(run_of())
    assert names(run_of(size="full", changes=changes)) == []


def test_what_only_training_reads_is_taken_from_the_checkpoint():
    noisy = {"corruption.kind": "dropout", "corruption.level": 0.3}
    trained = configure(**noisy).model_dump(mode="json")
    assert names(run_of(size="full", trained=trained)) == ["Table 10: dropout 0.3"]
    clean = configure().model_dump(mode="json")
    assert names(run_of(size="full", changes=noisy, trained=clean)) == names(run_of())
    no_tsf = configure(**{"tsf.path": "none"}).model_dump(mode="json")
    assert names(run_of(size="full", trained=no_tsf, changes={"decode.prompts": "box"})) == [
        "Table 5C: box"
    ]
    both = run_of(size="full", trained=clean, changes={"tsf.infer": True})
    assert names(both) == ["Table 4: TSF in both + BOX"]
    seg = configure(**{"tsf.path": "none", "filter.supervision_token": "seg"})
    other = run_of(size="full", trained=seg.model_dump(mode="json"), changes={"tsf.path": "none"})
    assert names(other) == []  # trained with one token, asked with the other
    assert [line.field for line in nearest(other)[2]] == ["filter.supervision_token"]


def test_a_run_from_before_the_reported_values_is_not_the_default():
    """Its results name no `filter.descriptor`, and other weights of the losses."""
    run = run_of("reconstructed", size="full")
    del run["model"]["filter"]["descriptor"]
    assert names(run) == []
    fields = [line.field for line in nearest(run)[2]]
    assert fields == [
        "filter.descriptor",
        "loss.bce",
        "loss.dice",
        "loss.filter.negative",
        "loss.filter.l1_weight",
    ]


def test_a_field_that_a_run_does_not_record_is_a_difference():
    run = run_of(size="full")
    del run["model"]["decode"]
    assert names(run) == []
    assert "decode.mode=not recorded (the row has memory)" in map(str, nearest(run)[2])


def test_other_hosts_benchmarks_and_splits_have_no_ablations():
    no_tsf = {"changes": {"tsf.path": "none"}}
    assert names(run_of(host="glus", **no_tsf)) == []
    assert names(run_of(benchmark="mevis", split="val_u", **no_tsf)) == []
    assert nearest(run_of(benchmark="vidstg", split="val")) is None


def test_comparing_changes_nothing_of_the_run():
    run = run_of("release", trained=configure().model_dump(mode="json"))
    before = copy.deepcopy(run)
    for _, row in ROWS:
        deviations(run, row)
    assert run == before
