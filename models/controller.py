"""C, the controller: one dense layer from what V sees and M remembers to the three controls, for many cars at once."""

import numpy as np

FEATURES = 288  # z (32) and h (256)
ACTIONS = 3  # steering -1..1, gas 0..1, brake 0..1
PARAMETERS = ACTIONS + FEATURES * ACTIONS  # 867: three biases, then a 288×3 matrix, row by row
Z_PARAMETERS = ACTIONS + 32 * ACTIONS  # of a controller that sees z alone


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


def from_z(parameters: np.ndarray) -> np.ndarray:
    """Controllers that see z alone, (n, 99), as ones of full size that ignore h (the paper's "V model only")."""
    full = np.zeros((len(parameters), PARAMETERS), parameters.dtype)
    full[:, :Z_PARAMETERS] = parameters
    return full
