"""The program ``masters-ray``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module, metadata
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import masters_ray
from masters_ray import stopping
from masters_ray.errors import DamagedError, MastersError
from masters_ray.progress import say

if TYPE_CHECKING:
    from masters_ray.config import Config
    from masters_ray.pipeline.directory import RunDirectory


def main(words: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors raised on purpose are shown without a traceback."""
    arguments = _parsed(words)
    stopping.forget()
    stopping.listen()
    try:
        return int(arguments.command(arguments))
    except MastersError as error:
        print(f"masters-ray: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        told = f"{error.filename} cannot be used ({error.strerror}). Name another path, or mend this one."
        print(f"masters-ray: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        told, exit_code = stopping.outcome()
        print(f"masters-ray: {told}; {stopping.GOES_ON}", file=sys.stderr)
        return exit_code


def _parsed(words: list[str] | None) -> argparse.Namespace:
    """Words such as run.dir=x may stand behind options, where argparse by itself takes none."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


class _WholeWords(argparse.ArgumentParser):
    """Of a command: takes no beginnings of its options for them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="masters-ray",
        allow_abbrev=False,
        description=masters_ray.__doc__,
        epilog="Exit codes: 0 done, 1 refused or failed (the reason is said last), 2 words that mean nothing, "
        "130, 143, 129 stopped by Ctrl-C, SIGTERM, a closed terminal.",
    )
    parser.add_argument("--version", action="version", version=f"masters-ray {metadata.version('masters-ray')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_WholeWords)

    run = commands.add_parser("run", help="distil: on this machine, or on the cluster at RAY_ADDRESS")
    _configured(run)
    run.set_defaults(command=_run)

    generate = commands.add_parser("generate", help="make a run's rollouts only; run goes on with them")
    _configured(generate)
    generate.set_defaults(command=_generate)

    looks = commands.add_parser("store", help="look at stored rollouts").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for name, told in (
        ("inspect", "how far it is, and what its rows are made of"),
        ("verify", "read every shard and row; exit code 1 when something is damaged"),
        ("stats", "counts, accuracies, bytes, reasons of the questions set aside"),
    ):
        look = looks.add_parser(name, help=told)
        look.add_argument("folder", nargs="+", help="such as runs/demo/rollouts/stage-0 or s3://bucket/folder/stage-0")
        look.set_defaults(command=_store, look=name)

    validate = commands.add_parser("validate", help="check everything that can be checked without starting anything")
    validate.add_argument("--all", action="store_true", help="look at all rows of the data, not at the first 200 alone")
    _configured(validate)
    validate.set_defaults(command=_validate)

    submit = commands.add_parser("submit", help="hand a run to a cluster as a Ray job and follow its log")
    submit.add_argument("--address", help="of the cluster's dashboard; default: RAY_ADDRESS or http://127.0.0.1:8265")
    submit.add_argument("--no-follow", action="store_true", help="return once the job is accepted")
    _configured(submit)
    submit.set_defaults(command=_submit)

    scan = commands.add_parser("mask-scan", help="which mask ratio a run should start with, from a sample of its data")
    scan.add_argument("--ratios", default="0.5,0.4,0.3,0.2,0.1,0", help="with commas between; default: %(default)s")
    scan.add_argument("--questions", type=int, default=200, help="size of the sample; default: %(default)s")
    _configured(scan)
    scan.set_defaults(command=_mask_scan)

    audit = commands.add_parser("judge-audit", help="how far student, teacher and rule agree as judges")
    audit.add_argument(
        "--ratio", type=float, default=0.0, help="mask of the teacher that answers; default: %(default)s"
    )
    audit.add_argument("--questions", type=int, default=200, help="size of the sample; default: %(default)s")
    _configured(audit)
    audit.set_defaults(command=_judge_audit)

    simulation = commands.add_parser(
        "simulate", help="what online iterations would cost with other shares and replicas, from measured rates"
    )
    simulation.add_argument(
        "--rates", type=Path, help="a run with online iterations, or a rates.json; default: run.dir"
    )
    simulation.add_argument("--questions", type=int, help="of the run; default: data.train.rows")
    simulation.add_argument("--shares", default=None, help="online fractions with commas between; default: 0 to 1")
    simulation.add_argument(
        "--replicas",
        action="append",
        default=[],
        metavar="teacher=2,student=4",
        help="compare these, too; pools: teacher, student, reference (with the judge)",
    )
    simulation.add_argument("--dedicated", action="store_true", help="learner and replicas share no cores")
    simulation.add_argument(
        "--cores-worth",
        type=float,
        metavar="1.6",
        help="times the work of one busy process that the shared cores do while all are busy; "
        "default: as rates.json says; python -m bench.cores measures it",
    )
    _configured(simulation)
    simulation.set_defaults(command=_simulate)

    study = commands.add_parser(
        "study", help="run the variants of a configuration with several seeds, and compare them"
    )
    study.add_argument("file", help="a YAML file such as conf/study/alpha.yaml")
    study.set_defaults(command=_study)
    return parser


def _configured(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file such as conf/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what differs from the file")


def _run(arguments: argparse.Namespace) -> int:
    from masters_ray import cluster, validation
    from masters_ray.pipeline.directory import RunDirectory

    config = validation.load(arguments.config, arguments.overrides)
    directory = RunDirectory(config)
    if directory.finished:
        return _finished(config, directory)
    with directory.locked(), _imported_meanwhile(), cluster.connected(config.cluster):
        from masters_ray.pipeline import run

        turns = validation.check_cluster(config)
        written = run.run(config, directory, arguments.config, turns)
    say(f"summary {written.with_name('summary.json')}")
    say(f"report  {written}")
    return 0


def _finished(config: Config, directory: RunDirectory) -> int:
    from masters_ray import report
    from masters_ray.pipeline import contents

    say(f"{directory.root} holds this run, finished; delete the directory to run it again")
    for line in contents.changed_since(config, directory):
        say(line)
    say(f"report {report.write(directory.root)}")
    return 0


@contextmanager
def _imported_meanwhile() -> Iterator[None]:
    """What takes seconds to import and does not import Ray is imported on a thread, while the block starts Ray."""

    def load() -> None:
        with suppress(Exception):  # raised again where it is needed
            for name in ("torch", "masters_ray.report"):
                import_module(name)

    Thread(target=load, name="imports").start()  # no daemon: a process must not end in the middle of an import
    yield


def _generate(arguments: argparse.Namespace) -> int:
    from masters_ray import cluster, validation
    from masters_ray.pipeline.directory import RunDirectory

    config = validation.load(arguments.config, arguments.overrides)
    directory = RunDirectory(config)
    with directory.locked(), _imported_meanwhile(), cluster.connected(config.cluster):
        from masters_ray.pipeline import run

        validation.check_cluster(config, learns=False)
        for folder in run.generate(config, directory, arguments.config):
            say(f"rollouts {folder}")
    return 0


def _mask_scan(arguments: argparse.Namespace) -> int:
    from masters_ray.studies import mask_scan

    config = mask_scan.scan_config(_loaded(arguments), mask_scan.parse_ratios(arguments.ratios), arguments.questions)
    return _examined(config, arguments.config, mask_scan.scan)


def _judge_audit(arguments: argparse.Namespace) -> int:
    from masters_ray.studies import judge_audit

    config = judge_audit.audit_config(_loaded(arguments), arguments.questions, arguments.ratio)
    return _examined(config, arguments.config, judge_audit.audit)


def _loaded(arguments: argparse.Namespace) -> Config:
    """The command's configuration. Raises ConfigError for a sample without questions, too."""
    from masters_ray import validation
    from masters_ray.errors import Complaint, ConfigError

    if arguments.questions < 1:
        raise ConfigError(
            [Complaint(where="--questions", expected="at least 1", found=str(arguments.questions), remedy="Raise it.")]
        )
    return validation.load(arguments.config, [*arguments.overrides, f"data.train.rows={arguments.questions}"])


def _examined(config: Config, config_file: str, examine: Callable[[Config, RunDirectory, str], Path]) -> int:
    from masters_ray import cluster, validation
    from masters_ray.config import violations
    from masters_ray.errors import ConfigError
    from masters_ray.pipeline.directory import RunDirectory

    if broken := violations(config):
        raise ConfigError(broken)
    directory = RunDirectory(config)
    with directory.locked(), cluster.connected(config.cluster):
        validation.check_cluster(config, learns=False)
        say(f"page {examine(config, directory, config_file)}")
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from masters_ray import config, simulation

    told = simulation.report(
        config.load(arguments.config, arguments.overrides),
        arguments.rates,
        arguments.questions,
        simulation.SHARES if arguments.shares is None else simulation.parse_shares(arguments.shares),
        [{}, *map(simulation.parse_replicas, arguments.replicas)],
        dedicated=arguments.dedicated,
        cores_worth=arguments.cores_worth,
    )
    for line in told:
        say(line)
    return 0


def _study(arguments: argparse.Namespace) -> int:
    from masters_ray.studies import study

    say(f"page {study.run(study.read(arguments.file))}")
    return 0


def _store(arguments: argparse.Namespace) -> int:
    from masters_ray.store import look

    for folder in arguments.folder:
        try:
            for line in getattr(look, arguments.look)(folder):
                say(line)
        except DamagedError as error:
            raise DamagedError(f"{error}\nThe command that made the store makes what is damaged again.") from error
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from masters_ray import preflight

    left = preflight.validate(arguments.config, arguments.overrides, whole=arguments.all)
    found = f"no complaint about what was looked at; {left}" if left else "no complaint"
    say(f"{arguments.config}: {found}")
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    from masters_ray import submit

    return submit.submit(arguments.config, arguments.overrides, arguments.address, follow=not arguments.no_follow)


if __name__ == "__main__":
    sys.exit(main())
