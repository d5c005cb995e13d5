"""C, the controller: one dense layer from what V sees and M remembers to the three controls, for many cars at once."""

from types import ModuleType
from typing import Any

from models.sizes import ACTION_DIM, HIDDEN_SIZE, LATENT_DIM

import numpy as np

FEATURES = LATENT_DIM + HIDDEN_SIZE  # z (32) and h (256)
ACTIONS = ACTION_DIM
PARAMETERS = (1 + FEATURES) * ACTIONS  # 867: three biases, then a 288×3 matrix, row by row


def act(parameters: Any, features: Any, xp: ModuleType = np) -> Any:
    """The actions of n controllers: `parameters` (n, 867), `features` (n, 288) to actions (n, 3), float32.

    a = W [z, h] + b (paper, section 2.4), squashed to the game's ranges as in the paper's code: steering tanh(a), gas
    (tanh(a) + 1) / 2, brake clip(tanh(a), 0, 1). `xp` is NumPy, or TensorFlow for tensors.
    """
    matrices = xp.reshape(parameters[:, ACTIONS:], (-1, FEATURES, ACTIONS))
    # einsum adds up each row by itself, in one order: an action does not depend on the rest of the batch.
    squashed = xp.tanh(xp.einsum("nf,nfa->na", features, matrices) + parameters[:, :ACTIONS])
    steering, gas, brake = squashed[:, :1], (squashed[:, 1:2] + 1) / 2, xp.maximum(squashed[:, 2:], 0)
    return xp.concat([steering, gas, brake], 1)


def feature_basis(features: np.ndarray, components: int, whiten: bool) -> np.ndarray:
    """The directions that a search moves a controller in: float32 (1 + components, 289), each a bias and 288 weights.

    From `features` that controllers see, (n, 288), or (n, 32) for those that see z alone: the bias, then the first
    principal components of the features, fewer where the features vary in fewer directions. They have length 1, so a
    step along a component changes the action the more, the more the features vary along it. With `whiten`, a step of 1
    along any of them changes the action's pre-activation by a standard deviation of 1 over the features.
    """
    middle = features.mean(0)
    variances, axes = np.linalg.eigh(np.cov(features, rowvar=False))
    kept = np.flatnonzero(variances > 1e-6 * variances[-1])[::-1][:components]
    axes = (axes[:, kept] / (np.sqrt(variances[kept]) if whiten else 1)).T
    rows = np.zeros((1 + len(kept), 1 + FEATURES), np.float32)
    rows[0, 0] = 1
    rows[1:, 0], rows[1:, 1 : 1 + len(middle)] = -axes @ middle, axes
    return rows
