"""The Ray that a run uses: an existing cluster when RAY_ADDRESS is set, else one on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from masters_ray.config import Cluster
from masters_ray.errors import Complaint, ConfigError
from masters_ray.progress import say


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Ray is there inside the block. Raises ConfigError when RAY_ADDRESS leads nowhere."""
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("http"):
        raise ConfigError(
            [
                Complaint(
                    where="RAY_ADDRESS",
                    expected="the address of a cluster, such as auto or 10.0.0.1:6379",
                    found=address,
                    remedy="That is a dashboard's address: hand the run over with masters-ray submit.",
                )
            ]
        )
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    try:
        if address:
            _knock(address)
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(
                address="local",
                num_cpus=cluster.local_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except OSError as error:
        complaint = Complaint(
            where="RAY_ADDRESS",
            expected="a running cluster",
            found=f"{address} ({error})",
            remedy="Start one with ray start --head, or unset RAY_ADDRESS to use this machine alone.",
        )
        raise ConfigError([complaint]) from error
    resources = ray.cluster_resources()
    where = f"cluster {address}" if address else "this machine"
    say(f"Ray on {where}: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs")
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError when nothing listens at host:port: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
