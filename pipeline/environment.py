"""The computer that a script finds itself on: variables, standard output, Ctrl-C, cores, GPU.

`pipeline/__init__.py` calls `prepare` before anything else is imported. Whatever is set here for other projects, the
scripts do the same.
"""

import atexit
import contextlib
import ctypes
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

VARIABLES = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": os.devnull,  # it can hold no keras.json, so the user's is neither read nor written
    "MPLBACKEND": "agg",  # a notebook sets another one for all that it starts
    "MATPLOTLIBRC": os.devnull,  # the user's matplotlibrc is not read
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "HDF5_USE_FILE_LOCKING": "FALSE",  # a file is replaced whole: nobody who reads it needs a lock
    # SDL draws into the window itself. Through OpenGL, Mesa would find TensorFlow's LLVM instead of its own, and crash.
    "SDL_FRAMEBUFFER_ACCELERATION": "0",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # TensorFlow takes a GPU's memory as it needs it, not all of it
    # After Ctrl-C multiprocessing's own process tidies up; it need not tell the user.
    "PYTHONWARNINGS": "ignore",
}
# Keras would end a training early without a word, or look for JAX; TensorFlow would compile, or refuse to start.
UNWANTED = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED", "TF_XLA_FLAGS")

_stderr = 2  # a copy of stderr that `suppress_stderr` leaves alone
_interruptible = False


def prepare() -> None:
    """Set up this process, before Keras, Matplotlib, TensorFlow and pygame are imported."""
    os.environ.update(VARIABLES)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no lines that a user can do nothing about
    for name in UNWANTED:
        os.environ.pop(name, None)
    if usable_cores() < _affinity():  # TensorFlow knows the affinity, but no quota
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(usable_cores()))
    _prepare_output()
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or ".").resolve()
    if script.parent == Path(__file__).resolve().parent.parent:  # not a notebook, nor pytest
        catch_signals()


def hide_gpu() -> None:
    """Leave the GPU to those who need it. Takes effect before TensorFlow first looks for one."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = "-1"


def usable_cores() -> int:
    """How many cores this process may use: those it is bound to, and no more than a container's quota, at least 1."""
    return max(1, int(min(_affinity(), _quota())))


def threads() -> int:
    """How many threads TensorFlow computes with. They decide in what order sums are added up."""
    set_by_user = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(set_by_user) if set_by_user.isdecimal() and int(set_by_user) else _affinity()


def release_memory() -> None:
    """Give back what this process needed only for a while: freed memory, and pages of the libraries' code. On Linux.

    A third of a worker is code that TensorFlow ran once, while it was imported. Code that is needed again comes back
    from the system's cache. All workers of a computer share these pages; what each reports gets smaller.
    """
    dontneed = 4  # MADV_DONTNEED
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        lines = Path("/proc/self/maps").read_text().splitlines()
    except (OSError, AttributeError):  # no Linux, or no glibc
        return
    for span, permissions, _, _, file, *_ in map(str.split, lines):
        if permissions == "r-xp" and file != "0":  # what a file holds and nobody can have changed
            start, end = (int(address, 16) for address in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), dontneed)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """The least number of cores that a control group of this process grants it; infinite without a limit."""
    limits = [float("inf")]
    groups = own.read_text().splitlines() if own.exists() else []  # there is none but on Linux
    for _, controllers, path in (line.split(":", 2) for line in groups):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root  # version 1 has a folder for its controllers
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:  # each of them may set a limit
            if not folder.is_relative_to(top):
                break
            with contextlib.suppress(OSError, ValueError, IndexError):
                if controllers:
                    limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    limit, period = (folder / "cpu.max").read_text().split()
                if float(limit) > 0:  # version 1 says -1 for none, version 2 "max"
                    limits.append(float(limit) / float(period))
    return min(limits)


class _Output(io.FileIO):
    """Standard output or standard error. A run outlives its reader, and a log on a full disk."""

    def write(self, data) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that does not wait for its reader
                select.select([], [self], [])
            return written
        except OSError as error:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
                if self.fileno() == 1:
                    told = f"standard output is gone ({error.strerror}); the run continues without it\n"
                    os.write(_stderr, told.encode())
            return len(data)


def _prepare_output() -> None:
    """Standard output never ends a run: not a letter that it can't show, nor a reader that is gone."""
    global _stderr
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get its number, and all that is printed
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    _stderr = os.dup(2)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):  # a notebook's, pytest's
            continue
        options: dict[str, Any] = {"encoding": "utf-8"}  # was closed
        if stream:
            by_line = stream.line_buffering or stream.write_through
            options = {"encoding": stream.encoding, "line_buffering": by_line}
        buffer = io.BufferedWriter(_Output(number, "w", closefd=False))
        stream = io.TextIOWrapper(buffer, errors="replace", **options)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def catch_signals() -> None:
    """Ctrl-C, and SIGTERM (a computer that shuts down), end a script with one line and exit code 130.

    While it imports or has not begun, they end it at once: there an exception may be swallowed. Within `interruptible`
    they raise KeyboardInterrupt, so that what is open is closed; a second one ends it at once again, and so does one in
    a destructor or a callback, from where no exception gets out. While Python shuts down, all is done: Ctrl-C is
    ignored. Python itself would let it end the process with no line, as if it had failed.
    """
    sys.unraisablehook = _on_unraisable
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, _on_signal)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In here Ctrl-C is a KeyboardInterrupt."""
    global _interruptible
    _interruptible = True
    try:
        yield
    finally:
        _interruptible = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _interruptible
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame or not _interruptible:
        stop()
    _interruptible = False
    raise KeyboardInterrupt


def _on_unraisable(unraisable: Any) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        stop()
    sys.__unraisablehook__(unraisable)


def stop() -> NoReturn:
    """End this process as after Ctrl-C, without exit handlers: a library's would wait for a thread that is busy."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        told = f"\n{Path(sys.argv[0]).name}: stopped. The same command continues from what is saved.\n"
        os.write(_stderr, told.encode(errors="replace"))
    os._exit(130)
