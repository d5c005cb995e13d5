"""One episode: what a step of it is, and a car that drives one after the other on the real track."""

from typing import NamedTuple

from models.car_racing import CarRacing64

import numpy as np


class Step(NamedTuple):
    """One step of one car, for `on_step`."""

    episode: int  # row of `parameters` and `tracks`
    frame: np.ndarray | None  # uint8 (64, 64, 3), what the car saw; None in a dream
    z: np.ndarray  # float32 (32,)
    h: np.ndarray  # float32 (256,), before this frame's z and action
    action: np.ndarray  # float32 (3,)
    reward: float  # without what `max_idle_steps` charges at the end
    done: bool  # left the field or finished the lap
    final_obs: np.ndarray | None  # the frame after the last one, at the end of the episode


class Car:
    """One car of `RealWorld` and the episode that it drives; `episode` is None when it has none."""

    def __init__(self, env: CarRacing64, max_steps: int, max_idle_steps: int) -> None:
        self.env, self.max_steps, self.max_idle_steps = env, max_steps, max_idle_steps
        self.episode: int | None = None

    def reset(self, episode: int, track: int) -> np.ndarray:
        """Begin an episode; the first frame."""
        self.episode, self.total, self.length, self.last_progress = episode, 0.0, 0, 0
        frame, _ = self.env.reset(seed=track)
        self.tiles = self.env.tile_visited_count
        return frame

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """One step: the next frame, the reward, left the field or finished the lap, the episode is over."""
        env = self.env
        frame, reward, terminated, truncated, _ = env.step(action)
        self.total += reward
        self.length += 1
        if env.tile_visited_count > self.tiles:
            self.tiles, self.last_progress = env.tile_visited_count, self.length
        is_idle = self.max_idle_steps > 0 and self.length - self.last_progress >= self.max_idle_steps
        if is_idle and not (terminated or truncated):
            self.total -= 0.1 * (self.max_steps - self.length)  # what standing still until the end would cost
        episode_over = terminated or truncated or is_idle or self.length >= self.max_steps
        return frame, reward, terminated or env.lap_finished, episode_over
