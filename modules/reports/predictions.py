"""The page of a folder of predictions: what was found in each scan, the scores where there are references, and pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modules import score_tables
from modules.data.case import read_volume
from modules.data.documents import read_json, to_line
from modules.reports.page import Album, Html, Source, element, join, make_list, make_table, write_page
from modules.reports.score_parts import EXPLANATION, show_means
from modules.reports.viewer import cut_viewer, show_viewer
from modules.scoring import Score

PAGE = "report.html"
RESULTS, SCORES = "results.json", "scores.csv"
_REMEDY = "Predict again."
# A record of 100,000 slices has about 100 MB.
_MOST_BYTES = 1 << 30
# A longer table does not help a reader; `volumes.csv` has all rows.
MOST_ROWS = 500
VIEWERS = 2
_PREDICTED = ("dice", "low", "high")
# Each takes a second of resampling. The console has the intervals of more scores.
_WITH_INTERVALS = ("dice", "nsd", "hd95_mm")


def write_predictions_page(folder: Path) -> Path | None:
    """Writes `report.html` into a folder of predictions, from `results.json`, `scores.csv` and the pictures there.

    With scores the worst cases come first.

    Args:
        folder: The folder that predict.py wrote.

    Returns:
        The page; None where no case is finished.

    Raises:
        ValueError: If a file is not what predict.py wrote.
    """
    if not (folder / RESULTS).is_file():
        return None
    results, album = Source(RESULTS, read_json(folder / RESULTS, _REMEDY, _MOST_BYTES)), Album()
    scores = score_tables.read_scores(folder / SCORES) if (folder / SCORES).is_file() else []
    dice: dict[str, list[float]] = {}
    for score in scores:
        dice.setdefault(score.case, []).extend([] if math.isnan(score.dice) else [score.dice])
    means = {case: sum(values) / len(values) for case, values in dice.items() if values}
    cases = sorted(results.content["cases"], key=lambda entry: means.get(entry["case"], math.inf))
    viewers = _show_viewers(cases[:VIEWERS], folder, album)
    models = dict.fromkeys(
        f"{one['run'] or one['bundle_json_sha256'][:12]} ({one['engine']})" for entry in cases for one in entry["models"]
    )
    lead = [
        element("p", f"Cases: {len(cases):,}. Predicted by {', '.join(models)}."),
        element("p", str(results.get("intended_use") or ""), class_="note"),
    ]
    sections = [
        ("Check these", _show_checks(results)),
        ("Sizes of the structures", _show_sizes(results)),
        ("Scores", _show_scores(scores)),
        ("Look at slices", viewers),
        ("Pictures" + (", the lowest Dice first" if means else ""), _show_pictures(cases, folder, album)),
    ]
    return write_page(folder / PAGE, f"Predictions in {folder.absolute().name}", sections, lead=join(lead))


def _show_checks(results: Source) -> Html | None:
    """Shows the Dice that the model expects of each class of each case, those to check first; None where the model cannot tell."""
    cases = [(place, entry) for place, entry in enumerate(results.content["cases"]) if entry.get("check") is not None]
    if not cases:
        return None
    names = list(dict.fromkeys(one["name"] for _, entry in cases for one in entry["classes"]))
    wanted = sum(entry["check"] for _, entry in cases)
    rows = []
    for place, entry in sorted(cases, key=lambda pair: (not pair[1]["check"], -(pair[1]["distance"] or 0)))[:MOST_ROWS]:
        cells = dict.fromkeys(names, "")
        for index, one in enumerate(entry["classes"]):
            dice, low, high = (results.show("cases", str(place), "classes", str(index), f"predicted_{key}", digits=2) for key in _PREDICTED)
            known = one.get("predicted_dice") is not None
            cells[one["name"]] = join([dice, element("small", " [", low, " to ", high, "]")]) if known else dice
        rows.append([entry["case"], "check this one" if entry["check"] else "", "; ".join(entry["check_reasons"]), *cells.values()])
    text = (
        f"Cases that somebody should look at: {wanted:,} of {len(cases):,}. The predicted Dice is what the model expects of its own label "
        "map, with an interval that was made to hold 9 of 10 true values. It was not compared with any truth."
    )
    head = ["case", "check", "why", *names]
    return join([element("p", text), make_table(head, rows, caption="Predicted Dice of each class", sortable=True)])


def _show_sizes(results: Source) -> Html:
    """Shows the volume of each class of each case, or its voxels where volumes are not known."""
    cases = results.content["cases"]
    names = list(dict.fromkeys(one["name"] for entry in cases for one in entry["classes"]))
    rows = []
    for place, entry in enumerate(cases[:MOST_ROWS]):
        cells = dict.fromkeys(names, "")
        for index, one in enumerate(entry["classes"]):
            key, unit, digits = ("voxels", " voxels", 0) if one["ml"] is None else ("ml", " ml", 2)
            cells[one["name"]] = join([results.show("cases", str(place), "classes", str(index), key, digits=digits), unit])
        rows.append([entry["case"], *cells.values()])
    left = len(cases) - len(rows)
    more = f" {left:,} more cases are in volumes.csv." if left else ""
    return make_table(["case", *names], rows, caption=f"Size of each class in each case.{more}", sortable=True)


def _show_scores(scores: Sequence[Score]) -> Html | None:
    """Shows means over subjects with intervals, and folded those over cases."""
    if not scores:
        return None
    # Nobody need have said who was scanned: then each case is a subject.
    subjects = {score.case: score.subject or score.case for score in scores}
    intervals = score_tables.estimate_intervals(scores, subjects, keys=_WITH_INTERVALS)
    means = Source(SCORES, {"means": score_tables.summarise(scores), "intervals": intervals})
    parts = [element("p", EXPLANATION)]
    for level in means.get("means"):
        caption = f"Scores by {level}s: means over subjects with 95 % intervals (bootstrap over subjects)"
        parts += show_means(means, level, at="intervals", caption=caption, intervals=True)
        title = f"Means over {level}s, each counted once"
        tables = show_means(means, level, at="means", caption=f"Means over {level}s")
        parts.append(element("details", element("summary", title), *tables))
    return join(parts)


def _show_pictures(cases: Sequence[Mapping[str, Any]], folder: Path, album: Album) -> Html | None:
    """Shows the overlays as long as there is room, and names the others."""
    shown, left = [], []
    for entry in cases:
        path = folder / f"{entry['case']}_overlay.png"
        # Once one has found no room, all later ones are only named, so that the order stays clear.
        picture = None if left or not path.is_file() else album.find_room(path, entry["case"], f"{entry['case']} with its prediction")
        if picture is None:
            left.append(entry["case"])
        else:
            shown.append(picture)
    names = [f"{case}_overlay.png" for case in left[:MOST_ROWS]]
    more = [element("p", f"Pictures of {len(left):,} more cases lie beside this page:"), make_list(names)] if left else []
    return join([element("div", *shown, class_="row"), *more])


def _show_viewers(cases: Sequence[Mapping[str, Any]], folder: Path, album: Album) -> Html | None:
    """Shows the first cases to scroll through, where image and label map can be read."""
    parts = []
    for entry in cases:
        path, values = Path(entry["images"][0]), [one.get("value") for one in entry["classes"]]
        if not path.is_file() or None in values or len(set(values)) < len(values):
            continue
        try:
            image, label = read_volume([path]), read_volume([folder / entry["files"][0]]).array[..., 0]
            # Class 0 is all that is not listed.
            classes = np.select([label == value for value in values], range(1, len(values) + 1), 0)
            names = ["background", *(one["name"] for one in entry["classes"])]
            place = {"spacing_mm": image.spacing_mm if image.affine is not None else None, "affine": image.affine}
            viewer = cut_viewer(image.array, {"prediction": classes}, names, title=entry["case"], **place)
        except (ValueError, OSError) as error:
            parts.append(element("p", f"{entry['case']} cannot be shown: {to_line(error)}"))
        else:
            parts.append(show_viewer(viewer, album))
    return join(parts) if any(parts) else None
