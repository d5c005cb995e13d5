"""Step 5 of the tutorial: train V, the autoencoder that turns a frame into 32 numbers z and back.

Reads   DATA/rollouts/ (01)
Writes  MODELS/vae.weights.h5 (the best so far on held-out rollouts), MODELS/vae.checkpoint.npz,
        DATA/vae_loss.png, DATA/vae_reconstructions.png, DATA/vae_latents.png
Takes   about 20 minutes on 2 cores with bfloat16 (AMX), about 40 without

The loss is the paper's: squared error summed over the picture, plus the KL divergence summed over the latents but
never less than its tolerance, so that V is not paid for forgetting what it needs. Stopped at any moment, the same
command goes on from the last epoch.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import UserError, rollouts, script
from pipeline.files import suppress_stderr
from pipeline.progress import Progress
from pipeline.script import NonNegativeFloat
from pipeline.training import Checkpoint

import numpy as np

EPOCHS = 40  # the paper: one pass over 10,000 rollouts; a finished run goes on when this is raised
FRAMES_PER_EPOCH = 30_000  # a random share of the frames: what a kill loses at most
BATCH = 100  # frames a step; the paper's code: 100
LEARNING_RATE = 1e-3  # Adam's; the paper's code: 1e-4, for many more steps
LEARNING_RATE_DECAY = 0.95  # the learning rate's factor from one epoch to the next
KL_TOLERANCE: NonNegativeFloat = 0.5  # nats a latent that cost nothing (the paper's and the tutorial's)
SHUFFLE = 8_192  # frames that are mixed at a time, 12 KB each: neighbours in a drive look alike
HELD_OUT_FRAMES = 2_000  # at most, from rollouts that are never trained on
GO_ON = False  # True: start from the weights that are there, with the rollouts that are there now
SEED = 1
DATA = "data"
MODELS = "models"


def main() -> None:
    """Train V, keep the best weights, draw what it sees."""
    paths = rollouts.find(Path(DATA, "rollouts"))
    held_out = rollouts.held_out(path.name for path in paths)
    training_paths = [path for path in paths if path.name not in held_out]
    skipped = set()  # rollouts that turned out to be damaged
    held_out_frames = some_frames([path for path in paths if path.name in held_out], skipped)

    with suppress_stderr():
        import keras
        import tensorflow as tf

    from models import weights
    from models.vae import LATENTS, PICTURE, VAE, kl, sample, squared_error

    keras.utils.set_random_seed(SEED)
    vae = VAE()
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build(vae.trainable_variables)

    def losses(frames, seed):
        """Each frame's squared error, KL above its tolerance, KL of each latent, and mu."""
        mu, logvar = vae.encode(frames)
        z = sample(mu, logvar, tf.random.stateless_normal(tf.shape(mu), seed))
        divergence = kl(mu, logvar)
        kept = tf.maximum(tf.reduce_sum(divergence, -1), KL_TOLERANCE * LATENTS)
        return squared_error(frames, vae.picture(z)), kept, divergence, mu

    @tf.function
    def train_step(frames, seed):
        with tf.GradientTape() as tape:
            error, kept, *_ = losses(frames, seed)
            loss = tf.reduce_mean(error + kept)
        optimizer.apply(tape.gradient(loss, vae.trainable_variables), vae.trainable_variables)
        return loss

    held_out_step = tf.function(losses)

    def evaluate():
        """V on the held-out frames, always with the same noise."""
        starts = range(0, len(held_out_frames), BATCH)
        parts = [held_out_step(held_out_frames[start : start + BATCH], tf.constant((0, start))) for start in starts]
        error, kept, divergence, mu = (np.concatenate(part) for part in zip(*parts))
        return {
            "loss": float(np.mean(error + kept)),
            "error": float(np.mean(error)),
            "latents": [round(float(nats), 4) for nats in divergence.mean(0)],
            "active": int(np.sum(mu.std(0) > 0.3)),
        }

    def batches(epoch):
        """The batches of an epoch. They depend on SEED and the epoch alone: a resumed run sees the same."""
        stream = tf.data.Dataset.from_generator(
            lambda: endless_frames(training_paths, np.random.default_rng((SEED, epoch)), skipped),
            output_signature=tf.TensorSpec((None, *PICTURE), tf.uint8),
        )
        stream = stream.unbatch().shuffle(SHUFFLE, seed=SEED + epoch).batch(BATCH, drop_remainder=True)
        return stream.take(steps).prefetch(2)

    weights_path = Path(MODELS, "vae.weights.h5")
    checkpoint = Checkpoint(Path(MODELS, "vae.checkpoint.npz"), weights_path, globals(), rollouts.summary(paths))
    history = checkpoint.resume(vae, optimizer) or []
    if not history and GO_ON:
        weights.load(weights_path, vae, "02_train_vae.py with GO_ON=False")
        history.append({"epoch": 0, "train": None, **evaluate()})  # what further training has to beat
    done = history[-1]["epoch"] if history else 0
    if done >= EPOCHS:
        print(f"{weights_path} is trained: {done} epochs. EPOCHS={2 * done} trains on; GO_ON=True starts again from it")
    else:
        print(f"{len(training_paths)} rollouts to learn from, {len(held_out)} held out; {done} of {EPOCHS} epochs done")

    steps = max(FRAMES_PER_EPOCH // BATCH, 1)
    for epoch in range(done + 1, EPOCHS + 1):
        optimizer.learning_rate.assign(LEARNING_RATE * LEARNING_RATE_DECAY ** (epoch - 1))
        progress = Progress(steps * BATCH, "pictures", f"epoch {epoch}/{EPOCHS}: ")
        losses_seen = []
        for step, frames in enumerate(batches(epoch), 1):
            losses_seen.append(float(train_step(frames, tf.constant((epoch, step)))))
            if not np.isfinite(losses_seen[-1]):
                raise UserError(
                    f"the loss is {losses_seen[-1]} at step {step} of epoch {epoch}; the last good weights are kept. "
                    "Try a lower LEARNING_RATE"
                )
            progress.update(step * BATCH, f"loss {np.mean(losses_seen[-50:]):.1f}")
        if not losses_seen:
            raise UserError("none of the rollouts to learn from can be read: run 01_generate_data.py")

        history.append({"epoch": epoch, "train": float(np.mean(losses_seen)), **evaluate()})
        now = history[-1]
        best = now["loss"] <= min(entry["loss"] for entry in history)
        if best:
            weights.save(weights_path, vae)
        checkpoint.save(history, vae, optimizer)
        print(
            f"epoch {epoch}: loss {now['train']:.1f}, held out {now['loss']:.1f}: squared error {now['error']:.1f}, "
            f"KL {sum(now['latents']):.1f}, {now['active']} active latents{', the best so far' if best else ''}"
        )

    weights.load(weights_path, vae, Path(__file__).name)
    best = min(history, key=lambda entry: entry["loss"])
    print(f"V of epoch {best['epoch']}: squared error {best['error']:.1f} a picture, {best['active']} active latents")
    draw(history, best, held_out_frames, lambda frames: vae.decode(vae.encode(frames)[0]).numpy())


def some_frames(paths: list[Path], skipped: set[Path]) -> np.ndarray:
    """At most HELD_OUT_FRAMES frames uint8 (n, 64, 64, 3), spread over at most 50 of the rollouts."""
    paths = paths[:: -(-len(paths) // 50)]
    each = max(HELD_OUT_FRAMES // len(paths), 1)
    parts = []
    for _, rollout in rollouts.read_all(paths, skipped):
        obs = rollout["obs"]
        parts.append(obs[np.unique(np.linspace(0, len(obs) - 1, each).astype(int))])
    if not parts:
        raise UserError("none of the held-out rollouts can be read: run 01_generate_data.py")
    return np.concatenate(parts)


def endless_frames(paths: list[Path], random: np.random.Generator, skipped: set[Path]) -> Iterator[np.ndarray]:
    """The frames of one rollout after the other in random order, uint8 (T+1, 64, 64, 3); ends if none can be read."""
    while True:
        found = False
        for _, rollout in rollouts.read_all([paths[place] for place in random.permutation(len(paths))], skipped):
            found = True
            yield rollout["obs"]
        if not found:
            return


def draw(history: list[dict], best: dict, frames: np.ndarray, reconstruct: Callable) -> None:
    """The loss curve, held-out frames above their reconstructions, and what each latent carries, as PNG."""
    from pipeline import plots

    paths = [Path(DATA, f"vae_{name}.png") for name in ("loss", "reconstructions", "latents")]
    with plots.figure(paths[0], "V learns to see") as ax:
        trained = [entry for entry in history if entry["train"] is not None]
        ax.plot(
            [entry["epoch"] for entry in trained], [entry["train"] for entry in trained], marker=".", label="training"
        )
        ax.plot(
            [entry["epoch"] for entry in history],
            [entry["loss"] for entry in history],
            marker=".",
            label="held-out rollouts",
        )
        ax.set(xlabel=f"epoch of {FRAMES_PER_EPOCH:,} frames", ylabel="squared error + KL, a picture", yscale="log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend()

    shown = frames[np.linspace(0, len(frames) - 1, 12).astype(int)]
    rows = {"frame": shown, "V's picture": reconstruct(shown)}
    plots.frame_rows(paths[1], "Frames that V never trained on, and what it makes of them through 32 numbers", rows)

    title = f"{best['active']} of {len(best['latents'])} latents are active; the others say nothing about the frame"
    with plots.figure(paths[2], title) as ax:
        ax.bar(range(1, len(best["latents"]) + 1), sorted(best["latents"], reverse=True))
        ax.set(xlabel="latent, the busiest first", ylabel="KL to N(0, 1), nats")
    print("drawn: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    script.run(main, globals())
