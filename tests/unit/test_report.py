"""The report of a run: real numbers, nothing fetched, nothing executed, and a named file when an input is wrong."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from masters_ray import report
from masters_ray.errors import StoreError
from masters_ray.evaluate import Accuracy
from masters_ray.report import charts, markup, sections
from masters_ray.report.examples import picture
from masters_ray.report.inputs import read_metrics, read_summary

RATIOS = (0.2, 0.15, 0.1, 0.05, 0.0)
SCRIPT = "<script>alert('owned')</script>"
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Reads a page and keeps what the tests ask for; fails on a tag that is closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.addresses.append(value or "")


def rate(value: float, n: int, half: float = 0.03) -> dict[str, Any]:
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def accuracy(values: dict[str, float], half: float = 0.03) -> dict[str, Any]:
    mean = sum(values.values()) / len(values)
    kinds = {kind: rate(value, 240, 0.05) for kind, value in values.items()}
    return {**rate(mean, 720, half), "by_kind": kinds}


def data_uri(side: int, kind: str = "PNG") -> str:
    image = Image.new("RGB", (side, side), (226, 236, 240))
    image.paste((190, 30, 40), (side // 5, side // 6, side // 2, side // 2))
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def summary() -> dict[str, Any]:
    before = accuracy({"colour": 0.704, "place": 0.512, "shape": 0.620})
    before.update(value=0.612, low=0.571, high=0.652)
    after = accuracy({"colour": 0.880, "place": 0.768, "shape": 0.842})
    after.update(value=0.830, low=0.802, high=0.857)
    stages = [
        {
            "stage": stage,
            "ratio": ratio,
            "sparsity": ratio - 0.00001 * bool(ratio),
            "rows": 320,
            "seconds": 41.2 + stage,
            "teacher_digest": f"{stage}a7c" * 16,
            "answers": 2560,
            "unjudged": stage,
            "empty": 2,
            "set_aside": {"picture": 1, "engine": 2} if stage else {},
            "cut_by_source": {"teacher": 0.0, "student": 0.211},
            "compared": 2560 - stage,
            "judge_right": 1920 - stage,
            "rule_right": 1922 - stage,
            "judge_rule_agreements": 2550 - stage,
            "defused_answers": 0,
            "defused_questions": 0,
            "reasoning": None,
            "accuracy_by_source": {"teacher": 0.88 + 0.02 * stage, "student": 0.62},
            "left_out": 0.00031,
        }
        for stage, ratio in enumerate(RATIOS)
    ]
    return {
        "run": {
            "dir": "/runs/easy-vqa-7",
            "seed": 7,
            "started": "2026-03-01T10:20:30+00:00",
            "config_file": "conf/easy_vqa.yaml",
        },
        "accuracy": {
            "teacher": accuracy({"colour": 0.985, "place": 0.949, "shape": 0.973}, 0.012),
            "student_before": before,
            "student_after": after,
        },
        "evaluation": {"marked_by": "rule", "cut": {"student_before": 0.183, "teacher": 0.0}, "max_tokens": 64},
        "judge": {
            "of_teacher": "student",
            "of_student": "student",
            "rule": "exact",
            "agreement_with_rule": 0.99609,
            "judged": 12790,
            "unjudged": 10,
        },
        "stages": stages,
        "learner": {
            "steps": 50,
            "skipped": 1,
            "groups": 1600,
            "answer_tokens": 38400,
            "tokens": 96000,
            "seconds": 310.5,
            "workers": 2,
            "zero_stage": 2,
            "left_out": 3,
            "agreement": [
                {
                    "stage": 0,
                    "rows": 64,
                    "row": "train/<7>",
                    "mean_gap": 0.0123,
                    "token_gap": 0.456,
                    "bound": 0.1,
                    "apart": 0,
                }
            ],
        },
        "data": {
            "train": {"problems": 1600, "quarantined": 3},
            "held_out": {"problems": 720, "quarantined": 0},
        },
        "models": {
            "teachers": [
                {"checkpoint": "models/teacher", "digest": "0123456789abcdef" * 4, "parameters": 31_240_960},
            ],
            "student": {"checkpoint": "models/student", "digest": "fedcba9876543210" * 4, "parameters": 3_754_622},
        },
        "versions": {"python": "3.11.9", "torch": "2.13.0", "vllm": "0.32.0", "ray": "2.60.0"},
        "phases": {
            "engines": 38.0,
            "evaluation before": 21.5,
            "rollouts": 216.0,
            "learner": 310.5,
            "evaluation after": 20.1,
        },
        "wall_seconds": 640.0,
        "config": "run:\n  seed: 7\nschedule:\n  max_ratio: 0.2  # <of each matrix>\n",
    }


def metrics(steps: int = 50) -> list[dict[str, Any]]:
    chance = random.Random(0)
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        stage = min(len(RATIOS) - 1, int((step - 1) / steps * len(RATIOS)))
        jsd = 0.09 * (1 - done) ** 2 + 0.02 + chance.gauss(0, 0.003)
        kl = 0.04 * done + abs(chance.gauss(0, 0.001))
        rows.append(
            {
                "step": step,
                "stage": stage,
                "mask_ratio": RATIOS[stage],
                "loss": jsd + 0.1 * kl,
                "policy_loss": chance.gauss(0, 1e-8),
                "kl": kl,
                "jsd": jsd,
                "accuracy_reward": 0.75 + 0.02 * stage + chance.gauss(0, 0.03),
                "distillation_reward": 0.55 + chance.gauss(0, 0.03),
                "advantage_spread": 0.9,
                "flat_groups": 0.05,
                "clipped": 0.0,
                "gradient_norm": abs(chance.gauss(1.2, 0.4)) + 0.1,
                "learning_rate": 1e-6,
                "groups": 32,
                "answer_tokens": 768,
                "tokens": 1920,
                "tokens_per_second": 1920 / 6.2,
                "waste": 0.01,
                "seconds": 6.2,
                "waited": 0.0,
                "fresh": 0,
                "age": 0.0,
                "behaviour_gap": 0.0,
                "flop_utilisation": 0.4 + chance.gauss(0, 0.01),
                "memory_gib": 1.5,
                "jsd_error_bound": 0.004,
            }
        )
    return rows


def examples() -> list[dict[str, Any]]:
    def answers(texts: list[tuple[str, int, float, float, float]]) -> list[dict[str, Any]]:
        return [
            {
                "source": "teacher" if place < len(texts) / 2 else "student",
                "text": text,
                "accuracy": right,
                "verdict": f"The answer {'matches' if right else 'differs from'} the label, which is what the question "
                f"asks for. <answer>{right}</answer>",
                "divergence": divergence,
                "distillation": distillation,
                "advantage": advantage,
            }
            for place, (text, right, divergence, distillation, advantage) in enumerate(texts)
        ]

    common = {"stage": 1, "mask_ratio": 0.15}
    return [
        {
            **common,
            "id": "train/17/colour",
            "question": "what color is the rectangle?",
            "label": "red",
            "kind": "colour",
            "pictures": [data_uri(64)],
            "before": None,
            "after": None,
            "answers": answers(
                [
                    ("red", 1, 0.0104, 1.0, 0.71),
                    ("red", 1, 0.0104, 1.0, 0.71),
                    ("brown", 0, 0.213, 0.41, -0.92),
                    (SCRIPT, 0, 0.355, 0.0, -1.52),
                ]
            ),
        },
        {
            **common,
            "id": "train/99/place",
            "question": "where is the shape?",
            "label": "top left",
            "kind": "place",
            "pictures": [data_uri(64), data_uri(1400, "JPEG")],
            "before": None,
            "after": None,
            "answers": answers(
                [
                    ("The shape stands in the upper left quarter of the picture. " * 9, 1, 0.02, 1.0, 1.0),
                    ("top left", 1, 0.03, 0.9, 0.8),
                    ("", 0, 0.3, 0.0, -0.9),
                    ("bottom right", 0, 0.2, 0.3, -0.9),
                ]
            ),
        },
        {
            "stage": None,
            "mask_ratio": None,
            "id": "test/5/colour",
            "question": "what is the color of the triangle?",
            "label": "teal",
            "kind": "colour",
            "pictures": [data_uri(64)],
            "before": {"text": "bluish", "correct": 0},
            "after": {"text": "Teal.", "correct": 1},
            "answers": [],
        },
    ]


def build(folder: Path, *, steps: int = 50, **changes: Any) -> Path:
    """A run directory with the three inputs; ``changes`` replace a whole input: summary, examples."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / report.SUMMARY).write_text(json.dumps(changes.get("summary", summary())), encoding="utf-8")
    (folder / report.METRICS).write_text("".join(json.dumps(row) + "\n" for row in metrics(steps)), encoding="utf-8")
    (folder / report.EXAMPLES).write_text(json.dumps(changes.get("examples", examples())), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.write(build(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_file_stands_alone_in_the_run_directory(tmp_path: Path) -> None:
    written = report.write(build(tmp_path))
    assert written == tmp_path / "report.html"
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {report.SUMMARY, report.METRICS, report.EXAMPLES, "report.html"}


def test_headline_tells_the_result(page: Page) -> None:
    assert (
        "The student went from 61.2 % (57–65) to 83.0 % (80–86) on 720 held-out questions; its teacher has 96.9 %."
    ) in page.text
    assert "The two 95 % intervals are apart: a gain of 21.8 points" in page.text
    assert "61 % of the way to its teacher" in page.text


@pytest.mark.parametrize(
    "number",
    [
        "70.4 % (65.4–75.4)",  # a kind before
        "96.9 %",
        "+25.6",  # points gained on a kind
        "19.999 %",  # achieved sparsity
        "12,800",  # answers of all stages
        "90.0 %",  # the teacher's answers at the second stage
        "0.031 %",  # left-out mass
        "99.61 %",  # judge and rule
        "12,790 answers judged, 10 unjudged",
        "0.0 %, 21.1 %",  # answers that were cut
        "21.1% of the student's answers are cut",
        "cut at 64 tokens, and are marked as they stand: student before 18.3 %.",
        "18.3% of the held-out answers are cut",
        "0.99",  # Cohen's κ
        "31.2 M",
        "0123456789ab",
        "5 min 10 s",  # the learner
        "33.9 s",  # everything else
        "1,600 (3 set aside)",
        "max_ratio: 0.2  # <of each matrix>",
        "2026-03-01 10:20:30",
        "0.0104",
        "-1.52",
    ],
)
def test_numbers_are_the_run_s(page: Page, number: str) -> None:
    assert number in page.text


def test_terms_are_explained(page: Page) -> None:
    for term in ("mask ratio", "JSD", "R_acc", "R_distill", "advantage", "left-out mass", "KL", "95 % interval"):
        assert term in page.text


def test_model_answers_stay_text(html: str, page: Page) -> None:
    assert "<script" not in html
    assert "script" not in page.tags
    assert SCRIPT in page.text


def test_examples_of_both_sorts(page: Page) -> None:
    learned, asked = page.text.split("What changed on held-out questions")
    assert "train/17/colour · kind “colour” · stage 1 · mask ratio 15 %" in learned
    assert "student before" not in learned.split("What the student learned from")[1]
    assert "labelteal" in asked
    assert "student beforebluish ✗" in asked
    assert "student afterTeal. ✓" in asked


def test_nothing_is_fetched(html: str, page: Page) -> None:
    assert "http://" not in html
    assert "https://" not in html
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html


def test_inner_links_have_one_target(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_every_curve_is_drawn(page: Page) -> None:
    assert page.tags.count("svg") == 12
    for label in ("JSD (nats)", "KL (nats)", "mean R_acc", "mean R_distill", "norm before clipping", "mask ratio (%)"):
        assert label in page.text


@pytest.mark.parametrize("steps", [5, 61, 700])
def test_how_much_the_divergence_may_lack_is_a_dashed_line_above_it(tmp_path: Path, steps: int) -> None:
    rows = read_metrics(build(tmp_path, steps=steps) / report.METRICS)
    assert "stroke-dasharray" not in charts.curve_chart(rows, "jsd", "JSD", None)
    assert charts.curve_chart(rows, "jsd", "JSD", None, "jsd_error_bound").count("stroke-dasharray") == 1


def test_that_line_is_explained_where_the_steps_know_of_it(tmp_path: Path, page: Page) -> None:
    explained = "over the whole vocabulary the distance is between the line and the dashed one"
    assert explained in page.text
    build(tmp_path, steps=0)
    for name, value in (("a live teacher", 0.0), ("an earlier version", None)):
        row = {**metrics(1)[0], "jsd_error_bound": value}
        told = {key: one for key, one in row.items() if one is not None}
        (tmp_path / report.METRICS).write_text(json.dumps(told) + "\n", encoding="utf-8")
        html = report.write(tmp_path).read_text(encoding="utf-8")
        assert explained not in html and "stroke-dasharray" not in html, name


def test_same_inputs_give_the_same_bytes(tmp_path: Path, html: str) -> None:
    assert report.write(build(tmp_path)).read_text(encoding="utf-8") == html


def test_an_older_report_is_replaced(tmp_path: Path) -> None:
    (tmp_path / report.REPORT).write_text("old", encoding="utf-8")
    assert report.write(build(tmp_path)).read_text(encoding="utf-8") != "old"


def test_no_examples(tmp_path: Path) -> None:
    text = report.write(build(tmp_path, examples=[])).read_text(encoding="utf-8")
    assert "This run kept no examples." in Page(text).text


@pytest.mark.parametrize("steps", [0, 1, 5, 61, 300])
def test_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    page = Page(report.write(build(tmp_path, steps=steps)).read_text(encoding="utf-8"))
    assert page.tags.count("svg") == (12 if steps else 1)
    assert ("No optimizer step was recorded." in page.text) == (steps == 0)
    assert ("pale line is every step" in page.text) == (steps > charts.FEW)


def test_thousands_of_steps_stay_small(tmp_path: Path) -> None:
    page = report.write(build(tmp_path, steps=20_000)).read_text(encoding="utf-8")
    assert "means of up to 80 consecutive steps" in page
    assert len(page) < 1_000_000


def test_a_repeated_step_counts_once(tmp_path: Path) -> None:
    build(tmp_path, steps=5)
    again = {**metrics(5)[3], "loss": 7.0}
    with (tmp_path / report.METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(again) + "\n")
    rows = read_metrics(tmp_path / report.METRICS)
    assert [row.step for row in rows] == [1, 2, 3, 4, 5]
    assert rows[3].loss == 7.0


def test_a_judge_that_differs_from_the_rule_and_tags_of_its_prompts_are_told_in_sentences(tmp_path: Path) -> None:
    content = summary()
    content["stages"][1] |= {"judge_rule_agreements": 1126, "judge_right": 1433, "rule_right": 0, "defused_answers": 7}
    build(tmp_path, summary=content, steps=4)
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert page.count("(exact) differ on") == 1
    assert "held-out accuracy of teacher is what the judge says" not in page
    content["evaluation"]["remarks"] = ["held-out accuracy of teacher is what the judge says: 25.0% right"]
    build(tmp_path, summary=content, steps=4)
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert page.index("is what the judge says") < page.index("Accuracy by kind of question</h2>")
    assert "stage 1: the judge and the rule (exact) differ on 56.0% of 2559 answers" in page
    assert "stage 1: 7 answers and 0 questions hold tags" in page
    assert "such as &lt;answer&gt;" in page


def test_values_that_were_not_measured(tmp_path: Path) -> None:
    content = summary()
    content["judge"]["agreement_with_rule"] = None
    content["stages"][0]["accuracy_by_source"] = {"student": 0.5}
    content["accuracy"]["teacher"]["by_kind"].pop("place")
    content["phases"] = {}
    build(tmp_path, summary=content, steps=4)
    row = {**metrics(1)[0], "step": 5, "gradient_norm": float("nan"), "jsd": None}
    with (tmp_path / report.METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    page = Page(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "was not measured" in page.text
    assert "nan" not in page.text.lower().split()


def test_how_often_the_reasoning_supports_the_answer_is_told_of_the_stages_that_were_asked(
    tmp_path: Path, page: Page
) -> None:
    assert "whose reasoning supports them" not in page.text
    content = summary()
    content["stages"][0]["reasoning"], content["stages"][3]["reasoning"] = 0.8249, 0.0
    told = Page(report.write(build(tmp_path, summary=content, steps=1)).read_text(encoding="utf-8"))
    expected = "Answers whose reasoning supports them, by the same judges: 82.5 % in stage 0, 0.0 % in stage 3."
    assert expected in told.text


def test_warnings_for_the_reader(tmp_path: Path, page: Page) -> None:
    assert "left out. JSD" not in page.text
    assert "no better than the student" not in page.text
    content = summary()
    content["stages"][2]["left_out"] = 0.95
    content["accuracy"]["teacher"]["value"] = 0.3
    content["evaluation"]["left_out"] = 5
    content["data"]["overlap"] = {"same_question": 7, "same_picture": 9, "examples": ["q1"]}
    content["data"]["train"]["remarks"] = ["columns that are not used: hint (3 rows)"]
    warned = Page(report.write(build(tmp_path, summary=content, steps=1)).read_text(encoding="utf-8"))
    assert "Up to 95 % of the teacher’s probability was left out." in warned.text
    assert "The teacher is no better than the student was before training" in warned.text
    assert "5 held-out questions that one of the models could not be asked" in warned.text
    assert "7 held-out questions are training questions too" in warned.text
    assert "7; 9 share only their pictures" in warned.text
    assert "1,600 (3 set aside; columns that are not used: hint (3 rows))" in warned.text


def test_of_many_kinds_those_with_the_most_questions_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "_MOST_KINDS", 2)
    content = summary()
    for outcome in content["accuracy"].values():
        rate = next(iter(outcome["by_kind"].values()))
        outcome["by_kind"] = {f"kind{number}": rate | {"n": number} for number in range(1, 6)}
    shown = Page(report.write(build(tmp_path, summary=content, steps=1)).read_text(encoding="utf-8")).text
    assert [f"kind{number}" in shown for number in range(1, 6)] == [False, False, False, True, True]
    assert "Of 3 more kinds only the mean tells." in shown


@pytest.mark.filterwarnings("error")
def test_odd_names_of_kinds(tmp_path: Path) -> None:
    content = summary()
    for outcome in content["accuracy"].values():
        outcome["by_kind"] = {"$x_<b>$ & co " + "long " * 20: rate(0.5, 10), "颜色": rate(0.5, 10)} | outcome["by_kind"]
    page = Page(report.write(build(tmp_path, summary=content, steps=2)).read_text(encoding="utf-8"))
    assert "$x_<b>$ & co long" in page.text
    assert page.text.count("颜色") == 2


def test_half_a_character_in_an_answer(tmp_path: Path) -> None:
    rows = examples()
    rows[0]["answers"][0]["text"] = "a\ud83d\x00b"
    assert "<h4" in report.write(build(tmp_path, examples=rows, steps=1)).read_text(encoding="utf-8")


def test_verdicts(tmp_path: Path) -> None:
    content = summary()
    whole = content["accuracy"]["student_after"]

    def told(value: float, low: float, high: float) -> str:
        whole.update(value=value, low=low, high=high)
        return sections.verdict(read_summary(build(tmp_path, summary=content, steps=1) / report.SUMMARY))

    assert "overlap" in told(0.64, 0.60, 0.68)
    assert "a loss of 21.2 points" in told(0.40, 0.37, 0.43)
    assert "level with its teacher" in told(0.98, 0.97, 0.99)
    assert "apart" in told(0.69, 0.653, 0.73)
    assert "(57.1–65.2)" in sections.headline(read_summary(tmp_path / report.SUMMARY))


@pytest.mark.parametrize("name", [report.SUMMARY, report.METRICS, report.EXAMPLES])
def test_a_missing_input_is_named(tmp_path: Path, name: str) -> None:
    (build(tmp_path) / name).unlink()
    with pytest.raises(StoreError, match=rf"{name}: missing\. Put it back from a copy"):
        report.write(tmp_path)
    assert not (tmp_path / report.REPORT).exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (report.SUMMARY, "{", "expected JSON"),
        (report.SUMMARY, "[]", "expected an object at the top"),
        (report.SUMMARY, '{"run": {}, "judge": {}, "accuracy": {}}', r"run\.dir is missing"),
        (report.METRICS, '{"step": 1}\n{"step"', "line 1.stage is missing"),
        (report.METRICS, "nonsense", "expected JSON in line 1"),
        (report.EXAMPLES, '[{"id": 3}]', r"expected text at \[0\]\.id, found 3"),
        (report.EXAMPLES, "\udcff", "cannot be read"),
    ],
)
def test_a_wrong_input_is_named(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    (build(tmp_path, steps=1) / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(StoreError, match=f"{name}: .*{complaint}"):
        report.write(tmp_path)


def test_pictures() -> None:
    assert 'class="pixels" width="160" height="160"' in picture(data_uri(64))
    large = picture(data_uri(1400))
    assert 'width="320" height="320"' in large
    assert "(picture &lt;x&gt;.png cannot be decoded: why)" in picture("picture <x>.png cannot be decoded: why")
    for bad in ("https://example.org/a.png", 'data:image/png;base64,AA"onload="x', "data:image/png;base64,AAAA", "x"):
        assert "<img" not in picture(bad)


def test_numbers_as_people_write_them() -> None:
    assert markup.percent(0.612) == "61.2 %"
    assert markup.small_percent(0.00031) == "0.031 %"
    assert markup.small_percent(0.0) == "0 %"
    assert markup.duration(3725) == "1 h 02 min"
    assert markup.duration(3599.9) == "1 h 00 min"
    assert markup.parameters(3_754_622_976) == "3.75 B"
    assert markup.nats(0.01234) == "0.0123"
    assert markup.interval(Accuracy(value=0.6, low=0.571, high=0.652, n=5, by_kind={})) == "57–65"
    assert markup.decimal(float("nan")) == markup.NOTHING


def test_a_log_scale_has_plain_numbers_on_its_axis() -> None:
    from masters_ray.records import StepMetrics
    from masters_ray.report.charts import curve_chart

    base: dict[str, Any] = dict.fromkeys(StepMetrics.__dataclass_fields__, 0.0)
    values = [1.0, 1.2, 0.9, 1.1, 400.0]
    metrics = [
        StepMetrics(**(base | {"step": step, "stage": 0, "groups": 1, "answer_tokens": 1, "gradient_norm": value}))
        for step, value in enumerate(values, 1)
    ]
    drawn = curve_chart(metrics, "gradient_norm", "norm", None)
    assert "mathdefault" not in drawn
    assert ">100<" in drawn
