"""What do z and h know about the car? `python -m tools.probe [NAME=value …]`

The agent in MODELS drives, with noise on its actions, and at each frame on the road the game tells how the car moves
and where the road goes. A linear regression, the same kind of function as C, reads these from z, from z with the
products of its numbers, from h, or from z and h. It is fitted on half of the tracks. The table shows the share of the
variance that it explains on the other half (R²): 1 is all of it, 0 is no better than the mean. Takes half a minute.
"""

from models.car_track import ZOOM_FRAMES
from models.sizes import LATENT_DIM
from models.tracks import SELECTION_TRACKS
from pipeline import UserError, script

import numpy as np

TRACKS = 48  # one episode on each, 8 to 100
MAX_STEPS = 400  # of an episode
ACTION_NOISE = (0.0, 0.1, 0.3, 0.6)  # standard deviations; each track has the next one
MODELS = "models/trained"  # the folder of the weights

ROAD_HALF_WIDTH = 40 / 6  # units, gym's TRACK_WIDTH
STATE = ("speed", "sliding", "turning", "off the middle", "road ahead")
LOOKAHEAD = 8  # tiles, 28 units: the road that half of the picture shows


def car_state(env) -> np.ndarray:
    """What the game knows about the car, (5,), in the order of STATE.

    In units of the game: the speed, its part to the right of where the car points, the turning in rad/s, the distance
    to the right of the road's middle, and the sine of the angle between the car and the road LOOKAHEAD tiles on.
    """
    hull, road = env.car.hull, np.array(env.track)[:, 1:]  # angle, x, y of each tile
    velocity, right = np.array(hull.linearVelocity), np.array([np.cos(hull.angle), np.sin(hull.angle)])
    offsets = np.array(hull.position) - road[:, 1:]
    nearest = int(np.hypot(*offsets.T).argmin())
    middle = offsets[nearest] @ (np.cos(road[nearest, 0]), np.sin(road[nearest, 0]))
    ahead = np.sin(road[(nearest + LOOKAHEAD) % len(road), 0] - hull.angle)
    return np.array([np.linalg.norm(velocity), velocity @ right, hull.angularVelocity, middle, ahead])


def drive(world, parameters: np.ndarray, tracks: np.ndarray, noise: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Drive a track with each car of `world`: features (n, 288) and states (n, 5), but for the first frame's."""
    features: list[list[np.ndarray]] = [[] for _ in tracks]
    states: list[list[np.ndarray]] = [[] for _ in tracks]

    def on_step(step) -> None:  # after a step: the game is at the next frame already
        features[step.episode].append(np.concatenate([step.z, step.h]))
        states[step.episode].append(car_state(world.envs[step.episode]))  # there are as many cars as episodes

    world.drive(np.tile(parameters, (len(tracks), 1)), tracks, on_step, noise)
    return [(np.array(seen[1:]), np.array(known[:-1])) for seen, known in zip(features, states)]


def on_road(drives: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The frames of all drives after the zoom, with the car on the road: features, states, and which to fit on.

    Four tracks are fitted on, the next four are not, and so on: both halves have as much noise.
    """
    features, states = (np.concatenate([drive[k][ZOOM_FRAMES:] for drive in drives]) for k in (0, 1))
    lengths = [len(seen[ZOOM_FRAMES:]) for seen, _ in drives]
    fitted = np.repeat(np.arange(len(drives)) % 8 < 4, lengths)
    kept = abs(states[:, 3]) < ROAD_HALF_WIDTH
    return features[kept], states[kept], fitted[kept]


def explained(inputs: np.ndarray, states: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """R² of a linear regression from `inputs` (n, k) to `states` (n, m), (m,), on the rows that are not `fitted`."""
    inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
    weights = np.linalg.lstsq(inputs[fitted], states[fitted], rcond=None)[0]
    errors = states[~fitted] - inputs[~fitted] @ weights
    return 1 - (errors**2).mean(0) / states[~fitted].var(0)


def main() -> None:
    """Drive, fit, compare."""
    from models import loading, worlds

    if not 8 <= TRACKS <= len(SELECTION_TRACKS):
        raise UserError(f"TRACKS must be 8 to {len(SELECTION_TRACKS)}")
    vae, rnn, parameters = loading.load(MODELS)
    world = worlds.RealWorld(vae, rnn, TRACKS, max_steps=MAX_STEPS)
    drives = drive(world, parameters, np.array(SELECTION_TRACKS[:TRACKS]), np.resize(ACTION_NOISE, TRACKS))
    features, states, fitted = on_road(drives)
    print(f"{len(states):,} frames of {TRACKS} tracks; R² of a linear regression")
    print(f"{'':8}" + "".join(f"{name:>16}" for name in STATE))
    z, h = np.split(features, [LATENT_DIM], 1)
    products = np.stack([z[:, i] * z[:, j] for i in range(LATENT_DIM) for j in range(i + 1)], 1)
    # The products show how much of h's lead is there because h is no linear function of what was seen.
    for name, inputs in (("z", [z]), ("z, z·z", [z, products]), ("h", [h]), ("z and h", [z, h])):
        print(f"{name:8}" + "".join(f"{share:16.2f}" for share in explained(np.hstack(inputs), states, fitted)))


if __name__ == "__main__":
    script.run(main, globals())
