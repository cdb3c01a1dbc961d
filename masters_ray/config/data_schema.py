"""The section ``data``: sources of questions, their layouts, and the order of a run's questions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from masters_ray.config.fields import MISSING, ONE_OR_MORE, ConfigSection, KeyScope, Place, Share, only

Rule = Literal["exact", "relaxed", "choice", "vqa", "anls"]
RowRule = Literal[Rule, "judge"]
FieldKeys = Annotated[list[str], ONE_OR_MORE]
Difficulty = Literal["rating", "likelihood"]


@dataclass
class RowFields(ConfigSection):
    """Where a row holds what: a key, a dotted path (``json.question``; through a list it gives all elements' values),
    or a list of these. A key other than its default must be in every row, unless it ends with a question mark; its
    value may be null."""

    question: FieldKeys = field(default_factory=lambda: ["question"])
    """Several: paragraphs of the question."""
    answer: FieldKeys = field(default_factory=lambda: ["answer"])
    """Several texts are references: the most frequent is the label that a judge sees, rules take the best."""
    image: FieldKeys = field(default_factory=lambda: ["image"])
    """Path, bytes, base64 or a list of them; null: no picture. []: no row has pictures."""
    choices: FieldKeys = field(default_factory=lambda: ["choices"])
    id: FieldKeys = field(default_factory=lambda: ["id"])
    kind: FieldKeys = field(default_factory=lambda: ["kind"])
    turns: str | None = None
    """Key of a dialogue (conversations, messages, texts, qa), which takes the place of question and answer."""


@dataclass
class DataSource(ConfigSection):
    """Rows of one layout, each a question or a dialogue (docs/DATA.md)."""

    path: Place = MISSING
    """File, pattern of names (*.parquet), folder, address (s3://, gs://), or id of a data set on the Hub."""
    subset: str | None = None
    """Configuration of a data set on the Hub."""
    split: str | None = None
    """Split of a data set on the Hub or of a folder; it tells an id from a path that does not exist."""
    images: Place | None = None
    """Folder of relative picture paths; default: that of the row's file."""
    name: Annotated[str | None, only(lambda name: not name or "/" not in name, "a name without /")] = None
    """Begins the ids of its rows, and is the kind of rows without one; required where there are several sources."""
    fields: RowFields = field(default_factory=RowFields)
    turns: Literal["first", "all"] = "first"
    """Which questions of a dialogue are asked. all: each, alone and with the pictures shown until then."""
    answer_is: Literal["text", "letter", "index", "number"] | None = None
    """How labels name their choice; index: from 0, number: from 1. Default: by text, otherwise by letter."""
    suffix: str = ""
    """Ends the question as models see it, below the choices, such as "Answer with the letter."."""
    rows: PositiveInt | None = None
    """Most questions to take, in the seeded order with kinds balanced; default: all."""
    weight: PositiveFloat | None = None
    """Share of the mixture, relative to the other sources' weights; the scarcest source limits the mixture."""
    rule: RowRule | None = None
    """Rule that marks answers without a judge; judge: none, whatever evaluation.marked_by is. Default: judge.* say."""
    license: Annotated[str | None, KeyScope.RESUMABLE] = None
    """Of the questions and pictures, in words: for the student's model card."""


@dataclass
class Data(ConfigSection):
    train: Annotated[list[DataSource], ONE_OR_MORE, Field(min_length=1)] = field(default_factory=lambda: [DataSource()])
    """A source, or a list of them, whose questions are mixed in the seeded order."""
    held_out: Annotated[list[DataSource], ONE_OR_MORE, Field(min_length=1)] = field(
        default_factory=lambda: [DataSource()]
    )
    """Questions that accuracy is measured on: a source, or a list."""
    train_rows: PositiveInt | None = None
    """Most questions of all training sources together, by weight, else by size; default: all that these give."""
    held_out_rows: PositiveInt | None = None
    max_quarantined_share: Share = 0.01
    """Fraction of the source's rows that may be set aside; above it the run stops."""
    order: Literal["seeded", "easy_to_hard"] = "seeded"
    """easy_to_hard: curriculum by the difficulty of each question for the unmasked first teacher (appendix F.1)."""
    difficulty: Difficulty = "rating"
    """From 1 to 10. rating: the teacher rates the question; likelihood: decile of its mean log-prob of the label."""
    max_unrated_share: Share = 0.25
    """Fraction of the questions that may stay without a difficulty; they go to the middle of the order."""
    max_picture_pixels: Annotated[PositiveInt, Field(le=178_956_970)] = 50_000_000
    """Pixels of the largest picture that is decoded; rows with larger ones are set aside. The bound is Pillow's."""


def keys_of(section: str, sources: Sequence[DataSource]) -> list[str]:
    """Returns the sources' keys as they are written, without a number for the only one. section: such as data.train."""
    return [f"{section}[{number}]" for number in range(len(sources))] if len(sources) > 1 else [section]
