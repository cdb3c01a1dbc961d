"""Every number that the toy pair depends on, in frozen dataclasses; the manifest repeats them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Name = Literal["teacher", "student"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one Qwen3-VL. Head sizes are the ones vLLM's attention on CPU takes (a multiple of 32)."""

    vision_hidden: int
    vision_depth: int
    vision_heads: int
    vision_intermediate: int
    deepstack: tuple[int, ...]
    """Vision layers whose output is added to the first language layers."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    patch: int = 8
    """Side of a vision patch in pixels; 2 x 2 patches make one image token."""
    grid: int = 8
    """Side of the learned position grid in patches."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One loop of gradient steps. Batches are numbers of examples; rates follow warm-up, then a cosine to ``floor``."""

    steps: int
    rate: float
    warmup: int = 50
    floor: float = 0.05
    """The last learning rate, as a share of ``rate``."""
    batch: int = 64
    """Picture examples a step."""
    judge_batch: int = 0
    """Judge examples a step."""
    target: float | None = None
    """Held-out accuracy to steer every kind to: the further above it, the less a kind is drawn. None: draw evenly."""
    band: float = 0.05
    """The stage ends once every kind is within so much of ``target``."""
    report_every: int = 100
    """Steps between two looks at held-out accuracy."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model of the pair is made: the vision tower alone, then everything else.

    ``tower`` learns colour, shape and place through linear heads that are thrown away. ``judge`` learns the judge
    prompts, and (``batch``) which labels a question may have: its labels have nothing to do with the picture.
    ``language`` learns to answer, with judge prompts to the end. The tower rests after its own stage.
    """

    name: Name
    shape: Shape
    tower: Stage
    judge: Stage
    language: Stage
    seed: int = 17
    held_out: int = 400
    """Training pictures (the last ones) never drawn, for the accuracy printed along the way."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest gradient norm."""
    checkpoint_every: int = 100
    copies: int = 2
    """Shifted and mirrored copies of each training picture that questions are asked about, beside itself."""

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name, in the order they run."""
        return {"tower": self.tower, "judge": self.judge, "language": self.language}

    def up_to(self, stage: str) -> dict[str, Any]:
        """What the result of ``stage`` depends on: everything but the later stages, as plain values."""
        known = asdict(self)
        names = list(self.stages)
        for later in names[names.index(stage) + 1 :]:
            del known[later]
        if stage == "tower":
            del known["copies"]
        return known

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe under another seed."""
        return replace(self, seed=seed)


TEACHER = Recipe(
    name="teacher",
    shape=Shape(
        vision_hidden=128,
        vision_depth=4,
        vision_heads=4,
        vision_intermediate=512,
        deepstack=(1,),
        hidden=256,
        intermediate=512,
        layers=5,
        heads=4,
        kv_heads=2,
        head_dim=64,
    ),
    tower=Stage(steps=1500, rate=1e-3, report_every=100),
    judge=Stage(steps=0, rate=5e-4),
    language=Stage(steps=700, rate=5e-4, judge_batch=12),
)

STUDENT = Recipe(
    name="student",
    shape=replace(
        TEACHER.shape,
        vision_hidden=96,
        vision_depth=3,
        vision_heads=3,
        vision_intermediate=384,
        hidden=128,
        intermediate=256,
        layers=3,
        head_dim=32,
    ),
    tower=Stage(steps=1500, rate=1e-3, report_every=100),
    judge=Stage(steps=1000, rate=1e-3, batch=16, judge_batch=32, floor=0.1),
    language=Stage(
        steps=800, rate=1e-4, warmup=20, floor=1.0, batch=32, judge_batch=16, target=0.62, band=0.08, report_every=2
    ),
)

RECIPES: dict[Name, Recipe] = {"teacher": TEACHER, "student": STUDENT}
