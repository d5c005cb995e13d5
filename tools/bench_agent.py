"""The sections "agent" and "dream" of `make bench`: everything that V, M and C drive in."""

import os
import time
from collections.abc import Callable, Iterator

from pipeline.files import suppress_stderr
from pipeline.workers import WorkerPool
from tools.bench_row import BENCH_TRACKS, CORES, NUM_ENVS, TRAINED, isa, row

import numpy as np


def make_tutorials_way(folder: str) -> Callable[[int], float]:
    """The tutorial's way to drive: one car of stock gym, `predict` on V and M for each frame."""
    from models import controller, loading

    import cv2
    import keras

    with suppress_stderr():
        import gym

        env = gym.make("CarRacing-v2", disable_env_checker=True)
    vae, rnn, parameters = loading.load(folder)
    images = keras.Input((64, 64, 3), dtype="uint8")
    see = keras.Model(images, keras.layers.Lambda(lambda x: vae.encode(x)[0], output_shape=(32,))(images))
    inputs = keras.Input((32,)), keras.Input((3,)), keras.Input((256,)), keras.Input((256,))
    update = keras.layers.Lambda(lambda x: rnn.update_state(x[0], x[1], (x[2], x[3])), output_shape=[(256,), (256,)])
    remember = keras.Model(inputs, update(inputs))

    def drive(steps: int) -> float:
        frame, _ = env.reset(seed=BENCH_TRACKS[0])
        state = [np.zeros((1, 256), np.float32)] * 2
        start = time.perf_counter()
        for _ in range(steps):
            z = see.predict(cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)[None], verbose=0)
            action = controller.act(parameters[None], np.concatenate([z, state[0]], 1))
            state = remember.predict([z, action, *state], verbose=0)
            frame = env.step(action[0].astype(float))[0]
        return steps / (time.perf_counter() - start)

    return drive


def drive_tutorials_way(drive: Callable[[int], float], indices: Iterator[int], steps: int) -> float:
    """One process's share."""
    return drive(steps)


def make_matrix_product(folder: str) -> Callable[[], float]:
    """Frames per second that V's encoder could do at the rate of a large matrix product of the same dtype."""
    from models.vae import VAE

    import tensorflow as tf

    vae = VAE()
    products = 0
    size = 64
    for layer in vae.convolutions:
        size = (size - layer.kernel_size[0]) // 2 + 1
        products += size * size * layer.kernel.numpy().size
    a = tf.ones((1024, 1024), vae.compute_dtype)
    multiply = tf.function(lambda x: tf.matmul(x, a))

    def rate() -> float:
        multiply(a)
        start = time.perf_counter()
        for _ in range(50):
            result = multiply(a)
        result.numpy()
        return 50 * 1024**3 / (time.perf_counter() - start) / products

    return rate


def multiply_matrices(rate: Callable[[], float], indices: Iterator[int]) -> float:
    """One process's share."""
    return rate()


def make_world(folder: str) -> dict:
    """A worker's world with the shipped V and M."""
    from models import loading, worlds

    vae, rnn = loading.load_models(folder)
    return worlds.make_real_world(loading.get_weights(vae, rnn), NUM_ENVS, 0)


def drive_world() -> list[float]:
    """Steps per second of the shipped controller, 32 cars in each worker; each time 32 other tracks, all new."""
    from models import evolution, loading

    _, _, parameters = loading.load(TRAINED)
    rates = []
    with WorkerPool(CORES, make_world, TRAINED) as workers:
        evolution.evaluate(workers, "real", np.tile(parameters, (CORES, 1)), np.array(BENCH_TRACKS[900:908]))
        for i in range(3):
            tracks = np.array(BENCH_TRACKS[NUM_ENVS * i : NUM_ENVS * (i + 1)])
            start = time.perf_counter()
            _, steps = evolution.evaluate(workers, "real", np.tile(parameters, (CORES, 1)), tracks)
            rates.append(steps / (time.perf_counter() - start))
    return rates


def bench_agent() -> None:
    """The tutorial's way with as many processes as we have workers, RealWorld, and what V allows."""
    with WorkerPool(CORES, make_tutorials_way, TRAINED) as workers:
        workers.run_on_all(drive_tutorials_way, CORES, 5)
        rates = [sum(workers.run_on_all(drive_tutorials_way, CORES, 50)) for _ in range(3)]
    base = row(f"the tutorial's way to drive: {CORES} processes, a car and `predict` for each frame in each", rates)
    row(f"`RealWorld`, the shipped controller: {CORES} workers, {NUM_ENVS} cars in each", drive_world(), base)
    with WorkerPool(CORES, make_matrix_product, TRAINED) as workers:
        rates = [sum(workers.run_on_all(multiply_matrices, CORES)) for _ in range(5)]
    row("V's arithmetic alone at the rate of a matrix product here: the limit", rates, base)
    if isa() in ("AMX", "AVX-512"):
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # the workers inherit it
        row("`RealWorld` held to AVX2, as on most laptops (`ONEDNN_MAX_CPU_ISA=AVX2`)", drive_world(), base)
        del os.environ["ONEDNN_MAX_CPU_ISA"]


def make_dreams(dreams: int) -> dict:
    """A worker's dream. Its M never ends one."""
    from models import worlds
    from models.rnn import MDNRNN

    random = np.random.default_rng(0)
    rnn = MDNRNN()
    rnn.done.bias.assign([-20.0])
    starts = {"mu": random.normal(size=(64, 16, 32)), "action": random.random((64, 16, 3))}
    return {"dream": worlds.DreamWorld(rnn, starts, dreams)}


def bench_dream() -> None:
    """DreamWorld with all cores."""
    from models import controller, evolution

    parameters = np.random.default_rng(0).normal(0, 0.01, (32, controller.PARAMETERS)).astype(np.float32)
    rates = []
    with WorkerPool(CORES, make_dreams, 64) as workers:
        for _ in range(4):
            start = time.perf_counter()
            _, steps = evolution.evaluate(workers, "dream", parameters, np.array(BENCH_TRACKS[:8]))
            rates.append(steps / (time.perf_counter() - start))
    row(f"`DreamWorld`: {CORES} workers, 64 dreams at once in each, 400 steps long", rates[1:])
