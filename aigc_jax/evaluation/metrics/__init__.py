"""Metrics: arrays in, numbers out. They know no model, no file and no device."""
