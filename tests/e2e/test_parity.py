import dataclasses
import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from masters_ray.config import Engine, MaskScope, Sampling
from masters_ray.data import decode
from masters_ray.data.pictures import encoded as bytes_of
from masters_ray.families import parts_in
from masters_ray.kernels.packing import pack
from masters_ray.method.masks import Masker
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.records import Answer, Picture, Problem
from masters_ray.replicas.spawn import Replicas
from tests.builders import checkpoint, group, scored
from tests.conftest import PAIR
from tests.e2e.exact import Drawn, ExactActor, exact_spec, own, score, top
from tests.e2e.runs import long_form
from tests.tensors import prompt_of

pytestmark = pytest.mark.e2e
SAMPLING = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def problems(questions: list[Problem]) -> list[Problem]:
    """Real pictures, one of them also large and oblong, so that it is resized and expands to more tokens."""
    first, encoded = questions[0], io.BytesIO()
    decode(first.pictures[0]).resize((200, 120)).save(encoded, "PNG")
    return [*questions, dataclasses.replace(first, id="large", pictures=(Picture(data=encoded.getvalue()),))]


@pytest.fixture(scope="module")
def pools(local_ray: None, toy_engine: Engine) -> Iterator[Replicas]:
    both = [exact_spec(PAIR / "teacher", toy_engine, "teacher"), exact_spec(PAIR / "student", toy_engine, "student")]
    with Replicas(both, ExactActor) as replicas:
        yield replicas


def masked_checkpoint(folder: Path, scope: MaskScope) -> Path:
    """The teacher's checkpoint, masked at 0.2 and saved as an ordinary directory."""
    masker = Masker(weights.architecture(PAIR / "teacher"), frozenset(parts_in(scope)), [0.2])
    return checkpoint(folder, "teacher", tensors=lambda held: held.update(masker.stream(list(held.items()), 0.2, [])))


def learner_logprobs(checkpoint: Path, problems: list[Problem], answers: Drawn) -> list[list[np.ndarray]]:
    """What the learner's model, packed as in training, gives to each answer's tokens."""
    model, chat = hf.load_model(checkpoint, "float32"), Chat(checkpoint)
    pairs = zip(problems, answers, strict=True)
    rows = [group([scored(answer.token_ids) for answer in drawn], of=problem) for problem, drawn in pairs]
    batch = pack(rows, [prompt_of(model, chat, one) for one in problems], pad_id=0)
    with torch.no_grad():
        own, *_ = hf.PackedStudent(model, logits_bytes=2**26)(batch)
    pieces = iter(own.split(list(map(len, tokens(answers)))))
    return [[next(pieces).numpy() for _ in drawn] for drawn in answers]


def largest_difference(ones: list[list[np.ndarray]], others: list[list[np.ndarray]]) -> float:
    pairs = list(zip(itertools.chain(*ones), itertools.chain(*others), strict=True))
    assert len({float(one[0]) for one, _ in pairs}) > 3, "the log-probabilities must differ between answers"
    return max(float(np.abs(one - other).max()) for one, other in pairs)


def test_the_students_engine_and_the_learner_agree(pools: Replicas, problems: list[Problem]) -> None:
    student, seeds = pools.pools["student"], list(range(len(problems)))
    sampling = Sampling(max_tokens=6, temperature=2.0, top_p=1.0, top_k=-1)
    drawn: Drawn = student.call("answer", problems, sampling, 3, seeds).answers
    assert len(set(map(len, tokens(drawn)))) > 1
    ends = {(answer.finish, answer.token_ids[-1] == 2) for one in drawn for answer in one}
    assert ends == {("stop", True), ("length", False)}, "cut answers have no end-of-turn token"
    engine = own(score(student, problems, drawn), drawn)
    assert largest_difference(engine, learner_logprobs(PAIR / "student", problems, drawn)) < 1e-3


def tokens(answers: Drawn) -> list[tuple[int, ...]]:
    return [one.token_ids for drawn in answers for one in drawn]


EVERYTHING = MaskScope(language=True, vision=True, projector=True, embeddings=True, lm_head=True)


@pytest.mark.parametrize(("scope", "tensor_parallel"), [pytest.param(MaskScope(), 1, marks=long_form), (EVERYTHING, 2)])
def test_the_masked_engine_equals_the_masked_checkpoint_loaded_plainly(
    scope: MaskScope, tensor_parallel: int, local_ray: None, toy_engine: Engine, problems: list[Problem], tmp_path: Path
) -> None:
    """An engine fuses the checkpoint's matrices, and each of several workers holds a shard of them: the mask must be
    that of the checkpoint's own, as the engine starts and as it is masked again."""
    seeds = list(range(len(problems)))
    plain = masked_checkpoint(tmp_path / "masked", scope)
    specs = [
        exact_spec(PAIR / "teacher", toy_engine, "teacher", scope, tensor_parallel),
        exact_spec(plain, toy_engine, "student"),
    ]
    with Replicas(specs, ExactActor) as both:
        teacher, student = both.pools["teacher"], both.pools["student"]
        written = student.call("answer", problems, SAMPLING, 2, seeds).answers
        greedy, drawn = student.call("answer_greedily", problems, 6), tokens(written)
        loaded = own(score(student, problems, written), written)
        for ratios in ([0.2], [0.0, 0.2]):  # as it was started, and masked again after another ratio
            for ratio in ratios:
                assert teacher.mask(ratio)[0].sparsity == pytest.approx(ratio, abs=1e-4)
                difference = largest_difference(own(score(teacher, problems, written), written), loaded)
                assert difference < 1e-5 if ratio else difference > 1e-2
            assert drawn == tokens(teacher.call("answer", problems, SAMPLING, 2, seeds).answers)
            assert greedy == teacher.call("answer_greedily", problems, 6)


def test_answers_depend_on_their_seed_and_not_on_their_company(pools: Replicas, problems: list[Problem]) -> None:
    """Calls from several threads share an engine."""
    student = pools.pools["student"]
    hot = Sampling(max_tokens=6, temperature=2.0)
    seeds = list(range(len(problems)))
    together = student.call("answer", problems, hot, 2, seeds).answers
    with ThreadPoolExecutor(len(problems)) as threads:
        apart = threads.map(lambda seed: student.call("answer", [problems[seed]], hot, 2, [seed]), seeds)
        assert [one.answers[0] for one in apart] == together


def test_an_answer_is_scored_while_it_is_written_as_it_would_be_afterwards(
    pools: Replicas, problems: list[Problem]
) -> None:
    teacher = pools.pools["teacher"]
    teacher.mask(0.1)
    seeds = list(range(len(problems)))
    written = teacher.call("answer", problems, Sampling(max_tokens=6, temperature=2.0), 3, seeds)
    on_the_way, afterwards = written.scored, score(teacher, problems, written.answers)
    assert on_the_way.prompt_tokens == afterwards.prompt_tokens
    assert np.array_equal(top(on_the_way, "top_ids")[:, :4], top(afterwards, "top_ids")[:, :4])
    np.testing.assert_allclose(top(on_the_way, "top_logprobs"), top(afterwards, "top_logprobs"), atol=1e-4)
    assert largest_difference(own(on_the_way, written.answers), own(afterwards, written.answers)) < 1e-4


def too_long(of: Problem) -> Problem:
    return Problem(id="long", question="what " * 3000, label="x", pictures=of.pictures)


def test_how_hard_a_question_is_comes_from_the_unmasked_teacher_and_is_told_for_each(
    pools: Replicas, problems: list[Problem]
) -> None:
    """By the likelihood of its label, as the learner would give it, and by a number if the teacher says one; a question
    that the engine refuses has neither, and the others keep their places."""
    teacher, chat = pools.pools["teacher"], Chat(PAIR / "teacher")
    teacher.mask(0.0)
    asked = [problems[0], too_long(problems[0]), *problems[1:]]
    likelihoods = teacher.call("label_likelihoods", asked)
    assert likelihoods.pop(1) is None
    labels: Drawn = [
        (Answer(source="teacher", text=one.label, token_ids=chat.answer_ids(one.label), finish="length"),)
        for one in problems
    ]
    assert max(len(one.token_ids) for [one] in labels) > 1, "a mean over several tokens"
    expected = [float(one.mean()) for [one] in learner_logprobs(PAIR / "teacher", problems, labels)]
    assert likelihoods == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 1e-2
    ratings = teacher.call("rate", asked)
    assert len(ratings) == len(asked) and ratings[1] is None
    assert all(one is None or 1 <= one <= 10 for one in ratings)


def test_questions_that_cannot_be_asked_are_refused_with_a_reason_and_the_others_are_answered(
    pools: Replicas, problems: list[Problem]
) -> None:
    student = pools.pools["student"]
    torn, lost = (
        Problem(id="bad", question="?", label="x", pictures=(one,))
        for one in (Picture(data=bytes_of(problems[0].pictures[0])[:200]), Picture(path="/nowhere/picture.png"))
    )
    asked = [problems[0], too_long(problems[0]), torn, problems[1], lost]
    written = student.call("answer", asked, SAMPLING, 2, list(range(5)))
    refused = written.scored.refused
    assert {index: one.kind for index, one in refused.items()} == {1: "engine", 2: "picture", 4: "picture"}
    for index, reason in ((1, "maximum context length is 1024"), (2, "cannot be decoded"), (4, "does not exist")):
        assert reason in refused[index].reason
    first, *nothing, second, last = written.answers
    assert [first, second] == student.call("answer", problems[:2], SAMPLING, 2, [0, 3]).answers
    assert [*nothing, last] == [(), (), ()]
    scored = student.call("score", [torn, *problems[:2]], [[(5, 6)], [(5, 6), (7,)], [(10**6, 7)]])
    assert (scored.refused.keys(), [len(one) for one in scored.tokens.field("own")]) == ({0, 2}, [2, 1])
    assert "1000000 is out of vocabulary" in scored.refused[2].reason
    said, long, gone = student.call("answer_greedily", [problems[0], too_long(problems[0]), lost], 4)
    assert said == student.call("answer_greedily", problems[:1], 4)[0]
    assert (long.kind, gone.kind) == ("engine", "picture")
