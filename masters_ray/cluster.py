"""Connects to the cluster at RAY_ADDRESS, or starts a Ray on this machine when it is unset; watches over that Ray."""

import gc
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import auto_init_hook, parameter, ray_constants, utils
from ray._private import worker as ray_worker
from ray._private.authentication import authentication_token_setup as tokens
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray._private.state import state
from ray.exceptions import AuthenticationError, RaySystemError

from masters_ray import progress, stopping
from masters_ray.config import Cluster, Config
from masters_ray.errors import ClusterError, Complaint, ConfigError, LearnerError, MastersError, ReplicaError
from masters_ray.progress import emit, say, warn
from masters_ray.replicas import placement
from masters_ray.replicas.placement import Turns

_LOOPBACK = {
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""Environment variables of all processes of the local Ray, whose clients need the token."""
_IN_A_PROCESS = (ClusterError, LearnerError, ReplicaError)
"""Errors about which the logs of Ray's processes may say more; after them and unexpected errors the logs are kept."""
_LONGEST_FOLDER = 30
"""Longest path, bytes, in which Ray may make its directory: a socket's path may have 107, of which Ray adds 76."""
_TOLD_BY_US = ("Raylet is terminated", "A worker died", "The node with node id", "Task ReplicaActor.")


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Connects Ray inside the block. Raises ConfigError when nothing answers at RAY_ADDRESS, ClusterError when Ray
    cannot be started on this machine. Ends this process with exit code 1 when Ray is lost inside the block. It has
    this process collect garbage rarely from then on."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _own(cluster) if address == "local" else _existing(address):
        resources = ray.cluster_resources()
        where = "this machine" if address == "local" else f"cluster {address}"
        say(f"Ray on {where}: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs")
        # Collections that scan all of the libraries' objects took a sixth of the time in which rollouts pass through.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        yield


def place(config: Config, *, learns: bool = True) -> Turns | None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    autoscaler = state.get_cluster_config()
    grows = config.cluster.grows or bool(autoscaler and autoscaler.node_group_configs)
    return placement.place(config, nodes, learns=learns, grows=grows)


def local_resources(cluster: Cluster) -> dict[str, float]:
    """Returns the resources (name → amount) that a Ray started on this machine would have."""
    spec = ResourceAndLabelSpec(num_cpus=cluster.local_cpus)
    spec.resolve(is_head=True, node_ip_address="127.0.0.1")
    return dict(spec.to_resource_dict())


@contextmanager
def _existing(address: str) -> Iterator[None]:
    try:
        if address.startswith("http"):
            raise ValueError("that is a dashboard's address: hand the run over with masters-ray submit")
        _knock(address)
        try:
            _init()
        except AuthenticationError:
            if not tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
                raise
            _init()
    except (AuthenticationError, OSError, RuntimeError, ValueError, RaySystemError) as error:
        expected, told = "the address of a running cluster, such as auto or 10.0.0.1:6379", " ".join(str(error).split())
        remedy = "Start one with ray start --head and copy its ~/.ray/auth_token here, or unset RAY_ADDRESS."
        raise ConfigError([Complaint("RAY_ADDRESS", expected, f"{address} ({told})", remedy)]) from error
    try:
        # Ray itself ends this process after 60 seconds, without our message: look earlier.
        with _watched(partial(_knock, ray.get_runtime_context().gcs_address), seconds=2.5, patience=50):
            yield
    finally:
        ray.shutdown()


@contextmanager
def _own(cluster: Cluster) -> Iterator[None]:
    """Runs a Ray: on the loopback, behind a token, in a directory kept after ``_IN_A_PROCESS``."""
    before, spared = dict(os.environ), stopping.children()
    asked = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    short = asked if len(os.fsencode(asked)) <= _LONGEST_FOLDER else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="mr-", dir=short))
    # Ray turns its token mode on for a local cluster unless this variable says otherwise.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.update(_LOOPBACK)
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        os.environ["TMPDIR"] = str(folder)  # the engines' sockets have the same limit on paths
    ended = False
    try:
        _start(cluster, folder)
        with _watched(_look_for_dead_processes, seconds=0.25, patience=0.5):
            yield
        ended = True
    except BaseException as error:
        ended = isinstance(error, KeyboardInterrupt | MastersError) and not isinstance(error, _IN_A_PROCESS)
        raise
    finally:
        ray.shutdown()
        stopping.end_children(spared)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        if ended:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"the logs of its processes: {folder}/session_latest/logs")


def _start(cluster: Cluster, folder: Path) -> None:
    """Starts Ray, a second time after a timeout. Raises ClusterError when it does not come up."""
    options = {"address": "local", "num_cpus": cluster.local_cpus, "include_dashboard": False}
    for last in (False, True):
        try:
            with progress.Doing("Ray starts on this machine"):
                _init(**options, _node_ip_address="127.0.0.1", _temp_dir=str(folder))
            return
        except Exception as error:  # Ray raises bare Exceptions
            ray.shutdown()
            told = " ".join(str(error).split())
            if last or "timed out" not in told:
                raise ClusterError(
                    f"Ray did not start on this machine ({type(error).__name__}: {told}). Usual causes: too little "
                    f"memory, a full {folder.parent} or /dev/shm, or a machine that is too busy. Its logs: {folder}"
                ) from error
            warn(f"Ray did not start in time and is started again ({told})")


def _init(**options: Any) -> None:
    """Calls ``ray.init`` with our output, signal handlers and ports. Raises whatever Ray raises."""
    ray_worker.print_to_stdstream = _whole if progress.shows_workers() else _told_in_short
    utils.set_sigterm_handler = lambda _: None
    # Job submission uses the agent's default port: leave it to other clusters on this machine.
    parameter.RayParams = partial(parameter.RayParams, dashboard_agent_listen_port=0)
    # Otherwise a thread that still asks Ray once it has ended would start another one.
    auto_init_hook.enable_auto_connect = False
    # Otherwise Ray replaces the loopback address by that of a network interface.
    ray_constants.ENABLE_RAY_CLUSTER = options.get("address") != "local"
    try:
        shown = progress.shows_workers()
        ray.init(log_to_driver=shown, logging_level="INFO" if shown else "ERROR", **options)
    finally:
        stopping.listen()


def _told_in_short(data: dict[str, Any], **_: Any) -> None:
    """Prints the first sentence of a message of Ray; the rest stays in Ray's logs."""
    told = " ".join(str(data["lines"][0]).split())
    if not told.startswith(_TOLD_BY_US):
        warn("Ray: " + told.partition(". ")[0])


def _whole(data: dict[str, Any], **_: Any) -> None:
    """Prints the lines of a process of Ray."""
    for line in data["lines"]:
        emit("worker", line, prefix=f"({data.get('actor_name') or data.get('task_name') or 'Ray'} {data['pid']}) ")


@contextmanager
def _watched(look: Callable[[], None], seconds: float, patience: float) -> Iterator[None]:
    """Ends this process when Ray is lost inside the block, since calls that wait for Ray would never return. look:
    raises OSError for a fault; seconds: between two calls of it; patience: seconds for which a fault may last."""
    left = threading.Event()

    def watch() -> None:
        good = time.monotonic()
        while not left.wait(seconds):
            try:
                look()
                good = time.monotonic()
            except OSError as error:
                if time.monotonic() - good > patience and not stopping.asked():
                    print(f"masters-ray: {error}", file=sys.stderr)
                    stopping.end(stopping.GOES_ON, 1)

    thread = threading.Thread(target=watch, name="watch over Ray", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def _look_for_dead_processes() -> None:
    """Raises ChildProcessError when the local Ray's gcs_server or raylet has ended."""
    node = ray_worker._global_node
    for name, process in node.dead_processes() if node else ():
        if name in ("gcs_server", "raylet"):
            raise ChildProcessError(
                f"Ray's {name} on this machine ended (exit code {process.returncode}). When memory runs out the system "
                f"kills processes: see dmesg, and Ray's logs in {node.get_logs_dir_path()}"
            )


def _knock(address: str) -> None:
    """Raises OSError when nothing listens at host:port within 5 seconds; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            raise ConnectionError(f"the cluster at {address} does not answer: {error}") from error
