"""C, the controller: one dense layer from what V sees and M remembers to the three controls, for many cars at once."""

import numpy as np

FEATURES = 288  # z (32) and h (256)
ACTIONS = 3  # steering -1..1, gas 0..1, brake 0..1
PARAMETERS = (1 + FEATURES) * ACTIONS  # 867: three biases, then a 288×3 matrix, row by row


def act(parameters: np.ndarray, features: np.ndarray) -> np.ndarray:
    """What each car's controller does: `parameters` (n, 867), `features` (n, 288) to actions (n, 3), float32.

    a = W [z, h] + b (paper, section 2.4), squashed to the game's ranges as in the paper's code:
    steering tanh(a), gas (tanh(a) + 1) / 2, brake clip(tanh(a), 0, 1).
    """
    matrices = parameters[:, ACTIONS:].reshape(-1, FEATURES, ACTIONS)
    # einsum adds up each row by itself, in one order: a car's action does not depend on who is driven beside it.
    actions = np.tanh(np.einsum("nf,nfa->na", features, matrices) + parameters[:, :ACTIONS])
    actions[:, 1] = (actions[:, 1] + 1) / 2
    actions[:, 2] = np.clip(actions[:, 2], 0, 1)
    return actions


def directions(features: np.ndarray, components: int, whitened: bool) -> np.ndarray:
    """The directions that a search moves a controller in: float32 (1 + components, 289), each a bias and 288 weights.

    From `features` that controllers see, (n, 288), or (n, 32) for those that see z alone: the bias, then the first
    principal components of the features, fewer where the features vary in fewer directions. They have length 1, so that
    a step along one of them tells the more, the more the features vary along it; `whitened`, a step of 1 along any of
    them lets the sum of an action vary by 1 over the features.
    """
    middle = features.mean(0)
    variances, axes = np.linalg.eigh(np.cov(features, rowvar=False))
    kept = np.flatnonzero(variances > 1e-6 * variances[-1])[::-1][:components]
    axes = (axes[:, kept] / (np.sqrt(variances[kept]) if whitened else 1)).T
    rows = np.zeros((1 + len(kept), 1 + FEATURES), np.float32)
    rows[0, 0] = 1
    rows[1:, 0], rows[1:, 1 : 1 + len(middle)] = -axes @ middle, axes
    return rows
