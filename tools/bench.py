"""`make bench`: how fast each part is on this computer, beside its limits and the alternatives, as a Markdown table.

Nothing else should run meanwhile. Every figure is a median of at least three, with the least and the most. It takes
about 15 minutes. Sections can be named: `python -m tools.bench env agent`. envpool is installed for this run only.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

from pipeline.files import suppress_stderr
from pipeline.workers import WorkerPool
from tools.bench_agent import bench_agent, bench_dream
from tools.bench_row import BENCH_TRACKS, NUM_ENVS, TRAINED, head, row

import numpy as np

ENVPOOL = """
import sys, time, numpy as np, envpool
for cars in (1, 8):
    pool = envpool.make("CarRacing-v2", env_type="gymnasium", num_envs=cars, num_threads=1)
    pool.reset()
    action = np.tile(np.array([0.0, 0.1, 0.0], np.float32), (cars, 1))
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(500):
            pool.step(action)
        print(cars, 500 * cars / (time.perf_counter() - start), envpool.__version__)
"""


def drive_env(env, tracks: range) -> float:
    """Steps per second over whole episodes on new tracks, resets included; the driver's own time is not counted."""
    from tools.driver import Driver

    steps = seconds = 0
    for seed in tracks:
        start = time.perf_counter()
        env.reset(seed=seed)
        seconds += time.perf_counter() - start
        driver = Driver(env.unwrapped, seed, lively=0.3)
        over = False
        while not over:
            action = driver()
            start = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            seconds += time.perf_counter() - start
            over = terminated or truncated
            steps += 1
    return steps / seconds


def bench_env() -> None:
    """gym as it is, ours, the physics alone, envpool; one core each."""
    from models.car_racing import CarRacing64

    import cv2

    with suppress_stderr():
        import gym

        stock = gym.make("CarRacing-v2", disable_env_checker=True)
    cv2.setNumThreads(1)

    class Physics(CarRacing64):
        def _start_drawing(self) -> None:
            pass

        def _render(self, mode: str) -> None:
            pass

    base = row("gym 0.26.2 CarRacing-v2, one core", [drive_env(stock, BENCH_TRACKS[i : i + 1]) for i in range(3)])
    for name, env in (
        ('`CarRacing64("fast")`, one core', CarRacing64("fast")),
        ("the same game without drawing: its limit", Physics()),
    ):
        drive_env(env, BENCH_TRACKS[:3])  # draws the sprites
        row(name, [drive_env(env, BENCH_TRACKS[i : i + 6]) for i in (6, 12, 18, 24, 30)], base)
    bench_envpool(base)


def bench_envpool(base: float) -> None:
    """envpool's CarRacing-v2 in C++, its current release, in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, "envpool"]
        done = subprocess.run(install, capture_output=True, text=True)
        if not done.returncode:
            env = os.environ | {"PYTHONPATH": folder}
            done = subprocess.run([sys.executable, "-c", ENVPOOL], capture_output=True, text=True, env=env)
    if done.returncode:
        print(f"| envpool: {done.stderr.strip().splitlines()[-1][:80]} | – | | |")
        return
    lines = [line.split() for line in done.stdout.splitlines()]
    for cars in ("1", "8"):
        rates = [float(rate) for number, rate, _ in lines if number == cars][1:]
        row(f"envpool {lines[0][2]}, C++, 96×96 pictures, {cars} at once, one core", rates, base)


def memory(worlds: dict, calls: range) -> list[str]:
    """This worker's memory after each of `calls`: 32 random controllers on 8 new tracks, 312 steps each."""
    from models import controller

    world = worlds["real"]
    world.max_steps = 312
    found = []
    for call in calls:
        parameters = np.random.default_rng(call).normal(0, 0.1, (32, controller.PARAMETERS)).astype(np.float32)
        world.drive(parameters, np.repeat(BENCH_TRACKS[8 * call : 8 * call + 8], 4))
        with open("/proc/self/status") as status:
            kilobytes = {name: int(value.split()[0]) for name, value in re.findall(r"(\w+):\s+(\d+ kB)", status.read())}
        now, peak, private = (kilobytes[name] / 1024 for name in ("VmRSS", "VmHWM", "RssAnon"))
        found.append(f"{now:,.0f} MB ({peak:,.0f} at its peak; {private:,.0f} of its own, the rest is shared code)")
    return found


def bench_memory() -> None:
    """What a worker of 05 takes."""
    if sys.platform != "linux":
        return
    from models import loading, worlds

    models = loading.get_weights(*loading.load_models(TRAINED))
    with WorkerPool(1, worlds.make_real_world, models, NUM_ENVS, 0) as workers:
        found = next(workers.imap_unordered(memory, [range(10)]))
    print(f"\nA worker with {NUM_ENVS} cars: {found[0]} after 10,000 steps, {found[-1]} after 100,000.\n")


def run_script(script: str, folder: str, *constants: str) -> tuple[str, float]:
    """What a script prints, and how many seconds it takes."""
    start = time.perf_counter()
    command = [sys.executable, script, f"DATA={folder}", f"MODELS={folder}", *constants]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout, time.perf_counter() - start


def bench_data() -> None:
    """01 with the saving and its start."""
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            output, seconds = run_script("01_generate_data.py", folder, "ROLLOUTS=400", f"FIRST_ROLLOUT={400 * i}")
            rates.append(int(re.search(r"([\d,]+) steps in", output)[1].replace(",", "")) / seconds)
    row("01: random rollouts, saved frames, start included", rates)


def bench_training() -> None:
    """The training of 02 and 04, three epochs each, as they say it themselves."""
    epoch = r"epoch \d+/\d+: ([\d,]+)/\1 frames, ([\d,.]+)/s"
    with tempfile.TemporaryDirectory() as folder:
        run_script("01_generate_data.py", folder, "ROLLOUTS=200")
        for script, name, frames in (
            ("02_train_vae.py", "02: V's training, frames", 7_500),
            ("04_train_rnn.py", "04: M's training, frames", 100_000),
        ):
            output, _ = run_script(script, folder, "EPOCHS=3", f"FRAMES_PER_EPOCH={frames}")
            row(name, [float(rate.replace(",", "")) for _, rate in re.findall(epoch, output)])
            if script.startswith("02"):
                run_script("03_series.py", folder)


def bench_cartpole() -> None:
    """DQN: whole runs, and the tutorial's update rule."""
    from tools import bench_cartpole

    print("\nCartPole")
    bench_cartpole.main()


SECTIONS = {
    "env": bench_env,
    "agent": bench_agent,
    "dream": bench_dream,
    "data": bench_data,
    "training": bench_training,
    "memory": bench_memory,
    "cartpole": bench_cartpole,
}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(SECTIONS)
    if unknown := set(chosen) - SECTIONS.keys():
        sys.exit(f"{', '.join(sorted(unknown))}: no section; there are {', '.join(SECTIONS)}")
    print(head())
    for section in chosen:
        SECTIONS[section]()
