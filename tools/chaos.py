"""What happens when a run is killed, stopped, loses a worker, or finds the disk full: python -m tools.chaos (Linux)

Prints a table: case, tried, survived; exits with 1 unless all survived. `python -m tools.chaos 05 --share 0.2` runs
a fifth of the cases whose name has 05 in it. All of it takes about half an hour on 2 cores.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tools import chaos_cluster

import h5py
import numpy as np

ROOT = Path(__file__).parent.parent
GENERATE, TRAIN_V, SERIES, TRAIN_M, EVOLVE, DREAM = (
    next(ROOT.glob(f"{number}_*.py")).name for number in ("01", "02", "03", "04", "05", "07")
)
WAIT = 600  # seconds for a run to end
GONE = 5  # seconds that workers may outlive their parent

# Small, but with enough to do that a random moment is seldom before or after the work.
BASE = {
    GENERATE: "ROLLOUTS=12 MAX_STEPS=60",
    TRAIN_V: "EPOCHS=1 FRAMES_PER_EPOCH=400 SHUFFLE_BUFFER=200 VALIDATION_FRAMES=100",
    SERIES: "DREAM_STARTS=32 WARMUP_FRAMES=8",
    TRAIN_M: "EPOCHS=1 FRAMES_PER_EPOCH=2_000 SEQUENCE_LENGTH=20 BATCH_SIZE=10",
}
LONGER = {
    GENERATE: "ROLLOUTS=200 MAX_STEPS=60 WORKERS=2",
    TRAIN_V: "EPOCHS=4 FRAMES_PER_EPOCH=1_000 SHUFFLE_BUFFER=200 VALIDATION_FRAMES=100",
    SERIES: "DREAM_STARTS=32 WARMUP_FRAMES=8",
    TRAIN_M: "EPOCHS=4 FRAMES_PER_EPOCH=10_000 SEQUENCE_LENGTH=20 BATCH_SIZE=10",
    EVOLVE: "GENERATIONS=12 POPULATION=4 EPISODES=2 HARD_TRACKS=1 MAX_IDLE_STEPS=20 EVAL_EVERY=3 EVAL_EPISODES=4 "
    "WORKERS=2 NUM_ENVS=4",
    DREAM: "GENERATIONS=12 POPULATION=8 EPISODES=4 HARD_TRACKS=2 DREAM_ENVS=32 MAX_DREAM_STEPS=20 MAX_IDLE_STEPS=20 "
    "EVAL_EVERY=3 EVAL_EPISODES=2 WORKERS=2 NUM_ENVS=4",
}
# What a script finds when it begins, of what the ones before it have made.
FINDS = {
    GENERATE: (),
    TRAIN_V: ("rollouts",),
    SERIES: ("rollouts", "vae.weights.h5"),
    TRAIN_M: ("series.npz", "vae.weights.h5"),
    EVOLVE: ("vae.weights.h5", "rnn.weights.h5", "dream_starts.npz"),
    DREAM: ("vae.weights.h5", "rnn.weights.h5", "dream_starts.npz"),
}


class Failed(Exception):
    """Not survived, and why."""


class TooSoon(Failed):
    """The run was over before anything happened to it: nothing was tried."""


class Run:
    """A script that runs in a session of its own, so that its workers can be found."""

    def __init__(self, script: str, folder: Path, constants: str, most_bytes: int | None = None) -> None:
        def limit():
            if most_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

        command = [sys.executable, str(ROOT / script), *constants.split(), f"DATA={folder}", f"MODELS={folder}"]
        self.out, self.err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  it is read at the end
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=self.out,
            stderr=self.err,
            start_new_session=True,
            preexec_fn=limit,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.lock, self.started = folder / f".{script}.lock", time.monotonic()

    def read(self) -> tuple[str, str]:
        """What it has written to stdout and stderr so far."""
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read())
        return texts[0], texts[1]

    def until(self, ready: Callable[[], bool]) -> bool:
        """Wait until something is so; False if the run ended before."""
        while not ready():
            if self.process.poll() is not None:
                return False
            if time.monotonic() - self.started > WAIT:
                raise Failed("it hangs")
            time.sleep(0.02)
        return True

    def running(self, seconds: float) -> bool:
        """Let it run that long; False if it ended by itself."""
        end = time.monotonic() + seconds
        return self.until(lambda: time.monotonic() > end)

    def end(self, seconds: float = WAIT) -> int:
        """Wait for it to end by itself, with its workers; the exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Failed(f"not over after {seconds:.0f} s") from None
        self.nobody_left()
        return code

    def finish(self) -> str:
        """Wait for a good end; what it printed."""
        code = self.end()
        out, err = self.read()
        if code or "Traceback" in err:
            raise Failed(f"exit {code}: {err.strip()[-300:]}")
        return out

    def members(self) -> list[int]:
        """The processes of its session that are alive."""
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:  # gone meanwhile
                continue
            if int(session) == self.process.pid and state not in "ZX":
                alive.append(int(stat.parent.name))
        return alive

    def workers(self) -> list[int]:
        """Its worker processes."""
        return [pid for pid in self.members() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def nobody_left(self) -> None:
        """Fails when a process of its session is alive some seconds after the script is gone."""
        end = time.monotonic() + GONE
        while left := self.members():
            if time.monotonic() > end:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise Failed(f"{len(left)} processes are left after {GONE} s")
            time.sleep(0.05)

    def kill(self, workers_too: bool) -> None:
        """SIGKILL, of the script alone or of its workers as well."""
        (os.killpg if workers_too else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.nobody_left()


def content(path: Path) -> dict[str, bytes]:
    """What a result holds, without what differs from run to run. Raises where it is not whole."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if path.name.endswith("checkpoint.npz"):
            arrays = {name: array for name, array in arrays.items() if name.startswith("model")}
        return {name: array.tobytes() for name, array in arrays.items() if name != "seconds"}
    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()].tobytes()} if hasattr(item, "dtype") else {}))
    return found


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    """All results in a folder; those that are temporary don't count."""
    paths = [*folder.rglob("*.npz"), *folder.rglob("*.h5")]
    return {path.name: content(path) for path in paths if not path.name.startswith(".tmp-")}


def same(one: dict, other: dict) -> None:
    """Fails when two folders differ, and names the files."""
    differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if differ:
        raise Failed(f"not as if never stopped: {', '.join(differ)[:200]}")


class Chaos:
    """The cases, and the table of how they went."""

    def __init__(self, folder: Path, only: str, share: float) -> None:
        self.folder, self.only, self.share = folder, only, share
        self.rows: list[tuple[str, int, int]] = []
        self.references: dict[str, tuple[dict, float]] = {}
        self.random = random.Random(1)
        self.base = folder / "base"
        for script, constants in BASE.items():
            Run(script, self.base, constants).finish()

    def fresh(self, script: str) -> Path:
        """A folder with what the script needs, and nothing else."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for name in FINDS[script]:
            copy = shutil.copytree if (self.base / name).is_dir() else shutil.copy
            copy(self.base / name, folder / name)
        return folder

    def reference(self, script: str) -> tuple[dict, float]:
        """What a run that nothing happens to leaves, and how long it takes."""
        if script not in self.references:
            folder = self.fresh(script)
            run = Run(script, folder, LONGER[script])
            run.finish()
            self.references[script] = contents(folder), time.monotonic() - run.started
        return self.references[script]

    def case(self, name: str, count: int, one: Callable[[], None]) -> None:
        """Try something so many times, and note how often it went well."""
        if self.only not in name:
            return
        tried, survived = max(1, round(count * self.share)), 0
        for _ in range(tried):
            try:
                self.in_time(one)
                survived += 1
            except Failed as error:
                print(f"  {name}: {error}", flush=True)
        self.rows.append((name, tried, survived))
        print(f"{name:60} {tried:5} {survived:9}", flush=True)

    def in_time(self, one: Callable[[], None]) -> None:
        """Try it; again and earlier where the run was over too soon, because the reference had run more slowly."""
        for _ in range(5):
            try:
                one()
                return
            except TooSoon:
                for script, (found, seconds) in self.references.items():
                    self.references[script] = found, 0.7 * seconds
        one()

    def kills(self, script: str, count: int) -> None:
        """SIGKILL at random moments of one run after the other; each start continues where the last was killed."""
        name = f"{script[:2]} killed, started again"
        if self.only not in name:
            return
        expected, seconds = self.reference(script)
        tried, survived, folder, before = max(1, round(count * self.share)), 0, None, 0
        while survived < tried:
            folder = folder or self.fresh(script)
            run = Run(script, folder, LONGER[script])
            try:
                if run.running(self.random.uniform(0.2, 1.0) * seconds):
                    run.kill(workers_too=self.random.random() < 0.5)
                    survived += 1
                    contents(folder)  # whatever is there is whole
                    before = self.epochs(run.read()[0], before)
                else:
                    run.finish()
                    self.epochs(run.read()[0], before)
                    same(contents(folder), expected)
                    folder, before = None, 0
            except Failed as error:
                print(f"  {name}: {error}", flush=True)
                self.rows.append((name, survived + 1, survived))
                return
        try:
            if folder:
                self.epochs(Run(script, folder, LONGER[script]).finish(), before)
                same(contents(folder), expected)
        except Failed as error:
            print(f"  {name}: {error}", flush=True)
            survived -= 1
        self.rows.append((name, tried, survived))
        print(f"{name:60} {tried:5} {survived:9}", flush=True)

    @staticmethod
    def epochs(out: str, before: int) -> int:
        """The last epoch that 02 or 04 has finished; fails if a run began more than one epoch `before` that."""
        began = re.search(r"(\d+) of \d+ epochs done", out)
        if began and int(began[1]) < before - 1:
            raise Failed(f"epoch {before} was done, the next run continued after {began[1]}")
        finished = re.findall(r"^epoch (\d+): ", out, re.MULTILINE)
        return int(finished[-1]) if finished else int(began[1]) if began else before

    def ctrl_c(self, script: str) -> None:
        """SIGINT to all processes of the terminal at a random moment once it has begun."""
        expected, seconds = self.reference(script)
        folder = self.fresh(script)
        run = Run(script, folder, LONGER[script])
        run.until(lambda: run.lock.exists() and run.lock.read_text() != "")
        if run.running(self.random.uniform(0.0, 0.9) * seconds):
            os.killpg(run.process.pid, signal.SIGINT)
            code = run.end(10)
            if code == 0:
                raise TooSoon("it was over too soon")
            _, err = run.read()
            lines = err.strip().splitlines()
            if code != 130 or len(lines) != 1 or "continues from what is saved" not in err:
                raise Failed(f"exit {code}: {err.strip()[-400:]}")
        Run(script, folder, LONGER[script]).finish()
        same(contents(folder), expected)

    def dead_worker(self, script: str) -> None:
        """A worker is killed while it works: the run goes on and ends as if nothing had been."""
        expected, seconds = self.reference(script)
        folder = self.fresh(script)
        run = Run(script, folder, LONGER[script])
        run.until(lambda: len(run.workers()) == 2)
        if not run.running(self.random.uniform(0.1, 0.7) * seconds):
            raise TooSoon("it was over too soon")
        if workers := run.workers():
            os.kill(self.random.choice(workers), signal.SIGKILL)
        out = run.finish()
        if workers and "A worker process died; its work starts again in a new one." not in out:
            raise Failed("it did not say so")
        same(contents(folder), expected)

    def workers_that_always_die(self, script: str) -> None:
        """Each new worker is killed: the run gives up with one line, and what it had is kept."""
        folder = self.fresh(script)
        run = Run(script, folder, LONGER[script])
        while run.process.poll() is None:
            for pid in run.workers():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() - run.started > 120:
                run.kill(workers_too=True)
                raise Failed("it hangs")
            time.sleep(0.3)
        code = run.end()
        _, err = run.read()
        if code != 1 or len(err.strip().splitlines()) != 1 or "a worker process died" not in err:
            raise Failed(f"exit {code}: {err.strip()[-400:]}")

    def full_disk(self, script: str, most_bytes: int) -> None:
        """No file can grow beyond so much: one line, and all that was there before is as it was."""
        folder = self.fresh(script)
        shorter = re.sub(r"(EPOCHS|GENERATIONS)=\d+", r"\1=1", LONGER[script]).replace("ROLLOUTS=200", "ROLLOUTS=4")
        Run(script, folder, shorter).finish()
        before = contents(folder)
        longer = LONGER[script] if script != GENERATE else LONGER[script].replace("ROLLOUTS=200", "ROLLOUTS=20")
        run = Run(script, folder, longer, most_bytes)
        code = run.end()
        _, err = run.read()
        if code != 1 or len(err.strip().splitlines()) != 1 or "no room to write" not in err:
            raise Failed(f"exit {code}: {err.strip()[-400:]}")
        if left := list(folder.rglob(".tmp-*")):
            raise Failed(f"left behind: {left}")
        same(contents(folder), before)
        Run(script, folder, longer).finish()  # with room again, it continues

    def memory(self) -> None:
        """02 with four times the data needs at most 1.1 times the memory."""
        peaks = []
        folder = self.folder / "memory"
        Run(GENERATE, folder, "ROLLOUTS=60 MAX_STEPS=300").finish()
        constants = "EPOCHS=1 FRAMES_PER_EPOCH=12_000 SHUFFLE_BUFFER=2_000 VALIDATION_FRAMES=500"
        for copies in (1, 4):
            rollouts = sorted((folder / "rollouts").glob("*.npz"))
            for copy in range(1, copies):
                for path in rollouts:
                    shutil.copy(path, path.with_name(path.name.replace("rollout-1", f"rollout-1{copy}")))
            for made in folder.glob("vae.*"):
                made.unlink()
            run = Run(TRAIN_V, folder, constants)
            _, status, usage = os.wait4(run.process.pid, 0)
            if status:
                raise Failed(run.read()[1][-300:])
            peaks.append(usage.ru_maxrss / 2**20)
        print(f"  02's memory: {peaks[0]:.2f} GB, with four times the data {peaks[1]:.2f} GB", flush=True)
        if peaks[1] > 1.1 * peaks[0]:
            raise Failed(f"{peaks[1] / peaks[0]:.2f} times as much")

    def run(self) -> None:
        """All cases."""
        for script, count in ((GENERATE, 20), (TRAIN_V, 5), (SERIES, 5), (TRAIN_M, 5), (EVOLVE, 20), (DREAM, 5)):
            self.kills(script, count)
        for script in (GENERATE, TRAIN_V, SERIES, TRAIN_M, EVOLVE, DREAM):
            self.case(f"{script[:2]} stopped by Ctrl-C, started again", 3, lambda script=script: self.ctrl_c(script))
        for script in (GENERATE, EVOLVE):
            self.case(f"{script[:2]} loses a worker", 3, lambda script=script: self.dead_worker(script))
            self.case(f"{script[:2]} loses every worker", 1, lambda script=script: self.workers_that_always_die(script))
        for script, most in ((GENERATE, 20_000), (TRAIN_V, 4_000_000), (TRAIN_M, 1_000_000), (EVOLVE, 3_000)):
            self.case(f"{script[:2]} on a full disk", 1, lambda script=script, most=most: self.full_disk(script, most))
        self.case("02's memory with four times the data", 1, self.memory)
        chaos_cluster.run(self, sys.modules[__name__])


def main() -> None:
    """Run the cases, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="run the cases with this in their name")
    parser.add_argument("--share", type=float, default=1.0, help="how many of each, 1 for all")
    options = parser.parse_args()
    start = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would the scripts
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), options.only, options.share)
        chaos.run()
    print(f"\n{'case':60} tried  survived")
    for name, tried, survived in chaos.rows:
        print(f"{name:60} {tried:5} {survived:9}")
    tried, survived = (sum(row[i] for row in chaos.rows) for i in (1, 2))
    print(f"{'all of them, in ' + str(round((time.monotonic() - start) / 60)) + ' minutes':60} {tried:5} {survived:9}")
    sys.exit(survived < tried)


if __name__ == "__main__":
    main()
