"""Samples that a host cannot take: known before a step, named, counted apart, and replaced; none ends a training."""

import json

import numpy as np
import pytest

from benchmarks.loader import Clip, write_shard
from model.data.collate import Preparation
from model.data.fit import too_long
from model.data.index import Index
from model.data.loader import Loader, LoaderOptions
from model.data.questions import QuestionMix
from model.data.read import Corrupt, Reader
from model.data.record import make_record
from model.tsf import TSFConfig
from pipeline.sample import npy
from schemas.contents import load_array
from schemas.video.stored import encode_mp4
from tests.model.data.made import FRAMES, HEIGHT, WIDTH, frames_of, make_output, members
from tests.model.made import HOSTS, tiny

ALWAYS = TSFConfig(dropout=0.0)


def output(tmp_path, captions: list[str]) -> Index:
    """A clip per caption."""
    clips = []
    for number, caption in enumerate(captions):
        frames = frames_of(number)
        found = members(number, 1, frames, encode_mp4(frames, 10.0))
        words = json.loads(found["json"])
        words["referent"]["caption"] = words["qa"][0]["answer"] = caption
        found["json"] = json.dumps(words).encode()
        columns = {"n_masks": 16, "caption": caption, "n_frames": FRAMES}
        referent = (f"a-c{number}-1", ["1"], found)
        clips.append(Clip(f"a-c{number}", HEIGHT, WIDTH, [referent], columns))
    write_shard(tmp_path, "a", 0, clips)
    return Index.open(str(tmp_path))


LONG = "a dog " * 400
SHORT = "a dog"


@pytest.mark.parametrize("host", HOSTS)
def test_a_sample_that_is_too_long_is_named_and_replaced(tmp_path, host):
    index = output(tmp_path, [SHORT, LONG, SHORT, SHORT])
    preparation = Preparation.of(tiny(host))
    options = LoaderOptions(batch=2, frames=2, tsf=ALWAYS, max_unfit=0.5)
    noticed: list[str] = []
    loader = Loader(index, options, prepare=preparation, notice=noticed.append)
    keys = []
    for batch in loader:
        keys += [prepared.key for prepared in batch]
        unfit, skipped = list(loader.unfit), list(loader.skipped)
    assert len(keys) == 4
    assert "a-c1-1" not in keys
    assert len(unfit) == 1
    assert "a-c1-1: a prompt of" in unfit[0]
    assert f"{host} takes {preparation.host.spec.max_len}" in unfit[0]
    assert skipped == []
    assert noticed == [f"another sample stands in for {unfit[0]}"]
    found = list(too_long(index, preparation, QuestionMix(), 2))
    assert [one.referent_id for one in found] == ["a-c1-1"]
    assert found[0].positions > preparation.host.spec.max_len


def test_the_bound_is_the_length_of_the_longest_sample_of_a_family(tmp_path):
    """What the manifests say is at least what any record of the referent takes, and equal for the longest template."""
    caption = "a dog " * 30
    index = output(tmp_path, [caption] * 4)
    preparation = Preparation.of(tiny("glus"))
    lengths = []
    mix = QuestionMix()
    for epoch in range(6):
        loader = Loader(
            index, LoaderOptions(batch=4, frames=4, tsf=ALWAYS, seed=epoch), prepare=preparation
        )
        for prepared in (one for batch in loader for one in batch):
            if prepared.family == "region_mask":
                lengths.append(
                    preparation.host.prompt_length(
                        prepared.ids, HEIGHT, WIDTH, len(prepared.frames_fhw3)
                    )
                )
    limited = tiny("glus")
    from dataclasses import replace

    limited.host.spec = replace(limited.host.spec, max_len=max(lengths) - 1)
    found = list(too_long(index, Preparation.of(limited), mix, 4))
    assert len(found) == 4
    assert {one.family for one in found} == {"region_mask"}
    assert max(lengths) <= found[0].positions <= max(lengths) + 40


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("family", ["region", "region_mask", "segment", "host"])
def test_counted_positions_are_those_that_the_model_takes(tmp_path, host, family):
    from model.data.questions import Asked

    sparrow = tiny(host)
    preparation = Preparation.of(sparrow)
    index = output(tmp_path, [SHORT])
    entry = index.entry(0)
    for frames in (1, 3):
        record = make_record(
            entry,
            Reader(index.out).members(entry),
            np.random.default_rng(0),
            frames=frames,
            tsf=ALWAYS,
        )
        words = {
            "region": ("Who is the <region>?", "a dog"),
            "segment": ("Find it.", "Here: [SEG]."),
        }
        record.asked = Asked(family, *words.get(family.removesuffix("_mask"), ("", "")))
        prepared = preparation(record)
        packed = sparrow.host.pack(
            [prepared.ids],
            [prepared.inputs],
            tsf=[sparrow.tsf_tokens(sparrow.host.crop_patches(prepared.crops))],
        )
        height, width = record.frames_fhw3.shape[1:3]
        assert len(packed) == preparation.host.prompt_length(prepared.ids, height, width, frames)


def test_too_many_that_do_not_fit_end_the_run_with_their_names(tmp_path):
    index = output(tmp_path, [LONG, LONG, SHORT, SHORT])
    loader = Loader(index, LoaderOptions(batch=2, frames=2), prepare=Preparation.of(tiny("glus")))
    with pytest.raises(
        ValueError, match=r"samples that the host cannot take .* a-c\d-1: a prompt of"
    ):
        list(loader)


def test_a_resumed_loader_remembers_what_did_not_fit(tmp_path):
    index = output(tmp_path, [SHORT, LONG, SHORT, SHORT])
    preparation = Preparation.of(tiny("glus"))
    options = LoaderOptions(batch=1, frames=2, max_unfit=0.5)
    first = Loader(index, options, prepare=preparation)
    for _ in first:
        if first.unfit:
            break
    second = Loader(index, options, prepare=preparation)
    second.load_state_dict(first.state_dict())
    assert second.unfit == first.unfit != []


@pytest.mark.parametrize(
    ("box", "good"),
    [
        ((np.inf, 0, np.inf, 10), False),
        ((0, 0, 1e30, 10), False),
        ((50, 0, 10, 10), False),
        ((np.nan, 0, 10, 10), False),
        ((-20, -5, WIDTH + 40, HEIGHT + 3), True),
        ((3, 3, 3, 3), True),
    ],
)
def test_a_box_that_no_picture_can_have_is_corrupt(tmp_path, box, good):
    index = Index.open(str(make_output(tmp_path, {"a": (1, 1)})))
    entry = index.entry(1)
    found = Reader(index.out).members(entry)
    track = load_array(found["track.npy"]).copy()
    for name, value in zip(("x1", "y1", "x2", "y2"), box, strict=True):
        track[name][2] = value
    damaged = found | {"track.npy": npy(track)}
    if good:
        assert make_record(entry, damaged, np.random.default_rng(0)).key == entry.key
        return
    with pytest.raises(Corrupt, match=rf"{entry.key}.* a box of"):
        make_record(entry, damaged, np.random.default_rng(0))


def test_a_picture_that_a_host_cannot_take_does_not_end_the_training(tmp_path):
    """UniPixel refuses pictures 200 times as long as wide."""
    from model.data.read import Unfit

    index = output(tmp_path, [SHORT])
    entry = index.entry(0)
    record = make_record(
        entry, Reader(index.out).members(entry), np.random.default_rng(0), frames=2
    )
    record.frames_fhw3 = np.zeros((2, 2, 900, 3), np.uint8)
    with pytest.raises(Unfit, match="a-c0-1: unipixel: "):
        Preparation.of(tiny("unipixel"))(record)
