"""The page of `modules.run.report`: its headline, scores, pictures and curves. `report_facts.py` has the sections below these."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules import score_tables
from modules.data.documents import read_json
from modules.reports.page import Album, Html, Section, Source, element, join, make_table, write_page
from modules.reports.score_parts import EXPLANATION, show_examples, show_means, to_source
from modules.reports.viewer import show_viewer
from modules.run.costs import format_time
from modules.run.folder import REMEDY, RunFolder
from modules.run.listing import list_runs
from modules.run.report_calibration import show_calibration
from modules.run.report_facts import RunFacts, show_card, show_costs, show_data, show_decisions, show_plan, show_repeat

# Intervals over fewer subjects are much too narrow; see `modules.score_tables.estimate_intervals`.
FEW_SUBJECTS = 10
# Far more than the slices of a case take.
_MOST_VIEWER = 1 << 26
_CURVES = {
    "loss.png": "Loss of training and validation by epoch",
    "dice.png": "Dice of each class by epoch, pooled over all voxels of a split",
    "accuracy.png": "Share of voxels that are right, by epoch",
    "folds.png": "Dice of each test subject by class and fold",
    "candidates.png": "Difference of each mode or pair of modes to the chosen one, with its 95 % interval",
}


def draw_report(run: RunFolder, about: Mapping[str, str]) -> Path:
    """Writes `report.html` into a finished run's folder; see `modules.run.report.write_report`."""
    facts = RunFacts.read(run, about)
    album, table = Album(), to_source(score_tables.read_scores(run.scores), run.scores.name)
    # Curves are small, and slices say the most. They get their room before the pictures of cases.
    curves, viewers = _show_curves(run, album), _show_viewers(run, album)
    sections: list[Section] = [
        ("Scores", _show_scores(facts)),
        ("Worst and best cases", show_examples(run.figures, table, album)),
        ("Look at slices", viewers),
        ("Training curves", curves),
        ("Folds", _show_folds(run)),
        ("Data", show_data(facts)),
        ("Plan and its reasons", show_plan(facts)),
        ("What the validation cases decided", show_decisions(facts)),
        ("What the model knows of its errors", show_calibration(facts.summary, run.figures / "reliability.png", album)),
        ("Costs", show_costs(facts)),
        ("How to repeat it", show_repeat(facts)),
        ("Model card", show_card(facts)),
    ]
    return write_page(run.report, f"Run {run.path.absolute().name}", sections, lead=_show_lead(facts))


def _show_lead(facts: RunFacts) -> Html:
    """Shows the headline: mean Dice with its interval, and what may make it mislead."""
    summary, points = facts.summary, []
    for level in facts.levels:
        place = (facts.intervals, level, "mean", "dice")
        dice, low, high = (summary.show(*place, part, digits=3) for part in ("mean", "low", "high"))
        known = summary.get(*place, "low") is not None
        interval = [", 95 % interval ", low, " to ", high] if known else []
        about = [f"mean Dice by {level}s", *interval, ", test subjects: ", summary.show(*place, "subjects")]
        points.append(element("li", element("b", dice), *about))
        if summary.get(facts.intervals, level, "mean", "hd95_mm", "subjects"):
            distance = element("b", summary.show(facts.intervals, level, "mean", "hd95_mm", "mean", digits=2), " mm")
            points.append(element("li", distance, f"mean HD95 by {level}s"))
    if summary.get("seconds"):
        points.append(element("li", element("b", summary.show("seconds", form=format_time)), "time of the whole command"))
    notes = []
    if facts.settings.demo:
        notes.append("The data are drawn by formula. Scores say nothing about scans of people.")
    number = facts.count_tested()
    if number < FEW_SUBJECTS:
        notes.append(
            f"Few subjects were tested: {number}. With five, such an interval holds the true mean in about 83 of 100 studies, not in 95. "
            "With one there is none."
        )
    data = f"{facts.about.get('title') or facts.settings.dataset}"
    lead = element("p", f"{data}. Network {facts.plan.network}." if facts.plan else f"{data}.")
    return join([lead, element("ul", *points, class_="headline"), *(element("p", note, class_="note") for note in notes)])


def _show_scores(facts: RunFacts) -> Html:
    """Shows the scores by class: means over subjects with intervals, and means over cases."""
    parts: list[Any] = [element("p", EXPLANATION)]
    for level in facts.levels:
        caption = f"Test scores by {level}s: means over subjects with 95 % intervals (bootstrap over subjects)"
        tables = show_means(facts.summary, level, at=facts.intervals, caption=caption, intervals=True)
        parts.append(tables[0])
        folded = {"More scores": tables[1:]}
        if facts.intervals != "test":
            title = f"Means over {level}s, each counted once"
            folded[title] = show_means(facts.summary, level, at="test", caption=f"Means over {level}s")
        parts += [element("details", element("summary", title), *tables) for title, tables in folded.items() if tables]
    return join(parts)


def _show_viewers(run: RunFolder, album: Album) -> Html | None:
    """Shows the worst and the best case to scroll through."""
    paths = sorted(run.figures.glob("slices_*.json"), reverse=True)
    if not paths:
        return None
    shown = [show_viewer(read_json(path, REMEDY, _MOST_VIEWER), album) for path in paths]
    hint = "Scroll over a picture, or drag the slider below it. By keyboard, Tab goes to a slider and the arrow keys move it."
    return join([element("p", hint, class_="hint"), *shown])


def _show_curves(run: RunFolder, album: Album) -> Html | None:
    pictures = {run.figures / name: text for name, text in _CURVES.items()}
    shown = [album.show(path, text, text) for path, text in pictures.items() if path.is_file()]
    return element("div", *shown, class_="row") if shown else None


def _show_folds(run: RunFolder) -> Html | None:
    """Shows the mean Dice of each fold, with a link to its own report; None for a single run."""
    rows = []
    for fold in map(RunFolder, list_runs([run.path])):
        if fold.path == run.path or not fold.finished:
            continue
        name = fold.path.relative_to(run.path).as_posix()
        source = Source(f"{name}/{fold.summary.name}", read_json(fold.summary, REMEDY))
        dice = [source.show("test", level, "mean", "dice", digits=3) for level in source.content.get("test", ())]
        rows.append([element("a", name, href=f"{name}/{fold.report.name}"), join(part for one in dice for part in (one, " "))])
    if not rows:
        return None
    return make_table(["fold", "mean Dice over cases"], rows, caption="Each subject is tested in one fold, by a model that never saw it.")
