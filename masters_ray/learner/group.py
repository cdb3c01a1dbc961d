"""How the learner's workers find each other."""

from __future__ import annotations

import importlib
import socket
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class _OneAddress(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Before the workers meet."""
        worker_group.execute(_listen_at_one_address)
        super().on_start(worker_group, backend_config)


class GroupConfig(TorchConfig):
    """A torch process group whose store listens at its node's address only: torch's own does on all interfaces."""

    @property
    def backend_cls(self) -> type:
        return _OneAddress


def _listen_at_one_address() -> None:
    # The package has a function of the module's name.
    module: Any = importlib.import_module("torch.distributed.rendezvous")
    theirs = module.TCPStore

    def store(host_name: str, port: int, *, is_master: bool, **options: Any) -> Any:
        if is_master:
            family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
            options["master_listen_fd"] = socket.create_server((host_name, port), family=family, backlog=4096).detach()
        return theirs(host_name, port, is_master=is_master, **options)

    module.TCPStore = store
