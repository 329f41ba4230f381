"""Variational autoencoders: three families (plain, hierarchical, vector) and their maths."""
