"""Step 4 of the tutorial: drive at random, and keep what was seen and done.

Reads nothing (with POLICY=controller: the weights of V, M and C in models/).
Writes data/rollouts/rollout-<track seed>.npz, one a rollout; for T frames driven

    obs     uint8   (T+1, 64, 64, 3)   obs[t] is what was seen before action[t], obs[T] what was seen last
    action  float32 (T, 3)             steering -1 to 1, gas 0 to 1, brake 0 to 1
    reward  float32 (T,)               follows action[t]
    done    bool    (T,)               left the field or finished the lap; never the frame limit

A second run adds what is missing and keeps what is there. The same seeds give the same rollouts.
Takes about 2½ minutes for 4,000 rollouts on 2 cores, and 0.9 GB of disk.
"""

import os
from pathlib import Path
from typing import Literal

from models.tracks import ROLLOUT_TRACKS
from pipeline import UserError, rollouts, script
from pipeline.files import atomic_write, ensure_dir, pack_npz, write_file
from pipeline.progress import Progress
from pipeline.script import NonNegativeFloat, NonNegativeInt, PossiblyEmpty
from pipeline.workers import worker_pool

import cv2
import numpy as np

ROLLOUTS = 4000  # how many there should be in the end, 170 frames on average (tutorial 2,000 of 300; paper 10,000)
STEPS = 300  # frames of each at most (tutorial 300; paper 1,000)
FIRST: NonNegativeInt = 0  # number of the first one; each number is a track and a drive of its own
POLICY: Literal["random", "controller"] = (
    "random"  # or "controller": drive with the trained one and noise, the paper's iterative training
)
MODELS = "models"  # where the controller, V and M are (POLICY=controller)
CONTROLLER: Literal["controller", "dream_controller"] = "controller"  # or "dream_controller": whose weights drive
CLUSTER: PossiblyEmpty = ""  # a Ray cluster to work on, "auto" or "host:port" (docs/cluster.md); "": this machine
WORKERS: NonNegativeInt = os.cpu_count()  # processes; on a cluster actors, 0: one for each of its CPUs
DATA = "data"  # rollouts are written to the folder "rollouts" in it

# Random driving. All of the numbers are drawn anew for each rollout or each held action.
ACCELERATE: NonNegativeInt = 20  # frames of full gas at the start, so that the car gets going (tutorial: a few)
HOLD = 10  # frames that an action is held at most: a new one for every frame would average out
ON_THE_MOVE: NonNegativeFloat = (
    0.6  # share of the rollouts that start at a random place of the track, at speed: curves are seen early
)
LEAVING: NonNegativeFloat = (
    0.04  # share that starts far out and drives off the field, which chance alone hardly ever does
)
LOST = 50  # a rollout ends after so many frames on the grass: there is little to learn about roads out there …
WANDERING: NonNegativeFloat = (
    0.3  # … but for this share of the rollouts, so that the grass, and how one gets back, is known too
)
SPEEDS = (10.0, 90.0)  # of those that start on the move, in units/s (a good lap averages 60)

# Driving with the controller.
NOISE = (0.0, 0.1, 0.3, 0.6, 1.0)  # standard deviations of what is added to its actions, in turn
CARS = 32  # driven at once by each worker


def random_rollout(env, seed: int, steps: int) -> dict[str, np.ndarray]:
    """Drive at random on the track of `seed` for at most `steps` frames."""
    random = np.random.default_rng(seed)
    frame, _ = env.reset(seed=seed)
    kind, restless, wanders = random.random(), random.uniform(0.1, 1.0), random.random() < WANDERING
    heavy = random.random()  # the least gas this driver gives: some never lift, and M must know how that ends
    straight_on = kind < LEAVING
    if straight_on:
        x, y = random.uniform(-1, 1, 2)
        out = max(abs(x), abs(y))  # onto the edge of a square, then 40 to 100 units inside the field's border
        x, y = np.array([x, y]) / out * random.uniform(230, 290)
        frame = env.place(x, y, np.arctan2(-x, y) + random.normal(0, 0.3), random.uniform(*SPEEDS))
    elif kind < LEAVING + ON_THE_MOVE:
        _, angle, x, y = env.track[random.integers(len(env.track))]
        frame = env.place(x, y, angle + random.normal(0, 0.15), random.uniform(*SPEEDS))
    obs, actions, rewards, dones = [frame], [], [], []
    held, on_grass, action = 0, 0, np.zeros(3)
    for t in range(steps):
        if held == 0:
            held = random.integers(1, HOLD + 1)
            coasts, brakes = random.random(2) < 0.15
            action = np.array(
                [
                    np.clip(random.normal(0, 0.1 if straight_on else restless), -1, 1),
                    random.uniform(heavy, 1) if straight_on or not coasts else 0.0,
                    random.random() if brakes and not straight_on else 0.0,
                ]
            )
        held -= 1
        if t < ACCELERATE and kind >= LEAVING + ON_THE_MOVE:
            action = np.array([action[0] * 0.2, 1.0, 0.0])
        frame, reward, left, _, _ = env.step(action.astype(np.float32))
        obs.append(frame)
        actions.append(action)
        rewards.append(reward)
        dones.append(left or env.lap_finished)
        on_grass = 0 if any(wheel.tiles for wheel in env.car.wheels) else on_grass + 1
        if dones[-1] or (on_grass >= LOST and not wanders and not straight_on):
            break
    return {
        "obs": np.array(obs, np.uint8),
        "action": np.array(actions, np.float32),
        "reward": np.array(rewards, np.float32),
        "done": np.array(dones, bool),
    }


def prepare_random(steps: int):
    """What a worker of the random policy works with."""
    from models.car_racing import CarRacing64

    return CarRacing64("fast"), steps


def make_random(prepared, seed: int) -> list[tuple[int, int, bytes]]:
    """Make one rollout: its seed, its length in frames, its file."""
    env, steps = prepared
    rollout = random_rollout(env, seed, steps)
    return [(seed, len(rollout["done"]), pack_npz(level=1, **rollout))]


def prepare_controller(steps: int, models: tuple, parameters: np.ndarray):
    """What a worker that drives with a controller works with; `models` is what `worlds.get_weights` returns."""
    from models import worlds

    return worlds.RealWorld(*worlds.build_models(models), CARS, frames=steps), parameters


def make_with_controller(prepared, seeds: list[int]) -> list[tuple[int, int, bytes]]:
    """Drive a rollout for each seed, in lockstep: seeds, lengths in frames, files."""
    world, parameters = prepared
    drives, made = [[] for _ in seeds], []

    def watch(seen) -> None:
        drive = drives[seen.pair]
        drive.append(seen)
        if seen.last is None:
            return
        file = pack_npz(
            level=1,
            obs=np.array([step.frame for step in drive] + [seen.last]),
            action=np.array([step.action for step in drive]),
            reward=np.array([step.reward for step in drive], np.float32),
            done=np.array([step.done for step in drive]),
        )
        made.append((seeds[seen.pair], len(drive), file))
        drive.clear()

    noise = np.array([NOISE[seed % len(NOISE)] for seed in seeds])
    world.drive(np.tile(parameters, (len(seeds), 1)), np.array(seeds), watch, noise)
    return made


def contact_sheet(folder: Path, seeds: list[int], path: Path) -> None:
    """A picture of what was seen: a row for each of eight rollouts, from its first frame to its last."""
    rows = []
    for seed in seeds[:: max(1, len(seeds) // 8)][:8]:
        obs = rollouts.read(folder / f"rollout-{seed}.npz")["obs"]
        rows.append(np.hstack(obs[np.linspace(0, len(obs) - 1, 12).astype(int)]))
    with atomic_write(path) as temporary:
        cv2.imwrite(str(temporary), np.vstack(rows)[..., ::-1])


def main() -> None:
    """Make the rollouts that are missing."""
    if ON_THE_MOVE + LEAVING > 1:
        raise UserError("ON_THE_MOVE and LEAVING are shares of the rollouts: together at most 1")
    if len(ROLLOUT_TRACKS) < FIRST + ROLLOUTS:
        raise UserError(f"there are {len(ROLLOUT_TRACKS):,} track seeds for rollouts: FIRST + ROLLOUTS must stay below")
    if len(SPEEDS) != 2 or SPEEDS[0] > SPEEDS[1]:
        raise UserError(f"SPEEDS={SPEEDS} must be two numbers, the lower one first")
    folder = ensure_dir(Path(DATA) / "rollouts")
    seeds = [ROLLOUT_TRACKS[FIRST + i] for i in range(ROLLOUTS)]
    missing = []
    for seed in seeds:
        path = folder / f"rollout-{seed}.npz"
        if not rollouts.length(path):
            missing.append(seed)
            if path.exists():
                print(f"{path} is damaged and is made again.")
    if not missing:
        print(f"{folder} has all {ROLLOUTS:,} of these rollouts; ROLLOUTS={2 * ROLLOUTS} would add as many again.")
        print("The other constants change nothing about rollouts that are there: delete the folder to make them anew.")
        return
    if POLICY == "random":
        prepare, make, items = (prepare_random, STEPS), make_random, missing
    else:
        from models import worlds

        vae, rnn, parameters = worlds.load(MODELS, CONTROLLER)
        items = [missing[i : i + CARS] for i in range(0, len(missing), CARS)]
        prepare, make = (prepare_controller, STEPS, worlds.get_weights(vae, rnn), parameters), make_with_controller
    rollouts_made = frames = 0
    progress = Progress(len(missing), "rollouts")
    with worker_pool(CLUSTER, min(WORKERS, len(items)), *prepare) as workers:
        print(f"{len(missing):,} of {ROLLOUTS:,} rollouts to make, in {folder}, with {workers.count} workers")
        for made in workers.imap_unordered(make, items):
            for seed, length, file in made:
                write_file(folder / f"rollout-{seed}.npz", file)
                rollouts_made, frames = rollouts_made + 1, frames + length
            progress.update(rollouts_made, f"{frames:,} frames")
    contact_sheet(folder, seeds, Path(DATA) / "rollouts.png")
    print(f"{frames:,} frames in {len(missing):,} rollouts; some of them to look at: {Path(DATA) / 'rollouts.png'}")


if __name__ == "__main__":
    script.run(main, globals())
