"""A source as people bring it: every tenth of its rows has a fault, and some of its pictures need care to be read."""

import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from examples import easy_vqa
from masters_ray.data import decode
from masters_ray.records import Problem
from tests.builders import png

ROWS = 200
EVERY = 10

Row = dict[str, Any]


class Fault(NamedTuple):
    """Kind and part of the reason, as quarantine.jsonl names it, and what differs from a good row, or all of it."""

    kind: str
    reason: str
    change: Row | str


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
    for name, content in {
        "cut.jpg": _encoded(noise, "JPEG")[:900],
        "crc.png": bytes(whole),
        "plot.eps": _encoded(noise, "EPS"),
        "page.jpg": b"<html><body>404</body></html>",
        "bomb.png": _encoded(Image.new("1", (9000, 9000)), "PNG"),
        "line.png": _encoded(Image.new("RGB", (4000, 4)), "PNG"),
    }.items():
        (folder / name).write_bytes(content)
    unreadable = ("cut.jpg", "crc.png", "plot.eps", "page.jpg", "pipe.png", "gone.png")
    colours = ["red", "blue", "green"]
    return [
        *(Fault("picture", name, {"image": name}) for name in unreadable),
        Fault("picture", "9000 x 9000", {"image": "bomb.png"}),
        Fault("engine", "200", {"image": "line.png"}),
        Fault("row", "image", {"image": 7}),
        Fault("row", "JSON", '{"id": "comma", "question": "what?", "answer": "red", "image": "a.png",}'),
        Fault("row", "JSON", "[" * 100_000),
        Fault("row", "digits", '{"id": "digits", "question": "what?", "image": "a.png", "answer": ' + "7" * 5000 + "}"),
        Fault("row", "answer", {"answer": float("nan")}),
        Fault("row", "answer", {"answer": ["red", ["blue", "teal"]]}),
        Fault("row", "none of", {"answer": "purple", "choices": colours}),
        Fault("row", "choices", {"choices": ["red", "red", "blue"], "answer": "red"}),
        Fault("row", "empty question", {"question": " "}),
        Fault("text", "<|image_pad|>", {"question": "what is <|image_pad|> here?"}),
        Fault("text", "<|im_end|>", {"answer": "red<|im_end|>"}),
        Fault("engine", "1024", {"question": "what color " * 900}),
    ]


def write(folder: Path) -> tuple[Path, set[str], dict[str, Fault]]:
    """The source; ids of its good rows; what each of the others has, by what quarantine.jsonl calls it."""
    folder.mkdir()
    file = folder / "rows.jsonl"
    wanted = iter(faults(folder))
    good, bad, lines = set(), {}, []
    by_kind = [easy_vqa.problems("train", [kind])[: ROWS // 3 + 1] for kind in easy_vqa.KINDS]
    balanced = [problem for turn in zip(*by_kind, strict=True) for problem in turn]
    for number, problem in enumerate(balanced[:ROWS], 1):
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
    (folder / f"{number}.picture").write_bytes(content)
    asked = {"id": problem.id, "question": problem.question, "answer": problem.label, "kind": problem.kind}
    return asked | {"image": f"{number}.picture"}
