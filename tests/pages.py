"""What the documentation says: its blocks of code, the commands in them and in its text, and its links.

Pages are README.md, CONTRIBUTING.md, docs/ and examples/; commands stand in the first comments of conf/ and in the
docstrings of jobs/ too. A command in running text is one whose program is known here and that has a word more; with "…"
or a bare ``masters-ray NAME`` it is a name and not a command.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = re.compile(
    r"(masters-ray|make|python|pytest|ray|vllm|jq|hf|git|source|export|pip|srun|sbatch|docker|kubectl|sky|mlflow|trackio)"
)
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")


@dataclass(frozen=True, kw_only=True)
class Block:
    page: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """The page and the first line."""
        return f"{self.page}: {self.text.partition(chr(10))[0]}"


def pages(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("examples/*.md")])


def blocks(root: Path) -> Iterator[Block]:
    """Yields the fenced blocks of all pages in their order, without their indentation."""
    for page in pages(root):
        for indent, language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
            lines = [line.removeprefix(indent) for line in text.splitlines()]
            yield Block(page=str(page.relative_to(root)), language=language, text="\n".join(lines))


def commands(root: Path) -> dict[str, set[str]]:
    """Returns every command, in one line without comments → the files in which it stands."""
    found: dict[str, set[str]] = {}
    for block in blocks(root):
        if block.language == "sh":
            for command in lines_of(block.text):
                found.setdefault(command, set()).add(block.page)
    for file, text in _texts(root):
        for _, code in _CODE.findall(text):
            command = " ".join(code.split())
            if _is_command(command):
                found.setdefault(command, set()).add(str(file.relative_to(root)))
    return found


def lines_of(script: str) -> list[str]:
    """The commands of a block, continued lines joined, without comments."""
    whole = script.replace("\\\n", " ")
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in whole.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def _texts(root: Path) -> Iterator[tuple[Path, str]]:
    for page in pages(root):
        yield page, _FENCE.sub("", page.read_text(encoding="utf-8"))
    for file in sorted([*root.glob("conf/**/*.yaml"), *root.glob("jobs/*.py")]):
        lines = file.read_text(encoding="utf-8").splitlines()
        yield file, "\n".join(line.lstrip("# ") for line in lines if file.suffix == ".py" or line.startswith("#"))


def _is_command(code: str) -> bool:
    words = code.split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if len(words) < 2 or not PROGRAMS.fullmatch(words[0]) or "…" in code:
        return False
    return words[0] != "masters-ray" or len(words) > 2


def names(root: Path) -> set[str]:
    """Returns the commands of masters-ray that pages name."""
    whole = "\n".join(page.read_text(encoding="utf-8") for page in pages(root))
    return set(re.findall(r"masters-ray ([a-z][a-z-]+)", whole))


def dead_links(root: Path) -> list[str]:
    """Relative links whose file, or whose heading in it, is not there."""
    found = []
    for page in pages(root):
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for link in _LINK.findall(text):
            name, _, anchor = link.partition("#")
            if re.match(r"\w+:", link) or "gallery/" in link:  # examples.gallery makes those
                continue
            target = (page.parent / name) if name else page
            if not target.exists():
                found.append(f"{page.relative_to(root)}: {link} is not there")
            elif anchor and anchor not in _anchors(target):
                found.append(f"{page.relative_to(root)}: {target.name} has no heading #{anchor}")
    return found


def _anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def answers(root: Path) -> dict[str, list[str]]:
    """Returns the last command of a block → the ``text`` blocks right after it: what it says."""
    found: dict[str, list[str]] = {}
    before = None
    for block in blocks(root):
        if block.language == "text" and before and before.language == "sh" and before.page == block.page:
            found.setdefault(lines_of(before.text)[-1], []).append(block.text)
        before = before if block.language == "text" else block
    return found


def unsaid(expected: str, said: str) -> list[str]:
    """Returns the lines of ``expected`` that are not in ``said``, however lines are broken; "…" is anything."""
    whole = " ".join(said.split())
    found = []
    for line in expected.splitlines():
        pattern = r".*?".join(re.escape(" ".join(piece.split())) for piece in line.split("…"))
        if not re.search(pattern, whole):
            found.append(line)
    return found
