"""The program ``masters-ray``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
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
    from masters_ray.placement import Turns


def main(words: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors raised on purpose are shown without a traceback."""
    arguments = _parsed(words)
    stopping.forget()
    stopping.listen()
    try:
        return arguments.command(arguments) or 0
    except MastersError as error:
        told, exit_code = str(error), 1
    except OSError as error:
        if error.filename is None:
            raise
        told = f"{error.filename} cannot be used ({error.strerror}). Name another path, or mend this one."
        exit_code = 1
    except KeyboardInterrupt:
        told, exit_code = stopping.outcome()
        told += f"; {stopping.GOES_ON}"
    print(f"masters-ray: {told}", file=sys.stderr)
    return exit_code


_Option = tuple[str, dict[str, Any]]


def _option(name: str, help: str, **settings: Any) -> _Option:
    """As ``add_argument`` takes it."""
    return name, {"help": help, **settings}


_CONFIGURED = (
    _option("config", "a YAML file such as conf/demo.yaml"),
    _option("overrides", "what differs from the file", nargs="*", metavar="key=value"),
)
_SAMPLED = (_option("--questions", "size of the sample; default: %(default)s", type=int, default=200), *_CONFIGURED)
_RATIOS = _option("--ratios", "with commas between; default: %(default)s", default="0.5,0.4,0.3,0.2,0.1,0")
_RATIO = _option("--ratio", "mask of the teacher that answers; default: %(default)s", type=float, default=0.0)
_VALIDATED = (_option("--all", "look at all rows, not at the first 200 alone", action="store_true"), *_CONFIGURED)
_SUBMITTED = (
    _option("--address", "of the cluster's dashboard; default: RAY_ADDRESS or http://127.0.0.1:8265"),
    _option("--no-follow", "return once the job is accepted", action="store_true"),
    *_CONFIGURED,
)
_STUDY = _option("file", "a YAML file such as conf/study/alpha.yaml")
_REPLICAS = "compare these, too: of teacher, student, judge (with the reference policy)"
_SIMULATED = (
    _option("--rates", "a run with online iterations, or a rates.json; default: run.dir", type=Path),
    _option("--questions", "of the run; default: data.train.rows", type=int),
    _option("--shares", "online fractions; default: %(default)s", default="0,0.05,0.1,0.2,0.5,1"),
    _option("--replicas", _REPLICAS, action="append", default=[], metavar="teacher=2,student=4"),
    *_CONFIGURED,
)
_FOLDER = _option("folder", "such as runs/demo/rollouts/stage-0 or s3://bucket/folder/stage-0", nargs="+")


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
    _add(commands, "run", _run, "distil: on this machine, or on the cluster at RAY_ADDRESS", *_CONFIGURED)
    _add(commands, "generate", _generate, "make a run's rollouts only; run goes on with them", *_CONFIGURED)
    looks = commands.add_parser("store", help="look at stored rollouts").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _add(looks, "inspect", _store, "how far it is, what its rows are made of, what was set aside and why", _FOLDER)
    _add(looks, "verify", _store, "read and count every shard and row; exit code 1 when something is damaged", _FOLDER)
    _add(commands, "validate", _validate, "check all that can be checked without starting anything", *_VALIDATED)
    _add(commands, "submit", _submit, "hand a run to a cluster as a Ray job and follow its log", *_SUBMITTED)
    _add(commands, "mask-scan", _mask_scan, "which mask ratio to start with, from a sample", _RATIOS, *_SAMPLED)
    _add(commands, "judge-audit", _judge_audit, "how far student, teacher and rule agree as judges", _RATIO, *_SAMPLED)
    _add(commands, "simulate", _simulate, "what online iterations would cost, from measured rates", *_SIMULATED)
    _add(commands, "study", _study, "run the variants of a configuration with several seeds, compare them", _STUDY)
    return parser


def _add(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int | None], help: str, *options: _Option
) -> None:
    added = commands.add_parser(name, help=help)
    for option, settings in options:
        added.add_argument(option, **settings)
    added.set_defaults(command=command, name=name)


def _parsed(words: list[str] | None) -> argparse.Namespace:
    """Words such as run.dir=x may stand behind options, where argparse by itself takes none."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _run(arguments: argparse.Namespace) -> None:
    from masters_ray import checks
    from masters_ray.pipeline.directory import RunDirectory

    config = checks.load(arguments.config, arguments.overrides)
    directory = RunDirectory(config)
    if directory.finished:
        _finished(config, directory)
        return
    with _on_ray(config) as (directory, turns):
        from masters_ray.pipeline import run

        written = run.run(config, directory, arguments.config, turns)
    say(f"summary {written.with_name('summary.json')}")
    say(f"report  {written}")


def _finished(config: Config, directory: RunDirectory) -> None:
    from masters_ray import report
    from masters_ray.pipeline import contents

    say(f"{directory.root} holds this run, finished; delete the directory to run it again")
    for line in contents.changed_since(config, directory):
        say(line)
    say(f"report {report.write(directory.root)}")


@contextmanager
def _on_ray(config: Config, *, learns: bool = True) -> Iterator[tuple[RunDirectory, Turns | None]]:
    """The run's directory, nobody else's inside the block, and Ray with room for what is asked of it; learns and turns
    as of ``placement.place``. What takes seconds to import, and not Ray, is imported on a thread meanwhile."""
    from masters_ray import cluster
    from masters_ray.pipeline.directory import RunDirectory

    def load() -> None:
        with suppress(Exception):  # raised again where it is needed
            for name in ("torch", "masters_ray.report"):
                import_module(name)

    directory = RunDirectory(config)
    with directory.locked():
        Thread(target=load, name="imports").start()  # no daemon: a process must not end in the middle of an import
        with cluster.connected(config.cluster):
            yield directory, cluster.place(config, learns=learns)


def _generate(arguments: argparse.Namespace) -> None:
    from masters_ray import checks

    config = checks.load(arguments.config, arguments.overrides)
    with _on_ray(config, learns=False) as (directory, _):
        from masters_ray.pipeline import run

        for folder in run.generate(config, directory, arguments.config):
            say(f"rollouts {folder}")


def _store(arguments: argparse.Namespace) -> None:
    from masters_ray.store import look

    for folder in arguments.folder:
        try:
            for line in getattr(look, arguments.name)(folder):
                say(line)
        except DamagedError as error:
            raise DamagedError(f"{error}\nThe command that made the store makes what is damaged again.") from error


def _validate(arguments: argparse.Namespace) -> None:
    from masters_ray import checks

    left = checks.validate(arguments.config, arguments.overrides, all_rows=arguments.all)
    found = f"no complaint about what was looked at; {left}" if left else "no complaint"
    say(f"{arguments.config}: {found}")


def _submit(arguments: argparse.Namespace) -> int:
    from masters_ray import submit

    return submit.submit(arguments.config, arguments.overrides, arguments.address, follow=not arguments.no_follow)


def _mask_scan(arguments: argparse.Namespace) -> None:
    from masters_ray.studies import mask_scan

    config = mask_scan.scan_config(_loaded(arguments), mask_scan.parse_ratios(arguments.ratios), arguments.questions)
    _examined(config, arguments.config, mask_scan.scan)


def _judge_audit(arguments: argparse.Namespace) -> None:
    from masters_ray.studies import judge_audit

    config = judge_audit.audit_config(_loaded(arguments), arguments.questions, arguments.ratio)
    _examined(config, arguments.config, judge_audit.audit)


def _loaded(arguments: argparse.Namespace) -> Config:
    """The command's configuration. Raises ConfigError for a sample without questions, too."""
    from masters_ray import checks
    from masters_ray.errors import Complaint, ConfigError

    if arguments.questions < 1:
        raise ConfigError([Complaint("--questions", "at least 1", str(arguments.questions), "Raise it.")])
    return checks.load(arguments.config, [*arguments.overrides, f"data.train.rows={arguments.questions}"])


def _examined(config: Config, config_file: str, examine: Callable[[Config, RunDirectory, str], Path]) -> None:
    from masters_ray.config import violations
    from masters_ray.errors import ConfigError

    if broken := violations(config):
        raise ConfigError(broken)
    with _on_ray(config, learns=False) as (directory, _):
        say(f"page {examine(config, directory, config_file)}")


def _simulate(arguments: argparse.Namespace) -> None:
    from masters_ray import config
    from masters_ray.plan.comparison import report

    words = [*arguments.overrides, *([] if arguments.questions is None else [f"data.train.rows={arguments.questions}"])]

    def load(more: Sequence[str]) -> Config:
        return config.load(arguments.config, [*words, *more])

    for line in report(load, arguments.rates, arguments.shares, arguments.replicas):
        say(line)


def _study(arguments: argparse.Namespace) -> None:
    from masters_ray.studies import study

    say(f"page {study.run(study.read(arguments.file))}")


if __name__ == "__main__":
    sys.exit(main())
