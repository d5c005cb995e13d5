"""The history of a search with CMA-ES, on disk: what it was given, and what each generation came to.

CMA-ES is deterministic given its seed and fitnesses, so those are the whole checkpoint; resuming replays them. One
`.npz` for n generations and m evaluations of the search's mean:

    settings                  str             the constants of the script and the fingerprints of V and M, as JSON
    x0, basis                 (867,), (k, 289)  where the search starts and the directions it moves in
    fitness                   (n, population)
    tracks, track_returns     (n, episodes)   seeds, and the candidates' mean return on each
    sigma, steps, seconds     (n,)            step size of CMA-ES, steps driven, time taken
    eval_generation           (m,)            after which generation the mean was evaluated
    eval_real, eval_dream     (m, eval episodes)  its returns, for each world that it was evaluated in
"""

import json
from pathlib import Path
from typing import Any

from models import controller
from pipeline import UserError
from pipeline.files import load_npz, save_npz

import numpy as np

Record = dict[str, list]  # the arrays above as lists, so that a generation can be appended

BY_GENERATION = ("fitness", "tracks", "track_returns", "sigma", "steps", "seconds")
WORLD_COLOURS = {"real": "C0", "dream": "C1"}  # in every picture
DERIVED_FROM = ("vae", "rnn", "the starts")  # settings that are fingerprints of weights


def new_record(x0: np.ndarray, basis: np.ndarray, worlds: tuple[str, ...]) -> Record:
    """The record of a search that has not begun."""
    evaluations = ("eval_generation", *(f"eval_{name}" for name in worlds))
    return {"x0": list(x0), "basis": list(basis)} | {name: [] for name in (*BY_GENERATION, *evaluations)}


def save_history(path: Path, settings: dict[str, Any], record: Record) -> None:
    """Write the history, whole or not at all."""
    arrays: dict[str, Any] = {name: np.array(rows) for name, rows in record.items()}
    save_npz(path, settings=np.array(json.dumps(settings)), **arrays)


def load_history(path: Path, settings: dict[str, Any], worlds: tuple[str, ...]) -> Record:
    """The record of a search with these `settings`.

    Raises `UserError` where the file is damaged, of another V or M, or was made with different settings.
    """
    producer = settings["SCRIPT"]
    arrays = load_npz(path, producer)
    try:
        found = dict(json.loads(str(arrays["settings"])))
        record = {name: list(arrays[name]) for name in new_record(np.zeros(0), np.zeros(0), worlds)}
        is_whole = all(_fits(arrays[name], shape) for name, shape in _shapes(record, settings, worlds).items())
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is not the history of a run: delete it and run {producer}") from None
    if any(found.get(name) != settings.get(name) for name in DERIVED_FROM):
        raise UserError(f"{path} was made with another V, M or dream starts: delete it and run {producer} again")
    changed = [name for name in settings if found.get(name) != settings[name]]
    if changed:
        changes = ", ".join(f"{name}: {found.get(name)} → {settings[name]}" for name in changed)
        raise UserError(f"{path} was made with different settings ({changes}): change them back, or delete it")
    if not (is_whole and record["fitness"] and record["basis"]):
        raise UserError(f"{path} is damaged: delete it and run {producer}")
    return record


def _shapes(record: Record, settings: dict[str, Any], worlds: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    generations, evaluations = len(record["fitness"]), len(record["eval_generation"])
    shapes: dict[str, tuple[int, ...]] = {name: (generations,) for name in ("sigma", "steps", "seconds")}
    shapes |= {f"eval_{name}": (evaluations, settings["EVAL_EPISODES"]) for name in worlds}
    return shapes | {
        "fitness": (generations, settings["POPULATION"]),
        "tracks": (generations, settings["EPISODES"]),
        "track_returns": (generations, settings["EPISODES"]),
        "eval_generation": (evaluations,),
        "x0": (controller.PARAMETERS,),
        "basis": (len(record["basis"]), 1 + controller.FEATURES),
    }


def _fits(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    return (array.shape == shape or len(array) == shape[0] == 0) and bool(np.isfinite(array).all())


def best_generation(record: Record, world: str) -> int | None:
    """After which generation the mean scored best in `world`; None before the first evaluation."""
    scores = [np.mean(returns) for returns in record[f"eval_{world}"]]
    return record["eval_generation"][int(np.argmax(scores))] if scores else None


def plot_history(path: Path, record: Record, worlds: tuple[str, ...]) -> None:
    """The search as curves: the candidates' fitness, and the return of the search's mean in each world, as PNG."""
    from pipeline import plots  # not above: workers import this module, and need no Matplotlib

    fitness = np.array(record["fitness"])
    generation = np.arange(1, len(fitness) + 1)
    mean, std = fitness.mean(1), fitness.std(1)
    with plots.figure(path, f"CMA-ES in the {worlds[0]} world") as axes:
        axes.fill_between(generation, mean - std, mean + std, alpha=0.2, color="grey", label="candidates, mean ± std")
        axes.plot(generation, fitness.max(1), linewidth=0.7, alpha=0.6, color="grey", label="best candidate")
        for name in worlds:
            returns = np.array(record[f"eval_{name}"])
            label = f"the search's mean in the {name} world"
            at, style = record["eval_generation"], {"marker": "o", "capsize": 2, "color": WORLD_COLOURS[name]}
            axes.errorbar(at, returns.mean(1), returns.std(1), label=label, **style)
        axes.set(xlabel="generation", ylabel="return")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
