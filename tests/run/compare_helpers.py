"""Runs to compare, made by hand."""

import json
import math
from dataclasses import replace

from modules.score_tables import write_scores
from modules.scoring import Score

NAN = math.nan


def make_scores(cases="xy", classes="ab", level="volume", **fields):
    """Makes a score of each case and class."""
    base = Score(level, "", "", 0.5, 0.5, 1.0, 1.0, 1.0, NAN, NAN, 10, 10, subject="s", reference="0123456789ab")
    return [replace(base, case=case, class_name=name, **fields) for case in cases for name in classes]


def make_run(folder, scores=(), weights=100, seconds=90.0, **config):
    """Writes the parts of a run's folder that a comparison reads."""
    folder.mkdir(parents=True)
    config = {"dataset": "d", "name": folder.name, "runs": str(folder.parent), "loss": "dice", **config}
    plan = {
        "network": "plain_unet",
        "recipe": {"augment": "mild"},
        "costs": {"weights": weights},
        "reasons": {"network": "why"},
        "epochs": 3,
    }
    (folder / "run.json").write_text(json.dumps({"config": config, "devices": ["cpu:0"]}))
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "summary.json").write_text(json.dumps({"seconds": seconds, "peak_bytes": 2_000_000_000}))
    write_scores(folder / "scores.csv", scores)
    return folder
