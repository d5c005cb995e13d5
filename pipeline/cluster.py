"""Actors on a Ray cluster, behind the interface of `pipeline.workers.WorkerPool`.

Ray starts the actors, places them, notices when one is gone, and carries what they need: each node fetches the weights
once, and the code of this project. docs/cluster.md says how a cluster is started.
"""

import itertools
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import UserError
from pipeline.files import suppress_stderr
from pipeline.workers import RETRIES

ROOT = Path(__file__).parent.parent
# Other versions of these give other results. Ray itself compares Python and Ray.
PACKAGES = ("tensorflow", "keras", "numpy", "gym", "box2d-py", "pygame", "opencv-python-headless", "cloudpickle")
WAIT_SECONDS = 30  # seconds without a single actor before a line says what it waits for

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray import cloudpickle
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise UserError("CLUSTER needs Ray, which is not installed: make cluster") from None

# Actors are sent as code: a node that lacks packages can then still say which ones.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Indices:
    """An actor that hands out 0 … total − 1, each to one share. What a lost share had is handed out again."""

    def reset(self, total: int, workers: int, first_share: int) -> None:
        """Begin a new count, for shares numbered from `first_share` on."""
        self.left, self.first_share = deque(range(total)), first_share
        self.claimed: dict[int, list[int]] = {}
        self.lost: set[int] = set()
        self.workers = workers

    def claim(self, share: int) -> list[int]:
        """The next ones: several while there are many, one at the end (guided self-scheduling, Polychronopoulos 1987).

        Nothing for a share that was given up: its worker may be alive where only the network was down.
        """
        if share < self.first_share or share in self.lost:
            return []
        count = min(len(self.left), 1 + len(self.left) // (2 * self.workers))
        claimed = [self.left.popleft() for _ in range(count)]
        self.claimed.setdefault(share, []).extend(claimed)
        return claimed

    def give_back(self, share: int) -> None:
        """The worker of this share is gone, with all that it has done."""
        self.lost.add(share)
        self.left.extendleft(self.claimed.pop(share, []))


class Worker:
    """An actor: what a worker process is in `pipeline.workers`. Imports nothing of this project before `start`."""

    def start(self, packages: tuple[str, ...], pickled: bytes | None) -> dict[str, str]:
        """Run the initializer; what this node is like. Without `pickled`, or where packages are missing, only that."""
        import platform
        from importlib import metadata
        from pathlib import Path

        import ray

        host = {"node": ray.util.get_node_ip_address(), "processor": platform.machine()}
        if Path("/proc/cpuinfo").exists():
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            host["processor"] = next((line.split(":")[1].strip() for line in lines if "model name" in line), "?")
        for name in packages:
            try:
                host[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                host[name] = "missing"
        if pickled is None or "missing" in host.values():
            return host
        from pipeline import workers

        self.prepared = workers.initialize(pickled)
        return host

    def run_item(self, task: bytes, item: Any) -> Any:
        """One item of `imap_unordered`."""
        from pipeline.workers import load_task

        return load_task(task)(self.prepared, item)

    def run_share(self, call: bytes, indices: Any, share: int) -> Any:
        """One share of `run_on_all`."""
        import pickle

        import ray

        def claim() -> Iterator[int]:
            while claimed := ray.get(indices.claim.remote(share)):
                yield from claimed

        task, arguments = pickle.loads(call)
        return task(self.prepared, claim(), *arguments)


class ActorPool:
    """`count` actors, one CPU each; 0: as many as the cluster has CPUs, also those of nodes that join later.

    An actor that is gone, alone or with its node, is replaced by a new one as soon as there is a CPU for it; until
    then the others do its work. The actors end with this process, however it ends.
    """

    def __init__(self, cluster: str, count: int, initializer: Callable, *arguments: Any) -> None:
        connect(cluster)
        self.most = count
        self.initializer = ray.put(cloudpickle.dumps((initializer, arguments)))
        self.ready: dict[Any, int] = {}  # actors, and how many jobs each of them has
        self.starting: dict[ray.ObjectRef, Any] = {}
        self.hosts: dict[str, dict] = {}
        self.losses, self.share = 0, itertools.count()
        self._start_indices()
        nodes = sum(node["Alive"] for node in ray.nodes())
        address = ray.get_runtime_context().gcs_address
        print(f"Ray cluster {address}: {nodes} nodes, {cpus()} CPUs, {self.count} actors", flush=True)
        self._grow(self.count)

    @property
    def count(self) -> int:
        """How many actors there should be now."""
        return self.most or max(1, cpus())

    def run_on_all(self, task: Callable, total: int, *arguments: Any) -> list:
        """As `WorkerPool.run_on_all`; there may be more results than actors, some of them empty shares."""
        call = ray.put(cloudpickle.dumps((task, arguments)))
        for attempt in range(RETRIES + 1):
            try:
                return self._run_shares(call, total)
            except RayActorError:  # an actor that can't ask for its next index
                if attempt >= RETRIES:
                    raise UserError("the actor that counts died; the same command continues") from None
                print("The actor that hands out the work is gone; this part starts again.", flush=True)
                self._start_indices()
        raise AssertionError("unreachable")

    def _run_shares(self, call: "ray.ObjectRef", total: int) -> list:
        count, share_of = self.count, {}
        ray.get(self.indices.reset.remote(total, count, next(self.share)))

        def submit(actor: Any, _: None) -> "ray.ObjectRef":
            share = next(self.share)
            future = actor.run_share.remote(call, self.indices, share)
            share_of[future] = share
            return future

        todo = deque([None] * count)

        def lose(future: "ray.ObjectRef") -> None:
            ray.get(self.indices.give_back.remote(share_of[future]))
            todo.extend([None] * count)  # whoever is idle helps; a share that finds nothing left is over at once

        return list(self._run(todo, submit, lose, jobs_each=1))

    def imap_unordered(self, task: Callable, items: Iterable) -> Iterator:
        """As `WorkerPool.imap_unordered`."""
        pickled, todo = ray.put(cloudpickle.dumps(task)), deque([item] for item in items)

        def submit(actor: Any, job: list) -> "ray.ObjectRef":
            return actor.run_item.remote(pickled, *job)

        yield from self._run(todo, submit, lambda future: None, jobs_each=2)

    def _run(self, todo: deque, submit: Callable, lose: Callable, jobs_each: int) -> Iterator:
        """Give every job to an actor that has room; yields results as they come. A lost actor's jobs go to others."""
        running: dict[ray.ObjectRef, tuple[Any, Any]] = {}
        while todo or running:
            self._grow(len(todo))
            while todo and self.ready and (actor := min(self.ready, key=lambda actor: self.ready[actor])) is not None:
                if self.ready[actor] >= jobs_each:
                    break
                job = todo.popleft()
                running[submit(actor, job)] = actor, job
                self.ready[actor] += 1
            for future in self._wait(running):
                if future in self.starting:
                    self._started(future)
                    continue
                actor, job = running.pop(future)
                try:
                    result = ray.get(future)
                except RayTaskError as error:
                    self.ready[actor] -= 1
                    raise error.cause from None
                except RayError as error:
                    todo.appendleft(job)
                    lose(future)
                    if self.ready.pop(actor, None) is not None:
                        self._lost(error)
                    continue
                self.losses = 0
                if actor in self.ready:
                    self.ready[actor] -= 1
                yield result

    def _wait(self, running: dict) -> list:
        while True:
            done, _ = ray.wait([*running, *self.starting], timeout=WAIT_SECONDS)
            if done or self.ready:
                return done
            print(f"No actor is up yet (the cluster has {cpus()} CPUs): waiting for a free one.", flush=True)

    def _grow(self, jobs: int) -> None:
        """Start actors while there are fewer than there should be, but not more than there are jobs."""
        for _ in range(min(self.count, jobs) - len(self.ready) - len(self.starting)):
            actor: Any = ray.remote(num_cpus=1)(Worker).remote()
            self.starting[actor.start.remote(PACKAGES, self.initializer)] = actor

    def _started(self, future: "ray.ObjectRef") -> None:
        actor = self.starting.pop(future)
        try:
            host = ray.get(future)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            self._lost(error)
            return
        compare_packages(host)
        processors = {known["processor"] for known in self.hosts.values()}
        if processors and host["processor"] not in processors:
            print(
                f"{host['node']} has another processor ({host['processor']}; others: {', '.join(processors)}): "
                "the same seeds may not give the same results.",
                flush=True,
            )
        self.hosts[host["node"]] = host
        self.ready[actor] = 0

    def _lost(self, error: RayError) -> None:
        self.losses += 1
        if self.losses > RETRIES * max(1, len(self.ready) + len(self.starting)):
            reason = "the node is out of memory: try fewer WORKERS" if isinstance(error, OutOfMemoryError) else "killed"
            raise UserError(
                f"actors died {self.losses} times in a row ({reason}); what was finished is saved; the same "
                "command continues"
            )
        print("An actor is gone; the others do its work until there is a new one.", flush=True)

    def _start_indices(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Indices)
        self.indices = actor.options(num_cpus=0, scheduling_strategy=here).remote()

    def close(self) -> None:
        """End the actors."""
        ray.shutdown()

    def __enter__(self) -> "ActorPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not KeyboardInterrupt:  # then this process ends at once, and the actors with it
            self.close()


def cpus() -> int:
    """How many CPUs the cluster has."""
    return int(ray.cluster_resources().get("CPU", 0))


def compare_packages(host: dict[str, str]) -> None:
    """Raises `UserError` where a node's packages are not those of this machine."""
    for name in PACKAGES:
        if host[name] != metadata.version(name):
            raise UserError(
                f"node {host['node']} has {name} {host[name]}, this machine {metadata.version(name)}: "
                "every node needs the same packages (make cluster)"
            )


def find_address(cluster: str) -> tuple[str, int]:
    """Host and port of the cluster. Raises `UserError` where there is none."""
    address = cluster
    if cluster == "auto":
        path = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
        address = os.environ.get("RAY_ADDRESS") or (path.read_text().strip() if path.exists() else "")
        if not address:
            raise UserError("CLUSTER=auto: no Ray node runs on this machine, see docs/cluster.md")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f'CLUSTER={cluster}: expected "auto" or "host:port", such as 10.0.0.1:6379')
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"CLUSTER={cluster}: no Ray cluster answers at {address} ({error}), see docs/cluster.md"
        ) from None
    return host, int(port)


def connect(cluster: str) -> None:
    """Connect this process to the cluster, and send the project's code. Raises `UserError` where that fails."""
    host, port = find_address(cluster)
    # A node started on 127.0.0.1 listens there alone, but Ray would look for it at the machine's outer address.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = host not in ("127.0.0.1", "localhost")
    ray._private.worker._worker_logs_enabled = False  # else the user reads a raylet's log when a node is gone
    handler = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as folder:
        for path in ROOT.glob("*/*.py"):  # no weights, no data: tasks get those as arguments
            copy = Path(folder) / path.relative_to(ROOT)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
        try:
            with suppress_stderr():
                ray.init(
                    address="auto" if cluster == "auto" else f"{host}:{port}",
                    runtime_env={"working_dir": folder},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception as error:  # Ray has many for a cluster that it can't use
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"CLUSTER={cluster}: {reason} (does it run on this machine too, with the same Ray, and does it ask for "
                "a token? see docs/cluster.md)"
            ) from None
    signal.signal(signal.SIGTERM, handler)  # Ray sets its own
