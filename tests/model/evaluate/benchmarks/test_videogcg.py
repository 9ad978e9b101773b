"""VideoGCG: three sources in one, exact scores of planted answers under both rules."""

import json
import shutil

import numpy as np
import pytest

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.benchmarks.videogcg import bert_similarity, without_blobs, word_similarity
from model.evaluate.task import Prediction
from tests.model.evaluate import made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made.make_videogcg(tmp_path_factory.mktemp("gcg"))


def open_gcg(root, **options):
    return open_benchmark("videogcg", root, captions=False, **options)


def phrases(benchmark, video):
    return benchmark._cases[video.id].phrases


def answers(benchmark, mask):
    """Both phrases, with the masks that `mask(video, phrase)` gives."""
    return {
        video.id: {
            "0": Prediction(np.stack([mask(video, one) for one in words]), "a caption", words)
        }
        for video in benchmark.videos()
        for words in [phrases(benchmark, video)]
    }


def test_layout(root):
    benchmark = open_gcg(root)
    videos = benchmark.videos()
    assert [video.id for video in videos] == [
        "video_gcg-00000",
        "video_gcg-00001",
        "mevis_gcg-clip1",
        "vidstg_gcg-clip0",
    ]
    assert all(video.read().shape == (6, 64, 96, 3) for video in videos)
    (query,) = benchmark.queries(videos[2])
    assert (query.kind, query.group) == ("gcg", "mevis_gcg")
    assert query.text.startswith("Could you please give me a detailed description of the video?")
    assert phrases(benchmark, videos[0]) == (
        "first",
        "second",
    )  # in the caption's order, not the file's
    assert phrases(benchmark, videos[3]) == ("The first", "the second")
    (row,) = benchmark.score(videos[3], {})
    assert row["reference"] == "The first meets the second"
    assert benchmark.settings["sources"] == "video_gcg+mevis_gcg+vidstg_gcg"
    assert benchmark.headline == ("mIoU", "Recall_words")  # named for what it is, without BERT


@pytest.mark.parametrize(
    ("plant", "miou", "recall"),
    # Phrases stay where they are. mIoU asks for masks only, so a swap costs recall alone.
    [
        ("perfect", 1, 1),
        ("empty", 0, 0),
        ("shifted", 1 / 3, 0),
        ("switched", 1 / 3, 0),
        ("swapped", 1, 0),
    ],
)
@pytest.mark.parametrize("rules", ["released", "corrected"])
def test_planted(root, plant, miou, recall, rules):
    masks = {
        "perfect": lambda video, text: made.truth(video, text),
        "empty": lambda video, text: np.zeros((6, 64, 96), bool),
        "shifted": lambda video, text: np.roll(made.truth(video, text), 10, 2),
        # Of both tracks half is right: 3 frames of 3 + 3 + 3.
        "switched": lambda video, text: np.concatenate(
            [made.truth(video, text)[:3], made.truth(video, made.other(text))[3:]]
        ),
        "swapped": lambda video, text: made.truth(video, made.other(text)),
    }
    benchmark = open_gcg(root, rules=rules)
    got = made.scores(benchmark, answers(benchmark, masks[plant]))
    assert got == pytest.approx({"mIoU": miou, "Recall_words": recall})


def test_a_missed_object_costs_nothing_as_released_and_half_as_corrected(root):
    for rules, miou, recall in (("released", 1, 1 / 2), ("corrected", 1 / 2, 1 / 2)):
        benchmark = open_gcg(root, rules=rules)
        predictions = {
            video.id: {
                "0": Prediction(
                    made.truth(video, "first")[None], "x", phrases(benchmark, video)[:1]
                )
            }
            for video in benchmark.videos()
        }
        assert made.scores(benchmark, predictions) == pytest.approx(
            {"mIoU": miou, "Recall_words": recall}
        )


def test_failures_count(root):
    """As released, a missing result is 0 in mIoU and nothing in recall; corrected, it is 0 in both."""
    for rules, recall in (("released", 1), ("corrected", 3 / 4)):
        benchmark = open_gcg(root, rules=rules)
        predictions = answers(benchmark, lambda video, text: made.truth(video, text))
        predictions["mevis_gcg-clip1"] = {
            "0": Prediction(np.zeros((0, 0, 0, 0), bool), error="lost")
        }
        assert made.scores(benchmark, predictions) == pytest.approx(
            {"mIoU": 3 / 4, "Recall_words": recall}
        )
        video = benchmark.videos()[0]
        with pytest.raises(ValueError, match="1 tracks and 0 phrases"):
            benchmark.score(video, {"0": Prediction(made.truth(video, "first")[None])})


def test_one_source_is_enough_and_none_says_what_was_expected(root, tmp_path):
    shutil.copytree(root / "vidstg_gcg", tmp_path / "vidstg_gcg")
    assert len(open_gcg(tmp_path).videos()) == 1
    shutil.rmtree(tmp_path / "vidstg_gcg")
    with pytest.raises(
        ValueError, match=r"(?s)VideoGCG is not under.*Expected:.*mevis_gcg/valid_u"
    ):
        open_gcg(tmp_path)


def test_several_ids_of_a_phrase(root, tmp_path):
    """The released reader of the VidSTG part takes the first id; corrected, all of them are the phrase."""
    shutil.copytree(root / "vidstg_gcg", tmp_path / "vidstg_gcg")
    caption = json.dumps({"caption": "[first and second](1, 2) meet"})
    (tmp_path / "vidstg_gcg/val_captions/clip0.json").write_text(caption)
    for rules, miou in (("released", 1 / 2), ("corrected", 1)):
        benchmark = open_gcg(tmp_path, rules=rules)
        predictions = answers(benchmark, lambda video, text: made.truth(video, text))
        assert made.scores(benchmark, predictions)["mIoU"] == miou


def test_uncompressed_and_damaged_masks(root, tmp_path):
    shutil.copytree(root / "ytvis", tmp_path / "ytvis")
    file = tmp_path / "video_gcg/instruction_data/test.json"
    file.parent.mkdir(parents=True)
    data = json.loads((root / "video_gcg/instruction_data/test.json").read_text())
    data["videos"] = data["videos"][:1]
    ones = {"size": [64, 96], "counts": [0, 64 * 96]}  # all foreground
    data["annotations"][0]["segmentations"] = [ones] * 5 + [None]
    file.write_text(json.dumps(data))
    benchmark = open_gcg(tmp_path)
    truth = benchmark._cases["video_gcg-00000"].truth((64, 96))
    assert truth[0].sum() == 5 * 64 * 96
    data["annotations"][0]["segmentations"][2] = {"size": [64, 96], "counts": [0, 64]}
    file.write_text(json.dumps(data))
    benchmark = open_gcg(tmp_path)
    planted = answers(benchmark, lambda v, t: made.truth(v, t))["video_gcg-00000"]
    [row] = benchmark.score(benchmark.videos()[0], planted)
    assert "video_gcg-00000, frame 2: runs do not add up to 64x96" in row["unscored"]
    assert row["mIoU"] is None


def test_small_blobs():
    mask = np.zeros((1, 1, 20, 20), bool)
    mask[0, 0, :4, :5] = True  # 20 px
    mask[0, 0, 10:13, :7] = True  # 21 px
    assert without_blobs(mask, 21).sum() == 21
    assert without_blobs(mask, 20).sum() == 41


def test_phrase_similarities(tmp_path):
    assert word_similarity(["a red dog", "cat"], ["red dog"]) == pytest.approx(
        np.array([[2 / 6**0.5], [0]])
    )
    assert word_similarity(["a"], []).shape == (1, 0)
    with pytest.raises(ValueError, match=r"is not a folder of bert-base-uncased"):
        bert_similarity(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "cat"]
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    got = bert_similarity(tmp_path)(["dog", "cat"], ["dog"])
    assert got[0, 0] == pytest.approx(1)
    assert got[1, 0] < 1
