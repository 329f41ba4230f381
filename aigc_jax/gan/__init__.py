"""Generative adversarial networks, and CycleGAN, as families."""
