"""Prediction, from a trained model and scans to label maps: the bundle, windows, engines and exports."""
