"""Step 9 of the tutorial: look at it all. The agent drives, V and M look on; what M expects; dreams; curves; the score.

Reads   V, M, C and the dream starts in MODELS, or the shipped ones in models/trained/ while one's own aren't all there;
        the training histories in MODELS and DATA
Writes  DATA/agent.gif (gym's picture, what the agent sees of it, V's picture of that, M's dream of the same drive),
        DATA/expects.png and DATA/foretold.png (what M expects next, and how wrong it is), DATA/dreams.gif (what it
        is like to drive in M's head), DATA/curves.png; with EPISODES also DATA/score.npz and DATA/score.png.
        Beside each .gif an .mp4 where ffmpeg is installed
Takes   about a minute; EPISODES=100 about 6 minutes more on 2 cores

With CONTROLLER=dream_controller the one that learned in its dream drives, and the names begin with "dreamer_".
"""

import json
import os
from pathlib import Path
from typing import Literal

from models.tracks import REPORT_TRACKS
from pipeline import UserError, script
from pipeline.files import load_npz, save_npz
from pipeline.progress import Progress
from pipeline.script import NonNegativeInt, PossiblyEmpty
from pipeline.workers import worker_pool

import numpy as np

TRACK: NonNegativeInt = 1000  # the seed of the track to show; of those that are reported, so no training has seen it
EPISODES: NonNegativeInt = (
    0  # the score over so many of the 100 reported tracks, 1000 and on; the README's: 100. 0: no score
)
CONTROLLER: Literal["controller", "dream_controller"] = "controller"  # or "dream_controller": which one drives
SHOW = False  # True: also show the drive in a window while it happens
FRAMES = 1000  # of the drive at most, and of each drive for the score; the game's own limit is 1,000
EVERY = 4  # frames of the game from one picture of a GIF to the next; 50 frames are a second
ALONE = 100  # frames that M dreams of the drive before it is woken, and sees where the car really is
AHEAD = 25  # frames that M looks ahead in expects.png
DREAMS = 8  # side by side in dreams.gif
DREAM_FRAMES = 400  # of each at most
Z_NOISE = 0.25  # as in 04: how much of V's noise was in the z that M learned on
TEMPERATURE = 1.0  # of all dreams: below 1 they are calmer, above 1 wilder
YARDSTICKS = 20  # of the tracks are also driven by controllers of zeros and of random numbers, to compare with
CARS = 4  # driven in lockstep by each worker
CLUSTER: PossiblyEmpty = ""  # a Ray cluster to work on, "auto" or "host:port" (docs/cluster.md); "": this machine
WORKERS: NonNegativeInt = os.cpu_count()  # processes for the score; on a cluster actors, 0: one for each of its CPUs
MODELS = "models"
DATA = "data"

RATE = 50  # frames of the game a second
AWAKE = 50  # frames that M is shown before it is left alone first: the camera flies in


def main() -> None:
    """Make the pictures, then the score."""
    if len(REPORT_TRACKS) < EPISODES:
        raise UserError(f"EPISODES can be {len(REPORT_TRACKS)} at most: so many tracks are reported")
    if not AWAKE + AHEAD + EVERY < FRAMES <= 1000:
        raise UserError(f"FRAMES={FRAMES} must be {AWAKE + AHEAD + EVERY + 1} to 1000")
    from pipeline import video

    window = None
    if SHOW:
        try:
            window = video.Window(f"{CONTROLLER} on track {TRACK}", RATE)
        except UserError as error:
            print(f"no window: {error}; the files are made all the same")

    from models import worlds

    folder = choose_weights()
    vae, rnn, parameters = worlds.load(folder, CONTROLLER)
    starts = worlds.load_starts(folder, vae)

    drive = Drive(vae, rnn, parameters, window)
    announce(*video.moving(named("agent.gif"), drive.film(), RATE / EVERY))
    announce(*drive.expectations())
    announce(*video.moving(named("dreams.gif"), dreams(vae, rnn, starts, parameters), RATE / EVERY))
    curves(folder)
    if EPISODES:
        score(vae, rnn, parameters)


def choose_weights() -> Path:
    """The folder whose weights are shown: one's own where V, M and C are all there, else the shipped."""
    needed = [f"{name}.weights.h5" for name in ("vae", "rnn", CONTROLLER)]
    missing = [name for name in needed if not Path(MODELS, name).exists()]
    shipped = Path(__file__).parent / "models" / "trained"
    if missing and all((shipped / name).exists() for name in needed):
        print(f"with the shipped weights in models/trained ({MODELS} has no {missing[0]})")
        return shipped
    if not missing:
        print(f"with your own weights in {MODELS}")
    return Path(MODELS)  # where something is missing, loading says what, and which script makes it


def named(name: str) -> Path:
    """Where a picture of the drive goes: the dreamer's don't replace the agent's."""
    return Path(DATA, name if CONTROLLER == "controller" else f"dreamer_{name}")


def announce(*paths: Path) -> None:
    """Say which files were made."""
    print("made: " + ", ".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in paths), flush=True)


def decode(vae, z: np.ndarray) -> np.ndarray:
    """V's pictures of z (…, 32): uint8 (…, 64, 64, 3), a hundred at a time."""
    flat = z.reshape(-1, 32)
    parts = [vae.decode(flat[start : start + 100]).numpy() for start in range(0, len(flat), 100)]
    return np.concatenate(parts).reshape(*z.shape[:-1], 64, 64, 3)


class Drive:
    """One drive of the agent on the real track, drawn by gym, and what M makes of it."""

    def __init__(self, vae, rnn, parameters: np.ndarray, window) -> None:
        from models.worlds import RealWorld

        self.vae, self.rnn = vae, rnn
        self.gym_pictures = {}  # by frame
        world = RealWorld(vae, rnn, CARS, "gym", FRAMES)
        game = world.envs[0]
        game.render_mode = "rgb_array"
        seen = []

        def watch(now) -> None:
            seen.append(now)
            if window or len(seen) % EVERY == 0:  # the game is already where the next frame begins
                self.gym_pictures[len(seen)] = picture = game.render()
            if window:
                views = [picture, now.frame, decode(vae, now.z[None])[0]]
                labels = ["gym's picture", "what the agent sees of it", "V's picture of that"]
                window.show(video.tiles(views, labels, 3, f"return {game.reward:.1f}"))

        from pipeline import video

        returns, lengths = world.drive(parameters[None], np.array([TRACK]), watch)
        if window:
            window.close()
        end = "lap finished" if game.lap_finished else "left the field" if seen[-1].done else "no lap"
        print(f"track {TRACK}: a return of {returns[0]:.1f} in {lengths[0]} frames, {end}")
        self.frames, self.z, self.action, self.reward = (
            np.array([getattr(frame, name) for frame in seen], kind)
            for name, kind in (("frame", np.uint8), ("z", "f4"), ("action", "f4"), ("reward", "f4"))
        )
        self.memory = self.remember()

    def remember(self) -> list[np.ndarray]:
        """M's state before each frame of the drive: h and c, (n, 256) each."""
        state, states = self.rnn.initial_state(1), []
        for z, action in zip(self.z, self.action):
            states.append(state)
            state = self.rnn.advance(z[None], action[None], state)
        return [np.concatenate(part) for part in zip(*states)]

    def left_alone(self, starts: np.ndarray, frames: int) -> np.ndarray:
        """M's dreams of the drive from each frame of `starts` (n,) on, told nothing but the actions.

        Returns z (frames + 1, n, 32), the first one real.
        """
        random = np.random.default_rng(TRACK)
        state, z = tuple(part[starts] for part in self.memory), [self.z[starts]]
        for frame in range(frames):
            action = self.action[np.minimum(starts + frame, len(self.action) - 1)]
            prediction, state = self.rnn.step(z[-1], action, state)
            shape = (len(starts), 32)
            noise = random.random(shape, np.float32), random.standard_normal(shape, np.float32)
            z.append(self.rnn.sample(prediction, TEMPERATURE, noise).numpy())
        return np.stack(z)

    def film(self) -> list[np.ndarray]:
        """The pictures of agent.gif."""
        from pipeline import video

        shown = np.array([frame for frame in self.gym_pictures if frame < len(self.z) and frame % EVERY == 0])
        alone = np.where(shown < AWAKE, 0, (shown - AWAKE) % ALONE)
        dreamt = self.left_alone(np.arange(AWAKE, len(self.z), ALONE), ALONE - 1)
        z = np.where(shown[:, None] < AWAKE, self.z[shown], dreamt[alone, np.maximum(shown - AWAKE, 0) // ALONE])
        returns = np.cumsum(self.reward)
        film = []
        for frame, seconds, real, dream in zip(
            shown, alone / RATE, decode(self.vae, self.z[shown]), decode(self.vae, z)
        ):
            labels = [
                "gym's picture",
                "what the agent sees of it:\n64 × 64 pixels",
                "V's picture of that,\nfrom 32 numbers",
                f"M's dream of the drive,\nalone for {seconds:.1f} s" if seconds else "M is awake:\nthe same",
            ]
            views = [self.gym_pictures[frame], self.frames[frame], real, dream]
            title = f"track {TRACK}     {frame / RATE:.1f} s     return {returns[frame - 1]:.1f}"
            film.append(video.tiles(views, labels, 4, title))
        return film

    def expectations(self) -> list[Path]:
        """Draw what M expects next, beside what came: as pictures, and as numbers. Returns the files made."""
        from pipeline import plots

        prediction = self.rnn(self.z[None], self.action[None])
        logits, mu, log_sigma = (part.numpy()[0] for part in prediction[:3])
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        mean = (weight * mu).sum(-1)
        variance = (weight * (np.exp(2 * log_sigma) + mu**2)).sum(-1) - mean**2

        paths = [named("expects.png"), named("foretold.png")]
        now = np.linspace(min(AWAKE, len(self.z) // 4), len(self.z) - 1 - AHEAD, 9).astype(int)
        rows = {
            "now": self.frames[now],
            "V's picture of now": decode(self.vae, self.z[now]),
            "M expects next": decode(self.vae, mean[now]),
            "next": self.frames[now + 1],
            f"M, after {AHEAD} frames alone": decode(self.vae, self.left_alone(now, AHEAD)[-1]),
            f"{AHEAD} frames later": self.frames[now + AHEAD],
        }
        plots.frame_rows(
            paths[0], f"What M expects on track {TRACK}, and what came", rows, [f"{t / RATE:.1f} s" for t in now]
        )

        # M learned on z with Z_NOISE of V's noise in it: what it expects is compared with such a z.
        batches = [self.frames[start : start + 100] for start in range(0, len(self.frames), 100)]
        noise = Z_NOISE**2 * np.exp(np.concatenate([self.vae.encode(batch)[1] for batch in batches]))
        squares = {
            "the latent's own spread": self.z.var(0) + noise.mean(0),
            "how far off M expects to be": variance[:-1].mean(0),
            "how far off M was": np.mean((self.z[1:] - mean[:-1]) ** 2 + noise[1:], 0),
            "the noise in z: nobody gets below": noise.mean(0),
        }
        latents = {name: np.sqrt(square) for name, square in squares.items()}
        rewards = {"came": self.reward, "M expected": prediction.reward.numpy()[0]}
        plots.foretold(paths[1], RATE, rewards, latents, np.argsort(-self.z.std(0)))
        return paths


def dreams(vae, rnn, starts: dict, parameters: np.ndarray) -> list[np.ndarray]:
    """The pictures of dreams.gif: what a controller sees while it drives in M's head."""
    from models.worlds import DreamWorld
    from pipeline import video

    seen = [[] for _ in range(DREAMS)]
    world = DreamWorld(rnn, starts, DREAMS, TEMPERATURE, DREAM_FRAMES)
    tracks = np.arange(TRACK, TRACK + DREAMS)
    returns, lengths = world.drive(np.tile(parameters, (DREAMS, 1)), tracks, lambda now: seen[now.pair].append(now))
    who = f"{DREAMS} dreams of the {CONTROLLER.replace('_', ' ')}"
    print(f"{who}: an expected reward of {returns.mean():.1f} ± {returns.std():.1f}")
    views = [decode(vae, np.array([now.z for now in dream[::EVERY]], np.float32)) for dream in seen]
    totals = [np.cumsum([now.reward for now in dream]) for dream in seen]
    film = []
    for frame in range(0, lengths.max(), EVERY):
        labels = [
            f"expected reward {total[min(frame, len(total) - 1)]:.1f}" + ("\nended" if frame >= n else "\n")
            for total, n in zip(totals, lengths)
        ]
        now = [view[min(frame // EVERY, len(view) - 1)] for view in views]
        title = f"{who}     {frame / RATE:.1f} s     temperature {TEMPERATURE}"
        film.append(video.tiles(now, labels, 4, title))
    return film


def curves(folder: Path) -> None:
    """Draw the training curves that are there: V and M by epoch, C and the dreamer by generation."""
    from pipeline import plots

    # The shipped weights' histories are with them or the README's pictures; one's own are where training left them.
    places = (folder, Path(DATA)) if folder == Path(MODELS) else (folder, Path(__file__).parent / "data" / "readme")
    producer = {
        "vae.checkpoint.npz": "02_train_vae.py",
        "rnn.checkpoint.npz": "04_train_rnn.py",
        "controller.npz": "05_train_controller.py",
        "dream_controller.npz": "07_dream_train.py",
    }
    losses = {
        "vae.checkpoint.npz": ("loss", "V, held out: squared error + KL"),
        "rnn.checkpoint.npz": ("nats", "M, held out: nats an active latent"),
    }
    agents = {"controller.npz": "C: return", "dream_controller.npz": "C that learns in the dream: return"}
    found = {name: place / name for name in producer for place in places if (place / name).exists()}
    if missing := [name for name in producer if name not in found]:
        print(f"not in curves.png, these histories are not here: {', '.join(missing)}")
    if not found:
        return
    epochs, generations = {}, {}
    for name, path in found.items():
        arrays = load_npz(path, producer[name])
        try:
            if name in losses:
                key, title = losses[name]
                epochs[title] = np.array([(at["epoch"], at[key]) for at in json.loads(str(arrays["history"]))])
            else:
                generations[agents[name]] = arrays
                arrays["fitness"].mean(1), arrays["eval_generation"]
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} is not the history of a run: delete it and run {producer[name]}") from None
    path = Path(DATA, "curves.png")
    plots.curves(path, epochs, generations)
    announce(path)


def prepare(models: tuple, cars: int, frames: int):
    """What a worker drives in for the score; `models` is what `worlds.get_weights` returns."""
    from models import worlds

    return worlds.RealWorld(*worlds.build_models(models), cars, "gym", frames)


def drive_some(world, item: tuple) -> tuple:
    """Drive some tracks: who drives, which of his tracks, the returns, the lengths."""
    who, places, parameters, tracks = item
    return who, places, *world.drive(parameters, tracks)


def score(vae, rnn, parameters: np.ndarray) -> None:
    """Drive the first EPISODES of the reported tracks on gym's own renderer; the last line is the score."""
    from models import worlds
    from pipeline import plots

    tracks = np.array(REPORT_TRACKS[:EPISODES])
    some = min(EPISODES, YARDSTICKS)
    drivers = {
        "agent": np.tile(parameters, (EPISODES, 1)),
        "zero": np.zeros((some, len(parameters))),
        "random": np.random.default_rng(0).normal(0, 0.1, (some, len(parameters))),  # another one for each track
    }
    returns = {who: np.full(len(rows), np.nan) for who, rows in drivers.items()}
    progress = Progress(sum(map(len, drivers.values())), "drives")
    done = frames = 0
    workers = min(WORKERS, progress.total)
    with worker_pool(CLUSTER, workers, prepare, worlds.get_weights(vae, rnn), CARS, FRAMES) as workers:
        items = []
        for who, rows in drivers.items():
            each = min(CARS, -(-len(rows) // workers.count))
            for start in range(0, len(rows), each):
                places = np.arange(start, min(start + each, len(rows)))
                items.append((who, places, rows[places], tracks[places]))
        print(f"{progress.total} drives on gym's own renderer, with {workers.count} workers", flush=True)
        for who, places, result, lengths in workers.imap_unordered(drive_some, items):
            returns[who][places] = result
            done += len(places)
            frames += lengths.sum()
            progress.update(done, f"{frames:,} frames")
    save_npz(named("score.npz"), tracks=tracks, controller=np.array(CONTROLLER), **returns)

    plots.ranking(named("score.png"), tracks, returns)
    announce(named("score.npz"), named("score.png"))

    agent = returns["agent"]
    worst = np.argsort(agent)[:5]
    print(f"{'':20} {'tracks':>6} {'mean ± std':>16} {'least':>8} {'most':>8}")
    names = {"agent": CONTROLLER.replace("_", " "), "zero": "zero controller", "random": "random controllers"}
    for who, these in returns.items():
        spread = f"{these.mean():.1f} ± {these.std():.1f}"
        print(f"{names[who]:20} {len(these):6} {spread:>16} {these.min():8.1f} {these.max():8.1f}")
    print("worst: " + ", ".join(f"track {tracks[place]} ({agent[place]:.1f})" for place in worst))
    short = "" if FRAMES == 1000 else f", {FRAMES} frames of each"
    print(
        f"score over {EPISODES} tracks: {agent.mean():.1f} ± {agent.std():.1f} "
        f"(gym renderer, tracks {tracks[0]}–{tracks[-1]}{short})"
    )


if __name__ == "__main__":
    script.run(main, globals())
