"""How every figure looks: PNG files, drawn without a screen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import atomic_write

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.edgecolor": "none",
    }
)


@contextmanager
def figure(path: Path | str, title: str, size: tuple[float, float] = (8, 4.5), panels: int = 1) -> Iterator:
    """A figure with `panels` axes side by side: yields them (one alone by itself), then writes the PNG whole."""
    drawing, axes = plt.subplots(1, panels, figsize=size, layout="constrained")
    try:
        drawing.suptitle(title)
        yield axes
        with atomic_write(path) as temporary:
            drawing.savefig(temporary)
    finally:
        plt.close(drawing)


def frame_rows(path: Path | str, title: str, rows: dict[str, np.ndarray], columns: Sequence[str] = ()) -> None:
    """Rows of frames, uint8 (n, 64, 64, 3) each, below each other, named at the left; `columns` names them above."""
    count = max(len(frames) for frames in rows.values())
    size = (1.1 * count + 1.4, 1.12 * len(rows) + 0.6)
    drawing, grid = plt.subplots(len(rows), count, figsize=size, layout="constrained", squeeze=False)
    try:
        drawing.suptitle(title)
        for axes, (name, frames) in zip(grid, rows.items()):
            for place, ax in enumerate(axes):
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if place < len(frames):
                    ax.imshow(frames[place])
            axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for ax, name in zip(grid[0], columns):
            ax.set_title(name, fontsize=9)
        with atomic_write(path) as temporary:
            drawing.savefig(temporary)
    finally:
        plt.close(drawing)


def foretold(
    path: Path, rate: int, rewards: dict[str, np.ndarray], latents: dict[str, np.ndarray], order: np.ndarray
) -> None:
    """Rewards (frames,) along a drive of `rate` frames a second, and numbers of each latent (32,), in that `order`."""
    with figure(path, "What M expects, and what came", (12, 4.5), panels=2) as (left, right):
        window = np.hanning(rate + 1) / (rate / 2)  # tiles come a few a second: only their average can be foretold
        for (name, reward), colour in zip(rewards.items(), ("grey", "C0")):
            smooth = np.convolve(reward, window, "valid")
            time = np.arange(len(smooth)) / rate + 0.5
            left.plot(time, smooth, color=colour, label=f"{name}: {reward.sum():.1f} in all")
        left.set(xlabel="seconds", ylabel="reward a frame, averaged over a second")
        left.legend()
        styles = ({"color": "grey", "marker": "_"}, {"color": "black", "marker": "_"}, {"marker": "."}, {"marker": "x"})
        for (name, numbers), style in zip(latents.items(), styles):
            right.plot(np.arange(1, 33), numbers[order], linestyle="", label=name, **{"markersize": 8, **style})
        right.set(xlabel="latent, the liveliest first", ylabel="root mean square", ylim=(0, None))
        right.legend()


def curves(path: Path, epochs: dict[str, np.ndarray], generations: dict[str, dict[str, np.ndarray]]) -> None:
    """A panel for each loss, (n, 2) of epoch and loss, and for each history of CMA-ES, as `evolution` keeps it."""
    count = len(epochs) + len(generations)
    with figure(path, "Training", (4.5 * count, 4), panels=count) as panels:
        panels = iter(np.atleast_1d(panels))
        for name, losses in epochs.items():
            axes = next(panels)
            axes.plot(*losses.T, marker=".")
            axes.set(xlabel="epoch", title=name)
        for name, history in generations.items():
            axes, fitness, at = next(panels), history["fitness"], history["eval_generation"]
            axes.plot(np.arange(1, len(fitness) + 1), fitness.mean(1), alpha=0.4, color="grey", label="candidates")
            for world, label in (("dream", "in the dream"), ("real", "on the real track")):
                if len(at) and f"eval_{world}" in history:
                    scores = history[f"eval_{world}"]
                    axes.errorbar(at, scores.mean(1), scores.std(1), marker=".", capsize=2, label=label)
            axes.set(xlabel="generation", title=name)
            axes.legend()


def ranking(path: Path, tracks: np.ndarray, returns: dict[str, np.ndarray], labelled: int = 5) -> None:
    """The returns of the first of `returns` by size, its worst tracks named; the means of the others as lines."""
    (name, agent), *others = returns.items()
    order = np.argsort(agent)
    with figure(path, f"{len(agent)} tracks on gym's own renderer", (10, 4.5)) as axes:
        axes.bar(np.arange(1, len(agent) + 1), agent[order], label=f"{name}: {agent.mean():.1f} ± {agent.std():.1f}")
        for rank, place in enumerate(order[:labelled], 1):
            axes.text(
                rank, max(agent[place], 0), f" {tracks[place]}", rotation=90, ha="center", va="bottom", fontsize=9
            )
        for (other, these), style in zip(others, (":", "--")):
            label = f"{other}: {these.mean():.1f} (over {len(these)} tracks)"
            axes.axhline(these.mean(), color="black", linestyle=style, label=label)
        axes.set(xlabel="tracks, the worst first, with their seeds", ylabel="return")
        axes.margins(x=0.01, y=0.12)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)


def learning_curve(path: Path | str, title: str, runs: dict[str, Sequence[float]], window: int = 100) -> None:
    """The score of each training episode, and the mean of the last `window`, for each of `runs`.

    Writes nothing where no episode was played: an earlier curve stays.
    """
    if not any(map(len, runs.values())):
        return
    with figure(path, title) as axes:
        for number, (name, scores) in enumerate(runs.items()):
            episodes = np.arange(1, len(scores) + 1)
            means = [np.mean(scores[max(0, end - window) : end]) for end in episodes]
            axes.plot(episodes, scores, ".", color=f"C{number}", alpha=0.3)
            axes.plot(episodes, means, color=f"C{number}", label=f"{name}, mean of {window}")
        axes.set(xlabel="training episode", ylabel="score")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(runs))
