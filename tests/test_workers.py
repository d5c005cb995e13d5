"""Worker processes that share work, fail, and die: pipeline/workers.py. Whole scripts: python -m tests.chaos."""

import errno
import itertools
import multiprocessing.resource_tracker
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import time

from pipeline import UserError
from pipeline.workers import RETRIES, WorkerPool, cause_of_death
from tests.conftest import ROOT

import pytest


def prepare(folder):
    return folder


def claimed(folder, indices):
    return list(indices)


def die_once(folder, indices):
    """The first of the workers dies in the middle of its share."""
    found = []
    for number in indices:
        found.append(number)
        if number == 3:
            die(folder, "died")
    return found


def square(folder, item):
    if item == 5:
        die(folder, "died")
    return item**2


def die(folder, name):
    try:
        os.mkdir(f"{folder}/{name}")
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def always_die(folder, *_):
    os.kill(os.getpid(), signal.SIGKILL)


def cannot_start(error):
    raise error


def full(folder, item):
    raise OSError(errno.ENOSPC, "No space left on device")


def refuse(folder, item):
    raise UserError("not this one")


def process(folder, item):
    time.sleep(0.05)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], os.environ["TF_NUM_INTRAOP_THREADS"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with WorkerPool(2, prepare, str(tmp_path_factory.mktemp("workers"))) as workers:
        yield workers


def test_every_number_is_driven_once(two):
    for limit in (0, 1, 50):
        shares = two.run_on_all(claimed, limit)
        assert len(shares) == 2
        assert sorted(itertools.chain(*shares)) == list(range(limit))


def test_every_item_comes_back(two):
    assert sorted(two.imap_unordered(square, range(6, 40))) == [item**2 for item in range(6, 40)]
    assert list(two.imap_unordered(square, [])) == []


def test_workers_have_one_thread_and_no_gpu(two):
    found, end = set(), time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < end:  # one of them may still be starting
        found |= set(two.imap_unordered(process, range(12)))
    assert len(found) == 2
    assert os.getpid() not in {pid for pid, _, _ in found}
    assert {rest for _, *rest in found for rest in [tuple(rest)]} == {("-1", "1")}


def test_processes_that_die_before_they_have_read_their_arguments(monkeypatch):
    """Through a pipe a megabyte would not fit: the parent would wait for ever for the one who reads it."""
    multiprocessing.resource_tracker.ensure_running()
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    with (
        pytest.raises(UserError, match=f"died {RETRIES + 1} times in a row"),
        WorkerPool(2, len, bytes(10**6)) as workers,
    ):
        workers.run_on_all(claimed, 4)


@pytest.mark.parametrize("task", [full, refuse])
def test_errors_come_out_as_they_are(two, task):
    error = OSError if task is full else UserError
    with pytest.raises(error) as found:
        list(two.imap_unordered(task, [1]))
    if task is full:
        assert found.value.errno == errno.ENOSPC


def test_a_worker_that_dies_is_replaced(tmp_path, capsys):
    for task in (die_once, square):
        folder = tmp_path / task.__name__
        folder.mkdir()
        with WorkerPool(2, prepare, str(folder)) as workers:
            if task is die_once:
                assert sorted(itertools.chain(*workers.run_on_all(task, 20))) == list(range(20))
            else:
                assert sorted(workers.imap_unordered(task, range(20))) == [item**2 for item in range(20)]
        assert (folder / "died").exists()
        assert capsys.readouterr().out == "A worker process died; its work starts again in a new one.\n"


def test_workers_that_always_die_end_the_run(tmp_path):
    with (
        WorkerPool(1, prepare, str(tmp_path)) as workers,
        pytest.raises(UserError, match=f"a worker process died {RETRIES + 1} times in a row"),
    ):
        list(workers.imap_unordered(always_die, range(3)))


@pytest.mark.parametrize(
    "error", [ValueError("no such sprite"), UserError("a worker can't start: ValueError: no such sprite")]
)
def test_an_initializer_that_fails_is_one_line_with_its_reason(capfd, error):
    for call in (lambda pool: pool.run_on_all(claimed, 3), lambda pool: list(pool.imap_unordered(square, [1]))):
        with WorkerPool(2, cannot_start, error) as workers, pytest.raises(UserError) as found:
            call(workers)
        assert str(found.value) == "a worker can't start: ValueError: no such sprite"
    assert capfd.readouterr() == ("", "")


def test_memory_is_blamed_only_where_the_system_killed():
    assert "memory" in cause_of_death([-signal.SIGTERM, -signal.SIGKILL])
    assert cause_of_death([-signal.SIGTERM, -signal.SIGSEGV]) == "by SIGSEGV"
    assert cause_of_death([None, 3, -signal.SIGTERM]) == "exit code 3"


def test_a_task_of_the_script_has_the_constants_of_the_shell(tmp_path):
    """A worker imports the script again, but NAME=value was set in the parent alone."""
    path = tmp_path / "script.py"
    path.write_text(
        "from pipeline.workers import WorkerPool\n"
        "HELD = 1\n"
        "def task(prepared, item):\n    return HELD\n"
        "if __name__ == '__main__':\n"
        "    HELD = 2\n"
        "    with WorkerPool(1, int) as workers:\n        print(*workers.imap_unordered(task, [0]))\n"
    )
    command = [sys.executable, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert found.stdout == "2\n", found.stderr
