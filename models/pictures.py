"""How every figure looks: PNG files and GIFs, drawn without a screen, and a window where there is one."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from models.settings import Refused, quiet, whole

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
        with whole(path) as temporary:
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
        with whole(path) as temporary:
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


# Moving pictures: arrays of uint8 (height, width, 3), put together by hand, since matplotlib needs 50 ms for each.

TILE = 192  # pixels, three for each of a frame
LINE = 17  # height of a line of text
COLOURS = 80  # of a GIF's palette
FLICKER = 10  # of 255: a GIF leaves a pixel as it was until it changes by more


def tiles(pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int, title: str = "") -> np.ndarray:
    """Pictures in rows of `columns`, each TILE high with its label (lines of text) below, as one picture."""
    shown = [Image.fromarray(picture) for picture in pictures]
    shown = [each.resize((round(TILE * each.width / each.height), TILE), Image.Resampling.NEAREST) for each in shown]
    gap, top = 6, LINE + 6 if title else 6
    text = LINE * max(label.count("\n") + 1 for label in labels) + 4
    rows = [range(start, min(start + columns, len(shown))) for start in range(0, len(shown), columns)]
    width = max(int(_font().getlength(title)) + gap, *(sum(shown[i].width + gap for i in row) for row in rows)) + gap
    sheet = Image.new("RGB", (width + width % 2, (top + len(rows) * (TILE + text) + 3) // 2 * 2), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 3), title, "black", _font())
    for number, row in enumerate(rows):
        x, y = gap, top + number * (TILE + text)
        for i in row:
            sheet.paste(shown[i], (x, y))
            draw.multiline_text((x, y + TILE + 1), labels[i], "black", _font(), spacing=2)
            x += shown[i].width + gap
    return np.array(sheet)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 13)  # its own font


def moving(path: Path, pictures: Sequence[np.ndarray], rate: float) -> list[Path]:
    """Write `pictures` (all of one size, `rate` a second) as a GIF, and as an MP4 beside it where ffmpeg is on PATH.

    Returns the files made. An MP4 that ffmpeg fails to make is said so in one line.
    """
    palette = _palette(np.stack(pictures[:: len(pictures) // 12 + 1]))
    frames, shown = [], pictures[0]
    for picture in pictures:
        # What hardly changes stays as it is: V's grass flickers a little, and would be most of the file.
        change = np.abs(picture.astype(np.int16) - shown).max(-1, keepdims=True)
        shown = np.where(change > FLICKER, picture, shown)
        frames.append(Image.fromarray(shown).quantize(palette=palette, dither=Image.Dither.NONE))
    with whole(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0)
    ffmpeg = shutil.which("ffmpeg")
    if not ffmpeg:
        return [path]
    height, width, _ = pictures[0].shape
    film = path.with_suffix(".mp4")
    command = [ffmpeg, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(rate), "-i", "-", "-pix_fmt", "yuv420p", "-movflags", "faststart"]
    try:
        with whole(film) as temporary:
            raw = b"".join(each.tobytes() for each in pictures)
            subprocess.run([*command, str(temporary)], input=raw, capture_output=True, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        told = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
        print(f"{film} was not made: ffmpeg says {told[-1] if told else error}")
        return [path]
    return [path, film]


def _palette(pictures: np.ndarray) -> Image.Image:
    """One palette for all pictures, so that colours don't flicker: the commonest as they are, then what is left.

    There each colour counts by the logarithm of its pixels, so that a red car is worth as much as a field of grass.
    """
    codes = pictures.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    common, others = np.split(order, [COLOURS // 4])
    others = np.repeat(others, np.log2(counts[others]).astype(int) + 1) if len(others) else common
    common, others = (np.stack([colours[part] >> shift & 255 for shift in (16, 8, 0)], -1) for part in (common, others))
    mixed = Image.fromarray(others[None].astype(np.uint8)).quantize(COLOURS - len(common), Image.Quantize.MEDIANCUT)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*common.ravel().tolist(), *mixed.getpalette()[: 3 * (COLOURS - len(common))]])
    return palette


class Window:
    """A window on the screen that shows pictures as they come, at `rate` a second at most.

    Make it before anything of the game is imported: that turns the screen off for the rest of the process.
    Raises `Refused` where there is no screen.
    """

    def __init__(self, title: str, rate: float) -> None:
        import pygame

        self.pygame, self.rate, self.surface, self.closed = pygame, rate, None, False
        wanted = os.environ.get("SDL_VIDEODRIVER")
        try:
            with quiet():
                pygame.display.init()
            driver = pygame.display.get_driver()
            if driver != wanted and driver in ("offscreen", "dummy"):  # what SDL takes when it finds no screen
                raise pygame.error("no display")
        except pygame.error as error:
            raise Refused(f"there is no screen for a window here ({error})") from None
        pygame.display.set_caption(title)
        self.clock = pygame.time.Clock()

    def show(self, picture: np.ndarray) -> None:
        """Show a picture, uint8 (height, width, 3), and wait for its time to pass. Nothing once it was closed."""
        if self.closed:
            return
        pygame = self.pygame
        if self.surface is None:
            self.surface = pygame.display.set_mode(picture.shape[1::-1])
        pygame.surfarray.blit_array(self.surface, picture.swapaxes(0, 1))
        pygame.display.flip()
        self.clock.tick(self.rate)
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            self.close()

    def close(self) -> None:
        """Close the window."""
        self.closed = True
        self.pygame.display.quit()
