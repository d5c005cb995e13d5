"""Workers: one for each core, each with what it works with. Processes here, or actors on a Ray cluster.

Both engines have one interface, and a task's result depends on its arguments alone, so the results are the same:

    with worker_pool(CLUSTER, WORKERS, initializer, *arguments) as workers:
        workers.run_on_all(task, total, *arguments)     # every worker takes its share of `total` pieces of work
        workers.imap_unordered(task, items)             # every item goes to a worker that is free
"""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing.reduction import DupFd
from typing import Any

from pipeline import UserError, environment

import cloudpickle

RETRIES = 3  # a worker that died is replaced this often in a row, then the run stops

load_task = lru_cache(8)(pickle.loads)  # a task comes with every item


def worker_pool(cluster: str, count: int, initializer: Callable, *arguments: Any):
    """`count` workers on the Ray cluster of that address, or processes here where `cluster` is empty.

    `initializer(*arguments)` runs once in each; what it returns is the first argument of each task. Workers of a
    cluster share no disk with this process: arguments carry arrays, not the names of files.
    """
    if not cluster:
        return WorkerPool(count, initializer, *arguments)
    from pipeline.cluster import ActorPool

    return ActorPool(cluster, count, initializer, *arguments)


class WorkerPool:
    """`count` processes. `initializer(*arguments)` runs once in each; what it returns is each task's first argument.

    Tasks must not depend on which worker runs them: when a worker dies, the tasks of that call run again in new
    processes. Functions and arguments are pickled by cloudpickle, which takes a script's functions with the values
    that its constants have now.
    """

    def __init__(self, count: int, initializer: Callable, *arguments: Any) -> None:
        self.count, self.initializer = count, _Parcel(cloudpickle.dumps((initializer, arguments)))
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
        self.next = context.Value("l", 0)
        # Ctrl-C reaches every process of the terminal; only the parent should answer, so the children start deaf.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.pool = ProcessPoolExecutor(self.count, context, _initialize, (self.next, self.initializer))
            with contextlib.suppress(BrokenProcessPool):  # the first task says so
                for _ in range(self.count):
                    self._submit(int)
            self.processes = multiprocessing.active_children()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _submit(self, task: Callable, *arguments: Any) -> Future:
        try:
            return self.pool.submit(task, *arguments)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # such as too many processes
                raise
            raise BrokenProcessPool from error  # "handle is closed": the pool broke just now

    def run_on_all(self, task: Callable, total: int, *arguments: Any) -> list:
        """Call `task(prepared, indices, *arguments)` in every worker and return the results.

        `indices` iterates over 0 … total − 1, shared by all workers: each takes the next one when it has room, so
        none is idle while another has work left.
        """
        call = cloudpickle.dumps((task, arguments))
        for attempt in range(RETRIES + 1):
            self.next.value = 0
            try:
                futures = [self._submit(_run_share, call, total) for _ in range(self.count)]
                return [future.result() for future in futures]
            except BrokenProcessPool:
                self._replace(attempt)
        raise AssertionError("unreachable")

    def imap_unordered(self, task: Callable, items: Iterable) -> Iterator:
        """Call `task(prepared, item)` for every item, on whichever worker is free; yields results as they come."""
        todo, attempt, pickled = list(items), 0, cloudpickle.dumps(task)
        while todo:
            running: dict[Future, Any] = {}
            try:
                while todo or running:
                    while todo and len(running) < 2 * self.count:
                        future = self._submit(_run_item, pickled, todo[0])
                        running[future] = todo.pop(0)  # only now: a broken pool takes no task
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        del running[future]
                        yield result
                        attempt = 0
            except BrokenProcessPool:
                todo = [*running.values(), *todo]
                self._replace(attempt)
                attempt += 1

    def _replace(self, attempt: int) -> None:
        self.pool.shutdown(cancel_futures=True)
        if attempt >= RETRIES:
            raise UserError(
                f"a worker process died {attempt + 1} times in a row "
                f"({cause_of_death([process.exitcode for process in self.processes])}); "
                "what was finished is saved; the same command continues"
            )
        print("A worker process died; its work starts again in a new one.", flush=True)
        self._start()

    def close(self) -> None:
        """End the workers."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After Ctrl-C nobody waits for what the workers are at: they end with this process.
        self.pool.shutdown(wait=kind is not KeyboardInterrupt, cancel_futures=True)


class _Parcel:
    """Bytes for new processes, which arrive there as a list of one; they travel in a file without a name.

    Otherwise they would travel through a pipe, and this process would wait for ever on a new one that was killed
    before it had read them.
    """

    def __init__(self, content: bytes) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  open as long as there may be new processes
        self.file.write(content)
        self.file.flush()

    def __reduce__(self) -> tuple:
        return _unpack, (DupFd(self.file.fileno()),)


def _unpack(descriptor: Any) -> list[bytes]:
    with open(descriptor.detach(), "rb") as file:
        return [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)]  # all share one position in it


def cause_of_death(exit_codes: list[int | None]) -> str:
    """Why the first worker died. The pool then ends the others with SIGTERM."""
    if -signal.SIGKILL in exit_codes:
        return "killed by the system: out of memory? try fewer WORKERS"
    first = next((code for code in exit_codes if code not in (None, 0, -signal.SIGTERM)), None)
    if first is None:
        return "by SIGTERM"
    return f"by {signal.Signals(-first).name}" if first < 0 else f"exit code {first}"


def initialize(pickled: bytes) -> Any:
    """In a new worker, before TensorFlow is imported: one thread, no GPU; then its initializer's result.

    Raises `UserError` with the reason where that fails.
    """
    environment.hide_gpu()
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"
    os.environ["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "1"  # its own one keeps what it has had: 30 to 60 MB
    try:
        import cv2

        cv2.setNumThreads(1)
        initializer, arguments = pickle.loads(pickled)  # imports TensorFlow
        environment.release_memory()
        prepared = initializer(*arguments)
        environment.release_memory()
        gc.freeze()  # TensorFlow's half a million objects stay: the collector need not look at them again
        return prepared
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"a worker can't start: {type(error).__name__}: {error}") from error


_prepared: Any = None
_failure: UserError | None = None
_next: Any = None


def _initialize(counter: Any, parcel: Any) -> None:
    global _prepared, _failure, _next
    threading.Thread(target=exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _next = counter
    try:
        _prepared = initialize(parcel.pop())  # V and M: the pool would keep them, 19 MB
    except UserError as error:  # an exception here would be a traceback and a broken pool: the tasks raise it
        _failure = error


def exit_with_parent() -> None:
    """End this process when its parent has ended. A worker that waits for a task would never notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def claim_indices(total: int) -> Iterator[int]:
    """The next of the indices that all workers share, until there are none left."""
    while True:
        with _next.get_lock():
            index = _next.value
            _next.value += 1
        if index >= total:
            return
        yield index


def _run_share(call: bytes, total: int) -> Any:
    if _failure:
        raise _failure
    task, arguments = pickle.loads(call)
    result = task(_prepared, claim_indices(total), *arguments)
    environment.release_memory()
    return result


def _run_item(task: bytes, item: Any) -> Any:
    if _failure:
        raise _failure
    return load_task(task)(_prepared, item)
