"""Step 4 of the tutorial: drive at random, and record what was seen and done.

Reads nothing (with POLICY=controller: V, M and C in MODELS).
Writes DATA/rollouts/rollout-<track seed>.npz, one a rollout (pipeline/rollouts.py says what is in it), and
DATA/rollouts.png, some of them to look at.

A second run adds what is missing and keeps what is there. The same seeds give the same rollouts.
Takes about 2½ minutes for 4,000 rollouts on 2 cores, and 0.9 GB of disk.
"""

import os
from pathlib import Path
from typing import Any, Literal

from models.tracks import rollout_tracks
from pipeline import UserError, rollouts, script
from pipeline.environment import hide_gpu, usable_cores
from pipeline.files import atomic_write, ensure_dir, write_file
from pipeline.progress import Progress
from pipeline.script import NonNegativeInt, PossiblyEmpty, Share
from pipeline.workers import worker_pool

import cv2
import numpy as np

ROLLOUTS = 4000  # how many there should be in the end, of 170 steps on average (tutorial 2,000 of 300; paper 10,000)
MAX_STEPS = 300  # of a rollout (tutorial 300; paper 1,000)
FIRST_ROLLOUT: NonNegativeInt = 0  # number of the first one; each number is a track and a rollout of its own
# "controller": drive with a trained controller and noise, the paper's iterative training
POLICY: Literal["random", "controller"] = "random"
CONTROLLER: Literal["controller", "dream_controller"] = "controller"  # which one, with POLICY="controller"
SEED = 1  # each has tracks of its own, 1 to 10
NUM_ENVS = 32  # cars driven at once by each worker, with POLICY="controller"
CLUSTER: PossiblyEmpty = ""  # a Ray cluster to work on, "auto" or "host:port" (docs/cluster.md); "": this machine
WORKERS: NonNegativeInt = usable_cores()  # processes; on a cluster actors, 0: one for each of its CPUs
MODELS = "models"  # the folder of the weights
DATA = "data"  # the folder of recordings, histories and pictures

# The random policy. Its numbers are drawn for each rollout, or for each held action.
WARMUP_STEPS: NonNegativeInt = 20  # steps of full gas at the start, so that the car gets going (tutorial: a few)
MAX_ACTION_REPEAT = 10  # steps that an action is held at most: new ones at every step would average out
MOVING_START_SHARE: Share = 0.6  # of the rollouts start at speed at a random place of the track, so V sees curves
START_SPEEDS = (10.0, 90.0)  # of those, in units/s (a good lap averages 60)
LEAVE_SHARE: Share = 0.04  # of the rollouts start far out and leave the field, which chance alone hardly ever does
MAX_GRASS_STEPS = 50  # a rollout ends after so many steps on the grass: there is little to learn about roads out there
WANDER_SHARE: Share = 0.3  # of the rollouts stay on the grass all the same, so that the way back is known too

# The controller's actions get Gaussian noise, each rollout the next of these standard deviations.
ACTION_NOISE = (0.0, 0.1, 0.3, 0.6, 1.0)

# All other constants decide what is in a rollout.
_NOT_IN_A_ROLLOUT = ("ROLLOUTS", "FIRST_ROLLOUT", "SEED", "MODELS", "DATA", "CLUSTER", "WORKERS", "NUM_ENVS")


def random_rollout(env, seed: int, max_steps: int) -> dict[str, np.ndarray]:
    """Drive at random on the track of `seed` for at most `max_steps` steps; the arrays of pipeline/rollouts.py."""
    random = np.random.default_rng(seed)
    first_obs, _ = env.reset(seed=seed)
    mode, steering_std, may_wander = random.random(), random.uniform(0.1, 1.0), random.random() < WANDER_SHARE
    min_gas = random.random()  # some drivers never lift, and M must know how that ends
    heading_out = mode < LEAVE_SHARE
    from_start = mode >= LEAVE_SHARE + MOVING_START_SHARE
    if not from_start:
        first_obs = place_car(env, random, heading_out)
    obs, actions, rewards, dones = [first_obs], [], [], []
    held, grass_steps, action = 0, 0, np.zeros(3)
    for t in range(max_steps):
        if held == 0:
            held = random.integers(1, MAX_ACTION_REPEAT + 1)
            action = random_action(random, steering_std, min_gas, heading_out)
        held -= 1
        if t < WARMUP_STEPS and from_start:
            action = np.array([action[0] * 0.2, 1.0, 0.0])
        frame, reward, terminated, _, _ = env.step(action.astype(np.float32))
        obs.append(frame)
        actions.append(action)
        rewards.append(reward)
        dones.append(terminated or env.lap_finished)
        grass_steps = 0 if any(wheel.tiles for wheel in env.car.wheels) else grass_steps + 1
        if dones[-1] or (grass_steps >= MAX_GRASS_STEPS and not may_wander and not heading_out):
            break
    return {
        "obs": np.array(obs, np.uint8),
        "action": np.array(actions, np.float32),
        "reward": np.array(rewards, np.float32),
        "done": np.array(dones, bool),
    }


def place_car(env, random: np.random.Generator, heading_out: bool) -> np.ndarray:
    """Put the car somewhere on the track at speed, or far out and heading for the border; returns what it sees."""
    if heading_out:
        x, y = random.uniform(-1, 1, 2)
        out = max(abs(x), abs(y))  # onto the edge of a square, then 40 to 100 units inside the field's border
        x, y = np.array([x, y]) / out * random.uniform(230, 290)
        return env.place(x, y, np.arctan2(-x, y) + random.normal(0, 0.3), random.uniform(*START_SPEEDS))
    _, angle, x, y = env.track[random.integers(len(env.track))]
    return env.place(x, y, angle + random.normal(0, 0.15), random.uniform(*START_SPEEDS))


def random_action(random: np.random.Generator, steering_std: float, min_gas: float, heading_out: bool) -> np.ndarray:
    """Steering, gas and brake, (3,): now and then no gas, now and then some brake."""
    coasts, brakes = random.random(2) < 0.15
    return np.array(
        [
            np.clip(random.normal(0, 0.1 if heading_out else steering_std), -1, 1),
            random.uniform(min_gas, 1) if heading_out or not coasts else 0.0,
            random.random() if brakes and not heading_out else 0.0,
        ]
    )


def make_random_env(settings: dict[str, Any]):
    """What a worker of the random policy works with."""
    from models.car_racing import CarRacing64

    return CarRacing64("fast"), settings


def record_random(prepared, seed: int) -> list[tuple[int, int, bytes]]:
    """Record one rollout: its seed, its length in steps, its file."""
    env, settings = prepared
    rollout = random_rollout(env, seed, MAX_STEPS)
    return [(seed, len(rollout["done"]), rollouts.pack(settings, **rollout))]


def make_controlled_world(settings: dict[str, Any], models: tuple, parameters: np.ndarray):
    """What a worker that drives with a controller works with; `models` is what `loading.get_weights` returns."""
    from models import loading, worlds

    return worlds.RealWorld(*loading.build_models(models), NUM_ENVS, max_steps=MAX_STEPS), parameters, settings


def record_controlled(prepared, seeds: list[int]) -> list[tuple[int, int, bytes]]:
    """Record a rollout for each seed, in lockstep: seeds, lengths in steps, files."""
    world, parameters, settings = prepared
    episodes, made = [[] for _ in seeds], []

    def on_step(step) -> None:
        steps = episodes[step.episode]
        steps.append(step)
        if step.final_obs is None:
            return
        file = rollouts.pack(
            settings,
            obs=np.array([step.frame for step in steps] + [step.final_obs]),
            action=np.array([step.action for step in steps]),
            reward=np.array([step.reward for step in steps], np.float32),
            done=np.array([step.done for step in steps]),
        )
        made.append((seeds[step.episode], len(steps), file))
        steps.clear()

    noise = np.array([ACTION_NOISE[seed % len(ACTION_NOISE)] for seed in seeds])
    world.drive(np.tile(parameters, (len(seeds), 1)), np.array(seeds), on_step, noise)
    return made


def contact_sheet(folder: Path, seeds: list[int], path: Path) -> None:
    """An image of what was seen: a row for each of eight rollouts, from its first frame to its last."""
    rows = []
    for seed in seeds[:: max(1, len(seeds) // 8)][:8]:
        obs = rollouts.read(folder / f"rollout-{seed}.npz")["obs"]
        rows.append(np.hstack(obs[np.linspace(0, len(obs) - 1, 12).astype(int)]))
    with atomic_write(path) as temporary:
        cv2.imwrite(str(temporary), np.vstack(rows)[..., ::-1])


def validate() -> None:
    """Raises `UserError` for constants that make no sense together."""
    if MOVING_START_SHARE + LEAVE_SHARE > 1:
        raise UserError("MOVING_START_SHARE and LEAVE_SHARE are shares of the rollouts: together at most 1")
    if len(START_SPEEDS) != 2 or START_SPEEDS[0] > START_SPEEDS[1]:
        raise UserError(f"START_SPEEDS={START_SPEEDS} must be two numbers, the lower one first")


def find_missing(folder: Path, seeds: list[int], settings: dict[str, Any]) -> list[int]:
    """The seeds whose rollout is not there or damaged; says which ones were made with different settings."""
    missing = []
    for seed in seeds:
        path = folder / f"rollout-{seed}.npz"
        if not rollouts.length(path):
            missing.append(seed)
            if path.exists():
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # what can't be opened may be whole: not this one
                print(f"{path} is damaged and is made again.")
    for difference, paths in rollouts.made_otherwise(folder, set(seeds) - set(missing), settings).items():
        print(f"{len(paths):,} of them were made with different settings ({difference}) and are kept: the first is")
        print(f"{paths[0]}, the last {paths[-1].name}. Delete them to make them again.")
    return missing


def main() -> None:
    """Make the rollouts that are missing."""
    validate()
    seeds = list(rollout_tracks(globals()))
    hide_gpu()
    folder, settings = ensure_dir(Path(DATA) / "rollouts"), script.settings(globals(), *_NOT_IN_A_ROLLOUT)
    missing = find_missing(folder, seeds, settings)
    if not missing:
        print(f"{folder} has all {ROLLOUTS:,} of these rollouts; ROLLOUTS={2 * ROLLOUTS} would add as many again.")
        return
    if POLICY == "random":
        initializer, record, items = (make_random_env, settings), record_random, missing
    else:
        from models import loading

        vae, rnn, parameters = loading.load(MODELS, CONTROLLER)
        initializer = make_controlled_world, settings, loading.get_weights(vae, rnn), parameters
        record = record_controlled
        items = [missing[i : i + NUM_ENVS] for i in range(0, len(missing), NUM_ENVS)]
    made = steps = 0
    progress = Progress(len(missing), "rollouts")
    with worker_pool(CLUSTER, min(WORKERS, len(items)), *initializer) as workers:
        print(
            f"{len(missing):,} of {ROLLOUTS:,} rollouts to make, in {folder}, with {workers.count} workers", flush=True
        )
        for results in workers.imap_unordered(record, items):
            for seed, length, file in results:
                write_file(folder / f"rollout-{seed}.npz", file)
                made, steps = made + 1, steps + length
            progress.update(made, f"{steps:,} steps")
    contact_sheet(folder, seeds, Path(DATA) / "rollouts.png")
    print(f"{steps:,} steps in {len(missing):,} rollouts; some of them to look at: {Path(DATA) / 'rollouts.png'}")


if __name__ == "__main__":
    script.run(main, globals(), reads=("MODELS",))
