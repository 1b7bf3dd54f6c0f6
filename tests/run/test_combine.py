"""The scores of a pair of modes, which no training is needed for."""

from types import SimpleNamespace

import numpy as np

from modules.data.case import Case, Predicted, Volume
from modules.data.regions import Region
from modules.run import combine
from modules.run.folder import RunFolder


def test_a_pair_of_models_of_regions_is_scored_by_region(tmp_path, monkeypatch):
    bundle = SimpleNamespace(class_names=("background", "whole", "core"), regions=(Region((1, 2), 1), Region((2,), 2)))
    monkeypatch.setattr(combine, "ModelBundle", SimpleNamespace(load=lambda path: bundle))
    # The whole is four voxels in both maps. Of its core of two the prediction has one.
    label, prediction = np.array([[1, 1, 2, 2]], np.uint8), np.array([[1, 1, 1, 2]], np.uint8)
    item = Predicted(Case("a", "p", ()), Volume(np.zeros((1, 4, 1), np.float32), None, (1.0, 1.0)), label, prediction)
    monkeypatch.setattr(combine, "predict_cases", lambda bundles, cases, options: [item])
    scores = combine._score_pair(RunFolder(tmp_path), ("slice", "patch"), 0, [item.case], ())
    assert [(score.class_name, score.dice) for score in scores] == [("whole", 1.0), ("core", 2 / 3)]
