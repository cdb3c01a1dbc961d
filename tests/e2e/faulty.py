"""A source as people bring it: every tenth of its rows has a fault, and some of its pictures need care to be read."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from examples import easy_vqa
from masters_ray.data import decode
from masters_ray.records import Problem
from tests.builders import png

ROWS = 200
EVERY = 10

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a row, and how quarantine.jsonl names it."""

    change: Row | str
    """What differs from a good row, or the whole line."""
    kind: str
    reason: str
    """Part of the reason."""


def _written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return name


def _encoded(image: Image.Image, form: str, **more: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **more)
    return content.getvalue()


def faults(folder: Path) -> list[Fault]:
    """One of each; their pictures are written to ``folder``."""
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    whole = bytearray(png())
    whole[-20] ^= 1
    os.mkfifo(folder / "pipe.png")
    images = {
        "cut.jpg": _encoded(noise, "JPEG")[:900],
        "crc.png": bytes(whole),
        "plot.eps": _encoded(noise, "EPS"),
        "page.jpg": b"<html><body>404</body></html>",
        "bomb.png": _encoded(Image.new("1", (9000, 9000)), "PNG"),
        "line.png": _encoded(Image.new("RGB", (4000, 4)), "PNG"),
    }
    for name, content in images.items():
        _written(folder, name, content)

    def picture(name: Any, reason: str) -> Fault:
        return Fault(change={"image": name}, kind="picture", reason=reason)

    def row(reason: str, change: Row | str) -> Fault:
        return Fault(change=change, kind="row", reason=reason)

    colours = ["red", "blue", "green"]
    return [
        picture("cut.jpg", "cut.jpg"),
        picture("crc.png", "crc.png"),
        picture("plot.eps", "plot.eps"),
        picture("page.jpg", "page.jpg"),
        picture("bomb.png", "9000 x 9000"),
        Fault(change={"image": "line.png"}, kind="engine", reason="200"),
        picture("pipe.png", "pipe.png"),
        picture("gone.png", "gone.png"),
        row("image", {"image": None}),
        row("JSON", '{"id": "comma", "question": "what?", "answer": "red", "image": "a.png",}'),
        row("JSON", "[" * 100_000),
        row("digits", '{"id": "digits", "question": "what?", "image": "a.png", "answer": ' + "7" * 5000 + "}"),
        row("answer", {"answer": float("nan")}),
        row("answer", {"answer": ["red", "blue"]}),
        row("none of", {"answer": "purple", "choices": colours}),
        row("choices", {"choices": ["red", "red", "blue"], "answer": "red"}),
        row("empty question", {"question": " "}),
        Fault(change={"question": "what is <|image_pad|> here?"}, kind="text", reason="<|image_pad|>"),
        Fault(change={"answer": "red<|im_end|>"}, kind="text", reason="<|im_end|>"),
        Fault(change={"question": "what color " * 900}, kind="engine", reason="1024"),
    ]


def write(folder: Path) -> tuple[Path, set[str], dict[str, Fault]]:
    """The source; ids of its good rows; what each of the others has, by what quarantine.jsonl calls it."""
    folder.mkdir()
    file = folder / "rows.jsonl"
    wanted = iter(faults(folder))
    good, bad, lines = set(), {}, []
    for number, problem in enumerate(_balanced(ROWS), 1):
        row = _row(problem, folder, number)
        if number % EVERY:
            good.add(row["id"])
            lines.append(json.dumps(row))
            continue
        fault = next(wanted)
        lines.append(fault.change if isinstance(fault.change, str) else json.dumps(row | fault.change))
        bad[row["id"] if fault.kind == "engine" else f"{file}:{number}"] = fault
    file.write_text("\n".join(lines) + "\n")
    return file, good, bad


def _balanced(rows: int) -> list[Problem]:
    by_kind = [easy_vqa.problems("train", [kind])[: rows // 3 + 1] for kind in easy_vqa.KINDS]
    return [problem for turn in zip(*by_kind, strict=True) for problem in turn][:rows]


def _row(problem: Problem, folder: Path, number: int) -> Row:
    """The problem as a row; its picture as people's files are: turned by EXIF, with alpha, with a palette."""
    image = decode(problem.pictures[0])
    match number % 4:
        case 0:
            turned = Image.Exif()
            turned[0x0112] = 6
            content = _encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned)
        case 1:
            content = _encoded(image.convert("RGBA"), "PNG")
        case 2:
            content = _encoded(image.quantize(64), "GIF")
        case _:
            content = _encoded(image, "BMP")
    name = _written(folder, f"{number}.picture", content)
    return {
        "id": problem.id,
        "question": problem.question,
        "answer": problem.label,
        "image": name,
        "kind": problem.kind,
    }
