"""How far a cluster carries, from one machine: python -m tools.simulate_cluster [most actors, 256 unless told]

Drives the shipped controller for the lengths of its episodes and the time that a step takes (a minute). Then up to 256
actors of a Ray cluster on this machine share the work of a generation as in 05, but wait as long as driving would take.
The same rules without Ray, as a loop over events, tell about more actors than fit here; where both are known, they are
printed side by side. Prints the tables of docs/cluster.md and writes docs/images/cluster.png.
"""

import heapq
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from models.tracks import SELECTION_TRACKS
from pipeline.files import ensure_dir, load_npz, save_npz
from pipeline.workers import WorkerPool, worker_pool
from tools.local_cluster import LocalCluster

import numpy as np

ROOT = Path(__file__).parent.parent
SIZES = (4, 8, 16, 32)  # NUM_ENVS that are measured
EPISODES = 64  # whose lengths are measured
STEPS = 150  # that are timed
GENERATIONS = {"paper, 64 controllers × 16 tracks": 1024, "05, 32 controllers × 4 tracks": 128}
ACTORS = (2, 4, 8, 16, 32, 64, 128, 256)
LONGEST = 6.0  # seconds that a simulated generation takes with less than 64 actors at most: time runs faster


def prepare_worker(models: tuple, parameters: np.ndarray) -> tuple:
    """What a worker of the measurement works with."""
    from models import loading

    return loading.build_models(models), parameters


def drive_tracks(prepared: tuple, tracks: np.ndarray) -> np.ndarray:
    """The lengths of episodes on these tracks."""
    from models import worlds

    (vae, rnn), parameters = prepared
    return worlds.RealWorld(vae, rnn, 32).drive(np.tile(parameters, (len(tracks), 1)), tracks)[1]


def time_step(prepared: tuple, item: tuple[int, int]) -> float:
    """Seconds of a step of so many cars in a world of `num_envs`. The least of five: whatever disturbs adds to it."""
    from models import worlds

    (vae, rnn), parameters = prepared
    num_envs, cars = item
    world = worlds.RealWorld(vae, rnn, num_envs, max_steps=STEPS)
    taken = []
    for _ in range(6):  # the first one compiles, and renders the tracks
        start = time.perf_counter()
        world.drive(np.tile(parameters, (cars, 1)), np.array(SELECTION_TRACKS[:cars]))
        taken.append((time.perf_counter() - start) / STEPS)
    return min(taken[1:])


def measure_lengths(worker) -> np.ndarray:
    """The lengths of episodes of the shipped controller, in frames."""
    return np.concatenate(list(worker.imap_unordered(drive_tracks, [np.array(SELECTION_TRACKS[:EPISODES])])))


def measure_steps(worker) -> np.ndarray:
    """For each of SIZES the seconds of a step, (sizes, 2): for the batch, and for each car that drives.

    One worker alone: two on a machine share its caches.
    """
    steps = []
    for size in SIZES:
        one, all_of_them = (next(worker.imap_unordered(time_step, [(size, cars)])) for cars in (1, size))
        each = (all_of_them - one) / (size - 1)
        steps.append((one - each, each))
    return np.array(steps)


def measured() -> tuple[np.ndarray, dict[int, tuple[float, float]]]:
    """Both, kept in data/cluster.npz: delete it to measure again."""
    from models import loading

    path = ensure_dir(ROOT / "data") / "cluster.npz"
    if not path.exists():
        vae, rnn, parameters = loading.load(ROOT / "models" / "trained")
        with WorkerPool(1, prepare_worker, loading.get_weights(vae, rnn), parameters) as worker:
            save_npz(path, lengths=measure_lengths(worker), steps=measure_steps(worker))
    arrays = load_npz(path, "tools.simulate_cluster")
    return arrays["lengths"], {size: (float(a), float(b)) for size, (a, b) in zip(SIZES, arrays["steps"])}


def per_frame(step: tuple[float, float], cars: int) -> float:
    """Seconds of a frame of one car in a full batch."""
    return step[0] / cars + step[1]


def best_size(actors: int, lengths: np.ndarray, steps: dict) -> int:
    """The NUM_ENVS with which a generation is over first, by the model."""
    return min(SIZES, key=lambda size: model(actors, lengths, size, steps[size]))


class WaitingWorld:
    """Stands for `RealWorld`: waits as long as driving would take, until the next car finishes."""

    def drive(self, lengths: np.ndarray, pairs: Iterator[int], places: int, step: tuple[float, float]) -> float:
        """Returns the seconds that it drove."""
        start = time.perf_counter()
        left = [lengths[pair] for pair in islice(pairs, places)]
        while left:
            shortest = min(left)
            time.sleep(shortest * (step[0] + step[1] * len(left)))
            left = [frames - shortest for frames in left if frames > shortest]
            left += [lengths[pair] for pair in islice(pairs, places - len(left))]
        return time.perf_counter() - start


def wait_share(world: WaitingWorld, pairs: Iterator[int], *arguments: object) -> float:
    """An actor's share of a generation: seconds that it was at work."""
    return world.drive(arguments[0], pairs, *arguments[1:])


def simulate(workers, actors: int, lengths: np.ndarray, cars: int, step: tuple[float, float]) -> tuple[float, float]:
    """Seconds of a generation with so many actors, and the share of the actors' time that was idle."""
    workers.most = actors
    places = min(cars, -(-len(lengths) // actors))
    expected = lengths.sum() * per_frame(step, cars) / actors
    faster = max(1.0, expected / LONGEST) if actors < 64 else 1.0
    start = time.perf_counter()
    busy = workers.run_on_all(wait_share, len(lengths), lengths, places, (step[0] / faster, step[1] / faster))
    seconds = time.perf_counter() - start
    return seconds * faster, 1 - sum(busy) / actors / seconds


def model(actors: int, lengths: np.ndarray, cars: int, step: tuple[float, float]) -> float:
    """The seconds of a generation by the same rules, without Ray: whoever has a free car takes the next pair."""
    places = min(cars, -(-len(lengths) // actors))
    pairs = iter(lengths)
    active = [[next(pairs, 0) for _ in range(places)] for _ in range(actors)]
    active = [[frames for frames in left if frames] for left in active]
    events = [(min(left) * (step[0] + step[1] * len(left)), actor) for actor, left in enumerate(active) if left]
    heapq.heapify(events)
    now = 0.0
    while events:
        now, actor = heapq.heappop(events)
        shortest = min(active[actor])
        left = [frames - shortest for frames in active[actor]]
        active[actor] = [frames or next(pairs, 0) for frames in left]
        active[actor] = [frames for frames in active[actor] if frames]
        if left := active[actor]:
            heapq.heappush(events, (now + min(left) * (step[0] + step[1] * len(left)), actor))
    return now


def dispatch_rate(workers, actors: int) -> float:
    """Pairs a second where driving takes no time at all."""
    workers.most, pairs = actors, 16 * actors
    start = time.perf_counter()
    workers.run_on_all(wait_share, pairs, np.zeros(pairs), 16, (0.0, 0.0))
    return pairs / (time.perf_counter() - start)


def wall_clock(lengths: np.ndarray, steps: dict) -> None:
    """The table of 1,800 generations: the model's seconds, and what CMA-ES itself takes, which no actor shortens."""
    update = cma_seconds()
    print(f"\nCMA-ES itself: {update:.2f} s a generation (867 numbers, population 64)\n")
    print("| cores | pairs | NUM_ENVS | a generation | efficiency | 1,800 generations |\n|---|---|---|---|---|---|")
    for pairs in (1024, 4096, 16384):
        for cores in (64, 256, 1024):
            these = drawn(lengths, pairs)
            cars = best_size(cores, these, steps)
            seconds = model(cores, these, cars, steps[cars])
            efficiency = ideal(these, steps) / cores / seconds
            hours = 1800 * (seconds + update) / 3600
            print(f"| {cores:,} | {pairs:,} | {cars} | {seconds:.1f} s | {100 * efficiency:.0f} % | {hours:.1f} h |")


def cma_seconds() -> float:
    """Seconds of `ask` and `tell` a generation, the mean of 20."""
    from models import evolution

    search = evolution.CMAES(np.zeros(867), np.eye(289), 64, 0.1, 1, False)
    start = time.perf_counter()
    for _ in range(20):
        search.tell(search.ask()[:, 0])
    return (time.perf_counter() - start) / 20


def drawn(lengths: np.ndarray, pairs: int) -> np.ndarray:
    """A generation's lengths, drawn from those that were measured."""
    return np.random.default_rng(0).choice(lengths, pairs).astype(float)


def ideal(lengths: np.ndarray, steps: dict) -> float:
    """Seconds that one actor would take that is always full, with the best of SIZES."""
    return float(lengths.sum() * min(per_frame(steps[cars], cars) for cars in SIZES))


def plot(rows: dict[str, list[tuple[int, float, float]]]) -> None:
    """Efficiency over actors: simulated with Ray, and by the model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for colour, (name, found) in enumerate(rows.items()):
        actors, simulated, modelled = np.array(found).T
        axes.plot(actors, 100 * simulated, "o-", color=f"C{colour}", label=f"{name}: Ray, waiting actors")
        axes.plot(actors, 100 * modelled, "--", color=f"C{colour}", alpha=0.6, label=f"{name}: model")
    axes.axhline(90, color="grey", linewidth=0.7)
    axes.set(xscale="log", xlabel="actors", ylabel="efficiency, %", ylim=(0, 105), title="A generation on a cluster")
    axes.set_xticks(ACTORS, ACTORS)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    path = ROOT / "docs" / "images" / "cluster.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"\nmade: {path}")


def main() -> None:
    """Measure, simulate, tell."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else ACTORS[-1]
    lengths, steps = measured()
    for cars, (fixed, each) in steps.items():
        cost = 1e6 * per_frame((fixed, each), cars)
        print(f"NUM_ENVS={cars:2}: a step {1e3 * fixed:.2f} ms + {1e3 * each:.3f} ms a car; full {cost:.0f} µs a frame")
    cluster = LocalCluster(2, -(-most // 2))
    rows: dict[str, list] = {name: [] for name in GENERATIONS}
    try:
        with worker_pool(cluster.address, most, WaitingWorld) as workers:
            while len(workers.ready) < most:
                workers.run_on_all(wait_share, most, np.zeros(most), 1, (0.0, 0.0))
                time.sleep(1)
            print(f"{most} actors are up", flush=True)
            time.sleep(2)
            print("| generation | actors | NUM_ENVS | seconds | idle | efficiency | model | pairs a second, at most |")
            print("|---|---|---|---|---|---|---|---|")
            for name, pairs in GENERATIONS.items():
                these = drawn(lengths, pairs)
                for actors in (actors for actors in ACTORS if actors <= min(most, pairs)):
                    cars = best_size(actors, these, steps)
                    seconds, idle = simulate(workers, actors, these, cars, steps[cars])
                    modelled = ideal(these, steps) / actors / model(actors, these, cars, steps[cars])
                    efficiency = ideal(these, steps) / actors / seconds
                    rows[name].append((actors, efficiency, modelled))
                    print(
                        f"| {name} | {actors} | {cars} | {seconds:.1f} | {100 * idle:.1f} % | {100 * efficiency:.1f} % "
                        f"| {100 * modelled:.1f} % | {dispatch_rate(workers, actors):,.0f} |",
                        flush=True,
                    )
    finally:
        cluster.close()
    wall_clock(lengths, steps)
    plot(rows)


if __name__ == "__main__":
    main()
