"""Packages that a light installation leaves out: which are there, and what to say where one is missed."""

import importlib.util

# Packages that are installed under another name than they are imported by.
_INSTALLED_AS = {"cv2": "opencv-python-headless", "python_multipart": "python-multipart"}
# Packages of extras of their own; the others are those of `train`.
_EXTRAS = {"fastapi": "serve", "python_multipart": "serve", "uvicorn": "serve", "submitit": "slurm", "ray": "ray", "optuna": "search"}
# The packages that overlays are drawn with.
_DRAWING = ("matplotlib", "cv2")


def can_draw() -> bool:
    """Returns whether the packages that draw pictures are installed. It imports none of them."""
    return all(importlib.util.find_spec(name) is not None for name in _DRAWING)


def describe_missing_format(package: str, purpose: str) -> str:
    """Describes in one line a package that a file format needs, and how to install it."""
    return (
        f"Expected {package} to {purpose}. Received: it is not installed. Install it: pip install {package}; the extra 'formats' of this "
        "program has all such packages."
    )


def describe_missing(error: ModuleNotFoundError) -> str:
    """Describes in one line which package is missing, and how to install it; "" where a part of this program is missing."""
    name = (error.name or "").partition(".")[0]
    if not name or name == __name__.partition(".")[0]:
        return ""
    package = _INSTALLED_AS.get(name, name)
    extra = _EXTRAS.get(name, "train")
    return (
        f"Expected the package {package}. Received: none. pip install {package}; the extra '{extra}' of this program has all that it uses."
    )
