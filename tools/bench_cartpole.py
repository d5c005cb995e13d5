"""How cartpole_dqn.py does on one core, and the tutorial's own rule beside it: the figures of docs/cartpole.md.

`python -m tools.bench_cartpole 10` trains ten seeds (three without a number) and times the tutorial's rule.
`python -m tools.bench_cartpole picture` trains one agent by each rule and draws docs/images/cartpole.png.
"""

import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from pipeline import plots
from pipeline.files import suppress_stderr

import numpy as np

with suppress_stderr():
    import gym
    import keras
    import tensorflow as tf

ROOT = Path(__file__).parents[1]
FRESH = range(2_000, 2_100)  # episodes that cartpole_dqn.py itself plays neither to learn, to choose nor to report
TIMED_REPLAYS = 8  # of 32 single fits each: a few seconds are enough to time the tutorial's rule
PICTURE_EPISODES = 1_000  # of the tutorial's rule


def network() -> keras.Model:
    """The tutorial's network."""
    layers = [keras.layers.Dense(24, "relu"), keras.layers.Dense(24, "relu"), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((4,)), *layers])


def q_values(weights: list[np.ndarray], states: np.ndarray) -> np.ndarray:
    """Q of both actions, written here once more: it checks cartpole_dqn.py."""
    w1, b1, w2, b2, w3, b3 = weights
    return np.maximum(np.maximum(states @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3


def greedy(path: Path) -> list[int]:
    """Scores of a saved agent over the FRESH episodes, on gym's own CartPole-v1."""
    model = network()
    model.load_weights(path)
    weights = model.get_weights()
    env = gym.make("CartPole-v1", disable_env_checker=True)
    scores = []
    for seed in FRESH:
        state, _ = env.reset(seed=seed)
        score = 0
        over = False
        while not over:
            state, reward, terminated, truncated, _ = env.step(int(q_values(weights, state).argmax()))
            score += int(reward)
            over = terminated or truncated
        scores.append(score)
    return scores


def train(seed: int, folder: Path) -> tuple[list[int], float, float]:
    """Run the script as a user does. Returns the training scores, and the whole process's wall and processor time."""
    command = [sys.executable, "cartpole_dqn.py", f"SEED={seed}", f"MODELS={folder}", f"DATA={folder}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"cartpole_dqn.py SEED={seed} failed:\n{done.stderr}")
    scores = [int(score) for score in re.findall(r"^episode .*score +(\d+)", done.stdout, re.MULTILINE)]
    return scores, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Tutorial:
    """The tutorial's agent: memory 2,000, batches of 32, γ 0.95, one replay after each episode, reward 1 a step."""

    def __init__(self, seed: int) -> None:
        keras.utils.set_random_seed(seed)
        self.random = random.Random(seed)
        self.model = network()
        self.model.compile(loss="mse", optimizer=keras.optimizers.Adam(0.001))
        self.memory: deque = deque(maxlen=2_000)
        self.epsilon = 1.0

    def play(self, env: gym.Env, seed: int, compiled: bool) -> int:
        """One training episode and the replay after it. Returns the score."""
        state, _ = env.reset(seed=seed)
        weights = self.model.get_weights()  # they stay as they are until the replay
        score = 0
        over = False
        while not over:
            action = self.random.randrange(2)
            if self.random.random() >= self.epsilon:
                values = q_values(weights, state) if compiled else self.model.predict(state[None], verbose=0)[0]
                action = int(values.argmax())
            next_state, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            self.memory.append((state, action, reward, next_state, over))
            state = next_state
            score += 1
        if len(self.memory) >= 32:
            batch = self.random.sample(self.memory, 32)
            (self.replay_compiled if compiled else self.replay)(batch)
            self.epsilon = max(0.01, self.epsilon * 0.995)
        return score

    def replay(self, batch: list[tuple]) -> None:
        """As in the tutorial: two `predict`s and a `fit` for each transition."""
        for state, action, reward, next_state, over in batch:
            target = reward
            if not over:
                target = reward + 0.95 * self.model.predict(next_state[None], verbose=0)[0].max()
            targets = self.model.predict(state[None], verbose=0)
            targets[0][action] = target
            self.model.fit(state[None], targets, epochs=1, verbose=0)

    def replay_compiled(self, batch: list[tuple]) -> None:
        """The same updates in one compiled call, because the tutorial's way takes seconds for each episode."""
        states, actions, rewards, next_states, overs = (np.array(column) for column in zip(*batch))
        self._updates(states, actions, rewards.astype("f4"), next_states, 0.95 * (1 - overs.astype("f4")))

    @tf.function
    def _updates(self, states, actions, rewards, next_states, discounts) -> None:
        for i in tf.range(len(states)):
            target = rewards[i] + discounts[i] * tf.reduce_max(self.model(next_states[i][None]))
            with tf.GradientTape() as tape:
                # The mean over both actions, of which the other's error is 0.
                loss = (target - self.model(states[i][None])[0, actions[i]]) ** 2 / 2
            variables = self.model.trainable_variables
            self.model.optimizer.apply(tape.gradient(loss, variables), variables)


def tutorial_rate() -> float:
    """Env steps a second by the tutorial's rule, done its way. The first replay compiles: it is not timed."""
    agent = Tutorial(seed=0)
    env = gym.make("CartPole-v1", disable_env_checker=True)
    seed = 0
    while agent.epsilon == 1.0:
        agent.play(env, seed, compiled=False)
        seed += 1
    start = time.perf_counter()
    steps = sum(agent.play(env, seed + i, compiled=False) for i in range(TIMED_REPLAYS))
    return steps / (time.perf_counter() - start)


def table(seeds: int) -> None:
    """Train and time `seeds` agents, then the tutorial's rule."""
    print("cartpole_dqn.py, the whole process on one core; greedy: 100 episodes that it never played\n")
    print("| seed | episodes | mean of last 100 | env steps | greedy mean | worst | seconds | of processor | steps/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    runs = [row(seed) for seed in range(seeds)]
    wall = statistics.median(wall for wall, _ in runs)
    rate = statistics.median(rate for _, rate in runs)
    tutorial = tutorial_rate()
    print(f"\nmedian: {wall:.1f} s, {rate:,.0f} env steps/s, start-up and pictures included")
    print(f"the tutorial's rule: {tutorial:.1f} env steps/s, {rate / tutorial:,.0f} times slower")


def row(seed: int) -> tuple[float, float]:
    """Train one seed and print its row. Returns seconds, and env steps a second."""
    with tempfile.TemporaryDirectory() as folder:
        scores, wall, processor = train(seed, Path(folder))
        fresh = greedy(Path(folder, "cartpole.weights.h5"))
    steps = sum(scores)
    print(
        f"| {seed} | {len(scores)} | {np.mean(scores[-100:]):.1f} | {steps:,} | {np.mean(fresh):.1f} | {min(fresh)} "
        f"| {wall:.1f} | {processor:.1f} | {steps / wall:,.0f} |",
        flush=True,
    )
    return wall, steps / wall


def picture() -> None:
    """Learning curves of both rules, seed 0, in docs/images/cartpole.png."""
    with tempfile.TemporaryDirectory() as folder:
        ours, _, _ = train(0, Path(folder))
    agent = Tutorial(seed=0)
    env = gym.make("CartPole-v1", disable_env_checker=True)
    theirs = [agent.play(env, 1_000_000 + i, compiled=True) for i in range(PICTURE_EPISODES)]
    for name, scores in (("cartpole_dqn.py", ours), ("the tutorial's rule", theirs)):
        best = max(np.mean(scores[max(0, end - 100) : end]) for end in range(1, len(scores) + 1))
        print(f"{name}: {len(scores)} episodes, {sum(scores):,} steps, best mean of 100: {best:.1f}")
    path = ROOT / "docs" / "images" / "cartpole.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.learning_curve(path, "CartPole-v1, seed 0", {"cartpole_dqn.py": ours, "the tutorial's rule": theirs})
    print(f"Wrote {path}")


def main(argument: str = "3") -> None:
    """Draw the picture, or print the table of some seeds; all of it runs on one core."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        picture() if argument == "picture" else table(int(argument))
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main(*sys.argv[1:])
