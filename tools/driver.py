"""A driver that knows the track, for tests and benchmarks: it follows the road, finishes laps, or leaves the field."""

import math

import numpy as np


class Driver:
    """Steers at a point of the road ahead; `lively` adds a held random action to its own now and then."""

    def __init__(self, env, seed: int, speed: float = 45.0, lively: float = 0.0) -> None:
        self.env, self.speed, self.lively = env, speed, lively
        self.random = np.random.default_rng(seed)
        self.road = np.array([point[2:4] for point in env.track])
        self.noise, self.at, self.frame = np.zeros(3), 0, 0

    def __call__(self) -> np.ndarray:
        """The next action, (3,)."""
        hull = self.env.car.hull
        place = np.array(hull.position)
        near = (self.at + np.arange(-3, 12)) % len(self.road)
        self.at = near[np.argmin(((self.road[near] - place) ** 2).sum(1))]
        turn = self._turn(5)
        speed = math.hypot(*hull.linearVelocity)
        wanted = self.speed / (1 + 1.5 * abs(self._turn(11)))
        action = np.array([np.clip(-turn * 1.6, -1, 1), float(speed < wanted) * 0.6, 0.4 * float(speed > wanted + 12)])
        self.frame += 1
        if self.frame % 12 == 0:
            lively = self.lively and self.random.random() < 0.5
            self.noise = self.random.uniform((-1, -0.5, 0), (1, 1, 0.4)) * self.lively if lively else np.zeros(3)
        return np.clip(action + self.noise, (-1, 0, 0), (1, 1, 1))

    def _turn(self, ahead: int) -> float:
        """The turn towards the road `ahead` tiles further on."""
        return _turn(self.env.car, self.road[(self.at + ahead) % len(self.road)])


def off_the_field(env) -> np.ndarray:
    """What to do in order to leave the field: away from its middle, not too fast for the grass."""
    hull = env.car.hull
    turn = _turn(env.car, np.array(hull.position) * 10)
    return np.array([np.clip(-turn, -0.4, 0.4), 0.3 * float(math.hypot(*hull.linearVelocity) < 30), 0.0])


def _turn(car, target: np.ndarray) -> float:
    """The angle, in radians to the left, from the car's heading to a point."""
    dx, dy = target - np.array(car.hull.position)
    angle = math.atan2(-dx, dy) - car.hull.angle
    return (angle + math.pi) % (2 * math.pi) - math.pi
