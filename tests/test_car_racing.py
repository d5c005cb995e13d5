"""The fast world against gym's own: models/car_racing.py. Twenty tracks instead of two: python -m tests.compare."""

from models import car_racing
from models.car_racing import CarRacing64
from tests import compare
from tests.driver import Driver

import cv2
import gym
import numpy as np
import pytest


@pytest.fixture(scope="module")
def fast():
    return CarRacing64("fast")


def gyms_own():
    """gym's CarRacing-v2; without its checker, which does not run on NumPy 2."""
    return gym.make("CarRacing-v2", disable_env_checker=True)


def drive(env, seed, frames, actions=None):
    """Frames, rewards and ends of a lively drive."""
    seen = [env.reset(seed=seed)[0]]
    driver = Driver(env, 1, speed=90, lively=0.5)
    told = []
    for t in range(frames):
        frame, *rest, _ = env.step(driver() if actions is None else actions[t])
        seen.append(frame)
        told.append(rest)
    return np.array(seen), np.array(told)


@pytest.mark.parametrize("drive", [compare.Drive(3000, "lap", 130), compare.Drive(3001, "leave")], ids=str)
def test_the_fast_world_is_gyms(drive):
    result = compare.compare(drive)
    assert result.same
    assert result.left_field == (drive.kind == "leave")
    assert np.mean(result.differences) <= 0.5
    kept = [(gyms.astype(float), ours) for t, gyms, ours in result.frames if t > car_racing.ZOOM_FRAMES]
    apart = np.mean([gyms - ours for gyms, ours in kept], 0)
    # Not a shade, nor a road that is a little too wide: V turns that into another z, and the agent pays for it on gym.
    assert result.left_field or np.abs(apart[:56].mean((0, 1))).max() < 0.2
    assert np.abs(apart[56:]).mean() < 0.15  # the bar with the gauges
    assert max(result.differences[car_racing.ZOOM_FRAMES + 1 :]) <= 3.0


def test_the_reference_is_gym_makes_own_picture():
    """CarRacing64("gym") is gym.make's picture, area-averaged, with its rewards and its ends."""
    ours, gyms = CarRacing64("gym"), gyms_own()
    frame, _ = ours.reset(seed=42)
    theirs, _ = gyms.reset(seed=42)
    random = np.random.default_rng(0)
    for _ in range(40):
        np.testing.assert_array_equal(frame, cv2.resize(theirs, (64, 64), interpolation=cv2.INTER_AREA))
        assert (frame.dtype, frame.shape) == (np.uint8, (64, 64, 3))
        action = random.uniform((-1, 0, 0), (1, 1, 0.3)).astype(np.float32)
        frame, *rest, _ = ours.step(action)
        theirs, *expected, _ = gyms.step(action.astype(float))
        assert rest == expected


def test_an_episode_ends_after_1000_frames_as_gym_makes_does(monkeypatch):
    blank = np.zeros((96, 96, 3), np.uint8)
    monkeypatch.setattr(car_racing.gym_racing.CarRacing, "_render", lambda *_: blank)  # the drawing takes all the time
    envs = CarRacing64("fast"), CarRacing64("gym"), gyms_own()
    for env in envs:
        for _ in range(2):  # the count starts anew
            env.reset(seed=5)
            for frame in range(1, 1001):
                _, _, terminated, truncated, _ = env.step(np.zeros(3))
                assert (terminated, truncated) == (False, frame == 1000)


def test_spaces(fast):
    frame, info = fast.reset(seed=1)
    assert fast.observation_space.contains(frame)
    assert fast.action_space == gyms_own().action_space
    assert info == {}
    with pytest.raises(ValueError, match="renderer"):
        CarRacing64("quick")


def test_the_same_seed_gives_the_same_drive_whatever_came_before(fast):
    """The track is made once and used again; what the last car did to its tiles must not be seen."""
    first = drive(fast, 3005, 60)
    again = drive(fast, 3005, 60)
    drive(fast, 3006, 60)
    later = drive(fast, 3005, 60)
    other_car = drive(CarRacing64("fast"), 3005, 60)
    car_racing._tracks.kept.clear()
    fresh = drive(CarRacing64("fast"), 3005, 60)
    for run in (again, later, other_car, fresh):
        np.testing.assert_array_equal(run[0], first[0])
        np.testing.assert_array_equal(run[1], first[1])


def test_two_cars_on_one_track_do_not_see_each_others_tiles():
    one, other = CarRacing64("fast"), CarRacing64("fast")
    frames, _ = drive(one, 3005, 60)
    one.reset(seed=3005)
    actions = [np.array([0.0, 1.0, 0.0])] * 60
    drive(other, 3005, 60, actions)  # the other car goes straight on in between
    again, _ = drive(one, 3005, 60)
    np.testing.assert_array_equal(frames, again)


def test_a_reset_without_a_seed_goes_on_with_gyms_randomness(fast):
    gyms = gyms_own().unwrapped
    for env in (fast, gyms):
        env.reset(seed=11)
    for _ in range(2):  # with the track of the seed from memory as well
        tracks = []
        for env in (fast, gyms):
            env.reset()
            tracks.append(np.array(env.track))
        np.testing.assert_array_equal(*tracks)
    fast.reset(seed=11)
    gyms.reset(seed=11)
    fast.reset()
    gyms.reset()
    np.testing.assert_array_equal(fast.track, gyms.track)


def test_only_the_last_tracks_are_kept(fast):
    for seed in range(car_racing.TRACKS_KEPT + 3):
        fast.reset(seed=seed)
    assert list(car_racing._tracks.kept) == list(range(3, car_racing.TRACKS_KEPT + 3))


def test_a_kerb_of_no_width_is_drawn_without_one():
    """gym puts a kerb on the side that a bend goes to; where it goes to neither, both its edges are in one place."""
    corners = np.array([(0, 0), (0, 0), (1, 5), (1, 5)])
    np.testing.assert_array_equal(car_racing._narrowed(corners), corners)


def test_tiles_change_colour_when_they_are_touched(fast):
    """gym paints the tiles in three shades of grey and takes the tint off when a wheel first touches one."""
    fast.reset(seed=3005)
    untouched = fast._texture.copy()
    driver = Driver(fast, 1, speed=60)
    for _ in range(150):
        fast.step(driver())
    for i, tile in enumerate(fast.road):
        x, y = np.mean([fast._drawn.tiles[i]], 1)[0]
        at = int((y + car_racing.EDGE) * car_racing.PIXELS), int((x + car_racing.EDGE) * car_racing.PIXELS)
        tint = (0, 2, 5)[i % 3]
        if not tile.road_visited:
            np.testing.assert_array_equal(untouched[at], fast._texture[at])
        elif 3 < i < 250 and fast.road[i + 1].road_visited and fast.road[i - 1].road_visited:
            np.testing.assert_array_equal(untouched[at].astype(int) - tint, fast._texture[at])
    assert 10 < sum(tile.road_visited for tile in fast.road) == fast.tile_visited_count < len(fast.road)


def test_place(fast):
    fast.reset(seed=3005)
    _, angle, x, y = fast.track[100]
    frame = fast.place(x, y, angle, 50.0)
    assert np.hypot(*fast.car.hull.linearVelocity) == pytest.approx(50, rel=0.001)
    assert fast.car.hull.angle == pytest.approx(angle, abs=1e-4)
    near = np.array(fast.car.hull.position) - (x, y)
    assert np.hypot(*near) < 2
    _, reward, terminated, truncated, _ = fast.step(np.zeros(3, np.float32))
    assert reward > 1  # the tiles there were new
    assert (terminated, truncated, fast.lap_finished) == (False, False, False)
    reference = CarRacing64("gym")
    reference.reset(seed=3005)
    expected = reference.place(x, y, angle, 50.0)
    assert np.abs(frame.astype(int) - expected).mean() < 1.5


def test_a_finished_lap_and_a_left_field(fast):
    fast.reset(seed=3001)
    driver = Driver(fast, 1, speed=90)
    over = False
    while not over:
        _, _, terminated, truncated, _ = fast.step(driver())
        over = terminated or truncated
    assert (terminated, truncated, fast.lap_finished) == (False, True, True)
    assert fast.frames < 1000
    fast.reset(seed=3001)
    assert not fast.lap_finished
    fast.place(320, 0, -np.pi / 2, 60)
    for _ in range(30):
        _, reward, terminated, _, _ = fast.step(np.zeros(3, np.float32))
        if terminated:
            break
    assert (terminated, reward, fast.lap_finished) == (True, -100, False)
