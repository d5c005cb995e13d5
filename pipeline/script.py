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
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pipeline import UserError
from pipeline.files import ensure_dir, locked

# A constant without an annotation is above 0 (a number) or not empty (a text); these say otherwise.
NonNegativeInt = Annotated[int, "at least 0"]
NonNegativeFloat = Annotated[float, "at least 0"]
NonPositiveFloat = Annotated[float, "at most 0"]
PossiblyEmpty = Annotated[str, "any"]

# Names that constants had once: the script's own among the new ones is suggested.
RENAMED = {
    "ACCELERATE": ("WARMUP_STEPS",),
}


def run(main: Callable[[], None], constants: dict[str, Any]) -> None:
    """Run a script's `main()` with its constants as edited, or as set for one run in the shell.

    `constants` is the script's `globals()`, see `check`. The folders `DATA` and `MODELS` are locked against a second
    run of the same script.

    Exits with 1 and one line for a `UserError` or a full disk, with 130 and one line for Ctrl-C.
    """
    check(constants)
    script = Path(constants["__file__"]).name
    try:
        with ExitStack() as stack:
            folders = {Path(constants[name]).resolve(): name for name in ("MODELS", "DATA") if name in constants}
            for name in sorted(folders.values()):  # one of them where both are the same
                stack.enter_context(locked(Path(constants[name]), name, script))
            # A laptop that shuts down sends SIGTERM: save and go, as with Ctrl-C.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            main()
    except UserError as error:
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


def check(constants: dict[str, Any]) -> None:
    """Replace a script's constants by the `NAME=value` arguments of the shell, and check all of them.

    `constants` is the script's `globals()`; its upper-case numbers, texts and tuples are the constants. An annotation
    says what a constant may be: `Literal["a", "b"]`, or one of the types above. Makes the folders `DATA` and `MODELS`.
    Exits with 1 and one line for a mistake, with 0 after printing the help for `--help`.

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
        lines = Path(constants["__file__"]).read_text().splitlines()
        print(constants["__doc__"].strip(), "\n\nConstants (edit them, or set them for one run as NAME=value):\n")
        print("\n".join(line for line in lines if re.split(r": | = ", line)[0] in names))
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
        if isinstance(old, str) and type(value) in (int, float):
            value = text  # a folder may be named 2026
        if not _same_type(value, old):
            raise UserError(f"{name}={text}: expected something such as {old!r}")
        constants[name] = float(value) if isinstance(old, float) else value


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
    return {"above 0": number > 0, "at least 0": number >= 0, "at most 0": number <= 0}[bound]
