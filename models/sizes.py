"""The sizes of V, M and C. Change them here, and everything follows from 02 on; weights of other sizes are refused."""

IMAGE_SHAPE = (64, 64, 3)  # of a frame; V's convolutions are made for it
LATENT_DIM = 32  # numbers in z (paper: 32)
ACTION_DIM = 3  # steering -1..1, gas 0..1, brake 0..1
HIDDEN_SIZE = 256  # of M's LSTM: numbers in h, and in c (paper: 256)
MIXTURES = 5  # Gaussians for each latent (paper: 5)
