import json
from pathlib import Path

import pytest

from masters_ray import cli, config, init
from masters_ray.errors import ConfigError, DataError
from tests.builders import png


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without the project, on a machine without GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init, "_gpus", list)


def rows(**keys: object) -> str:
    Path("a.png").write_bytes(png())
    Path("rows.jsonl").write_text(
        json.dumps({"problem": "what?", "solution": "red", "images": ["a.png"], **keys}) + "\n"
    )
    return "rows.jsonl"


def test_the_toy_pair_is_written_whole_and_its_file_says_what_comes_next() -> None:
    init.write(Path("conf/toy.yaml"), "toy", None, None, None)
    assert Path("conf/toy.yaml").read_text().splitlines()[:6] == [
        "# toy on cpu, by masters-ray init. masters-ray config conf/toy.yaml explains every key. Next:",
        "#   masters-ray validate conf/toy.yaml",
        "#   masters-ray doctor conf/toy.yaml",
        "#   masters-ray plan conf/toy.yaml",
        "#   masters-ray run conf/toy.yaml",
        "run:",
    ]
    written, demo = config.load("conf/toy.yaml"), config.load(config.located("conf/demo.yaml"))
    assert written.run.dir == "runs/toy"
    assert (written.data.train[0].path, written.data.train[0].rows) == ("conf/toy/questions/train.parquet", 2160)
    assert (written.learner, written.judge, written.schedule) == (demo.learner, demo.judge, demo.schedule)
    assert sorted(one.name for one in Path("conf").iterdir()) == ["toy", "toy.yaml"]
    for model in ("teacher", "student"):
        assert Path(f"conf/toy/pair/{model}/model.safetensors").stat().st_size > 2e6
    assert cli.main(["validate", "conf/toy.yaml"]) == 0


def test_own_questions_of_the_toy_pair_are_taken_all() -> None:
    init.write(Path("mine.yaml"), "toy", rows(), None, None)
    written = config.load("mine.yaml")
    assert [(one.path, one.rows) for one in (*written.data.train, *written.data.held_out)] == [
        ("rows.jsonl", None),
        ("toy/questions/held_out.parquet", 720),
    ]


def test_keys_of_rows_are_found_by_the_readers_proposals(capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(options_list=["red", "blue"])
    init.write(Path("mine.yaml"), "qwen3_vl_8b_2b", path, path, "1x80gb")
    written = config.load("mine.yaml")
    assert vars(written.data.train[0].fields) | {"id": 0, "kind": 0} == {
        "question": ["problem"], "answer": ["solution"], "image": ["images"], "choices": ["options_list"],
        "turns": None, "id": 0, "kind": 0,
    }  # fmt: skip
    assert written.data.held_out[0].fields == written.data.train[0].fields
    assert (written.cluster.gpu, written.learner.lora.rank) == ("h100-80gb", 32)
    assert (written.student.checkpoint, written.run.dir) == ("Qwen/Qwen3-VL-2B-Instruct", "runs/mine")
    assert capsys.readouterr().out.splitlines()[:2] == [
        "data.train: 1 of the first 1 questions can be used",
        "  data.train.fields.question=problem data.train.fields.answer=solution data.train.fields.image=images "
        "data.train.fields.choices=options_list 1 pictures: what? → red",
    ]


def test_a_dialogue_and_rows_that_cannot_be_described() -> None:
    Path("a.png").write_bytes(png())
    said = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "red"}]
    Path("talk.json").write_text(json.dumps([{"conversations": said, "image": "a.png"}]))
    assert init._described("data.train", "talk.json") == [
        "data.train.path=talk.json", "data.train.fields.turns=conversations"
    ]  # fmt: skip
    with pytest.raises(DataError, match="none.jsonl: does not exist"):
        init._described("data.train", "none.jsonl")
    Path("odd.jsonl").write_text('{"a": 1, "b": 2}\n')
    with pytest.raises(DataError, match="odd.jsonl: no row can be used.*the row has a, b"):
        init._described("data.train", "odd.jsonl")


def test_no_file_is_overwritten_and_what_does_not_fit_is_refused() -> None:
    Path("mine.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"mine.yaml: expected a new file.*Name another file, or delete it\."):
        init.write(Path("mine.yaml"), "toy", None, None, None)
    assert Path("mine.yaml").read_text() == "mine"
    for pair, machine, told in (
        ("qwen", None, "--pair: expected toy or internvl3_14b_2b or "),
        ("qwen3_vl_32b_8b", "1x24gb", "--machine: expected 8x80gb or 32x80gb for qwen3_vl_32b_8b, found '1x24gb'"),
        ("qwen3_vl_32b_8b", None, "--machine: expected 8x80gb or 32x80gb, found none, and no terminal to ask"),
        (None, "cpu", "--pair: expected toy or "),
        ("qwen3_vl_8b_2b", None, "--train: expected a path, found none, and no terminal to ask. Write --train VALUE."),
    ):
        with pytest.raises(ConfigError) as caught:
            init.write(Path("new.yaml"), pair, None, None, machine)
        assert told in str(caught.value)
    assert sorted(one.name for one in Path().iterdir()) == ["mine.yaml"]


def test_a_terminal_is_asked_and_what_it_leaves_open_is_what_fits_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """On eight GPUs of 80 GB the largest pair that they hold comes first."""
    asked: dict[str, str] = {}
    answers = {"pair": "qwen3_vl_32b_8b", "train": rows(), "held-out": rows()}

    def ask(name: str, default: str, choices: list[str] | None, console: object) -> str:
        asked[name] = default
        return answers.get(name, default)

    monkeypatch.setattr(init, "_gpus", lambda: [81559] * 8)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(init.Prompt, "ask", ask)
    init.write(Path("mine.yaml"), None, None, None, None)
    assert asked == {
        "pair": "qwen3_vl_8b_2b", "machine": "8x80gb", "train": "data/train.jsonl", "held-out": "data/held_out.jsonl"
    }  # fmt: skip
    assert config.load("mine.yaml").learner.workers == 8


def test_gpus_are_those_of_nvidia_smi_and_a_card_holds_a_little_less_than_its_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (tmp_path / "nvidia-smi").write_text(
        '#!/bin/sh\n[ "$2" = --format=csv,noheader,nounits ] && printf "23034\\n23034\\n"\n'
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    gpus = init._gpus()
    assert gpus == [23034, 23034]
    held = [one for one in ("cpu", "1x24gb", "1x80gb", "8x80gb_72b") if init._holds(gpus, one)]
    assert held == ["1x24gb"]
    assert init._holds([], "cpu") and not init._holds([], "1x24gb")


def test_every_pair_names_machines_that_are_there() -> None:
    machines = {file.stem for file in (config.SHIPPED / "conf" / "machines").glob("*.yaml")}
    assert {machine for name, fits in init.PAIRS.items() if name != "toy" for machine in fits} == machines
    assert all(init.PAIRS.values()) and len(init.PAIRS) == 1 + len(list((config.SHIPPED / "conf/pairs").glob("*.yaml")))
