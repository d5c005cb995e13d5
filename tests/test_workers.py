"""Worker processes that share work, fail, and die: models/workers.py. With whole scripts: python -m tests.chaos."""

import errno
import itertools
import os
import signal
import time

from pipeline import UserError
from pipeline.workers import RETRIES, WorkerPool

import pytest


def prepare(folder):
    return folder


def numbers_below(folder, numbers, limit):
    return list(itertools.takewhile(lambda number: number < limit, numbers))


def die_once(folder, numbers, limit):
    """The first of the workers dies in the middle of its share."""
    found = []
    for number in itertools.takewhile(lambda number: number < limit, numbers):
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
        shares = two.run_on_all(numbers_below, limit)
        assert len(shares) == 2
        assert sorted(itertools.chain(*shares)) == list(range(limit))


def test_every_item_comes_back(two):
    assert sorted(two.imap_unordered(square, range(6, 40))) == [item**2 for item in range(6, 40)]
    assert list(two.imap_unordered(square, [])) == []


def test_workers_have_one_thread_and_no_gpu(two):
    found = set(two.imap_unordered(process, range(12)))
    assert len(found) == 2
    assert os.getpid() not in {pid for pid, _, _ in found}
    assert {rest for _, *rest in found for rest in [tuple(rest)]} == {("-1", "1")}


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
