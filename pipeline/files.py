"""Files that are whole or not there, arrays without pickle, one run at a time in a folder."""

import fcntl
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline import UserError

import numpy as np


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside it that replaces `path` at the end.

    The temporary name keeps the ending (Keras and NumPy look at it) and is always the same one, so the next run
    overwrites what a killed run left behind.
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
    with atomic_write(path) as temporary:
        _write_npz(temporary, level, arrays)


def pack_npz(level: int = 0, **arrays: np.ndarray) -> bytes:
    """What `save_npz` would write: for a worker, which sends it to the process that writes."""
    file = io.BytesIO()
    _write_npz(file, level, arrays)
    return file.getvalue()


def write_file(path: Path | str, content: bytes) -> None:
    """Write `content`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _write_npz(file: Path | BinaryIO, level: int, arrays: dict[str, np.ndarray]) -> None:
    kind = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind, allowZip64=True, compresslevel=level or None) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def load_npz(path: Path | str, producer: str) -> dict[str, np.ndarray]:
    """Read every array of a `.npz`. Raises `UserError` naming its `producer`, the script that makes it, on failure."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing: run {producer} first")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own for a damaged file
        raise UserError(f"{path} is damaged ({_first_line(error)}): delete it and run {producer}") from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def ensure_dir(folder: Path, name: str = "the folder") -> Path:
    """Make `folder` where it is missing. Raises `UserError` where something else is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name}={folder} can't be used as a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{name}={folder} can't be written to")
    return folder


@contextmanager
def locked(folder: Path, name: str, script: str) -> Iterator[None]:
    """Hold `folder` for one run of `script`. The lock is the kernel's: it goes with the process, however that ends."""
    ensure_dir(folder, name)
    with open(folder / f".{script}.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(
                f"{script} is already running on {folder} (process {file.read() or 'unknown'}); wait for it, "
                f"or give this run another {name}=folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def suppress_stderr() -> Iterator[None]:
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
