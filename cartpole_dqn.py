"""CartPole with a deep Q-network (DQN): learn to balance a pole, in less than 100 lines of code.

The tutorial's four ideas are methods of the agent: it remembers transitions, replays them in random batches, acts by
the values of the two actions (ε-greedy), and learns the discounted target r + γ·max Q(s'). docs/cartpole.md tells more.

Reads   MODELS/cartpole.weights.h5, if it exists: a solved agent is only shown, another one is trained further.
Writes  MODELS/cartpole.weights.h5 (the agent), DATA/cartpole.png (learning curve), DATA/cartpole.gif (the pole).
Takes   about 15 seconds on one core: some 250 episodes, 60,000 steps.
"""

from pathlib import Path

from models import weights
from pipeline import files, plots, script, video

import numpy as np

with files.suppress_stderr():  # notices of gym and TensorFlow
    import gym
    import keras
    import tensorflow as tf

SEED: script.NonNegativeInt = 0  # another seed is another run
EPISODES = 1_500  # training episodes at most: training stops when the task is solved. Tutorial: 10,000
GAMMA = 0.995  # discount factor. Tutorial: 0.95, which hardly sees a fall that is 100 steps ahead
N_STEPS = 10  # rewards in a target before the network's estimate. Tutorial: 1, which learns slowly and forgets
BUFFER_SIZE = 50_000  # transitions in the replay buffer. Tutorial: 2,000, soon full of nothing but success
LEARNING_STARTS = 1_000  # transitions in the buffer before the first replay. Tutorial: 32
TRAIN_FREQUENCY = 256  # steps between replays; each computes all its targets first. Tutorial: one episode
GRADIENT_STEPS = 128  # batches in a replay. Tutorial: 1
BATCH_SIZE = 64  # transitions in a batch. Tutorial: 32
LEARNING_RATE = 0.001  # Adam's, as in the tutorial
EPSILON_DECAY = 0.92  # factor on ε, the share of random actions, after each replay. ε starts at 1. Tutorial: 0.995
EPSILON_MIN = 0.01  # the least ε, as in the tutorial
SHOW = False  # True opens a window with the balanced pole instead of writing DATA/cartpole.gif
MODELS = "models"  # folder of the weights
DATA = "data"  # folder of the pictures

TRANSITION = [("state", "f4", 4), ("action", "i4"), ("reward", "f4"), ("next_state", "f4", 4), ("discount", "f4")]


class Agent:
    """A DQN with the tutorial's network, its replay buffer and its exploration rate ε. Resumes from `path`."""

    def __init__(self, path: Path) -> None:
        layers = [keras.layers.Dense(24, "relu"), keras.layers.Dense(24, "relu"), keras.layers.Dense(2)]
        self.model = keras.Sequential([keras.Input((4,)), *layers], name="CartPole_network")
        self.optimizer = keras.optimizers.Adam(LEARNING_RATE)
        self.buffer = np.zeros(BUFFER_SIZE, TRANSITION)
        self.stored = 0
        self.n_step_buffer = []
        self.rng = np.random.default_rng(SEED)
        self.epsilon = EPSILON_MIN if path.exists() else 1.0
        if path.exists():
            weights.load(path, self.model)
        self.target_weights = self.model.get_weights()

    def act(self, state: np.ndarray, epsilon: float) -> int:
        """The action of the higher value, or with probability `epsilon` a random one."""
        return int(self.rng.integers(2) if self.rng.random() < epsilon else self.q_values(state).argmax())

    def remember(self, state, action: int, reward: float, next_state, terminated: bool, truncated: bool) -> None:
        """Store n-step transitions. Only termination ends the future: after truncation the target bootstraps."""
        self.n_step_buffer.append((state, action, reward))
        while len(self.n_step_buffer) == N_STEPS or (self.n_step_buffer and (terminated or truncated)):
            n_step_return = sum(GAMMA**k * reward for k, (_, _, reward) in enumerate(self.n_step_buffer))
            discount = 0.0 if terminated else GAMMA ** len(self.n_step_buffer)
            first_state, first_action, _ = self.n_step_buffer.pop(0)
            self.buffer[self.stored % BUFFER_SIZE] = (first_state, first_action, n_step_return, next_state, discount)
            self.stored += 1

    def replay(self) -> None:
        """Fit the discounted targets r + γ·max Q(s') on random batches, update the target weights, decay ε."""
        batches = self.buffer[self.rng.integers(min(self.stored, BUFFER_SIZE), size=(GRADIENT_STEPS, BATCH_SIZE))]
        targets = batches["reward"] + batches["discount"] * self.q_values(batches["next_state"]).max(axis=-1)
        self.fit(batches["state"], batches["action"], targets)
        self.target_weights = self.model.get_weights()
        self.epsilon = max(EPSILON_MIN, self.epsilon * EPSILON_DECAY)

    def q_values(self, states: np.ndarray) -> np.ndarray:
        """Q of both actions by the target weights, (..., 4) to (..., 2), in NumPy: Keras's `predict` is far slower."""
        w1, b1, w2, b2, w3, b3 = self.target_weights
        return np.maximum(np.maximum(states @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3

    @tf.function
    def fit(self, states: tf.Tensor, actions: tf.Tensor, targets: tf.Tensor) -> None:
        """One step of Adam on the mean squared error of each batch, all batches in one compiled call."""
        for i in tf.range(len(states)):
            with tf.GradientTape() as tape:
                values = tf.gather(self.model(states[i]), actions[i], batch_dims=1)
                loss = tf.reduce_mean((targets[i] - values) ** 2)
            self.optimizer.apply(tape.gradient(loss, self.model.trainable_variables), self.model.trainable_variables)


def play(agent: Agent, env: gym.Env, seed: int, training: bool = False) -> int:
    """Play one episode, greedily or to learn from it. Returns its score, the number of steps: 500 at most."""
    state, _ = env.reset(seed=seed)
    for score in range(1, 501):  # CartPole-v1 cuts an episode off at step 500
        action = agent.act(state, agent.epsilon if training else 0.0)
        next_state, _, terminated, truncated, _ = env.step(action)
        if training:  # -1 for the fall instead of 1 a step: the best policy is the same, and Q stays small
            agent.remember(state, action, -float(terminated), next_state, terminated, truncated)
            if agent.stored >= LEARNING_STARTS and (agent.stored + len(agent.n_step_buffer)) % TRAIN_FREQUENCY == 0:
                agent.replay()
        if terminated or truncated:
            return score
        state = next_state


def balances(agent: Agent, env: gym.Env) -> bool:
    """Whether the agent, acting greedily, balances 100 episodes that it was not trained on to their end."""
    return all(play(agent, env, seed) == 500 for seed in range(100))


def main() -> None:
    """Train until solved, save, and show the agent in an episode that it was neither trained nor chosen on."""
    window = video.Window("CartPole-v1", rate=50) if SHOW else None  # made first: a missing screen is told at once
    keras.utils.set_random_seed(SEED % 2**32)
    path = Path(MODELS, "cartpole.weights.h5")
    agent = Agent(path)
    print(f"{path}: {'resumed' if path.exists() else 'a new agent'}. Ctrl-C saves it. Pictures: {DATA}", flush=True)
    env = gym.make("CartPole-v1", disable_env_checker=True)
    scores = []
    solved = path.exists() and balances(agent, env)
    try:
        while not solved and len(scores) < EPISODES:
            scores.append(play(agent, env, 1_000_000 * (SEED + 1) + len(scores), training=True))
            mean = np.mean(scores[-100:])
            print(f"episode {len(scores):4}: score {scores[-1]:3}, mean {mean:.1f}, ε {agent.epsilon:.3f}", flush=True)
            solved = len(scores) >= 100 and mean >= env.spec.reward_threshold and balances(agent, env)
    finally:  # after Ctrl-C too
        weights.save(path, agent.model)
        plots.learning_curve(Path(DATA, "cartpole.png"), "CartPole", {f"SEED={SEED}": scores})
    print(f"Mean score of 100 new greedy episodes: {np.mean([play(agent, env, i) for i in range(1000, 1100)]):.1f}")
    video.show_episode("CartPole-v1", lambda env: play(agent, env, 1000), Path(DATA, "cartpole.gif"), window)


if __name__ == "__main__":
    script.run(main, globals())
