"""Every pair of conf/pairs on the machines that it is for: valid, planned, and within the cards' memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from masters_ray import checks, config, init, plan
from masters_ray.plan.sources import Asked
from tests import facts
from tests.families.test_run import questions

ROOT = Path(__file__).parents[2]
PAIRS = sorted(file.stem for file in (ROOT / "conf" / "pairs").glob("*.yaml"))
SMALL = {"1x80gb": ("_7b_3b", "_8b_2b", "_14b_2b", "_14b_4b"), "1x24gb": ("_4b_2b",)}
"""Machine of one GPU → ends of the names of its pairs."""
HUGE = ("72b", "78b")


def machines(pair: str) -> list[str]:
    one = [machine for machine, ends in SMALL.items() if pair.endswith(ends) and "38b" not in pair]
    huge = any(size in pair for size in HUGE)
    return one or [f"{gpus}x80gb{'_72b' * huge}" for gpus in (8, 32)]


KIND = {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "qwen2": "internvl", "qwen3": "internvl/qwen3"}


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[..., Path]) -> Path:
    """A cache of the Hub with the checkpoints whose headers were written down."""
    folder = tmp_path_factory.mktemp("hub")
    for file in facts.FACTS:
        content = json.loads(file.read_text())
        config = content["config"]
        kind = KIND.get(config["model_type"]) or KIND.get(config.get("text_config", {}).get("model_type", ""))
        if kind is None:
            continue
        repository = folder / f"models--{content['checkpoint'].replace('/', '--')}"
        (repository / "snapshots").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(file.stem)
        facts.checkpoint(file.stem, repository / "snapshots", checkpoint(kind))
    return folder


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_is_valid_and_fits(pair: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As masters-ray init writes it with data and each machine that its file names: planned on all, and validated, on
    the smallest in full."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**13))
    file, name = questions(tmp_path, 16), f"conf/pairs/{pair}.yaml"
    data = [f"data.train.path={file}", f"data.held_out.path={file}"]
    more = [*data, *(f"{model}.engine.max_pictures=2" for model in ("teacher", "student"))]
    assert init.PAIRS[pair] == machines(pair)
    for number, machine in enumerate(machines(pair)):
        words = [f"conf/machines/{machine}.yaml", f"run.dir={tmp_path / machine}", *more]
        written = init.write(tmp_path / f"{machine}.yaml", pair, str(file), str(file), machine)
        made = config.load(written)
        assert made == config.load(name, [words[0], f"run.dir=runs/{machine}", *data])
        own = [words[1], *more, *(f"growth[{n}].teacher.engine.max_pictures=2" for n in range(len(made.growth)))]
        if number == 0:
            assert "downloaded" not in checks.validate(written, own, all_rows=False)
        checks.load(written, own)
        planned = plan.make(name, words, Asked(questions=100_000, prompt_tokens=1200, answer_tokens=400))
        assert planned.forecast.unit == "GPU" and planned.forecast.devices == int(machine.split("x")[0])
        assert planned.learner is not None and planned.learner.device < 0.9 * planned.source.room
        held = {key: one.sequences(2048) for key, one in planned.engines.items()}
        assert min(held.values()) >= 4, held
