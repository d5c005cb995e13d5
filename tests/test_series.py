"""How the series is cut into sequences: pipeline/series.py, on numbers that say where they come from."""

from pipeline import series as series_file

import numpy as np
import pytest

LENGTHS = np.array([5, 2, 7], np.int32)


@pytest.fixture
def series():
    """Three rollouts of 5, 2 and 7 frames; each row's mu, action and reward are its number."""
    rows = np.arange((LENGTHS + 1).sum())
    return {
        "mu": np.repeat(rows[:, None], 4, 1).astype(np.float16),
        "logvar": -np.repeat(rows[:, None], 4, 1).astype(np.float16),
        "action": np.repeat(rows[:, None], 3, 1).astype(np.float16),
        "reward": rows.astype(np.float32),
        "done": np.isin(rows, [4, 7]),
        "lengths": LENGTHS,
        "names": np.array(["a", "b", "c"]),
    }


def test_episodes_are_first_rows_and_lengths(series):
    assert series_file.episodes(series).tolist() == [[0, 5], [6, 2], [9, 7]]


def test_a_sequence_ends_with_its_rollout(series):
    """Of the 5 frames from row 6 on there are 2: the mask is 1 on these, and the next z of the last is row 8."""
    batch = series_file.slice_sequences(series, np.array([6, 1]), np.array([8, 5]), 5)
    assert batch["mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert batch["mu"][..., 0].tolist() == [[6, 7, 8, 8, 8, 8], [1, 2, 3, 4, 5, 5]]
    assert (batch["logvar"] == -batch["mu"]).all()
    assert batch["action"][..., 0].tolist() == [[6, 7, 8, 8, 8], [1, 2, 3, 4, 5]]
    assert batch["reward"].tolist() == [[6, 7, 8, 8, 8], [1, 2, 3, 4, 5]]
    assert batch["done"].tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert {array.dtype.name for array in batch.values()} == {"float32"}


def test_whole_episodes_are_padded_to_the_longest(series):
    batch = series_file.full_episodes(series, series_file.episodes(series))
    assert batch["mask"].sum(1).tolist() == [5, 2, 7]
    assert batch["mu"].shape == (3, 8, 4)
    assert batch["mu"][:, 0, 0].tolist() == [0, 6, 9]


def test_windows_lie_within_their_rollouts_and_come_as_often_as_there_are_frames(series):
    episodes = series_file.episodes(series)
    batch = series_file.sample_windows(series, episodes, 4_000, 3, np.random.default_rng(1))
    first = batch["reward"][:, 0].astype(int)
    assert set(first) == {0, 1, 2, 6, 9, 10, 11, 12, 13}
    assert batch["mask"].sum(1).tolist() == [2 if row == 6 else 3 for row in first]
    assert np.mean(first == 6) == pytest.approx(2 / 14, abs=0.03)
    assert np.mean(first < 6) == pytest.approx(5 / 14, abs=0.03)


def test_active_latents_vary(series):
    series["mu"][:, 0] = 1
    assert series_file.active_latents(series, series_file.episodes(series), 0.3).tolist() == [False, True, True, True]
    series["mu"][:] = 1  # a V that has learned nothing: all of them
    assert series_file.active_latents(series, series_file.episodes(series), 0.3).all()
