"""`make bench`: how fast each part is on this computer, each beside what it is compared with, in one run.

Nothing else should run meanwhile. Sections can be named: `python -m tests.bench env dream`.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import models  # noqa: F401 (quiets TensorFlow before it is imported)
from pipeline.files import suppress_stderr
from pipeline.workers import WorkerPool

import numpy as np

CORES = os.cpu_count()
EPISODES = 20  # whole ones, each on a new track, for each environment
BENCH_TRACKS = range(3_000, 4_000)  # of no other use


def row(name: str, per_second: float, than: float | None = None) -> None:
    """A line of the table; `than` is what the ratio is taken to."""
    ratio = f"{per_second / than:>9,.1f}×" if than else ""
    print(f"  {name:<66}{per_second:>12,.1f}/s{ratio}", flush=True)


def drive_env(env, episodes: int, first: int = 0) -> float:
    """Frames per second over whole episodes on new tracks, resets included; the driver's own time is not counted."""
    from tests.driver import Driver

    frames = seconds = 0
    for seed in BENCH_TRACKS[first : first + episodes]:
        start = time.perf_counter()
        env.reset(seed=seed)
        seconds += time.perf_counter() - start
        driver = Driver(env.unwrapped, seed, lively=0.3)
        over = False
        while not over:
            action = driver()
            start = time.perf_counter()
            _, _, left, stopped, _ = env.step(action)
            seconds += time.perf_counter() - start
            over = left or stopped
            frames += 1
    return frames / seconds


def bench_env() -> None:
    """gym as it is, ours, the physics alone, envpool where it is installed; one core each."""
    from models.car_racing import CarRacing64

    import cv2

    with suppress_stderr():
        import gym

        stock = gym.make("CarRacing-v2", disable_env_checker=True)
    cv2.setNumThreads(1)

    class Physics(CarRacing64):
        def _create_track(self):
            return super(CarRacing64, self)._create_track()

        def _render(self, mode):
            return None

    print(f"\nEnvironment, one core, {EPISODES} whole episodes on new tracks, resets included (gym stock: 2 episodes)")
    base = drive_env(stock, 2)
    row("gym 0.26.2 CarRacing-v2", base, base)
    row("CarRacing64('fast'), from the process's first frame on", drive_env(CarRacing64("fast"), EPISODES), base)
    row("the same game without any drawing: the limit", drive_env(Physics(), EPISODES), base)
    try:
        import envpool
    except ImportError:
        print("  envpool's CarRacing-v2 in C++: not installed (pip install envpool)")
        return
    for cars in (1, 8):
        pool = envpool.make("CarRacing-v2", env_type="gym", num_envs=cars, num_threads=1)
        pool.reset()
        action = np.tile(np.array([0.0, 0.1, 0.0], np.float32), (cars, 1))
        start = time.perf_counter()
        for _ in range(1_000):
            pool.step(action)
        row(f"envpool's CarRacing-v2 in C++, {cars} at once", 1_000 * cars / (time.perf_counter() - start), base)


def prepare_world(cars: int):
    """A worker's world with V and M as they are made: the speed does not depend on what they have learnt."""
    from models import worlds

    return {"real": worlds.RealWorld(worlds.VAE(), worlds.MDNRNN(), cars)}


def prepare_dream(dreams: int):
    """The same for the dream. Its done head is told never to end one."""
    from models import worlds

    random = np.random.default_rng(0)
    rnn = worlds.MDNRNN()
    rnn.done.bias.assign([-20.0])
    starts = {"mu": random.normal(size=(64, 16, 32)), "action": random.random((64, 16, 3))}
    return {"dream": worlds.DreamWorld(rnn, starts, dreams)}


def drive_world(prepare, size: int, name: str, tracks: int) -> float:
    """Frames per second of a generation of 32 controllers that drive for their 1,000 frames, with all cores."""
    from models import controller, evolution

    # Turning slowly with a little gas: nobody leaves the field, so that every drive has its full length.
    random = np.random.default_rng(0)
    parameters = random.normal(0, 0.01, (32, controller.PARAMETERS)).astype(np.float32)
    parameters[:, :3] += (0.3, -1.5, 0.0)
    with WorkerPool(CORES, prepare, size) as workers:
        evolution.drive_all(workers, name, parameters, np.array(BENCH_TRACKS[:1]))
        best = 0.0
        for _ in range(2):
            start = time.perf_counter()
            _, frames = evolution.drive_all(workers, name, parameters, np.array(BENCH_TRACKS[:tracks]))
            best = max(best, frames / (time.perf_counter() - start))
    return best


def bench_agent() -> None:
    """The tutorial's way (one car, predict for each frame), and RealWorld."""
    from models import controller, worlds

    with suppress_stderr():
        import gym

        env = gym.make("CarRacing-v2", disable_env_checker=True)
    import cv2
    import keras

    print(f"\nAgent, {CORES} cores: environment, V, M and C for each frame")
    vae, rnn = worlds.VAE("float32"), worlds.MDNRNN()
    pictures = keras.Input((64, 64, 3), dtype="uint8")
    see = keras.Model(pictures, keras.layers.Lambda(lambda x: vae.encode(x)[0], output_shape=(32,))(pictures))
    latent, h, c = keras.Input((35,)), keras.Input((256,)), keras.Input((256,))
    remember = keras.Model(
        [latent, h, c],
        keras.layers.Lambda(
            lambda x: rnn.advance(x[0][:, :32], x[0][:, 32:], (x[1], x[2])), output_shape=[(256,), (256,)]
        )([latent, h, c]),
    )
    frame, _ = env.reset(seed=0)
    state = [np.zeros((1, 256), np.float32)] * 2
    parameters = np.zeros((1, controller.PARAMETERS), np.float32)
    steps, start = 0, 0.0
    while steps < 110:
        if steps == 10:
            start = time.perf_counter()
        picture = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)
        z = see.predict(picture[None], verbose=0)
        action = controller.act(parameters, np.concatenate([z, state[0]], 1))
        state = remember.predict([np.concatenate([z, action], 1), *state], verbose=0)
        frame = env.step(action[0].astype(float))[0]
        steps += 1
    base = 100 / (time.perf_counter() - start)
    row("the tutorial's way: one car, stock gym, predict on V and M", base, base)
    row(f"RealWorld, {isa()}", drive_world(prepare_world, 32, "real", 4), base)
    if isa() != "AVX2":
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # the workers inherit it
        row("RealWorld, held to AVX2 (ONEDNN_MAX_CPU_ISA=AVX2)", drive_world(prepare_world, 32, "real", 4), base)
        del os.environ["ONEDNN_MAX_CPU_ISA"]


def bench_dream() -> None:
    """DreamWorld with all cores."""
    print(f"\nDream, {CORES} cores")
    row("DreamWorld, dreams of 400 frames, 256 at once in each worker", drive_world(prepare_dream, 256, "dream", 16))


def prepare_short_drives(cars: int):
    """A world whose drives end after 312 frames: 32 of them are 10,000 steps."""
    from models import worlds

    return worlds.RealWorld(worlds.VAE(), worlds.MDNRNN(), cars, frames=312)


def memory_after(world, calls: range) -> list[float]:
    """This worker's peak memory in GB after each of `calls`, each 32 random controllers on 8 new tracks."""
    from models import controller

    peaks = []
    for call in calls:
        parameters = np.random.default_rng(call).normal(0, 0.1, (32, controller.PARAMETERS)).astype(np.float32)
        world.drive(parameters, np.repeat(BENCH_TRACKS[8 * call : 8 * call + 8], 4))
        unit = 2**30 if sys.platform == "darwin" else 2**20
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    return peaks


def bench_memory() -> None:
    """What a worker of 05 takes."""

    with WorkerPool(1, prepare_short_drives, 32) as workers:
        peaks = next(workers.imap_unordered(memory_after, [range(5)]))
    growth = 100 * (peaks[-1] / peaks[0] - 1)
    print("\nMemory of a worker with 32 cars")
    print(f"  {peaks[0]:.2f} GB at most after 10,000 steps, {peaks[-1]:.2f} after 50,000 ({growth:+.1f} %)", flush=True)


def isa() -> str:
    """The widest instruction set that TensorFlow's convolutions and matrix products can use here."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return os.uname().machine
    names = {"amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if flag in flags), "SSE")


def bench_training() -> None:
    """Whole scripts: 01 with the saving, the training steps of 02 and 04 as they say it themselves."""
    print(f"\nScripts, {CORES} cores, their own figures")
    with tempfile.TemporaryDirectory() as folder:
        place = [f"DATA={folder}", f"MODELS={folder}"]
        steps = (
            ("01_generate_data.py", ["ROLLOUTS=400"]),
            ("02_train_vae.py", ["EPOCHS=1"]),
            ("03_series.py", []),
            ("04_train_rnn.py", ["EPOCHS=1"]),
        )
        for script, constants in steps:
            start = time.perf_counter()
            done = subprocess.run([sys.executable, script, *place, *constants], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            told = [line for line in done.stdout.splitlines() if "/s" in line][-1]
            print(f"  {script:<22} {told}  ({time.perf_counter() - start:.0f} s in all)", flush=True)


def bench_cartpole() -> None:
    """DQN: whole runs, and the tutorial's update rule."""
    from tools import bench_cartpole

    print("\nCartPole")
    bench_cartpole.main()


SECTIONS = {
    "env": bench_env,
    "agent": bench_agent,
    "dream": bench_dream,
    "memory": bench_memory,
    "training": bench_training,
    "cartpole": bench_cartpole,
}

if __name__ == "__main__":
    print(f"{CORES} cores, {isa()}, Python {sys.version.split()[0]}")
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
