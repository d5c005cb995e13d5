"""CMA-ES over a world: worker processes drive the candidates, and a run that was stopped goes on exactly where it was.

CMA-ES itself is pycma's. What a run has come to is decided by its seed and the fitnesses it was told, so these few
kilobytes are the whole checkpoint: a run is taken up by telling a new CMA-ES the same again.
"""

import json
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from models import controller, weights
from models.settings import EVOLUTION_TRACKS, SELECTION_TRACKS, Refused, clock, load_npz, save_npz, whole
from models.workers import Workers

import numpy as np


class Search:
    """CMA-ES from `start` (size,). The same start, seed and fitnesses give the same search, to the last bit.

    With `diagonal` it learns a variance for each number instead of a full covariance matrix (sep-CMA-ES, Ros & Hansen
    2008): over 867 numbers the full matrix learns next to nothing in a few hundred generations.
    """

    def __init__(self, start: np.ndarray, population: int, sigma: float, seed: int, diagonal: bool) -> None:
        import cma

        random = np.random.default_rng(seed)
        self.cma = cma.CMAEvolutionStrategy(
            start,
            sigma,
            {
                "popsize": population,
                "CMA_diagonal": diagonal,
                "seed": np.nan,  # leave NumPy's global generator alone: this one is ours
                "randn": lambda *shape: random.standard_normal(shape),
                "verbose": -9,
                "verb_log": 0,
            },
        )

    def ask(self) -> np.ndarray:
        """The next generation's candidates, (population, size)."""
        self.asked = self.cma.ask()
        return np.array(self.asked)

    def tell(self, fitness: np.ndarray) -> None:
        """How well each of them did, higher is better. Raises ValueError for a number that is not finite."""
        if not np.isfinite(fitness).all():
            raise ValueError("a fitness that is not finite")
        self.cma.tell(self.asked, (-fitness).tolist())

    @property
    def mean(self) -> np.ndarray:
        """The middle of the distribution, (size,): what the search has come to. Its best draw was mostly luck."""
        return np.array(self.cma.mean)

    @property
    def sigma(self) -> float:
        """The overall step size."""
        return float(self.cma.sigma)


def drive(worlds: dict, numbers: Iterator[int], name: str, parameters: np.ndarray, tracks: np.ndarray) -> tuple:
    """A worker's share of the pairs, in its world of that name; NaN where another worker drove."""
    pairs = takewhile(lambda number: number < len(tracks), numbers)
    return worlds[name].drive(parameters, tracks, pairs=pairs)


def drive_all(workers: Workers, name: str, parameters: np.ndarray, tracks: np.ndarray) -> tuple[np.ndarray, int]:
    """Every controller on every track: the returns (controllers, tracks), and how many frames that took."""
    shape = len(parameters), len(tracks)
    shares = workers.share(drive, name, np.repeat(parameters, shape[1], 0), np.tile(tracks, shape[0]))
    returns = np.full(shape[0] * shape[1], np.nan)
    for share, _ in shares:
        returns = np.where(np.isnan(share), returns, share)
    if not np.isfinite(returns).all():
        raise Refused(
            f"{np.sum(~np.isfinite(returns))} drives have no return that is a number: nothing is made of them"
        )
    return returns.reshape(shape), int(sum(lengths.sum() for _, lengths in shares))


def check(constants: dict) -> None:
    """Raises `Refused` for constants that `evolve` can do nothing with, before anything is loaded."""
    if constants["POPULATION"] < 4:
        raise Refused("POPULATION must be at least 4: the better half of it is what CMA-ES learns from")
    if len(SELECTION_TRACKS) < constants["EVAL_TRACKS"]:
        raise Refused(f"EVAL_TRACKS can be {len(SELECTION_TRACKS)} at most")
    if len(EVOLUTION_TRACKS) < _first_track(constants, constants["GENERATIONS"] + 1):
        raise Refused(f"there are {len(EVOLUTION_TRACKS):,} track seeds: SEED, GENERATIONS or TRACKS is too large")


def _first_track(constants: dict, generation: int) -> int:
    return (constants["SEED"] * 1_000_000 + generation) * constants["TRACKS"]


def evolve(
    workers: Workers,
    worlds: tuple[str, ...],
    constants: dict,
    origin: dict[str, str],
    *,
    generations: int,
    eval_every: int,
    eval_tracks: int,
    history: Path,
    best: Path,
) -> None:
    """Evolve a controller in the first of `worlds`, and score the search's mean in all of them now and then.

    `constants` decide the run: POPULATION, TRACKS, SIGMA, SEED, DIAGONAL, FEATURES, GO_ON and whatever the worlds
    depend on. All candidates of a generation drive the same new tracks. Every `eval_every` generations the mean is
    scored on the selection tracks; the one with the best score in the first world is kept in `best`, with the
    fingerprints `origin` of its V and M. With GO_ON the search starts from what is in `best`, made with the same V, and
    that is scored first. After each generation `history` is written, with a picture beside it; a run that finds its own
    history goes on from there, and refuses one of other constants.
    """
    constants = {**constants, **origin, "EVAL_TRACKS": eval_tracks, "EVAL_EVERY": eval_every}
    expand = controller.from_z if constants["FEATURES"] == "z" else np.asarray
    record = _read(history, constants, worlds, best)
    start = np.array(record["start"])
    search = Search(start, constants["POPULATION"], constants["SIGMA"], constants["SEED"], constants["DIAGONAL"])
    kept = _best_generation(record, worlds)
    for generation, fitness in enumerate([None, *record["fitness"]]):
        if fitness is not None:
            search.ask()
            search.tell(fitness)
        if generation == kept and not best.exists():
            weights.save_controller(best, expand(search.mean[None])[0], **origin)
    done = len(record["fitness"])
    each = f"{constants['POPULATION']} controllers a generation, each on {constants['TRACKS']} tracks"
    print(f"{each}; the workers take a few seconds to start", flush=True)
    if done:
        print(f"goes on after generation {done} of {history}")
    seeds = np.array(SELECTION_TRACKS[:eval_tracks])

    def score(generation: int) -> str:
        """Score the search's mean, keep it if it is the best so far, and say so."""
        mean, note = expand(search.mean[None]), ""
        scores = {name: drive_all(workers, name, mean, seeds)[0][0] for name in worlds}
        record["eval_generation"].append(generation)
        for name, returns in scores.items():
            record[f"eval_{name}"].append(returns)
            note += f"  {name} {returns.mean():.0f} ± {returns.std():.0f}"
        if _best_generation(record, worlds) == generation:
            weights.save_controller(best, mean[0], **origin)
            note += " (best, kept)"
        return note

    if constants["GO_ON"] and not record["eval_generation"]:
        print(f"starts from {best}:{score(0)}", flush=True)
    begun = time.monotonic()
    for generation in range(done + 1, generations + 1):
        began = time.monotonic()
        candidates = expand(search.ask())
        first = _first_track(constants, generation)
        tracks = np.array(EVOLUTION_TRACKS[first : first + constants["TRACKS"]])
        returns, frames = drive_all(workers, worlds[0], candidates, tracks)
        fitness = returns.mean(1)
        search.tell(fitness)
        seconds = time.monotonic() - began
        record["fitness"].append(fitness)
        record["sigma"].append(search.sigma)
        record["frames"].append(frames)
        note = ""
        if generation % eval_every == 0 or generation == generations:
            note = score(generation)
            _picture(history.with_suffix(".png"), record, worlds)
        record["seconds"].append(time.monotonic() - began)
        save_npz(history, constants=np.array(json.dumps(constants)), **{k: np.array(v) for k, v in record.items()})
        left = (time.monotonic() - begun) / (generation - done) * (generations - generation)
        print(
            f"generation {generation}/{generations}  best {fitness.max():.0f}  mean {fitness.mean():.0f} ± "
            f"{fitness.std():.0f}  σ {search.sigma:.3f}  {sum(record['frames']):,} frames  "
            f"{frames / seconds:,.0f} frames/s  {clock(left)} left{note}",
            flush=True,
        )
    if done >= generations:
        print(f"{done} generations are done: GENERATIONS={2 * done} goes on")
    kept = _best_generation(record, worlds)
    if kept is not None:
        returns = record[f"eval_{worlds[0]}"][record["eval_generation"].index(kept)]
        print(
            f"best: the mean after generation {kept}, {np.mean(returns):.0f} ± {np.std(returns):.0f} on {len(returns)} "
            f"selection tracks, kept in {best}; the curve is {history.with_suffix('.png')}"
        )


def _best_generation(record: dict[str, list], worlds: tuple[str, ...]) -> int | None:
    """After which generation the mean scored best in the first world; None before the first score."""
    scores = [np.mean(score) for score in record[f"eval_{worlds[0]}"]]
    return record["eval_generation"][int(np.argmax(scores))] if scores else None


def _read(history: Path, constants: dict, worlds: tuple[str, ...], best: Path) -> dict[str, list]:
    """The search's start, and what a run has recorded so far, each a list with an entry a generation or evaluation."""
    made_by = str(constants["SCRIPT"])
    size = controller.PARAMETERS if constants["FEATURES"] == "zh" else controller.Z_PARAMETERS
    names = ["start", "fitness", "sigma", "frames", "seconds", "eval_generation", *(f"eval_{name}" for name in worlds)]
    if not history.exists():
        start = np.zeros(controller.PARAMETERS)
        if constants["GO_ON"]:
            start = weights.load_controller(best, f"{made_by} with GO_ON=False", vae=constants["vae"])
        return {name: [] for name in names} | {"start": list(start[:size])}
    arrays = load_npz(history, made_by)
    try:
        found = dict(json.loads(str(arrays["constants"])))
        record = {name: list(arrays[name]) for name in names}
        generations, evaluations = len(record["fitness"]), len(record["eval_generation"])
        shapes = {name: (evaluations, constants["EVAL_TRACKS"]) for name in names if name.startswith("eval_")}
        shapes |= {
            "fitness": (generations, constants["POPULATION"]),
            "eval_generation": (evaluations,),
            "start": (size,),
        }
        whole_history = generations > 0
        for name in names:
            shape = shapes.get(name, (generations,))
            fits = arrays[name].shape == shape or len(arrays[name]) == shape[0] == 0
            whole_history &= fits and bool(np.isfinite(arrays[name]).all())
    except (KeyError, ValueError, TypeError, AttributeError):
        raise Refused(f"{history} is not the history of a run: delete it and run {made_by}") from None
    if any(found.get(name) != constants.get(name) for name in ("vae", "rnn", "the starts")):
        raise Refused(f"{history} belongs to an earlier V or M: delete it and run {made_by} again")
    differ = [name for name in constants if found.get(name) != constants[name]]
    if differ:
        told = ", ".join(f"{name} was {found.get(name)}, is {constants[name]}" for name in differ)
        raise Refused(f"{history} is of a run with other constants ({told}): change them back, or delete it")
    if not whole_history:
        raise Refused(f"{history} is damaged: delete it and run {made_by}")
    return record


def _picture(path: Path, record: dict[str, list], worlds: tuple[str, ...]) -> None:
    """The run as curves: what the candidates got, and the search's mean in each world."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fitness = np.array(record["fitness"])
    generation = np.arange(1, len(fitness) + 1)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    middle, spread = fitness.mean(1), fitness.std(1)
    axes.fill_between(generation, middle - spread, middle + spread, alpha=0.2, label="candidates, mean ± spread")
    axes.plot(generation, fitness.max(1), linewidth=0.7, alpha=0.6, label="best candidate")
    for name in worlds:
        scores = np.array(record[f"eval_{name}"])
        label = f"the search's mean in the {name} world"
        axes.errorbar(record["eval_generation"], scores.mean(1), scores.std(1), marker="o", capsize=2, label=label)
    axes.set(xlabel="generation", ylabel="return", title=f"CMA-ES in the {worlds[0]} world")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
