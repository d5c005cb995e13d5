"""cartpole_dqn.py on one core, and the tutorial's update rule beside it: `python -m tests.bench_cartpole`.

`python -m tests.bench_cartpole 10` trains ten seeds instead of three: the README's table.
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

from pipeline.files import suppress_stderr

import numpy as np

with suppress_stderr():
    import gym
    import keras

ROOT = Path(__file__).parents[1]
FRESH = range(2_000, 2_100)  # episodes that cartpole_dqn.py itself plays neither to learn, to choose nor to report
TUTORIAL_REPLAYS = 8  # of 32 single fits each: a few seconds are enough to time it


def network() -> keras.Model:
    """The tutorial's network, written here once more."""
    layers = [keras.layers.Dense(24, "relu"), keras.layers.Dense(24, "relu"), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((4,)), *layers])


def greedy(weights: Path) -> list[int]:
    """Scores of the saved agent over the FRESH episodes, on gym's own CartPole-v1."""
    model = network()
    model.load_weights(weights)
    w1, b1, w2, b2, w3, b3 = model.get_weights()
    env, scores = gym.make("CartPole-v1", disable_env_checker=True), []
    for seed in FRESH:
        (state, _), score, over = env.reset(seed=seed), 0, False
        while not over:
            q = np.maximum(np.maximum(state @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3
            state, reward, terminated, truncated, _ = env.step(int(q.argmax()))
            score, over = score + int(reward), terminated or truncated
        scores.append(score)
    return scores


def whole_process(seed: int) -> dict[str, float]:
    """Run the script as a user does, in a folder of its own; wall clock and processor time of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "cartpole_dqn.py", f"SEED={seed}", f"MODELS={folder}/models", f"DATA={folder}/data"]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"cartpole_dqn.py SEED={seed} failed:\n{done.stderr}")
        episode, mean = re.findall(r"episode +(\d+) .*mean of 100 +([\d.]+)", done.stdout)[-1]
        steps = re.search(r"([\d,]+) steps", done.stdout)[1]
        scores = greedy(Path(folder, "models", "cartpole.weights.h5"))
    return {
        "episodes": int(episode),
        "last100": float(mean),
        "steps": int(steps.replace(",", "")),
        "greedy": float(np.mean(scores)),
        "worst": min(scores),
        "wall": wall,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def tutorial_rate() -> float:
    """Env steps a second by the tutorial's rule: a replay of 32 after each episode, each with its predicts and fit."""
    random.seed(0)
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(loss="mse", optimizer=keras.optimizers.Adam(0.001))
    env, memory, epsilon = gym.make("CartPole-v1", disable_env_checker=True), deque(maxlen=2_000), 1.0
    steps, replays, start = 0, -1, 0.0  # the first replay compiles: it is not timed
    while replays < TUTORIAL_REPLAYS:
        state, over = env.reset(seed=replays + 10)[0].reshape(1, 4), False
        while not over:
            explore = random.random() < epsilon
            action = random.randrange(2) if explore else int(model.predict(state, verbose=0)[0].argmax())
            following, reward, terminated, truncated, _ = env.step(action)
            following, over = following.reshape(1, 4), terminated or truncated
            memory.append((state, action, reward, following, over))
            state, steps = following, steps + 1
        if len(memory) < 32:
            continue
        for state, action, reward, following, done in random.sample(memory, 32):
            target = reward
            if not done:
                target = reward + 0.95 * model.predict(following, verbose=0)[0].max()
            targets = model.predict(state, verbose=0)
            targets[0][action] = target
            model.fit(state, targets, epochs=1, verbose=0)
        epsilon, replays = max(0.01, epsilon * 0.995), replays + 1
        if replays == 0:
            steps, start = 0, time.perf_counter()
    return steps / (time.perf_counter() - start)


def main(seeds: int = 3) -> None:
    """Print the table; the whole of it runs on one core."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        table(seeds)
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def table(seeds: int) -> None:
    """Train and time `seeds` agents, then the tutorial's rule."""
    print("cartpole_dqn.py, whole process on one core; greedy: 100 episodes that it never played\n")
    print("| seed | episodes | last 100 | env steps | greedy mean | worst | seconds | of processor | env steps/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    runs = []
    for seed in range(seeds):
        run = whole_process(seed)
        runs.append(run)
        print(
            f"| {seed} | {run['episodes']} | {run['last100']:.1f} | {run['steps']:,} | {run['greedy']:.1f} "
            f"| {run['worst']} | {run['wall']:.1f} | {run['cpu']:.1f} | {run['steps'] / run['wall']:,.0f} |",
            flush=True,
        )
    wall = statistics.median(run["wall"] for run in runs)
    rate, tutorial = statistics.median(run["steps"] / run["wall"] for run in runs), tutorial_rate()
    print(f"\nmedian {wall:.1f} s (asked: 60), {rate:,.0f} env steps/s, start-up and pictures included")
    print(f"the tutorial's update rule: {tutorial:.1f} env steps/s; {rate / tutorial:,.0f} times as fast (asked: 50)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
