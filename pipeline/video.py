"""Moving images: GIF and MP4 files, and a window on the screen.

Images are arrays of uint8 (height, width, 3), put together by hand: matplotlib needs 50 ms for each.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import UserError
from pipeline.files import atomic_write, suppress_stderr

import numpy as np
from PIL import Image, ImageDraw, ImageFont

with suppress_stderr():  # as in plots.py
    import matplotlib

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
    with atomic_write(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0)
    ffmpeg = shutil.which("ffmpeg")
    if not ffmpeg:
        return [path]
    height, width, _ = pictures[0].shape
    film = path.with_suffix(".mp4")
    command = [ffmpeg, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(rate), "-i", "-", "-pix_fmt", "yuv420p", "-movflags", "faststart"]
    try:
        with atomic_write(film) as temporary:
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
    palette.putpalette([*common.ravel().tolist(), *(mixed.getpalette() or [])[: 3 * (COLOURS - len(common))]])
    return palette


class Window:
    """A window on the screen that shows pictures as they come, at `rate` a second at most.

    The first picture is enlarged to most of the screen, the others as much. The window's button and Escape close it.
    Make it before anything of the game is imported: that turns the screen off for the rest of the process.
    Raises `UserError` where there is no screen.
    """

    def __init__(self, title: str, rate: float) -> None:
        import pygame

        self.pygame, self.rate, self.closed = pygame, rate, False
        self.surface: Any = None
        wanted = os.environ.get("SDL_VIDEODRIVER")
        try:
            with suppress_stderr():
                pygame.display.init()
            driver = pygame.display.get_driver()
            if driver != wanted and driver in ("offscreen", "dummy"):  # what SDL takes when it finds no screen
                raise pygame.error("no display")
        except pygame.error as error:
            raise UserError(f"there is no screen for a window here ({error})") from None
        pygame.display.set_caption(title)
        self.clock = pygame.time.Clock()

    def show(self, picture: np.ndarray) -> None:
        """Show a picture, uint8 (height, width, 3), and wait for its time to pass. Nothing once it was closed."""
        if self.closed:
            return
        pygame = self.pygame
        if self.surface is None:
            screen = pygame.display.get_desktop_sizes()[0]
            self.surface = pygame.display.set_mode(enlarged(picture.shape[1::-1], screen))
        image = pygame.surfarray.make_surface(picture.swapaxes(0, 1))
        self.surface.blit(pygame.transform.smoothscale(image, self.surface.get_size()), (0, 0))
        pygame.display.flip()
        self.clock.tick(self.rate)
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                self.close()

    def close(self) -> None:
        """Close the window."""
        self.closed = True
        self.pygame.display.quit()


def enlarged(size: tuple[int, int], screen: tuple[int, int]) -> tuple[int, int]:
    """The size of a window for a picture of `size`, both (width, height): nine tenths of the screen, if not larger."""
    factor = max(min(0.9 * there / wanted for there, wanted in zip(screen, size)), 1)
    return round(size[0] * factor), round(size[1] * factor)
