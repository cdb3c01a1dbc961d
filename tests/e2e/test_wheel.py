"""A wheel in an environment of its own, in a directory with nothing else: the checkout is not there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e.nodes import ADDRESS, two_nodes
from tests.e2e.runs import SMALL, environment, long_form, summary

pytestmark = pytest.mark.e2e
BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the wheel and, of this environment, all but the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__", "tests", "bench")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=left)
    built = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=folder / "source", capture_output=True, text=True, check=True
    )
    [wheel] = folder.glob("*.whl")
    assert wheel.name == built.stdout.splitlines()[-1]
    assert wheel.stat().st_size < 14e6
    venv.create(folder / "env", symlinks=True, with_pip=True)
    found = str(folder / "env" / "bin" / "python")
    subprocess.run([found, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    [packages] = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "stack.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(folder / "source")
    return found


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory, python: str) -> Path:
    """A directory in which init has written toy.yaml."""
    folder = tmp_path_factory.mktemp("outside")
    written = called(python, folder, "init", "toy.yaml", "--pair", "toy", "--machine", "cpu")
    assert written.returncode == 0, written.stderr
    assert sorted(one.name for one in folder.iterdir()) == ["toy", "toy.yaml"]
    return folder


def called(python: str, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    there = {name: value for name, value in environment(**more).items() if name != "PYTHONPATH"}
    program = Path(python).with_name("masters-ray")
    command = [str(program), *words]
    return subprocess.run(command, cwd=folder, env=there, capture_output=True, text=True, timeout=500, check=False)


def test_init_validate_and_config_need_no_checkout(python: str, outside: Path) -> None:
    ran = called(python, outside, "validate", "toy.yaml")
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    assert "toy.yaml: no complaint" in ran.stdout
    shipped = [f"conf/{name}.yaml" for name in ("pairs/qwen3_vl_8b_2b", "machines/1x80gb")]
    ran = called(python, outside, "config", *shipped, "run.dir=x", "data.train.path=toy/questions/train.parquet")
    place = Path(python).parents[1] / "lib"
    assert [line.partition(f"{place}{os.sep}")[0] for line in ran.stderr.splitlines()[:2]] == [
        f"{name} is that of the package, " for name in shipped
    ]
    assert "gpu: h100-80gb  # conf/machines/1x80gb.yaml (default: null)" in ran.stdout


@long_form
def test_run_needs_no_checkout(python: str, outside: Path) -> None:
    ran = called(python, outside, "run", "toy.yaml", *SMALL)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert summary(outside / "runs" / "toy")["learner"]["groups"] == 48


@long_form
def test_submit_takes_package_and_configuration_to_a_cluster(python: str, outside: Path) -> None:
    """From elsewhere than the package, with a path that is relative to the directory of the call."""
    with two_nodes(python) as reach:
        ran = called(python, outside, "submit", *ADDRESS, "toy.yaml", "run.dir=submitted", *SMALL, **reach)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("succeeded")
    assert summary(outside / "submitted")["learner"]["groups"] == 48
