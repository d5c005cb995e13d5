"""How every figure looks: PNG files, drawn without a screen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import atomic_write, suppress_stderr

import numpy as np

with suppress_stderr():  # complaints about a matplotlibrc or a folder for fonts
    import matplotlib
    import matplotlib.pyplot as plt

matplotlib.rcdefaults()  # a matplotlibrc in the folder that we are started in is read first, whatever is set
matplotlib.use("agg")
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


def image_grid(path: Path | str, title: str, rows: dict[str, np.ndarray], columns: Sequence[str] = ()) -> None:
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


def by_epoch(axes, history: Sequence[dict[str, float]], labels: dict[str, str]) -> None:
    """Draw the metrics named in `labels` from epoch to epoch; an epoch without one (FINE_TUNE's 0) is left out."""
    for name, label in labels.items():
        at = [(entry["epoch"], entry[name]) for entry in history if name in entry]
        axes.plot(*zip(*at), marker=".", label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
