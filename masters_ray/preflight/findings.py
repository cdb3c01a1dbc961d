"""What a check found, and what each check is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from masters_ray.errors import CheckError

Verdict = Literal["passed", "failed", "not done"]


class About(NamedTuple):
    what: str
    why: str


ABOUT: dict[str, About] = {
    "packing": About(
        "answers of one batch have the log-probs that each has alone",
        "layers that look further than attention mix answers: the student would learn from wrong numbers",
    ),
    "agreement": About(
        "engine and learner give the same tokens the same log-probs",
        "rewards and ratios compare the two; a picture, token or weight that they read differently spoils both",
    ),
    "pictures": About(
        "engine and learner read pictures alike",
        "a picture that is turned, resized or cut differently changes every log-prob after it",
    ),
    "remask": About(
        "a mask set, changed and set again gives the first scores, bit by bit",
        "later stages depend on it, and an engine that cannot do it stops the run after the first",
    ),
    "export": About(
        "the student is written with its own names and shapes and reads back the same",
        "otherwise everything is paid for before the trained student turns out not to load",
    ),
    "masks": About(
        "the mask changes the matrices that the family has, and no others",
        "a matrix that is missed, or one too many, is another method",
    ),
    "teacher": About(
        "the masked teacher in the engine is the masked checkpoint",
        "fused, sharded or turned matrices would be masked in other places",
    ),
    "judge": About(
        "the judge says right to planted right answers and wrong to wrong ones",
        "a judge that cannot tell them apart gives rewards that teach nothing",
    ),
    "checkpoints": About(
        "checkpoints are whole, of known families, and can be masked and trained",
        "a missing or packed weight is found by the first process that needs it, an hour later",
    ),
    "tokenizer": About(
        "teacher and student share their tokens",
        "their distributions are compared token by token",
    ),
    "template": About(
        "teacher and student make the same prompt of a question",
        "the teacher scores the student's answers after a prompt that the student has not seen",
    ),
    "vocabulary": About(
        "every token has a row in the embeddings of both models",
        "a token without a row ends the engine or the learner in the middle of a batch",
    ),
    "picture_size": About(
        "the processor cuts pictures as the model wants them",
        "otherwise tokens of a picture and its features do not match",
    ),
    "picture_tokens": About(
        "a prompt has one token for each picture, which is expanded once",
        "a picture expanded twice, or not at all, is read as something else without an error",
    ),
    "start_token": About("the start token stands once", "models answer worse after two, without an error"),
    "prompt": About(
        "engine and learner read the same prompt",
        "answers of one prompt would be learned after another",
    ),
    "end_token": About(
        "answers end with a token at which the engines stop",
        "otherwise every answer runs to the length limit",
    ),
    "data": About(
        "questions can be read and fill every stage",
        "a stage without questions, or with many set aside, stops the run",
    ),
    "disk": About("there is room for checkpoints and rollouts", "a full disk stops the run in the middle"),
    "memory": About("models and optimizer fit into the memory", "a process that runs out is killed after minutes"),
    "shm": About("/dev/shm has room for Ray's objects", "Ray falls back to a disk and becomes many times slower"),
    "ports": About("processes can listen on this machine", "workers and engines meet at ports"),
    "driver": About("the GPU's driver is new enough for the libraries", "they fail at their first kernel"),
    "compiler": About("a C compiler and Python.h are here", "Triton compiles its launcher on the first call"),
    "credentials": About(
        "places to read and write answer",
        "a refused address is found when the first shard is written",
    ),
    "reload": About(
        "an engine loads the exported student and scores as before",
        "the trained student is measured and used that way",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    name: str
    verdict: Verdict
    figure: str
    """What was measured, in words."""
    remedy: str = ""


def passed(name: str, figure: str) -> Finding:
    return Finding(name=name, verdict="passed", figure=figure)


def judged(name: str, good: bool, figure: str, remedy: str) -> Finding:
    """Returns a Finding that passed or failed; the remedy is for the latter."""
    return Finding(name=name, verdict="passed" if good else "failed", figure=figure, remedy="" if good else remedy)


def refuse_failed(findings: Sequence[Finding]) -> None:
    """Raises CheckError with every failed check: what it looks at, what it found, why it matters, the remedy."""
    failed = [one for one in findings if one.verdict == "failed"]
    if failed:
        told = [f"{one.name}: expected that {ABOUT[one.name].what}. {one.figure}. {one.remedy}" for one in failed]
        skip = " ".join(f"--skip {one.name}" for one in failed)
        raise CheckError("\n  ".join([f"{len(failed)} checks of this pair failed ({skip} goes on without):", *told]))
