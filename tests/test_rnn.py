"""M against independent computations in NumPy, float64."""

from models.baselines import baselines, posterior_entropy
from models.rnn import MDNRNN, Prediction, negative_log_likelihood
from pipeline.files import suppress_stderr

import numpy as np
import pytest

with suppress_stderr():
    import tensorflow as tf


@pytest.fixture(scope="module")
def model():
    model = MDNRNN()
    random = np.random.default_rng(1)  # the biases start at zero: give each its own value, so that a mix-up shows
    model.set_weights([array + random.normal(0, 0.05, array.shape) for array in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def drive():
    random = np.random.default_rng(2)
    return random.standard_normal((4, 9, 32)).astype(np.float32), random.uniform(-1, 1, (4, 9, 3)).astype(np.float32)


def some_prediction(n, seed=3):
    random = np.random.default_rng(seed)
    logits, mu = random.normal(0, 1.5, (n, 32, 5)), random.normal(0, 2, (n, 32, 5))
    log_sigma = random.normal(-1, 1, (n, 32, 5))
    return Prediction(*(array.astype(np.float32) for array in (logits, mu, log_sigma)), np.zeros(n), np.zeros(n))


def softmax(logits):
    weights = np.exp(logits.astype(np.float64))
    return weights / weights.sum(-1, keepdims=True)


def test_has_the_papers_parameters(model):
    heads = model.reward.count_params() + model.done.count_params()
    assert heads == 2 * 257
    assert model.count_params() - heads == 422_368


def test_lstm_is_the_one_of_numpy(model, drive):
    z, action = drive
    kernel, recurrent, bias = (np.asarray(variable, np.float64) for variable in model.lstm.cell.trainable_variables)
    h = c = np.zeros((4, 256))
    state = model.initial_state(4)
    for frame in range(9):
        enter, keep, new, leave = np.split(np.c_[z[:, frame], action[:, frame]] @ kernel + h @ recurrent + bias, 4, -1)
        c = c / (1 + np.exp(-keep)) + np.tanh(new) / (1 + np.exp(-enter))
        h = np.tanh(c) / (1 + np.exp(-leave))
        state = model.update_state(z[:, frame], action[:, frame], state)
    np.testing.assert_allclose(state[0], h, atol=1e-5)
    np.testing.assert_allclose(state[1], c, atol=1e-5)


def test_step_by_step_is_the_whole_sequence(model, drive):
    z, action = drive
    whole = model(z, action)
    assert [part.shape[2:] for part in whole] == [(32, 5), (32, 5), (32, 5), (), ()]
    step = tf.function(model.step)
    state = model.initial_state(4)
    for frame in range(9):
        prediction, state = step(z[:, frame], action[:, frame], state)
        for part, whole_part in zip(prediction, whole):
            np.testing.assert_allclose(part, whole_part[:, frame], atol=1e-5)


def test_the_next_z_depends_on_the_action_and_the_past(model, drive):
    z, action = drive
    whole, turned, forgetful = model(z, action), model(z, -action), model(z[:, 3:], action[:, 3:])
    assert np.abs(whole.mu - turned.mu).max() > 1e-3
    assert np.abs(whole.mu[:, 3:] - forgetful.mu).max() > 1e-3


def test_likelihood_is_the_one_of_numpy():
    prediction = some_prediction(200)
    z = np.random.default_rng(4).normal(0, 2, (200, 32)).astype(np.float32)
    mu, sigma = prediction.mu.astype(np.float64), np.exp(prediction.log_sigma.astype(np.float64))
    density = np.exp(-(((z[..., None] - mu) / sigma) ** 2) / 2) / (np.sqrt(2 * np.pi) * sigma)
    likely = (softmax(prediction.logits) * density).sum(-1)
    with np.errstate(divide="ignore"):
        expected = -np.log(likely)
    ordinary = likely > 1e-250  # beyond, this NumPy computation underflows and the tested one does not
    assert ordinary.mean() > 0.95
    result = np.asarray(negative_log_likelihood(prediction, z))
    np.testing.assert_allclose(result[ordinary], expected[ordinary], rtol=1e-4, atol=1e-4)
    assert np.isfinite(result).all()


def test_likelihood_of_whole_sequences_has_a_finite_gradient_far_out():
    mu = tf.Variable(tf.zeros((2, 3, 32, 5)))
    with tf.GradientTape() as tape:
        prediction = Prediction(tf.zeros((2, 3, 32, 5)), mu, tf.fill((2, 3, 32, 5), -3.0), None, None)
        nats = negative_log_likelihood(prediction, tf.fill((2, 3, 32), 100.0))
    assert nats.shape == (2, 3, 32)
    assert np.isfinite(tape.gradient(nats, mu)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_samples_have_the_mean_and_variance_of_the_mixture(model, temperature):
    one = some_prediction(1, seed=5)
    n = 100_000
    many = Prediction(*(np.repeat(part, n, 0) for part in one))
    random = np.random.default_rng(6)
    noise = random.random((n, 32), np.float32), random.standard_normal((n, 32), np.float32)
    z = np.asarray(tf.function(model.sample)(many, temperature, noise), np.float64)

    weights = softmax(one.logits[0] / temperature)
    mu, variance = one.mu[0].astype(np.float64), np.exp(2 * one.log_sigma[0].astype(np.float64)) * temperature
    mean = (weights * mu).sum(-1)
    expected_variance = (weights * (variance + mu**2)).sum(-1) - mean**2
    error = np.sqrt(expected_variance / n)
    assert (np.abs(z.mean(0) - mean) < 5 * error).all()
    np.testing.assert_allclose(z.var(0), expected_variance, rtol=0.12)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1.3])
def test_sampling_is_the_inverse_of_the_cumulated_weights(model, temperature):
    prediction = some_prediction(300)
    random = np.random.default_rng(7)
    uniform, normal = random.random((300, 32), np.float32), random.standard_normal((300, 32), np.float32)
    uniform[0] = 0  # the least that can be drawn
    uniform[1] = np.nextafter(np.float32(1), np.float32(0))  # and the most
    cumulated = np.cumsum(softmax(prediction.logits / temperature), -1)
    chosen = np.minimum((cumulated <= uniform[..., None].astype(np.float64)).sum(-1), 4)[..., None]
    mu, log_sigma = (np.take_along_axis(part, chosen, -1)[..., 0] for part in prediction[1:3])
    expected = mu + np.exp(log_sigma) * np.sqrt(temperature) * normal
    edge = np.abs(cumulated - uniform[..., None]).min(-1) < 1e-5  # either side is right there
    result = np.asarray(model.sample(prediction, temperature, (uniform, normal)))
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[~edge], expected[~edge], rtol=1e-4, atol=1e-4)


def test_cast_for_inference_is_nearly_the_same(model, drive):
    z, action = drive
    cast = MDNRNN()
    cast.set_weights(model.get_weights())
    cast.cast_for_inference()
    state, cast_state = model.initial_state(4), cast.initial_state(4)
    for frame in range(9):
        prediction, state = model.step(z[:, frame], action[:, frame], state)
        cast_prediction, cast_state = cast.step(z[:, frame], action[:, frame], cast_state)
    assert np.abs(state[0] - cast_state[0]).max() < 0.01
    assert max(np.abs(a - b).max() for a, b in zip(prediction, cast_prediction)) < 0.05


@pytest.fixture(scope="module")
def batch():
    """Three sequences of 6 frames, padded after 6, 4 and 1 of them with numbers that must not count."""
    random = np.random.default_rng(8)
    mask = (np.arange(6) < np.array([[6], [4], [1]])).astype(np.float32)
    arrays = {
        "mu": random.standard_normal((3, 7, 32)),
        "logvar": random.normal(-2, 1, (3, 7, 32)),
        "action": random.uniform(-1, 1, (3, 6, 3)),
        "reward": random.choice([-100.0, -0.1, 3.2], (3, 6)),
        "done": random.random((3, 6)) < 0.5,
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {"mask": mask, "seed": (5, 6)}


def numpy_terms(model, batch, z_noise, min_reward):
    """The loss terms in plain NumPy, frame by frame from M's predictions: nats of each latent, the reward, the end."""
    noise = np.asarray(tf.random.stateless_normal((3, 7, 32), batch["seed"]), np.float64)
    z = batch["mu"] + np.exp(batch["logvar"] / 2) * z_noise * noise
    prediction = [np.asarray(part, np.float64) for part in model(z[:, :-1].astype(np.float32), batch["action"])]
    latents, reward, done, frames = np.zeros(32), 0.0, 0.0, 0
    for n in range(3):
        for t in range(int(batch["mask"][n].sum())):
            logits, mu, log_sigma = (part[n, t] for part in prediction[:3])
            density = np.exp(-(((z[n, t + 1][:, None] - mu) / np.exp(log_sigma)) ** 2) / 2 - log_sigma)
            latents -= np.log((softmax(logits) * density).sum(-1) / np.sqrt(2 * np.pi))
            reward += (prediction[3][n, t] - max(batch["reward"][n, t], min_reward)) ** 2 / 2
            probability = 1 / (1 + np.exp(-prediction[4][n, t]))
            done -= np.log(probability if batch["done"][n, t] else 1 - probability)
            frames += 1
    return latents / frames, reward / frames, done / frames


@pytest.mark.parametrize(("z_noise", "min_reward"), [(1.0, -1.0), (0.25, -50.0)])
def test_loss_terms_are_the_ones_of_numpy(model, batch, z_noise, min_reward):
    import keras

    model.compile(keras.optimizers.Adam(), np.ones(32), z_noise, min_reward)
    expected = numpy_terms(model, batch, z_noise, min_reward)
    for term, value in zip(model.loss_terms(batch), expected):
        np.testing.assert_allclose(term, value, rtol=1e-3, atol=1e-4)


def test_training_and_metrics_take_every_term(batch):
    import keras

    model, active = MDNRNN(), np.arange(32) < 5
    model.compile(keras.optimizers.SGD(0.01), active, z_noise=0.5)
    with tf.GradientTape() as tape:
        nll, reward, done = model.loss_terms(batch)
        loss = tf.reduce_sum(nll) + reward + done
    heads = (model.mixture.bias, model.reward.bias, model.done.bias)
    expected = [bias - 0.01 * gradient for bias, gradient in zip(heads, tape.gradient(loss, heads))]
    assert all(np.abs(new - old).max() > 0 for new, old in zip(expected, heads))
    logs = model.train_step(batch)
    for bias, value in zip(heads, expected):
        np.testing.assert_allclose(bias, value, rtol=1e-4, atol=1e-6)
    assert float(logs["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(logs["nll"]) == pytest.approx(float(np.mean(nll[:5])), rel=1e-5)
    assert float(logs["reward_error"]) == pytest.approx(2 * float(reward), rel=1e-5)
    assert float(logs["done_nll"]) == pytest.approx(float(done), rel=1e-5)


def test_baselines_are_the_ones_of_numpy():
    random = np.random.default_rng(9)
    matrix, active = random.normal(0, 0.3, (35, 32)), np.arange(32) % 2 == 0

    def sequences(count):
        z, action = random.standard_normal((count, 8, 32)), random.uniform(-1, 1, (count, 7, 3))
        mask = (np.arange(7) < random.integers(1, 8, (count, 1))).astype(np.float32)
        z[:, 1:] = np.concatenate([z[:, :-1], action], -1) @ matrix + random.normal(0, 0.1, (count, 7, 32))
        return z.astype(np.float32), action.astype(np.float32), mask

    train, held_out = sequences(60), sequences(20)
    found = baselines([train], [held_out], active)

    def flat(z, action, mask):
        known = mask > 0
        x = np.concatenate([z[:, :-1], action, np.ones((*mask.shape, 1))], -1)[known].astype(np.float64)
        return x, z[:, 1:][known].astype(np.float64)

    (x, y), (x_new, y_new) = flat(*train), flat(*held_out)
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    for name, old, new in (
        ("linear regression", x @ solution, x_new @ solution),
        ("persistence", x[:, :32], x_new[:, :32]),
    ):
        variance = ((y - old) ** 2).mean(0)
        nll = (np.log(2 * np.pi * variance) + (y_new - new) ** 2 / variance)[:, active].mean() / 2
        assert found[name] == pytest.approx(nll, rel=1e-3)
    assert found["linear regression"] < found["persistence"]


def test_posterior_entropy_is_the_one_of_a_gaussian():
    logvar = np.log(np.array([[0.04, 9.0], [0.25, 9.0]]))
    entropy = np.mean([0.5 * np.log(2 * np.pi * np.e * (0.5 * sigma) ** 2) for sigma in (0.2, 0.5)])
    assert posterior_entropy(logvar, 0.5, np.array([True, False])) == pytest.approx(entropy)
