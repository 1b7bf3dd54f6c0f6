"""Tiny folders of the kind of the Decathlon and of nnU-Net."""

import json

import nibabel as nib
import numpy as np


def make_tiny(root, labels, nnunet=True, **values):
    """Writes a folder of two cases, one volume a channel, for tests of `dataset.json` alone."""
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for case in ("a", "b"):
        for path in (f"imagesTr/{case}_0000.nii.gz" if nnunet else f"imagesTr/{case}.nii.gz", f"labelsTr/{case}.nii.gz"):
            nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), root / path)
    record = {"labels": labels, "channel_names" if nnunet else "modality": {"0": "T1"}}
    if not nnunet:
        record["training"] = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("a", "b")]
    (root / "dataset.json").write_text(json.dumps(record | values))
    return root
