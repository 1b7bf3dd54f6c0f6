"""Matplotlib with its shipped settings. A user's `matplotlibrc` or a notebook's MPLBACKEND must not change our pictures.

The import of this module imports Matplotlib, so the package imports this module before any other.
"""

import os

# Only the import reads it. A notebook's backend need not be installed here, and Matplotlib refuses one that it does not know.
_before = os.environ.get("MPLBACKEND")
os.environ["MPLBACKEND"] = "agg"
try:
    import matplotlib
finally:
    del os.environ["MPLBACKEND"]
    if _before is not None:
        os.environ["MPLBACKEND"] = _before

matplotlib.rcdefaults()
