"""Publishing to a real S3 protocol: killed anywhere, repeated, two at once; every object once, never a mixture."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.publish import forecast, open_store, publish, publish_rest
from manifests.publish import s3 as limits
from manifests.publish import shard as shards
from manifests.publish.protocol import Publisher
from manifests.publish.shard import Claim
from manifests.publish.store import NEW, Changed
from schemas import tables
from tests.manifests import damage as do
from tests.manifests.made import make_whole
from tests.manifests.s3 import BUCKET, Server, Turns, before, serving, tree

NAME, OTHER = do.SHARD, do.OTHER
COMMIT = f"manifests/shards/{NAME}.parquet"
TAR = f"hcstvg/train/shards/{NAME}.tar"
PART, TIMINGS = f"manifests/clips/{NAME}.parquet", f"manifests/timings/{NAME}.parquet"
FEW = ("clips", "timings")
"""Enough to see everything: a part that the commit vouches for, and one that it does not."""
STEPS = 7
"""Writes of a shard with FEW tables: claim, two proofs of conditions, tar, two parts, commit."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Two splits of one shard each, with the record of a run each."""
    place = make_whole(tmp_path_factory.mktemp("publish") / "out", ("hcstvg", "mevis"))
    runs = place / "manifests" / "runs"
    (runs / "r0.parquet").unlink()
    for source, split in (("hcstvg", "train"), ("mevis", "valid_u")):
        row = dict.fromkeys(tables.schema("runs").names) | {
            "run_id": source,
            "source": source,
            "split": split,
        }
        tables.write(runs / f"{source}-{split}-1.parquet", "runs", [row])
    return place


def took(out: Path, note: str) -> None:
    """Other timings; no digest vouches for them."""
    row = dict.fromkeys(tables.schema("timings").names) | {"note": note, "shard": NAME}
    tables.write(do.part(out, "timings"), "timings", [row])


@pytest.fixture(scope="module")
def twin(out, tmp_path_factory) -> Path:
    """Curated elsewhere by the same plan: the same content, another time that it took."""
    place = tmp_path_factory.mktemp("twin") / "out"
    shutil.copytree(out, place)
    took(place, "slower")
    return place


@pytest.fixture(scope="module")
def other(out, tmp_path_factory) -> Path:
    """Another content of each object of the shard."""
    place = tmp_path_factory.mktemp("other") / "out"
    shutil.copytree(out, place)
    do.spoil(place, "json", lambda data: data.replace(b"square", b"SQUARE"))
    do.put(place, "clips", "source_mtime_ns", 7)
    took(place, "other")
    mine, others = tree(out, NAME), tree(place, NAME)
    assert [key for key in (TAR, COMMIT, PART, TIMINGS) if mine[key] == others[key]] == []
    return place


@pytest.fixture
def few(monkeypatch) -> None:
    monkeypatch.setattr(shards, "PER_SHARD", FEW)


def go(out: Path, store, **options):
    (done,) = publish(out, store, [NAME], workers=1, **options)
    return done


def small(out: Path) -> dict[str, bytes]:
    return tree(out, NAME, (*FEW, "shards"))


def vouched(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {key: data for key, data in objects.items() if key != TIMINGS}


class Killed(BaseException):
    """A kill, as seen from inside."""


# --- one publisher --------------------------------------------------------------------------------------------------


def test_shards_runs_and_card(out, server):
    url = server.url()
    store = server.open(url)
    seen = []
    done = publish(out, store, [NAME, OTHER], tick=lambda n, name: seen.append(name))
    assert [(d.state, d.objects) for d in done] == [("published", 12)] * 2
    assert sorted(seen) == [NAME, OTHER]
    assert server.objects(url) == tree(out, NAME) | tree(out, OTHER)
    assert sum(d.bytes for d in done) == sum(map(len, server.objects(url).values()))
    with do.restored(out):
        assert publish_rest(out, store, {"hcstvg-train"}) == (
            1,
            f"there is none: `sparrow card {out}` writes it",
        )
        from manifests.card import write_card

        cards = write_card(out, {}, (0, 0))
        assert publish_rest(out, store, {"hcstvg-train", "mevis-valid_u"}) == (3, "")
        assert publish_rest(out, store, {"hcstvg-train", "mevis-valid_u"}) == (0, "")
        there = server.objects(url)
        assert {p.name: p.read_bytes() for p in cards} == {p.name: there[p.name] for p in cards}
        do.put(out, "shards", "sha256", "new")
        assert "older than the shards" in publish_rest(out, store, set())[1]


def test_a_card_of_more_than_the_store_has_stays_here(out, server):
    store = server.open(server.url())
    with do.restored(out):
        from manifests.card import write_card

        write_card(out, {}, (0, 0))
        go(out, store)
        assert publish_rest(out, store, {"hcstvg-train"}) == (
            1,
            f"it tells of 2 shards, the store has 1 ({OTHER} is one that differs)",
        )


def test_again_nothing_is_written(out, server):
    url = server.url()
    assert [d.state for d in forecast(out, server.open(url), [NAME, OTHER])] == ["new"] * 2
    assert server.objects(url) == {}
    go(out, server.open(url))
    again = before(server.open(url), lambda *_: pytest.fail("a write"))
    assert (go(out, again).state, go(out, again, deep=True).state) == ("there", "there")
    assert [d.state for d in forecast(out, again, [NAME, OTHER])] == ["there", "new"]


@pytest.mark.parametrize("step", range(STEPS))
def test_killed_before_any_write_and_begun_again(out, server, few, step):
    url, written = server.url(), []

    def dying(n: int, key: str) -> None:
        if n == step:
            raise Killed
        written.append(key)

    with pytest.raises(Killed):
        go(out, before(server.open(url), dying))
    assert server.objects(url).get(COMMIT) != small(out)[COMMIT]
    state = forecast(out, server.open(url), [NAME])[0].state
    assert state == ("unfinished" if step else "new")
    done = go(out, before(server.open(url), lambda n, key: written.append(key)))
    assert done.state == "published"
    assert server.objects(url) == small(out)
    assert sorted(key for key in written if key != COMMIT) == sorted({TAR, PART, TIMINGS})


def test_every_answer_lost_and_every_write_sent_again(out, server, few):
    """A connection that breaks after the store has written: the retry finds its own condition broken."""
    url = server.url()
    store = server.open(url)
    call = store.call

    def twice(action, key="", **more):
        if action == "put_object":
            call(action, key, **more)
        return call(action, key, **more)

    store.call = twice
    assert go(out, store).state == "published"
    assert server.objects(url) == small(out)


def test_large_files_go_in_parts_and_on_the_same_condition(server, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PUT_LIMIT", 1 << 20)
    monkeypatch.setattr(limits, "PART", 5 << 20)
    url, path = server.url(), tmp_path / "large"
    path.write_bytes(random.Random(0).randbytes((5 << 20) + 1000))
    store = server.open(url)
    digest = shards._sha256(path)
    sent = []
    before(store, lambda n, key: sent.append(n), ("upload_part",))
    store.upload("large", path, digest, over=NEW)
    assert (server.objects(url), len(sent)) == ({"large": path.read_bytes()}, 2)
    assert store.look("large").sha256 == store.digest("large") == digest
    with pytest.raises(Changed):
        store.upload("large", path, digest, over=NEW)
    with pytest.raises(OSError, match="changed while it was read"):
        store.upload("new", path, "0" * 64, over=NEW)
    assert list(server.objects(url)) == ["large"]
    assert store.call("list_multipart_uploads").get("Uploads", []) == []


def test_if_match_is_on_the_last_request_of_an_upload_in_parts(server, tmp_path, monkeypatch):
    """moto does not look at it there, so what is sent is looked at."""
    monkeypatch.setattr(limits, "PUT_LIMIT", 1)
    path, sent = tmp_path / "file", []
    path.write_bytes(b"12")
    store = server.open(server.url())
    store._client.meta.events.register(
        "before-send.s3.CompleteMultipartUpload", lambda request, **_: sent.append(request.headers)
    )
    store.upload("file", path, shards._sha256(path), over='"seen"')
    assert [headers["If-Match"] for headers in sent] == [b'"seen"']


# --- what lies there already ----------------------------------------------------------------------------------------


def test_another_content_is_a_conflict_and_stays(out, other, server):
    url = server.url()
    go(out, server.open(url))
    refusing = before(server.open(url), lambda *_: pytest.fail("a write"))
    done = go(other, refusing)
    assert done.state == "conflict"
    assert f"{NAME}: {url} holds another content since 20" in done.why
    assert "(other: tar, clips, members). Nothing was overwritten" in done.why
    assert forecast(other, refusing, [NAME])[0] == done
    assert forecast(other, refusing, [NAME], replace=True)[0].state == "replace"
    assert server.objects(url) == tree(out, NAME)
    assert go(other, server.open(url), replace=True).state == "replaced"
    assert server.objects(url) == tree(other, NAME)


def test_a_dead_publishers_claim_is_named_and_can_be_replaced(out, other, server, few):
    url = server.url()

    def dying(n: int, key: str) -> None:
        if n == STEPS - 1:
            raise Killed

    with pytest.raises(Killed):
        go(out, before(server.open(url), dying))
    done = go(other, server.open(url))
    assert "is being given another content, since 20" in done.why
    assert "by process" in done.why
    assert go(other, server.open(url), replace=True).state == "published"
    assert server.objects(url) == small(other)


def test_leftovers_that_nobody_vouches_for_are_written_over_or_kept(out, server, few):
    """As a copy by hand leaves them: without a claim, without a sha256."""
    url = server.url()
    store = server.open(url)
    store.call("put_object", TAR, Body=b"half")
    store.call("put_object", PART, Body=small(out)[PART])
    written = []
    assert go(out, before(store, lambda n, key: written.append(key))).state == "published"
    assert (TAR in written, PART in written) == (True, False)
    assert server.objects(url) == small(out)


def test_deep_reads_back_and_mends(out, server, few):
    url = server.url()
    store = server.open(url)
    go(out, store)
    flipped = bytearray(small(out)[TAR])
    flipped[700] ^= 1
    store.call("put_object", TAR, Body=bytes(flipped), Metadata={"sha256": store.look(TAR).sha256})
    store.call("delete_object", PART)
    assert go(out, store).state == "there"
    done = go(out, store, deep=True)
    assert (done.state, done.objects) == ("mended", 2)
    assert server.objects(url) == small(out)


def test_shards_of_another_cut_are_refused_before_anything_is_written(out, server):
    url = server.url()
    store = server.open(url)
    left = f"{NAME[:-1]}1"
    store.write(
        f"manifests/shards/{left}.parquet",
        b"of five shards, before it was resharded to one",
        over=NEW,
    )
    with pytest.raises(ValueError, match=rf"1 shards that the plan of .* does not have \({left}\)"):
        go(out, store, replace=True)
    assert len(server.objects(url)) == 1
    with do.restored(out):  # a run that is not finished: its plan promises two
        import pyarrow as pa
        import pyarrow.parquet as pq

        (out / "plan").mkdir()
        pq.write_table(
            pa.table({"x": [1]}).replace_schema_metadata({"counts": '{"shards": 2}'}),
            out / "plan/hcstvg-train.parquet",
        )
        assert go(out, store).state == "published"


# --- what is on disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: do.flip(do.tar(out), 700),
        lambda out: do.part(out, "qa").unlink(),
        lambda out: do.put(out, "masks", "frame", 99, seal=False),
    ],
)
def test_what_is_damaged_here_goes_nowhere(out, server, spoil):
    url = server.url()
    with do.restored(out):
        spoil(out)
        done = go(out, server.open(url))
        assert (done.state, server.objects(url)) == ("damaged", {})
        assert f"`sparrow repair {out}`" in done.why


def test_curated_anew_while_it_is_published(out, other, server, few):
    url = server.url()

    def replan(n: int, key: str) -> None:
        if n == 3:
            shutil.copy(other / COMMIT, out / COMMIT)

    with do.restored(out):
        done = go(out, before(server.open(url), replan))
    assert "curated anew while it was being published" in done.why
    assert Claim.of(server.objects(url)[COMMIT])


# --- two at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(STEPS))
def test_one_overtakes_the_other_before_any_write(out, twin, other, server, few, step):
    """The first stops before its n-th write, the second comes and ends, the first goes on."""

    def race(second: Path, **options):
        url, found = server.url(), []

        def overtaken(n: int, key: str) -> None:
            if n == step:
                found.append(go(second, server.open(url), **options))

        first = go(out, before(server.open(url), overtaken))
        return vouched(server.objects(url)), first.state, found[0].state

    assert race(twin) == (
        vouched(small(out)),
        "there" if step < STEPS - 1 else "published",
        "published",
    )
    if step:
        assert race(other) == (vouched(small(out)), "published", "conflict")
    else:
        assert race(other) == (vouched(small(other)), "conflict", "published")
    assert race(other, replace=True) == (vouched(small(other)), "conflict", "published")


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_requests_and_never_a_mixture(out, twin, other, server, few, seed):
    """Three publishers, request by request in a random order. Whenever the commit is there, all it vouches for is.

    One of them may replace; of two that take over from each other more is asked than ETags can do.
    """
    chance, url = random.Random(seed), server.url()
    whole = {small(place)[COMMIT]: vouched(small(place)) for place in (out, other)}
    committed = set()

    def never_mixed() -> None:
        objects = server.objects(url)
        commit = objects.get(COMMIT, b"")
        if commit in whole:
            committed.add(commit)
            assert vouched(objects) == whole[commit]

    turns, done = Turns(chance.choice, never_mixed), []

    def one(me: int, place: Path, replace: bool):
        store = before(
            server.open(url), lambda *_: turns.wait(me), ("put_object", "head_object", "get_object")
        )
        return lambda: done.append((place, Publisher(place, store, replace, False).publish(NAME)))

    places = [out, chance.choice([twin, other]), other]
    replacer = chance.randrange(5)  # 3, 4: nobody
    turns.run([one(i, place, i == replacer) for i, place in enumerate(places)])
    never_mixed()
    last = server.objects(url)[COMMIT]
    assert last in committed
    winners = {small(place)[COMMIT] for place, outcome in done if not outcome.failed}
    assert len(done) == 3
    assert last in winners
    assert all(outcome.state == "conflict" for _, outcome in done if outcome.failed)


def test_a_claim_hides_a_shard_from_readers(out, server, few):
    import duckdb
    import fsspec

    from manifests.catalog import catalog_sql
    from model.data.index import Index

    url = server.url()

    def dying(n: int, key: str) -> None:
        if n == STEPS - 1:
            raise Killed

    with pytest.raises(Killed):
        go(out, before(server.open(url), dying))
    with pytest.raises(ValueError, match="no committed shard of split train"):
        Index.open(url)
    connection = duckdb.connect()
    connection.register_filesystem(fsspec.filesystem("s3", skip_instance_cache=True))
    view = next(line for line in catalog_sql(f"{url}/").splitlines() if " shards AS" in line)
    connection.execute(view)
    assert connection.execute("SELECT count(*) FROM shards").fetchall() == [(0,)]


# --- stores ---------------------------------------------------------------------------------------------------------


def test_a_store_that_ignores_conditions_is_found_out(out, server, few):
    url = server.url()
    deaf = server.open(url)
    call = deaf.call
    deaf.call = lambda action, key="", **more: call(
        action,
        key,
        **{name: value for name, value in more.items() if name not in ("IfMatch", "IfNoneMatch")},
    )
    with pytest.raises(OSError, match="ignores the conditions of a write"):
        go(out, deaf)
    assert list(server.objects(url)) == [COMMIT]
    assert go(out, server.open(url, unconditional=True)).state == "published"
    assert server.objects(url) == small(out)


def test_any_file_system_without_conditions(out, other):
    import fsspec

    memory = fsspec.filesystem("memory")
    store = open_store("memory://publish/here", unconditional=True)
    try:
        assert [d.state for d in publish(out, store, [NAME, OTHER])] == ["published"] * 2
        assert go(out, store).state == "there"
        assert go(other, store).state == "conflict"
        assert go(other, store, replace=True).state == "replaced"
        there = {
            k.removeprefix("/publish/here/"): memory.cat_file(k) for k in memory.find("/publish")
        }
        assert there == tree(other, NAME) | tree(out, OTHER)
    finally:
        memory.rm("/publish", recursive=True)


def test_an_upload_that_is_stopped_ends_at_once(server, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SMALL", 1)
    path, url = tmp_path / "file", server.url()
    path.write_bytes(b"x" * 100_000)
    store = open_store(url)
    store._client.meta.events.register("before-send.s3.PutObject", lambda **_: store.stop.set())
    with pytest.raises(KeyboardInterrupt):
        store.upload("file", path, shards._sha256(path), over=NEW)
    assert server.objects(url) == {}
    again = server.open(url)
    again.upload("file", path, shards._sha256(path), over=NEW)
    assert server.objects(url) == {"file": path.read_bytes()}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("/mnt/outputs", "is a folder: copy an output there"),
        ("file:///mnt/outputs", "is a folder: copy an output there"),
        ("gs://bucket/tsf", "gs:// has no conditional writes here"),
        ("https://bucket/tsf", "https:// is no store that fsspec can write to"),
        ("memory://tsf", "memory:// has no conditional writes here"),
        ("nowhere://tsf", "nowhere:// is no store that fsspec can write to"),
        ("s3://", "comes the name of a bucket"),
        ("s3://AKIAKEY:verysecret@tsf/x", "comes the name of a bucket"),
    ],
)
def test_what_is_no_store_for_this(url, why):
    with pytest.raises((ValueError, RuntimeError), match=why) as caught:
        open_store(url)
    assert "verysecret" not in str(caught.value)


def test_a_prefix_is_not_needed(server):
    assert (open_store(f"s3://{BUCKET}").url, open_store(f"s3://{BUCKET}/a//").prefix) == (
        f"s3://{BUCKET}",
        "a/",
    )
