"""Generative models in JAX: GANs, VAEs and diffusion models through one trainer."""
