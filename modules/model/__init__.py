"""The parts that a training adds to a network: losses, metrics, optimisers, augmentation and the compiled step."""
