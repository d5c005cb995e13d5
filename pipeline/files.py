"""Files that are whole or not there, arrays without pickle, one run at a time in a folder."""

import errno
import fcntl
import os
import stat
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import UserError

import numpy as np


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside it that replaces `path` at the end.

    The temporary name keeps the ending (Keras and NumPy look at it) and is always the same one, so the next run
    overwrites what a killed run left behind. Raises `OSError` at once where `path` may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}")
    if path.exists() and not os.access(path, os.W_OK):  # whoever took that right away wants to keep the file
        raise PermissionError(errno.EACCES, "it is write-protected", str(path))
    try:
        temporary.unlink(missing_ok=True)  # whatever it is, a link to elsewhere too
        open(temporary, "xb").close()  # what can't be written is told here, and not by every library in its own way
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def save_npz(path: Path | str, level: int = 0, **arrays: Any) -> None:
    """Write arrays as one `.npz`, whole or not at all; `level` is deflate's, 0 to 9 (NumPy knows only 0 and 6)."""
    kind = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    with (
        atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w", kind, allowZip64=True, compresslevel=level or None) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def load_npz(path: Path | str, producer: str) -> dict[str, np.ndarray]:
    """Read every array of a `.npz`. Raises `UserError` as `reading` does."""
    with reading(path, producer), np.load(path, allow_pickle=False) as file:
        return {name: np.asarray(file[name]) for name in file.files}


@contextmanager
def reading(path: Path | str, producer: str, fault: str = "is damaged") -> Iterator[None]:
    """Read the file `path` in here: any error becomes a `UserError` that says what is the matter with it.

    Only a file that is damaged is to be deleted, and made again by `producer`. One that can't be opened, or for which
    the memory is too small, may be whole.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no file"
            raise UserError(f"{path} is {kind}: move it away and run {producer}")
        yield
    except UserError:
        raise
    except FileNotFoundError:
        where = f" (a link to {os.readlink(path)})" if path.is_symlink() else ""
        raise UserError(f"{path} is missing{where}: run {producer} first") from None
    except MemoryError as error:
        raise UserError(
            f"{path} does not fit into memory ({_first_line(error)}). Only where that is more than {producer} can "
            f"have written, it is damaged: then delete it and run {producer}"
        ) from None
    except Exception as error:  # zipfile, zlib, NumPy, h5py and Keras each have their own for a damaged file
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path} can't be read: {os.strerror(error.errno)}") from None
        raise UserError(f"{path} {fault} ({_first_line(error)}): delete it and run {producer}") from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def ensure_dir(folder: Path, name: str = "the folder") -> Path:
    """Make `folder` where it is missing. Raises `UserError` where something else is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name}={folder} can't be used as a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{name}={folder} can't be written to")
    return folder


@contextmanager
def locked(folder: Path, name: str, script: str) -> Iterator[None]:
    """Hold `folder` for one run of `script`. The lock is the kernel's: it goes with the process, however that ends."""
    ensure_dir(folder, name)
    path = folder / f".{script}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user's, in a shared folder: it can be held all the same
        lock = os.open(path, os.O_RDONLY)
    with open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process = file.read(20).decode(errors="replace") or "unknown"
            raise UserError(
                f"{script} is already running on {folder} (process {process}); wait for it, "
                f"or give this run another {name}=folder"
            ) from None
        except OSError as error:  # a network disk
            print(f"{folder} can't be locked ({error.strerror}): see to it that no other {script} runs on it")
        with suppress(OSError):
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
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
