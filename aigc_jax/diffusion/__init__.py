"""Denoising diffusion: a process, what a network predicts of it, objectives and solvers."""
