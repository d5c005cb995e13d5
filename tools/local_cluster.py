"""A Ray cluster on this machine alone, to try CLUSTER with: python -m tools.local_cluster [nodes] [CPUs of each]

It prints the address, and ends with Ctrl-C. Everything binds to 127.0.0.1; the dashboard and the usage report are off.
"""

import os
import signal
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's name for: stay on 127.0.0.1
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let everything else on this machine go first
MEMORY = 100 * 2**20  # bytes of each node's object store: the weights are 20 MB


class LocalCluster:
    """Nodes on 127.0.0.1, each with its own raylet and object store, as on a machine of its own."""

    def __init__(self, nodes: int = 2, cpus: int = 1) -> None:
        import logging

        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)

        self.cpus = cpus
        head = {"num_cpus": cpus, "object_store_memory": MEMORY, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head | {"node_ip_address": "127.0.0.1"})
        self.nodes = [self.add() for _ in range(nodes - 1)]
        self.address = self.cluster.address

    def add(self):
        """A node that joins."""
        return self.cluster.add_node(num_cpus=self.cpus, object_store_memory=MEMORY)

    def remove(self, node) -> None:
        """A node's processes are killed."""
        self.cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """End all nodes."""
        self.cluster.shutdown()


def main() -> None:
    """Run a cluster until Ctrl-C."""
    try:
        nodes, cpus = (int(argument) for argument in (*sys.argv[1:3], *("2", "1")[len(sys.argv) - 1 :]))
    except ValueError:
        sys.exit(__doc__)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    cluster = LocalCluster(nodes, cpus)
    print(f"{nodes} nodes with {cpus} CPUs each: CLUSTER={cluster.address} (Ctrl-C ends them)", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        cluster.close()


if __name__ == "__main__":
    main()
