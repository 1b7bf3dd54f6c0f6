"""The notebook and the examples of docs/python.md run as they are printed, but for the name of the package."""

import json
import re
import shutil
from pathlib import Path

import keras
import pytest

from modules import InputError, TrainingError, train

ROOT = Path(__file__).parents[2]


def _run(code):
    names = {"__name__": "example"}
    exec(compile(code.replace("mri_segmentation", "modules"), "docs", "exec"), names)
    return names


def test_the_notebook_and_the_examples_run(tmp_path, monkeypatch, capsys):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("one backend suffices")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "python.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    names = _run("\n".join("".join(cell["source"]) for cell in cells))
    trained = names["trained"]
    assert trained.path == Path("runs/phantom")
    assert trained.summary == json.loads((trained.path / "summary.json").read_text())
    assert len(names["predictions"]) == 6
    assert 0 <= names["found"].summary["volume"]["mean"]["dice"] <= 1

    shutil.copy(names["path"], "scan.nii.gz")
    capsys.readouterr()
    predicting, training = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    _run(predicting)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == list(names["predictor"].class_names[1:])
    assert predicting.splitlines()[-1].split("# ")[1] == lines[-1]
    # The notebook has just trained so.
    call = re.search(r"trained = train\(.*?\n\)\n", training, re.DOTALL)[0]
    assert call in "\n".join("".join(cell["source"]) for cell in cells)
    with pytest.raises(TrainingError, match="Expected a new name for the run. Received: runs/phantom, which exists."):
        train(dataset="msd", data=Path("data/phantom"), epochs=1, name="phantom", quiet=True)


def test_wrong_settings_are_refused_before_anything_begins():
    with pytest.raises(InputError, match=r"Expected settings in \('dataset', 'data', .*'resume', 'devices'\). Received: 'minuts'."):
        train(dataset="msd", minuts=5)
    with pytest.raises(InputError, match=r"Expected settings in .* Received: 'plan_only'."):
        train(dataset="msd", plan_only=True)
    with pytest.raises(InputError, match="Expected `epochs` of type int. Received: '5' in the arguments."):
        train(dataset="msd", epochs="5")
    with pytest.raises(InputError, match="Expected `dataset`, `preset`, `config` or `resume`. Received: none of them."):
        train()
    with pytest.raises(InputError, match=r"Expected --dataset in .* Received: ct."):
        train(dataset="ct")
