"""cartpole_dqn.py: its length, its memory, its target against plain NumPy, and what a run leaves."""

import ast
import signal
import subprocess
import sys
import time

from tests.conftest import ROOT, refused, run_script

import h5py
import numpy as np
import pytest

SCRIPT = ROOT / "cartpole_dqn.py"


@pytest.fixture(scope="module")
def dqn():
    import cartpole_dqn

    return cartpole_dqn


@pytest.fixture
def agent(dqn):
    import keras

    keras.utils.set_random_seed(3)
    return dqn.Agent()


def some_steps(count: int) -> list[tuple]:
    rng = np.random.default_rng(5)
    return [
        (rng.normal(size=4).astype("f4"), int(rng.integers(2)), float(rng.normal()), rng.normal(size=4).astype("f4"))
        for _ in range(count)
    ]


def q_of(agent, state: np.ndarray) -> np.ndarray:
    """Q by Keras itself."""
    return agent.model(np.asarray(state, "f4").reshape(1, 4)).numpy()[0]


def test_length():
    source = SCRIPT.read_text()
    docstring = ast.parse(source).body[0].end_lineno
    assert len([line for line in source.splitlines()[docstring:] if line.strip()]) <= 100


def test_tutorial_shape(dqn, agent):
    assert [(layer.units, layer.activation.__name__) for layer in agent.model.layers] == [
        (24, "relu"),
        (24, "relu"),
        (2, "linear"),
    ]
    assert all(callable(getattr(agent, name)) for name in ("remember", "replay", "act"))


def test_acts_by_keras_values(agent):
    states = np.random.default_rng(1).normal(size=(50, 4)).astype("f4")
    actions = [agent.act(state, epsilon=0.0) for state in states]
    assert actions == [int(q_of(agent, state).argmax()) for state in states]
    assert len(set(actions)) == 2
    random = [agent.act(states[0], epsilon=1.0) for _ in range(400)]
    assert 0.4 < np.mean(random) < 0.6


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_memory_holds_n_step_transitions(dqn, agent, monkeypatch, end, n_steps):
    monkeypatch.setattr(dqn, "N_STEPS", n_steps)
    steps, gamma = some_steps(7), dqn.GAMMA
    for i, (state, action, reward, following) in enumerate(steps):
        last = i == 6
        agent.remember(state, action, reward, following, last and end == "terminated", last and end == "truncated")
    assert agent.count == 7
    assert agent.recent == []
    for i, row in enumerate(agent.memory[:7]):
        until = min(i + n_steps, 7)
        assert np.array_equal(row["state"], steps[i][0])
        assert row["action"] == steps[i][1]
        assert np.array_equal(row["following"], steps[until - 1][3])
        assert row["reward"] == pytest.approx(sum(gamma ** (k - i) * steps[k][2] for k in range(i, until)), rel=1e-5)
        fell = until == 7 and end == "terminated"
        assert row["discount"] == pytest.approx(0 if fell else gamma ** (until - i))


@pytest.mark.parametrize(("terminated", "truncated"), [(True, False), (False, True), (False, False), (True, True)])
def test_target(dqn, agent, monkeypatch, terminated, truncated):
    monkeypatch.setattr(dqn, "N_STEPS", 1)
    for state, action, reward, following in some_steps(20):
        agent.remember(state, action, reward, following, terminated, truncated)
    seen = []
    monkeypatch.setattr(agent, "_fit", lambda *batch: seen.append(batch))
    agent.replay()
    states, actions, targets = seen[0]
    assert targets.shape == actions.shape == (dqn.UPDATES, dqn.BATCH)
    expected = {}
    for state, action, reward, following in some_steps(20):
        future = 0 if terminated else dqn.GAMMA * q_of(agent, following).max()
        expected[state.tobytes()] = (action, reward + future)
    for state, action, target in zip(states[0], actions[0], targets[0]):
        assert action == expected[state.tobytes()][0]
        assert target == pytest.approx(expected[state.tobytes()][1], abs=1e-5)


def test_fit_is_adam_on_the_squared_error_of_each_batch(dqn, agent):
    import keras
    import tensorflow as tf

    rng = np.random.default_rng(2)
    states, actions = rng.normal(size=(3, 8, 4)).astype("f4"), rng.integers(2, size=(3, 8)).astype("i4")
    targets = rng.normal(size=(3, 8)).astype("f4")
    twin = keras.models.clone_model(agent.model)
    twin.set_weights(agent.model.get_weights())
    optimizer = keras.optimizers.Adam(dqn.RATE)
    for state, action, target in zip(states, actions, targets):
        with tf.GradientTape() as tape:
            q = tf.reduce_sum(twin(state) * tf.one_hot(action, 2), axis=1)
            loss = tf.reduce_sum((q - target) ** 2) / 8
        optimizer.apply(tape.gradient(loss, twin.trainable_variables), twin.trainable_variables)
    agent._fit(states, actions, targets)
    for ours, theirs in zip(agent.model.get_weights(), twin.get_weights()):
        assert np.allclose(ours, theirs, atol=1e-6)
    assert int(agent.optimizer.iterations) == 3


def test_memory_is_bounded(dqn, agent, monkeypatch):
    monkeypatch.setattr(dqn, "MEMORY", 50)
    agent.memory = agent.memory[:50]
    for i in range(180):
        agent.remember(np.full(4, i, "f4"), 0, 1.0, np.full(4, i + 1, "f4"), i % 30 == 29, False)
    assert agent.count == 180
    assert len(agent.memory) == 50
    assert sorted(agent.memory["state"][:, 0]) == list(range(130, 180))
    assert len(agent.recent) < dqn.N_STEPS


def test_epsilon_falls_to_its_least(dqn, agent, monkeypatch):
    monkeypatch.setattr(agent, "_fit", lambda *batch: None)
    agent.remember(*some_steps(1)[0], True, False)
    seen = []
    for _ in range(80):
        agent.replay()
        seen.append(agent.epsilon)
    assert seen == pytest.approx([max(dqn.EPSILON_MIN, dqn.EPSILON_DECAY**k) for k in range(1, 81)])
    assert seen[-1] == dqn.EPSILON_MIN


def test_learns_only_from_a_filled_memory_and_every_so_many_steps(dqn, agent, monkeypatch):
    import gym

    monkeypatch.setattr(dqn, "EVERY", 16)
    agent.first, steps = 100, []
    monkeypatch.setattr(agent, "replay", lambda: steps.append(agent.count + len(agent.recent)))
    env = gym.make("CartPole-v1", disable_env_checker=True)
    played = sum(dqn.play(agent, env, seed, training=True) for seed in range(20))
    first = min(steps)
    assert 100 <= first < 100 + 16 + dqn.N_STEPS
    assert steps == list(range(first, played + 1, 16))
    assert agent.count == played


def folders(tmp_path) -> list[str]:
    return [f"MODELS={tmp_path}/models", f"DATA={tmp_path}/data"]


def test_runs_goes_on_and_refuses_what_is_damaged(tmp_path):
    tiny = [*folders(tmp_path), "EPISODES=22", "FIRST=50", "EVERY=32", "UPDATES=4", "BATCH=8", "MEMORY=300"]
    path = tmp_path / "models" / "cartpole.weights.h5"
    first = run_script("cartpole_dqn.py", *tiny)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "episode   22" in first.stdout
    assert "ε 1.000" in first.stdout
    assert (tmp_path / "data" / "cartpole.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "data" / "cartpole.gif").read_bytes().startswith(b"GIF8")
    assert len(weights_of(path)) == 6  # of the network alone, without its optimizer

    # Taken up again: the least exploration from the first episode on, and nothing is learned from so few steps.
    before = weights_of(path)
    again = run_script("cartpole_dqn.py", *tiny, "EPISODES=2", "FIRST=100")
    assert again.returncode == 0, again.stderr
    assert "ε 1.000" not in again.stdout
    assert "ε 0.010" in again.stdout
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(path)))

    path.write_bytes(path.read_bytes()[:2000])
    line = refused(run_script("cartpole_dqn.py", *tiny))
    assert "damaged" in line
    assert "Traceback" not in line
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros((2, 2), "f4")
    assert "does not hold the weights" in refused(run_script("cartpole_dqn.py", *tiny))


def weights_of(path) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    return arrays


def test_show_without_a_screen(tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    assert "no screen" in refused(run_script("cartpole_dqn.py", *folders(tmp_path), "SHOW=True"))


def test_ctrl_c_saves(tmp_path):
    command = [sys.executable, str(SCRIPT), *folders(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        process.stdout.readline()  # twenty episodes
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert len(errors.strip().splitlines()) == 1
    assert "continues from what is saved" in errors
    assert time.monotonic() - start < 20
    assert len(weights_of(tmp_path / "models" / "cartpole.weights.h5")) == 6
    assert (tmp_path / "data" / "cartpole.png").exists()
