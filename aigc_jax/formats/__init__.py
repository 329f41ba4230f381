"""Networks in files of other projects: checkpoints of torch, folders of diffusers."""
