"""Bad files and bad flags stop a training with one line, before it leaves anything."""

import nibabel as nib
import numpy as np
import pytest
from command_helpers import TINY, copy_spoilt, expect_one_line

import train


def _spoil_with(array):
    def spoil(image, label):
        nib.save(nib.Nifti1Image(array(nib.load(label).get_fdata().squeeze()), np.eye(4)), label)

    return spoil


def _set_seven(label):
    label[3, 3] = 7
    return label


BAD_FILES = {
    "empty file": (lambda image, label: image.write_bytes(b""), "an empty file"),
    "text file named .nii.gz": (lambda image, label: image.write_text("not a scan"), "Expected a whole NIfTI file"),
    "truncated gzip": (lambda image, label: image.write_bytes(image.read_bytes()[:-200]), "Expected a whole NIfTI file"),
    "NaN": (lambda image, label: nib.save(nib.Nifti1Image(np.full((256, 128), np.nan), np.eye(4)), image), "NaN or infinite"),
    "wrong label value": (_spoil_with(_set_seven), "Expected `label` values in (0, 1, 2, 3, 4, 5). Received: 7"),
    "mismatched shapes": (_spoil_with(lambda label: label[:-1]), "Expected image and label over the same space"),
    "missing label": (lambda image, label: label.unlink(), "Expected a label for"),
    "missing image": (lambda image, label: image.unlink(), "Expected an image for the label"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_stop_training_with_one_line(phantoms, tmp_path, capsys, kind):
    spoil, message = BAD_FILES[kind]
    root, case = copy_spoilt(phantoms, tmp_path, spoil)
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    status = train.main(["--dataset", "hipmri", "--data", str(root), *TINY, *places])
    name = case.label_path.name if "label" in kind or "missing" in kind else case.image_paths[0].name
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert (status, len(lines)) == (2, 1), captured.err
    assert message in lines[0]
    assert name in lines[0] or case.image_paths[0].name in lines[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "oasis", "--data", "nowhere"], "Expected the data set 'oasis' in the folder nowhere"),
        (["--dataset", "liver"], "invalid choice: 'liver'"),
        (["--dataset", "hipmri", "--loss", "hinge"], "Expected `loss` as a name in ('bce', "),
        (["--dataset", "hipmri", "--loss", "dice:1+ce:0"], "Expected a finite weight above 0 for 'ce' in `loss`"),
        (["--dataset", "hipmri", "--epochs", "1", "--norm", "layer"], "Expected `norm` in"),
        (["--dataset", "hipmri", "--epochs", "1", "--loss", "bce"], "Expected one logit a voxel for the loss 'bce'"),
        (["--dataset", "hipmri", "--target", "heart"], "Expected `target` in ('body'"),
        (["--dataset", "hipmri", "--shape", "64"], "Expected `shape` of 2 numbers for 'hipmri' in mode 'slice'"),
        (["--dataset", "hipmri", "--demo", "--data", "x"], "Expected either `demo` or `data`"),
        (["--dataset", "hipmri", "--epochs", "1", "--shape", "250", "120"], "The nearest valid one is (256, 128)"),
        (["--dataset", "hipmri", "--shape", "0", "0"], "Expected `shape` of numbers above 0. Received: --shape 0 0"),
        (["--dataset", "msd", "--spacing", "-1", "1", "1"], "Expected `spacing` of numbers above 0. Received: --spacing -1 1 1"),
        (["--resume", "nowhere"], "Expected a run in nowhere"),
    ],
)
def test_bad_flags_stop_training_with_one_line_and_leave_nothing(phantoms, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", str(phantoms))
    expect_one_line(capsys, train.main(flags), message)
    # What was measured of the scans is right whatever the flags were.
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
