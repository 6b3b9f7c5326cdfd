"""A Ray cluster of three nodes on this machine, in a process of its own, whose nodes can be lost.

    with SmallCluster() as cluster:
        run_command(..., f"ray_address={cluster.address}")
        cluster.lose_a_node(0)

Run as a script it is that process: it prints the head's address, and for every line "lose N" on its standard
input it kills the raylet of one of the nodes that are not the head, adds a new node, and prints "done".
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any

NODE_CPUS = 2
NODES = 2
_STORE_BYTES = 120_000_000


class SmallCluster:
    """Starts the process and speaks with it; start it again after ``kill`` for a new cluster."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> SmallCluster:
        """Start a head and two nodes, and wait for them."""
        from end_to_end.commands import ROOT, job_environment

        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=job_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._answer()["address"]
        return self

    def lose_a_node(self, which: int) -> None:
        """SIGKILL the raylet of node ``which`` (modulo their number; never the head); a new node joins then."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"lose {which}\n")
        self._process.stdin.flush()
        self._answer()

    @property
    def pid(self) -> int:
        """Process id of the cluster's parent process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL every process of the cluster; harmless when it is not running."""
        from end_to_end.commands import kill_tree

        process, self._process = self._process, None
        if process is not None:
            kill_tree(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> SmallCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # Ray prints lines of its own
                return json.loads(line)
        raise AssertionError("the cluster's process ended")


def _serve() -> None:
    import os
    import signal

    from ray.cluster_utils import Cluster

    common = {"object_store_memory": _STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **common})
    nodes = [cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=_STORE_BYTES) for _ in range(NODES)]
    cluster.wait_for_nodes()
    print(json.dumps({"address": cluster.address}), flush=True)
    for line in sys.stdin:  # ends with the parent
        position = int(line.split()[1]) % len(nodes)
        node = nodes.pop(position)
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        cluster.remove_node(node, allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=_STORE_BYTES))
        print(json.dumps({"lost": position}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve()
