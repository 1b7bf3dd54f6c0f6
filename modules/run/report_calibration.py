"""The section of a run's report that says what the model knows of its errors."""

from pathlib import Path

from modules.reports.page import Album, Html, Source, element, join, make_table

_EXPLANATION = (
    "A probability is calibrated where, of all voxels that get 70 %, 70 in 100 are of the class. The calibration error is the mean "
    "distance from that, over the voxels that the network gave 1 % to 99 %. A temperature above 1 means that it was too sure. The "
    "predicted Dice needs no label. Its interval was made to hold 9 of 10 true values."
)


def show_calibration(summary: Source, picture: Path, album: Album) -> Html | None:
    """Shows how probabilities and predicted Dice compare with the test cases; None for a run that did not compare them.

    Args:
        summary: `summary.json`.
        picture: The reliability diagram.
        album: The pictures of the page.
    """
    if not summary.get("calibration", "classes"):
        return None
    parts = [element("p", _EXPLANATION), _show_probabilities(summary)]
    if summary.get("calibration", "predicted"):
        parts.append(_show_predicted(summary))
    if picture.is_file():
        text = "Left: probability and frequency. Right: predicted and true Dice of each test case. What is right lies on the dashed line."
        parts.append(album.show(picture, text, text))
    return join(parts)


def _show_probabilities(summary: Source) -> Html:
    columns = {
        "temperature": "temperature",
        "ece_contested_before": "calibration error before it",
        "ece_contested": "calibration error",
        "ece": "the same over all voxels",
    }
    names = summary.get("calibration", "classes")
    rows = [[name, *(summary.show("calibration", "classes", name, key, digits=3) for key in columns)] for name in names]
    return make_table(["class", *columns.values()], rows, caption="Calibration of the probabilities on the test cases")


def _show_predicted(summary: Source) -> Html:
    place = "calibration", "predicted"
    columns = {
        "cases": ("cases", 0),
        "mean_error": ("mean error", 3),
        "spearman": ("rank correlation", 2),
        "within": ("share in the interval", 2),
    }
    names = summary.get(*place, "classes")
    rows = [[name, *(summary.show(*place, "classes", name, key, digits=digits) for key, (_, digits) in columns.items())] for name in names]
    checked = ["Cases to check: ", summary.show(*place, "checked"), " of ", summary.show(*place, "cases"), "."]
    table = make_table(["class", *(title for title, _ in columns.values())], rows, caption="Predicted beside true Dice of the test cases")
    learnt = [
        "Learnt from validation cases: ",
        summary.show("quality", "cases"),
        ", and damaged copies: ",
        summary.show("quality", "copies"),
    ]
    return join([table, element("p", *checked, " ", *learnt, ".")])
