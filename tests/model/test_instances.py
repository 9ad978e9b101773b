"""Answers are asked for when their frame has come; prompts know what is prompted first."""

import torch

from model.hosts.base import PromptState
from model.instances import Answers, Prompts
from tests.model.made import clip, tiny


def states(said: dict[int, int], asked: list[int]):
    """An answer per frame, with so many [SEG]."""
    for frame, count in said.items():
        asked.append(frame)
        yield PromptState(frame, torch.zeros(count, 64), None, f"answer {frame}", True)


def test_answers_come_one_by_one_and_are_not_kept():
    asked: list[int] = []
    answers = Answers(states({0: 1, 3: 1, 5: 1}, asked))
    assert (answers.text, asked) == ("answer 0", [0])
    assert answers.at(0) is answers.at(0) is not None
    assert asked == [0]
    assert answers.at(1) is None
    assert answers.at(3).frame == 3
    assert answers.at(2) is None
    assert asked == [0, 3]
    assert answers.at(9) is None
    assert answers.state is None


def test_the_first_prompt_is_the_first_answer_that_says_something():
    sparrow, frames, asked = tiny("videoglamm", **{"decode.prompts": "seg"}), clip(6)[0], []
    answers = {
        "a": Answers(states({0: 0, 3: 1, 4: 1}, asked)),
        "b": Answers(states({0: 0, 4: 2}, asked)),
    }
    prompts = Prompts(sparrow, frames, answers, (0, 3, 4))
    assert list(prompts) == [3] == [prompts.first]
    assert 2 not in prompts
    assert prompts[3][0] == [0]
    assert prompts[4][0] == [0, 1, 2]
    assert prompts[3][0] == [0]  # asked for again, to go backwards
    assert [(one.phrase, one.referent) for one in prompts.targets] == [("a", 0), ("b", 0), ("b", 1)]
    nothing = Prompts(sparrow, frames, {"a": Answers(states({0: 0}, asked))}, (0,))
    assert (list(nothing), len(nothing), nothing.first) == ([], 0, None)
