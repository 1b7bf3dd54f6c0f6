"""A model without weights and scans for it, for tests of batches. Nothing here imports a backend."""

import nibabel as nib
import numpy as np

import predict
from modules import reports
from modules.data.case import LabelRule
from modules.data.patches import Window
from modules.data.preprocess import Preprocessing
from modules.predict.bundle import ModelBundle


class Threshold:
    """A stand-in for a model: foreground is what is brighter than the middle of the range."""

    input_shape = (None, 4, 4, 4, 1)

    def predict_on_batch(self, inputs):
        return (inputs > 0.5).astype(np.float32)


def use_threshold(setattr=setattr):
    """Makes predict.py use the stand-in for any model. Pictures stay empty, because they take long."""
    rule = LabelRule({0: 0, 1: 1})
    bundle = ModelBundle(Threshold(), Preprocessing(3), Window((4, 4, 4)), ("background", "bright"), ("T1",), rule)
    setattr(ModelBundle, "load", lambda *_: bundle)
    setattr(predict, "identify", lambda run: "x")
    setattr(predict, "read_channels", lambda run: ("T1",))
    setattr(reports, "draw_overlay", lambda path, *_, **__: path.touch())


def write_scans(folder, number):
    """Writes `scans/case_000.nii` and so on below a folder, and their `labels`, which the stand-in gets right but for one voxel."""
    for index in range(number):
        array = np.random.default_rng(index).random((4, 5, 6), np.float32)
        # The range is known then.
        array.flat[:2] = 0, 1
        label = (array > 0.5).astype(np.uint8)
        label.flat[0] = 1
        for kind, values in (("scans", array), ("labels", label)):
            (folder / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / kind / f"case_{index:03}.nii")
