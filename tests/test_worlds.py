"""C, the real world and the dream against plain loops: models/controller.py, models/worlds.py."""

from models import controller, evolution, loading, weights, worlds
from models.car_racing import CarRacing64
from models.rnn import MDNRNN
from models.vae import VAE
from pipeline import UserError
from pipeline.workers import WorkerPool

import numpy as np
import pytest

CARS = 4


def controllers(n, seed=0, size=0.3):
    """Random ones that give gas."""
    parameters = np.random.default_rng(seed).normal(0, size, (n, 867)).astype(np.float32)
    parameters[:, 1] += 1
    return parameters


def one_action(parameters, features):
    """C for one car, as the paper writes it."""
    bias, matrix = parameters[:3], parameters[3:].reshape(288, 3)
    steer, gas, brake = np.tanh(features @ matrix + bias)
    return np.array([steer, (gas + 1) / 2, max(brake, 0)])


def test_c_has_867_numbers():
    assert controller.PARAMETERS == 867 == 3 + 288 * 3


def test_act_is_the_papers_formula():
    parameters = controllers(50)
    features = np.random.default_rng(1).normal(size=(50, 288)).astype(np.float32)
    actions = controller.act(parameters, features)
    expected = [one_action(*row) for row in zip(parameters.astype(float), features.astype(float))]
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    assert actions.dtype == np.float32
    assert (actions.min(0) >= (-1, 0, 0)).all()
    assert (actions.max(0) <= 1).all()
    assert (actions[:, 2] == 0).any()


def test_act_does_not_depend_on_who_drives_beside():
    parameters, features = controllers(32), np.random.default_rng(1).normal(size=(32, 288)).astype(np.float32)
    together = controller.act(parameters, features)
    for row in (0, 5, 31):
        np.testing.assert_array_equal(
            controller.act(parameters[row : row + 1], features[row : row + 1])[0], together[row]
        )
    np.testing.assert_array_equal(controller.act(parameters[::-1], features[::-1])[::-1], together)


def test_directions_are_the_principal_components_of_what_is_seen():
    random = np.random.default_rng(0)
    features = random.normal(size=(500, 4)) * (5, 1, 0.2, 0.01) @ random.normal(size=(4, 288)) + random.normal(size=288)
    rows = controller.feature_basis(features, 3, whiten=True)
    assert rows.shape == (1 + 3, 289)
    sums = rows[:, :1].T + features @ rows[:, 1:].T  # what each of them adds to a sum, W [z, h] + b
    np.testing.assert_allclose(sums[:, 0], 1)
    sums = sums[:, 1:]  # one for each component: of spread 1, around 0, independent of each other
    np.testing.assert_allclose(np.cov(sums, rowvar=False), np.eye(3), atol=1e-3)
    np.testing.assert_allclose(sums.mean(0), 0, atol=1e-3)
    plain = controller.feature_basis(features, 3, whiten=False)
    np.testing.assert_allclose(np.linalg.norm(plain[1:, 1:], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        np.abs((plain[1:, 1:] * rows[1:, 1:]).sum(1)), np.linalg.norm(rows[1:, 1:], axis=1), rtol=1e-3
    )
    left = features - features.mean(0)
    left -= np.linalg.lstsq(sums, left, rcond=None)[0].T.dot(sums.T).T
    assert (left**2).sum() == pytest.approx((np.linalg.svd(features - features.mean(0))[1][3:] ** 2).sum(), rel=1e-3)


def test_directions_are_no_more_than_the_features_have():
    features = np.random.default_rng(0).normal(size=(20, 5)) @ np.random.default_rng(1).normal(size=(5, 288))
    assert controller.feature_basis(features, 40, whiten=False).shape == (6, 289)


def test_directions_of_z_alone_leave_h_out(loaded, untrained):
    vae, rnn, _ = loaded
    rows = loading.feature_basis(rnn, loading.load_starts(untrained, vae), "z", 4, whiten=False)
    assert rows.shape == (5, 289)
    assert not rows[:, 33:].any()
    assert rows[1:, 1:33].all()


@pytest.fixture(scope="module")
def real(loaded):
    vae, rnn, _ = loaded
    return worlds.RealWorld(vae, rnn, CARS, max_steps=40, max_idle_steps=25)


TRACKS = np.array([3000, 3001, 3000, 3002, 3001, 3003, 3000])


def test_returns_do_not_depend_on_the_order(real):
    parameters = controllers(len(TRACKS))
    parameters[::2, 1] = -20  # these stand still
    returns, lengths = real.drive(parameters, TRACKS)
    assert np.isfinite(returns).all()
    assert returns.dtype == np.float64
    assert set(lengths.tolist()) == {25, 40}  # some were stopped early, so the batch was mixed
    order = np.array([6, 2, 5, 0, 3, 1, 4])
    shuffled = real.drive(parameters[order], TRACKS[order])
    np.testing.assert_array_equal(shuffled[0], returns[order])
    np.testing.assert_array_equal(shuffled[1], lengths[order])
    alone = real.drive(parameters[3:4], TRACKS[3:4])
    assert (alone[0][0], alone[1][0]) == (returns[3], lengths[3])
    some = real.drive(parameters, TRACKS, episodes=iter([4, 2]))
    np.testing.assert_array_equal(np.isfinite(some[0]), [False, False, True, False, True, False, False])
    np.testing.assert_array_equal(some[0][[2, 4]], returns[[2, 4]])


def test_returns_do_not_depend_on_how_many_workers_there_are(untrained):
    found, models = [], loading.get_weights(*loading.load_models(untrained))
    for count in (1, 2):
        with WorkerPool(count, worlds.make_real_world, models, CARS, 15) as workers:
            found.append(evolution.evaluate(workers, "real", controllers(3, size=2.0), np.array([3000, 3001])))
    assert found[0][0].shape == (3, 2)
    assert found[0][0].tobytes() == found[1][0].tobytes()
    assert found[0][1] == found[1][1]


def test_the_real_world_is_a_plain_loop(loaded, real):
    """One car, V and M called for each frame, no lockstep."""
    vae, rnn, _ = loaded
    parameters, seen = controllers(1)[0], []
    returns, lengths = real.drive(parameters[None], np.array([3000]), on_step=seen.append)
    env = CarRacing64("fast")
    frame, _ = env.reset(seed=3000)
    h, c = rnn.initial_state(1)
    total, before = 0.0, None
    for step in seen:
        z, _ = vae.encode(np.repeat(frame[None], CARS, 0))
        z = z[:1]
        if before is not None:
            _, (h, c) = rnn.step(*before, (h, c))
        action = one_action(parameters, np.concatenate([z[0], h[0]])).astype(np.float32)
        np.testing.assert_array_equal(step.frame, frame)
        np.testing.assert_allclose(step.z, z[0], atol=0.02)
        np.testing.assert_allclose(step.h, h[0], atol=0.01)
        np.testing.assert_allclose(step.action, action, atol=0.01)
        frame, reward, left, _, _ = env.step(step.action)
        assert (step.reward, step.done, step.episode) == (reward, left, 0)
        total += reward
        before = z, step.action[None]
    np.testing.assert_array_equal(seen[-1].final_obs, frame)
    assert all(step.final_obs is None for step in seen[:-1])
    assert not seen[0].h.any()
    assert len(seen) == lengths[0]
    charge = 0.1 * (40 - lengths[0]) if lengths[0] < 40 else 0
    assert returns[0] == pytest.approx(total - charge)


def test_frames_is_the_most(loaded):
    world = worlds.RealWorld(*loaded[:2], CARS, max_steps=12)
    _, lengths = world.drive(controllers(6), TRACKS[:6])
    assert lengths.tolist() == [12] * 6


def test_who_stands_still_is_charged_as_if_it_did_to_the_end(loaded):
    world = worlds.RealWorld(*loaded[:2], CARS, max_idle_steps=20)
    standing = np.zeros((1, 867), np.float32)
    standing[0, 1] = -20  # no gas
    returns, lengths = world.drive(standing, np.array([3000]))
    env = CarRacing64("fast")
    env.reset(seed=3000)
    assert lengths[0] == 20
    assert returns[0] == pytest.approx(1000 / len(env.track) * env.tile_visited_count - 0.1 * 1000)


class Scripted:
    """Stands for the game: it ends as it is told, on the third frame."""

    def __init__(self, left: bool, stopped: bool, finished: bool) -> None:
        self.end, self.lap_finished, self.tile_visited_count, self.t = (left, stopped), finished, 5, 0

    def reset(self, seed):
        self.t = 0
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action):
        self.t += 1
        ends = self.end if self.t == 3 else (False, False)
        return np.full((64, 64, 3), self.t, np.uint8), 1.0, *ends, {}


@pytest.mark.parametrize(
    ("left", "stopped", "finished", "done"),
    [(True, False, False, True), (False, True, True, True), (False, True, False, False)],
    ids=["left the field", "finished the lap", "out of time"],
)
def test_how_a_drive_ends(loaded, left, stopped, finished, done):
    world = worlds.RealWorld(*loaded[:2], 2, max_idle_steps=3)
    world.envs = [Scripted(left, stopped, finished) for _ in range(2)]
    seen = []
    returns, lengths = world.drive(controllers(3), np.arange(3), on_step=seen.append)
    assert lengths.tolist() == [3, 3, 3]
    assert returns.tolist() == [3.0, 3.0, 3.0]  # over is over: no charge for patience on top
    last = [step for step in seen if step.final_obs is not None]
    assert sorted(step.episode for step in last) == [0, 1, 2]
    assert [step.done for step in last] == [done] * 3
    assert all((step.final_obs == 3).all() and (step.frame == 2).all() for step in last)


def test_noise_is_its_tracks_own(real):
    parameters, noise = controllers(3), np.array([0.5, 0.0, 0.5])
    tracks = np.array([3000, 3001, 3002])
    actions = {0: [], 1: [], 2: []}
    returns, _ = real.drive(parameters, tracks, lambda seen: actions[seen.episode].append(seen.action), noise)
    order = [2, 0, 1]
    again, _ = real.drive(parameters[order], tracks[order], noise=noise[order])
    np.testing.assert_array_equal(again, returns[order])
    plain, _ = real.drive(parameters, tracks)
    assert plain[1] == returns[1]
    assert plain[0] != returns[0]
    for pair in (0, 2):
        driven = np.array(actions[pair])
        assert (driven.min(0) >= (-1, 0, 0)).all()
        assert (driven.max(0) <= 1).all()


STARTS = {
    "mu": np.random.default_rng(3).normal(size=(5, 4, 32)).astype(np.float16),
    "action": np.random.default_rng(4).uniform(0, 1, (5, 4, 3)).astype(np.float16),
}


@pytest.fixture(scope="module")
def dreamer():
    """An M that ends a dream one time in fifty, in float32: differences can't hide behind bfloat16."""
    import keras

    keras.utils.set_random_seed(9)
    rnn = MDNRNN()
    rnn.done.bias.assign([-4.0])
    rnn.reward.bias.assign([0.3])
    return rnn


@pytest.fixture(scope="module")
def dream(dreamer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.rnn.dtype_policy", lambda: "float32")
        return worlds.DreamWorld(dreamer, STARTS, num_envs=6, temperature=0.8, max_steps=30)


def test_the_same_seeds_dream_the_same_in_any_order(dream):
    parameters, tracks = controllers(16), np.repeat(np.arange(8), 2) + 100
    returns, lengths = dream.drive(parameters, tracks)
    again = dream.drive(parameters, tracks)
    np.testing.assert_array_equal(again[0], returns)
    order = np.random.default_rng(1).permutation(16)
    shuffled = dream.drive(parameters[order], tracks[order])
    np.testing.assert_array_equal(shuffled[0], returns[order])
    np.testing.assert_array_equal(shuffled[1], lengths[order])
    some = dream.drive(parameters, tracks, episodes=iter([3, 9]))
    assert np.flatnonzero(np.isfinite(some[0])).tolist() == [3, 9]
    np.testing.assert_array_equal(some[0][[3, 9]], returns[[3, 9]])
    assert len(set(returns.tolist())) == 16
    same_candidate = dream.drive(np.repeat(parameters[:1], 4, 0), np.array([7, 7, 8, 7]))[0]
    assert same_candidate[0] == same_candidate[1] == same_candidate[3] != same_candidate[2]


def test_a_dream_is_a_plain_loop(dream, dreamer):
    parameters, tracks, seen = controllers(8), np.arange(8) + 50, []
    returns, lengths = dream.drive(parameters, tracks, on_step=seen.append)
    for pair, (row, seed) in enumerate(zip(parameters, tracks)):
        # The noise of a track: where it starts, then uniform, normal, and the end's uniform numbers.
        random = np.random.default_rng(seed)
        start = random.integers(5)
        uniform, normal, end = random.random((30, 32)), random.normal(size=(30, 32)), random.random(30)
        mu, action = (STARTS[name][start].astype(np.float32) for name in ("mu", "action"))
        state = dreamer.initial_state(1)
        for k in range(3):
            _, state = dreamer.step(mu[None, k], action[None, k], state)
        z, total = mu[None, 3], 0.0
        mine = [step for step in seen if step.episode == pair]
        for t in range(30):
            act = one_action(row, np.concatenate([z[0], state[0][0]]))
            np.testing.assert_allclose(mine[t].z, z[0], atol=2e-3)
            np.testing.assert_allclose(mine[t].h, state[0][0], atol=1e-3)
            np.testing.assert_allclose(mine[t].action, act, atol=1e-3)
            prediction, state = dreamer.step(z, act[None].astype(np.float32), state)
            assert mine[t].reward == pytest.approx(float(prediction.reward[0]), abs=1e-3)
            assert mine[t].frame is None
            total += float(prediction.reward[0])
            over = end[t] < 1 / (1 + np.exp(-float(prediction.done[0])))
            assert mine[t].done == over
            if over:
                break
            noise = uniform[None, t].astype(np.float32), normal[None, t].astype(np.float32)
            z = dreamer.sample(prediction, 0.8, noise).numpy()
        assert lengths[pair] == t + 1 == len(mine)
        assert returns[pair] == pytest.approx(total, abs=0.01)
    assert lengths.min() < 30 == lengths.max()


def test_a_dream_without_reward_is_stopped_and_charged(dreamer, monkeypatch):
    monkeypatch.setattr("models.rnn.dtype_policy", lambda: "float32")
    rnn = MDNRNN()
    rnn.set_weights(dreamer.get_weights())
    rnn.reward.bias.assign([0.0])
    parameters, tracks, seen, until_stopped = controllers(32), np.arange(32), [], []
    returns, lengths = worlds.DreamWorld(rnn, STARTS, 8, max_steps=30).drive(parameters, tracks, seen.append)
    # As 07 makes it: 8 dreams, temperature 1, 30 steps, one car, 4 idle steps.
    world = worlds.make_dream_world(loading.get_weights(VAE(), rnn), STARTS, 8, 1.0, 30, 1, 4)["dream"]
    stopped, stopped_lengths = world.drive(parameters, tracks, until_stopped.append)
    for episode in range(32):
        ends = [step.done for step in until_stopped if step.episode == episode]
        assert ends == [step.done for step in seen if step.episode == episode][: stopped_lengths[episode]]
        rewards = np.array([step.reward for step in seen if step.episode == episode])
        idle = np.convolve(rewards <= 0, np.ones(4), "valid") == 4
        if not idle.any():
            assert (stopped[episode], stopped_lengths[episode]) == (returns[episode], lengths[episode])
            continue
        length = int(idle.argmax()) + 4
        ended = length == len(rewards) < 30  # by M, in the same step: nothing is charged
        assert stopped_lengths[episode] == length
        expected = rewards[:length].sum() - (0 if ended else 0.1 * (30 - length))
        assert stopped[episode] == pytest.approx(expected, abs=1e-3)
    assert 4 <= sum(stopped_lengths < lengths) < 32


def test_inference_kernels_dream_nearly_the_same(dreamer, monkeypatch):
    """cast_for_inference() takes bfloat16 on processors that have it; elsewhere it changes nothing."""
    cast = MDNRNN()
    cast.set_weights(dreamer.get_weights())
    parameters, tracks = controllers(6), np.arange(6)
    found = worlds.DreamWorld(cast, STARTS, num_envs=6, max_steps=1).drive(parameters, tracks)[0]
    monkeypatch.setattr("models.rnn.dtype_policy", lambda: "float32")
    expected = worlds.DreamWorld(dreamer, STARTS, num_envs=6, max_steps=1).drive(parameters, tracks)[0]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_load_gives_what_belongs_together(untrained):
    vae, rnn, parameters = worlds.load(untrained)
    assert parameters.shape == (867,)
    assert worlds.load(untrained, "dream_controller")[2].shape == (867,)
    assert vae.count_params() == 4_348_547
    starts = loading.load_starts(untrained, vae)
    assert starts["mu"].shape == (6, 4, 32)
    assert loading.fingerprints(vae, rnn)["vae"] == str(starts["vae"])


def test_a_mixture_is_refused(linked):
    """V is trained anew: M, C and the starts are of the old one."""
    vae = VAE()
    (linked / "vae.weights.h5").unlink()
    weights.save(linked / "vae.weights.h5", vae)
    with pytest.raises(UserError, match=r"rnn.weights.h5 was trained on another vae .* run 04_train_rnn.py again"):
        worlds.load(linked)
    rnn = MDNRNN()
    (linked / "rnn.weights.h5").unlink()
    weights.save(linked / "rnn.weights.h5", rnn, vae=weights.fingerprint(vae.get_weights()))
    with pytest.raises(UserError, match=r"controller.weights.h5 was trained on another vae .* 05_train_contr"):
        worlds.load(linked)
    with pytest.raises(UserError, match=r"dream_controller.weights.h5 was .* run 07_dream_train.py again"):
        worlds.load(linked, "dream_controller")
    with pytest.raises(UserError, match=r"dream_starts.npz was made with another V .* run 03_series.py again"):
        loading.load_starts(linked, vae)


def test_fingerprints():
    one = [np.arange(6.0).reshape(2, 3), np.zeros(2)]
    assert weights.fingerprint(one) == weights.fingerprint([array.astype(np.float32) for array in one])
    assert len(weights.fingerprint(one)) == 16
    assert weights.fingerprint(one) != weights.fingerprint([one[0].reshape(3, 2), one[1]])
    assert weights.fingerprint(one) != weights.fingerprint(one[::-1])
    assert weights.fingerprint(one) != weights.fingerprint([one[0] + 1e-6, one[1]])
