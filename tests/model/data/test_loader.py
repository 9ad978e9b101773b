"""The loader: the same steps for any ranks and workers, exact counts, exact resume, and damage that is not hidden."""

import json
import shutil

import numpy as np
import pytest
import torch

from benchmarks.measure import Peak
from model.data.index import Index
from model.data.loader import Loader, LoaderOptions
from model.data.order import epoch_order, shares
from tests.model.data.made import make_output


def keys(batch):
    return [record.key for record in batch]


def told(batch):
    """Everything that a step sees, as plain values."""
    return [
        (
            r.key,
            r.times_f.tolist(),
            int(r.frames_fhw3.sum()),
            int(r.masks_fhw.sum()),
            r.crops is not None and [c.shape for c in r.crops],
        )
        for r in batch
    ]


OPTIONS = LoaderOptions(batch=4, frames=2, block=2, window=3)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_sees_the_same_samples_however_many_ranks_share_it(index, world):
    whole = [keys(batch) for batch in Loader(index, OPTIONS)]
    ranks = [
        [keys(batch) for batch in Loader(index, OPTIONS, rank=r, world=world)] for r in range(world)
    ]
    assert len(whole) == 5
    for step, batch in enumerate(whole):
        assert [
            key
            for together in zip(*(rank[step] for rank in ranks), strict=True)
            for key in together
        ] == batch


def test_workers_change_nothing(index):
    alone = [told(batch) for batch in Loader(index, OPTIONS)]
    loader = Loader(index, OPTIONS, workers=2)
    assert [told(batch) for batch in loader] == alone
    assert [told(batch) for batch in loader] != alone  # the next epoch


def test_an_epoch_is_every_sample_once_and_drops_less_than_a_step(index):
    seen = [key for batch in Loader(index, OPTIONS) for key in keys(batch)]
    assert sorted(seen) == sorted(index.referents["referent_id"].to_pylist())
    loader = Loader(index, OPTIONS.model_copy(update={"batch": 6}))
    seen = [key for batch in loader for key in keys(batch)]
    assert len(loader) == 3
    assert len(seen) == len(set(seen)) == 18


def test_epochs_and_seeds_differ_and_neighbours_stay_near(index):
    order = [
        Loader(index, OPTIONS.model_copy(update={"seed": s})).order(e).tolist()
        for s, e in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(one) for one in order}) == 3
    rows, tars = np.arange(10_000), np.arange(10_000) // 500
    order = epoch_order({"a": rows}, tars, 0, 0, counts={"a": 10_000}, block=50, window=4)
    assert sorted(order) == rows.tolist()
    for at in range(0, 10_000, 200):
        assert len(set(order[at : at + 200] // 50)) == 4  # a window is four blocks, and no more
    assert np.abs(np.diff(order)).mean() > 1000


def test_sources_mix_by_weight_exactly_and_no_sample_is_left_out(index):
    options = OPTIONS.model_copy(update={"weights": {"a": 1.0, "b": 3.0}, "samples": 16})
    loader = Loader(index, options)
    names = np.array(index.referents["source"].to_pylist())
    for epoch in range(3):
        assert (names[loader.order(epoch)] == "b").sum() == 12
    three = np.concatenate([loader.order(epoch) for epoch in range(3)])
    counts = np.bincount(three, minlength=len(index))
    assert set(counts[names == "a"]) == {1}  # 3 epochs of 4 are one pass of 12
    assert set(counts[names == "b"]) == {4, 5}  # 36 of 8
    assert shares({"a": np.arange(3), "b": np.arange(7)}, None, 5) in (
        {"a": 2, "b": 3},
        {"a": 1, "b": 4},
    )
    with pytest.raises(ValueError, match="index has a, b"):
        Loader(index, OPTIONS.model_copy(update={"weights": {"c": 1.0}}))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_anywhere_goes_on_as_if_never_stopped(index, workers):
    whole = Loader(index, OPTIONS)
    expected = [told(batch) for _ in range(2) for batch in whole]
    for cut in (1, 4, 5, 7):
        first = Loader(index, OPTIONS, workers=workers)
        seen, state = [], None
        while state is None:
            for batch in first:
                seen.append(told(batch))
                if len(seen) == cut:
                    state = json.loads(json.dumps(first.state_dict()))
                    break
        again = Loader(index, OPTIONS, workers=0)
        again.load_state_dict(state)
        while len(seen) < 10:
            seen += [told(batch) for batch in again]
        assert seen == expected, f"cut after {cut}"


def test_going_on_leaves_the_models_random_numbers_alone(index):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(Loader(index, OPTIONS)))
    assert torch.equal(torch.get_rng_state(), before)


def test_state_of_other_data_options_or_ranks_is_refused(index, tmp_path):
    state = Loader(index, OPTIONS).state_dict()
    other = Index.open(str(make_output(tmp_path, {"a": (1, 2)})))
    with pytest.raises(ValueError, match="manifest was"):
        Loader(other, OPTIONS).load_state_dict(state)
    for change, named in (
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch": 2}, "batch was 4"),
        ({"frames": 3}, "options"),
    ):
        with pytest.raises(ValueError, match=named):
            Loader(index, OPTIONS.model_copy(update=change)).load_state_dict(state)
    with pytest.raises(ValueError, match="world was 1, is 2"):
        Loader(index, OPTIONS, rank=0, world=2).load_state_dict(state)
    with pytest.raises(ValueError, match="version"):
        Loader(index, OPTIONS).load_state_dict(state | {"version": 0})


def damage(out, tmp_path, name, at=0):
    """A copy of the output in which a member of one sample is not what it was. at: of its bytes, -512 its header."""
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    entry = Index.open(str(copy)).entry(5)
    member = next(m for m in entry.members if m.name == name)
    with (copy / entry.tar).open("r+b") as file:
        file.seek(member.offset + at)
        file.write(b"\xff" * 64)
    return Index.open(str(copy)), entry


@pytest.mark.parametrize(
    ("name", "at"), [("mp4", -512), ("json", 0), ("track.npy", 0), ("mp4", 0), ("masks.json", 0)]
)
def test_a_corrupt_member_is_skipped_counted_and_named(out, tmp_path, name, at):
    index, entry = damage(out, tmp_path, name, at)
    loader = Loader(
        index,
        OPTIONS.model_copy(
            update={"max_corrupt": 0.1, "tsf": OPTIONS.tsf.model_copy(update={"dropout": 0.0})}
        ),
    )
    sizes, seen, skipped = [], [], []
    for batch in loader:
        sizes.append(len(batch))
        seen += keys(batch)
        skipped = list(loader.skipped)
    assert sizes == [4] * 5  # the sample after it stands in
    assert entry.key not in seen
    assert len(skipped) == 1
    assert entry.key in skipped[0]
    assert entry.tar in skipped[0]
    assert loader.skipped == []  # counts are an epoch's


def test_above_the_budget_the_run_fails_and_says_where(out, tmp_path):
    index, entry = damage(out, tmp_path, "json")
    with pytest.raises(
        ValueError, match=rf"1 corrupt samples in epoch 0, 0 are allowed.*{entry.key}"
    ):
        list(Loader(index, OPTIONS))


def test_changed_content_is_found_where_it_is_asked_for(out, tmp_path):
    index, _ = damage(out, tmp_path, "crop0.jpg", at=200)
    options = OPTIONS.model_copy(update={"verify": True})
    with pytest.raises(ValueError, match="another sha256"):
        list(Loader(index, options))


def test_a_missing_tar_is_no_corrupt_sample(out, tmp_path):
    shutil.copytree(out, tmp_path / "copy")
    index = Index.open(str(tmp_path / "copy"))
    (tmp_path / "copy" / index.entry(0).tar).unlink()
    with pytest.raises(FileNotFoundError):
        list(Loader(index, OPTIONS.model_copy(update={"max_corrupt": 1.0})))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_without_tsf_is_exact_in_every_epoch(index, share):
    loader = Loader(
        index, OPTIONS.model_copy(update={"tsf": OPTIONS.tsf.model_copy(update={"dropout": share})})
    )
    for _ in range(2):
        without = sum(record.crops is None for batch in loader for record in batch)
        assert without == 20 * share


def test_memory_does_not_grow_with_epochs(index):
    loader, rss = Loader(index, OPTIONS), []
    for _ in range(12):
        for _ in loader:
            pass
        rss.append(Peak.rss())
    assert max(rss[6:]) - max(rss[:6]) < 16  # MiB; an epoch's frames alone are 2


def test_what_cannot_be_is_said_at_once(index, out, tmp_path):
    with pytest.raises(ValueError, match="multiple of world"):
        Loader(index, OPTIONS, world=3)
    with pytest.raises(ValueError, match="no step of 64"):
        Loader(index, OPTIONS.model_copy(update={"batch": 64}))
    with pytest.raises(ValueError, match="changes nothing"):
        LoaderOptions(corruption={"kind": "jitter", "level": 0.1}, tsf={"path": "none"})
    with pytest.raises(ValueError, match="no shard of c; there are a, b"):
        Index.open(str(out), sources=["c"])
    with pytest.raises(ValueError, match="have no media"):
        Index.open(str(make_output(tmp_path, {"a": (1, 1)}, media="none")))
    with pytest.raises(ValueError, match="no committed shard"):
        Index.open(str(tmp_path / "nothing"))
