"""What every script shares: constants from the shell, seeds, whole files, the lock on a folder, progress.

Only the standard library and NumPy: importing this costs nothing, so a mistake in a constant is told
before TensorFlow is loaded.
"""

import ast
import errno
import fcntl
import math
import os
import re
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

# Track seeds: the ranges never overlap (a test asserts it), so no track that is reported was ever trained on.
REPORT_TRACKS = range(1_000, 1_100)  # scores in the README
SELECTION_TRACKS = range(500, 600)  # choosing the best controller of a run
ROLLOUT_TRACKS = range(1_000_000, 2_000_000)  # 01: what V and M learn from
EVOLUTION_TRACKS = range(2_000_000, 1_000_000_000)  # 05 and 07: what C is evolved on


class Refused(Exception):
    """Something the user can mend: `run` prints it as one line, without a traceback, and exits with 1."""


def run(
    main: Callable[[], None],
    constants: dict,
    *,
    zero: tuple[str, ...] = (),
    choices: dict[str, tuple] | None = None,
) -> None:
    """Run a script's `main()` with its constants as edited, or as set for one run in the shell.

    `constants` is the script's `globals()`: `NAME=value` arguments replace its upper-case names. Numbers must be
    above 0, those named in `zero` at least 0; `choices` names what a constant may be. The folders `DATA` and
    `MODELS` are made where missing, and locked against a second run of the same script.

    Exits with 1 and one line for a `Refused` or a full disk, with 130 and one line for Ctrl-C.
    """
    script = Path(constants["__file__"]).name
    try:
        with ExitStack() as stack:
            _read_shell(constants, sys.argv[1:])
            _check(constants, zero, choices or {})
            folders = {Path(constants[name]).resolve(): name for name in ("MODELS", "DATA") if name in constants}
            for name in sorted(folders.values()):  # one of them where both are the same
                stack.enter_context(_locked(Path(constants[name]), name, script))
            # A laptop that shuts down sends SIGTERM: save and go, as with Ctrl-C.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            main()
    except Refused as error:
        sys.exit(f"{script}: {error}")
    except KeyboardInterrupt:
        print(f"\n{script}: stopped. The same command goes on from what is saved.", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # not sys.exit: a library's exit handlers must not wait for a thread that is busy
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(
            f"{script}: no room to write ({os.strerror(error.errno)}); what was written before is whole. "
            "Free some, run again."
        )


def _read_shell(constants: dict, arguments: list[str]) -> None:
    kinds = int | float | str | tuple  # not what was imported, such as ROLLOUT_TRACKS
    names = [
        name for name, value in constants.items() if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) and isinstance(value, kinds)
    ]
    if any(argument in ("-h", "--help") for argument in arguments):
        lines = Path(constants["__file__"]).read_text().splitlines()
        print(constants["__doc__"].strip(), "\n\nConstants (edit them, or set them for one run as NAME=value):\n")
        print("\n".join(line for line in lines if line.split(" = ")[0] in names))
        sys.exit(0)
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise Refused(f"{argument!r} is no constant with a value: write NAME=value, without spaces")
        if name not in names:
            raise Refused(f"unknown constant {argument!r}; this script has {', '.join(names)}")
        old = constants[name]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text  # a bare word is a string
        if isinstance(old, str) and type(value) in (int, float):
            value = text  # a folder may be named 2026
        if not _alike(value, old):
            raise Refused(f"{name}={text}: expected something such as {old!r}")
        constants[name] = float(value) if isinstance(old, float) else value


def _alike(value: object, old: object) -> bool:
    if isinstance(value, tuple) and isinstance(old, tuple):
        return all(_alike(part, old[0]) for part in value)
    return type(value) is type(old) or (isinstance(old, float) and type(value) is int and abs(value) < 2**63)


def _check(constants: dict, zero: tuple[str, ...], choices: dict[str, tuple]) -> None:
    for name, value in constants.items():
        if not name.isupper() or isinstance(value, bool) or not isinstance(value, int | float | str | tuple):
            continue
        if value in ("", ()):
            raise Refused(f"{name} must not be empty")
        least = "at least 0" if name in zero or isinstance(value, tuple) else "above 0"
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not (_usable(number) and (number > 0 or least == "at least 0")):
                raise Refused(f"{name}={value} must be {least}")
    for name, allowed in choices.items():
        if constants[name] not in allowed:
            raise Refused(f"{name}={constants[name]} must be one of {', '.join(map(str, allowed))}")


def _usable(number: float) -> bool:
    """Whether it is not negative, finite and, an integer, no larger than NumPy can hold."""
    return 0 <= number < (2**63 if isinstance(number, int) else math.inf)


@contextmanager
def _locked(folder: Path, name: str, script: str) -> Iterator[None]:
    """Hold `folder` for one run of `script`. The lock is the kernel's: it goes with the process, however that ends."""
    make_folder(folder, name)
    with open(folder / f".{script}.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise Refused(
                f"{script} is already running on {folder} (process {file.read() or 'unknown'}); wait for it, "
                f"or give this run another {name}=folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def make_folder(folder: Path, name: str = "the folder") -> Path:
    """Make `folder` where it is missing. Raises `Refused` where something else is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{name}={folder} can't be used as a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise Refused(f"{name}={folder} can't be written to")
    return folder


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside it that replaces `path` at the end.

    The temporary name keeps the ending (Keras and NumPy look at it) and is always the same one, so what a killed
    run left behind is written over by the next.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_npz(path: Path | str, level: int = 0, **arrays: np.ndarray) -> None:
    """Write arrays as one `.npz`, whole or not at all; `level` is deflate's, 0 to 9 (NumPy knows only 0 and 6)."""
    kind = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    with (
        whole(path) as temporary,
        zipfile.ZipFile(temporary, "w", kind, allowZip64=True, compresslevel=level or None) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def load_npz(path: Path | str, made_by: str) -> dict[str, np.ndarray]:
    """Read every array of a `.npz`. Raises `Refused` naming `made_by`, the script that makes it, when it can't be."""
    path = Path(path)
    if not path.exists():
        raise Refused(f"{path} is missing: run {made_by} first")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own for a damaged file
        raise Refused(f"{path} is damaged ({_one_line(error)}): delete it and run {made_by}") from None


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stderr, not even from C++: for imports that print notices which a user can do nothing about."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


class Progress:
    """How far a long step is: done of total, rate and time left, on one line that is rewritten.

    Where the output is no terminal (a log, a pipe) a line is printed every ten seconds instead.
    """

    def __init__(self, total: int, unit: str, label: str = "") -> None:
        self.total, self.unit, self.label = total, unit, label
        self.terminal = sys.stdout.isatty()
        self.start = self.shown = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of `total` are there; cheap enough to call for every one of them."""
        now = time.monotonic()
        if done < self.total and now - self.shown < (0.2 if self.terminal else 10):
            return
        self.shown = now
        seconds = max(now - self.start, 1e-9)
        rate = done / seconds
        end = f"{clock((self.total - done) / rate)} left" if 0 < done < self.total else f"{clock(seconds)}"
        text = f"{self.label}{done:,}/{self.total:,} {self.unit}, {rate:,.1f}/s, {end}{'  ' + note if note else ''}"
        if self.terminal:
            print(f"\r\033[K{text}", end="\n" if done >= self.total else "", flush=True)
        else:
            print(text, flush=True)


def clock(seconds: float) -> str:
    """`3:25` or `1:02:03`."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
