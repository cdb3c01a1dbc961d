"""The report of a run: real numbers, nothing fetched, nothing executed, and a named file when an input is wrong."""

import base64
import dataclasses
import io
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masters_ray import report
from masters_ray.errors import StoreError
from masters_ray.evaluate import Change, Marked
from masters_ray.files import as_json
from masters_ray.learner.job import GroupRewards
from masters_ray.records import Answer, Event, JudgedAnswer, SkippedStep, StepMetrics
from masters_ray.report import charts
from masters_ray.report.render import NOTHING, decimal, duration, parameters, render, share, small_percent
from masters_ray.report.render import interval as bounds
from masters_ray.report.summary import CoursePoint, Example, Kept, read_examples, read_metrics, read_summary
from tests.builders import accuracy, interval, png, stage_outcome, step, summary

DRAWN = 16
"""Pictures of a page without online iterations: the method, the accuracies, and 14 curves."""
SCRIPT = "<script>alert('owned')</script>"


def text_of(html: str) -> str:
    """What a reader sees."""
    return " ".join(unescape(re.sub("<style.*?</style>|<[^>]+>", "", html, flags=re.DOTALL)).split())


def addresses(html: str) -> list[str]:
    return [unescape(one) for one in re.findall(r'\b(?:src|href|srcset|action|data|poster)="([^"]*)"', html)]


PICTURE = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def metrics(steps: int = 50) -> list[StepMetrics]:
    """Of five stages of equal length, whose student comes nearer to its teacher."""
    stages = [min(4, 5 * number // steps) for number in range(steps)]
    usual: dict[str, Any] = {"jsd_error_bound": 0.004, "learning_rate": 1e-6, "kl": 0.02, "grad_norm": 1.5, "mfu": 0.4}
    usual |= {"accuracy_reward": 0.7, "distillation_reward": 0.5, "zero_std_groups": 0.25, "memory_gib": 3.0}
    usual |= {"answer_length": 24.0, "cut_share": 0.05, "tokens_per_second": 700.0}
    return [
        step(number, stage=stage, mask_ratio=0.2 - 0.05 * stage, jsd=0.11 / number, loss=0.2 + 0.1 / number, **usual)
        for number, stage in enumerate(stages, 1)
    ]


def example(answers: list[tuple[str, float]], **changes: Any) -> Example:
    """answers: text, and what stands for JSD, R_distill and advantage; the teacher wrote them."""
    verdict, numbers = "The label. <answer>1</answer>" * 9, [number for _, number in answers]
    texts = [Answer(source="teacher", text=text, token_ids=(1,), finish="stop") for text, _ in answers]
    group = [JudgedAnswer(answer=one, accuracy=1, verdict=verdict) for one in texts]
    told = GroupRewards(stage=1, position=0, divergences=numbers, distillation=numbers, advantages=numbers)
    content: dict[str, Any] = {"question": "what color?", "label": "red", "kind": "colour", "pictures": [PICTURE]}
    return Example(**(content | changes), answers=group, rewards=told if answers else None)


def examples() -> list[Example]:
    right, wrong = ("red", 0.0104), (SCRIPT, -1.52)
    long, empty = ("The shape stands in the upper left quarter. " * 9, 0.02), ("", -0.9)
    asked: dict[str, Any] = {"id": "test/5/colour", "kind": "colour", "label": "teal", "finish": "stop"}
    before, after = Marked(**asked, answer="bluish", correct=False), Marked(**asked, answer="Teal.", correct=True)
    teacher = Marked(**asked, answer="teal", correct=True)
    return [
        example([right, right, wrong], id="train/17/colour", mask_ratio=0.15),
        example([long, empty], id="train/99/place", mask_ratio=0.15, kind="place", pictures=[PICTURE] * 2),
        example([], id="test/5/colour", label="teal", before=before, after=after, teacher=teacher),
    ]


def line(row: StepMetrics) -> str:
    return json.dumps(dataclasses.asdict(row)) + "\n"


def lines(steps: int) -> str:
    return "".join(map(line, metrics(steps)))


def build(folder: Path, changes: dict[str, Any] | None = None, rows: str = lines(1), shown: Any = None) -> Path:
    """A run directory with the three inputs. changes: places in the summary (stages.0.tokens) → their values."""
    content = as_json(summary())
    for path, value in (changes or {}).items():
        *way, last = path.split(".")
        place = content
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
    (folder / "summary.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text(rows)
    (folder / "examples.json").write_text(json.dumps(as_json(examples() if shown is None else shown)))
    return folder


def written(folder: Path, *inputs: Any, **others: Any) -> str:
    return report.write(build(folder, *inputs, **others)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("run"), rows=lines(50))


@pytest.fixture
def read(html: str) -> str:
    return text_of(html)


def test_accuracy_over_the_steps_is_drawn_and_a_choice_by_it_is_called_what_it_is(tmp_path: Path) -> None:
    course = ((0, 0.3), (50, 0.4), (100, 0.6), (150, 0.5))
    points = [
        CoursePoint(step=step, accuracy=accuracy(value, value - 0.1, value + 0.1, n=120)) for step, value in course
    ]
    nothing = accuracy(math.nan, math.nan, math.nan, n=0)
    others = {"others_before": accuracy(0.3, 0.2, 0.4, n=600), "others_after": accuracy(0.55, 0.5, 0.6, n=600)}
    kept = Kept(step=100, questions=120, **others)
    alone = Kept(step=100, questions=720, others_before=nothing, others_after=nothing)
    told = {
        name: text_of(written(tmp_path, {"course": as_json(points), "kept": as_json(chosen)}))
        for name, chosen in (("last", None), ("best", kept), ("alone", alone))
    }
    for page in told.values():
        assert (
            "on the same 120 held-out questions each time (of 720, which is why the accuracy above differs): 30.0 % "
            "(20.0–40.0) before training (step 0), 50.0 %" in page
        )
        assert "after step 150" in page
    choice = "The result is the student of step 100, the best of 3 on these 120 questions (learner.keep=best)."
    assert choice in told["best"] and "learner.keep=best" not in told["last"]
    assert "The 600 other held-out questions took no part in the choice: on them the accuracy went from" in told["best"]
    assert "30.0 % (20.0–40.0) to 55.0 % (50.0–60.0)" in told["best"]
    assert "All held-out questions took part in the choice" in told["alone"]
    assert "Held-out accuracy while learning" not in text_of(written(tmp_path))


def test_the_same_inputs_give_the_same_page(tmp_path: Path, html: str) -> None:
    (tmp_path / report.REPORT).write_text("old")
    assert written(tmp_path, rows=lines(50)) == html
    found = (read_summary(tmp_path), read_metrics(tmp_path), read_examples(tmp_path))
    assert found == (summary(), metrics(50), examples())


TOLD = """
The student went from 61.2 % (57.1–65.2) to 83.0 % (80.2–85.7) on 720 held-out questions; its teacher has 96.9 %.
A gain of 21.8 points (95 % interval +17.1 to +26.5, paired over the same questions): too large to
61 % of the way to its teacher | 70.4 % (65.4–75.4) | +25.6
19.999 % | 12,800 | 3 (picture 1, engine 2) | 90.0 % | 0.031 % | 99.61 % | 12,790 answers judged, 10 unjudged
0.0 %, 21.1 % | 21.1% of the student's answers are cut | 18.3% of the held-out answers are cut
cut at 64 tokens, and are marked as they stand: student before 18.3 %. | 31.2 M | 0123456789ab | 5 min 10 s | 33.9 s
1,600 (3 set aside) | 96,000, prompts once; 309 per second
stage 0: 0.012 nats per token apart at most (of 64 rows, train/<7>; 0.1 is allowed), 0.46 at one token
max_ratio: 0.2 # <of each matrix> | 2026-03-01 10:20:30 | 0.0104 | -1.52 | <script>alert('owned')</script>
over the whole vocabulary the distance is at most 0.00400 nats more (dashed line).
Not drawn: policy loss (below 0.001 throughout); clipped tokens (0 at every step).
In this run all answers were written before training (offline), by the teachers of the stages and the untrained
teacher: 31.2 M weights | student: 3.75 M weights | none; none shares a picture
untrained student’s answers right | The judge calls 75.0 % of the answers right, the rule 75.1 %: by the rule, 20 of
Do the rewards put right answers first? 100 groups of the whole run were looked at: 71 have a wrong and a right answer
In 3 of these a wrong answer has a larger advantage than a right one, in 8 more the same advantage. | R_acc (9);
wrong (4). Rule and verdict differ on an answer of 6 groups. | 190 of 720 improved, 33 regressed.
Shown are 1 that improved and 0 that regressed | teacherteal ✓
Yes: no spike of loss, JSD, KL or gradient norm, no skipped step, no collapse
dddddddddddd, dddddddddddd | a picture and a question
"""
TERMS = "mask ratio|JSD|R_acc|R_distill|advantage|left-out mass|KL|95 % interval"
CURVES = (
    "JSD (nats)|KL (nats)|mean R_acc|mean R_distill|norm before clipping|mask ratio (%)|learning rate"
    "|fraction of groups|tokens per answer|fraction of answers|tokens per second|fraction of matmul rate|GiB"
)


def test_numbers_and_texts_are_the_run_s_terms_are_explained_and_curves_drawn(html: str, read: str) -> None:
    expected = [*re.split(r" \| |\n", TOLD.strip()), *TERMS.split("|"), *CURVES.split("|")]
    assert [told for told in expected if told not in read] == []
    assert html.count("<svg") == DRAWN


def test_nothing_is_executed_or_fetched_and_inner_links_have_one_target(html: str) -> None:
    assert "<script" not in html and not re.search(r"<[^>]*\son\w+=", html)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    found, ids = addresses(html), re.findall(r'\bid="([^"]*)"', html)
    assert found and all(address.startswith(("data:image/", "#")) for address in found)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in found if address.startswith("#")} <= set(ids)


def test_examples_of_both_sorts(read: str, tmp_path: Path) -> None:
    learned, asked = read.split("What changed on held-out questions")
    assert "train/17/colour · kind “colour” · stage 1 · mask ratio 15 %" in learned
    assert "student before" not in learned.split("What the student learned from")[1]
    assert "labelteal" in asked and "student beforebluish ✗" in asked and "student afterTeal. ✓" in asked
    assert "This run kept no examples." in written(tmp_path, shown=[])
    pictures = [PICTURE, "picture <x>.png cannot be decoded: why", "https://example.org/a.png"]
    html = written(tmp_path, shown=[example([("a\ud83d\x00b", 0.5)], id="x", pictures=pictures)])
    assert "a?\0b" in html, "half a character"
    assert [address for address in addresses(html) if not address.startswith("#")] == [PICTURE]
    assert "(picture <x>.png cannot be decoded: why)" in text_of(html) and "(https://example.org/a.png)" in html


@pytest.mark.parametrize("steps", [0, 1, 61, 20_000])
def test_any_number_of_steps(tmp_path: Path, steps: int) -> None:
    """How much the divergence may lack is a dashed line where the steps know of it."""
    html = written(tmp_path, rows=lines(steps))
    assert len(html) < 1_000_000
    assert html.count("<svg") == (DRAWN if steps else 2)
    assert html.count("stroke-dasharray") == (steps > 0)
    assert ("No optimizer step was recorded." in html) == (steps == 0)
    html = written(tmp_path, rows=line(step(1, jsd_error_bound=0.0)))
    assert "the line and the dashed one" not in html and "stroke-dasharray" not in html


def test_a_repeated_step_counts_once_and_a_line_that_was_cut_short_not_at_all(tmp_path: Path) -> None:
    build(tmp_path, rows=lines(5) + line(step(4, loss=7.0)) + '{"step": 6, "sta')
    found = [(row.step, row.loss) for row in read_metrics(tmp_path)]
    assert found == [(row.step, 7.0 if row.step == 4 else row.loss) for row in metrics(5)]


def test_online_iterations_are_told_of_and_drawn(tmp_path: Path, read: str) -> None:
    """Steps 2 and 4 have no fresh group: 2 is offline, the groups of 4 came too late."""
    assert "Online:" not in read
    fresh = {1: (3, 1.0), 2: (0, 0.0), 3: (1, 3.0), 4: (0, 0.0)}
    same: dict[str, Any] = {"clip_fraction": 0.01, "logprob_mismatch": 1e-3, "rollout_wait_s": 0.5}
    changes: dict[int, dict[str, Any]] = {step: {"fresh": groups, "age": age} for step, (groups, age) in fresh.items()}
    html = written(
        tmp_path, rows="".join(line(dataclasses.replace(row, **same, **changes[row.step])) for row in metrics(4))
    )
    told = text_of(html)
    assert "in 2 of 4 optimizer steps (50.0 %)" in told and "4 groups in all" in told
    assert html.count("<svg") == DRAWN + 4
    assert "Not drawn: policy loss (below 0.001 throughout)." in told
    assert (
        "In this run the answers of 50.0 % of the optimizer steps were written while the student learned (online)"
        in told
    )
    assert "was 1.5 steps behind the one that learned from them on average, 3 at most." in told
    assert "The learner waited 2.0 s for them." in told


def test_a_plan_stands_beside_what_happened(tmp_path: Path, read: str) -> None:
    assert "Planned:" not in read
    config = as_json(summary())["config"]
    phases = {"rollouts": 200.0, "learner": 300.5}
    planned = {"source": "of runs/before", "phases": phases, "store_bytes": 2.5e6, "config": config}
    told = text_of(written(tmp_path, {"planned": planned, "stages.0.stored_bytes": 3_000_000}))
    assert "Planned: forecast before by masters-ray plan, rates of runs/before." in told
    assert "Rollouts were to take 2.5 MB and took 3.0 MB." in told
    assert "learner5 min 10 s5 min 00 s" in told and "in all10 min 40 s8 min 20 s" in told
    other = text_of(written(tmp_path, {"planned": planned | {"config": "run: {}"}}))
    assert "for settings that were not all those of this run" in other


def test_values_that_were_not_measured(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"answers.compared": 0, "stages.0.compared": 0}
    changes |= {"stages.0.teacher_judged": 0, "stages.0.student_judged": 4, "stages.0.student_right": 2}
    changes |= {"phases": {}, "learner.seconds": 0.0, "learner.agreement": []}
    changes |= {f"accuracy.student_before.{name}": None for name in ("value", "low", "high")}
    changes |= {"accuracy.teacher.by_kind": {"colour": as_json(interval(0.5))}}
    odd = step(5, grad_norm=float("nan"), jsd=float("inf"))
    read = text_of(written(tmp_path, changes, rows=lines(4) + line(odd)))
    assert "How often the judge agrees with the rule was not measured." in read
    assert "One of the two accuracies was not measured" in read
    assert "nan" not in read.lower().split()


STAGES = [
    stage_outcome(0, reasoning_judged=10000, reasoning_right=8249),
    stage_outcome(1, judge_rule_agreements=1126, judge_right=1433, rule_right=0, defused_answers=7),
    stage_outcome(2, tail_mass_sum=95000.0),
]
NOTED = {
    "stages": as_json(STAGES),
    "answers.defused_answers": 7,
    "accuracy.teacher.value": 0.3,
    "evaluation.left_out": 5,
    "evaluation.remarks": ["held-out accuracy of teacher is what the judge says: 25.0% right"],
    "overlap": {"same_question": 7, "same_picture": 9, "examples": ["q1"]},
    "train.remarks": ["columns that are not used: hint (3 rows)"],
}
WARNINGS = """
Not without a look: judge and rule differ on more than a tenth of the answers of stage 1. Judge and rule say the same on
stage 1: the judge and the rule (exact) differ on 56.0% of 2559 answers
all stages: 7 answers with tags of the judge's prompts, such as <answer>
Answers whose reasoning supports them, by the same judges: 82.5 % in stage 0.
Up to 95 % of the teacher’s probability was left out.
The teacher is no better than the student was before training
5 held-out questions that one of the models could not be asked
7 held-out questions are training questions too
7; 9 more share a picture
1,600 (3 set aside; columns that are not used: hint (3 rows))
"""


def test_what_a_reader_should_know_is_told(tmp_path: Path, read: str) -> None:
    html = written(tmp_path, NOTED)
    found, warnings = text_of(html), WARNINGS.strip().splitlines()
    assert [one for one in warnings if one not in found or one in read] == []
    assert html.count("(exact) differ on") == 1
    assert html.index("is what the judge says") < html.index("Accuracy by kind of question</h2>")


@pytest.mark.filterwarnings("error")
def test_of_many_kinds_the_fifty_largest_are_shown(tmp_path: Path) -> None:
    plain = [f"kind-{number:02}" for number in range(50)]
    names = [*plain, "$x_<b>$ & co " + "long " * 20, "颜色", "last"]
    kinds = {name: as_json(interval(0.5, number)) for number, name in enumerate(names, 1)}
    models = ("teacher", "student_before", "student_after")
    told = text_of(written(tmp_path, {f"accuracy.{model}.by_kind": kinds for model in models}))
    assert [name in told for name in names[:4]] == [False, False, False, True]
    assert "Of 3 more kinds only the mean tells." in told and "$x_<b>$ & co long" in told and told.count("颜色") == 2


@pytest.mark.parametrize(
    ("after", "bounds", "told"),
    [
        (0.64, (-0.001, 0.057), "A gain of 2.8 points (95 % interval -0.1 to +5.7, paired over the same questions)"),
        (0.64, (-0.001, 0.057), "with only 720 questions this may be chance."),
        (0.64, (0.001, 0.055), "too large to come from the choice of questions alone. That is 8 % of the way"),
        (0.40, (-0.26, -0.16), "A loss of 21.2 points (95 % interval -26.0 to -16.0, paired over"),
        (0.98, (0.33, 0.41), "level with its teacher"),
        (0.612, (-0.03, 0.03), "A difference of 0.0 points"),
    ],
)
def test_the_verdict_follows_from_the_paired_interval_alone(
    after: float, bounds: tuple[float, float], told: str
) -> None:
    """The two intervals of 2.8 points overlap: whether that may be chance is up to the questions that changed."""
    low, high = bounds
    change = Change(value=after - 0.612, low=low, high=high, n=720, improved=90, regressed=70)
    found = dataclasses.replace(summary().accuracy, student_after=accuracy(after, after - 0.04, after + 0.04))
    assert told in render("masters_ray.report", "verdict.jinja", summary=summary(accuracy=found, change=change))


def spiked() -> str:
    """200 steps of which 70 jumps, 71 is not finite and 150 was skipped."""
    rows = metrics(200)
    rows[69] = dataclasses.replace(rows[69], loss=40.0, grad_norm=900.0)
    rows[70] = dataclasses.replace(rows[70], jsd=math.inf)
    return "".join(line(row) for row in rows if row.step != 150)


def test_a_spike_is_told_with_its_step_and_does_not_flatten_its_curve(tmp_path: Path, read: str) -> None:
    skipped = SkippedStep(step=150, stage=3, reason="the loss of train/<4> is not finite")
    (tmp_path / "skipped.jsonl").write_text(json.dumps(dataclasses.asdict(skipped)) + "\n")
    told = text_of(written(tmp_path, rows=spiked()))
    assert (
        "Between steps 70 and 71: loss rose to 40 at step 70 (0.201), JSD was not finite at step 71 (0.00155), "
        "gradient norm rose to 900 at step 70 (1.5)." in told
    )
    assert "In the five steps after each, no value stayed above twice that median." in told
    assert "Step 150 was skipped: the loss of train/<4> is not finite." in told
    assert told.count("Beyond the edge (triangles): step 70 (900).") == 1
    assert "Beyond the edge (triangles): step 70 (40)." in told and "Beyond the edge" not in read
    drawn = charts.curve_chart(
        [step(row, loss=40.0 if row == 7 else 0.2 + row / 100) for row in range(1, 21)], "loss", "l"
    )
    ticks = re.findall(r"<text[^>]*>([.\d]+)<", drawn.split(">optimizer step<")[1])
    assert max(map(float, ticks)) < 0.5 and "var(--before)" in drawn


@pytest.mark.parametrize(
    ("examples", "shown", "told", "size"),
    [
        (12, 12, "pictures have at most 480 pixels. examples.json and metrics.jsonl have all.", (480, 360)),
        (40, 8, "at most 320 pixels, 32 of 40 examples are left out, curves have at most 300 points.", (320, 240)),
    ],
)
def test_a_large_page_is_thinned_and_says_so(
    tmp_path: Path, examples: int, shown: int, told: str, size: tuple[int, int]
) -> None:
    """Pictures of noise, long answers and 5,000 steps."""
    noise = Image.frombytes("RGB", (960, 720), np.random.default_rng(0).bytes(960 * 720 * 3))
    content = io.BytesIO()
    noise.save(content, "JPEG", quality=85)
    uri = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    many = [example([("word " * 2000, 0.5)] * 2, id=f"train/{number}", pictures=[uri]) for number in range(examples)]
    html = written(tmp_path, rows=lines(5000), shown=many)
    assert len(html.encode()) < report.MOST_BYTES < len(uri) * examples
    assert told in text_of(html) and html.count("<article") == shown
    [first, *_] = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == size
    assert "This page was thinned" not in text_of(written(tmp_path, rows=lines(50)))


CALLS = """
2026-03-01 10:20:30masters-ray run x.yaml–e0d2865a9e28, with changes2 × (8 CPUs, 1 × H200, 60 GiB)
2026-03-01 12:00:00masters-ray run x.yaml teacher.replicas=2finished––
Checkpoints written: step 30 at 10:40:00, step 60 at 12:10:00.
The call of 2026-03-01 10:20:30 was killed; a later call went on.
3 rows of the data were set aside while reading.
10:30:00 a replica <1> died and was started again
studentwrites answers46642 min 03 s9,00042
judgemarks answers2320.0 s––
"""


def test_calls_machines_checkpoints_and_what_went_wrong_are_told(tmp_path: Path) -> None:
    events = [
        ("10:20:30", "start", "masters-ray run x.yaml", None),
        ("10:20:31", "code", "e0d2865a9e28dc62264de26e8f48a4e5eab6f121-dirty", None),
        ("10:20:31", "nodes", "2 × (8 CPUs, 1 × H200, 60 GiB)", None),
        ("10:30:00", "warning", "a replica <1> died and was started again", None),
        ("10:40:00", "checkpoint", "", 30),
        ("12:00:00", "start", "masters-ray run x.yaml teacher.replicas=2", None),
        ("12:10:00", "checkpoint", "", 60),
        ("12:20:00", "end", "finished", None),
    ]
    told = [Event(time=f"2026-03-01T{at}+00:00", kind=kind, text=text, step=step) for at, kind, text, step in events]  # type: ignore[arg-type]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in told))
    answered = {"calls": 23, "questions": 32, "seconds": 61.5, "tokens": 4500}
    changes = {
        "stages.0.calls": {"student.answer": answered},
        "stages.1.calls": {"student.answer": answered, "judge.judge": {"calls": 2, "questions": 32, "seconds": 0.0}},
    }
    found = text_of(written(tmp_path, changes))
    assert [one for one in CALLS.strip().splitlines() if one not in found] == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"outranked": "above", "reasons": ["distillation"]},
            "a larger advantage than a right one: teacher and student",
        ),
        ({"outranked": "level", "reasons": ["cut", "verdict"]}, "the same advantage as a right one: an answer was cut"),
        ({"by_rule": [True, False]}, "The rule contradicts the judge, which calls “blue” "),
        ({"reinforced": ["blue"]}, "Wrong, with a positive advantage, and so more likely from now on: “blue”."),
    ],
)
def test_an_example_whose_rewards_or_marks_are_at_odds_says_so(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    plain = example([("red", 0.5), ("blue", 0.5)], id="x", by_rule=[True, True])
    assert told not in text_of(written(tmp_path, shown=[plain]))
    assert told in text_of(written(tmp_path, shown=[dataclasses.replace(plain, **changes)]))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        *((file, None, r"missing\. Put it back") for file in ("summary.json", "metrics.jsonl", "examples.json")),
        ("summary.json", "{}", "accuracy: expected a value, found none"),
        ("metrics.jsonl", '{"step": 1}\n{"step"', "line 1: stage: expected a value, found none"),
        ("examples.json", '[{"id": 3}]', r"\[0\]\.id: expected a valid string, found 3; .*Put it back"),
    ],
)
def test_an_input_missing_or_wrong_is_named(tmp_path: Path, name: str, content: str | None, complaint: str) -> None:
    (build(tmp_path) / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(StoreError, match=f"{name}: .*{complaint}"):
        report.write(tmp_path)
    assert not (tmp_path / report.REPORT).exists()


def test_numbers_as_people_write_them_also_on_the_axis_of_a_log_scale() -> None:
    assert small_percent(0.0) == "0 %"
    assert (duration(3725), duration(3599.9)) == ("1 h 02 min", "1 h 00 min")
    assert parameters(3_754_622_976) == "3.75 B"
    assert bounds(accuracy(0.0, -0.02, 0.01), " to ") == "-2.0 to 1.0"
    assert decimal(float("nan")) == NOTHING == share(None)
    rows = [step(number, grad_norm=value) for number, value in enumerate([1.0] * 8 + [100.0] * 5, 1)]
    drawn = charts.curve_chart(rows, "grad_norm", "norm")
    assert "mathdefault" not in drawn and ">100<" in drawn
