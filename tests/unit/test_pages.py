"""The documentation is true: its commands run, its blocks load, its keys and links exist. tests/commands.yaml says of
every command what runs it, or why nothing does; those under ``long`` run in tests/e2e/test_pages.py."""

import ast
import dataclasses
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from examples import gallery
from masters_ray import cli
from masters_ray.config import Config, DataSource, load
from tests import pages, reader, sources
from tests.builders import group, png, written
from tests.conftest import ROOT

TABLE: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "commands.yaml").read_text())
BLOCKS = list(pages.blocks(ROOT))
DEMO = load(ROOT / "conf" / "demo.yaml")


def listed() -> list[str]:
    """The commands of the table, as often as they stand there."""
    found = [step if isinstance(step, str) else step["command"] for step in (*TABLE["quick"], *TABLE["long"])]
    for group_of in (*TABLE["tested"].values(), *TABLE["not_run"].values()):
        found += group_of
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reader.directory(tmp_path_factory.mktemp("reader"), TABLE["files"])


def test_every_command_of_the_pages_is_listed_once_and_no_other() -> None:
    found, told = pages.commands(ROOT), listed()
    assert {command: sorted(where) for command, where in found.items() if command not in told} == {}, "not listed"
    assert [command for command in told if command not in found] == [], "on no page"
    assert [command for command in set(told) if told.count(command) > 1] == [], "listed twice"


@pytest.mark.parametrize("name", TABLE["tested"])
def test_a_test_that_is_named_for_commands_exists_and_has_their_options_and_files(name: str) -> None:
    file, _, function = name.partition("::")
    text = (ROOT / file).read_text()
    assert function in {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    for command in TABLE["tested"][name]:
        words = [
            word.partition("=")[0] for word in shlex.split(command) if re.match(r"--|conf/(?!mine\.)|tests/", word)
        ]
        assert [word for word in words if word not in text and word != file] == [], command


def test_commands_that_take_seconds_run_as_they_are_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    for step in TABLE["quick"]:
        command, told = (step, {}) if isinstance(step, str) else (step["command"], step)
        program, *words = shlex.split(command)
        if told.get("needs", words[0]) in TABLE["later"]:
            continue
        if "absent" in told:
            (here / told["absent"]).unlink()
        if program == "masters-ray":
            returned: object = cli.main(words)
        elif (program, words[0]) == ("python", "-m"):
            monkeypatch.setattr("sys.argv", words[1:])
            returned = module(words[1])
        else:
            returned = reader.call(command, here).returncode  # says nothing that a page shows
        out, err = capsys.readouterr()
        assert returned == told.get("exit", 0), f"{command}\n{out}{err}"
        for expected in pages.answers(ROOT).get(command, []):
            assert (missing := pages.unsaid(expected, out + err)) == [], f"{command} does not say {missing}"


def module(name: str) -> object:
    """Runs ``python -m name`` in this process, which has loaded what it needs."""
    try:
        runpy.run_module(name, run_name="__main__")
    except SystemExit as ended:
        return ended.code or 0
    return 0


@pytest.mark.parametrize("target", sorted({word for one in listed() for word in re.findall(r"^make ([\w-]+)", one)}))
def test_make_knows_the_target(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("name", sorted(pages.names(ROOT) - set(TABLE["later"])))
def test_a_command_that_a_text_names_is_the_program_s(name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "sh"], ids=lambda one: one.name)
def test_a_script_can_be_parsed(block: pages.Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "yaml"], ids=lambda one: one.name)
def test_a_block_of_configuration_is_one(block: pages.Block, tmp_path: Path) -> None:
    """Merged over the demo's. Others are told by a line of the table."""
    if block.name in TABLE["blocks"]:
        yaml.compose(block.text)
        return
    (tmp_path / "mine.yaml").write_text(block.text)
    load(ROOT / "conf" / "demo.yaml", [str(tmp_path / "mine.yaml")])


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "json"], ids=lambda one: one.name)
def test_a_row_of_data_can_be_used(block: pages.Block, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(block.text + "\n")
    for name in re.findall(r'"image": "([^"]+)"', block.text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    loaded = sources.load(DataSource(path=str(tmp_path / "rows.jsonl")))
    assert (len(loaded), list(loaded.rejected)) == (block.text.count("\n") + 1, [])


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "python"], ids=lambda one: one.name)
def test_a_block_of_python_gives_what_the_page_says(
    block: pages.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a store of one row. Others are told by a line of the table."""
    code = compile(block.text, block.page, "exec")
    if block.name in TABLE["blocks"]:
        return
    written(tmp_path / "rollouts" / "stage-0", {}, [group()])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["probabilities"].sum(1) + found["left_out"] == pytest.approx(np.ones(found["tokens"]))


def test_every_language_of_a_block_is_checked_and_the_table_names_no_other_block() -> None:
    assert {one.language for one in BLOCKS} <= {"sh", "yaml", "json", "python", "text", ""}
    assert set(TABLE["blocks"]) <= {one.name for one in BLOCKS}


def test_keys_that_pages_name_are_in_the_configuration() -> None:
    sections = "|".join(one.name for one in dataclasses.fields(Config) if one.name != "growth")
    for page in pages.pages(ROOT):
        for key in re.findall(rf"`((?:{sections})\.[a-z_.]+[a-z])(?=[`=:\[ ])", page.read_text()):
            assert is_key(key) or key == "run.py" or is_module(key) or key in TABLE["fields"], f"{page.name}: {key}"


def is_key(key: str) -> bool:
    value: Any = DEMO
    for name in key.split("."):
        value = value[0] if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]) else value
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def is_module(key: str) -> bool:
    return (ROOT / "masters_ray" / "/".join(key.split(".")[:2])).with_suffix(".py").exists()


def test_links_lead_to_files_and_headings() -> None:
    assert pages.dead_links(ROOT) == []


def test_the_gallery_shows_its_pictures_with_their_commands_and_none_is_large() -> None:
    page = (ROOT / "docs" / "GALLERY.md").read_text()
    assert set(re.findall(r"\(gallery/([\w.-]+)\)", page)) == {shot.file for shot in gallery.SHOTS}
    assert all(f"`{shot.command}`" in page for shot in gallery.SHOTS)
    made = list((ROOT / gallery.FOLDER).glob("*"))
    assert {file.name for file in made} <= {shot.file for shot in gallery.SHOTS}
    assert all(file.stat().st_size <= gallery.MOST_BYTES for file in made)


def test_a_terminal_s_lines_are_those_that_stand_in_the_end() -> None:
    said = "one\r\ntwo\r\n\x1b[1A\x1b[2K\x1b[32m2\x1b[0m\r\n 10 %\r100 %\r\n"
    assert gallery.lines_of(said) == ["one", "\x1b[32m2\x1b[0m", "100 %"]
