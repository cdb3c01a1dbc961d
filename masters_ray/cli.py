"""The command line ``masters-ray``: parses a command and calls the room that does it."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import argcomplete
import yaml

import masters_ray
from masters_ray import progress, stopping
from masters_ray.errors import DamagedError, MastersError
from masters_ray.progress import conclude, say

if TYPE_CHECKING:
    from masters_ray.config import Config
    from masters_ray.pipeline.run_dir import RunDirectory
    from masters_ray.replicas.placement import Turns

_Command = Callable[[argparse.Namespace], int | None]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Names the command or option that is nearest to a mistyped one."""
        known = [name for one in self._actions for name in (*one.option_strings, *map(str, one.choices or ()))]
        if wrong := re.search(r"(?:choice|arguments): '?([\w-]+)", message):
            message += "".join(f"\nDid you mean {one}?" for one in difflib.get_close_matches(wrong[1], known, n=1))
        super().error(message)


def main(words: list[str] | None = None) -> int:
    """Runs one command and returns its exit code. A MastersError is printed without a traceback."""
    arguments = _parsed(words)
    stopping.forget()
    stopping.listen()
    progress.begin(getattr(arguments, "log", None), hasattr(arguments, "verbose"))
    try:
        return arguments.command(arguments) or 0
    except MastersError as error:
        told, exit_code = str(error), 1
    except BrokenPipeError:  # as of masters-ray config FILE | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is None:
            raise
        told, exit_code = f"{error.filename} cannot be used ({error.strerror}). Name another path, or mend this one.", 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(masters_ray.__name__):
            raise
        told, exit_code = f"{error.name} is not installed here: pip install 'masters-ray[cpu]', or [gpu].", 1
    except KeyboardInterrupt:
        told, exit_code = stopping.outcome()
        told += f"; {stopping.GOES_ON}"
    finally:
        progress.end()
    progress.fail(told, exit_code)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    printing: Any = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shown = "print the lines of Ray, vLLM and the learner's libraries too"
    printing.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help=shown)
    told = "text: lines, also in a terminal; json: a JSON object per line"
    printing.add_argument("--log", choices=("text", "json"), help=told)
    parser = _Parser(
        prog="masters-ray",
        parents=[printing],
        allow_abbrev=False,
        description=masters_ray.__doc__,
        epilog="Exit codes: 0 done, 1 refused or failed (the reason is said last), 2 words that mean nothing, "
        "75 stopped after run.stop_after, 130, 143, 129 stopped by Ctrl-C, SIGTERM, a closed terminal.",
    )
    parser.add_argument("--version", action="version", version=f"masters-ray {masters_ray.__version__}")
    helped = yaml.safe_load(Path(__file__).with_name("help.yaml").read_text(encoding="utf-8"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: _Command, help: str, *parents: Any) -> argparse.ArgumentParser:
        page, example = helped[name]
        told = f"example:\n  masters-ray {name} {example}\n\nmore: docs/{page}"
        shape: Any = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=told,
            formatter_class=shape,
            parents=[*parents, printing],
            allow_abbrev=False,
        )
        added.set_defaults(command=command, parser=added)
        return added

    configured = argparse.ArgumentParser(add_help=False)
    file: Any = configured.add_argument("config", help="a YAML file such as conf/demo.yaml")
    told = "what differs from the file: keys, or further YAML files; later ones win"
    more: Any = configured.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=told)
    file.completer = more.completer = _completed
    sampled = argparse.ArgumentParser(add_help=False, parents=[configured])
    sampled.add_argument("--questions", type=int, default=200, help="size of the sample; default: %(default)s")

    checked = argparse.ArgumentParser(add_help=False, parents=[configured])
    skips = "a check that is not made, such as packing; may be repeated"
    checked.add_argument("--skip", action="append", default=[], metavar="CHECK", help=skips)

    add("run", _run, "distil: on this machine, or on the cluster at RAY_ADDRESS", checked)
    add("generate", _generate, "make a run's rollouts only; run goes on with them", checked)
    store = add("store", _store, "look at stored rollouts")
    looks = "inspect: how far it is, what it holds, what was set aside; verify: read all, exit code 1 if it is damaged"
    store.add_argument("look", choices=("inspect", "verify"), help=looks)
    store.add_argument("folder", nargs="+", help="such as runs/demo/rollouts/stage-0 or s3://bucket/folder/stage-0")
    explained = add("config", _config, "print every key with value, origin and meaning, and the plan", configured)
    explained.add_argument("--changed", action="store_true", help="print only what differs from the defaults")
    init = add("init", _init, "write a configuration for a pair, data and a machine; asks for what is not given")
    init.add_argument("file", nargs="?", type=Path, default=Path("mine.yaml"), help="default: %(default)s")
    init.add_argument("--pair", help="toy, or one of conf/pairs such as qwen3_vl_8b_2b")
    init.add_argument("--train", metavar="PATH", help="training questions; the toy pair has its own")
    init.add_argument("--held-out", metavar="PATH", help="questions that accuracy is measured on")
    init.add_argument("--machine", help="one of conf/machines such as 8x80gb, or cpu; default: by the GPUs found here")
    validate = add("validate", _validate, "check all that can be checked without starting anything", configured)
    validate.add_argument("--all", action="store_true", help="look at all rows, not at the first 200 alone")
    add("doctor", _doctor, "prove pair, data and machine before a night is spent on them", checked)
    submit = add("submit", _submit, "hand a run to a cluster as a Ray job and follow its log", checked)
    submit.add_argument("--address", help="of the cluster's dashboard; default: RAY_ADDRESS or http://127.0.0.1:8265")
    submit.add_argument("--no-follow", action="store_true", help="return once the job is accepted")
    scan = add("mask-scan", _mask_scan, "which mask ratio to start with, from a sample", sampled)
    told = "with commas between; default: %(default)s"
    scan.add_argument("--ratios", type=_ratios, default="0.5,0.4,0.3,0.2,0.1,0", help=told)
    audit = add("judge-audit", _judge_audit, "how far student, teacher and rule agree as judges", sampled)
    audit.add_argument("--ratio", type=float, default=0.0, help="of the answering teacher's mask; default: %(default)s")
    plan = add(
        "plan", _plan, "what a run costs: hours, store, memory; what limits it, and what would change that", configured
    )
    plan.add_argument("--rates", type=Path, help="a run, or a rates.json; default: run.dir, if it has learned")
    plan.add_argument("--probe", action="store_true", help="measure the rates by a small run on these devices first")
    plan.add_argument("--questions", type=int, help="of the run; default: as data.train says")
    plan.add_argument("--shares", default="", metavar="0,0.1,0.2", help="compare these online fractions, too")
    pools = "compare these, too: of teacher, student, judge (with the reference policy)"
    plan.add_argument("--replicas", action="append", default=[], metavar="teacher=2,student=4", help=pools)
    plan.add_argument("--prompt-tokens", type=float, help="mean of a question; for an estimate without data")
    plan.add_argument("--answer-tokens", type=float, help="mean of an answer, for an estimate")
    bench = add("benchmark", _benchmark, "measure teacher and student on public benchmarks by lmms-eval", configured)
    bench.add_argument("--tasks", default="", metavar="ai2d,chartqa", help="lmms-eval's ids; default: the file's")
    told = "tasks with metrics, judges, the paper's figures; default: %(default)s"
    bench.add_argument("--benchmarks", default="conf/benchmarks/masters.yaml", metavar="FILE", help=told)
    bench.add_argument("--judge-url", default="", metavar="URL", help="a judge, such as http://127.0.0.1:8000/v1")
    bench.add_argument("--judge-model", default="", metavar="NAME", help="default: the first that is served there")
    bench.add_argument("--include-path", type=Path, metavar="FOLDER", help="tasks of your own, as lmms-eval has them")
    told = "of lmms-eval's environment (make harness); default: %(default)s"
    bench.add_argument("--harness", type=Path, default=Path(".harness/bin/python"), metavar="PYTHON", help=told)
    study = add("study", _study, "run the variants of a configuration with several seeds, compare them")
    study.add_argument("file", help="a YAML file such as conf/study/alpha.yaml")
    completion = add("completion", _completion, "print what makes a shell complete commands, options, files and keys")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def _completed(prefix: str, **_: Any) -> list[str]:
    """Returns YAML files here and in the package, and keys, that begin with ``prefix``."""
    from masters_ray.config import SHIPPED, keys

    shipped = [str(one.relative_to(SHIPPED)) for one in SHIPPED.glob("conf/**/*.yaml")]
    names = [name for name in [*shipped, *(f"{key}=" for key in keys())] if name.startswith(prefix)]
    return [*argcomplete.FilesCompleter(["yaml", "yml"])(prefix), *names]


def _ratios(text: str) -> list[float]:
    return sorted({float(word) for word in text.split(",")}, reverse=True)


def _parsed(words: list[str] | None) -> argparse.Namespace:
    """Parses the command line. Accepts ``key=value`` overrides after options too, which argparse alone refuses."""
    parser = _parser()
    argcomplete.autocomplete(parser)
    if not (sys.argv[1:] if words is None else words):
        parser.print_help()
        parser.exit(2)
    arguments, rest = parser.parse_known_args(words)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        arguments.parser.error(f"unrecognized arguments: {' '.join(sorted(rest, key=lambda word: word[0] != '-'))}")
    if hasattr(arguments, "overrides"):
        arguments.overrides = [*arguments.overrides, *rest]
        for word in (arguments.config, *(word for word in arguments.overrides if "=" not in word)):
            _located(word)
    if arguments.command is not _doctor and getattr(arguments, "skip", None):
        arguments.overrides.append(f"run.skip_checks=[{','.join(arguments.skip)}]")
    return arguments


def _located(file: str) -> str:
    """Returns the path of a file; tells which it is where the package has what is not here."""
    from masters_ray.config import located

    if (found := located(file)) != Path(file):
        print(f"{file} is that of the package, {found}", file=sys.stderr)
    return str(found)


def _config(arguments: argparse.Namespace) -> None:
    from masters_ray import explain
    from masters_ray.config import read
    from masters_ray.errors import ConfigError

    file, words = arguments.config, arguments.overrides
    config, complaints = read(file, words)
    print(explain.explained(config, file, words, changed=arguments.changed))
    if complaints:
        raise ConfigError(complaints)
    print(*explain.planned(config), sep="\n")


def _init(arguments: argparse.Namespace) -> None:
    from masters_ray import init

    written = init.write(arguments.file, arguments.pair, arguments.train, arguments.held_out, arguments.machine)
    say(f"written {written}; its first lines say what comes next")


def _completion(arguments: argparse.Namespace) -> None:
    print(argcomplete.shellcode(["masters-ray"], shell=arguments.shell))


def _run(arguments: argparse.Namespace) -> None:
    from masters_ray import checks
    from masters_ray.pipeline.run_dir import RunDirectory

    config = checks.load(arguments.config, arguments.overrides)
    directory = RunDirectory(config)
    if directory.finished:
        from masters_ray import report

        say(f"{directory.root} holds this run, finished; delete the directory to run it again")
        conclude(f"report {report.write(directory.root)}")
        return
    with _on_ray(config) as (directory, turns):
        from masters_ray.pipeline import run

        written = run.run(config, directory, arguments.config, turns)
    conclude(f"summary {written.with_name('summary.json')}")
    conclude(f"report  {written}")
    conclude(f"student {directory.student}; to publish it with its model card: hf upload USER/NAME {directory.student}")


@contextmanager
def _on_ray(config: Config, *, learns: bool = True) -> Iterator[tuple[RunDirectory, Turns | None]]:
    """Yields the locked run directory and what ``placement.place`` decides, with Ray connected inside the block."""
    from masters_ray import cluster
    from masters_ray.config.fields import seconds_of
    from masters_ray.pipeline.run_dir import RunDirectory

    directory = RunDirectory(config)
    limit = config.run.stop_after or ""
    stopping.stop_after(seconds_of(limit), limit)
    with directory.locked(), cluster.connected(config.cluster):
        yield directory, cluster.place(config, learns=learns)


def _generate(arguments: argparse.Namespace) -> None:
    from masters_ray import checks

    config = checks.load(arguments.config, arguments.overrides)
    with _on_ray(config, learns=False) as (directory, _):
        from masters_ray.pipeline import run

        for folder in run.generate(config, directory, arguments.config):
            conclude(f"rollouts {folder}")


def _store(arguments: argparse.Namespace) -> None:
    from masters_ray.store import look

    for folder in arguments.folder:
        try:
            for line in getattr(look, arguments.look)(folder):
                say(line)
        except DamagedError as error:
            raise DamagedError(f"{error}\nThe command that made the store makes what is damaged again.") from error


def _validate(arguments: argparse.Namespace) -> None:
    from masters_ray import checks

    left = checks.validate(arguments.config, arguments.overrides, all_rows=arguments.all)
    conclude(f"{arguments.config}: no complaint" + (f" about what was looked at; {left}" if left else ""))


def _doctor(arguments: argparse.Namespace) -> int:
    from masters_ray import doctor

    failed, page = doctor.examine(arguments.config, arguments.overrides, arguments.skip)
    conclude(f"{failed or 'no'} check{'s' * (failed != 1)} failed; page {page}")
    return int(failed > 0)


def _submit(arguments: argparse.Namespace) -> int:
    from masters_ray import submit

    return submit.submit(arguments.config, arguments.overrides, arguments.address, follow=not arguments.no_follow)


def _mask_scan(arguments: argparse.Namespace) -> None:
    from masters_ray.studies import mask_scan, sample

    chosen = arguments.questions, arguments.ratios
    _examine(arguments, lambda config: sample(config, "mask-scan", *chosen), mask_scan.scan)


def _judge_audit(arguments: argparse.Namespace) -> None:
    from masters_ray.studies import judge_audit

    chosen = arguments.questions, arguments.ratio
    _examine(arguments, lambda config: judge_audit.audit_config(config, *chosen), judge_audit.audit)


def _examine(
    arguments: argparse.Namespace,
    sampled: Callable[[Config], Config],
    examine: Callable[[Config, RunDirectory, str], Path],
) -> None:
    from masters_ray import checks
    from masters_ray.config import violations
    from masters_ray.errors import ConfigError

    words = [*arguments.overrides, f"data.train_rows={arguments.questions}"]
    config = sampled(checks.load(arguments.config, words))
    if broken := violations(config):
        raise ConfigError(broken)
    with _on_ray(config, learns=False) as (directory, _):
        conclude(f"page {examine(config, directory, arguments.config)}")


def _plan(arguments: argparse.Namespace) -> None:
    from masters_ray import plan
    from masters_ray.plan.sources import Asked

    asked = Asked(
        rates=arguments.rates,
        probes=arguments.probe,
        questions=arguments.questions,
        shares=arguments.shares,
        replicas=arguments.replicas,
        prompt_tokens=arguments.prompt_tokens,
        answer_tokens=arguments.answer_tokens,
    )
    made = plan.make(arguments.config, arguments.overrides, asked)
    plan.tell(made)
    conclude(f"page {Path(made.config.run.dir) / 'plan' / 'plan.html'}")


def _benchmark(arguments: argparse.Namespace) -> None:
    from masters_ray import benchmark
    from masters_ray.benchmark.harness import Harness

    harness = Harness(arguments.harness, arguments.include_path, arguments.judge_url.rstrip("/"), arguments.judge_model)
    tasks = list(filter(None, arguments.tasks.split(",")))
    made = benchmark.measure(arguments.config, arguments.overrides, _located(arguments.benchmarks), tasks, harness)
    conclude(f"written {made}")


def _study(arguments: argparse.Namespace) -> None:
    from masters_ray.studies import study

    conclude(f"page {study.run(study.read(_located(arguments.file)))}")


if __name__ == "__main__":
    sys.exit(main())
