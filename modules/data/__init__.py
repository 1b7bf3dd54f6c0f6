"""From files to batches: cases, their formats, splits, preprocessing, cache and pipelines."""
