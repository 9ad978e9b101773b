"""How a query becomes a prediction, and a video the rows of its part; with a model that says what the test wants."""

from types import SimpleNamespace

import numpy as np
import pytest

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.protocols import Asking, asking
from model.evaluate.run import evaluate_video, phrases_of, predict
from model.evaluate.task import Query
from model.grounding import FrameMasks
from schemas.records import Quarantined, Reason
from tests.model.evaluate.made import MAKERS, corner

SHAPE = (6, 8)


class Says:
    """A model whose answers are `texts`, one per question, and whose targets are of `referents`: target k is the row k
    of every frame's mask."""

    def __init__(self, text="Sure, [SEG].", referents=(0,), fails=None):
        self.text, self.referents, self.fails, self.asked = text, referents, fails, []
        self.host = SimpleNamespace(
            spec=SimpleNamespace(seg_token="[SEG]"),
            question=lambda phrase: f"own: {phrase}",
            sam=SimpleNamespace(no_mem_embed=SimpleNamespace(device=SimpleNamespace(type="cpu"))),
        )

    def ask_together(self, frames, questions, **options):
        """None is answered together: each is asked alone."""
        return {}

    def stream(
        self, frames, phrase, *, questions, prompt_frames, answer, crops, max_new_tokens, features
    ):
        self.crops = crops
        self.asked.append(
            (questions[phrase], len(frames), list(prompt_frames), answer, max_new_tokens)
        )
        if self.fails is not None:
            raise self.fails
        steps = []
        for t in range(len(frames)):
            masks = np.zeros((len(self.referents), *frames.shape[1:3]), bool)
            for k in range(len(self.referents)):
                masks[k, k] = True
            steps.append(
                FrameMasks(t, list(range(len(masks))), masks, np.zeros(len(masks), np.float32))
            )

        class Steps(list):
            texts = {phrase: self.text}  # noqa: RUF012
            targets = [SimpleNamespace(referent=r) for r in self.referents]  # noqa: RUF012

        return Steps(steps)


def frames(n=5):
    return np.zeros((n, *SHAPE, 3), np.uint8)


def rows_of(masks_thw):
    return [sorted(set(np.nonzero(mask)[0].tolist())) for mask in masks_thw]


@pytest.mark.parametrize(
    ("merge", "wanted"),
    [("first", [[0, 2]]), ("union", [[0, 1, 2]]), ("all", [[0, 2], [1]])],
)
def test_instances_are_merged_as_the_protocol_says(merge, wanted):
    found = predict(
        Says(referents=(0, 1, 0)), frames(), Query("0", "v", "a dog"), Asking(name="x", merge=merge)
    )
    assert [rows_of(track) for track in found.masks_nthw] == [[rows] * 5 for rows in wanted]
    assert not found.error


def test_chunks_are_asked_on_their_own_and_put_together():
    sparrow = Says()
    way = Asking(
        name="x", chunk=2, prompt_every=1, max_new_tokens=7, expression="Where is {phrase}?"
    )
    found = predict(sparrow, frames(5), Query("0", "v", "A dog."), way)
    assert sparrow.asked == [
        ("Where is a dog?", n, prompted, "generate", 7)
        for n, prompted in ((2, [0, 1]), (2, [0, 1]), (1, [0]))
    ]
    assert rows_of(found.masks_nthw[0]) == [[0]] * 5
    assert found.text == "\n".join(["Sure, [SEG]."] * 3)


def test_without_a_template_the_host_asks():
    sparrow = Says()
    predict(sparrow, frames(), Query("0", "v", "a dog"), Asking(name="x", answer="force"))
    assert sparrow.asked == [("own: a dog", 5, [0], "force", 512)]


def test_an_answer_without_a_mask_is_no_failure():
    found = predict(Says("no idea", ()), frames(), Query("0", "v", "a dog"), Asking(name="x"))
    assert found.masks_nthw.shape == (0, 5, *SHAPE)
    assert (found.text, found.error) == ("no idea", "")


@pytest.mark.parametrize(
    "error", [ValueError("too long\nat 0x1"), RuntimeError("out of memory"), MemoryError("no")]
)
def test_what_cannot_be_asked_has_its_reason(error):
    found = predict(Says(fails=error), frames(), Query("0", "v", "a dog"), Asking(name="x"))
    assert found.error == f"{type(error).__name__}: {error}".splitlines()[0]
    assert not len(found.masks_nthw)


def test_phrases_belong_to_the_tokens_after_them():
    assert phrases_of("<p> a  dog </p> [SEG] [BOX] chases <p>a ball</p> [SEG] [BOX].") == [
        "a dog",
        "a ball",
    ]
    assert phrases_of("<p> a dog </p> [BOX] [SEG] and [BOX] [SEG]") == ["a dog", ""]
    assert phrases_of("Sure, <|seg|>.", "<|seg|>") == [""]
    assert phrases_of("<p> never closed [SEG]") == [""]
    assert phrases_of("nothing") == []


def test_captions_pair_phrases_with_tracks():
    text = "<p> a dog </p> [SEG] sees <p> a cat </p> [SEG]"
    found = predict(
        Says(text, (0, 1)),
        frames(),
        Query("0", "v", "Describe.", "gcg"),
        Asking(name="x", merge="all"),
    )
    assert found.phrases == ("a dog", "a cat")
    assert [rows_of(track)[0] for track in found.masks_nthw] == [[0], [1]]


class Knows(Says):
    """Answers with the square that the question names, as a perfect model would."""

    def stream(self, frames, phrase, **options):
        steps = super().stream(frames, phrase, **options)
        number = 2 if "second" in phrase else 1
        for step in steps:
            step.masks_nhw[:] = False
            x, y = corner(0, number, step.frame)
            step.masks_nhw[0, y : y + 20, x : x + 20] = True
        return steps


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    return open_benchmark("ref-davis17", MAKERS["ref-davis17"](tmp_path_factory.mktemp("davis")))


def test_a_video_s_rows_hold_scores_and_answers(davis):
    video = davis.videos()[0]
    rows, seconds = evaluate_video(
        Knows(), davis, video, asking("host", "videoglamm", "ref-davis17")
    )
    assert seconds > 0
    assert len(rows) == len(davis.queries(video)) == 8
    assert {(row["J"], row["F"], row["error"], row["tracks"]) for row in rows} == {
        (1.0, 1.0, "", 1)
    }
    assert rows[0]["text"] == "the first square"
    assert rows[0]["answer"] == "Sure, [SEG]."
    assert np.shape(rows[0]["masks"]) == (1, len(video))
    assert (rows[0]["frames"], rows[0]["height"], rows[0]["width"]) == (6, 64, 96)


def test_media_that_cannot_be_read_cost_their_queries_and_nothing_else(tmp_path):
    root = MAKERS["ref-davis17"](tmp_path)
    next((root / "JPEGImages/480p/motorbike").iterdir()).write_bytes(b"broken")
    benchmark = open_benchmark("ref-davis17", root, scorer="expression")
    way = asking("host", "videoglamm", "ref-davis17")
    both = [
        row
        for video in benchmark.videos()
        for row in evaluate_video(Knows(), benchmark, video, way)[0]
    ]
    good, bad = both[:8], both[8:]
    assert all(row["J"] == 1 and not row["error"] for row in good)
    assert all(row["J"] == 0 and "motorbike" in row["error"] for row in bad)
    assert benchmark.summary(both)["J&F"] == 0.5


def test_truth_that_cannot_be_read_costs_its_own_query_and_is_no_zero(tmp_path):
    root = MAKERS["mevis"](tmp_path)
    masks = root / "valid_u/mask_dict.json"
    masks.write_text(masks.read_text().replace('"11"', '"77"'))
    benchmark = open_benchmark("mevis", root)
    first, second = (
        evaluate_video(Knows(), benchmark, video, asking("host", "glus", "mevis"))[0]
        for video in benchmark.videos()
    )
    assert not any(row["error"] or row["unscored"] for row in first)
    hurt = [row for row in second if "mask 11 is not in the file" in row["unscored"]]
    assert {(row["query"], row["J"], row["error"]) for row in hurt} == {
        ("0", None, ""),
        ("2", None, ""),
    }
    whole = [row for row in second if not row["unscored"]]
    assert [row["query"] for row in whole] == ["1"]
    assert all(row["J"] is not None and not row["error"] for row in whole)


def test_pictures_of_the_target_go_into_the_prompt_where_it_is_found():
    sparrow = Says()
    sparrow.config = SimpleNamespace(tsf=SimpleNamespace(selection="offline"))

    def find(part, phrase):
        if "nowhere" in phrase:
            raise Quarantined(Reason.NO_DETECTION, "nowhere")
        return SimpleNamespace(crops=["crop"], candidates=["crop", "more"])

    for text, wanted in (("a dog", ["crop"]), ("nowhere", ())):
        found = predict(sparrow, frames(), Query("0", "v", text), Asking(name="x"), tsf=find)
        assert not found.error
        assert sparrow.crops == {text: wanted}
    predict(sparrow, frames(), Query("0", "v", "a dog"), Asking(name="x"))
    assert sparrow.crops is None
