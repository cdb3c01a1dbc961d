"""Every number that this pair depends on, in the toy's dataclasses; the manifest repeats them."""

from __future__ import annotations

from dataclasses import replace

from masters_ray.toy.recipe import Name, Recipe, Shape, Stage

SHAPE = Shape(
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
PROJECTOR_FACTOR = 10.0
"""The projector is new and learns at so many times the rate of the language weights."""

TEACHER = Recipe(
    name="teacher",
    shape=SHAPE,
    tower=TOWER,
    judge=Stage(steps=0, rate=5e-5),
    language=Stage(steps=300, rate=5e-5, warmup=20, batch=16, judge_batch=2, report_every=50),
    held_out=100,
    weight_decay=0.0,
    checkpoint_every=50,
)

STUDENT = Recipe(
    name="student",
    shape=replace(SHAPE, layers=10),
    tower=TOWER,
    judge=Stage(steps=200, rate=1e-4, warmup=20, batch=0, judge_batch=8, report_every=50),
    language=Stage(
        steps=400,
        rate=5e-5,
        warmup=20,
        floor=1.0,
        batch=16,
        judge_batch=4,
        target=0.62,
        band=0.08,
        report_every=10,
    ),
    held_out=100,
    weight_decay=0.0,
    checkpoint_every=50,
)

RECIPES: dict[Name, Recipe] = {"teacher": TEACHER, "student": STUDENT}
