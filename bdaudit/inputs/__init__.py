"""What enters: pools of images, checkpoints, architectures, datasets."""
