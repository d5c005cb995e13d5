"""What happens when a script works on a Ray cluster and loses an actor, a node or itself. Called by chaos.

Two nodes on this machine stand for two machines. Every case must end with the same files as local processes make.
"""

import importlib.util
import os
import signal
import time
from pathlib import Path

SCORE = "EPISODES=4 BASELINE_EPISODES=2 MAX_STEPS=200 LOOKAHEAD=20 WORKERS=2"
GONE = 15  # seconds that actors may outlive their driver


def actors(kind: bytes = b"ray::Worker") -> list[int]:
    """The processes on this machine that are actors of that kind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(kind):
                found.append(int(path.parent.name))
        except OSError:  # gone meanwhile
            continue
    return found


class ClusterCases:
    """The cases. `chaos` runs and counts them; `tools` is its module, which may be `__main__`."""

    def __init__(self, chaos, tools) -> None:
        self.chaos, self.tools, self.cluster = chaos, tools, None

    def start(self, script: str, folder: Path):
        """Run a script on the cluster: its constants as for local processes."""
        if self.cluster is None:  # not before a case needs it
            from tools.local_cluster import LocalCluster

            self.cluster = LocalCluster()
        constants = SCORE if script.startswith("06") else self.tools.LONGER[script]
        return self.tools.Run(script, folder, f"{constants} CLUSTER={self.cluster.address}")

    def working(self, run, share: float, seconds: float) -> None:
        """Wait until the actors are at work, then for this share of the seconds that a local run takes."""
        if not (run.until(lambda: len(actors(b"ray::Worker.run")) == 2) and run.running(share * seconds)):
            raise self.tools.TooSoon("it was over too soon")

    def finish(self, run, folder: Path, expected: dict) -> str:
        """It ends well, leaves the same files, and no actor."""
        out = run.finish()
        self.tools.same(self.tools.contents(folder), expected)
        self.no_actor_left()
        return out

    def no_actor_left(self) -> None:
        """Fails when an actor is alive some seconds after its driver is gone."""
        end = time.monotonic() + GONE
        while left := actors() + actors(b"ray::Indices"):
            if time.monotonic() > end:
                raise self.tools.Failed(f"{len(left)} actors are left after {GONE} s")
            time.sleep(0.1)

    def equal(self, script: str) -> None:
        """Nothing happens."""
        folder = self.chaos.fresh(script)
        self.finish(self.start(script, folder), folder, self.chaos.reference(script)[0])

    def score(self, script: str) -> None:
        """06's score of the shipped weights, here and on the cluster."""
        folders = [self.chaos.folder / name for name in ("score-here", "score-on-cluster")]
        self.tools.Run(script, folders[0], SCORE).finish()
        self.finish(self.start(script, folders[1]), folders[1], self.tools.contents(folders[0]))

    def killed_actor(self, script: str, kind: bytes, says: str) -> None:
        """An actor is killed while it works."""
        expected, seconds = self.chaos.reference(script)
        folder = self.chaos.fresh(script)
        run = self.start(script, folder)
        self.working(run, self.chaos.random.uniform(0.0, 0.3), seconds)
        os.kill(self.chaos.random.choice(actors(kind)), signal.SIGKILL)
        if says not in self.finish(run, folder, expected):
            raise self.tools.Failed("it did not say so")

    def nodes(self, script: str) -> None:
        """A node is killed, and another one joins later."""
        expected, seconds = self.chaos.reference(script)
        folder = self.chaos.fresh(script)
        run = self.start(script, folder)
        self.working(run, self.chaos.random.uniform(0.0, 0.2), seconds)
        self.cluster.remove(self.cluster.nodes.pop())
        run.running(2)
        self.cluster.nodes.append(self.cluster.add())
        self.finish(run, folder, expected)

    def stopped_driver(self, script: str, how: int) -> None:
        """The script is killed, or stopped by Ctrl-C; the cluster goes on, and so does the script's next run."""
        expected, seconds = self.chaos.reference(script)
        folder = self.chaos.fresh(script)
        run = self.start(script, folder)
        self.working(run, self.chaos.random.uniform(0.0, 0.3), seconds)
        os.killpg(run.process.pid, how)
        code = run.end(20)
        _, err = run.read()
        if how == signal.SIGINT and (code != 130 or len(err.strip().splitlines()) != 1):
            raise self.tools.Failed(f"exit {code}: {err.strip()[-400:]}")
        self.no_actor_left()
        self.finish(self.start(script, folder), folder, expected)

    def run(self) -> None:
        """All cases."""
        tools, case = self.tools, self.chaos.case
        one, many = "An actor is gone", b"ray::Worker"
        for script in (tools.GENERATE, tools.EVOLVE, tools.DREAM):
            case(f"{script[:2]} on a cluster", 1, lambda script=script: self.equal(script))
        case("06's score on a cluster", 1, lambda: self.score("06_visualise.py"))
        for script in (tools.GENERATE, tools.EVOLVE):
            name = f"{script[:2]} on a cluster"
            case(f"{name} loses an actor", 3, lambda script=script: self.killed_actor(script, many, one))
            case(f"{name} loses a node, gets one", 2, lambda script=script: self.nodes(script))
            for how in (signal.SIGKILL, signal.SIGINT):
                case(
                    f"{name} ends by {how.name}, started again",
                    2,
                    lambda script=script, how=how: self.stopped_driver(script, how),
                )
        counter = b"ray::Indices"
        case("05 on a cluster loses its counter", 1, lambda: self.killed_actor(tools.EVOLVE, counter, "starts again"))


def run(chaos, tools) -> None:
    """All cases, where Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        print("no cases on a cluster: Ray is not installed (make cluster)")
        return
    cases = ClusterCases(chaos, tools)
    try:
        cases.run()
    finally:
        if cases.cluster:
            cases.cluster.close()
