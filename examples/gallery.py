"""Make the pictures of docs/GALLERY.md: ``python -m examples.gallery [NAME …]``, from the project's directory.

A page that is not there is made first, by the command that the gallery names: a quarter of an hour for all.
Chromium takes the pictures; a terminal's lines become an SVG.
"""

import argparse
import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

FOLDER = Path("docs/gallery")
MOST_BYTES = 120_000
"""Of a picture."""
WIDTH = 1100
"""CSS pixels of the window; a picture has three quarters of them."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    name: str
    command: str
    page: str
    """What the command leaves; .txt: what a terminal shows while it runs."""
    height: int = 1400
    """CSS pixels from the page's top."""
    dark: bool = False

    @property
    def file(self) -> str:
        return f"{self.name}.svg" if self.page.endswith(".txt") else f"{self.name}.png"


SHOTS = (
    Shot(name="terminal", command="masters-ray run conf/demo.yaml", page="runs/gallery/terminal.txt"),
    Shot(name="report", command="masters-ray run conf/demo.yaml", page="runs/demo/report.html"),
    Shot(name="report-dark", command="masters-ray run conf/demo.yaml", page="runs/demo/report.html", dark=True),
    Shot(name="doctor", command="masters-ray doctor conf/demo.yaml", page="runs/demo/doctor/doctor.html"),
    Shot(name="plan", command="masters-ray plan conf/demo.yaml --rates runs/demo", page="runs/demo/plan/plan.html"),
    Shot(
        name="mask-scan",
        command="masters-ray mask-scan conf/demo.yaml --questions 60",
        page="runs/demo/mask-scan-60/mask_scan.html",
    ),
    Shot(
        name="judge-audit",
        command="masters-ray judge-audit conf/demo.yaml --questions 60",
        page="runs/demo/judge-audit-60/judge_audit.html",
    ),
    Shot(
        name="study",
        command="masters-ray study conf/study/small.yaml",
        page="runs/studies/small/study.html",
    ),
    Shot(
        name="study-dark",
        command="masters-ray study conf/study/small.yaml",
        page="runs/studies/small/study.html",
        dark=True,
    ),
)
_MOVES = re.compile(r"\x1b\[(\d*)([ABKJ])|\r|\n|\x1b\[\?25[lh]")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.gallery", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(shot.name for shot in SHOTS)}")
    parser.add_argument("--keep", action="store_true", help="take pictures of the pages that are there, make none")
    chosen = parser.parse_args(words)
    if unknown := set(chosen.names) - {shot.name for shot in SHOTS}:
        parser.error(f"{', '.join(sorted(unknown))} is not in the gallery")
    FOLDER.mkdir(exist_ok=True)
    for shot in SHOTS:
        if chosen.names and shot.name not in chosen.names:
            continue
        if not Path(shot.page).exists():
            if chosen.keep:
                print(f"{shot.name}: {shot.page} is not there; {shot.command} makes it")
                continue
            record(shot)
        content = drawn(Path(shot.page).read_bytes().decode()) if shot.file.endswith(".svg") else taken(shot)
        (FOLDER / shot.file).write_bytes(content)
        print(f"{FOLDER / shot.file}: {len(content) / 1000:.0f} kB")


def record(shot: Shot) -> None:
    """Runs the command in a terminal of 120 columns; keeps what it shows if that is what the picture is of."""
    Path(shot.page).parent.mkdir(parents=True, exist_ok=True)
    if shot.page.endswith(".txt"):
        shutil.rmtree("runs/demo", ignore_errors=True)  # a finished run shows nothing
    print(f"{shot.name}: {shot.command}", flush=True)
    os.environ |= {"COLUMNS": "120", "LINES": "60", "TERM": "xterm-256color"}
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = bytearray()

    def read(terminal: int) -> bytes:
        more = os.read(terminal, 4096)
        said.extend(more)
        return more

    if status := pty.spawn(shlex.split(shot.command), read):
        sys.exit(f"{shot.command} ended with {os.waitstatus_to_exitcode(status)}")
    if shot.page.endswith(".txt"):
        Path(shot.page).write_bytes(said)


def drawn(said: str) -> bytes:
    """Returns an SVG of the last lines that stay on the terminal."""
    lines = lines_of(said.replace(f"{Path.cwd()}/", ""))[-48:]
    console = Console(record=True, width=140, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join(lines)))
    content = console.export_svg(title="masters-ray run conf/demo.yaml")
    return re.sub(r"@font-face \{.*?\}\s*", "", content, flags=re.DOTALL).encode()  # nothing from the network


def lines_of(said: str) -> list[str]:
    """Returns the lines that stand on a terminal in the end: a cursor that goes up writes over them."""
    lines, row, start = [""], 0, 0
    for move in _MOVES.finditer(said + "\n"):
        lines[row] += said[start : move.start()]
        start = move.end()
        if move[0] == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif move[2] == "A":
            row = max(0, row - int(move[1] or 1))
        elif move[2] == "K" or (move[0] == "\r" and said[move.end() : move.end() + 1] != "\n"):
            lines[row] = ""
    return [line.rstrip() for line in lines if line.strip()]


def taken(shot: Shot) -> bytes:
    """Returns a PNG of a page, no larger than MOST_BYTES."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit(
            "the gallery needs chromium on the PATH, which takes the pictures; install it (apt-get install chromium)"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if shot.dark else []
        words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *dark]
        words += [f"--window-size={WIDTH},{shot.height}", f"--screenshot={file}", Path(shot.page).resolve().as_uri()]
        subprocess.run(words, check=True, capture_output=True, timeout=120)
        whole = Image.open(file).convert("RGB")
    size = WIDTH * 3 // 4, shot.height * 3 // 4
    for colours in (128, 64, 32, 16):
        content = io.BytesIO()
        whole.resize(size, Image.Resampling.LANCZOS).quantize(colours).save(content, "PNG", optimize=True)
        if content.tell() <= MOST_BYTES:
            return content.getvalue()
    sys.exit(f"{shot.name}: {content.tell()} bytes; make the picture less high")


if __name__ == "__main__":
    main()
