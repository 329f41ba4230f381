"""Feature networks: what distances between images are taken in, with weights from elsewhere."""
