from collections.abc import Sequence

from masters_ray.method.prompts import Message
from masters_ray.records import Refused, Reply
from masters_ray.replicas import judge as judging
from masters_ray.replicas.judge import Verdict
from tests.builders import problem


class Parrot:
    """A model that says what it is told for each prompt's text, and counts what it is asked."""

    def __init__(self, replies: dict[str, str]) -> None:
        self.asked: list[str] = []
        self._replies = replies

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Reply | Refused]:
        prompts = [str(messages[-1]["content"]) for messages in conversations]
        self.asked += prompts
        said = [next(text for key, text in self._replies.items() if key in prompt) for prompt in prompts]
        return [Reply(text=text, finish="stop", tokens=len(text)) for text in said]


def judge(model: Parrot, *answers: str, reasoning: bool = False) -> list[Verdict]:
    """Verdicts of answers to one question."""
    return judging.judge(model, [problem()], [answers], reasoning)[0]


def test_an_unreadable_first_call_is_parsed_by_the_second_and_equal_cases_are_judged_once() -> None:
    model = Parrot(
        {
            "<overall_summary>\nIt is right": "1",
            "<overall_summary>\nHm": "perhaps",
            "\nred\n</generated": "It is right, surely",
            "\nblue\n": "Hm",
            "\ngreen\n": "<answer>0</answer>",
        }
    )
    red, *others = (1, "It is right, surely"), (None, "Hm"), (0, "<answer>0</answer>")
    verdicts = judge(model, "red", "blue", "green", "red")
    assert [(one.accuracy, one.text) for one in verdicts] == [red, *others, red]
    assert len(model.asked) == 3 + 2
    counts = len("It is right, surely1"), len("Hmperhaps"), len("<answer>0</answer>"), 0
    assert tuple(one.tokens for one in verdicts) == counts, "of both calls, once for equal cases"


def test_the_reasoning_is_asked_after_without_the_label_and_parsed_by_a_prompt_of_its_own() -> None:
    """What it quotes of an answer is no score: answers may hold answer tags. Unread twice, nothing is said."""
    about = "<question>\nwhat color is the shape?\n</question>\n<generated text>\n"
    model = Parrot(
        {
            "<explanation>\nIt says <answer>0</answer> and": "1",
            "<explanation>\nWho knows": "maybe 1",
            f"{about}It glows": "It says <answer>0</answer> and the reasoning leads there",
            f"{about}It is dark": "Who knows",
            f"{about}It is red": "Hm. <support>0</support>",
            "<ground truth>\nred\n</ground truth>\n<generated text>\n": "<answer>1</answer>",
        }
    )
    verdicts = judge(model, "It glows, so red", "It is dark, so red", "It is red", reasoning=True)
    assert [(one.accuracy, one.reasoning) for one in verdicts] == [(1, 1), (1, None), (1, 0)]
    assert [prompt for prompt in model.asked if "overall_summary" in prompt] == []
    assert len(model.asked) == 8
