"""What a finished run's report must say, recomputed from the run's files without the report's own code."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import yaml
from PIL import Image

MODELS = ("student_before", "student_after", "teacher")
WATCHED = {"loss": "loss", "jsd": "JSD", "kl": "KL", "grad_norm": "gradient norm"}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def told(seconds: float) -> str:
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"


def bounds(right: int, n: int) -> tuple[float, float]:
    """Wilson's."""
    z, p = 1.959964, right / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (p + z * z / (2 * n) - half) / (1 + z * z / n), (p + z * z / (2 * n) + half) / (1 + z * z / n)


def rate(right: int, n: int) -> str:
    low, high = (100 * min(1.0, max(0.0, bound)) for bound in bounds(right, n))
    return f"{percent(right / n)} ({low:.1f}–{high:.1f})"


def mean_of(kinds: list[list[bool]]) -> tuple[float, float, float]:
    """The mean over the kinds' marks, and its bounds (Agresti and Coull's)."""
    value = sum(sum(of) / len(of) for of in kinds) / len(kinds)
    widened = [((sum(of) + 2) / (len(of) + 4), len(of) + 4) for of in kinds]
    half = 1.959964 * math.sqrt(sum(p * (1 - p) / n for p, n in widened)) / len(kinds)
    return value, max(0.0, value - half), min(1.0, value + half)


def by_kind(marks: Iterable[dict[str, Any]]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = defaultdict(list)
    for one in marks:
        found[one["kind"]].append(one["correct"])
    return dict(sorted(found.items()))


def mean_of_marks(marks: Iterable[dict[str, Any]]) -> tuple[float, float, float]:
    return mean_of(list(by_kind(marks).values()))


def spread(items: list[Any], count: int) -> list[Any]:
    taken = min(count, len(items))
    return [items[(2 * index + 1) * len(items) // (2 * taken)] for index in range(taken)]


class Recomputed:
    """The figures of a run with one source of questions, one teacher, and no online iterations."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.steps = list({row["step"]: row for row in lines(run / "metrics.jsonl")}.values())
        self.marks = {
            name: {one["id"]: one for one in json.loads((run / "evaluation" / f"{name}.json").read_text())["marks"]}
            for name in MODELS
        }
        self.stages, self.rows = [], dict[tuple[int, int], dict[str, Any]]()
        for folder in sorted((run / "rollouts").iterdir()):
            self.stages.append(json.loads((folder / "manifest.json").read_text())["made_by"])
            for shard in sorted(folder.glob("*.parquet")):
                for row in pq.read_table(shard).to_pylist():
                    self.rows[row["stage"], row["position"]] = row
        self.config = yaml.safe_load((run / "config.yaml").read_text())
        self.events = lines(run / "events.jsonl")
        self.summary = json.loads((run / "summary.json").read_text())

    def result(self) -> list[str]:
        before, after, teacher = (self._mean(name) for name in MODELS)
        paired = self._paired()
        return [
            f"{percent(before[0])} ({100 * before[1]:.1f}–{100 * before[2]:.1f})",
            f"{percent(after[0])} ({100 * after[1]:.1f}–{100 * after[2]:.1f})",
            f"on {len(self.marks['teacher'])} held-out questions",
            f"its teacher has {percent(teacher[0])}.",
            f"{100 * abs(after[0] - before[0]):.1f} points (95 % interval {paired}, paired over the same questions)",
            *(f"95 % interval {100 * low:.1f}–{100 * high:.1f}" for _, low, high in (before, after, teacher)),
            *self._way(before[0], after[0], teacher[0]),
            *self._chosen(),
        ]

    def _chosen(self) -> list[str]:
        """With learner.keep=best: on which questions the student was chosen, and how it did on the others."""
        files = (self.run / "students").glob("step-*.json")
        ids = {one["id"] for file in files for one in json.loads(file.read_text())["marks"]}
        if self.config["learner"]["keep"] == "last":
            return []
        before, after = (
            self._interval([one for one in self.marks[name].values() if one["id"] not in ids]).partition(" (")[0]
            for name in ("student_before", "student_after")
        )
        others = len(self.marks["teacher"]) - len(ids)
        return [
            f"{len(ids)} of these questions also chose",
            f"on the {others} others it went from {before} to {after}.",
        ]

    def _way(self, before: float, after: float, teacher: float) -> list[str]:
        low, _, _ = self._paired().partition(" to ")
        share = (after - before) / (teacher - before)
        return [f"That is {100 * share:.0f} % of the way to its teacher."] if float(low) > 0 and share < 1 else []

    def accuracy(self) -> list[str]:
        kinds, found = self._kinds("student_after"), []
        for kind in kinds:
            counts = [self._kinds(name)[kind] for name in MODELS]
            rates = [rate(sum(right), len(right)) for right in counts]
            change = 100 * (sum(counts[1]) / len(counts[1]) - sum(counts[0]) / len(counts[0]))
            found.append(" ".join([kind, *rates, f"{change:+.1f} ({self._paired(kind)})", str(len(counts[1]))]))
        means = [self._mean(name) for name in MODELS]
        rates = [f"{percent(value)} ({100 * low:.1f}–{100 * high:.1f})" for value, low, high in means]
        of_all = f"{100 * (means[1][0] - means[0][0]):+.1f} ({self._paired()})"
        cut = {name: [one["finish"] == "length" for one in marks.values()] for name, marks in self.marks.items()}
        shares = [f"{name.replace('_', ' ')} {percent(sum(of) / len(of))}" for name, of in cut.items() if any(of)]
        limit = str(self.config["evaluation"]["max_tokens"])
        return [*found, " ".join(["all kinds (mean)", *rates, of_all, str(len(cut["teacher"]))]), *shares, limit]

    def sources(self) -> list[str]:
        found = [f"All {self._questions():,} training questions come from one source:"]
        found.append(f"The {len(self.marks['teacher'])} held-out questions come from")
        for split in ("train", "held_out"):
            of, digest = self.config["data"][split], self.summary[split]["digest"][:12]
            found.append(f"{of['path']} (licence: {of['license'] or 'not stated'}; digest {digest} )")
        return found

    def stages_(self) -> list[str]:
        found = []
        for number, noted in enumerate(self.stages):
            answers = self._answers(number)
            by = {source: [one for one in answers if one["source"] == source] for source in ("teacher", "student")}
            cut = (percent(sum(one["finish"] == "length" for one in of) / len(of)) for of in by.values())
            right = (percent(sum(one["accuracy"] for one in of) / len(of)) for of in by.values())
            tokens = sum(len(one["token_ids"]) for one in answers)
            aside, kinds = sum(noted["set_aside"].values()), noted["set_aside"].items()
            mass = float(f"{100 * noted['tail_mass_sum'] / noted['tokens']:.2g}")
            cells = [number, percent(noted["ratio"]), percent(noted["sparsity"], 3)]
            cells += [sum(stage == number for stage, _ in self.rows)]
            cells += [f"{aside}" + (f" ({', '.join(f'{kind} {count}' for kind, count in kinds)})" if aside else "")]
            cells += [
                f"{noted['seconds']:.1f}",
                f"{tokens / noted['seconds']:,.0f}",
                f"{len(answers) + noted['unjudged']:,}",
            ]
            cells += [noted["unjudged"], noted["empty"], ", ".join(cut), *right, f"{mass:.15g} %"]
            found.append(" ".join([*map(str, cells), noted["teacher_digest"][:12]]))
        seconds = sum(noted["seconds"] for noted in self.stages)
        tokens = sum(len(one["token_ids"]) for one in self._answers())
        aside = sum(sum(noted["set_aside"].values()) for noted in self.stages)
        total = [
            f"{len(self.rows):,}",
            aside,
            f"{seconds:.1f}",
            f"{tokens / seconds:,.0f}",
            f"{len(self._answers()) + sum(noted['unjudged'] for noted in self.stages):,}",
        ]
        total += [sum(noted[name] for noted in self.stages) for name in ("unjudged", "empty")]
        counts = {name: sum(noted[f"defused_{name}"] for noted in self.stages) for name in ("answers", "questions")}
        if parts := [f"{count} {name}" for name, count in counts.items() if count]:
            found.append(f"all stages: {' and '.join(parts)} with tags")
        found.append(f"sampled at temperature {self.config['rollout']['sampling']['temperature']:g} to training")
        return [*found, " ".join(["all", *map(str, total)])]

    def learning(self) -> list[str]:
        names, together = WATCHED, self._instabilities()
        odd = {field: self.outliers(field) for field in names}
        found, recovered = list[str](), 0
        for steps in together:
            peaks = {
                field: max(of, key=lambda one: abs(one[1]))
                for field in names
                if (of := self._within(odd[field], steps))
            }
            several = len(steps) > 1
            said = ", ".join(
                f"{names[field]} {'rose' if value > of else 'fell'} to {value:.3g}"
                f"{f' at step {at}' if several else ''} ({of:.3g})"
                for field, (at, value, of) in peaks.items()
            )
            when = f"Between steps {steps[0]} and {steps[-1]}" if several else f"Step {steps[0]}"
            recovery = self._recovery(steps[-1], peaks, names)
            found += [f"{when}: {said}. {recovery}"] if len(found) < 10 else []
            recovered += not recovery
        if together and recovered == len(together):
            found.append("In the five steps after each, no value stayed above twice that median.")
        for field in names:
            steps = [step for step, *_ in odd[field]]
            usual = max(abs(row[field]) for row in self.steps if row["step"] not in steps)
            by_size = sorted(odd[field], key=lambda one: -abs(one[1]))
            far = [f"step {step} ({value:.3g})" for step, value, _ in by_size if abs(value) > 1.1 * usual]
            more = [f"and {len(far) - 5} smaller"] if len(far) > 5 else []
            found += [" ".join([", ".join(far[:5]), *more])] if far else []
        weights = [str(self.config["learner"][name]) for name in ("policy_weight", "kl_beta", "jsd_weight")]
        found.append(f"here they are {weights[0]}, {weights[1]} and {weights[2]}.")
        limit, norms = self.config["learner"]["gradient_clipping"], [row["grad_norm"] for row in self.steps]
        found.append(f"Estimated (learner.kl_estimator={self.config['learner']['kl_estimator']}) on the answers")
        found.append(f"before it is clipped to {limit} (learner.gradient_clipping, dashed); clipped on")
        found.append(f"{sum(norm > limit for norm in norms)} of {len(norms)} steps.")
        found.append(f"is at most {max(row['jsd_error_bound'] for row in self.steps):#.3g} nats more")
        skipped = lines(self.run / "skipped.jsonl")
        return found + self._course() + [f"Step {one['step']} was skipped: {one['reason']}." for one in skipped]

    def _instabilities(self) -> list[list[int]]:
        together: list[list[int]] = []
        for step in sorted({step for field in WATCHED for step, *_ in self.outliers(field)}):
            if together and step - together[-1][-1] <= 5:
                together[-1].append(step)
            else:
                together.append([step])
        return together

    def _recovery(self, last: int, peaks: dict[str, tuple[int, float, float]], names: dict[str, str]) -> str:
        [place] = [at for at, row in enumerate(self.steps) if row["step"] == last]
        if not (after := self.steps[place + 1 : place + 6]):
            return "No step followed that could tell whether it recovered."
        high = [
            names[field]
            for field, (*_, of) in peaks.items()
            if min(median(abs(row[field]) for row in after), abs(after[-1][field])) > 2 * abs(of)
        ]
        told = f"It had not recovered in the next steps: {', '.join(high)} mostly stayed, and ended, "
        told += "above twice the usual."
        return told if high else ""

    def _course(self) -> list[str]:
        """Of the questions that were asked on the way, by the files of the students in between."""
        files = [(int(file.stem.split("-")[1]), file) for file in (self.run / "students").glob("step-*.json")]
        if not files:
            return []
        on_the_way = {step: json.loads(file.read_text())["marks"] for step, file in sorted(files)}
        ids = {one["id"] for marks in on_the_way.values() for one in marks}
        before, after = (
            [one for one in self.marks[name].values() if one["id"] in ids]
            for name in ("student_before", "student_after")
        )
        every, last = len(self.marks["teacher"]), self.steps[-1]["step"]
        kept = self.kept(on_the_way)
        after = on_the_way[last] if kept else after
        which = f" (of {every}, which is why the accuracy above differs)" if len(ids) < every else ""
        asked = f"on the same {len(ids)} held-out questions each time{which}"
        found = [
            f"with its 95 % interval, {asked}: {self._interval(before)}",
            f"before training (step 0), {self._interval(after)} after step {last}.",
        ]
        if kept:
            others = [
                self._interval([one for one in self.marks[name].values() if one["id"] not in ids])
                for name in ("student_before", "student_after")
            ]
            found.append(f"The result is the student of step {kept}, the best of {len(on_the_way)} on these {len(ids)}")
            found.append(f"The {every - len(ids)} other held-out questions took no part in the choice: on them the")
            found.append(f"accuracy went from {others[0]} to {others[1]}.")
        return found

    def kept(self, on_the_way: dict[int, list[dict[str, Any]]]) -> int | None:
        """The step whose student has the highest accuracy, the last of several; None with learner.keep=last."""
        if self.config["learner"]["keep"] == "last":
            return None

        return max(on_the_way, key=lambda step: (mean_of_marks(on_the_way[step])[0], step))

    @staticmethod
    def _interval(marks: list[dict[str, Any]]) -> str:
        value, low, high = mean_of_marks(marks)
        return f"{percent(value)} ({100 * low:.1f}–{100 * high:.1f})"

    @staticmethod
    def _within(outliers: list[tuple[int, float, float]], steps: list[int]) -> list[tuple[int, float, float]]:
        return [one for one in outliers if steps[0] <= one[0] <= steps[-1]]

    def judge(self) -> list[str]:
        found = []
        for number in range(len(self.stages)):
            marks = [(one["accuracy"], one["by_rule"]) for one in self._answers(number)]
            same = sum(verdict == rule for verdict, rule in marks) / len(marks)
            judge, rule = (sum(of) / len(marks) for of in zip(*marks, strict=True))
            found.append(" ".join([f"{number} {len(marks):,}", *(percent(of, 2) for of in (same, judge, rule))]))
        for author in ("teacher", "student", "all"):
            own = [(one["accuracy"], one["by_rule"]) for one in self._answers() if author in (one["source"], "all")]
            n, judge, rule = len(own), sum(one for one, _ in own), sum(one for _, one in own)
            rewarded, denied = own.count((1, 0)), own.count((0, 1))
            rates = [rate(count, n) for count in (n - rewarded - denied, judge, rule)]
            found.append(" ".join([f"{author} {n:,}", *rates, f"{rewarded:,} {denied:,}"]))
            if author != "all":
                found.append(
                    f"The judge calls {percent(judge / n)} of the {author}’s answers right, the rule "
                    f"{percent(rule / n)}: by the rule, {rewarded:,} of {n - rule:,} wrong answers were rewarded as "
                    f"right, and {denied:,} of {rule:,} right ones as wrong."
                )
        marks = [(one["accuracy"], one["by_rule"]) for one in self._answers()]
        unjudged = sum(noted["unjudged"] for noted in self.stages)
        agreed = sum(verdict == rule for verdict, rule in marks) / len(marks)
        found.append(f"Judge and rule say the same on {percent(agreed, 2)} of the judged answers.")
        return [*found, f"{len(marks):,} answers judged, {unjudged} unjudged."]

    def examples(self) -> list[str]:
        count = self.config["evaluation"]["examples"]
        rewards = {(row["stage"], row["position"]): row for row in lines(self.run / "rewards.jsonl")}
        looked_at = [rewards[place] for place in spread(sorted(rewards), 200)]
        ranked = [self._outranked(row) for row in looked_at]
        ranks = [rank for rank, _ in ranked]
        counts = Counter(reason for rank, reasons in ranked for reason in reasons if rank)
        shown = spread(list(zip(looked_at, ranks, strict=True)), count)
        if not any(rank == "above" for _, rank in shown):
            shown += [one for one in zip(looked_at, ranks, strict=True) if one[1] == "above"][:1]
        mixed = sum(rank is not None for rank in ranks)
        disputed = sum(
            any(one["accuracy"] != one["by_rule"] for one in self._group(row)["answers"]) for row in looked_at
        )
        idle = sum(rank == "level" and not any(row["advantages"]) for row, rank in zip(looked_at, ranks, strict=True))
        reinforced = sum(self._reinforced(row) for row in looked_at)
        found = [
            f"{len(looked_at)} groups of the whole run were looked at: {mixed} have a wrong and a right answer",
            f"In {ranks.count('above')} of these a wrong answer has a larger advantage than a right one, in "
            f"{ranks.count('level')} more the same advantage ({idle} of them harmless: all advantages are 0).",
            f"In {reinforced} a wrong answer has a positive advantage",
            f"reward.alpha={self.config['reward']['alpha']:g}",
            f"differ on an answer of {disputed} groups.",
            *(f"({count})" for count in counts.values()),
        ]
        for row, _ in shown:
            group = self._group(row)
            ratio = f"{100 * group['mask_ratio']:.0f} %"
            found.append(f"{group['id']} · kind “{group['kind']}” · stage {row['stage']} · mask ratio {ratio}")
            apart = max(row["divergences"]) - min(row["divergences"])
            rank, reasons = self._outranked(row)
            if rank and "distillation" in reasons and apart < 0.001:
                found.append(f"The answers’ JSDs are only {apart:.1g} nats apart, which R_distill stretches")
            cells = Counter[tuple[str, str, str]]()
            for place, one in enumerate(group["answers"]):
                marks = " ".join("✓" if right else "✗" for right in (one["accuracy"], one["by_rule"]))
                marks += " ≠ judge" if one["accuracy"] != one["by_rule"] else ""
                divergence = row["divergences"][place]
                numbers = f"{row['advantages'][place]:+.2f} {row['distillation'][place]:.2f}"
                numbers += f" {divergence:#.3g}" if divergence else " 0"
                verdict, text = (" ".join(one[name].split()) for name in ("verdict", "text"))
                cells[one["source"], f"{text or '(empty)'} {one['accuracy']} {marks} {numbers}", verdict] += 1
            for (source, words, verdict), of in cells.items():
                found += [f"{source} × {of} {words}" if of > 1 else f"{source} {words}", verdict]
        before, after, teacher = (self.marks[name] for name in MODELS)
        changed = [
            [id for id in before if (before[id]["correct"], after[id]["correct"]) == change]
            for change in ((False, True), (True, False))
        ]
        improved, regressed = map(len, changed)
        down = min(regressed, max(-(-count // 3), count - improved))
        up = min(improved, count - down)
        found.append(f"{improved} of {len(before)} improved, {regressed} regressed.")
        found.append(f"Shown are {up} that improved and {down} that regressed")
        changed = [sorted(ids, key=lambda id: before[id]["kind"]) for ids in changed]
        for id in [*spread(changed[0], up), *spread(changed[1], down)]:
            found.append(f"{id} · kind “{before[id]['kind']}” · {'improved' if after[id]['correct'] else 'regressed'}")
            found.append(f"teacher {' '.join(teacher[id]['answer'].split())} {'✓' if teacher[id]['correct'] else '✗'}")
        return found

    def run_(self) -> list[str]:
        journal = json.loads((self.run / "journal.json").read_text())
        skipped, left_out = (lines(self.run / f"{name}.jsonl") for name in ("skipped", "left_out"))
        seconds = sum(row["seconds"] for row in self.steps)
        learned = sum(row["tokens"] for row in self.steps)
        wall = journal["wall_seconds"]
        phases = dict(journal["phases"])
        if (rest := wall - sum(phases.values())) > 0.005 * wall:
            phases["everything else"] = rest
        found = [f"{name} {told(of)} {100 * of / sum(phases.values()):.0f} %" for name, of in phases.items()]
        found += [f"wall time {told(wall)}", f"{len(self.steps)} in {told(seconds)}", f"{len(skipped)} (loss or"]
        found += [f"{len(left_out)} (quarantine.jsonl has", f"groups learned from {len(self.rows):,}"]
        found += [f"answer tokens learned from {sum(row['answer_tokens'] for row in self.steps):,}"]
        found += [f"{learned:,}, prompts once; {learned / seconds:,.0f} per second"]
        found += [self.events[0]["text"], f"seed {self.config['run']['seed']}"]
        if odd := len(self._instabilities()):
            found.append(f"there were {odd} instabilities:" if odd > 1 else "there was one instability:")
        calls = [event for event in self.events if event["kind"] in ("start", "code", "nodes", "end")]
        for event in calls:
            clock = event["time"].replace("T", " ").removesuffix("+00:00")
            words = {"start": f"{clock} {event['text']}", "code": event["text"][:12]}
            found.append(words.get(event["kind"], event["text"]))
        saved = [f"step {one['step']} at {one['time'][11:19]}" for one in self.events if one["kind"] == "checkpoint"]
        found.append(", ".join(saved))
        found += [f"{len(saved)}, from {saved[0]} to {saved[-1]}"] if len(saved) > 8 else []
        kept = self.config["learner"]["checkpoints_kept"]
        found.append(f"Of these the last {kept} are kept (learner.checkpoints_kept={kept}). Exported: step")
        files = (self.run / "students").glob("step-*.json")
        measured = {int(file.stem.split("-")[1]): json.loads(file.read_text())["marks"] for file in files}
        exported = self.kept(measured) if measured else None
        found.append(f"step {exported or self.steps[-1]['step']} (learner.keep={'best' if exported else 'last'}).")
        again = sum(step < self.steps[-1]["step"] for step in measured)
        found.append(f"Of the learner’s {told(phases['learner'])} its steps took {told(seconds)}.")
        found += [f"started it anew {again} time{'s' if again > 1 else ''}."] if again > 0 else []
        alike: dict[str, list[Any]] = defaultdict(list)
        for one in self.events:
            if one["kind"] == "warning":
                alike[re.sub(r"\d", "", one["text"])].append(one)
        for own in alike.values():
            more = f" (and {len(own) - 1} more like it, the last at {own[-1]['time'][11:19]})" if len(own) > 1 else ""
            found.append(f"{own[0]['time'][11:19]} {own[0]['text']}{more}")
        work: dict[str, Counter[str]] = defaultdict(Counter)
        for name, of_call in (item for noted in self.stages for item in noted["calls"].items()):
            work[name].update(of_call)
        making = sum(noted["seconds"] for noted in self.stages)
        held = {name: (self.config[name]["replicas"], making) for name in ("teacher", "student")}
        held["learner"] = (self.config["learner"]["workers"], phases["learner"])
        found.append(f"Answers were made in {told(making)} of wall time.")
        found += [f"{name} {of} × {told(time)} = {of * time / 3600:.3f} h" for name, (of, time) in held.items()]
        tasks = {"answer": "writes answers", "score": "scores answers", "judge": "marks answers"}
        for name, one in work.items():
            role, task = name.split(".")
            spoken = f"{one['tokens']:,} {one['tokens'] / making:,.0f}" if one["tokens"] else "– –"
            counts = f"{one['calls']} {one['questions']:,} {told(one['seconds'])}"
            found.append(f"{role} {tasks[task]} {counts} {spoken}")
        for one in journal["agreement"].values():
            found.append(f"stage {one['stage']}: {one['mean_gap']:.2g} nats per token apart at most (of {one['rows']} ")
            found += [one["row"], f"{one['token_gap']:.2g} at one token", f"{one['bound']:g} is allowed"]
        versions = [f"{name} {version}" for name, version in self.summary["versions"].items()]
        models = [self.summary["student"], *self.summary["teachers"]]
        digests = [one["digest"][:12] for one in (*models, self.summary["train"], self.summary["held_out"])]
        sizes = [f"{one['parameters'] / 1e6:.3g} M" for one in models]
        checkpoints = [one["checkpoint"] for one in models]
        return [
            *found,
            *versions,
            *digests,
            *sizes,
            *checkpoints,
            self.summary["dir"],
            journal["started"].replace("T", " "),
        ]

    def quarantined(self) -> list[str]:
        rows = Counter(row["kind"] for row in lines(self.run / "quarantine.jsonl"))
        aside = sum(sum(noted["set_aside"].values()) for noted in self.stages)
        of_data = rows.total() - aside
        told = [f"{of_data} rows of the data were set aside"] if of_data else []
        told += [f"{aside} questions were dropped while"] if aside else []
        turned = self._turned()
        told += [f"{of_data} set aside; pictures: {turned} turned upright"] if turned else []
        return [
            *told,
            f"training questions {self._questions():,} ({of_data} set aside",
            f"{len(self.marks['teacher'])} (",
        ]

    def _questions(self) -> int:
        return len(self.rows) + sum(sum(noted["set_aside"].values()) for noted in self.stages)

    def _turned(self) -> int:
        """Pictures of usable questions whose EXIF data say that they are not upright."""
        source = Path(self.config["data"]["train"]["path"])
        aside = {row["row"] for row in lines(self.run / "quarantine.jsonl")}
        found = 0
        for number, line in enumerate(source.read_text().splitlines(), 1):
            if f"{source}:{number}" not in aside:
                with Image.open(source.parent / json.loads(line)["image"]) as image:
                    found += image.getexif().get(0x0112, 1) != 1
        return found

    def _kinds(self, model: str) -> dict[str, list[bool]]:
        return by_kind(self.marks[model].values())

    def _mean(self, model: str) -> tuple[float, float, float]:
        return mean_of_marks(self.marks[model].values())

    def _paired(self, *kinds: str) -> str:
        """The bounds of the change, in points; kinds: without any, all."""
        total, variance, kinds = 0.0, 0.0, kinds or tuple(self._kinds("student_after"))
        for kind in kinds:
            ids = [id for id, one in self.marks["student_after"].items() if one["kind"] == kind]
            pairs = [
                (self.marks["student_before"][id]["correct"], self.marks["student_after"][id]["correct"]) for id in ids
            ]
            up, down, n = pairs.count((False, True)), pairs.count((True, False)), len(pairs)
            total += (up - down) / n
            p, q = (up + 0.5) / (n + 2), (down + 0.5) / (n + 2)
            variance += (p + q - (p - q) ** 2) / (n + 2)
        value, half = total / len(kinds), 1.959964 * math.sqrt(variance) / len(kinds)
        return f"{100 * max(-1, value - half):+.1f} to {100 * min(1, value + half):+.1f}"

    def _answers(self, stage: int | None = None) -> list[dict[str, Any]]:
        places = [place for place in self.rows if stage in (None, place[0])]
        return [answer for place in places for answer in self._of(self.rows[place])["answers"]]

    def _group(self, rewards: dict[str, Any]) -> dict[str, Any]:
        return self._of(self.rows[rewards["stage"], rewards["position"]])

    @staticmethod
    def _of(row: dict[str, Any]) -> dict[str, Any]:
        """The row, its answers with the exact rule's mark; labels of easy-vqa have no articles or signs."""
        for one in row["answers"]:
            words = [word.strip(".,;:!?\"'()*_") for word in one["text"].casefold().split()]
            kept = [word for word in words if word and word not in ("a", "an", "the")]
            one["by_rule"] = int(" ".join(kept) == row["label"])
        return row

    def _outranked(self, rewards: dict[str, Any]) -> tuple[str | None, set[str]]:
        """(rank, reasons); rank None: not both a wrong and a right answer. With reward.cut_answers=judge."""
        answers, gaps = self._group(rewards)["answers"], list[tuple[float, str]]()
        rule = [one["by_rule"] for one in answers]
        marks = rule if len(set(rule)) > 1 else [one["accuracy"] for one in answers]
        for wrong, right in ((i, j) for i, a in enumerate(marks) for j, b in enumerate(marks) if b and not a):
            mistaken = answers[wrong]["accuracy"] >= answers[right]["accuracy"]
            said = "rewarded" if answers[wrong]["accuracy"] else "denied"
            gap = rewards["advantages"][wrong] - rewards["advantages"][right]
            gaps.append((gap, said if mistaken else "distillation"))
        if not gaps:
            return None, set()
        above = {reason for gap, reason in gaps if gap > 1e-3}
        level = {reason for gap, reason in gaps if gap > -1e-3}
        return ("above", above) if above else ("level", level) if level else ("", set())

    def _reinforced(self, rewards: dict[str, Any]) -> bool:
        answers = self._group(rewards)["answers"]
        rule = [one["by_rule"] for one in answers]
        marks = rule if len(set(rule)) > 1 else [one["accuracy"] for one in answers]
        wrong = [of > 1e-3 for mark, of in zip(marks, rewards["advantages"], strict=True) if not mark]
        return any(marks) and any(wrong)

    def outliers(self, field: str) -> list[tuple[int, float, float]]:
        """(step, value, median around it)"""
        values = [row[field] for row in self.steps]
        half = min(101, max(5, len(values) // 20)) // 2
        around = [median(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]
        away = [abs(value - of) for value, of in zip(values, around, strict=True)]
        usual, far = median(map(abs, values)), median(away)
        found = [
            (distance, row["step"], value, of)
            for distance, row, value, of in zip(away, self.steps, values, around, strict=True)
            if usual and distance > 3 * abs(of) and distance > 10 * far and distance > usual / 2
        ]
        most = max(3, len(values) // 10)
        return sorted(one[1:] for one in sorted(found, reverse=True)[:most])
