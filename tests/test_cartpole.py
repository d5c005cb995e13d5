"""cartpole_dqn.py: its length, its memory, its target against plain NumPy and Keras, and what a run leaves."""

import ast
import io
import signal
import subprocess
import sys
import time
import tokenize
from pathlib import Path

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
def agent(dqn, tmp_path):
    import keras

    keras.utils.set_random_seed(3)
    return dqn.Agent(tmp_path / "none.weights.h5")


@pytest.fixture
def env():
    import gym

    return gym.make("CartPole-v1", disable_env_checker=True)


def some_steps(count: int) -> list[tuple]:
    """(state, action, reward, next_state), random."""
    rng = np.random.default_rng(5)
    return [
        (rng.normal(size=4).astype("f4"), int(rng.integers(2)), float(rng.normal()), rng.normal(size=4).astype("f4"))
        for _ in range(count)
    ]


def keras_values(agent, state: np.ndarray) -> np.ndarray:
    """Q by the online network, by Keras itself."""
    return agent.model(np.asarray(state, "f4").reshape(1, 4)).numpy()[0]


# Its length


def lines_of_code(source: str) -> int:
    """Lines that hold code: without blank lines, comments and docstrings."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def packed(source: str) -> list[int]:
    """Lines with more than one statement, with several assignments in one, or with an assignment in an expression."""
    found = []
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    starts = [node.lineno for node in statements]
    for node in statements:
        several = isinstance(node, ast.Assign) and (
            len(node.targets) > 1 or (isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple))
        )
        hidden = any(isinstance(part, ast.NamedExpr) for part in ast.walk(node))
        if several or hidden or starts.count(node.lineno) > 1:
            found.append(node.lineno)
    return found


def test_less_than_100_lines_of_code():
    assert lines_of_code(SCRIPT.read_text()) < 100


def test_one_statement_and_one_variable_a_line():
    assert packed(SCRIPT.read_text()) == []


@pytest.mark.parametrize(
    "line", ["a = 1; b = 2", "a, b = 1, 2", "a = b = 1", "if x: y()", "f(a := 1)", "for i in x: f(i)"]
)
def test_packed_lines_are_seen(line):
    assert packed(line)


def test_lines_of_code_counts_code_alone():
    source = '"""Doc."""\n\n# comment\nx = (\n    1,\n)  # comment\n\n\ndef f():\n    """Doc\n    doc."""\n'
    assert lines_of_code(source) == 4


# The agent


def test_network_of_the_tutorial(agent):
    assert [(layer.units, layer.activation.__name__) for layer in agent.model.layers] == [
        (24, "relu"),
        (24, "relu"),
        (2, "linear"),
    ]


def test_acts_by_keras_values(agent):
    states = np.random.default_rng(1).normal(size=(50, 4)).astype("f4")
    actions = [agent.act(state, epsilon=0.0) for state in states]
    assert actions == [int(keras_values(agent, state).argmax()) for state in states]
    assert len(set(actions)) == 2


def test_epsilon_is_the_share_of_random_actions(agent):
    state = np.ones(4, "f4")
    other = 1 - agent.act(state, epsilon=0.0)
    for epsilon in (0.2, 1.0):
        share = np.mean([agent.act(state, epsilon) == other for _ in range(2_000)])
        assert share == pytest.approx(epsilon / 2, abs=0.04)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_buffer_holds_n_step_transitions(dqn, agent, monkeypatch, end, n_steps):
    monkeypatch.setattr(dqn, "N_STEPS", n_steps)
    steps = some_steps(7)
    for i, (state, action, reward, next_state) in enumerate(steps):
        last = i == 6
        agent.remember(state, action, reward, next_state, last and end == "terminated", last and end == "truncated")
    assert agent.stored == 7
    assert agent.n_step_buffer == []
    for i, row in enumerate(agent.buffer[:7]):
        until = min(i + n_steps, 7)
        n_step_return = 0.0
        for _, _, reward, _ in reversed(steps[i:until]):
            n_step_return = reward + dqn.GAMMA * n_step_return
        fell = until == 7 and end == "terminated"
        assert np.array_equal(row["state"], steps[i][0])
        assert row["action"] == steps[i][1]
        assert np.array_equal(row["next_state"], steps[until - 1][3])
        assert row["reward"] == pytest.approx(n_step_return, rel=1e-5)
        assert row["discount"] == pytest.approx(0 if fell else dqn.GAMMA ** (until - i))


def test_transitions_wait_for_n_steps(dqn, agent):
    for i, step in enumerate(some_steps(25), 1):
        agent.remember(*step, False, False)
        assert agent.stored == max(0, i - dqn.N_STEPS + 1)
        assert len(agent.n_step_buffer) == min(i, dqn.N_STEPS - 1)


@pytest.mark.parametrize(("terminated", "truncated"), [(True, False), (False, True), (False, False), (True, True)])
def test_target_bootstraps_unless_terminated(dqn, agent, monkeypatch, terminated, truncated):
    monkeypatch.setattr(dqn, "N_STEPS", 1)
    for step in some_steps(20):
        agent.remember(*step, terminated, truncated)
    seen = []
    monkeypatch.setattr(agent, "fit", lambda *batches: seen.append(batches))
    agent.replay()
    states, actions, targets = seen[0]
    assert targets.shape == actions.shape == (dqn.GRADIENT_STEPS, dqn.BATCH_SIZE)
    expected = {}
    for state, action, reward, next_state in some_steps(20):
        future = 0 if terminated else dqn.GAMMA * keras_values(agent, next_state).max()
        expected[state.tobytes()] = (action, reward + future)
    assert {state.tobytes() for state in states[0]} <= expected.keys()
    for state, action, target in zip(states[0], actions[0], targets[0]):
        assert action == expected[state.tobytes()][0]
        assert target == pytest.approx(expected[state.tobytes()][1], abs=1e-5)


def test_targets_come_from_the_target_weights(dqn, agent, monkeypatch):
    monkeypatch.setattr(dqn, "N_STEPS", 1)
    state, action, reward, next_state = some_steps(1)[0]
    agent.remember(state, action, reward, next_state, False, False)
    frozen = keras_values(agent, next_state).max()
    agent.model.set_weights([weight + 0.5 for weight in agent.model.get_weights()])
    online = keras_values(agent, next_state).max()
    seen = []
    monkeypatch.setattr(agent, "fit", lambda *batches: seen.append(batches))
    agent.replay()
    assert seen[0][2] == pytest.approx(reward + dqn.GAMMA * frozen, abs=1e-5)
    assert abs(online - frozen) > 0.1
    # After the replay they follow the online network.
    assert agent.q_values(next_state) == pytest.approx(keras_values(agent, next_state), abs=1e-5)


def test_fit_is_adam_on_the_squared_error_of_each_batch(dqn, agent):
    import keras
    import tensorflow as tf

    rng = np.random.default_rng(2)
    states = rng.normal(size=(3, 8, 4)).astype("f4")
    actions = rng.integers(2, size=(3, 8)).astype("i4")
    targets = rng.normal(size=(3, 8)).astype("f4")
    twin = keras.models.clone_model(agent.model)
    twin.set_weights(agent.model.get_weights())
    optimizer = keras.optimizers.Adam(dqn.LEARNING_RATE)
    for state, action, target in zip(states, actions, targets):
        with tf.GradientTape() as tape:
            q = tf.reduce_sum(twin(state) * tf.one_hot(action, 2), axis=1)
            loss = tf.reduce_sum((q - target) ** 2) / 8
        optimizer.apply(tape.gradient(loss, twin.trainable_variables), twin.trainable_variables)
    agent.fit(states, actions, targets)
    for ours, theirs in zip(agent.model.get_weights(), twin.get_weights()):
        assert np.allclose(ours, theirs, atol=1e-6)
    assert int(agent.optimizer.iterations) == 3


def test_fit_touches_the_sampled_action_alone(agent):
    before = agent.model.get_weights()
    states = np.random.default_rng(2).normal(size=(4, 8, 4)).astype("f4")
    agent.fit(states, np.ones((4, 8), "i4"), np.full((4, 8), 3, "f4"))
    after = agent.model.get_weights()
    assert np.array_equal(before[4][:, 0], after[4][:, 0])
    assert before[5][0] == after[5][0]
    assert not np.array_equal(before[4][:, 1], after[4][:, 1])
    assert after[5][1] > before[5][1]


def test_buffer_keeps_the_latest(dqn, agent, monkeypatch):
    monkeypatch.setattr(dqn, "BUFFER_SIZE", 50)
    agent.buffer = agent.buffer[:50]
    for i in range(180):
        agent.remember(np.full(4, i, "f4"), 0, 1.0, np.full(4, i + 1, "f4"), i % 30 == 29, False)
    assert agent.stored == 180
    assert sorted(agent.buffer["state"][:, 0]) == list(range(130, 180))


def test_replay_samples_stored_transitions_alone(dqn, agent, monkeypatch):
    for i in range(30):
        agent.remember(np.full(4, i + 1, "f4"), 0, 1.0, np.zeros(4, "f4"), i == 29, False)
    seen = []
    monkeypatch.setattr(agent, "fit", lambda *batches: seen.append(batches))
    agent.replay()
    assert set(seen[0][0][..., 0].ravel()) == set(range(1, 31))  # all of them, and none of the empty rows


def test_epsilon_decays_to_its_minimum(dqn, agent, monkeypatch):
    monkeypatch.setattr(agent, "fit", lambda *batches: None)
    agent.remember(*some_steps(1)[0], True, False)
    seen = []
    for _ in range(80):
        agent.replay()
        seen.append(agent.epsilon)
    assert seen == pytest.approx([max(dqn.EPSILON_MIN, dqn.EPSILON_DECAY**k) for k in range(1, 81)])
    assert seen[-1] == dqn.EPSILON_MIN


# Playing


def test_play_learns_from_a_filled_buffer_every_so_many_steps(dqn, agent, env, monkeypatch):
    monkeypatch.setattr(dqn, "TRAIN_FREQUENCY", 16)
    monkeypatch.setattr(dqn, "LEARNING_STARTS", 100)
    steps = []
    monkeypatch.setattr(agent, "replay", lambda: steps.append(agent.stored + len(agent.n_step_buffer)))
    played = sum(dqn.play(agent, env, seed, training=True) for seed in range(20))
    first = min(steps)
    assert 100 <= first < 100 + 16 + dqn.N_STEPS
    assert steps == list(range(first, played + 1, 16))
    assert agent.stored == played


def test_play_returns_the_score_and_remembers_the_fall(dqn, agent, env):
    score = dqn.play(agent, env, 7, training=True)
    state, _ = env.reset(seed=7)
    returns = 0.0
    for row in agent.buffer[:score]:
        assert np.array_equal(row["state"], state)
        state, reward, terminated, _, _ = env.step(int(row["action"]))
        returns += reward
    assert terminated
    assert returns == score == agent.stored
    assert agent.buffer["reward"][score - 1] == -1
    assert agent.buffer["discount"][score - 1] == 0


def test_play_is_cut_off_at_500_and_greedy_without_training(dqn, agent, env, monkeypatch):
    seen = []

    def balance(state, epsilon):
        seen.append(epsilon)
        return int(state @ (0.1, 0.2, 1, 0.5) > 0)  # a controller that balances

    monkeypatch.setattr(agent, "act", balance)
    assert dqn.play(agent, env, 1) == 500
    assert set(seen) == {0.0}
    assert agent.stored == 0
    assert dqn.balances(agent, env)
    monkeypatch.setattr(agent, "act", lambda state, epsilon: 0)
    assert not dqn.balances(agent, env)


# The script


def folders(tmp_path) -> list[str]:
    return [f"MODELS={tmp_path}/models", f"DATA={tmp_path}/data"]


TINY = ["EPISODES=22", "LEARNING_STARTS=50", "TRAIN_FREQUENCY=32"]
TINY += ["GRADIENT_STEPS=4", "BATCH_SIZE=8", "BUFFER_SIZE=300"]


def test_runs_resumes_and_refuses_what_is_damaged(tmp_path):
    path = tmp_path / "models" / "cartpole.weights.h5"
    curve = tmp_path / "data" / "cartpole.png"
    first = run_script("cartpole_dqn.py", *folders(tmp_path), *TINY, "SEED=4294967296")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert f"{path}: a new agent" in first.stdout
    assert "episode   22" in first.stdout
    assert "ε 1.000" in first.stdout
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "data" / "cartpole.gif").read_bytes().startswith(b"GIF8")
    assert len(weights_of(path)) == 6  # of the network alone, without its optimizer

    # Resumed: the least exploration from the first episode on, and nothing is learned from so few steps.
    before = weights_of(path)
    again = run_script("cartpole_dqn.py", *folders(tmp_path), *TINY, "EPISODES=2", "LEARNING_STARTS=1200")
    assert again.returncode == 0, again.stderr
    assert f"{path}: resumed" in again.stdout
    assert "episode    2" in again.stdout
    assert "ε 1.000" not in again.stdout
    assert "ε 0.010" in again.stdout
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(path), strict=True))

    path.write_bytes(path.read_bytes()[:2000])
    line = refused(run_script("cartpole_dqn.py", *folders(tmp_path), *TINY))
    assert "damaged" in line
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros((2, 2), "f4")
    assert "does not hold the weights" in refused(run_script("cartpole_dqn.py", *folders(tmp_path), *TINY))


def test_a_resumed_agent_acts_as_the_saved_one(dqn, agent, tmp_path):
    from models import weights

    path = tmp_path / "cartpole.weights.h5"
    weights.save(path, agent.model)
    resumed = dqn.Agent(path)
    states = np.random.default_rng(4).normal(size=(20, 4)).astype("f4")
    assert np.array_equal(resumed.q_values(states), agent.q_values(states))
    assert resumed.epsilon == dqn.EPSILON_MIN
    assert agent.epsilon == 1.0


def test_solves_then_only_shows(as_script, dqn, tmp_path, capsys):
    """The promise itself, seed 0: solved, and a second run neither trains a solved agent nor wipes its curve."""
    path = tmp_path / "models" / "cartpole.weights.h5"
    as_script(dqn, *folders(tmp_path), "SEED=0")
    assert capsys.readouterr().out.count("episodes: 500.0") == 1
    before = weights_of(path)
    curve = (tmp_path / "data" / "cartpole.png").read_bytes()
    again = run_script("cartpole_dqn.py", *folders(tmp_path))
    assert "episode  " not in again.stdout
    assert "episodes: 500.0" in again.stdout
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(path), strict=True))
    assert (tmp_path / "data" / "cartpole.png").read_bytes() == curve


def weights_of(path: Path) -> list[np.ndarray]:
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
        for _ in range(21):  # twenty episodes
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert len(errors.strip().splitlines()) == 1
    assert "continues from what is saved" in errors
    assert time.monotonic() - start < 20
    assert len(weights_of(tmp_path / "models" / "cartpole.weights.h5")) == 6
    assert (tmp_path / "data" / "cartpole.png").exists()


# The tutorial's rule in tools/bench_cartpole.py


def test_the_compiled_rule_is_the_tutorials():
    """The benchmark's fast form makes the updates of `predict` and `fit`, one transition after the other."""
    from tools.bench_cartpole import Tutorial

    batch = [(state, action, 1.0, following, i == 2) for i, (state, action, _, following) in enumerate(some_steps(5))]
    slow = Tutorial(seed=1)
    fast = Tutorial(seed=1)
    slow.replay(batch)
    fast.replay_compiled(batch)
    for ours, theirs in zip(fast.model.get_weights(), slow.model.get_weights(), strict=True):
        assert np.allclose(ours, theirs, atol=1e-6)
    assert not np.allclose(fast.model.get_weights()[0], Tutorial(seed=1).model.get_weights()[0], atol=1e-4)
