"""Actors on a small Ray cluster on this machine: the same results as processes, also when an actor or a node is lost.

With whole scripts: tools/chaos_cluster.py.
"""

import os
import signal
import socket
import time
from importlib import metadata

from models import controller, evolution, loading, worlds
from pipeline import UserError
from pipeline.workers import worker_pool
from tests.conftest import refused, run_script

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed: make cluster")

from pipeline import cluster
from tools.local_cluster import LocalCluster


@pytest.fixture(scope="module")
def two_nodes():
    nodes = LocalCluster(2, 1)
    yield nodes
    nodes.close()


def place(prepared, item):
    """Where a task runs: process, code, threads."""
    import models

    time.sleep(0.1)
    return os.getpid(), models.__file__, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["TF_NUM_INTRAOP_THREADS"]


def slow_share(prepared, indices):
    """Every index takes a moment."""
    found = []
    for index in indices:
        time.sleep(0.05)
        found.append(index)
    return os.getpid(), found


def die(folder, item):
    """The first to come here is killed."""
    try:
        os.mkdir(f"{folder}/died")
    except FileExistsError:
        return item
    os.kill(os.getpid(), signal.SIGKILL)


def cannot_start(error):
    raise error


def identity(value):
    return value


def test_a_generation_is_the_same_as_with_processes(two_nodes, untrained):
    models = loading.get_weights(*loading.load_models(untrained))
    parameters = np.random.default_rng(1).normal(0, 0.1, (3, controller.PARAMETERS))
    found = []
    for address, count in (("", 1), (two_nodes.address, 2)):
        with worker_pool(address, count, worlds.make_real_world, models, 5, 15) as workers:
            found.append(evolution.evaluate(workers, "real", parameters, np.array([3000, 3001])))
    assert found[0][0].tobytes() == found[1][0].tobytes()
    assert found[0][1] == found[1][1]


def test_faults_on_a_cluster(two_nodes, tmp_path, capfd):
    with worker_pool(two_nodes.address, 0, identity, str(tmp_path)) as workers:
        places = set(workers.imap_unordered(place, range(20)))
        assert len(places) == 2
        for pid, code, gpu, threads in places:
            assert pid != os.getpid()
            assert not code.startswith(os.getcwd())  # the code travels: another machine may have none, or an older one
            assert (gpu, threads) == ("-1", "1")
        # An actor is killed: its item is done by another one.
        assert sorted(workers.imap_unordered(die, range(10))) == list(range(10))
        assert (tmp_path / "died").exists()
        # A node is killed, with what its actor has done; then another node joins.
        shares = iter([two_nodes.nodes.pop()])
        original = workers._wait

        def lose_a_node(running):
            if len(running) == 2 and (node := next(shares, None)):
                time.sleep(0.5)
                two_nodes.remove(node)
            return original(running)

        workers._wait = lose_a_node
        found = [index for _, indices in workers.run_on_all(slow_share, 60) for index in indices]
        assert sorted(found) == list(range(60))
        two_nodes.nodes.append(two_nodes.add())
        end = time.monotonic() + 60
        while len({pid for pid, taken in workers.run_on_all(slow_share, 20) if taken}) < 2:
            assert time.monotonic() < end, "the new node has no actor"
        with pytest.raises(UserError, match="not this one"):
            list(workers.imap_unordered(cannot_start_item, [1]))
    out, err = capfd.readouterr()
    assert out.count("An actor is gone") == 2
    assert "raylet" not in out + err


def cannot_start_item(prepared, item):
    raise UserError("not this one")


def test_an_actor_that_cannot_start_is_one_line(two_nodes):
    with worker_pool(two_nodes.address, 1, cannot_start, ValueError("no such sprite")) as workers:
        with pytest.raises(UserError) as found:
            workers.run_on_all(slow_share, 3)
        assert str(found.value) == "a worker can't start: ValueError: no such sprite"


def test_other_packages_on_a_node_are_one_line():
    host = {name: metadata.version(name) for name in cluster.PACKAGES} | {"node": "10.0.0.2"}
    cluster.compare_packages(host)
    with pytest.raises(UserError, match=r"node 10\.0\.0\.2 has numpy 0\.1, this machine"):
        cluster.compare_packages(host | {"numpy": "0.1"})


def test_what_a_lost_share_had_is_handed_out_again_and_it_gets_nothing_more():
    indices = cluster.Indices()
    indices.reset(10, 2, 5)
    first = indices.claim(5)
    assert first == [0, 1, 2]  # several while there are many
    assert indices.claim(4) == []  # of an earlier call
    second = indices.claim(6)
    indices.give_back(5)
    assert indices.claim(5) == []
    rest = []
    while claimed := indices.claim(6):
        rest += claimed
    assert sorted(second + rest) == list(range(10))


def test_an_address_where_nothing_answers_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "no Ray cluster answers at 127.0.0.1" in refused(
        run_script("01_generate_data.py", f"CLUSTER=127.0.0.1:{port}")
    )


@pytest.mark.parametrize("address", ["nowhere", "ray://10.0.0.1:10001", "host:", ":6379"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match='expected "auto" or "host:port"'):
        cluster.find_address(address)


def test_as_many_workers_as_there_are_needs_a_cluster():
    assert "WORKERS=0 must be above 0" in refused(run_script("05_train_controller.py", "WORKERS=0"))
