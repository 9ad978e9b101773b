"""The exclude list: read, planned, and end to end: what it names is a row, and nothing else changes."""

from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.forecast import forecast
from flows.jobs import make_jobs, unknown_keys
from flows.progress import Quiet
from manifests.catalog import query
from manifests.verify import verify
from pipeline.exclude import Exclude, leaving_out, read_exclude
from pipeline.plan import build_plan, plan_identity, read_plan
from pipeline.presets import configure
from schemas.records import Clip, Media, Planned, Reason, Referent, Rejected


def listed(job, *keys: str):
    return job.model_copy(update={"exclude": Exclude(name="flags.txt", keys=tuple(sorted(keys)))})


@pytest.fixture
def ids(tiny_job) -> list[str]:
    """Referents, in the order of the plan, two to a shard."""
    build_plan(tiny_job)
    return [
        r.referent_id for shard in read_plan(tiny_job, "") for p in shard.clips for r in p.referents
    ]


def test_comments_spaces_and_empty_lines(tmp_path):
    file = tmp_path / "flags.txt"
    file.write_bytes(b"\xef\xbb\xbf# blurred\r\n b-2  # the second\r\n\r\na-1\nb-2\n")
    assert read_exclude(file) == Exclude(name="flags.txt", keys=("a-1", "b-2"))
    file.write_text("# nothing\n")
    assert read_exclude(file) is None


def test_a_file_that_is_no_list_is_refused_with_its_line(tmp_path):
    (tmp_path / "x").write_text("a-1\n../etc/passwd\n")
    with pytest.raises(
        ValueError, match=r"--exclude .*x:2: '../etc/passwd' is no referent or clip id"
    ):
        read_exclude(tmp_path / "x")
    with pytest.raises(ValueError, match=r"--exclude .*nowhere: No such file"):
        read_exclude(tmp_path / "nowhere")


def test_one_referent_of_a_clip_or_all_of_them():
    clip = Clip("c", "lasot", "train", "v", Media("video", "v.mp4"), 0, 9)
    item = Planned(clip, (Referent("c-0", "c", "one"), Referent("c-1", "c", "other")))
    row = Rejected("lasot", "train", "c", Reason.EXCLUDED, "excluded by f: c-1", referent_id="c-1")
    assert leaving_out(Exclude(name="f", keys=("c-1",)))(item) == [
        row,
        Planned(clip, item.referents[:1]),
    ]
    rows = leaving_out(Exclude(name="f", keys=("c",)))(item)
    assert [(r.referent_id, r.message) for r in rows] == [
        ("c-0", "excluded by f: c"),
        ("c-1", "excluded by f: c"),
    ]
    assert leaving_out(Exclude(name="f", keys=("d",)))(item) == leaving_out(None)(item) == [item]


def test_only_the_shard_of_what_is_excluded_changes(tiny_job, ids):
    before = [shard.hash for shard in read_plan(tiny_job, "")]
    counts = build_plan(listed(tiny_job, ids[0]))
    after = [shard.hash for shard in read_plan(tiny_job, "")]
    assert (counts.referents, counts.rejected, counts.shards) == (5, 2, 3)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True]
    assert forecast(listed(tiny_job, ids[0]), counts)["skip"]["excluded"] == 1


def test_the_identity_of_a_plan_follows_the_list(tiny_job):
    one, other = (plan_identity(listed(tiny_job, key)) for key in ("a", "b"))
    assert len({one, other, plan_identity(tiny_job)}) == 3


def test_ids_that_are_not_there_are_named_but_not_those_of_other_sources(tiny_job, ids):
    job = listed(tiny_job, ids[0], "hcstvg-train-nobody", "lasot-train-v-0", "nonsense")
    build_plan(job)
    assert (
        unknown_keys([job])
        == "flags.txt: not in this plan of hcstvg: hcstvg-train-nobody, nonsense"
    )
    assert unknown_keys([tiny_job]) == ""


def test_flags_become_rows_of_the_next_run(tiny_job, tmp_path):
    """An output, a flag, the same output again: refused unasked, then one of two shards is made again."""
    out = Path(tiny_job.out)
    config = configure("lite", ["shard.max_referents=1"])
    (tiny_job,) = make_jobs("hcstvg", tiny_job.data_root, out, config, limit=2)
    driver.run([tiny_job], Inline(), Quiet())
    flagged, kept = (
        row["referent_id"] for row in query(out, "SELECT referent_id FROM referents ORDER BY shard")
    )
    before = {p.name: p.read_bytes() for p in out.rglob("*.tar")}
    (tmp_path / "flags.txt").write_text(f"{flagged}\n")
    (job,) = make_jobs(
        "hcstvg", tiny_job.data_root, out, config, limit=2, exclude=tmp_path / "flags.txt"
    )
    with pytest.raises(driver.PlanConflict, match=r"exclude none -> 1 ids of flags.txt.*--replan"):
        driver.run([job], Inline(), Quiet())
    (again,) = driver.run([job], Inline(), Quiet(), replan=True)
    assert (again.shards_skipped, again.shards_done) == (1, 1)
    rows = query(
        out,
        "SELECT referent_id, stage, message, retryable FROM quarantine WHERE reason = 'excluded'",
    )
    message = f"excluded by flags.txt: {flagged}"
    assert rows == [
        {"referent_id": flagged, "stage": "plan", "message": message, "retryable": False}
    ]
    assert query(out, "SELECT referent_id FROM referents") == [{"referent_id": kept}]
    assert verify(out, deep=True).problems == []
    (tmp_path / "flags.txt").unlink()  # the plan has the list
    (again,) = driver.retry(out, "reason = 'excluded'", Inline(), Quiet())
    assert again.shards_done == 1
    assert len(query(out, "FROM quarantine WHERE reason = 'excluded'")) == 1
    with pytest.raises(driver.PlanConflict, match=r"1 ids of flags.txt -> none"):
        driver.run([tiny_job], Inline(), Quiet())
    driver.run([tiny_job], Inline(), Quiet(), replan=True)
    assert {p.name: p.read_bytes() for p in out.rglob("*.tar")} == before
