"""M against independent computations in NumPy, float64."""

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


def test_frozen_for_driving_it_is_nearly_the_same(model, drive):
    z, action = drive
    frozen = MDNRNN()
    frozen.set_weights(model.get_weights())
    frozen.cast_for_inference()
    state, frozen_state = model.initial_state(4), frozen.initial_state(4)
    for frame in range(9):
        prediction, state = model.step(z[:, frame], action[:, frame], state)
        frozen_prediction, frozen_state = frozen.step(z[:, frame], action[:, frame], frozen_state)
    assert np.abs(state[0] - frozen_state[0]).max() < 0.01
    assert max(np.abs(a - b).max() for a, b in zip(prediction, frozen_prediction)) < 0.05
