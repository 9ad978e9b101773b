"""Questions of training: exact shares, words that the pool has, no region question without TSF, a mask in each step."""

from collections import Counter

import numpy as np
import pytest
import torch

from model.data.collate import Preparation, collate, plain_text
from model.data.index import Index
from model.data.loader import Loader, LoaderOptions
from model.data.questions import (
    ABOUT_REGION,
    MASKED,
    Asked,
    Drawn,
    QuestionMix,
    WithoutTSF,
    WithTSF,
    ask,
    draw_families,
)
from model.data.record import Record
from model.hosts.base import IMAGE, TSF
from model.stage_losses import counted_words
from model.tsf import TSFConfig
from schemas.questions import TEMPLATES
from tests.model.data.made import make_output
from tests.model.made import HOSTS, tiny

ALWAYS = TSFConfig(dropout=0.0)


def families_of(index, epochs=1, **options) -> list[str]:
    loader = Loader(index, LoaderOptions(**({"batch": 4, "frames": 2} | options)))
    return [r.asked.family for _ in range(epochs) for batch in loader for r in batch]


# --- which family ---------------------------------------------------------------------------------------------------


def test_shares_are_met_exactly_with_and_without_tsf():
    mix = QuestionMix(
        with_tsf=WithTSF(region=1, region_mask=2, segment=1, host=0),
        without_tsf=WithoutTSF(segment=1, host=3),
    )
    tsf = np.arange(800) % 2 == 0
    drawn = draw_families(mix, tsf, (0, 0), 8)
    with_tsf = Counter(family for (family, _), has in zip(drawn, tsf, strict=True) if has)
    without = Counter(family for (family, _), has in zip(drawn, tsf, strict=True) if not has)
    assert with_tsf == {"region": 100, "region_mask": 200, "segment": 100}
    assert without == {"segment": 100, "host": 300}


def test_the_draw_is_the_epochs_own_and_the_same_again():
    mix, tsf = QuestionMix(), [True] * 60
    assert draw_families(mix, tsf, (0, 0), 8) == draw_families(mix, tsf, (0, 0), 8)
    assert draw_families(mix, tsf, (0, 0), 8) != draw_families(mix, tsf, (0, 1), 8)
    assert draw_families(mix, tsf, (0, 0), 8) != draw_families(mix, tsf, (1, 0), 8)


@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_every_step_has_a_mask(window):
    mix = QuestionMix(with_tsf=WithTSF(region=1, region_mask=0))
    drawn = [family for family, _ in draw_families(mix, [True] * 30, (0, 0), window)]
    for start in range(0, 30, window):
        step = drawn[start : start + window]
        assert sum(family in MASKED for family in step) == 1
    assert drawn.count("region") == 30 - -(-30 // window)


def test_without_tsf_nothing_is_asked_about_a_region():
    only = QuestionMix(with_tsf=WithTSF(region=1, region_mask=0))
    drawn = draw_families(only, [False] * 50, (0, 0), 5)
    assert {family for family, _ in drawn} == {"host"}
    asked = ask(Drawn("region", "host", "0/0"), TEMPLATES, "r", 0, "a dog", has_tsf=False)
    assert asked == Asked("host")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_region_questions(share):
    drawn = draw_families(QuestionMix.about_regions(share), [True] * 600, (0, 0), 8)
    counts = Counter(family for family, _ in drawn)
    assert counts["region"] == 200 * share
    assert counts["region_mask"] == 400 * share
    assert counts["host"] == 600 * (1 - share)


def test_a_mix_without_any_weight_is_refused():
    with pytest.raises(
        ValueError, match=r"questions.with_tsf: at least one of region, region_mask"
    ):
        QuestionMix(with_tsf=WithTSF(region=0, region_mask=0))


# --- through the loader ---------------------------------------------------------------------------------------------


def test_the_loader_asks_about_regions_where_there_are_crops_only(index):
    loader = Loader(index, LoaderOptions(batch=4, frames=2, tsf=TSFConfig(dropout=0.5)))
    for _ in range(2):
        records = [record for batch in loader for record in batch]
        for record in records:
            asked_about_region = record.asked.family in ABOUT_REGION
            assert (record.crops is not None) == asked_about_region
        assert sum(record.asked.family in ABOUT_REGION for record in records) == 10
        assert {record.asked.family for record in records} == {"region", "region_mask", "host"}


def test_a_shard_without_tsf_falls_back_to_the_host(tmp_path, monkeypatch):
    """None in the shard: the prompt would show nothing, and the answer could only be guessed."""
    from tests.model.data import made

    def bare(*args):
        import json

        found = members(*args)
        words = json.loads(found["json"]) | {"tsf": []}
        kept = {name: data for name, data in found.items() if not name.startswith("crop")}
        return kept | {"json": json.dumps(words).encode()}

    members = made.members
    monkeypatch.setattr(made, "members", bare)
    index = Index.open(str(make_output(tmp_path, {"a": (1, 2)})))
    assert set(families_of(index, tsf=ALWAYS)) == {"host"}


def test_corruption_that_leaves_no_box_falls_back_to_the_host(index):
    noise = {"kind": "dropout", "level": 1.0}
    online = TSFConfig(dropout=0.0, selection="online")
    assert set(families_of(index, tsf=online, corruption=noise)) == {"host"}


def test_an_epoch_counts_question_answer_pairs(tmp_path):
    """A referent with three curated questions comes three times, asked with three templates."""
    out = make_output(tmp_path, {"a": (2, 2)}, questions=3)
    index = Index.open(str(out))
    assert len(index) == 8
    assert index.n_questions == 24
    loader = Loader(index, LoaderOptions(batch=4, frames=2, tsf=ALWAYS))
    assert len(loader) == 6
    records = [record for batch in loader for record in batch]
    assert set(Counter(record.key for record in records).values()) == {3}
    words = [
        (r.key, r.asked.family, r.asked.question) for r in records if r.asked.family in ABOUT_REGION
    ]
    assert len(set(words)) == len(words)
    again = [r.asked.question for batch in loader for r in batch if r.asked.family in ABOUT_REGION]
    assert sorted(again) != sorted(question for _, _, question in words)


def test_the_answer_is_the_curated_one(tmp_path):
    out = make_output(tmp_path, {"a": (1, 2)}, questions=2)
    loader = Loader(Index.open(str(out)), LoaderOptions(batch=4, frames=2, tsf=ALWAYS))
    for record in (record for batch in loader for record in batch):
        assert record.asked.answer in {pair["answer"] for pair in record.qa}
        assert record.asked.question in TEMPLATES.region
        assert not record.asked.answer.startswith("the")  # the caption itself is "the red square"


def test_workers_and_ranks_ask_the_same(index):
    def asked(**options):
        loader = Loader(index, LoaderOptions(batch=4, frames=2), **options)
        return [[(r.key, r.asked) for r in batch] for batch in loader]

    alone = asked()
    assert asked(workers=2) == alone
    ranks = [asked(rank=rank, world=2) for rank in (0, 1)]
    together = [[a, c, b, d] for (a, b), (c, d) in zip(*ranks, strict=True)]
    assert together == [list(batch) for batch in alone]


def test_the_pool_of_the_manifests_is_drawn_from(tmp_path):
    out = make_output(
        tmp_path,
        {"a": (1, 2)},
        templates='{"region": ["Who is the <region>?"], "segment": ["{}"], "reply": ["[SEG]"]}',
    )
    loader = Loader(Index.open(str(out)), LoaderOptions(batch=4, frames=2, tsf=ALWAYS))
    for record in (record for batch in loader for record in batch):
        assert record.asked.question == "Who is the <region>?"


def test_a_damaged_pool_is_one_clear_error(tmp_path):
    out = make_output(tmp_path, {"a": (1, 2)}, templates='{"region": []}')
    with pytest.raises(ValueError, match="manifests/shards: question templates cannot be read"):
        next(iter(Loader(Index.open(str(out)), LoaderOptions(batch=4, frames=2))))


# --- the words of a host --------------------------------------------------------------------------------------------


def record_of(index, asked: Asked, **options) -> Record:
    loader = Loader(index, LoaderOptions(batch=1, frames=3, tsf=ALWAYS))
    record = next(record for batch in loader for record in batch)
    record.asked = asked
    for name, value in options.items():
        setattr(record, name, value)
    return record


def text_of(host, ids) -> str:
    """Ids as text, with a mark for every picture and TSF slot."""
    marks = {IMAGE: "|P|", TSF: "|T|"}
    parts = [marks.get(i) or host.tokenizer.decode([i]) for i in ids]
    return "".join(parts)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("family", ABOUT_REGION)
def test_tsf_tokens_stand_at_the_placeholder_and_the_caption_is_the_answer(index, name, family):
    sparrow = tiny(name)
    asked = Asked(family, "What is the <region> doing?", "a dog runs, then sits.")
    record = record_of(index, asked)
    [sample] = collate([record], sparrow)
    prompt = text_of(sparrow.host, sample.ids[: sample.answer_begins])
    assert "What is the |T||T||T||T| doing?" in prompt
    assert "<region>" not in prompt
    assert sample.ids[: sample.answer_begins].count(TSF) == 4
    assert sample.masked == (family == "region_mask")
    expected = "a dog runs, then sits."
    if family == "region_mask":
        expected += f" {sparrow.grounding_tokens()}"
    assert sample.text == expected
    answer = text_of(sparrow.host, sample.ids[sample.answer_begins :])
    assert answer.strip().startswith(expected)
    assert answer.count(sparrow.host.spec.seg_token) == {
        ("glus", "region_mask"): 3,
        ("videoglamm", "region_mask"): 1,
        ("unipixel", "region_mask"): 1,
    }.get((name, family), 0)


@pytest.mark.parametrize("name", HOSTS)
def test_a_request_and_the_hosts_own_have_tsf_after_the_question(index, name):
    sparrow = tiny(name)
    for asked in (Asked("segment", "Find it.", "Here: [SEG]."), Asked("host")):
        [sample] = collate([record_of(index, asked)], sparrow)
        question = asked.question or sparrow.host.question(record_of(index, asked).caption)
        prompt = text_of(sparrow.host, sample.ids[: sample.answer_begins])
        assert f"{question}\n|T||T||T||T|" in prompt
        assert sparrow.grounding_tokens() in sample.text


def test_a_caption_full_of_special_tokens_is_words(index):
    sparrow = tiny("videoglamm")
    hostile = "a [SEG] <|end|> cat [BOX] <[SEG]|end|> {seg} <region>"
    plain = plain_text(hostile, sparrow.host)
    assert not any(token in plain for token in ("[SEG]", "[BOX]", "<|end|>"))
    assert "{seg} <region>" in plain
    for asked in (
        Asked("region_mask", "Who is the <region>?", hostile),
        Asked("segment", f"Find {hostile}", "Here: [SEG]."),
        Asked("host"),
    ):
        record = record_of(index, asked, caption=hostile)
        [sample] = collate([record], sparrow)
        assert sample.ids.count(sparrow.host.seg_id) == 1
        assert sample.ids.count(TSF) == 4


def test_a_region_question_without_crops_is_refused(index):
    record = record_of(index, Asked("region", "Who is the <region>?", "a dog"), crops=None)
    with pytest.raises(ValueError, match="asked about a region, but has no crops"):
        Preparation.of(tiny("videoglamm")).words(record)


# --- what is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTS)
def test_each_family_has_its_losses(index, name):
    sparrow = tiny(name)
    records = [
        record_of(index, asked)
        for asked in (
            Asked("region", "Who is the <region>?", "a small dog"),
            Asked("region_mask", "Who is the <region>?", "a small dog"),
            Asked("segment", "Find it.", "Here: [SEG]."),
            Asked("host"),
        )
    ]
    samples = collate(records, sparrow)
    with torch.no_grad():
        stage = sparrow.config.stage1
        found = sparrow(samples, stage, by_family=True)
        alone = {s.family: sparrow([s], stage, by_family=True) for s in samples}
    for family, losses in alone.items():
        torch.testing.assert_close(found[f"ce_{family}"], losses["ce"], rtol=1e-4, atol=1e-4)
        assert losses["ce"] > 0
        assert (f"dice_{family}" in losses) == (family != "region")
    assert alone["region"]["dice"] == alone["region"]["bce"] == 0
    masked = [alone[family]["dice"] for family in MASKED]
    torch.testing.assert_close(found["dice"], torch.stack(masked).mean(), rtol=1e-4, atol=1e-4)


def test_glus_learns_the_caption_of_a_region_question_and_nothing_else_of_its_own(index):
    sparrow = tiny("glus")
    [region] = collate([record_of(index, Asked("region", "<region>?", "a dog"))], sparrow)
    [host] = collate([record_of(index, Asked("host"))], sparrow)
    assert counted_words(sparrow, region.family) is None
    assert counted_words(sparrow, host.family) == {
        sparrow.host.seg_id,
        sparrow.host.token_id("[BOX]"),
    }


def test_a_batch_without_masks_still_reaches_the_segmentation_head(index):
    sparrow = tiny("videoglamm")
    sparrow.adapt()
    sparrow.train_stage(sparrow.config.stage1)
    [sample] = collate([record_of(index, Asked("region", "<region>?", "a dog"))], sparrow)
    sparrow([sample], sparrow.config.stage1)["loss"].backward()
    gradients = [p.grad for p in sparrow.host.seg_head.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
