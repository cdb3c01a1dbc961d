"""Recomputes the figures on the pages of the studies from the files that a study leaves."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import t

from masters_ray import store
from masters_ray.evaluate import Interval, kappa, wilson
from masters_ray.pipeline.held_out import read_marks
from masters_ray.records import JudgedText
from masters_ray.report.render import decimal, interval, nats, percent, share, small_percent
from tests.charts import Chart


def text_of(html: str) -> str:
    """What a reader sees."""
    return " ".join(
        unescape(re.sub("<style.*?</style>|<[^>]+>", "", html.replace("<br>", " "), flags=re.DOTALL)).split()
    )


def tables(html: str) -> list[list[list[str]]]:
    """The cells of every table's rows, without its head."""
    bodies = re.findall(r"<tbody>(.*?)</tbody>", html, re.DOTALL)
    rows = [re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL) for body in bodies]
    return [[[text_of(cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)] for row in of] for of in rows]


def read(file: Path) -> Any:
    return json.loads(file.read_text())


Key = Callable[[Any], Any]


def resampled(
    values: Iterable[tuple[Any, float]], comparisons: int = 1, key: Key = int, least: float = 0.0
) -> Interval:
    """Of (question, value): the mean, and the quantiles of 2000 draws of whole questions. key: the questions' order."""
    by_question: dict[Any, list[float]] = defaultdict(list)
    for question, value in values:
        by_question[key(question)].append(value)
    groups = [by_question[question] for question in sorted(by_question)]
    sums, counts = np.array([[sum(group), len(group)] for group in groups], float).T
    draws = np.random.default_rng(0).integers(len(groups), size=(2000, len(groups)))
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), [0.025 / comparisons, 1 - 0.025 / comparisons])
    value = sums.sum() / counts.sum()
    if low == high and comparisons == 1:
        more = wilson(0, len(groups)).high
        low, high = max(least, value - more), min(1.0, value + more)
    return Interval(value=float(value), low=float(low), high=float(high), n=len(groups))


def bounds(found: Interval, form: Callable[[float], str]) -> str:
    return f"{form(found.low)} to {form(found.high)}"


def check_date(html: str, run: Path) -> None:
    """The page tells when the run directory was first worked on, and by which code."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    started = next(one["time"] for one in events if one["kind"] == "start")
    code = [one["text"] for one in events if one["kind"] == "code"]
    assert f"started</dt><dd>{started.replace('T', ' ').replace('+00:00', ' UTC')}<" in html
    dirty = ", with changes" if code and code[-1].endswith("-dirty") else ""
    shown = f'<code title="{code[-1]}">{code[-1][:12]}</code>{dirty}' if code else "not noted"
    assert f"code</dt><dd>{shown}<" in html
    nodes = [one["text"] for one in events if one["kind"] == "nodes"]
    assert not nodes or f"nodes</dt><dd>{nodes[-1]}<" in html


def check_scan(folder: Path) -> None:
    html, figures = (folder / "mask_scan.html").read_text(), read(folder / "mask_scan.json")
    stages = range(len(figures["ratios"]))
    kept = [read(next((folder / "divergences").glob(f"stage-{stage}-*.json"))) for stage in stages]
    made = [read(folder / "rollouts" / f"stage-{stage}" / "manifest.json")["made_by"] for stage in stages]
    judged = [list(store.read_judged(folder / "rollouts" / f"stage-{stage}")) for stage in stages]

    def by_question(rows: Sequence[dict[str, Any]], **of: str) -> dict[int, float]:
        asked: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if all(row[name] == value for name, value in of.items()):
                asked[row["position"]].append(row["nats"])
        return {position: float(np.mean(values)) for position, values in asked.items()}

    questions = [by_question(rows) for rows in kept]
    best = min(questions, key=lambda one: float(np.mean(list(one.values()))))
    kinds = sorted({row["kind"] for rows in kept for row in rows})
    expected, answered = [], []
    drawn: dict[str, list[Interval]] = defaultdict(list)
    for one, rows, own, answers in zip(made, kept, questions, judged, strict=True):
        jsd = resampled(own.items())
        more = resampled([(q, own[q] - best[q]) for q in own.keys() & best.keys()], max(1, len(made) - 1))
        right = [(answer.position, answer.accuracy) for answer in answers if answer.source == "teacher"]
        lowest = own is best
        drawn["more"].append(Interval(value=0.0, low=0.0, high=0.0, n=more.n) if lowest else more)
        drawn["jsd"].append(jsd)
        drawn["quality"].append(resampled(right))
        expected.append(
            [
                f"{100 * one['ratio']:g} %",
                percent(one["sparsity"], 3),
                nats(jsd.value),
                bounds(jsd, nats),
                "lowest" if lowest else decimal(more.value, 5),
                "" if lowest else bounds(more, lambda number: decimal(number, 5)),
                small_percent(one["tail_mass_sum"] / one["tokens"]),
                *(nats(float(np.mean(list(by_question(rows, kind=kind).values())))) for kind in kinds),
            ]
        )
        by_kind = [
            resampled([(a.position, a.accuracy) for a in answers if (a.source, a.kind) == ("teacher", kind)], key=str)
            for kind in kinds
        ]
        cut = one["teacher_cut"] / one["teacher_written"]
        answered.append(
            [f"{100 * one['ratio']:g} %", percent(cut), share(resampled(right, key=str)), *map(share, by_kind)]
        )
    assert tables(html) == [expected, answered]
    Chart.of(html, "more").check("y", "after", drawn["more"])
    Chart.of(html, "jsd").check("y", "after", drawn["jsd"])
    Chart.of(html, "quality").check("y", "teacher", drawn["quality"])
    assert figures["headline"] in text_of(html)
    check_date(html, folder)
    advice = figures["advice"]
    assert advice["lowest"] == made[questions.index(best)]["ratio"]
    assert f"{figures['questions']} questions" in text_of(html) or advice["start"] is not None


def check_audit(folder: Path) -> None:
    html, figures = (folder / "judge_audit.html").read_text(), read(folder / "judge_audit.json")
    cases = list(store.read_judged(folder / "rollouts" / "stage-0"))
    [verdicts] = (folder / "verdicts").iterdir()
    passes = {name: read(verdicts / f"{name}.json") for name in ("student", "teacher")}
    said = {name: [[one["accuracy"] for one in part["verdicts"]] for part in parts] for name, parts in passes.items()}
    said["rule"] = [[case.accuracy for case in cases]]
    table_of_shares, table_of_fitness, costs, agreements, counts = tables(html)
    assert table_of_shares == [row for name in passes for row in _shares(name, cases, said[name][0])]
    for row, (name, (first, again)) in zip(table_of_fitness, [(one, said[one]) for one in passes], strict=True):
        k = _kappa(cases, first, said["rule"][0], "all")
        same = resampled([(case.position, one == two) for case, one, two in zip(cases, first, again, strict=True)])
        assert row[:4:2] == [name, ""] or row[0] == name
        told = f" ({decimal(k.low)} to {decimal(k.high)})" if k.low < k.high else ""
        assert row[1] == f"{decimal(k.value)}{told}"
        assert row[3] == share(same)
    seconds = {name: parts[0]["seconds"] for name, parts in passes.items()}
    assert costs == [
        [
            name,
            f"{len(cases):,}",
            percent(said[name][0].count(None) / len(cases)),
            decimal(seconds[name] / len(cases), 4) if name in seconds else "–",
        ]
        for name in ("student", "teacher", "rule")
    ]
    names = [("student", "teacher"), ("student", "rule"), ("teacher", "rule")]
    assert agreements == [
        _agreement(cases, one, other, said[one][0], said[other][0], of)
        for one, other in names
        for of in ("all", "teacher", "student")
    ]
    check_date(html, folder)
    _check_disagreements(html, cases, {name: of[0] for name, of in said.items()}, counts)
    assert figures["headline"] in text_of(html)


def _shares(name: str, cases: Sequence[JudgedText], said: Sequence[int | None]) -> Iterable[list[str]]:
    for source in dict.fromkeys(case.source for case in cases):
        read = [(case, one) for case, one in zip(cases, said, strict=True) if one is not None and case.source == source]
        more = resampled([(case.position, one - case.accuracy) for case, one in read], least=-1.0)
        right, by_rule = (
            float(np.mean(values)) for values in zip(*((one, c.accuracy) for c, one in read), strict=True)
        )
        inside, outside = more.low >= -0.05 and more.high <= 0.05, more.high < -0.05 or more.low > 0.05
        told = "yes" if inside else "no" if outside else "unknown"
        change = f"{decimal(100 * more.value, 1, sign=True)} ({interval(more, ' to ')})"
        yield [name, source, percent(right), percent(by_rule), change, told]


def _kappa(cases: Sequence[JudgedText], first: Sequence[Any], second: Sequence[Any], of: str) -> Interval:
    rows = [
        (case.position, (1, one, other, one == other))
        for case, one, other in zip(cases, first, second, strict=True)
        if None not in (one, other) and of in ("all", case.source)
    ]
    positions = sorted({position for position, _ in rows})
    sums = np.array([np.sum([row for place, row in rows if place == position], 0) for position in positions], float)
    draws = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    drawn = np.array([kappa(*sums[draw].sum(0)) for draw in draws])
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975]) if np.isfinite(drawn).any() else (math.nan,) * 2
    return Interval(value=kappa(*sums.sum(0)), low=float(low), high=float(high), n=len(positions))


def _agreement(
    cases: Sequence[JudgedText], name: str, other: str, first: Sequence[Any], second: Sequence[Any], of: str
) -> list[str]:
    both = [
        (a, b)
        for case, a, b in zip(cases, first, second, strict=True)
        if None not in (a, b) and of in ("all", case.source)
    ]
    k = _kappa(cases, first, second, of)
    counts = [str(both.count(pair)) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]
    same = percent(sum(a == b for a, b in both) / len(both))
    told = bounds(k, lambda number: decimal(number, 3)) if k.low < k.high else "–"
    return [f"{name}, {other}", of, *counts, same, decimal(k.value, 3), told]


def _check_disagreements(
    html: str, cases: Sequence[JudgedText], said: dict[str, list[int | None]], counts: list[list[str]]
) -> None:
    """Patterns: which side is right, and whose answer; every card is in its own pattern's place."""
    found: dict[tuple[int, str, str], tuple[str, set[str]]] = {}
    for case, *of in zip(cases, said["student"], said["teacher"], strict=True):
        differ = {name for name, one in zip(("student", "teacher"), of, strict=True) if one != case.accuracy}
        readable = {one for one in of if one not in (None, case.accuracy)}
        pattern = (
            "unreadable" if not readable else "right, the rule wrong" if not case.accuracy else "wrong, the rule right"
        )
        if differ:
            found.setdefault((case.position, case.source, case.text), (f"{pattern}: {case.source}’s answers", differ))
    told = {row[0].removeprefix("a model says ").replace("a model’s verdict is ", ""): row[1:] for row in counts}
    expected = {
        pattern: [
            str(sum(one == pattern for one, _ in found.values())),
            *(
                str(sum((one, who) == (pattern, alone) for one, who in found.values()))
                for alone in ({"student"}, {"teacher"}, {"student", "teacher"})
            ),
        ]
        for pattern in {one for one, _ in found.values()}
    }
    assert told == expected
    assert f"{len(found):,} different answers" in text_of(html)
    shown = re.findall(r'<article class="card disagreement.*?</article>', html, re.DOTALL)
    assert len(shown) == sum(min(12, int(row[0])) for row in expected.values())
    assert all('src="data:image/' in card for card in shown)


def check_study(folder: Path) -> None:
    """Of a finished study in which no learner waited: from the runs' marks, metrics, journals and directories."""
    html, figures = (folder / "study.html").read_text(), read(folder / "study.json")
    study = figures["study"]
    seeds, reference = study["seeds"], study["reference"]
    runs = {(one["variant"], one["seed"]): Path(one["dir"]) for one in figures["runs"]}
    marks = {place: _marks(run, "student_after") for place, run in runs.items()}
    untrained = {place: _marks(run, "student_before") for place, run in runs.items()}
    accuracies = {place: _accuracy(own.values()) for place, own in marks.items()}
    of_runs, of_variants = tables(html)
    expected = []
    for (variant, seed), run in runs.items():
        summary = read(run / "summary.json")
        after, store_of_other = (
            summary["accuracy"]["student_after"],
            yaml.safe_load(summary["config"])["rollout"]["store"],
        )
        assert after["value"] == accuracies[variant, seed]
        steps = len((run / "metrics.jsonl").read_text().splitlines())
        lenders = [f"{name}, seed {of}" for (name, of), one in runs.items() if store_of_other == f"{one}/rollouts"]
        lender = lenders[0] if store_of_other else "its own"
        accuracy = share(Interval(**{key: after[key] for key in ("value", "low", "high", "n")}))
        expected.append([variant, str(seed), "finished", f"{steps} of {steps}", accuracy, lender, "report"])
    assert of_runs == expected
    rows = []
    means, differences = list[Interval](), list[Interval]()
    dots, strokes, gaps = list[float](), list[float](), list[float]()  # of single runs, and of untrained students
    for name, changes in study["variants"].items():
        own = [accuracies[name, seed] for seed in seeds]
        gains = [accuracies[name, seed] - accuracies[reference, seed] for seed in seeds]
        shared = [
            (id, mark["correct"] - marks[reference, seed][id]["correct"])
            for seed in seeds
            for id, mark in marks[name, seed].items()
            if id in marks[reference, seed]
        ]
        by_question = resampled(shared, key=str, least=-1.0)
        before, teacher = (
            float(np.mean([_accuracy(_marks(runs[name, seed], model).values()) for seed in seeds]))
            for model in ("student_before", "teacher")
        )
        changed = [
            (id, mark["correct"] - untrained[name, seed][id]["correct"])
            for seed in seeds
            for id, mark in marks[name, seed].items()
        ]
        compared = [
            decimal(100 * float(np.mean(gains)), 1, sign=True),
            interval(_over_seeds(gains), " to "),
            interval(by_question, " to "),
        ]
        means.append(_over_seeds(own))
        dots += own
        strokes.append(before)
        if name != reference:
            differences.append(_over_seeds(gains) if len(seeds) > 1 else by_question)
            gaps += gains
        jsd = [_last_jsd(runs[name, seed]) for seed in seeds]
        learning = [read(runs[name, seed] / "journal.json")["phases"]["learner"] for seed in seeds]
        told = " ".join(f"{key}={json.dumps(value)}" for key, value in changes.items()) or "nothing"
        rows.append(
            [
                name,
                decimal(100 * teacher, 1),
                decimal(100 * before, 1),
                decimal(100 * float(np.mean(own)), 1),
                interval(_over_seeds(own), " to "),
                decimal(100 * (float(np.mean(own)) - before), 1, sign=True),
                interval(resampled(changed, key=str, least=-1.0), " to "),
                *(["", "", ""] if name == reference else compared),
                nats(float(np.mean(jsd))),
                decimal(float(np.mean(learning)), 1),
                told,
            ]
        )
    assert of_variants == rows
    chart, of_pairs = Chart.of(html, "accuracy"), Chart.of(html, "difference")
    chart.check("x", "after", means, scale=100, singles=dots)
    assert chart.markers("before", "x") == pytest.approx([100 * one for one in strokes], abs=0.3)
    of_pairs.check("x", "after", differences, scale=100, singles=gaps)
    assert figures["headline"] in text_of(html)
    links = re.findall(r'<a href="([^"#]+)"', html)
    assert [folder / link for link in links] == [run / "report.html" for run in runs.values()]
    assert all((folder / link).is_file() for link in links)
    check_date(html, runs[reference, seeds[0]])
    assert 'http-equiv="refresh"' not in html


def _marks(run: Path, model: str) -> dict[str, dict[str, Any]]:
    kept = read_marks(run / "evaluation" / f"{model}.json")
    return {one.id: vars(one) for one in kept if not one.refused}


def _accuracy(marks: Iterable[dict[str, Any]]) -> float:
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for mark in marks:
        by_kind[mark["kind"]].append(mark["correct"])
    return sum(sum(of) / len(of) for _, of in sorted(by_kind.items())) / len(by_kind)


def _over_seeds(values: Sequence[float]) -> Interval:
    value, half = sum(values) / len(values), math.nan
    if len(values) > 1:
        half = round(float(t.ppf(0.975, len(values) - 1)), 3) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(value=value, low=value - half, high=value + half, n=len(values))


def _last_jsd(run: Path) -> float:
    steps = [json.loads(line)["jsd"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(np.mean(steps[-max(1, len(steps) // 10) :]))
