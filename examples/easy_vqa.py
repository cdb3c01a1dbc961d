"""Questions over the 5,000 pictures of the ``easy-vqa`` package: 64 x 64 pixels, one solid shape on a flat pale ground.

Three kinds of question are offered, and accuracy is reported for each of them:

* ``colour`` (8 labels) and ``shape`` (3 labels) are the package's own questions;
* ``place`` (4 labels) is ours: the quarter of the picture that holds the centre of the shape, computed from the pixels.

The package's yes/no questions are left out: a model that never looks at the picture scores 82.5 % on them, because
the wording alone gives most answers away, and they are three quarters of the package.

``python -m examples.easy_vqa [FOLDER]`` writes them as a user's own data would lie: ``train.jsonl`` and ``test.jsonl``
with question, answer, image, id and kind, and the pictures beside them. ``--parquet examples/toy/questions`` writes the
same rows with the pictures inside, for ``masters-ray init --pair toy``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageChops

from masters_ray.errors import DataError, MastersError
from masters_ray.records import Picture, Problem

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
FOLDER = Path("runs/easy_vqa")
"""Where the configurations of the examples look for the questions."""

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
PLACES = ("top left", "top right", "bottom left", "bottom right")
LABELS: dict[str, tuple[str, ...]] = {"colour": COLOURS, "shape": SHAPES, "place": PLACES}
"""The possible labels of each kind."""
KINDS = tuple(LABELS)
PLACE_QUESTIONS = ("where is the shape?", "in which corner is the shape?", "where in the image is the shape?")

SIDE = 64
"""Width and height of every picture, in pixels."""
MIDDLE_MARGIN = 3.0
"""A shape whose centre lies within so many pixels of a middle line has no place."""

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive."""


def shape_box(picture: Image.Image) -> Box:
    """The bounding box of the shape: every pixel that differs from the commonest colour (the ground).

    Raises DataError when the picture holds nothing but its ground.
    """
    rgb = picture.convert("RGB")
    colours = rgb.getcolors(maxcolors=rgb.width * rgb.height) or []
    ground = Image.new("RGB", rgb.size, cast("tuple[int, int, int]", max(colours)[1]))
    box = ImageChops.difference(rgb, ground).getbbox()
    if box is None:
        raise DataError(
            f"expected a shape on a picture of {rgb.width} x {rgb.height} pixels, found one flat colour; "
            "reinstall easy-vqa==1.0"
        )
    return box


def place_of(box: Box, side: int = SIDE) -> str | None:
    """The quarter that holds the centre of ``box``, or None within ``MIDDLE_MARGIN`` pixels of a middle line."""
    across, down = (box[0] + box[2]) / 2 - side / 2, (box[1] + box[3]) / 2 - side / 2
    if min(abs(across), abs(down)) <= MIDDLE_MARGIN:
        return None
    return f"{'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"


def place_question(problem_id: str) -> str:
    """One of the phrasings, chosen by the id alone."""
    return PLACE_QUESTIONS[zlib.crc32(problem_id.encode()) % len(PLACE_QUESTIONS)]


def data_folder() -> Path:
    """Where the package keeps its pictures and questions. Raises DataError when it is not installed."""
    try:
        folder = Path(str(resources.files("easy_vqa"))) / "data"
    except ModuleNotFoundError as error:
        raise DataError("expected the package easy-vqa, found none; install it: pip install easy-vqa==1.0") from error
    if not (folder / "train" / "questions.json").is_file():
        raise DataError(f"expected pictures and questions in {folder}, found none; reinstall easy-vqa==1.0")
    return folder


def picture_paths(split: Split) -> dict[int, Path]:
    """Every picture of a split by its number, in ascending order. Raises DataError when the package is missing."""
    folder = data_folder() / split / "images"
    return {number: folder / f"{number}.png" for number in sorted(int(path.stem) for path in folder.glob("*.png"))}


def read_questions(split: Split) -> list[tuple[str, str, int]]:
    """The package's own rows (question, answer, number of the picture), yes/no included, in the package's order."""
    path = data_folder() / split / "questions.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(str(question), str(answer), int(number)) for question, answer, number in rows]
    except (OSError, ValueError) as error:
        raise DataError(f"expected rows of question, answer and picture in {path}; reinstall easy-vqa==1.0") from error


def problems(split: Split, kinds: Sequence[str] = KINDS) -> list[Problem]:
    """The problems of a split, by ascending picture and in the order of ``kinds``; at most one of each kind a picture.

    A picture gives no problem of a kind that the package never asks about it, nor of ``place`` when its shape lies
    on a middle line. Ids read ``train/17/colour``. Raises DataError for an unknown split or kind, and when the
    package is missing.
    """
    if split not in SPLITS:
        raise DataError(f"easy-vqa has the splits train and test, found {split!r}; name one of them")
    unknown = [kind for kind in kinds if kind not in LABELS]
    if unknown:
        raise DataError(f"easy-vqa has the kinds {', '.join(KINDS)}, found {', '.join(unknown)}; leave the others out")
    asked: dict[tuple[int, str], tuple[str, str]] = {}
    for question, answer, number in read_questions(split):
        for kind in ("colour", "shape"):
            if answer in LABELS[kind]:
                asked.setdefault((number, kind), (question, answer))
    found: list[Problem] = []
    for number, path in picture_paths(split).items():
        for kind in kinds:
            name = f"{split}/{number}/{kind}"
            if kind == "place":
                with Image.open(path) as picture:
                    place = place_of(shape_box(picture))
                pair = (place_question(name), place) if place else None
            else:
                pair = asked.get((number, kind))
            if pair is not None:
                question, label = pair
                pictures = (Picture(path=str(path)),)
                found.append(Problem(id=name, question=question, label=label, pictures=pictures, kind=kind))
    return found


def write(folder: Path) -> None:
    """Write both splits as jsonl with their pictures, unless they lie there: whole or not at all. Raises DataError when
    the package is missing, OSError when the disk refuses."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        unfinished.chmod(0o755)
        for split in SPLITS:
            shutil.copytree(data_folder() / split / "images", unfinished / split, copy_function=shutil.copyfile)
            lines = [json.dumps(_row(problem, split)) for problem in problems(split)]
            (unfinished / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def pack(folder: Path) -> None:
    """Write train.parquet and held_out.parquet, 1.8 MB. Raises as ``write`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in zip(SPLITS, ("train", "held_out"), strict=True):
        found = problems(split)
        rows = [_row(one, split) | {"image": Path(one.pictures[0].path or "").read_bytes()} for one in found]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", compression="zstd")


def _row(problem: Problem, split: Split) -> dict[str, str]:
    image = f"{split}/{Path(problem.pictures[0].path or '').name}"
    return {
        "id": problem.id,
        "question": problem.question,
        "answer": problem.label,
        "image": image,
        "kind": problem.kind,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Write easy-vqa's questions and pictures as jsonl.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--parquet", action="store_true", help="two files with the pictures inside")
    arguments = parser.parse_args()
    folder, packed = arguments.folder, arguments.parquet
    try:
        (pack if packed else write)(folder)
    except (MastersError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: {'train.parquet and held_out.parquet' if packed else 'train.jsonl and test.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
