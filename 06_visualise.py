"""Step 9 of the tutorial: look at it all. The agent drives, V and M look on; predictions; dreams; curves; the score.

Reads   V, M, C and the dream starts in MODELS, or the shipped ones in models/trained/ while yours aren't all there;
        the training histories in MODELS and DATA
Writes  DATA/agent.gif (gym's image, what the agent sees of it, V's reconstruction, M's dream of the same episode),
        DATA/expects.png and DATA/predictions.png (what M predicts, and how wrong it is), DATA/dreams.gif (what it is
        like to drive in M's dream), DATA/curves.png; with EPISODES also DATA/score.npz and DATA/score.png.
        Beside each .gif an .mp4 where ffmpeg is installed
Takes   about a minute; EPISODES=100 about 6 minutes more on 2 cores

With CONTROLLER=dream_controller the dream controller drives, and the names begin with "dream_controller_".
"""

import json
from pathlib import Path
from typing import Literal

from models.tracks import REPORT_TRACKS
from pipeline import UserError, script
from pipeline.environment import hide_gpu, usable_cores
from pipeline.files import load_npz, save_npz
from pipeline.progress import Progress
from pipeline.script import NonNegativeInt, PossiblyEmpty
from pipeline.workers import worker_pool

import numpy as np

TRACK: NonNegativeInt = 1000  # seed of the track to show; no training has seen the tracks 1000 to 1099
EPISODES: NonNegativeInt = 0  # of the score, on the tracks from 1000 on, at most 100 (README: 100); 0: no score
CONTROLLER: Literal["controller", "dream_controller"] = "controller"  # which one drives
SHOW = False  # True: also show the episode in a window while it is driven
MAX_STEPS = 1000  # of each episode; the game's own limit is 1,000
FRAME_SKIP = 4  # steps from one image of a GIF to the next; 50 steps are a second
OPEN_LOOP_STEPS = 100  # that M dreams of the episode before it is shown again where the car really is
LOOKAHEAD = 25  # steps that M looks ahead in expects.png
DREAMS = 8  # side by side in dreams.gif
MAX_DREAM_STEPS = 400  # of each
Z_NOISE = 0.25  # as in 04: how much of V's noise was in the z that M learned on
TEMPERATURE = 1.0  # of all dreams: below 1 they are more certain, above 1 less
BASELINE_EPISODES = 20  # of controllers of zeros, and of random ones, beside the score
NUM_ENVS = 4  # cars driven in lockstep by each worker
CLUSTER: PossiblyEmpty = ""  # a Ray cluster to work on, "auto" or "host:port" (docs/cluster.md); "": this machine
WORKERS: NonNegativeInt = usable_cores()  # processes for the score; on a cluster actors, 0: one for each of its CPUs
MODELS = "models"  # the folder of the weights
DATA = "data"  # the folder of recordings, histories and pictures

RATE = 50  # steps of the game a second
WARMUP_STEPS = 50  # that M is shown before it first dreams: the camera zooms in


def main() -> None:
    """Make the pictures, then the score."""
    validate()
    hide_gpu()  # the window and the score show the same episode: both on the processor
    from pipeline import video

    window = None
    if SHOW:
        try:
            window = video.Window(f"{CONTROLLER} on track {TRACK}", RATE)
        except UserError as error:
            print(f"no window: {error}; the files are made all the same")

    from models import loading

    needed = [f"{name}.weights.h5" for name in ("vae", "rnn", CONTROLLER)]
    folder = loading.choose_weights(Path(MODELS), *needed)
    vae, rnn, parameters = loading.load(folder, CONTROLLER)
    starts = loading.load_starts(folder, vae)

    recording, gym_images = drive(vae, rnn, parameters, window)
    report_files(*video.moving(output_path("agent.gif"), film(vae, rnn, recording, gym_images), RATE / FRAME_SKIP))
    report_files(*draw_predictions(vae, rnn, recording))
    report_files(*video.moving(output_path("dreams.gif"), dreams(vae, rnn, starts, parameters), RATE / FRAME_SKIP))
    draw_curves(folder)
    if EPISODES:
        score(vae, rnn, parameters)


def validate() -> None:
    """Raises `UserError` for constants that make no sense together."""
    if len(REPORT_TRACKS) < EPISODES:
        raise UserError(f"EPISODES can be {len(REPORT_TRACKS)} at most: so many tracks are reported")
    least = WARMUP_STEPS + LOOKAHEAD + FRAME_SKIP
    if not least < MAX_STEPS <= 1000:
        raise UserError(f"MAX_STEPS={MAX_STEPS} must be {least + 1} to 1000")
    if min(RATE, MAX_DREAM_STEPS) < FRAME_SKIP:
        raise UserError(f"FRAME_SKIP={FRAME_SKIP} must be at most {RATE} and MAX_DREAM_STEPS: a GIF needs images")


def output_path(name: str) -> Path:
    """Where a file about the episode goes: those of the dream controller don't replace the others."""
    return Path(DATA, name if CONTROLLER == "controller" else f"{CONTROLLER}_{name}")


def report_files(*paths: Path) -> None:
    """Say which files were made."""
    print("made: " + ", ".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in paths), flush=True)


def drive(vae, rnn, parameters: np.ndarray, window) -> tuple:
    """One episode on the real track, drawn by gym: the `Recording`, and gym's images by step."""
    from models.recording import decode, record
    from models.worlds import RealWorld
    from pipeline import video

    world = RealWorld(vae, rnn, NUM_ENVS, "gym", MAX_STEPS)
    game = world.envs[0]
    game.render_mode = "rgb_array"
    steps, gym_images = [], {}

    def on_step(step) -> None:
        steps.append(step)
        if window or len(steps) % FRAME_SKIP == 0:  # the game is already where the next step begins
            gym_images[len(steps)] = image = game.render()
        if window:
            views = [image, step.frame, decode(vae, step.z[None])[0]]
            labels = ["gym's image", "what the agent sees", "V's reconstruction"]
            window.show(video.tiles(views, labels, 3, f"return {game.reward:.1f}"))

    returns, lengths = world.drive(parameters[None], np.array([TRACK]), on_step)
    if window:
        window.close()
    end = "lap finished" if game.lap_finished else "left the field" if steps[-1].done else "no lap"
    print(f"track {TRACK}: a return of {returns[0]:.1f} in {lengths[0]} steps, {end}; {mean_action([steps])}")
    return record(steps), gym_images


def mean_action(episodes: list[list]) -> str:
    """What a controller did on average in some episodes, each a list of steps: it shows how one cheats in a dream."""
    steering, gas, brake = np.mean([step.action for steps in episodes for step in steps], axis=0)
    return f"on average steering {steering:.2f}, gas {gas:.2f}, brake {brake:.2f}"


def film(vae, rnn, recording, gym_images: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The images of agent.gif."""
    from models.recording import decode, open_loop
    from pipeline import video

    z = recording.z
    shown = np.array([step for step in gym_images if step < len(z) and step % FRAME_SKIP == 0])
    starts = np.arange(WARMUP_STEPS, len(z), OPEN_LOOP_STEPS)
    dreamed = open_loop(rnn, recording, starts, OPEN_LOOP_STEPS - 1, TEMPERATURE, np.random.default_rng(TRACK))
    alone = np.where(shown < WARMUP_STEPS, 0, (shown - WARMUP_STEPS) % OPEN_LOOP_STEPS)
    dream = dreamed[np.maximum(shown - WARMUP_STEPS, 0) // OPEN_LOOP_STEPS, alone]
    dream[shown < WARMUP_STEPS] = z[shown[shown < WARMUP_STEPS]]
    returns = np.cumsum(recording.reward)
    images = []
    for step, seconds, real, imagined in zip(shown, alone / RATE, decode(vae, z[shown]), decode(vae, dream)):
        labels = [
            "gym's image",
            "what the agent sees:\n64 × 64 pixels",
            "V's reconstruction\nfrom 32 numbers",
            f"M's dream of the episode,\nfor {seconds:.1f} s" if seconds else "M is shown the real z:\nno dream yet",
        ]
        views = [gym_images[step], recording.frame[step], real, imagined]
        title = f"track {TRACK}     {step / RATE:.1f} s     return {returns[step - 1]:.1f}"
        images.append(video.tiles(views, labels, 4, title))
    return images


def draw_predictions(vae, rnn, recording) -> list[Path]:
    """Draw what M predicts beside what happened: as images, and as numbers. Returns the files made."""
    from models import figures
    from models.recording import decode, error_scales, expect, open_loop
    from pipeline import plots

    expected = expect(rnn, recording)
    paths = [output_path("expects.png"), output_path("predictions.png")]
    last = len(recording.z) - 1 - LOOKAHEAD
    now = np.linspace(min(WARMUP_STEPS, len(recording.z) // 4), last, 9).astype(int)
    ahead = open_loop(rnn, recording, now, LOOKAHEAD, TEMPERATURE, np.random.default_rng(TRACK))[:, -1]
    rows = {
        "now": recording.frame[now],
        "V's reconstruction": decode(vae, recording.z[now]),
        "M expects next": decode(vae, expected.mean[now]),
        "next": recording.frame[now + 1],
        f"M's dream, {LOOKAHEAD} steps on": decode(vae, ahead),
        f"{LOOKAHEAD} steps on": recording.frame[now + LOOKAHEAD],
    }
    plots.image_grid(paths[0], f"What M expects on track {TRACK}", rows, [f"{step / RATE:.1f} s" for step in now])
    rewards = {"real": recording.reward, "M's expectation": expected.reward}
    figures.draw_predictions(paths[1], RATE, rewards, error_scales(vae, recording, expected, Z_NOISE))
    return paths


def dreams(vae, rnn, starts: dict, parameters: np.ndarray) -> list[np.ndarray]:
    """The images of dreams.gif: what a controller sees while it drives in M's dream."""
    from models.recording import decode
    from models.worlds import DreamWorld
    from pipeline import video

    episodes = [[] for _ in range(DREAMS)]
    world = DreamWorld(rnn, starts, DREAMS, TEMPERATURE, MAX_DREAM_STEPS)
    tracks = np.arange(TRACK, TRACK + DREAMS)
    returns, lengths = world.drive(
        np.tile(parameters, (DREAMS, 1)), tracks, lambda step: episodes[step.episode].append(step)
    )
    title = f"{DREAMS} dreams of the {CONTROLLER.replace('_', ' ')}"
    score = f"{returns.mean():.1f} ± {returns.std():.1f}"
    limit = f"at most {MAX_DREAM_STEPS} steps each"
    print(f"{title}, {limit}: an expected return of {score}; {mean_action(episodes)}")
    views = [decode(vae, np.array([step.z for step in dream[::FRAME_SKIP]], np.float32)) for dream in episodes]
    totals = [np.cumsum([step.reward for step in dream]) for dream in episodes]
    images = []
    for step in range(0, lengths.max(), FRAME_SKIP):
        labels = [
            f"expected return {total[min(step, len(total) - 1)]:.1f}" + ("\nended" if step >= length else "\n")
            for total, length in zip(totals, lengths)
        ]
        now = [view[min(step // FRAME_SKIP, len(view) - 1)] for view in views]
        images.append(video.tiles(now, labels, 4, f"{title}     {step / RATE:.1f} s     temperature {TEMPERATURE}"))
    return images


# The training histories that curves.png shows: name of the file (with shipped weights), script, metric, title.
LOSSES = {
    "vae": ("02_train_vae.py", "val_loss", "V, held out: squared error + KL"),
    "rnn": ("04_train_rnn.py", "val_nll", "M, held out: nats per active latent"),
}
SEARCHES = {
    "controller": ("05_train_controller.py", "C: return"),
    "dream_controller": ("07_dream_train.py", "C, in the dream: return"),
}


def draw_curves(folder: Path) -> None:
    """Draw the training curves that are there: V and M by epoch, both controllers by generation."""
    from models import figures, loading

    # The shipped weights' histories are beside them; yours are where training left them.
    shipped = folder.resolve() == loading.SHIPPED.resolve()
    paths = {name: folder / f"{name}.{'history' if shipped else 'checkpoint'}.npz" for name in LOSSES}
    paths |= {name: (folder if shipped else Path(DATA)) / f"{name}.npz" for name in SEARCHES}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        print(f"not in curves.png, these histories are not here: {', '.join(missing)}")
    if len(missing) == len(paths):
        return
    losses, searches = {}, {}
    for name, path in paths.items():
        if not path.exists():
            continue
        producer, *_, title = (LOSSES | SEARCHES)[name]
        arrays = load_npz(path, producer)
        try:
            if name in LOSSES:
                metric = LOSSES[name][1]
                losses[title] = np.array([(at["epoch"], at[metric]) for at in json.loads(str(arrays["history"]))])
            else:
                searches[title] = arrays
                arrays["fitness"].mean(1), arrays["eval_generation"]
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} is not the history of a run: delete it and run {producer}") from None
    figures.draw_curves(Path(DATA, "curves.png"), losses, searches)
    report_files(Path(DATA, "curves.png"))


def make_score_world(models: tuple, num_envs: int, max_steps: int):
    """What a worker drives in for the score; `models` is what `loading.get_weights` returns."""
    from models import loading, worlds

    return worlds.RealWorld(*loading.build_models(models), num_envs, "gym", max_steps)


def drive_some(world, item: tuple) -> tuple:
    """Drive some episodes: the controllers' name, which of its episodes, the returns, the lengths."""
    name, rows, parameters, tracks = item
    return name, rows, *world.drive(parameters, tracks)


def score(vae, rnn, parameters: np.ndarray) -> None:
    """Drive the first EPISODES of the reported tracks on gym's own renderer; the last line is the score."""
    from models import figures, loading

    tracks = np.array(REPORT_TRACKS[:EPISODES])
    count = min(EPISODES, BASELINE_EPISODES)
    controllers = {
        "agent": np.tile(parameters, (EPISODES, 1)),
        "zero": np.zeros((count, len(parameters))),
        "random": np.random.default_rng(0).normal(0, 0.1, (count, len(parameters))),  # another one for each track
    }
    returns = {name: np.full(len(each), np.nan) for name, each in controllers.items()}
    progress = Progress(sum(map(len, controllers.values())), "episodes")
    done = steps = 0
    worker = make_score_world, loading.get_weights(vae, rnn), NUM_ENVS, MAX_STEPS
    with worker_pool(CLUSTER, min(WORKERS, progress.total), *worker) as workers:
        items = []
        for name, each in controllers.items():
            share = min(NUM_ENVS, -(-len(each) // workers.count))
            for start in range(0, len(each), share):
                rows = np.arange(start, min(start + share, len(each)))
                items.append((name, rows, each[rows], tracks[rows]))
        print(f"{progress.total} episodes on gym's own renderer, with {workers.count} workers", flush=True)
        for name, rows, result, lengths in workers.imap_unordered(drive_some, items):
            returns[name][rows] = result
            done += len(rows)
            steps += lengths.sum()
            progress.update(done, f"{steps:,} steps")
    save_npz(output_path("score.npz"), tracks=tracks, controller=np.array(CONTROLLER), **returns)
    figures.draw_score(output_path("score.png"), tracks, returns["agent"], CONTROLLER.replace("_", " "))
    report_files(output_path("score.npz"), output_path("score.png"))
    print("\n".join(score_lines(tracks, returns)))


def score_lines(tracks: np.ndarray, returns: dict[str, np.ndarray]) -> list[str]:
    """A table of the returns of each controller, the agent's worst tracks, and its score: mean ± standard deviation."""
    names = {"agent": CONTROLLER.replace("_", " "), "zero": "zero controller", "random": "random controllers"}
    lines = [f"{'':20} {'tracks':>6} {'mean ± std':>16} {'min':>8} {'max':>8}"]
    for name, each in returns.items():
        spread = f"{each.mean():.1f} ± {each.std():.1f}"
        lines.append(f"{names[name]:20} {len(each):6} {spread:>16} {each.min():8.1f} {each.max():8.1f}")
    agent = returns["agent"]
    lines.append("worst: " + ", ".join(f"track {tracks[row]} ({agent[row]:.1f})" for row in np.argsort(agent)[:5]))
    limit = "" if MAX_STEPS == 1000 else f", at most {MAX_STEPS} steps each"
    lines.append(
        f"score over {len(agent)} tracks: {agent.mean():.1f} ± {agent.std():.1f} "
        f"(gym renderer, tracks {tracks[0]}–{tracks[-1]}{limit})"
    )
    return lines


if __name__ == "__main__":
    script.run(main, globals(), reads=("MODELS",))
