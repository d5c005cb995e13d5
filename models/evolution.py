"""CMA-ES over a world: worker processes drive the candidates, and a run that was stopped goes on exactly where it was.

CMA-ES itself is pycma's. What a run has come to is decided by its seed and the fitnesses it was told, so these few
kilobytes are the whole checkpoint: a run is taken up by telling a new CMA-ES the same again.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from models import controller, weights
from models.tracks import EVOLUTION_TRACKS, SELECTION_TRACKS
from pipeline import UserError
from pipeline.files import atomic_write, load_npz, save_npz
from pipeline.progress import format_duration
from pipeline.workers import WorkerPool

import numpy as np

RECENT = 25  # generations whose tracks may be driven again


class Search:
    """CMA-ES around the controller `start` (867,): three numbers, one an action, for each row of `basis` (k, 289).

    The same start, basis, seed and fitnesses give the same search, to the last bit. With `diagonal` it learns a
    variance for each direction instead of a full covariance matrix (sep-CMA-ES, Ros & Hansen 2008), which takes far
    fewer generations where the directions are the right ones.
    """

    def __init__(
        self, start: np.ndarray, basis: np.ndarray, population: int, sigma: float, seed: int, diagonal: bool
    ) -> None:
        import cma

        random = np.random.default_rng(seed)
        self.start, self.basis = start, basis
        self.cma = cma.CMAEvolutionStrategy(
            np.zeros(controller.ACTIONS * len(basis)),
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
        """The next generation's candidates, (population, 867)."""
        self.asked = self.cma.ask()
        return self._controllers(np.array(self.asked))

    def tell(self, fitness: np.ndarray) -> None:
        """How well each of them did, higher is better. Raises ValueError for a number that is not finite."""
        if not np.isfinite(fitness).all():
            raise ValueError("a fitness that is not finite")
        self.cma.tell(self.asked, (-fitness).tolist())

    @property
    def mean(self) -> np.ndarray:
        """The middle of the distribution, (867,): what the search has come to. Its best draw was mostly luck."""
        return self._controllers(self.cma.mean[None])[0]

    def _controllers(self, numbers: np.ndarray) -> np.ndarray:
        steps = self.basis.T @ numbers.reshape(len(numbers), -1, controller.ACTIONS)
        return self.start + steps.reshape(len(numbers), -1)

    @property
    def sigma(self) -> float:
        """The overall step size."""
        return float(self.cma.sigma)


def drive(
    worlds: dict, pairs: Iterator[int], name: str, parameters: np.ndarray, tracks: np.ndarray, at_once: int
) -> tuple:
    """A worker's share of the pairs, `at_once` of them at most, in its world of that name; NaN where another drove."""
    shape = len(parameters), len(tracks)
    parameters, tracks = np.repeat(parameters, shape[1], 0), np.tile(tracks, shape[0])
    return worlds[name].drive(parameters, tracks, pairs=pairs, at_once=at_once)


def drive_all(workers: WorkerPool, name: str, parameters: np.ndarray, tracks: np.ndarray) -> tuple[np.ndarray, int]:
    """Every controller on every track: the returns (controllers, tracks), and how many frames that took."""
    shape = len(parameters), len(tracks)
    total = shape[0] * shape[1]
    at_once = -(-total // workers.count)  # no worker takes so many that another has none
    shares = workers.run_on_all(drive, total, name, parameters, tracks, at_once)
    returns = np.full(total, np.nan)
    for share, _ in shares:
        returns = np.where(np.isnan(share), returns, share)
    if not np.isfinite(returns).all():
        raise UserError(
            f"{np.sum(~np.isfinite(returns))} drives have no return that is a number: nothing is made of them"
        )
    return returns.reshape(shape), int(sum(lengths.sum() for _, lengths in shares))


def check(constants: dict) -> None:
    """Raises `UserError` for constants that `evolve` can do nothing with, before anything is loaded."""
    if constants["POPULATION"] < 4:
        raise UserError("POPULATION must be at least 4: the better half of it is what CMA-ES learns from")
    if constants["REPLAYED"] >= constants["TRACKS"]:
        raise UserError("REPLAYED must be less than TRACKS: some of the tracks must be new")
    if len(SELECTION_TRACKS) < constants["EVAL_TRACKS"]:
        raise UserError(f"EVAL_TRACKS can be {len(SELECTION_TRACKS)} at most")
    if len(EVOLUTION_TRACKS) < _first_track(constants, constants["GENERATIONS"] + 1):
        raise UserError(f"there are {len(EVOLUTION_TRACKS):,} track seeds: SEED, GENERATIONS or TRACKS is too large")


def _first_track(constants: dict, generation: int) -> int:
    return (constants["SEED"] * 1_000_000 + generation) * constants["TRACKS"]


def _tracks(constants: dict, generation: int, record: dict[str, list]) -> np.ndarray:
    """The tracks of a generation: new ones, and REPLAYED of those that went worst when they were last driven.

    Most drives go well before all do; then nearly every new track says nothing about how to lose the road less often
    (prioritized level replay, Jiang et al. 2021). They come from the worst quarter of the last RECENT generations.
    """
    first = _first_track(constants, generation)
    tracks = np.array(EVOLUTION_TRACKS[first : first + constants["TRACKS"]])
    recent = (np.ravel(record[name][-RECENT:]) for name in ("tracks", "track_returns"))
    last = {int(track): found for track, found in zip(*recent)}
    worst = sorted(last, key=last.get)[: len(last) // 4]
    replayed = min(constants["REPLAYED"], len(worst))
    if replayed:
        tracks[:replayed] = np.random.default_rng(first).choice(worst, replayed, replace=False)
    return tracks


def evolve(
    workers: WorkerPool,
    worlds: tuple[str, ...],
    constants: dict,
    origin: dict[str, str],
    basis: np.ndarray,
    *,
    generations: int,
    eval_every: int,
    eval_tracks: int,
    history: Path,
    best: Path,
) -> None:
    """Evolve a controller in the first of `worlds`, and score the search's mean in all of them now and then.

    `constants` decide the run: POPULATION, TRACKS, REPLAYED, SIGMA, SEED, DIAGONAL, START and whatever else it depends
    on. The search starts from zero, or from the controller of the name START beside `best`, made with the same V, which
    is scored first; it moves along the rows of `basis` (k, 289). All candidates of a generation drive the same tracks.
    Every `eval_every` generations the mean is scored on the selection tracks; the one with the best score in the first
    world is kept in `best`, with the fingerprints `origin` of its V and M. After each generation `history` is written,
    with a picture beside it; a run that finds its own history goes on from there, and refuses one of other constants.
    """
    constants = {**constants, **origin, "EVAL_TRACKS": eval_tracks, "EVAL_EVERY": eval_every}
    record = _read(history, constants, worlds, best, basis)
    start, basis = np.array(record["start"]), np.array(record["basis"])
    search = Search(start, basis, constants["POPULATION"], constants["SIGMA"], constants["SEED"], constants["DIAGONAL"])
    kept = _best_generation(record, worlds)
    for generation, fitness in enumerate([None, *record["fitness"]]):
        if fitness is not None:
            search.ask()
            search.tell(fitness)
        if generation == kept and not best.exists():
            weights.save_controller(best, search.mean, **origin)
    done = len(record["fitness"])
    each = f"{constants['POPULATION']} controllers a generation, each on {constants['TRACKS']} tracks"
    print(f"{each}; the workers take a few seconds to start", flush=True)
    if done:
        print(f"goes on after generation {done} of {history}")
    seeds = np.array(SELECTION_TRACKS[:eval_tracks])

    def score(generation: int) -> str:
        """Score the search's mean, keep it if it is the best so far, and say so."""
        mean, note = search.mean, ""
        scores = {name: drive_all(workers, name, mean[None], seeds)[0][0] for name in worlds}
        record["eval_generation"].append(generation)
        for name, returns in scores.items():
            record[f"eval_{name}"].append(returns)
            note += f"  {name} {returns.mean():.0f} ± {returns.std():.0f}"
        if _best_generation(record, worlds) == generation:
            weights.save_controller(best, mean, **origin)
            note += " (best, kept)"
        return note

    if constants["START"] != "zero" and not record["eval_generation"]:
        print(f"starts from the {constants['START'].replace('_', ' ')}:{score(0)}", flush=True)
    begun = time.monotonic()
    for generation in range(done + 1, generations + 1):
        began = time.monotonic()
        candidates = search.ask()
        tracks = _tracks(constants, generation, record)
        returns, frames = drive_all(workers, worlds[0], candidates, tracks)
        fitness = returns.mean(1)
        search.tell(fitness)
        seconds = time.monotonic() - began
        record["fitness"].append(fitness)
        record["tracks"].append(tracks)
        record["track_returns"].append(returns.mean(0))
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
            f"{frames / seconds:,.0f} frames/s  {format_duration(left)} left{note}",
            flush=True,
        )
    if done >= generations:
        print(f"{done} generations are done: GENERATIONS={2 * done} goes on")
    kept = _best_generation(record, worlds)
    if kept is not None:
        returns = record[f"eval_{worlds[0]}"][record["eval_generation"].index(kept)]
        print(
            f"best in the {worlds[0]} world: the mean after generation {kept}, {np.mean(returns):.0f} ± "
            f"{np.std(returns):.0f} on {len(returns)} selection tracks, kept in {best}; "
            f"the curve is {history.with_suffix('.png')}"
        )


def _best_generation(record: dict[str, list], worlds: tuple[str, ...]) -> int | None:
    """After which generation the mean scored best in the first world; None before the first score."""
    scores = [np.mean(score) for score in record[f"eval_{worlds[0]}"]]
    return record["eval_generation"][int(np.argmax(scores))] if scores else None


def _read(history: Path, constants: dict, worlds: tuple[str, ...], best: Path, basis: np.ndarray) -> dict[str, list]:
    """The search's start and directions, and what a run has recorded so far: lists with an entry a generation."""
    producer = str(constants["SCRIPT"])
    names = [
        "start",
        "basis",
        "fitness",
        "tracks",
        "track_returns",
        "sigma",
        "frames",
        "seconds",
        "eval_generation",
        *(f"eval_{name}" for name in worlds),
    ]
    if not history.exists():
        start = np.zeros(controller.PARAMETERS)
        if constants["START"] != "zero":
            name = constants["START"]
            if not (best.parent / f"{name}.weights.h5").exists():
                raise UserError(
                    f"there is no {name} in {best.parent}: run {weights.MADE_BY[name]} with START=zero first"
                )
            start = weights.load_controller(best.parent, name, vae=constants["vae"])
            if start.reshape(-1, controller.ACTIONS)[~basis.any(0)].any():
                raise UserError(f"the {name} in {best.parent} looks at h, which FEATURES=z leaves out: START=zero")
        return {name: [] for name in names} | {"start": list(start), "basis": list(basis)}
    arrays = load_npz(history, producer)
    try:
        found = dict(json.loads(str(arrays["constants"])))
        record = {name: list(arrays[name]) for name in names}
        generations, evaluations = len(record["fitness"]), len(record["eval_generation"])
        shapes = {name: (evaluations, constants["EVAL_TRACKS"]) for name in names if name.startswith("eval_")}
        shapes |= {
            "fitness": (generations, constants["POPULATION"]),
            "tracks": (generations, constants["TRACKS"]),
            "track_returns": (generations, constants["TRACKS"]),
            "eval_generation": (evaluations,),
            "start": (controller.PARAMETERS,),
            "basis": (len(record["basis"]), 1 + controller.FEATURES),
        }
        whole_history = generations > 0 and len(record["basis"]) > 0
        for name in names:
            shape = shapes.get(name, (generations,))
            fits = arrays[name].shape == shape or len(arrays[name]) == shape[0] == 0
            whole_history &= fits and bool(np.isfinite(arrays[name]).all())
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(f"{history} is not the history of a run: delete it and run {producer}") from None
    if any(found.get(name) != constants.get(name) for name in ("vae", "rnn", "the starts")):
        raise UserError(f"{history} belongs to an earlier V or M: delete it and run {producer} again")
    differ = [name for name in constants if found.get(name) != constants[name]]
    if differ:
        told = ", ".join(f"{name} was {found.get(name)}, is {constants[name]}" for name in differ)
        raise UserError(f"{history} is of a run with other constants ({told}): change them back, or delete it")
    if not whole_history:
        raise UserError(f"{history} is damaged: delete it and run {producer}")
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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
