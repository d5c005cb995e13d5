"""The fast game against gym's own: models/car_*.py. On 24 tracks: python -m tools.compare."""

import weakref

from models import car_physics, car_racing, car_track
from models.car_racing import CarRacing64
from tools import compare
from tools.driver import Driver

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
    car_racing._tracks.tracks.clear()
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
    for seed in range(car_track.TRACKS_KEPT + 3):
        fast.reset(seed=seed)
    assert list(car_racing._tracks.tracks) == list(range(3, car_track.TRACKS_KEPT + 3))


def test_beyond_its_texture_a_car_sees_the_field(monkeypatch):
    """The texture ends MARGIN pixels beyond the road. A picture that reaches further is the one of a larger texture."""

    def pictures() -> np.ndarray:
        env, seen = CarRacing64("fast"), []
        car_racing._tracks.tracks.clear()
        env.reset(seed=3005)
        track = car_racing._tracks.tracks[3005]
        left, bottom = np.array(track.origin) + env_margin
        right, top = np.array(track._end) - env_margin
        corners = np.array([(left, bottom), (right, top), (left, (bottom + top) / 2), (right + 60, top), (0, 500)])
        for x, y in corners / car_track.PIXELS_PER_UNIT - car_track.TEXTURE_HALF_SIZE:
            seen += [env.place(x, y, angle, 0.0) for angle in (0.0, 1.0, 2.0, 4.0)]
        assert env._ground.texture.shape[1] == right - left + 2 * env_margin
        return np.array(seen)

    env_margin = car_track.MARGIN
    small = pictures()
    env_margin = 140
    monkeypatch.setattr(car_track, "MARGIN", env_margin)
    large = pictures()
    assert len(np.unique(large.reshape(len(large), -1), axis=0)) == len(large)
    np.testing.assert_allclose(small.astype(int), large, atol=1)
    car_racing._tracks.tracks.clear()


def test_a_picture_is_drawn_from_as_much_of_the_texture_as_it_needs(fast, monkeypatch):
    """Drawn from the part that `_reach` says, and from the whole texture: the same to the last bit."""
    fast.reset(seed=3005)

    def pictures() -> np.ndarray:
        places = np.random.default_rng(0).choice(fast.track, 40)
        return np.array([fast.place(x, y, 7 * angle, 0.0) for angle, _, x, y in places])

    pictures()  # touches the tiles there
    part = pictures()
    monkeypatch.setattr(car_track, "_reach", lambda *_: (-1, 0))  # never covered: the field, then all of the texture
    np.testing.assert_array_equal(part, pictures())


def test_box2d_frees_the_shapes_of_a_track_that_is_gone(fast):
    """Given to a definition, a shape is no longer freed with its Python half: 90 KB for each new track."""
    fast.reset(seed=3005)
    assert all(shape.thisown for shape in car_racing._tracks.tracks[3005].tiles)


def test_a_car_does_not_keep_the_memory_of_a_track(fast):
    """Only the cache holds a track, and a car its mipmaps only until it sees no more of them: 2 MB for each car."""
    fast.reset(seed=3005)
    track, mipmaps = (weakref.ref(what) for what in (car_racing._tracks.tracks[3005], fast._ground._mipmaps[0]))
    car_racing._tracks.tracks.clear()
    assert track() is None
    assert mipmaps() is not None
    for _ in range(car_track.ZOOM_FRAMES):
        fast.step([0, 0, 0])
    assert mipmaps() is None


def test_a_kerb_of_no_width_is_drawn_without_one():
    """gym puts a kerb on the side that a bend goes to; where it goes to neither, both its edges are in one place."""
    corners = np.array([[(0, 0), (0, 0), (1, 5), (1, 5)]])
    np.testing.assert_array_equal(car_track._narrowed(corners), corners)


def test_tiles_change_colour_when_they_are_touched(fast):
    """gym paints the tiles in three shades of grey and takes the tint off when a wheel first touches one."""
    fast.reset(seed=3005)
    track, ground = car_racing._tracks.tracks[3005], fast._ground
    driver = Driver(fast, 1, speed=60)
    for _ in range(150):
        fast.step(driver())
    visited = fast.world.contactListener.visited
    for i in range(len(visited)):
        corners, colour = fast.road_poly[track.polygon_of_tile[i]]
        column, row = (car_track._to_pixels(np.mean(corners, 0)) - track.origin).astype(int)
        tint = (0, 2, 5)[i % 3]
        np.testing.assert_allclose(colour, 102 if visited[i] else 102 + 2.55 * (i % 3))  # for gym's own pictures
        if not visited[i]:
            np.testing.assert_array_equal(track.texture[row, column], ground.texture[row, column])
        elif 3 < i < 250 and visited[i + 1] and visited[i - 1]:
            np.testing.assert_array_equal(track.texture[row, column].astype(int) - tint, ground.texture[row, column])
    assert 10 < sum(visited) == fast.tile_visited_count < len(visited)


@pytest.mark.parametrize("brakes", [0.3, 0.0], ids=["with brakes", "without"])
def test_physics_are_gyms_to_the_last_bit(monkeypatch, brakes):
    """Every number of the car and every contact with a tile, beside gym's own classes, over a lively drive."""
    blank = np.zeros((96, 96, 3), np.uint8)
    monkeypatch.setattr(car_racing.gym_racing.CarRacing, "_render", lambda *_: blank)
    monkeypatch.setattr(CarRacing64, "_render", lambda *_: blank)
    gyms, ours = car_racing.gym_racing.CarRacing(), CarRacing64("fast")
    random = np.random.default_rng(4)
    for seed in (3002, 3003):
        for env in (gyms, ours):
            env.reset(seed=seed)
        for t in range(400):
            if t % 8 == 0:
                action = random.uniform((-1.2, -0.2, 0), (1.2, 1.2, 1)).astype(np.float32)
                action[2] *= random.random() < brakes
            expected = gyms.step(action.astype(np.float64))[1:4]
            assert ours.step(action)[1:4] == expected
            assert _state(ours) == _state(gyms)
            assert [{tile.number for tile in wheel.tiles} for wheel in ours.car.wheels] == [
                {tile.idx for tile in wheel.tiles} for wheel in gyms.car.wheels
            ]
            assert list(map(bool, ours.world.contactListener.visited)) == [tile.road_visited for tile in gyms.road]
    assert type(ours.car) is car_physics.Car


def _state(env):
    """All that moves, and the rewards so far."""
    wheels = [
        (*wheel.position, wheel.angle, *wheel.linearVelocity, wheel.omega, wheel.phase, wheel.gas, wheel.joint.angle)
        for wheel in env.car.wheels
    ]
    hull = env.car.hull
    return (
        *hull.position,
        hull.angle,
        *hull.linearVelocity,
        hull.angularVelocity,
        env.reward,
        env.prev_reward,
        *wheels,
    )


def test_actions_are_taken_in_float64(monkeypatch):
    """With a float32 action NumPy 2 would go on in float32, and NumPy 1 does not: plain floats are the same in both."""
    monkeypatch.setattr(car_racing.gym_racing.CarRacing, "_render", lambda *_: np.zeros((96, 96, 3), np.uint8))
    for renderer in ("fast", "gym"):
        env = CarRacing64(renderer)
        env.reset(seed=3000)
        env.step(np.array([0.3, 0.1, 0.7], np.float32))
        front, rear = env.car.wheels[0], env.car.wheels[2]
        assert all(isinstance(number, float) for number in (front.steer, front.brake, front.omega, rear.omega))
        assert front.steer == -float(np.float32(0.3))


@pytest.mark.parametrize("renderer", ["fast", "gym"])
def test_skid_marks_are_in_gyms_own_pictures(renderer):
    """Only a window's or a video's pictures show them; there the car's code is gym's own."""
    marks = {}
    for mode in (None, "rgb_array"):
        env = CarRacing64(renderer)
        env.render_mode = mode
        env.reset(seed=3000)
        env._render, render = lambda mode: None, env._render  # the drawing takes all the time
        for t in range(90):
            env.step(np.array([1.0 if t > 50 else 0.0, 1.0, 0.0]))
        marks[mode] = len(env.car.particles), env.car.hull.position.tuple
        env._render = render
    assert marks["rgb_array"][0] > 3
    assert marks["rgb_array"][1] == marks[None][1]
    assert renderer == "gym" or not marks[None][0]
    shown = env.render()
    env.car.particles.clear()
    assert (shown != env.render()).any()


def test_the_fast_renderer_refuses_random_colours():
    env = CarRacing64("fast")
    env.domain_randomize = True
    with pytest.raises(ValueError, match=r"domain_randomize needs CarRacing64\('gym'\)"):
        env.reset(seed=3000)
    reference = CarRacing64("gym")
    reference.domain_randomize = True
    assert reference.reset(seed=3000)[0].shape == (64, 64, 3)


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
