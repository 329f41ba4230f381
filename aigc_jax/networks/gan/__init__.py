"""The networks of GANs and of CycleGAN."""
