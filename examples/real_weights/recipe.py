"""Every number that this pair depends on, in the toy's dataclasses; the manifest repeats them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from examples.toy.recipe import Name, Recipe, Shape, Stage


@dataclass(frozen=True, kw_only=True)
class RealShape(Shape):
    """The sizes of one Qwen2.5-VL, whose tower knows positions by their differences only."""

    sections: tuple[int, int, int] = (1, 3, 28)
    """Rotary frequencies, from fast to slow, that turn with a token's time, row and column. In text all three are the
    same, so that the shares are free; with Qwen2.5-VL's own the columns of a small picture would be too close to tell
    apart."""
    window: int = 256
    """Side in pixels of what the tower's attention sees at once: more than any picture that the processor lets
    through."""
    bias: float = 1.5
    """Standard deviation of the biases of queries and keys that the tower starts with: with the usual zeros all places
    of the ground look alike, and it does not learn where the shape is."""


@dataclass(frozen=True, kw_only=True)
class RealRecipe(Recipe):
    """The toy's recipe, with a projector that learns faster than what pretraining made, and without judging: verdicts
    of ten layers stay at chance for as many examples as a CPU can show them."""

    shape: RealShape
    projector_factor: float = 10.0
    """The projector is new and learns at so many times the rate of the language weights."""


SHAPE = RealShape(
    vision_hidden=128,
    vision_depth=4,
    vision_heads=4,
    vision_intermediate=256,
    deepstack=(),
    hidden=576,
    intermediate=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
)
"""SmolLM2-135M's language part, and a tower of a million parameters with heads of 32."""
TOWER = Stage(steps=1200, rate=1e-3, report_every=100)

TEACHER = RealRecipe(
    name="teacher",
    shape=SHAPE,
    tower=TOWER,
    judge=Stage(steps=0, rate=5e-5),
    language=Stage(steps=200, rate=5e-5, warmup=20, batch=16, judge_batch=0, report_every=25),
    held_out=100,
    weight_decay=0.0,
    checkpoint_every=50,
)

STUDENT = RealRecipe(
    name="student",
    shape=replace(SHAPE, layers=10),
    tower=TOWER,
    judge=Stage(steps=0, rate=5e-5),
    language=Stage(
        steps=400,
        rate=5e-5,
        warmup=20,
        floor=1.0,
        batch=16,
        judge_batch=0,
        target=0.62,
        band=0.08,
        report_every=10,
    ),
    held_out=100,
    weight_decay=0.0,
    checkpoint_every=50,
)

RECIPES: dict[Name, RealRecipe] = {"teacher": TEACHER, "student": STUDENT}
