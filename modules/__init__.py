"""MRI segmentation: reading scans, networks, training, prediction, scores and pictures."""

__version__ = "0.2.0"
