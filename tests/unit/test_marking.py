import csv
import json
from pathlib import Path

import pytest

from masters_ray.config import Rule
from masters_ray.method import marking
from masters_ray.records import Problem


def problem(label: str, *choices: str) -> Problem:
    return Problem(id="p", question="which?", label=label, pictures=(), choices=choices)


COLOURS = ("red", "blue", "green")
OWN = ("B. red", "D. blue")
MARKED: list[tuple[Rule, str, tuple[str, ...], list[str], list[str]]] = [
    # Rule, label, choices, right answers, wrong ones.
    ("exact", "red", (), ["red", " Red.\n", "the red"], ["blue", "red red", "red circle", "", " . "]),
    ("exact", "red", (), [], ["What colour is it? red"]),
    ("exact", "Top left", (), ["top   left", '"top left"'], ["topleft", "left"]),
    ("exact", "A", (), ["a"], []),
    ("exact", "", (), [], [""]),
    ("exact", "15", (), [], ["1.5"]),
    ("exact", "5 kg", (), ["5 KG."], ["5"]),
    ("exact", "½", (), ["1/2"], []),
    ("exact", "x^2", (), ["$x^2$"], []),
    ("exact", "42", (), ["\\[ \\boxed{\\mathrm{42}} \\]"], []),
    ("exact", "yes", (), [], ["Yes, because it is red."]),
    ("exact", "naïve", (), ["nai\u0308ve"], []),
    ("exact", "3–5", (), ["3-5"], ["4"]),
    ("relaxed", "1000", (), ["$1,020.", "1.000,00 €"], ["1.000"]),
    ("relaxed", "1.2", (), [], ["1.2.3"]),
    ("relaxed", "1234567", (), ["1 234 567"], []),
    ("relaxed", "3.5", (), [], ["3,5 %"]),
    ("relaxed", "12%", (), ["12,4\u202f%"], []),
    ("relaxed", "10 - 20", (), [], ["15"]),
    ("relaxed", "1,2,3", (), [], ["123"]),
    ("relaxed", "1e400", (), [], ["5"]),
    ("choice", "blue", COLOURS, ["B", "(b)", "b. blue", "a blue"], ["B. red", "A", "D", ""]),
    ("choice", "B", COLOURS, ["Blue"], []),
    ("choice", "Red", (), ["red"], ["A"]),
    ("choice", "D. blue", OWN, ["D", "blue", "D. blue", "The answer is (D)."], ["B", "A", "D. red", "red"]),
    ("anls", "1/8/93", (), ["1/8/93", " 1 / 8/93", "1/8/94"], ["2/9/94 or so", "", "93"]),
    ("anls", "abcd", (), ["abc", "ABCD"], ["ab", "abxy"]),
    *((rule, sign, (), [f" {sign}\n"], ["red", ""]) for sign in "*!?(." for rule in marking.RULES),
]


@pytest.mark.parametrize(("rule", "label", "choices", "right", "wrong"), MARKED)
def test_an_answer_is_right_in_the_forms_that_people_write(
    rule: Rule, label: str, choices: tuple[str, ...], right: list[str], wrong: list[str]
) -> None:
    asked = problem(label, *choices)
    assert [answer for answer in right + wrong if marking.RULES[rule](answer, asked)] == right
    if rule == "exact":
        assert [answer for answer in right + wrong if marking.matches(answer, label)] == right


def test_of_several_references_the_best_counts_and_vqa_wants_two() -> None:
    people = Problem(id="p", question="which?", label="net", pictures=(), references=("net", "net", "a fence", "nets"))
    right = {
        rule: [said for said in ("Net", "fence", "nets", "dog") if marking.right(said, people, rule)]
        for rule in marking.RULES
    }
    assert right == {
        "exact": ["Net", "fence", "nets"],
        "relaxed": ["Net", "fence", "nets"],
        "choice": ["Net", "fence", "nets"],
        "vqa": ["Net"],
        "anls": ["Net", "fence", "nets"],
    }
    numbers = Problem(id="p", question="which?", label="10", pictures=(), references=("10", "20"), rule="relaxed")
    assert [marking.right(said, numbers, "exact") for said in ("20.5", "15")] == [True, False], "its own rule"


@pytest.mark.parametrize("choices", ["Ff|ff|FF", "a dog|dog", "(1, 2)|1, 2", "O|o", "?|!", "$x$|x"])
def test_choices_that_differ_in_case_articles_or_signs_alone_are_told_apart(choices: str) -> None:
    for label in choices.split("|"):
        for letter, said in zip("ABC", choices.split("|"), strict=False):
            for answer in (said, f"({letter})", f"{letter}."):
                assert marking.choice(answer, problem(label, *choices.split("|"))) is (said == label)


def table() -> list[tuple[Rule, str, str, str, bool, bool, str]]:
    lines = (Path(__file__).parent / "marks.tsv").read_text(encoding="utf-8").splitlines()
    rows = csv.reader([line for line in lines if not line.startswith("#")][1:], delimiter="\t", quoting=csv.QUOTE_NONE)
    return [
        (rule, choices, json.loads(label), json.loads(answer), theirs == "1", ours == "1", why)  # type: ignore[misc]
        for rule, choices, label, answer, theirs, ours, why in rows
    ]


def test_rules_mark_as_the_benchmarks_do_or_have_a_reason_not_to() -> None:
    """The table's first lines say where the benchmark's verdicts come from."""
    wrong = [
        (rule, label, answer)
        for rule, choices, label, answer, _, ours, _ in table()
        if marking.RULES[rule](answer, problem(label, *choices.split("|") if choices else ())) is not ours
    ]
    assert wrong == []
    assert all(bool(why) == (theirs != ours) for *_, theirs, ours, why in table())
    assert len(table()) >= 180


def test_long_answers_are_marked_without_delay() -> None:
    answers = ("\n" * 4000, "(" * 4000, "<answer>" * 500, "a " * 2000, "\\boxed{" * 500, "B" * 4000)
    asked = problem("blue", "red", "blue")
    assert not any(rule(answer, asked) for rule in marking.RULES.values() for answer in answers)
