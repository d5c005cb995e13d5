"""CMA-ES, its history and going on from it: models/evolution.py, on worlds that cost nothing."""

import json
import re

from models import controller, evolution, history
from models.tracks import EVOLUTION_TRACKS, SELECTION_TRACKS
from pipeline import UserError
from pipeline.files import load_npz, save_npz

import cv2
import h5py
import numpy as np
import pytest

ORIGIN = {"vae": "0123", "rnn": "4567"}
CONSTANTS = {
    "POPULATION": 8,
    "EPISODES": 2,
    "HARD_TRACKS": 0,
    "SIGMA": 0.1,
    "SEED": 3,
    "DIAGONAL": True,
    "AVERAGE": 2,
    "FEATURES": "zh",
    "INIT_FROM": "zero",
    "SCRIPT": "05_train_controller.py",
}
BASIS = np.eye(1 + controller.FEATURES, dtype=np.float32)
TARGET = np.random.default_rng(5).normal(0, 0.3, controller.PARAMETERS)


plot_history = history.plot_history


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than all the rest; one test draws one."""
    monkeypatch.setattr(evolution, "plot_history", lambda *_: None)


class Bowl:
    """A world whose return is how near a controller is to TARGET, and a little of the track's luck."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign, self.driven = sign, []

    def drive(self, parameters, tracks, episodes, max_parallel):
        returns, lengths = np.full(len(tracks), np.nan), np.zeros(len(tracks), np.int64)
        for pair in episodes:
            luck = np.random.default_rng(tracks[pair]).normal(0, 0.01)
            returns[pair] = luck - self.sign * ((parameters[pair] - TARGET) ** 2).sum()
            lengths[pair] = 10
            self.driven.append(int(tracks[pair]))
        return returns, lengths


class TwoAtOnce:
    """Stands for `WorkerPool`: two of them, in this process, that take the pairs in turn."""

    count = 2

    def __init__(self, *worlds, fail_at: int = -1) -> None:
        self.worlds, self.shares, self.fail_at = dict(zip(("real", "dream"), worlds)), 0, fail_at

    def run_on_all(self, task, total, *arguments):
        self.shares += 1
        if self.shares == self.fail_at:
            raise KeyboardInterrupt
        return [task(self.worlds, iter(range(first, total, 2)), *arguments) for first in (0, 1)]


def evolve(
    folder,
    workers=None,
    worlds=("real",),
    generations=6,
    constants=None,
    origin=ORIGIN,
    basis=BASIS,
    eval_every=2,
    eval_episodes=5,
):
    """Run a search in `folder`: its history, the best controller, and the fingerprints that it carries."""
    settings = CONSTANTS | {"EVAL_EVERY": eval_every, "EVAL_EPISODES": eval_episodes} | (constants or {})
    path, best = folder / "controller.npz", folder / "controller.weights.h5"
    workers = workers or TwoAtOnce(Bowl(), Bowl(-1))
    evolution.Evolution(workers, worlds, settings, origin, basis, path, best).run(generations)
    if not best.exists():
        return load_npz(path, ""), None, {}
    with h5py.File(best) as file:
        return load_npz(path, ""), file["controller"][()], {name: file.attrs[name] for name in origin}


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_search_finds_an_optimum(diagonal):
    target = np.linspace(-1, 1, 21)
    search = evolution.CMAES(np.zeros(21), np.eye(7), 12, 0.5, seed=1, diagonal=diagonal)
    for _ in range(250):
        search.tell(-((search.ask() - target) ** 2).sum(1))
    np.testing.assert_allclose(search.mean, target, atol=0.01)
    assert search.sigma < 0.1


def test_the_search_starts_at_zero_with_sigma():
    search = evolution.CMAES(np.zeros(867), np.eye(289), 400, 0.1, seed=1, diagonal=False)
    candidates = search.ask()
    assert candidates.shape == (400, 867)
    np.testing.assert_array_equal(search.mean, 0)
    assert abs(candidates.mean()) < 1e-3
    assert candidates.std() == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_same_seed_and_fitnesses_replay_the_search_to_the_last_bit(diagonal):
    random = np.random.default_rng(0)
    searches = [evolution.CMAES(np.zeros(39), np.eye(13), 8, 0.1, seed=4, diagonal=diagonal) for _ in range(2)]
    told = []
    for _ in range(30):
        np.random.seed(None)  # noqa: NPY002  whatever others do with NumPy's global generator
        searches[0].ask()
        told.append(random.normal(size=8))
        searches[0].tell(told[-1])
    for fitness in told:
        searches[1].ask()
        searches[1].tell(fitness)
    assert searches[0].mean.tobytes() == searches[1].mean.tobytes()
    assert searches[0].sigma == searches[1].sigma
    assert searches[0].ask().tobytes() == searches[1].ask().tobytes()
    other = evolution.CMAES(np.zeros(39), np.eye(13), 8, 0.1, seed=5, diagonal=diagonal)
    assert (
        other.ask().tobytes()
        != evolution.CMAES(np.zeros(39), np.eye(13), 8, 0.1, seed=4, diagonal=diagonal).ask().tobytes()
    )


def test_the_result_is_the_average_of_the_last_means():
    plain, averaged = (evolution.CMAES(np.zeros(21), np.eye(7), 8, 0.1, 1, False, average) for average in (1, 3))
    means = [plain.mean]
    for _ in range(5):
        for search in (plain, averaged):
            search.tell(-(search.ask() ** 2).sum(1))
        means.append(plain.mean)
        np.testing.assert_allclose(averaged.mean, np.mean(means[-3:], 0), rtol=0, atol=1e-12)
    assert np.abs(averaged.mean - plain.mean).max() > 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_tell_rejects_nonfinite_fitness(bad):
    search = evolution.CMAES(np.zeros(6), np.eye(2), 8, 0.1, seed=1, diagonal=False)
    search.ask()
    with pytest.raises(ValueError, match="not finite"):
        search.tell(np.array([1.0, bad, *range(6)]))
    search.tell(np.arange(8.0))  # nothing had been told


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_return_that_is_no_number_ends_the_run_and_keeps_what_there_was(tmp_path, bad):
    evolve(tmp_path, generations=2)
    before = (tmp_path / "controller.npz").read_bytes(), (tmp_path / "controller.weights.h5").read_bytes()

    class Bad(Bowl):
        def drive(self, parameters, tracks, episodes, max_parallel):
            returns, lengths = super().drive(parameters, tracks, episodes, max_parallel)
            returns[3] = bad
            return returns, lengths

    with pytest.raises(UserError, match="have no finite return"):
        evolve(tmp_path, TwoAtOnce(Bad()))
    assert before == ((tmp_path / "controller.npz").read_bytes(), (tmp_path / "controller.weights.h5").read_bytes())


def test_a_missing_return_is_never_a_score():
    class Lazy(Bowl):
        def drive(self, parameters, tracks, episodes, max_parallel):
            return super().drive(parameters, tracks, (pair for pair in episodes if pair != 5), max_parallel)

    with pytest.raises(UserError, match="1 episodes have no finite return"):
        evolution.evaluate(TwoAtOnce(Lazy()), "real", np.zeros((4, 867)), np.arange(3))


def test_drive_all_puts_every_return_in_its_place():
    parameters = np.random.default_rng(1).normal(size=(3, 867))
    returns, frames = evolution.evaluate(TwoAtOnce(Bowl()), "real", parameters, np.array([7, 8]))
    luck = [np.random.default_rng(seed).normal(0, 0.01) for seed in (7, 8)]
    np.testing.assert_allclose(returns, luck - ((parameters - TARGET) ** 2).sum(1)[:, None])
    assert frames == 60


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workers = TwoAtOnce(Bowl(), Bowl(-1))
    return (*evolve(tmp_path_factory.mktemp("whole"), workers, ("real", "dream")), workers)


def test_evolution_climbs_and_keeps_the_best(uninterrupted):
    record, best, origin, workers = uninterrupted
    assert record["fitness"].shape == (6, 8)
    assert record["fitness"][-1].mean() > record["fitness"][0].mean()
    # A candidate's fitness is its mean return over the tracks.
    np.testing.assert_allclose(record["fitness"].mean(1), record["track_returns"].mean(1))
    assert record["eval_generation"].tolist() == [2, 4, 6]
    assert record["eval_real"].shape == record["eval_dream"].shape == (3, 5)
    assert record["steps"].tolist() == [160] * 6
    assert origin == ORIGIN
    # The mean that scored best in the first world is what was kept, whatever the second world says of it.
    assert -((best - TARGET) ** 2).sum() == pytest.approx(record["eval_real"].mean(1).max(), abs=0.02)
    tracks = set(workers.worlds["real"].driven)
    evolved = {seed for seed in tracks if seed in EVOLUTION_TRACKS}
    assert len(evolved) == 6 * 2  # new ones each generation, the same for all candidates
    assert tracks - evolved == set(SELECTION_TRACKS[:5])
    assert set(workers.worlds["dream"].driven) == set(SELECTION_TRACKS[:5])  # watched only


def test_best_so_far_stands_beside_the_score_that_decides(tmp_path, capsys):
    evolve(tmp_path, TwoAtOnce(Bowl(), Bowl(-1)), ("dream", "real"), generations=2)
    line = next(line for line in capsys.readouterr().out.splitlines() if "(best so far)" in line)
    assert re.search(r"  dream \S+ ± \d+ \(best so far\)  real \S+ ± \d+  ", line), line


@pytest.mark.parametrize("share", range(1, 13))
def test_stopped_anywhere_it_ends_as_if_it_never_was(tmp_path, uninterrupted, share):
    """12 times the population or the mean are driven: stopped at each of them."""
    with pytest.raises(KeyboardInterrupt):
        evolve(tmp_path, TwoAtOnce(Bowl(), Bowl(-1), fail_at=share), ("real", "dream"))
    assert not list(tmp_path.glob(".tmp-*"))
    record, best, _ = evolve(tmp_path, worlds=("real", "dream"))
    for name, array in uninterrupted[0].items():
        if name != "seconds":
            np.testing.assert_array_equal(record[name], array, err_msg=name)
    np.testing.assert_array_equal(best, uninterrupted[1])


def test_more_generations_go_on_with_the_same_search(tmp_path, uninterrupted):
    evolve(tmp_path, generations=5)
    record, best, _ = evolve(tmp_path)
    np.testing.assert_array_equal(record["fitness"], uninterrupted[0]["fitness"])
    assert record["eval_generation"].tolist() == [2, 4, 5, 6]
    np.testing.assert_array_equal(best, uninterrupted[1])


def test_going_on_from_a_controller_with_another_m(tmp_path):
    _, before, _ = evolve(tmp_path)
    with pytest.raises(UserError, match="INIT_FROM: zero → controller"):
        evolve(tmp_path, constants={"INIT_FROM": "controller"})
    (tmp_path / "controller.npz").unlink()
    origin = {"vae": "0123", "rnn": "89ab"}
    for generations in (3, 6):  # stopped and gone on with: the start is the history's, not the best since
        record, best, found = evolve(
            tmp_path, constants={"INIT_FROM": "controller"}, origin=origin, generations=generations
        )
    np.testing.assert_array_equal(record["x0"], before)
    assert record["eval_generation"].tolist() == [0, 2, 3, 4, 6]
    assert -((before - TARGET) ** 2).sum() == pytest.approx(record["eval_real"][0].mean(), abs=0.02)
    assert found == origin
    assert -((best - TARGET) ** 2).sum() == pytest.approx(record["eval_real"].mean(1).max(), abs=0.02)


def test_a_start_that_nothing_improved_on_is_kept(tmp_path):
    _, before, _ = evolve(tmp_path)
    (tmp_path / "controller.npz").unlink()
    go_on = {"INIT_FROM": "controller", "SIGMA": 100.0}
    evolve(tmp_path, constants=go_on)
    (tmp_path / "controller.weights.h5").unlink()
    _, after, _ = evolve(tmp_path, constants=go_on)
    np.testing.assert_array_equal(before, after)


def test_nothing_to_go_on_from_is_refused(tmp_path):
    cure = r"there is no controller in .*: run 05_train_controller\.py with INIT_FROM=zero first"
    with pytest.raises(UserError, match=cure):
        evolve(tmp_path, constants={"INIT_FROM": "controller"})


def test_a_start_that_looks_at_more_is_refused(tmp_path):
    evolve(tmp_path)
    (tmp_path / "controller.npz").unlink()
    with pytest.raises(UserError, match="looks at h, which FEATURES=z leaves out"):
        evolve(
            tmp_path, constants={"INIT_FROM": "controller", "FEATURES": "z"}, basis=np.eye(33, 289, dtype=np.float32)
        )


def test_a_finished_run_drives_nothing_more(tmp_path, capsys):
    evolve(tmp_path)
    workers = TwoAtOnce(Bowl())
    evolve(tmp_path, workers, generations=4)
    assert workers.shares == 0
    assert "6 generations are done: GENERATIONS=12 continues" in capsys.readouterr().out


def test_fewer_generations_than_are_done_and_nothing_scored_yet(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evolve(tmp_path, TwoAtOnce(Bowl(), fail_at=4), eval_every=5)
    record, best, _ = evolve(tmp_path, generations=2, eval_every=5)
    assert len(record["fitness"]) == 3
    assert best is None  # the mean was never evaluated


def test_a_lost_best_controller_is_made_again(tmp_path):
    _, before, _ = evolve(tmp_path)
    (tmp_path / "controller.weights.h5").unlink()
    _, after, origin = evolve(tmp_path)
    np.testing.assert_array_equal(before, after)
    assert origin == ORIGIN


def test_the_picture(tmp_path, uninterrupted):
    record = {name: list(array) for name, array in uninterrupted[0].items() if name != "settings"}
    plot_history(tmp_path / "curve.png", record, ("real", "dream"))
    assert cv2.imread(str(tmp_path / "curve.png")).shape == (495, 880, 3)


def test_the_search_moves_along_its_directions_only(tmp_path):
    basis = np.random.default_rng(0).normal(size=(4, 289)).astype(np.float32)
    record, best, _ = evolve(tmp_path, generations=4, basis=basis)
    assert np.linalg.norm(best) > 0
    np.testing.assert_allclose(
        basis.T @ np.linalg.lstsq(basis.T, best.reshape(289, 3), rcond=None)[0], best.reshape(289, 3), atol=1e-5
    )
    np.testing.assert_array_equal(record["basis"], basis)
    # A run that continues keeps the directions it began with, whatever V and M make of them on this machine.
    record, _, _ = evolve(tmp_path, generations=6, basis=-basis)
    np.testing.assert_array_equal(record["basis"], basis)


def test_tracks_that_went_badly_are_driven_again(tmp_path):
    """Every third track is bad luck; they come again, and only they, beside new ones."""

    class Unlucky(Bowl):
        def drive(self, parameters, tracks, episodes, max_parallel):
            returns, lengths = super().drive(parameters, tracks, episodes, max_parallel)
            return returns - 1000.0 * (tracks % 3 == 0), lengths

    constants = {"EPISODES": 4, "HARD_TRACKS": 2}
    found, _, _ = evolve(tmp_path, TwoAtOnce(Unlucky()), generations=30, constants=constants)
    (tmp_path / "plain").mkdir()
    plain, _, _ = evolve(tmp_path / "plain", TwoAtOnce(Unlucky()), generations=30, constants={"EPISODES": 4})
    tracks, new = found["tracks"], plain["tracks"]
    assert len(np.unique(new)) == 120
    np.testing.assert_array_equal(tracks[0], new[0])  # there is nothing to drive again yet
    np.testing.assert_array_equal(tracks[:, 2:], new[:, 2:])
    again = np.array([[track in tracks[:row] for track in tracks[row]] for row in range(30)])
    assert again[3:, :2].all()
    assert not again[:, 2:].any()
    assert (tracks[again] % 3 == 0).mean() > 0.9
    assert all(len(set(row)) == 4 for row in tracks)
    expected = [[-1000 if track % 3 == 0 else 0 for track in row] for row in tracks]
    np.testing.assert_allclose(found["track_returns"], expected, atol=300)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"constants": {"SIGMA": 0.2}}, r"different settings \(SIGMA: 0.1 → 0.2\)"),
        ({"constants": {"POPULATION": 9, "SEED": 4}}, "POPULATION: 8 → 9, SEED: 3 → 4"),
        ({"constants": {"DIAGONAL": False}}, "DIAGONAL: True → False"),
        ({"constants": {"SCRIPT": "07_dream_train.py"}}, "SCRIPT: 05_train_controller.py"),
        ({"origin": {"vae": "89ab", "rnn": "4567"}}, "was made with another V, M or dream starts: delete it"),
        ({"eval_episodes": 6}, "EVAL_EPISODES: 5 → 6"),
        ({"eval_every": 3}, "EVAL_EVERY: 2 → 3"),
    ],
)
def test_a_history_of_other_constants_is_refused(tmp_path, change, told):
    evolve(tmp_path, generations=2)
    before = (tmp_path / "controller.npz").read_bytes()
    with pytest.raises(UserError, match=told):
        evolve(tmp_path, **change)
    assert (tmp_path / "controller.npz").read_bytes() == before


def damage(tmp_path, **arrays):
    """A history in which some arrays are others; None takes one away."""
    evolve(tmp_path, generations=2)
    path = tmp_path / "controller.npz"
    found = load_npz(path, "") | arrays
    save_npz(path, **{name: array for name, array in found.items() if array is not None})


@pytest.mark.parametrize(
    "arrays",
    [
        {"x0": None},
        {"x0": np.zeros(99)},
        {"basis": None},
        {"basis": np.zeros((9, 99))},
        {"fitness": None},
        {"tracks": None},
        {"track_returns": np.zeros((2, 3))},
        {"sigma": None},
        {"settings": None},
        {"settings": np.array("no json")},
        {"settings": np.array("[1, 2]")},
        {"settings": np.array(json.dumps("text"))},
        {"fitness": np.array(1.0)},
        {"fitness": np.zeros((2, 7))},
        {"fitness": np.zeros((0, 8))},
        {"fitness": np.full((2, 8), np.nan)},
        {"fitness": np.full((2, 8), "a")},
        {"sigma": np.zeros(1)},
        {"steps": np.zeros(3)},
        {"eval_real": np.zeros((1, 4))},
        {"eval_real": np.full((1, 5), np.inf)},
        {"eval_generation": np.array([2, 4])},
    ],
)
def test_a_damaged_history_is_refused(tmp_path, arrays):
    damage(tmp_path, **arrays)
    with pytest.raises(UserError, match=r"delete it and run 05_train_controller\.py") as line:
        evolve(tmp_path)
    assert "controller.npz" in str(line.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"POPULATION": 3}, "POPULATION must be at least 4"),
        ({"HARD_TRACKS": 2}, "HARD_TRACKS=2 must be less than EPISODES=2"),
        ({"EVAL_EPISODES": 101}, "EVAL_EPISODES can be 100 at most"),
        ({"SEED": 10**6}, "SEED, GENERATIONS or EPISODES is too large"),
        ({"EPISODES": 10**6}, "SEED, GENERATIONS or EPISODES is too large"),
    ],
)
def test_constants_that_no_search_can_have(change, told):
    constants = CONSTANTS | {"EVAL_EPISODES": 5, "GENERATIONS": 10}
    evolution.validate(constants)
    with pytest.raises(UserError, match=told):
        evolution.validate(constants | change)
