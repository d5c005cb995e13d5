"""Track seeds: which tracks are for what, and which ones a search drives on.

The ranges never overlap (a test asserts it): no track that is reported was ever trained on.
"""

from typing import Any

from pipeline import UserError

import numpy as np

REPORT_TRACKS = range(1_000, 1_100)  # scores in the README
SELECTION_TRACKS = range(500, 600)  # choosing the best controller of a run
ROLLOUT_TRACKS = range(1_000_000, 2_000_000)  # 01: what V and M learn from
EVOLUTION_TRACKS = range(2_000_000, 1_000_000_000)  # 05 and 07: what C is evolved on

TRACKS_PER_SEED = 100_000  # of ROLLOUT_TRACKS
REPLAY_WINDOW = 25  # generations whose tracks may be driven again


def rollout_tracks(constants: dict[str, Any]) -> range:
    """The tracks that 01 drives on: ROLLOUTS of those that belong to SEED, from number FIRST_ROLLOUT on.

    Raises `UserError` where there are not so many.
    """
    if len(ROLLOUT_TRACKS) < TRACKS_PER_SEED * constants["SEED"]:
        raise UserError(f"SEED can be {len(ROLLOUT_TRACKS) // TRACKS_PER_SEED} at most: there are no more tracks")
    if constants["FIRST_ROLLOUT"] + constants["ROLLOUTS"] > TRACKS_PER_SEED:
        raise UserError(f"a SEED has {TRACKS_PER_SEED:,} tracks: FIRST_ROLLOUT + ROLLOUTS is too large")
    first = TRACKS_PER_SEED * (constants["SEED"] - 1) + constants["FIRST_ROLLOUT"]
    return ROLLOUT_TRACKS[first : first + constants["ROLLOUTS"]]


def first_track(constants: dict[str, Any], generation: int) -> int:
    """Where the new tracks of a generation begin in EVOLUTION_TRACKS."""
    return (constants["SEED"] * 1_000_000 + generation) * constants["EPISODES"]


def sample_tracks(constants: dict[str, Any], generation: int, record: dict[str, list]) -> np.ndarray:
    """The tracks of a generation, (episodes,): new ones, and HARD_TRACKS of those with the lowest returns lately.

    Once most tracks go well, new ones say little. So some are replaced by tracks from the worst quarter of the last
    REPLAY_WINDOW generations (prioritized level replay, Jiang et al. 2021).
    """
    first = first_track(constants, generation)
    tracks = np.array(EVOLUTION_TRACKS[first : first + constants["EPISODES"]])
    recent = (np.ravel(record[name][-REPLAY_WINDOW:]) for name in ("tracks", "track_returns"))
    last_return = {int(track): returned for track, returned in zip(*recent)}
    worst = sorted(last_return, key=lambda track: last_return[track])[: len(last_return) // 4]
    hard = min(constants["HARD_TRACKS"], len(worst))
    if hard:
        tracks[:hard] = np.random.default_rng(first).choice(worst, hard, replace=False)
    return tracks
