"""Encoders and decoders of variational autoencoders: one group of latents, or a ladder of them."""
