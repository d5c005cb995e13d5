"""What the paper is about: the three models (V, M, C) and the two worlds (real and dreamed)."""

import pipeline as pipeline  # first: it prepares the environment for Keras, TensorFlow and pygame
