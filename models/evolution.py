"""CMA-ES over a world: worker processes drive the candidates; a run that is stopped continues exactly where it was.

CMA-ES itself is pycma's (Hansen 2016, arXiv:1604.00772).
"""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models import controller, weights
from models.history import best_generation, load_history, new_record, plot_history, save_history
from models.tracks import EVOLUTION_TRACKS, SELECTION_TRACKS, first_track, sample_tracks
from pipeline import UserError
from pipeline.progress import format_duration
from pipeline.workers import WorkerPool

import numpy as np

# Constants of 05 and 07 that a run does not depend on: all others must be the same when it continues.
FREE = ("GENERATIONS", "WORKERS", "MODELS", "DATA", "CLUSTER")


class CMAES:
    """CMA-ES around the controller `x0` (867,): three numbers, one an action, for each row of `basis` (k, 289).

    The same x0, basis, seed and fitnesses give the same search, to the last bit. With `diagonal` it learns a variance
    for each direction instead of a full covariance matrix (sep-CMA-ES, Ros & Hansen 2008), which takes far fewer
    generations where the directions are the right ones. Its result is the average of its last `average` means.
    """

    def __init__(
        self,
        x0: np.ndarray,
        basis: np.ndarray,
        population: int,
        sigma: float,
        seed: int,
        diagonal: bool,
        average: int = 1,
    ) -> None:
        import cma

        random = np.random.default_rng(seed)
        self.x0, self.basis = x0, basis
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
        self.means = deque([self.cma.mean], average)

    def ask(self) -> np.ndarray:
        """The candidates of the next generation, (population, 867)."""
        self.asked = self.cma.ask()
        return self._controllers(np.array(self.asked))

    def tell(self, fitness: np.ndarray) -> None:
        """The fitness (population,) of the candidates, higher is better. Raises ValueError if it is not finite."""
        if not np.isfinite(fitness).all():
            raise ValueError("a fitness that is not finite")
        self.cma.tell(self.asked, (-fitness).tolist())
        self.means.append(self.cma.mean)

    @property
    def mean(self) -> np.ndarray:
        """The result of the search, (867,): a best candidate's fitness is mostly luck.

        It is the mean of the distribution, or the average of the last ones: late in a search the mean wanders around
        an optimum, and the average lies closer to it (Polyak & Juditsky 1992).
        """
        return self._controllers(np.mean(self.means, 0)[None])[0]

    def _controllers(self, numbers: np.ndarray) -> np.ndarray:
        steps = self.basis.T @ numbers.reshape(len(numbers), -1, controller.ACTIONS)
        return self.x0 + steps.reshape(len(numbers), -1)

    @property
    def sigma(self) -> float:
        """The overall step size."""
        return float(self.cma.sigma)


def evaluate_share(
    worlds: dict, episodes: Iterator[int], name: str, parameters: np.ndarray, tracks: np.ndarray, max_parallel: int
) -> tuple[np.ndarray, np.ndarray]:
    """A worker's share of the episodes, in its world of that name; NaN where another worker drove."""
    shape = len(parameters), len(tracks)
    parameters, tracks = np.repeat(parameters, shape[1], 0), np.tile(tracks, shape[0])
    return worlds[name].drive(parameters, tracks, episodes=episodes, max_parallel=max_parallel)


def evaluate(workers: WorkerPool, name: str, parameters: np.ndarray, tracks: np.ndarray) -> tuple[np.ndarray, int]:
    """Every controller on every track: the returns (controllers, tracks), and how many steps were driven.

    Raises `UserError` for a return that is missing or not finite.
    """
    shape = len(parameters), len(tracks)
    total = shape[0] * shape[1]
    max_parallel = -(-total // workers.count)  # no worker takes so many that another has none
    shares = workers.run_on_all(evaluate_share, total, name, parameters, tracks, max_parallel)
    returns = np.full(total, np.nan)
    for share, _ in shares:
        returns = np.where(np.isnan(share), returns, share)
    if not np.isfinite(returns).all():
        raise UserError(
            f"{np.sum(~np.isfinite(returns))} episodes have no finite return: stopped; the same command repeats them"
        )
    return returns.reshape(shape), int(sum(lengths.sum() for _, lengths in shares))


def validate(constants: dict[str, Any]) -> None:
    """Raises `UserError` for constants of 05 and 07 that no search can have, before anything is loaded."""
    if constants["POPULATION"] < 4:
        raise UserError("POPULATION must be at least 4")
    if constants["HARD_TRACKS"] >= constants["EPISODES"]:
        hard, episodes = constants["HARD_TRACKS"], constants["EPISODES"]
        raise UserError(f"HARD_TRACKS={hard} must be less than EPISODES={episodes}: some of the tracks must be new")
    if len(SELECTION_TRACKS) < constants["EVAL_EPISODES"]:
        raise UserError(f"EVAL_EPISODES can be {len(SELECTION_TRACKS)} at most")
    if len(EVOLUTION_TRACKS) < first_track(constants, constants["GENERATIONS"] + 1):
        raise UserError(f"there are {len(EVOLUTION_TRACKS):,} track seeds: SEED, GENERATIONS or EPISODES is too large")


def initial_controller(settings: dict[str, Any], folder: Path, basis: np.ndarray) -> np.ndarray:
    """Where the search starts, (867,): zeros, or the controller in `folder` that INIT_FROM names.

    It may be of an earlier M: the search then adapts it to the M of today. Raises `UserError` where it is missing, of
    another V, or looks at more than `basis` can change.
    """
    name = settings["INIT_FROM"]
    if name == "zero":
        return np.zeros(controller.PARAMETERS)
    if not (folder / f"{name}.weights.h5").exists():
        raise UserError(f"there is no {name} in {folder}: run {weights.PRODUCERS[name]} with INIT_FROM=zero first")
    x0 = weights.load_controller(folder, name, vae=settings["vae"])
    if x0.reshape(-1, controller.ACTIONS)[~basis.any(0)].any():
        raise UserError(f"the {name} in {folder} looks at h, which FEATURES=z leaves out: INIT_FROM=zero")
    return x0


class Evolution:
    """A search in the first of `worlds` whose mean is evaluated in all of them now and then.

    `constants` are those of the script, less the ones in FREE; `origin` are the fingerprints of V and M. The search
    starts from `initial_controller` and moves along the rows of `basis` (k, 289). All candidates of a generation drive
    the same tracks. Every EVAL_EVERY generations the mean is evaluated on the selection tracks; the one with the best
    score in the first world is kept in `best_path`. After each generation `history_path` is written, with a plot beside
    it; a run that finds its own history continues from there, and refuses one with different settings.
    """

    def __init__(
        self,
        workers: WorkerPool,
        worlds: tuple[str, ...],
        constants: dict[str, Any],
        origin: dict[str, str],
        basis: np.ndarray,
        history_path: Path,
        best_path: Path,
    ) -> None:
        self.workers, self.worlds, self.origin = workers, worlds, origin
        self.settings = {name: value for name, value in constants.items() if name not in FREE} | origin
        self.history_path, self.best_path = history_path, best_path
        if history_path.exists():
            self.record = load_history(history_path, self.settings, worlds)
        else:
            self.record = new_record(initial_controller(self.settings, best_path.parent, basis), basis, worlds)
        names = ("POPULATION", "SIGMA", "SEED", "DIAGONAL", "AVERAGE")
        start = np.array(self.record["x0"]), np.array(self.record["basis"])
        self.es = CMAES(*start, *(self.settings[name] for name in names))
        self._replay()

    def _replay(self) -> None:
        """Tell CMA-ES the fitnesses of the history again; restore the best controller where it is missing."""
        best = best_generation(self.record, self.worlds[0])
        for generation, fitness in enumerate([None, *self.record["fitness"]]):
            if fitness is not None:
                self.es.ask()
                self.es.tell(fitness)
            if generation == best and not self.best_path.exists():
                weights.save_controller(self.best_path, self.es.mean, **self.origin)

    def run(self, generations: int) -> None:
        """Search until `generations` are done, printing a line for each."""
        done = len(self.record["fitness"])
        print(
            f"{self.settings['POPULATION']} controllers a generation, {self.settings['EPISODES']} episodes each; "
            "the workers take a few seconds to start",
            flush=True,
        )
        if done:
            print(f"continuing after generation {done} of {self.history_path}")
        if self.settings["INIT_FROM"] != "zero" and not self.record["eval_generation"]:
            note = self.evaluate_mean(0)
            print(f"starting from the {self.settings['INIT_FROM'].replace('_', ' ')}:{note}", flush=True)
        start = time.monotonic()
        for generation in range(done + 1, generations + 1):
            line = self.run_generation(generation, is_last=generation == generations)
            left = (time.monotonic() - start) / (generation - done) * (generations - generation)
            print(f"generation {generation}/{generations}  {line}  {format_duration(left)} left", flush=True)
        if done >= generations:
            print(f"{done} generations are done: GENERATIONS={2 * done} continues")
        self._print_best()

    def run_generation(self, generation: int, is_last: bool) -> str:
        """One generation; returns what to say about it."""
        start = time.monotonic()
        candidates = self.es.ask()
        tracks = sample_tracks(self.settings, generation, self.record)
        returns, steps = evaluate(self.workers, self.worlds[0], candidates, tracks)
        fitness = returns.mean(1)
        self.es.tell(fitness)
        rate = steps / (time.monotonic() - start)
        row = {"fitness": fitness, "tracks": tracks, "track_returns": returns.mean(0)}
        row |= {"sigma": self.es.sigma, "steps": steps}
        for name, value in row.items():
            self.record[name].append(value)
        line = (
            f"best {fitness.max():.0f}  mean {fitness.mean():.0f} ± {fitness.std():.0f}  σ {self.es.sigma:.3f}  "
            f"{sum(self.record['steps']):,} steps  {rate:,.0f} steps/s"
        )
        if generation % self.settings["EVAL_EVERY"] == 0 or is_last:
            line += self.evaluate_mean(generation)
            plot_history(self.history_path.with_suffix(".png"), self.record, self.worlds)
        self.record["seconds"].append(time.monotonic() - start)
        save_history(self.history_path, self.settings, self.record)
        return line

    def evaluate_mean(self, generation: int) -> str:
        """Evaluate the search's mean, keep it if it is the best so far; returns what to say about it."""
        seeds = np.array(SELECTION_TRACKS[: self.settings["EVAL_EPISODES"]])
        mean = self.es.mean
        scores = {name: evaluate(self.workers, name, mean[None], seeds)[0][0] for name in self.worlds}
        self.record["eval_generation"].append(generation)
        notes = []
        for name, returns in scores.items():
            self.record[f"eval_{name}"].append(returns)
            notes.append(f"  {name} {returns.mean():.0f} ± {returns.std():.0f}")
        if best_generation(self.record, self.worlds[0]) == generation:
            weights.save_controller(self.best_path, mean, **self.origin)
            notes[0] += " (best so far)"  # the first world decides
        return "".join(notes)

    def _print_best(self) -> None:
        best = best_generation(self.record, self.worlds[0])
        if best is None:
            return
        returns = self.record[f"eval_{self.worlds[0]}"][self.record["eval_generation"].index(best)]
        episodes = "dreams" if self.worlds[0] == "dream" else "selection tracks"
        print(
            f"best in the {self.worlds[0]} world: the mean after generation {best}, {np.mean(returns):.0f} ± "
            f"{np.std(returns):.0f} on {len(returns)} {episodes}, in {self.best_path}; "
            f"the curve is {self.history_path.with_suffix('.png')}"
        )
