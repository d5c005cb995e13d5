"""How every script runs: its constants, as edited or set in the shell; errors in one line; Ctrl-C.

Only the standard library and NumPy: importing this costs nothing, so a wrong constant is reported before TensorFlow
is loaded.
"""

import ast
import errno
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pipeline import UserError, environment
from pipeline.files import ensure_dir, locked

# A constant without an annotation is above 0 (a number) or not empty (a text); these say otherwise.
NonNegativeInt = Annotated[int, "at least 0"]
NonNegativeFloat = Annotated[float, "at least 0"]
NonPositiveFloat = Annotated[float, "at most 0"]
Share = Annotated[float, "0 to 1"]
PossiblyEmpty = Annotated[str, "any"]

# Names that constants had once, each with its new ones: the one that a script has is suggested.
RENAMED = {
    "ACCELERATE": ("WARMUP_STEPS",),
    "AHEAD": ("LOOKAHEAD",),
    "ALONE": ("OPEN_LOOP_STEPS",),
    "AT_THE_START": ("EPISODE_START_SHARE",),
    "BATCH": ("BATCH_SIZE",),
    "CARS": ("NUM_ENVS",),
    "DREAMS": ("DREAM_ENVS",),
    "DREAM_AHEAD": ("ROAD_LOOKAHEAD",),
    "DREAM_FRAMES": ("WARMUP_FRAMES", "MAX_DREAM_STEPS"),
    "EVAL_TRACKS": ("EVAL_EPISODES",),
    "EVERY": ("FRAME_SKIP", "TRAIN_FREQUENCY"),
    "FIRST": ("FIRST_ROLLOUT", "LEARNING_STARTS"),
    "FRAMES": ("MAX_STEPS", "MAX_DREAM_STEPS"),
    "GO_ON": ("FINE_TUNE",),
    "HELD_OUT_FRAMES": ("VALIDATION_FRAMES",),
    "HELD_OUT_ROLLOUTS": ("VALIDATION_ROLLOUTS",),
    "HOLD": ("MAX_ACTION_REPEAT",),
    "LEAVING": ("LEAVE_SHARE",),
    "LOST": ("MAX_GRASS_STEPS",),
    "MEMORY": ("BUFFER_SIZE",),
    "MOST_LOST": ("MIN_REWARD",),
    "NOISE": ("ACTION_NOISE",),
    "ON_THE_MOVE": ("MOVING_START_SHARE",),
    "PATIENCE": ("MAX_IDLE_STEPS",),
    "RATE": ("LEARNING_RATE",),
    "REPLAYED": ("HARD_TRACKS",),
    "SEQUENCE": ("SEQUENCE_LENGTH",),
    "SHUFFLE": ("SHUFFLE_BUFFER",),
    "SPEEDS": ("START_SPEEDS",),
    "START": ("INIT_FROM",),
    "STEPS": ("MAX_STEPS",),
    "TRACKS": ("EPISODES",),
    "UPDATES": ("GRADIENT_STEPS",),
    "WANDERING": ("WANDER_SHARE",),
    "WHITENED": ("WHITEN",),
    "YARDSTICKS": ("BASELINE_EPISODES",),
}

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(main: Callable[[], None], constants: dict[str, Any], reads: tuple[str, ...] = ()) -> None:
    """Run a script's `main()` with its constants as edited, or as set for one run in the shell.

    `constants` is the script's `globals()`, see `check`. The folders `DATA` and `MODELS` are locked against a second
    run of the same script, but for those that it only `reads`.

    Exits with 1 and one line for a `UserError`, a full disk or a file that may not be touched, with 130 and one line
    for Ctrl-C.
    """
    environment.catch_signals()
    check(constants, reads)
    script = Path(constants["__file__"]).name
    try:
        with environment.interruptible(), ExitStack() as stack:
            written = [name for name in ("MODELS", "DATA") if name in constants and name not in reads]
            folders = {Path(constants[name]).resolve(): name for name in written}
            for name in sorted(folders.values()):  # one of them where both are the same
                stack.enter_context(locked(Path(constants[name]), name, script))
            main()
    except UserError as error:
        sys.exit(f"{script}: {error}")
    except KeyboardInterrupt:
        environment.stop()
    except OSError as error:
        path = error.filename2 or error.filename
        if error.errno in NO_ROOM:
            sys.exit(
                f"{script}: no room to write ({os.strerror(error.errno)}); what was written before is whole. "
                "Free some, run again."
            )
        if not path or not error.errno:
            raise
        sys.exit(f"{script}: {os.fsdecode(path)} can't be used: {error.strerror}. What was written before is whole.")


def check(constants: dict[str, Any], reads: tuple[str, ...] = ()) -> None:
    """Replace a script's constants by the `NAME=value` arguments of the shell, and check all of them.

    `constants` is the script's `globals()`; its upper-case numbers, texts and tuples are the constants. An annotation
    says what a constant may be: `Literal["a", "b"]`, or one of the types above. Makes the folders `DATA` and `MODELS`,
    but for those that the script only `reads`. Exits with 1 and one line for a mistake, with 0 after printing the help
    for `--help`.

    `run` calls it; a script calls it directly under its constants where imports that take seconds come after them.
    """
    if "__constants__" in constants:
        return
    constants["__constants__"] = [name for name, value in constants.items() if _is_constant(name, value)]
    try:
        _apply_overrides(constants, sys.argv[1:])
        _validate(constants)
        for name in ("MODELS", "DATA"):
            if name in constants:
                constants[name] = os.path.expanduser(constants[name])  # a shell leaves the ~ of NAME=~/x alone
                if name not in reads:
                    ensure_dir(Path(constants[name]), name)
    except UserError as error:
        sys.exit(f"{Path(constants['__file__']).name}: {error}")


def settings(constants: dict[str, Any], *exclude: str) -> dict[str, Any]:
    """The constants by name, but for `exclude`: what a run of the script depends on, and its history carries."""
    return {name: constants[name] for name in constants["__constants__"] if name not in exclude}


def _is_constant(name: str, value: object) -> bool:
    # Not what was imported, such as a range of seeds.
    return bool(re.fullmatch(r"[A-Z][A-Z0-9_]*", name)) and isinstance(value, int | float | str | tuple)


def _apply_overrides(constants: dict[str, Any], arguments: list[str]) -> None:
    names = constants["__constants__"]
    if any(argument in ("-h", "--help") for argument in arguments):
        lines = Path(constants["__file__"]).read_text("utf-8").splitlines()
        print(
            (constants["__doc__"] or "").strip(), "\n\nConstants (edit them, or set them for one run as NAME=value):\n"
        )
        print("\n".join(_explained(lines, names)))
        sys.exit(0)
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"cannot parse {argument!r}: expected NAME=value, without spaces")
        if name not in names:
            renamed = [new for new in RENAMED.get(name, ()) if new in names]
            cure = f"it is called {renamed[0]} now" if renamed else f"this script has {', '.join(names)}"
            raise UserError(f"unknown constant {argument!r}: {cure}")
        old = constants[name]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text  # a bare word is a string
        if isinstance(old, str) and not isinstance(value, str):
            value = text  # a folder may be named 2026, or True
        if not _same_type(value, old):
            raise UserError(f"{name}={text}: expected something such as {old!r}")
        constants[name] = float(value) if isinstance(old, float) else value


def _explained(lines: list[str], names: list[str]) -> list[str]:
    """The lines of a script that are its constants, each with its comment, which may stand above it."""
    shown = []
    for place, line in enumerate(lines):
        if re.split(r": | = ", line)[0] in names:
            first = place
            while "#" not in line and lines[first - 1].startswith("#"):
                first -= 1
            shown += lines[first : place + 1]
    return shown


def _same_type(value: object, old: object) -> bool:
    if isinstance(value, tuple) and isinstance(old, tuple):
        return all(_same_type(part, old[0]) for part in value)
    return type(value) is type(old) or (isinstance(old, float) and type(value) is int and abs(value) < 2**63)


def _validate(constants: dict[str, Any]) -> None:
    for name in constants["__constants__"]:
        value, annotation = constants[name], constants.get("__annotations__", {}).get(name)
        if get_origin(annotation) is Literal:
            if value not in get_args(annotation):
                raise UserError(f"{name}={value} must be one of {', '.join(map(str, get_args(annotation)))}")
            continue
        bound = annotation.__metadata__[0] if get_origin(annotation) is Annotated else "above 0"
        if value in ("", ()) and bound != "any":
            raise UserError(f"{name} must not be empty")
        if isinstance(value, tuple):
            bound = "at least 0"
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool) and not _fits(number, bound):
                raise UserError(f"{name}={value} must be {bound}")
    if constants.get("CLUSTER") and importlib.util.find_spec("ray") is None:
        raise UserError(f"CLUSTER={constants['CLUSTER']} needs Ray, which is not installed: make cluster")
    if constants.get("CLUSTER") == "" and constants["WORKERS"] == 0:
        raise UserError("WORKERS=0 must be above 0: only a CLUSTER says how many there can be")


def _fits(number: float, bound: str) -> bool:
    """Whether `number` is finite, within `bound` and, if an integer, no larger than NumPy can hold."""
    if not -(2**63) <= number < 2**63 if isinstance(number, int) else not math.isfinite(number):
        return False
    fits = {"above 0": number > 0, "at least 0": number >= 0, "at most 0": number <= 0, "0 to 1": 0 <= number <= 1}
    return fits[bound]
