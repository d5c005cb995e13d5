"""Step 7 of the tutorial: train M, the network that foretells the next z from z and the action.

Reads   DATA/series.npz (03), MODELS/vae.weights.h5 (02)
Writes  MODELS/rnn.weights.h5 (the best so far on held-out rollouts), MODELS/rnn.checkpoint.npz,
        DATA/rnn_loss.png, DATA/rnn_dream.png
Takes   about 8 minutes on 2 cores

M learns three things at once: the next z as a mixture of Gaussians, the reward, and whether the drive ends. At the end
it is compared with what needs no network: that z stays as it is, and a linear regression; and with V's own
noise, below which nobody gets. Stopped at any moment, the same command goes on from the last epoch.
"""

import math
import zlib
from pathlib import Path

from pipeline import UserError, rollouts, script
from pipeline.files import load_npz, suppress_stderr
from pipeline.progress import Progress
from pipeline.training import Checkpoint

import numpy as np

EPOCHS = 40  # the paper: 20 passes over all rollouts; a finished run goes on when this is raised
FRAMES_PER_EPOCH = 450_000  # drawn anew for each epoch: what a kill loses at most
BATCH = 100  # sequences; the paper and the tutorial: 100
SEQUENCE = 50  # frames; the tutorial: whole rollouts of 300. Six times as many steps in the same time learn faster
LEARNING_RATE = 2e-3  # Adam's; the paper and the tutorial: 0.001
LEARNING_RATE_DECAY = 0.94  # the learning rate's factor from one epoch to the next
GRADIENT_CLIP = 10.0  # the longest gradient; the loss is summed over 32 latents, so 10 cuts surprises only
Z_NOISE = 0.25  # of V's spread around the mean in the z that M learns on; the paper: 1, in whose dreams C shakes
MOST_LOST = 1.0  # points a frame for the reward head: the 100 for leaving the field would drown it (done tells it)
HELD_OUT_ROLLOUTS = 100  # at most, never trained on
GO_ON = False  # True: start from the weights that are there, with the series that is there now
SEED = 1
DATA = "data"
MODELS = "models"

ACTIVE = 0.3  # a latent is active if its mean varies by more over the data (standard deviation)


def main() -> None:
    """Train M, keep the best weights, measure it against the yardsticks, draw its dream."""
    series_path, vae_path = Path(DATA, "series.npz"), Path(MODELS, "vae.weights.h5")
    series = read_series(series_path)
    drives = np.stack([np.cumsum(series["lengths"] + 1) - (series["lengths"] + 1), series["lengths"]], 1)
    held_out = rollouts.held_out(series["names"])
    unseen = np.array([name in held_out for name in series["names"]])
    seen_drives, unseen_drives = drives[~unseen], drives[unseen][:HELD_OUT_ROLLOUTS]
    sequence = min(SEQUENCE, int(seen_drives[:, 1].max()))

    from models import weights

    weights.check(vae_path, "02_train_vae.py")
    with suppress_stderr():
        import keras
        import tensorflow as tf

    from models.rnn import MDNRNN, negative_log_likelihood
    from models.vae import VAE, sample

    vae = VAE()
    weights.load(vae_path, vae, "02_train_vae.py")
    origin = weights.fingerprint(vae.get_weights())
    if str(series["vae"]) != origin:
        raise UserError(f"{series_path} was made with another V than {vae_path}: run 03_series.py again")

    keras.utils.set_random_seed(SEED)
    rnn = MDNRNN()
    optimizer = keras.optimizers.Adam(LEARNING_RATE, global_clipnorm=GRADIENT_CLIP)
    optimizer.build(rnn.trainable_variables)

    def losses(z, action, reward, done, mask):
        """Means over the frames in `mask`: nats of each latent, of the reward and of the end."""
        prediction = rnn(z[:, :-1], action)
        nats = negative_log_likelihood(prediction, z[:, 1:])
        # Half the squared error is the likelihood of a Gaussian of width 1: what it expects is the mean reward.
        reward_nats = tf.square(prediction.reward - tf.maximum(reward, -MOST_LOST)) / 2
        done_nats = tf.nn.sigmoid_cross_entropy_with_logits(done, prediction.done)
        frames = tf.maximum(tf.reduce_sum(mask), 1)
        mean = [tf.tensordot(mask, each, [[0, 1], [0, 1]]) / frames for each in (nats, reward_nats, done_nats)]
        return *mean, frames

    @tf.function
    def train_step(mu, logvar, action, reward, done, mask, seed):
        z = sample(mu, logvar, Z_NOISE * tf.random.stateless_normal(tf.shape(mu), seed))  # fresh for every batch
        with tf.GradientTape() as tape:
            nats, reward_nats, done_nats, _ = losses(z, action, reward, done, mask)
            loss = tf.reduce_sum(nats) + reward_nats + done_nats
        optimizer.apply(tape.gradient(loss, rnn.trainable_variables), rnn.trainable_variables)
        return loss

    held_out_step = tf.function(losses, reduce_retracing=True)
    active = active_latents(series, seen_drives)
    held_out_batches = [
        whole_drives(series, unseen_drives[start : start + 10]) for start in range(0, len(unseen_drives), 10)
    ]

    def evaluate():
        """M on the held-out rollouts from their starts, always with the same z."""
        parts = [held_out_step(*batch) for batch in held_out_batches]
        frames = np.array([part[3] for part in parts])
        nats, reward_nats, done_nats = (np.average(np.stack(part), 0, frames) for part in list(zip(*parts))[:3])
        return {
            "loss": float(nats.sum() + reward_nats + done_nats),
            "nats": float(nats[active].mean()),
            "reward": float(2 * reward_nats),
            "done": float(done_nats),
        }

    weights_path = Path(MODELS, "rnn.weights.h5")
    digits = zlib.crc32(series["names"].tobytes() + series["lengths"].tobytes())
    data = f"{len(drives)} rollouts ({digits:08x}) seen by V {origin}"
    checkpoint = Checkpoint(Path(MODELS, "rnn.checkpoint.npz"), weights_path, globals(), data)
    both = checkpoint.path.exists() and weights_path.exists()
    if both and weights.check(weights_path, "04_train_rnn.py").get("vae") != origin:
        raise UserError(f"{checkpoint.path} belongs to an earlier V: delete it, and M is trained anew")
    history = checkpoint.resume(rnn, optimizer) or []
    if not history and GO_ON:
        weights.load(weights_path, rnn, "04_train_rnn.py with GO_ON=False", vae=origin)
        history.append({"epoch": 0, "train": None, **evaluate()})  # what further training has to beat
    finished = history[-1]["epoch"] if history else 0
    if finished >= EPOCHS:
        print(
            f"{weights_path} is trained: {finished} epochs. EPOCHS={2 * finished} trains on; "
            "GO_ON=True starts again from it"
        )
    else:
        print(
            f"{len(seen_drives)} rollouts to learn from, {unseen.sum()} held out; "
            f"{finished} of {EPOCHS} epochs done; {active.sum()} of {len(active)} latents are active"
        )

    steps = max(FRAMES_PER_EPOCH // (BATCH * sequence), 1)
    for epoch in range(finished + 1, EPOCHS + 1):
        optimizer.learning_rate.assign(LEARNING_RATE * LEARNING_RATE_DECAY ** (epoch - 1))
        random = np.random.default_rng((SEED, epoch))  # nothing else: a resumed run sees the same
        progress = Progress(steps * BATCH * sequence, "frames", f"epoch {epoch}/{EPOCHS}: ")
        losses_seen = []
        for step in range(1, steps + 1):
            batch = random_windows(series, seen_drives, sequence, random)
            losses_seen.append(float(train_step(*batch, tf.constant((epoch, step)))))
            if not np.isfinite(losses_seen[-1]):
                raise UserError(
                    f"the loss is {losses_seen[-1]} at step {step} of epoch {epoch}; the last good weights are kept. "
                    "Try a lower LEARNING_RATE"
                )
            progress.update(step * BATCH * sequence, f"loss {np.mean(losses_seen[-10:]):.2f}")

        history.append({"epoch": epoch, "train": float(np.mean(losses_seen)), **evaluate()})
        now = history[-1]
        best = now["loss"] <= min(entry["loss"] for entry in history)
        if best:
            weights.save(weights_path, rnn, vae=origin)
        checkpoint.save(history, rnn, optimizer)
        print(
            f"epoch {epoch}: loss {now['train']:.2f}, held out {now['loss']:.2f}: {now['nats']:.3f} nats an active "
            f"latent, reward {now['reward']:.3f} squared error, end {now['done']:.4f} nats"
            f"{', the best so far' if best else ''}"
        )

    weights.load(weights_path, rnn, Path(__file__).name, vae=origin)
    nats = yardsticks(series, seen_drives, held_out_batches, unseen_drives, active)
    nats["M"] = min(history, key=lambda entry: entry["loss"])["nats"]
    print(
        f"Negative log-likelihood of the next z on held-out rollouts, nats an active latent ({active.sum()} of them):"
    )
    for name in ("z stays as it is", "linear regression", "M", "V's own noise"):
        print(f"  {name:<18} {nats[name]:7.3f}")
    draw_loss(history, nats)
    draw_dream(series, unseen_drives, vae, rnn)


def read_series(path: Path) -> dict[str, np.ndarray]:
    """The arrays of 03, checked. Raises `UserError` where they are missing or no series."""
    series = load_npz(path, "03_series.py")
    cure = "delete it and run 03_series.py"
    expected = {"mu": (32,), "logvar": (32,), "action": (3,), "reward": (), "done": (), "lengths": (), "names": ()}
    if missing := [name for name in (*expected, "vae") if name not in series]:
        raise UserError(f"{path} is no series, it has no {missing[0]}: {cure}")
    rows = int((series["lengths"].astype(np.int64) + 1).sum()) if series["lengths"].dtype == np.int32 else -1
    for name, shape in expected.items():
        length = len(series["lengths"]) if name in ("lengths", "names") else rows
        if series[name].shape != (length, *shape):
            raise UserError(f"{path} is no series, its {name} is {series[name].shape}: {cure}")
    if len(series["lengths"]) < 2 or series["lengths"].min() < 1:
        raise UserError(f"{path} is no series, it holds fewer than 2 drives or an empty one: {cure}")
    for name in ("mu", "logvar", "action", "reward"):
        if not np.isfinite(series[name]).all():
            raise UserError(f"{path} holds {name}s that are not finite: {cure}")
    return series


def cut(series: dict, first: np.ndarray, last: np.ndarray, steps: int) -> tuple[np.ndarray, ...]:
    """Sequences of `steps` frames from row `first` on, filled up after row `last` and masked there.

    `first` and `last` are (n,). Returns mu and logvar (n, steps+1, 32), action (n, steps, 3), and reward, done and
    mask (n, steps), all float32.
    """
    rows = first[:, None] + np.arange(steps + 1)
    mask = rows[:, :-1] < last[:, None]
    rows = np.minimum(rows, last[:, None])
    driven = ("action", "reward", "done")
    arrays = [series[name][rows] for name in ("mu", "logvar")] + [series[name][rows[:, :-1]] for name in driven]
    return tuple(array.astype(np.float32) for array in (*arrays, mask))


def random_windows(series: dict, drives: np.ndarray, steps: int, random: np.random.Generator) -> tuple:
    """BATCH windows for training, as `cut` gives them: a drive is drawn as often as it has frames.

    `drives` are (first row, frames), (n, 2).
    """
    first, length = drives[random.choice(len(drives), BATCH, p=drives[:, 1] / drives[:, 1].sum())].T
    offset = random.integers(0, np.maximum(length - steps, 0) + 1)
    return cut(series, first + offset, first + length, steps)


def whole_drives(series: dict, drives: np.ndarray) -> tuple:
    """Whole drives with one fixed z for each frame: z (n, T+1, 32), action, reward, done, mask, T of the longest."""
    first, length = drives.T
    mu, logvar, *others = cut(series, first, first + length, int(length.max()))
    noise = np.random.default_rng((SEED, *first)).standard_normal(mu.shape, np.float32)
    return mu + Z_NOISE * np.exp(logvar / 2) * noise, *others


def active_latents(series: dict, drives: np.ndarray) -> np.ndarray:
    """Which latents V uses (32,): their mean varies over the drives (at most a million frames are looked at)."""
    rows = np.concatenate([np.arange(first, first + length) for first, length in drives[:: len(drives) // 3_000 + 1]])
    active = series["mu"][rows[:: len(rows) // 1_000_000 + 1]].std(0, dtype=np.float64) > ACTIVE
    return active if active.any() else ~active  # a V that has learned nothing yet: compare on all


def yardsticks(series: dict, seen: np.ndarray, held_out: list, unseen: np.ndarray, active: np.ndarray) -> dict:
    """What the next z costs in nats an active latent without M: Gaussians fitted on `seen`, measured on `held_out`."""
    features, targets, stay = np.zeros((36, 36)), np.zeros((36, 32)), np.zeros(32)
    squares, count = np.zeros(32), 0

    def pairs(z, action, mask):
        known = mask.astype(bool)
        x = np.concatenate([z[:, :-1], action, np.ones((*mask.shape, 1), np.float32)], -1)[known]
        return x.astype(np.float64), z[:, 1:][known].astype(np.float64)

    chosen = seen[:: len(seen) // 1_000 + 1]
    for start in range(0, len(chosen), 10):
        z, action, _, _, mask = whole_drives(series, chosen[start : start + 10])
        x, y = pairs(z, action, mask)
        features += x.T @ x
        targets += x.T @ y
        squares += (y**2).sum(0)
        stay += ((y - x[:, :32]) ** 2).sum(0)
        count += len(x)
    regression = np.linalg.lstsq(features, targets, rcond=None)[0]
    residual = squares - 2 * (regression * targets).sum(0) + (regression * (features @ regression)).sum(0)

    def nats(expected, variance):
        """Mean of −log N(z; expected, variance) over the held-out frames and active latents."""
        each = [(np.log(2 * np.pi * variance) + (y - expected(x)) ** 2 / variance) / 2 for x, y in held_out_pairs]
        return float(np.concatenate(each)[:, active].mean())

    held_out_pairs = [pairs(z, action, mask) for z, action, _, _, mask in held_out]
    logvar = np.concatenate([series["logvar"][first + 1 : first + length + 1] for first, length in unseen])
    return {
        "z stays as it is": nats(lambda x: x[:, :32], np.maximum(stay / count, 1e-6)),
        "linear regression": nats(lambda x: x @ regression, np.maximum(residual / count, 1e-6)),
        # The entropy of what z was drawn from: even who knew mu would pay it.
        "V's own noise": math.log(Z_NOISE)
        + float((math.log(2 * math.pi * math.e) + logvar[:, active].astype(np.float64)).mean() / 2),
    }


def draw_loss(history: list[dict], nats: dict[str, float]) -> None:
    """The likelihood from epoch to epoch between the yardsticks, and the two heads, as PNG."""
    from pipeline import plots

    path = Path(DATA, "rnn_loss.png")
    epochs = [entry["epoch"] for entry in history]
    with plots.figure(path, "M learns what comes next (held-out rollouts)", (11, 4.5), panels=2) as (left, right):
        left.plot(epochs, [entry["nats"] for entry in history], marker=".", label="M")
        for name, style in (("z stays as it is", ":"), ("linear regression", "--"), ("V's own noise", "-.")):
            left.axhline(nats[name], color="grey", linestyle=style, label=name)
        left.set(xlabel="epoch", ylabel="next z: nats an active latent")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.legend()
        right.plot(epochs, [entry["reward"] for entry in history], marker=".", label="reward, squared error")
        right.plot(epochs, [entry["done"] for entry in history], marker=".", label="end, nats")
        right.set(xlabel="epoch", ylabel="a frame", yscale="log")
        right.xaxis.get_major_locator().set_params(integer=True)
        right.legend()
    print(f"drawn: {path}", end="")


def draw_dream(series: dict, drives: np.ndarray, vae, rnn) -> None:
    """A strip: a held-out drive as V sees it, and below it M left alone with the same actions, as PNG."""
    from pipeline import plots

    import tensorflow as tf

    # The one that found most of the road: there is most to foretell.
    first, length = max(drives, key=lambda drive: series["reward"][drive[0] : drive[0] + drive[1]].sum())
    known = min(100, int(length) // 2)  # frames that M is shown
    columns = [known - 1 + step for step in (0, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80) if known + step <= length]
    mu = series["mu"][first : first + length + 1].astype(np.float32)
    action = series["action"][first : first + length].astype(np.float32)
    random = np.random.default_rng(SEED)
    state, z, dreamed = rnn.initial_state(1), mu[:1], []
    for frame in range(columns[-1] + 1):
        if frame < known:
            z = mu[frame : frame + 1]
        dreamed.append(np.asarray(z)[0])
        prediction, state = rnn.step(z, action[frame : frame + 1], state)
        noise = (
            tf.constant(random.random((1, 32), np.float32)),
            tf.constant(random.standard_normal((1, 32), np.float32)),
        )
        z = rnn.sample(prediction, 1.0, noise)
    path = Path(DATA, "rnn_dream.png")
    plots.frame_rows(
        path,
        f"After {known} real frames M is left alone with the actions",
        {"what came": vae.decode(mu[columns]).numpy(), "M's dream": vae.decode(np.stack(dreamed)[columns]).numpy()},
        [f"+{column - known + 1}" for column in columns],
    )
    print(f", {path}")


if __name__ == "__main__":
    script.run(main, globals())
