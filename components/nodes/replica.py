"""What each node of a Vertex custom job runs: torchrun, told by `CLUSTER_SPEC` which node this is.

Vertex sets that variable on every replica (https://cloud.google.com/vertex-ai/docs/training/distributed-training):
the host names by worker pool, this replica's pool and number, and ports that are open between replicas.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PORT = 3333
"""Of the first node, where the variable names no open port."""


def torchrun_command(spec: Mapping[str, Any], processes: int, arguments: Sequence[str]) -> list[str]:
    """The command of this node.

    Args:
        spec: the content of `CLUSTER_SPEC`.
        processes: to start here.
        arguments: the command of `calib_core` and its flags.
    """
    pools: dict[str, list[str]] = spec["cluster"]
    task: dict[str, Any] = spec["task"]
    hosts = [(pool, number) for pool in sorted(pools) for number in range(len(pools[pool]))]
    ports = spec.get("open_ports") or [PORT]
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        f"--nnodes={len(hosts)}",
        f"--node_rank={hosts.index((str(task['type']), int(task['index'])))}",
        f"--nproc_per_node={processes}",
        f"--master_addr={pools['workerpool0'][0].rpartition(':')[0]}",
        f"--master_port={ports[0]}",
        *("-m", "calib_core", *arguments),
    ]


def main() -> None:
    """Become torchrun: `python -m calib_components.nodes.replica PROCESSES COMMAND ...`."""
    command = torchrun_command(json.loads(os.environ["CLUSTER_SPEC"]), int(sys.argv[1]), sys.argv[2:])
    # Vertex sets these for a single process on each node; torchrun sets its own.
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    os.execve(command[0], command, environment)  # noqa: S606 - our own command


if __name__ == "__main__":
    main()
