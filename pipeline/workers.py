"""Worker processes: one for each core, each with what it works with, ended when their parent is gone."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pipeline import UserError, environment

RETRIES = 3  # a worker that the system killed is replaced this often in a row, then the run stops


class WorkerPool:
    """`count` processes. `prepare(*arguments)` runs once in each; what it returns is each task's first argument.

    Tasks must not depend on which worker runs them: when a worker dies, the tasks of that call run again in new
    processes.
    """

    def __init__(self, count: int, prepare: Callable, *arguments: Any) -> None:
        self.count, self.prepare = count, pickle.dumps((prepare, arguments))
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
        self.next = context.Value("l", 0)
        # Ctrl-C reaches every process of the terminal; only the parent should answer, so the children start deaf.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.pool = ProcessPoolExecutor(self.count, context, _prepare, (self.next, self.prepare))
            for _ in range(self.count):
                self.pool.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def run_on_all(self, task: Callable, *arguments: Any) -> list:
        """Call `task(prepared, numbers, *arguments)` in every worker and return the results.

        `numbers` counts 0, 1, 2… across all workers: each takes the next one when it has room, so none is idle
        while another has work left.
        """
        for attempt in range(RETRIES + 1):
            self.next.value = 0
            try:
                futures = [self.pool.submit(_share, task, arguments) for _ in range(self.count)]
                return [future.result() for future in futures]
            except BrokenProcessPool:
                self._replace(attempt)
        raise AssertionError("unreachable")

    def imap_unordered(self, task: Callable, items: Iterable) -> Iterator:
        """Call `task(prepared, item)` for every item, on whichever worker is free; yields results as they come."""
        todo, attempt = list(items), 0
        while todo:
            running: dict[Future, Any] = {}
            try:
                while todo or running:
                    while todo and len(running) < 2 * self.count:
                        future = self.pool.submit(_each, task, todo[0])
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
        self.pool.shutdown(wait=False, cancel_futures=True)
        if attempt >= RETRIES:
            raise UserError(
                f"a worker process died {attempt + 1} times in a row (out of memory? try fewer WORKERS); "
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


_prepared: Any = None
_next: Any = None


def _prepare(counter: Any, pickled: bytes) -> None:
    global _prepared, _next
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    environment.hide_gpu()
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"
    import cv2

    cv2.setNumThreads(1)
    _next = counter
    prepare, arguments = pickle.loads(pickled)  # imports TensorFlow: not before this process can end with its parent
    _prepared = prepare(*arguments)


def _end_with_parent() -> None:
    # A worker that waits for its next task would never notice that its parent was killed.
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _numbers() -> Iterator[int]:
    while True:
        with _next.get_lock():
            number = _next.value
            _next.value += 1
        yield number


def _share(task: Callable, arguments: tuple) -> Any:
    return task(_prepared, _numbers(), *arguments)


def _each(task: Callable, item: Any) -> Any:
    return task(_prepared, item)
