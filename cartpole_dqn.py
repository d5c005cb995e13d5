"""CartPole with a deep Q-network: learn to balance a pole from its falls alone, in 100 lines.

The tutorial's four ideas: the agent remembers what happened, replays it in batches, acts by the value of its two
actions (or at random: ε-greedy), and learns the discounted target r + γ·max Q(s').

Reads   MODELS/cartpole.weights.h5 where it is there: that agent is taken up again, with the least exploration.
Writes  MODELS/cartpole.weights.h5 (the agent), DATA/cartpole.png (learning curve), DATA/cartpole.gif (the pole).
Takes   about 15 seconds on one core: some 250 episodes, 60,000 steps.
"""

from pathlib import Path

from models import weights
from pipeline import plots, script, video
from pipeline.files import suppress_stderr
from pipeline.script import NonNegativeInt

import numpy as np

with suppress_stderr():  # notices of gym and TensorFlow
    import gym
    import keras
    import tensorflow as tf

SEED: NonNegativeInt = 0  # another seed is another run
EPISODES = 1_500  # at most: it stops when solved. Tutorial: 10,000
GAMMA = 0.995  # worth of a reward one step later. Tutorial: 0.95, too short-sighted for a slow drift off the track
N_STEPS = 10  # rewards that are seen before the network guesses the rest. Tutorial: 1, learns slowly and forgets
MEMORY = 50_000  # transitions that are kept. Tutorial: 2,000, soon full of nothing but success
FIRST = 1_000  # transitions before it learns, 5 times as many when taken up again. Tutorial: 32
EVERY = 256  # steps between replays; in between the network is frozen, to act and for targets. Tutorial: an episode
UPDATES = 128  # batches in a replay. Tutorial: 1
BATCH = 64  # transitions in a batch. Tutorial: 32
RATE = 0.001  # Adam's learning rate, as in the tutorial
EPSILON_DECAY = 0.92  # what a replay leaves of ε, the share of random actions, which starts at 1. Tutorial: 0.995
EPSILON_MIN = 0.01  # the least ε, as in the tutorial
SOLVED = 475  # mean of 100 training episodes in a row; 100 others must then be balanced to the end, without exploring
SHOW = False  # True opens a window with the balanced pole instead of drawing DATA/cartpole.gif
MODELS = "models"  # folder of the weights
DATA = "data"  # folder of the pictures


class Agent:
    """A deep Q-network of the tutorial's shape, with its memory."""

    def __init__(self) -> None:
        layers = [keras.layers.Dense(24, "relu"), keras.layers.Dense(24, "relu"), keras.layers.Dense(2)]
        self.model = keras.Sequential([keras.Input((4,)), *layers], name="CartPole_network")
        self.optimizer = keras.optimizers.Adam(RATE)
        fields = [("state", "f4", 4), ("action", "i4"), ("reward", "f4"), ("following", "f4", 4), ("discount", "f4")]
        self.memory, self.count, self.recent, self.rng = np.zeros(MEMORY, fields), 0, [], np.random.default_rng(SEED)
        self.epsilon, self.first, self.frozen = 1.0, FIRST, self.model.get_weights()

    def act(self, state: np.ndarray, epsilon: float) -> int:
        """The better action, or with probability `epsilon` a random one."""
        return int(self.rng.integers(2) if self.rng.random() < epsilon else self._values(state).argmax())

    def remember(self, state, action: int, reward: float, following, terminated: bool, truncated: bool) -> None:
        """Keep what is N_STEPS back. Only a fall has no future: an episode that is cut off at step 500 has one."""
        self.recent.append((state, action, reward))
        while len(self.recent) == N_STEPS or (self.recent and (terminated or truncated)):
            rewards = sum(GAMMA**k * step[2] for k, step in enumerate(self.recent))
            discount = 0.0 if terminated else GAMMA ** len(self.recent)
            self.memory[self.count % MEMORY] = *self.recent.pop(0)[:2], rewards, following, discount
            self.count += 1

    def replay(self) -> None:
        """Learn the discounted target r + γ·max Q(s') on random batches; from then on act by it, and explore less."""
        batch = self.memory[self.rng.integers(min(self.count, MEMORY), size=(UPDATES, BATCH))]
        target = batch["reward"] + batch["discount"] * self._values(batch["following"]).max(-1)
        self._fit(batch["state"], batch["action"], target)
        self.frozen, self.epsilon = self.model.get_weights(), max(EPSILON_MIN, self.epsilon * EPSILON_DECAY)

    def _values(self, states: np.ndarray) -> np.ndarray:  # Q of both actions, in NumPy: `predict` is far slower
        w1, b1, w2, b2, w3, b3 = self.frozen
        return np.maximum(np.maximum(states @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3

    @tf.function  # one compiled call for all batches of a replay
    def _fit(self, states: tf.Tensor, actions: tf.Tensor, targets: tf.Tensor) -> None:
        for i in tf.range(len(states)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((targets[i] - tf.gather(self.model(states[i]), actions[i], batch_dims=1)) ** 2)
            self.optimizer.apply(tape.gradient(loss, self.model.trainable_variables), self.model.trainable_variables)


def play(agent: Agent, env: gym.Env, seed: int, training: bool = False) -> int:
    """Play one episode, greedily or to learn from it, and return its score, 500 at most."""
    (state, _), score, over = env.reset(seed=seed), 0, False
    while not over:
        action = agent.act(state, agent.epsilon if training else 0.0)
        following, reward, terminated, truncated, _ = env.step(action)
        if training:  # -1 for the fall, not 1 for every step: the best play is the same, but Q stays small
            agent.remember(state, action, -float(terminated), following, terminated, truncated)
            if agent.count >= agent.first and (agent.count + len(agent.recent)) % EVERY == 0:
                agent.replay()
        state, score, over = following, score + int(reward), terminated or truncated
    return score


def main() -> None:
    """Train until solved, and show the agent on episodes that it was neither trained nor chosen on."""
    if SHOW:
        video.Window("CartPole-v1", rate=50)  # gym draws in it; here, so that a missing screen is told at once
    keras.utils.set_random_seed(SEED)
    agent, path, scores, means, solved = Agent(), Path(MODELS, "cartpole.weights.h5"), [], [], False
    env = gym.make("CartPole-v1", disable_env_checker=True)  # gym's checker does not run on NumPy 2
    if path.exists():
        weights.load(path, agent.model)
        agent.frozen, agent.epsilon, agent.first = agent.model.get_weights(), EPSILON_MIN, 5 * FIRST
    try:
        while not solved and len(scores) < EPISODES:
            scores.append(play(agent, env, 1_000_000 * (SEED + 1) + len(scores), training=True))
            means.append(np.mean(scores[-100:]))
            text = f"episode {len(scores):4}  score {scores[-1]:3}  mean of 100 {means[-1]:5.1f}  ε {agent.epsilon:.3f}"
            print(text, end="\r" if len(scores) % 20 else "\n", flush=True)
            solved = len(scores) >= 100 and means[-1] >= SOLVED and all(play(agent, env, i) == 500 for i in range(100))
    finally:  # after Ctrl-C too, but weights that were taken up again are not written over by a dip
        if solved or not (path.exists() and means and means[-1] < max(means)):
            weights.save(path, agent.model)
        with plots.figure(Path(DATA, "cartpole.png"), "CartPole: score by episode, and mean of 100") as axes:
            axes.plot(scores, ".", means, "-")
    print(f"\n{agent.count:,} steps; 100 new episodes: {np.mean([play(agent, env, i) for i in range(1000, 1100)]):.1f}")
    view = "human" if SHOW else "rgb_array_list"
    with suppress_stderr():  # notices of what draws the pole
        play(agent, env := gym.make("CartPole-v1", render_mode=view, disable_env_checker=True), seed=1000)
    if not SHOW:
        video.moving(Path(DATA, "cartpole.gif"), env.render()[::2], rate=25)


if __name__ == "__main__":
    script.run(main, globals())
