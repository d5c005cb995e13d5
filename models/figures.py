"""The figures of 06: what M predicts, the training curves, the score."""

from pathlib import Path

from models.history import WORLD_COLOURS
from pipeline import plots

import numpy as np

REFERENCES = (("tutorial: 833", 833, ":"), ("paper: 906 ± 21", 906, "--"))


def draw_predictions(path: Path, rate: int, rewards: dict[str, np.ndarray], errors: dict[str, np.ndarray]) -> None:
    """Rewards (T,) along an episode of `rate` steps a second, and `recording.error_scales`, as PNG."""
    with plots.figure(path, "What M predicts", (12, 4.5), panels=2) as (left, right):
        window = np.hanning(rate + 1) / (rate / 2)  # tiles come a few a second: only their average is predictable
        for (name, reward), colour in zip(rewards.items(), ("grey", "C0")):
            smooth = np.convolve(reward, window, "valid")
            left.plot(
                np.arange(len(smooth)) / rate + 0.5, smooth, color=colour, label=f"{name}: sum {reward.sum():.1f}"
            )
        left.set(xlabel="seconds", ylabel="reward per step, averaged over a second")
        left.legend()
        styles = ({"color": "grey", "marker": "_"}, {"color": "black", "marker": "_"}, {"marker": "."}, {"marker": "x"})
        order = np.argsort(-next(iter(errors.values())))
        for (name, numbers), style in zip(errors.items(), styles):
            right.plot(
                np.arange(1, len(order) + 1), numbers[order], linestyle="", label=name, **{"markersize": 8, **style}
            )
        right.set(xlabel="latents, by spread", ylabel="root mean square", ylim=(0, None))
        right.legend()


def draw_curves(path: Path, losses: dict[str, np.ndarray], searches: dict[str, dict[str, np.ndarray]]) -> None:
    """A panel for each loss, (n, 2) of epoch and loss, and for each history of CMA-ES (models/history.py), as PNG."""
    count = len(losses) + len(searches)
    with plots.figure(path, "Training", (4.5 * count, 4), panels=count) as panels:
        panels = iter(np.atleast_1d(panels))
        for name, loss in losses.items():
            axes = next(panels)
            axes.plot(*loss.T, marker=".")
            axes.set(xlabel="epoch", title=name)
        for name, history in searches.items():
            axes, fitness, at = next(panels), history["fitness"], history["eval_generation"]
            axes.plot(np.arange(1, len(fitness) + 1), fitness.mean(1), alpha=0.4, color="grey", label="candidates")
            for world, label in (("dream", "mean, in the dream"), ("real", "mean, on the real track")):
                if len(at) and f"eval_{world}" in history:
                    scores = history[f"eval_{world}"]
                    style = {"marker": ".", "capsize": 2, "color": WORLD_COLOURS[world]}
                    axes.errorbar(at, scores.mean(1), scores.std(1), label=label, **style)
            axes.set(xlabel="generation", title=name)
            axes.legend()


def draw_score(path: Path, tracks: np.ndarray, returns: np.ndarray, name: str, labelled: int = 5) -> None:
    """The returns (n,) of a controller in order, its worst tracks named, beside the references, as PNG."""
    order = np.argsort(returns)
    with plots.figure(path, f"{len(returns)} episodes on gym's own renderer", (10, 4.5)) as axes:
        label = f"{name}: {returns.mean():.1f} ± {returns.std():.1f}"
        axes.plot(np.arange(1, len(order) + 1), returns[order], "o", markersize=4, label=label)
        for rank, place in enumerate(order[:labelled], 1):
            axes.annotate(
                f"{tracks[place]}",
                (rank, returns[place]),
                (0, -6),
                textcoords="offset points",
                fontsize=7,
                rotation=90,
                ha="center",
                va="top",
            )
        for text, value, style in REFERENCES:
            axes.axhline(value, color="black", linewidth=0.8, linestyle=style, label=text)
        axes.set(xlabel="tracks, by return; the seeds of the worst", ylabel="return")
        top = max(950, returns.max() + 10)
        axes.set_ylim(min(750, returns.min() - (top - returns.min()) / 8), top)  # room for the lowest seed
        axes.legend(loc="lower right")
