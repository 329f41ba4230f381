"""Drawing samples: the one loop over a family's steps, and batches on the devices."""
