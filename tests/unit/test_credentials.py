import dataclasses
import pickle
from pathlib import Path

import pytest

from masters_ray import cli, submit
from masters_ray import config as configuration
from masters_ray.config import Config, Written, violations
from masters_ray.errors import StoreError, without_secrets
from masters_ray.files import read_record
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.store import Folder
from masters_ray.studies.judge_audit import audit_config
from tests.conftest import ROOT

DEMO = str(ROOT / "conf" / "demo.yaml")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://HUSHKEY:HUS/HE+D@bucket/x", "s3://…@bucket/x"),
        ("https://user:HUSH%40ED@host:8080/x?a=b", "https://…@host:8080/x?a=b"),
        ("https://host/x?X-Amz-Date=1&X-Amz-Signature=HUSHED", "https://host/x?X-Amz-Date=1&X-Amz-Signature=…"),
        ("https://a.blob.core.windows.net/c?sv=1&sig=HUSHED&se=2", "https://a.blob.core.windows.net/c?sv=1&sig=…&se=2"),
        ("abfs://c@a.dfs.core.windows.net/x?account_key=HUSHED", "abfs://c@a.dfs.core.windows.net/x?account_key=…"),
        ("gs://HUSHTOKEN@bucket/x", "gs://…@bucket/x"),
        ("https://host/x?token=HUSHED#top", "https://host/x?token=…#top"),
    ],
)
def test_an_address_with_credentials_is_refused_and_not_repeated(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    with pytest.raises(StoreError) as caught:
        Folder(address)
    assert str(caught.value).startswith(f"{shown}: expected an address without credentials")
    config = Config()
    config.rollout.reuse = ["here", address]
    told = {one.where: str(one) for one in violations(config)}["rollout.reuse[1]"]
    assert told.startswith("rollout.reuse[1]: expected an address without credentials") and f"found '{shown}'." in told


def test_the_program_repeats_no_credentials_whatever_is_wrong_with_the_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", "HUSHKEY:HUSHED")
    address = "s3://HUSHKEY:HUS/HED@bucket/x"
    keys = ("run.dir", "teacher.checkpoint", "rollout.stor", "rollout.reuse")
    for words in (
        ["validate", DEMO, *(f"{key}={address}" for key in keys), address],
        ["validate", DEMO, "rollout.store=s3://${oc.env:WHO}@bucket/x"],
        ["store", "verify", address],
    ):
        assert cli.main(words) == 1
        told = "".join(capsys.readouterr())
        assert "s3://…@bucket/x" in told
        assert "HUS" not in told


def test_an_address_that_gives_no_access_by_itself_is_taken() -> None:
    addresses = "s3://bucket/a@b/c s3://bucket/x?region=eu&endpoint_override=http%3A%2F%2Fhost:9000 data/a:b@c.jsonl"
    for address in f"{addresses} gs://anonymous@bucket/x abfs://container@account.dfs.core.windows.net/x".split():
        config = Config()
        config.rollout.store = address
        assert without_secrets(address) == address
        assert not [one for one in violations(config) if one.where == "rollout.store"]


def test_the_environments_values_are_used_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "hidden-place")
    monkeypatch.setenv("HOW", "turns")
    words = ["data.train.path=${oc.env:PLACE}/a.jsonl", "data.held_out.path=${data.train.path}"]
    words += ["rollout.placement=${oc.env:HOW}", "rollout.reuse=['${oc.env:PLACE}/old',other]"]
    config = configuration.load(DEMO, [f"run.dir={tmp_path}/run", *words])
    config = pickle.loads(pickle.dumps(dataclasses.replace(config)))
    assert config.data.held_out[0].path == config.data.train[0].path == "hidden-place/a.jsonl"
    assert config.rollout.reuse == ["hidden-place/old", "other"]
    directory = RunDirectory(config)
    directory.claim()
    for file in ("config.yaml", "settings.json"):
        assert "hidden-place" not in directory.file(file).read_text()
        assert "${oc.env:PLACE}/a.jsonl" in directory.file(file).read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hidden-place").mkdir()
    (tmp_path / "hidden-place" / "a.jsonl").write_text("")
    submitted = submit._absolute(dataclasses.asdict(config), tmp_path)
    assert submitted["data"]["train"][0]["path"] == f"{tmp_path}/${{oc.env:PLACE}}/a.jsonl"
    assert "hidden-place" not in str(submitted)
    config.run.dir = Written(str(tmp_path / "hidden-place"), "${oc.env:PLACE}")
    audited = audit_config(config, 5, 0.0)
    assert audited.run.dir == f"{tmp_path}/hidden-place/judge-audit-5"
    assert "hidden-place" not in configuration.to_yaml(audited)
    monkeypatch.setenv("PLACE", "another-place")
    again = configuration.load(directory.file("config.yaml"))
    assert (again.data.held_out[0].path, again.rollout.placement) == ("another-place/a.jsonl", "turns")
    RunDirectory(again)
    assert read_record(directory.file("settings.json"), dict)["data.held_out.path"] == "${data.train.path}"
