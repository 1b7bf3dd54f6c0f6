"""Matplotlib with its shipped settings. A user's `matplotlibrc` or a notebook's MPLBACKEND must not change our pictures.

The import of this module imports Matplotlib, so the package imports this module before any other.
"""

import contextlib
import importlib.util
import logging
import os
from pathlib import Path

# Only the import reads these. A notebook's backend need not be installed here, and Matplotlib refuses one that it does not know. It
# also refuses a `matplotlibrc` that is not UTF-8. It looks for one in the working folder first, and then here.
_ours = {"MPLBACKEND": "agg"}
_spec = importlib.util.find_spec("matplotlib")
if _spec is not None and _spec.origin:
    _ours["MATPLOTLIBRC"] = str(Path(_spec.origin).with_name("mpl-data"))
# A user without a home folder to write to would read three lines about Matplotlib's cache.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
_before = {name: os.environ.get(name) for name in _ours}
os.environ.update(_ours)
try:
    with contextlib.chdir(Path(__file__).parent):
        import matplotlib
finally:
    for _name, _value in _before.items():
        del os.environ[_name]
        if _value is not None:
            os.environ[_name] = _value

matplotlib.rcdefaults()
