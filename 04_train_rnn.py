"""Step 7 of the tutorial: train M, the network that predicts the next z from z and the action.

Reads   DATA/series.npz (03), MODELS/vae.weights.h5 (02)
Writes  MODELS/rnn.weights.h5 (the best so far on held-out rollouts), MODELS/rnn.checkpoint.npz,
        DATA/rnn_loss.png, DATA/rnn_dream.png
Takes   about 9½ minutes on 2 cores

M learns three things at once (`MDNRNN.loss_terms` in models/rnn.py): the next z as a mixture of Gaussians, the reward,
and whether the episode ends. Baselines that need no network: persistence (z stays as it is) and linear regression.
Floor: the entropy of V's posterior. Stopped at any moment, the same command continues from the last epoch.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import UserError, script
from pipeline.script import NonNegativeInt, NonPositiveFloat

EPOCHS = 40  # paper: 20 passes over all rollouts; raise it to train a finished run further
FRAMES_PER_EPOCH = 450_000  # a new random sample for each epoch
BATCH_SIZE = 100  # sequences (paper and tutorial: 100)
SEQUENCE_LENGTH = 50  # frames (tutorial: whole rollouts of 300). Six times as many steps in the same time learn faster
LEARNING_RATE = 2e-3  # Adam's (paper and tutorial: 0.001)
LEARNING_RATE_DECAY = 0.94  # factor of the learning rate from one epoch to the next
GRADIENT_CLIP = 10.0  # maximal norm of the gradient; the loss is summed over 32 latents, so 10 cuts outliers only
Z_NOISE = 0.25  # share of V's spread in the z that M learns on (paper: 1; its dreams are too noisy to drive in)
MIN_REWARD: NonPositiveFloat = -1.0  # points per frame; the reward is clipped there, or −100 would drown the rest
VALIDATION_ROLLOUTS = 100  # at most, held out
FINE_TUNE = False  # True: start from the weights in MODELS, on the series that is there now
SEED: NonNegativeInt = 1  # of all random numbers here
DATA = "data"  # the folder of recordings, histories and pictures
MODELS = "models"  # the folder of the weights

ACTIVE_STD = 0.3  # a latent is active if its mean varies by more over the data (standard deviation)

if __name__ == "__main__":
    script.check(globals())  # a wrong constant is reported before TensorFlow is imported, which takes seconds

from models import weights
from models.baselines import baselines, posterior_entropy
from models.rnn import MDNRNN
from models.vae import VAE, to_uint8
from pipeline import plots, rollouts
from pipeline import series as series_file
from pipeline.training import ResumableTraining, keras_seed

import keras
import numpy as np
import tensorflow as tf


def main() -> None:
    """Train M, keep the best weights, compare it with the baselines, draw its dream."""
    series_path, vae_path = Path(DATA, "series.npz"), Path(MODELS, "vae.weights.h5")
    series = series_file.read(series_path)
    episodes = series_file.episodes(series)
    held_out = rollouts.held_out(series["names"])
    is_held_out = np.array([name in held_out for name in series["names"]])
    train, validation = episodes[~is_held_out], episodes[is_held_out][:VALIDATION_ROLLOUTS]
    sequence_length = min(SEQUENCE_LENGTH, int(train[:, 1].max()))
    steps = max(FRAMES_PER_EPOCH // (BATCH_SIZE * sequence_length), 1)

    vae = VAE()
    weights.load(vae_path, vae)
    origin = weights.fingerprint(vae.get_weights())
    if str(series["vae"]) != origin:
        raise UserError(f"{series_path} was made with another V than {vae_path}: run 03_series.py again")

    keras.utils.set_random_seed(keras_seed(SEED))
    rnn, weights_path = MDNRNN(), Path(MODELS, "rnn.weights.h5")
    active = series_file.active_latents(series, train, ACTIVE_STD)
    rnn.compile(keras.optimizers.Adam(LEARNING_RATE, global_clipnorm=GRADIENT_CLIP), active, Z_NOISE, MIN_REWARD)
    run = ResumableTraining(
        Path(MODELS, "rnn.checkpoint.npz"),
        weights_path,
        Path(__file__).name,
        script.settings(globals()),
        f"{series_file.summary(series)} seen by V {origin}",
        save_weights=lambda: weights.save(weights_path, rnn, vae=origin),
        batch_size=BATCH_SIZE * sequence_length,
    )
    refuse_earlier_v(run.path, weights_path, origin)
    validation_data = dataset(lambda: episode_batches(series, validation), -(-len(validation) // 10))
    done = run.restore(rnn)
    if not done and FINE_TUNE:
        weights.load(weights_path, rnn, vae=origin)
        run.start_from(rnn, validation_data)
    if done >= EPOCHS:
        print(f"{weights_path} is trained: {done} epochs. EPOCHS={2 * done} trains it further")
    else:
        print(f"{active.sum()} of {len(active)} latents are active")
        print(f"{len(train)} rollouts to learn from, {is_held_out.sum()} held out; {done} of {EPOCHS} epochs done")
        rnn.fit(
            dataset(
                lambda: training_batches(series, train, sequence_length, steps, done + 1),
                tf.data.INFINITE_CARDINALITY,
            ),
            steps_per_epoch=steps,
            initial_epoch=done,
            epochs=EPOCHS,
            validation_data=validation_data,
            callbacks=[keras.callbacks.LearningRateScheduler(learning_rate), run],
            shuffle=False,  # already shuffled
            verbose=0,
        )

    weights.load(weights_path, rnn, vae=origin)
    nll = {"M": run.best["val_nll"], **baseline_nll(rnn, series, train, validation, active)}
    print("\n".join(comparison_lines(nll, active)))
    draw_loss(run.history, nll)
    draw_dream(series, validation, vae, rnn)


def learning_rate(epoch: int, _: float = 0.0) -> float:
    """The learning rate of an epoch, counted from 0."""
    return LEARNING_RATE * LEARNING_RATE_DECAY**epoch


def dataset(batches: Callable[[], Iterator[dict]], count: int) -> tf.data.Dataset:
    """What `fit` reads: the `count` batches that the function `batches` yields."""
    data = tf.data.Dataset.from_generator(batches, output_signature=MDNRNN.batch_spec)
    return data.apply(tf.data.experimental.assert_cardinality(count))


def training_batches(series: dict, episodes: np.ndarray, length: int, steps: int, first: int) -> Iterator[dict]:
    """Batches of random windows of `length` frames, from epoch `first` on without end.

    Those of an epoch depend on SEED and the epoch alone, so a resumed run sees the same.
    """
    for epoch in itertools.count(first):
        random = np.random.default_rng((SEED, epoch))
        for step in range(1, steps + 1):
            yield series_file.sample_windows(series, episodes, BATCH_SIZE, length, random) | {"seed": (epoch, step)}


def episode_batches(series: dict, episodes: np.ndarray) -> Iterator[dict]:
    """Whole episodes, ten at a time, always with the same noise."""
    for start in range(0, len(episodes), 10):
        yield series_file.full_episodes(series, episodes[start : start + 10]) | {"seed": (0, start)}


def refuse_earlier_v(checkpoint: Path, weights_path: Path, origin: str) -> None:
    """Raises `UserError` where checkpoint and weights belong to another V; `restore` would name the data only."""
    both = checkpoint.exists() and weights_path.exists()
    if both and weights.check(weights_path).get("vae") != origin:
        raise UserError(f"{checkpoint} belongs to an earlier V: delete it, then this command trains a new M")


def baseline_nll(
    rnn: MDNRNN, series: dict, train: np.ndarray, held_out: np.ndarray, active: np.ndarray
) -> dict[str, float]:
    """What the next z costs without M, in nats per active latent, on the held-out episodes with M's noise in z."""

    def sequences(episodes):
        for batch in episode_batches(series, episodes):
            yield rnn.noisy_z(batch["mu"], batch["logvar"], batch["seed"]).numpy(), batch["action"], batch["mask"]

    some = train[:: len(train) // 1_000 + 1]
    logvar = np.concatenate([series["logvar"][first + 1 : first + length + 1] for first, length in held_out])
    nll = baselines(sequences(some), sequences(held_out), active)
    return nll | {"entropy of V's posterior": posterior_entropy(logvar, Z_NOISE, active)}


def comparison_lines(nll: dict[str, float], active: np.ndarray) -> list[str]:
    """M between the baselines and the floor, a line each."""
    lines = [f"Held-out negative log-likelihood of the next z, nats per active latent ({active.sum()} of them):"]
    names = ("persistence", "linear regression", "M", "entropy of V's posterior")
    return lines + [f"  {name:<24} {nll[name]:7.3f}" for name in names]


def draw_loss(history: list[dict], nll: dict[str, float]) -> None:
    """The likelihood by epoch between baselines and floor, and the two heads, as PNG."""
    path = Path(DATA, "rnn_loss.png")
    with plots.figure(path, "M on held-out rollouts", (11, 4.5), panels=2) as (left, right):
        for name, style in (("persistence", ":"), ("linear regression", "--"), ("entropy of V's posterior", "-.")):
            left.axhline(nll[name], color="grey", linestyle=style, label=name)
        plots.by_epoch(left, history, {"val_nll": "M"})
        left.set(xlabel="epoch", ylabel="next z: nats per active latent")
        plots.by_epoch(
            right, history, {"val_reward_error": "reward, squared error", "val_done_nll": "end of the episode, nats"}
        )
        right.set(xlabel="epoch", ylabel="per frame", yscale="log")
    print(f"drawn: {path}")


def draw_dream(series: dict, episodes: np.ndarray, vae: VAE, rnn: MDNRNN) -> None:
    """A held-out episode as V sees it, and below it M in open loop with the same actions, as PNG."""
    # The one that found most of the road: there is most to predict.
    first, length = max(episodes, key=lambda episode: series["reward"][episode[0] : episode[0] + episode[1]].sum())
    known = min(100, int(length) // 2)  # frames that M is shown
    ahead = [step for step in (0, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80) if known + step <= length]
    mu = series["mu"][None, first : first + length + 1].astype(np.float32)
    action = series["action"][None, first : first + length].astype(np.float32)
    now = known - 1
    state = rnn.unroll(mu[:, :now], action[:, :now])[-1]
    dream = rnn.open_loop(mu[:, now], action[:, now : now + ahead[-1]], state, 1.0, np.random.default_rng(SEED))
    path = Path(DATA, "rnn_dream.png")
    rows = {"real": vae.decode(mu[0, now:][ahead]), "M's dream": vae.decode(dream[0][ahead])}
    plots.image_grid(
        path,
        f"After {known} real frames M dreams on, given only the actions",
        {name: to_uint8(images).numpy() for name, images in rows.items()},
        [f"+{step}" for step in ahead],
    )
    print(f"drawn: {path}")


if __name__ == "__main__":
    script.run(main, globals())
