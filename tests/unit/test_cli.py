import os
import re
import subprocess
import sys
from argparse import _SubParsersAction
from pathlib import Path

import pytest

from masters_ray import cli
from masters_ray.cli import main
from tests.conftest import ROOT

DEMO = "conf/demo.yaml"

PARSER = cli._parser()
[COMMANDS] = [one.choices for one in PARSER._actions if isinstance(one, _SubParsersAction)]


def test_words_may_stand_behind_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[str]] = []
    monkeypatch.setattr(cli, "_mask_scan", lambda arguments: taken.append(arguments.overrides))
    assert main(["mask-scan", DEMO, "--ratios", "0.2,0", "run.dir=x"]) == 0
    assert main(["mask-scan", DEMO, "a=1", "--ratios", "0.2,0", "b=2", "--questions", "7", "c=3"]) == 0
    assert taken == [["run.dir=x"], ["a=1", "b=2", "c=3"]]
    for words in ("mask-scan x --ratio 0.2,0", "validate x --al", "mask-scan x --none", "store verify x --none"):
        with pytest.raises(SystemExit, match="2"):
            main(words.split())
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert "masters-ray 0." in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_the_command_takes_and_a_page_that_is_there(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    [example] = re.findall(r"example:\n  masters-ray (.*)", told := capsys.readouterr().out)
    assert cli._parsed(example.partition(" >>")[0].split()).command is COMMANDS[command].get_default("command")
    [page] = re.findall(r"more: (.*)", told)
    assert (ROOT / page).is_file()


@pytest.mark.parametrize(
    ("words", "usage", "told"),
    [
        ("rnu conf/demo.yaml", "masters-ray [-h]", "invalid choice: 'rnu'"),
        (
            "validate conf/demo.yaml --al",
            "masters-ray validate [-h]",
            "unrecognized arguments: --al\nDid you mean --all?",
        ),
        ("run conf/demo.yaml a=1 --skp x", "masters-ray run [-h]", "arguments: --skp x\nDid you mean --skip?"),
        ("store inspct x", "masters-ray store [-h]", "Did you mean inspect?"),
        ("plan", "masters-ray plan [-h]", "the following arguments are required: config\n"),
        ("study x y", "masters-ray study [-h]", "unrecognized arguments: y\n"),
    ],
)
def test_an_error_shows_the_usage_of_its_command_and_the_nearest_name(
    words: str, usage: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: {usage}")
    assert told in shown
    assert ("Did you mean run?\n" in shown) is words.startswith("rnu")


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: masters-ray")
    assert re.findall(r"^    (\S+)", shown, re.MULTILINE) == [*COMMANDS]


def test_words_of_one_call_do_not_stay_for_the_next() -> None:
    assert cli._parsed(["validate", "x", "a=1"]).overrides == ["a=1"]
    assert cli._parsed(["validate", "x"]).overrides == []


def completed(line: str, folder: Path) -> set[str]:
    """What a shell is offered at the end of a line, as argcomplete's code for bash asks."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SHELL": "fish"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "offered"), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    asked["_ARGCOMPLETE_IFS"] = "\n"
    asked["PYTHONPATH"] = str(ROOT)
    subprocess.run(
        [sys.executable, "-m", "masters_ray.cli"], env=os.environ | asked, cwd=folder, check=True, timeout=60
    )
    return {one.partition("\t")[0].strip() for one in (folder / "offered").read_text().split("\n") if one}


def test_a_shell_completes_commands_options_files_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("")
    assert completed("masters-ray va", tmp_path) == {"validate"}
    assert completed("masters-ray validate mine.yaml --a", tmp_path) == {"--all"}
    assert completed("masters-ray run m", tmp_path) >= {"mine.yaml", "model.unknown_family="}
    assert completed("masters-ray run mine.yaml learner.check", tmp_path) == {
        "learner.checkpoint_every=", "learner.checkpoints_kept="
    }  # fmt: skip
    assert completed("masters-ray plan mine.yaml conf/machines/1x", tmp_path) == {
        "conf/machines/1x24gb.yaml", "conf/machines/1x80gb.yaml"
    }  # fmt: skip
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "masters-ray" in (told := capsys.readouterr().out) and "argcomplete" in told.lower()


def test_a_pipe_that_is_closed_and_a_package_that_is_not_there_give_no_traceback() -> None:
    begin = f"{sys.executable} -m masters_ray.cli config {DEMO}"
    piped = subprocess.run(
        f"{begin} | true; exit ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash", stderr=-1, check=False
    )
    assert (piped.returncode, piped.stderr) == (141, b"")
    blocked = (
        "import sys; sys.modules['pyarrow'] = None; from masters_ray.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", blocked, "init", "--pair", "toy"], capture_output=True, text=True, check=False
    )
    told = "masters-ray: pyarrow is not installed here: pip install 'masters-ray[cpu]', or [gpu].\n"
    assert (ran.returncode, ran.stderr) == (1, told)
