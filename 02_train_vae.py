"""Step 5 of the tutorial: train V, the autoencoder that turns a frame into 32 numbers z and back.

Reads   DATA/rollouts/ (01)
Writes  MODELS/vae.weights.h5 (the best so far on held-out rollouts), MODELS/vae.checkpoint.npz,
        DATA/vae_loss.png, DATA/vae_reconstructions.png, DATA/vae_latents.png
Takes   about 20 minutes on 2 cores with bfloat16 (AMX), about 40 without

The loss is `VAE.loss_terms` in models/vae.py. Stopped at any moment, the same command continues from the last epoch.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from pipeline import UserError, script
from pipeline.script import NonNegativeFloat, NonNegativeInt

EPOCHS = 40  # paper: one pass over 10,000 rollouts; raise it to train a finished run further
FRAMES_PER_EPOCH = 30_000  # a random share of all frames
BATCH_SIZE = 100  # frames (paper's code: 100)
LEARNING_RATE = 1e-3  # Adam's (paper's code: 1e-4, for many more steps)
LEARNING_RATE_DECAY = 0.95  # factor of the learning rate from one epoch to the next
KL_TOLERANCE: NonNegativeFloat = 0.5  # free bits: KL that costs nothing, in nats per latent (paper, tutorial: 0.5)
SHUFFLE_BUFFER = 8_192  # frames that are shuffled at a time, 12 KB each: neighbours in a rollout look alike
VALIDATION_FRAMES = 2_000  # at most, from held-out rollouts
FINE_TUNE = False  # True: start from the weights in MODELS, on the rollouts that are there now
SEED: NonNegativeInt = 1  # of all random numbers here
DATA = "data"  # the folder of recordings, histories and pictures
MODELS = "models"  # the folder of the weights

ACTIVE_STD = 0.3  # a latent is active if its mean varies by more over the frames (standard deviation)

if __name__ == "__main__":
    script.check(globals())  # a wrong constant is reported before TensorFlow is imported, which takes seconds

from models import weights
from models.vae import VAE, kl_divergence, to_uint8
from pipeline import plots, rollouts
from pipeline.training import ResumableTraining, keras_seed

import keras
import numpy as np
import tensorflow as tf


def main() -> None:
    """Train V, keep the best weights, draw what it sees."""
    paths = rollouts.find(Path(DATA, "rollouts"))
    held_out = rollouts.held_out(path.name for path in paths)
    training_paths = [path for path in paths if path.name not in held_out]
    skipped: set[Path] = set()  # damaged rollouts
    validation_frames = rollouts.some_frames(
        [path for path in paths if path.name in held_out], VALIDATION_FRAMES, skipped
    )
    validation = validation_batches(validation_frames)

    keras.utils.set_random_seed(keras_seed(SEED))
    vae = VAE()
    vae.compile(keras.optimizers.Adam(LEARNING_RATE), KL_TOLERANCE)
    weights_path = Path(MODELS, "vae.weights.h5")
    run = ResumableTraining(
        Path(MODELS, "vae.checkpoint.npz"),
        weights_path,
        Path(__file__).name,
        script.settings(globals()),
        rollouts.summary(paths),
        save_weights=lambda: weights.save(weights_path, vae),
        batch_size=BATCH_SIZE,
    )
    done = run.restore(vae)
    if not done and FINE_TUNE:
        weights.load(weights_path, vae)
        run.start_from(vae, validation)
    if done >= EPOCHS:
        print(f"{weights_path} is trained: {done} epochs. EPOCHS={2 * done} trains it further")
    else:
        print(f"{len(training_paths)} rollouts to learn from, {len(held_out)} held out; {done} of {EPOCHS} epochs done")
        if next(rollouts.read_all(training_paths, skipped), None) is None:
            raise UserError("none of the rollouts to learn from can be read: run 01_generate_data.py")
        vae.fit(
            training_batches(training_paths, done + 1, skipped),
            steps_per_epoch=steps_per_epoch(),
            initial_epoch=done,
            epochs=EPOCHS,
            validation_data=validation,
            callbacks=[keras.callbacks.LearningRateScheduler(learning_rate), run],
            shuffle=False,  # already shuffled
            verbose=0,
        )

    weights.load(weights_path, vae)
    kl, active = latent_usage(vae, validation_frames)
    print(f"V of epoch {run.best['epoch']}: squared error {run.best['val_squared_error']:.1f}, {active} active latents")
    draw_loss(run.history)
    draw_reconstructions(vae, validation_frames)
    draw_latents(kl, active)


def learning_rate(epoch: int, _: float = 0.0) -> float:
    """The learning rate of an epoch, counted from 0."""
    return LEARNING_RATE * LEARNING_RATE_DECAY**epoch


def steps_per_epoch() -> int:
    """Batches in an epoch."""
    return max(FRAMES_PER_EPOCH // BATCH_SIZE, 1)


def validation_batches(frames: np.ndarray) -> tf.data.Dataset:
    """Batches of (frames, seed) as `VAE.fit` wants them, always with the same noise."""
    starts = range(0, len(frames), BATCH_SIZE)
    batches = tf.data.Dataset.from_generator(
        lambda: ((frames[start : start + BATCH_SIZE], (0, start)) for start in starts), output_signature=VAE.batch_spec
    )
    return batches.apply(tf.data.experimental.assert_cardinality(len(starts)))


def training_batches(paths: list[Path], first: int, skipped: set[Path]) -> Iterator[tuple[tf.Tensor, np.ndarray]]:
    """Batches of (frames, seed), from epoch `first` on without end.

    Those of an epoch depend on SEED and the epoch alone, so a resumed run sees the same.
    """
    for epoch in itertools.count(first):
        stream = tf.data.Dataset.from_generator(
            lambda epoch=epoch: rollouts.frame_stream(paths, np.random.default_rng((SEED, epoch)), skipped),
            output_signature=VAE.batch_spec[0],
        )
        stream = stream.unbatch().shuffle(SHUFFLE_BUFFER, seed=keras_seed(SEED + epoch))
        stream = stream.batch(BATCH_SIZE, drop_remainder=True)
        for step, frames in enumerate(stream.take(steps_per_epoch()).prefetch(2), 1):
            yield frames, np.array((epoch, step), np.int32)


def latent_usage(vae: VAE, frames: np.ndarray) -> tuple[np.ndarray, int]:
    """The mean KL divergence of each latent in nats (32,), and how many latents are active."""
    parts = [vae.encode(frames[start : start + BATCH_SIZE]) for start in range(0, len(frames), BATCH_SIZE)]
    mu, logvar = (np.concatenate(part) for part in zip(*parts))
    return kl_divergence(mu, logvar).numpy().mean(0), int(np.sum(mu.std(0) > ACTIVE_STD))


def draw_loss(history: list[dict[str, float]]) -> None:
    """The loss by epoch, as PNG."""
    path = Path(DATA, "vae_loss.png")
    with plots.figure(path, "V's loss") as axes:
        plots.by_epoch(axes, history, {"loss": "training", "val_loss": "held-out rollouts"})
        axes.set(xlabel=f"epoch of {FRAMES_PER_EPOCH:,} frames", ylabel="squared error + KL, per frame", yscale="log")
    print(f"drawn: {path}")


def draw_reconstructions(vae: VAE, frames: np.ndarray) -> None:
    """Held-out frames above their reconstructions, as PNG."""
    path = Path(DATA, "vae_reconstructions.png")
    shown = frames[np.linspace(0, len(frames) - 1, 12).astype(int)]
    rows = {"frame": shown, "reconstruction": to_uint8(vae(shown)).numpy()}
    plots.image_grid(path, "Held-out frames, and what V makes of them through 32 numbers", rows)
    print(f"drawn: {path}")


def draw_latents(kl: np.ndarray, active: int) -> None:
    """How much each latent carries, as PNG."""
    path = Path(DATA, "vae_latents.png")
    with plots.figure(
        path, f"{active} of {len(kl)} latents are active; the others say nothing about the frame"
    ) as axes:
        axes.bar(range(1, len(kl) + 1), np.sort(kl)[::-1])
        axes.set(xlabel="latents, by KL", ylabel="KL to N(0, 1), nats")
    print(f"drawn: {path}")


if __name__ == "__main__":
    script.run(main, globals())
