"""tools/probe.py: what the game knows about the car, and what a linear regression reads from z and h."""

from models.car_racing import CarRacing64
from models.worlds import RealWorld
from tools import probe

import numpy as np
import pytest
from gym.envs.box2d import car_racing as gym_racing


def test_the_state_of_a_car_that_was_placed():
    env = CarRacing64("fast")
    env.reset(seed=3)
    _, angle, x, y = env.track[40]
    right, ahead = np.array([np.cos(angle), np.sin(angle)]), env.track[40 + probe.LOOKAHEAD][1]
    env.place(*(np.array([x, y]) + 2 * right), angle + 0.1, 50.0)
    for body in (env.car.hull, *env.car.wheels):
        body.linearVelocity = [*(50 * right)]  # across the road: it slides
    env.car.hull.angularVelocity = 0.3
    middle = 2 - np.sin(0.1)  # `place` lets one frame pass: one unit
    expected = (50, 50 * np.cos(0.1), 0.3, middle, np.sin(ahead - angle - 0.1))
    np.testing.assert_allclose(probe.car_state(env), expected, atol=1e-3)


def test_only_what_the_inputs_know_is_explained():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(4_000, 3))
    known, half, unknown = inputs @ (1, -2, 3) + 7, inputs[:, 0] + random.normal(size=4_000), random.normal(size=4_000)
    fitted = np.arange(4_000) < 2_000
    states = np.stack([known, half, unknown, known], 1)
    states[~fitted, 3] *= -1  # holds on the rows only that it was fitted on
    shares = probe.explained(inputs, states, fitted)
    assert shares[0] == pytest.approx(1)
    assert shares[1:3] == pytest.approx([0.5, 0], abs=0.05)
    assert shares[3] < -1


def test_features_and_states_are_of_the_same_frame(loaded):
    """The game's state before a step belongs to what the agent saw before it."""
    world = RealWorld(*loaded[:2], 2, max_steps=12)
    tracks, before = np.array([5, 6]), []
    step = world.envs[1].step
    world.envs[1].step = lambda action: (before.append(probe.car_state(world.envs[1])), step(action))[1]
    drives = probe.drive(world, np.full(867, 0.1, np.float32), tracks, np.array([0.5, 0.5]))
    assert [features.shape for features, _ in drives] == [(11, 288)] * 2
    np.testing.assert_array_equal(drives[1][1], before[2:])  # `reset` steps once, and the first frame is left out


def test_frames_on_the_road_after_the_zoom_from_both_halves():
    assert probe.ROAD_HALF_WIDTH == gym_racing.TRACK_WIDTH
    drives = []
    for track in range(16):
        states = np.full((probe.ZOOM_FRAMES + 3, 5), float(track))
        states[:, 3] = 0
        states[-1, 3] = -7  # off the road
        drives.append((np.arange(len(states))[:, None], states))
    features, states, fitted = probe.on_road(drives)
    np.testing.assert_array_equal(features[:, 0], [probe.ZOOM_FRAMES, probe.ZOOM_FRAMES + 1] * 16)
    assert set(states[fitted, 0]) == {0, 1, 2, 3, 8, 9, 10, 11}
    assert set(states[~fitted, 0]) == {4, 5, 6, 7, 12, 13, 14, 15}
