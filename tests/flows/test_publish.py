"""`sparrow publish` on the command line, what a user reads when it cannot, and every line of docs/object-stores.md."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from schemas import tables
from tests.docs.pages import REPO, blocks
from tests.manifests.made import make_whole
from tests.manifests.s3 import BUCKET, SECRET, Server, serving

NAMES = ("hcstvg-train-000000", "mevis-valid_u-000000")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    place = make_whole(tmp_path_factory.mktemp("publish") / "out", ("hcstvg", "mevis"))
    row = dict.fromkeys(tables.schema("runs").names) | {
        "run_id": "r",
        "source": "hcstvg",
        "split": "train",
    }
    tables.write(place / "manifests" / "runs" / "r0.parquet", "runs", [row])
    assert run("card", place).exit_code == 0
    return place


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def told(*words) -> dict:
    return json.loads(run("publish", *words, "--json").stdout)


def test_what_it_says(out, server):
    url = server.url()
    dry = run("publish", out, url, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert f"nothing was written to: {url}" in dry.output
    assert server.objects(url) == {}
    one = run("publish", out, url, "--source", "mevis", "--workers", "1")
    assert "the data card was not published: it tells of 2 shards, the store has 1" in one.output
    both = told(out, url, "--endpoint", server.endpoint)
    assert both["shards"][0] | {"bytes": 0} == {
        "shard": NAMES[0],
        "state": "published",
        "objects": 12,
        "bytes": 0,
        "why": "",
    }
    assert [shard["state"] for shard in both["shards"]] == ["published", "there"]
    assert (both["to"], both["conditional"], both["other_objects"], both["card"]) == (
        url,
        True,
        3,
        "published",
    )
    text = run("publish", out, url, "--deep").output
    assert "hcstvg-train              1 there              0 objects" in text
    assert f"published to: {url} (0 objects beside the shards)" in text


def test_a_conflict_is_red(out, server, tmp_path):
    url = server.url()
    told(out, url)
    shutil.copytree(out, tmp_path / "out")
    row = tmp_path / "out/manifests/shards" / f"{NAMES[0]}.parquet"
    row.write_bytes(row.read_bytes() + b"PAR1")
    done = run("publish", tmp_path / "out", url)
    assert done.exit_code == 1
    assert f"conflict: {NAMES[0]}: {url} holds another content since" in done.output
    assert "the data card was not published: not all shards were published" in done.output
    assert f"published to: {url} (0 objects beside the shards), but for 1 shards" in done.output


def test_no_credential_is_written_or_said(out, server):
    url = server.url()
    said = (
        run("publish", out, url, "--json").output
        + run("publish", out, f"{url}/b", "--replace").output
    )
    written = b"".join(server.objects(url).values())
    assert written
    assert SECRET not in said
    assert SECRET.encode() not in written


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["s3://nosuchbucket/x"], "there is no bucket nosuchbucket: create it"),
        (
            [f"s3://{BUCKET}/x", "--split", "test"],
            "has no shard of test: it has hcstvg-train, mevis-valid_u",
        ),
        ([f"s3://{BUCKET}/x", "--source", "imagenet"], "unknown source 'imagenet'"),
        (["outputs/there"], "outputs/there is a folder: copy an output there with `rsync -a`"),
        ([f"s3://{BUCKET}/x", "--endpoint", "nonsense"], "Invalid endpoint: nonsense"),
    ],
)
def test_one_clear_line(out, server, words, why):
    done = run("publish", out, *words)
    assert done.exit_code == 1
    assert isinstance(done.exception, ValueError | OSError)
    assert why in str(done.exception)


def test_nothing_to_publish(tmp_path, server):
    assert "holds no committed shards" in str(run("publish", tmp_path, server.url()).exception)


def test_without_credentials(out, server, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    error = run("publish", out, server.url()).exception
    assert isinstance(error, PermissionError)
    assert "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in str(
        error
    )


def test_denied(out, server):
    client = server.open(server.url())._client
    rule = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/*",
    }
    client.put_bucket_policy(
        Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]})
    )
    try:
        error = run("publish", out, server.url()).exception
    finally:
        client.delete_bucket_policy(Bucket=BUCKET)
    assert isinstance(error, PermissionError)
    assert "the store denies put_object. These credentials need s3:GetObject, s3:PutObject" in str(
        error
    )


def test_without_s3fs(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    error = run("publish", out, f"s3://{BUCKET}/x").exception
    assert isinstance(error, RuntimeError)
    assert "s3:// needs s3fs, which is not installed" in str(error)


def test_training_reads_it(out, server):
    import numpy as np

    from model.data.index import Index
    from model.data.loader import Loader, LoaderOptions

    url = server.url()
    told(out, url)
    options = LoaderOptions(batch=1, frames=4, verify=True)
    far, near = (next(iter(Loader(Index.open(place), options)))[0] for place in (url, str(out)))
    assert far.key == near.key
    assert np.array_equal(far.frames_fhw3, near.frames_fhw3)
    assert far.frames_fhw3.any()


def test_every_line_of_the_page(out, server, tmp_path, monkeypatch, capsys):
    """Commands and Python of docs/object-stores.md in their order, with the address of this server."""
    url, names = server.url(), {}
    shutil.copytree(out, tmp_path / "outputs" / "tsf")
    monkeypatch.chdir(tmp_path)
    for block in blocks(REPO / "docs" / "object-stores.md"):
        text = block.text.replace("s3://bucket/tsf", url)
        if block.language == "sh":
            for line in text.strip().splitlines():
                done = run(*shlex.split(line)[1:])
                assert done.exit_code == 0, done.output
        elif block.language == "python":
            exec(compile(text, block.name, "exec"), names)
    assert "mp4" in names["members"]
    shown = capsys.readouterr().out
    assert "hcstvg-train-v-0" in shown
    assert "sample" in shown
    back = {
        p.relative_to("outputs/back").as_posix()
        for p in Path("outputs/back").rglob("*")
        if p.is_file()
    }
    assert back - {"catalog.sql", "catalog.duckdb"} == set(server.objects(url))
