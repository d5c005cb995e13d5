"""How far a long step is."""

import os
import shutil
import sys
import time


class Progress:
    """Done of total, rate and time left, on one line that is rewritten.

    Where the output is no terminal (a log, a pipe) a line is printed every ten seconds instead.
    """

    def __init__(self, total: int, unit: str, label: str = "") -> None:
        self.total, self.unit, self.label = total, unit, label
        self.terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"  # an editor's knows no escape codes
        self.start = self.shown = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of `total` are there; cheap enough to call for every one of them."""
        now = time.monotonic()
        if done < self.total and now - self.shown < (0.2 if self.terminal else 10):
            return
        self.shown = now
        seconds = max(now - self.start, 1e-9)
        rate = done / seconds
        left = f"{format_duration((self.total - done) / rate)} left" if 0 < done < self.total else ""
        text = f"{self.label}{done:,}/{self.total:,} {self.unit}, {rate:,.1f}/s, {left or format_duration(seconds)}"
        if note:
            text += f"  {note}"
        if self.terminal:
            columns = shutil.get_terminal_size((0, 0)).columns  # 0: unknown
            text = text[: columns - 1] if columns else text  # a line that wraps could not be rewritten
            print(f"\r\033[K{text}", end="\n" if done >= self.total else "", flush=True)
        else:
            print(text, flush=True)


def format_duration(seconds: float) -> str:
    """`3:25` or `1:02:03`."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
