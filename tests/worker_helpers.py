"""Scripts that stand for predict.py on workers, and comparisons of what workers and one process leave."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# predict.py with the stand-in for a model. The first call for shard 0 is killed after its second scan.
KILLED_ONCE = """
import os, signal, sys
from pathlib import Path

sys.path[:0] = {paths}
import batch_helpers, predict
from modules.predict.batch import Batch

batch_helpers.use_threshold()
marker, finish = Path({marker}), Batch.finish


def kill_once(self, *arguments):
    finish(self, *arguments)
    if "0/2" in sys.argv and len(self.done) == 2 and not marker.exists():
        marker.touch()
        os.kill({pid}, signal.SIGKILL)
        signal.pause()


Batch.finish = kill_once
sys.exit(predict.main())
"""


def write_script(folder, *, kill="os.getpid()"):
    """Writes the script and returns its path; `kill` is an expression for the process that it kills once."""
    script = folder / "predict_parts.py"
    values = {"paths": repr([str(ROOT), str(ROOT / "tests")]), "marker": repr(str(folder / "killed")), "pid": kill}
    text = KILLED_ONCE
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    script.write_text(text)
    return script


def read_maps(folder):
    """Returns the bytes of each label map in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*_prediction.nii*"))}


def read_cases(folder):
    """Returns the entries of `results.json`, less the seconds, which are never the same."""
    content = json.loads((folder / "results.json").read_text())
    return [{name: value for name, value in case.items() if name != "seconds"} for case in content["cases"]]


def need_package(name, monkeypatch):
    """Imports Ray or submitit, or skips the test."""
    if name == "submitit":
        # It would close the handlers of pytest's log, and wait long for the result of a worker that is gone.
        monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")
        pytest.importorskip(name)
        monkeypatch.setattr(importlib.import_module("submitit.core.core").Job, "_results_timeout_s", 1)
    else:
        pytest.importorskip(name)


def write_history(run, dice):
    """Writes a `history.csv` with the validation Dice of each epoch."""
    rows = [f"{epoch},{value}" for epoch, value in enumerate(dice, 1)]
    draft = run / "history.part"
    draft.write_text("\n".join(["epoch,val_mean_dice", *rows]) + "\n")
    draft.rename(run / "history.csv")
