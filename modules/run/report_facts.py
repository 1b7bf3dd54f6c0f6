"""The sections of a run's report that say where its scores come from: data, plan, decisions, costs, repetition and model card."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modules.data.documents import read_json
from modules.predict.bundle import DESCRIPTION_FILE, INTENDED_USE, read_description
from modules.reports.page import Html, Source, element, join, make_facts, make_list, make_table
from modules.run.costs import format_time
from modules.run.folder import REMEDY, RunFolder
from modules.run.listing import list_runs
from modules.run.plan import Plan
from modules.run.plan_table import list_decisions
from modules.run.settings import Settings

_SPLITS = ("train", "validate", "test")
_AXES = "xyz"


@dataclass(frozen=True)
class RunFacts:
    """All that a run's files say, less its scores by case.

    Attributes:
        run: The run.
        summary: `summary.json`.
        record: `run.json`.
        costs: `plan.json`; empty for a cross-validation.
        fingerprint: `fingerprint.json`; empty where there is none.
        subgroups: `subgroups.json`; empty where nobody gave a table of people.
        settings: Its settings, filled by the plan.
        plan: Its plan; None for a cross-validation.
        about: What the data set's publisher says.
        bundle: The description of its model; empty for a cross-validation.
    """

    run: RunFolder
    summary: Source
    record: Source
    costs: Source
    fingerprint: Source
    subgroups: Source
    settings: Settings
    plan: Plan | None
    about: Mapping[str, str]
    bundle: Mapping[str, Any]

    @classmethod
    def read(cls, run: RunFolder, about: Mapping[str, str]) -> "RunFacts":
        """Reads the files of a finished run; raises ValueError naming one that is not what a run wrote."""

        def read(path) -> Source:
            return Source(path.name, read_json(path, REMEDY) if path.is_file() else {})

        settings, plan = run.read_settings(), run.read_plan() if run.plan.is_file() else None
        record = run.read_record()
        # The record of a cross-validation knows settings only. Its folds know their data.
        first = RunFolder(list_runs([run.path])[0])
        known = first.read_record().get("about") if first.record.is_file() else None
        return cls(
            run,
            read(run.summary),
            Source(run.record.name, record),
            read(run.plan),
            read(run.fingerprint),
            read(run.subgroups),
            plan.resolve(settings) if plan else settings,
            plan,
            known or about,
            read_description(run.bundle) if (run.bundle / DESCRIPTION_FILE).is_file() else {},
        )

    @property
    def intervals(self) -> str:
        """The entry of `summary.json` that has the intervals. A cross-validation has only these."""
        return "intervals" if "intervals" in self.summary.content else "test"

    @property
    def levels(self) -> list[str]:
        """The levels that were scored."""
        return list(self.summary.get(self.intervals) or ())

    def count_tested(self) -> int:
        """Counts the subjects that the mean Dice of the last level is over."""
        return int(self.summary.get(self.intervals, self.levels[-1], "mean", "dice", "subjects") or 0) if self.levels else 0


def show_data(facts: RunFacts) -> Html:
    """Shows what the network was trained, validated and tested on."""
    record, pooled, settings = facts.record, facts.fingerprint, facts.settings
    named = make_facts(
        {
            "Data set": facts.about.get("title") or settings.dataset,
            "Source": facts.about.get("url"),
            "Licence": facts.about.get("licence"),
            "Terms": facts.about.get("terms"),
            "Folder": "drawn for the demo" if settings.demo else str(settings.data_folder()),
            "Voxels in mm": " x ".join(f"{size:g}" for size in pooled.get("pooled", "spacing_mm") or ()),
            "Orientations": ", ".join(pooled.get("pooled", "orientations") or ()),
        }
    )
    parts: list[Any] = [named]
    if splits := record.get("splits"):
        # An older run did not count its subjects.
        known = ["subjects"] if record.get("subjects") else []
        rows = [
            [split, *(record.show("subjects", split) for _ in known), f"{len(splits[split]):,}"] for split in _SPLITS if split in splits
        ]
        parts.append(make_table(["split", *known, "cases"], rows, caption="The division is by subject."))
    if classes := pooled.get("pooled", "classes"):
        rows = [[name, *(pooled.show("pooled", "classes", name, key) for key in ("voxels", "cases"))] for name in classes]
        caption = "Classes of the training labels"
        parts.append(make_table(["class", "voxels", "cases that hold it"], rows, caption=caption, sortable=True))
    remarks = [*(record.get("remarks") or ()), *(pooled.get("pooled", "outliers") or ())]
    if record.get("remarks") is None and splits:
        remarks.append("This run did not write down which files it left out. Its log.txt says so.")
    if remarks:
        parts += [element("h3", "Check of the data"), make_list(remarks)]
    return join(parts)


def show_plan(facts: RunFacts) -> Html | None:
    """Shows each decision of the plan with its reason."""
    if facts.plan is None:
        return None
    caption = "A decision without a reason is a setting of the user, or a default."
    return make_table(["decision", "choice", "reason"], list_decisions(facts.plan, facts.settings), caption=caption)


def show_decisions(facts: RunFacts) -> Html | None:
    """Shows what the validation cases decided: the epoch that is kept, and how the model predicts, with the Dice of each choice."""
    summary, parts = facts.summary, []
    if summary.get("best_epoch") is not None:
        parts.append(element("p", "The weights kept are those of epoch ", summary.show("best_epoch"), "."))
    if (choice := summary.get("prediction_precision")) is not None:
        parts.append(element("p", f"Predictions on a CPU compute in {choice['chosen']}: {choice['reason']}."))
        parts += _compare_dice(summary, "prediction_precision", {"dice_float32": "Dice in float32", "dice_bfloat16": "Dice in bfloat16"})
    if (choice := summary.get("mirror")) is not None:
        kept = "average" if choice["kept"] else "do not average"
        parts.append(element("p", f"Predictions {kept} over flips."))
        parts += _compare_dice(summary, "mirror", {"dice_without": "Dice without flips", "dice": "Dice with flips"})
    if (choice := summary.get("postprocessing")) is not None:
        steps = [f"{step['step']} (changes {step['changed_cases']} of the cases)" for step in choice["steps"]]
        parts.append(element("p", "Postprocessing learnt:" if steps else "Postprocessing: no step raises the Dice, so none is applied."))
        parts += [make_list(steps)] if steps else []
        parts += _compare_dice(summary, "postprocessing", {"dice_before": "Dice before", "dice_after": "Dice after"})
    if reason := summary.get("reason"):
        parts.append(element("p", f"Chosen: {summary.get('chosen')}, {reason}."))
    return join(parts) if parts else None


def _compare_dice(summary: Source, decision: str, columns: Mapping[str, str]) -> list[Html]:
    """Shows the validation Dice that decided, in a table a level."""
    columns = {key: title for key, title in columns.items() if summary.get(decision, key)}
    tables = []
    for level, classes in (summary.get(decision, next(iter(columns))) if columns else {}).items():
        rows = [[name, *(summary.show(decision, key, level, name, digits=4) for key in columns)] for name in classes]
        cases = summary.show(decision, "validation_cases")
        tables.append(make_table(["class", *columns.values()], rows, caption=join([f"Mean over {level}s, validation cases: ", cases])))
    return tables


def show_costs(facts: RunFacts) -> Html | None:
    """Shows time, memory and size, as planned and as measured."""
    costs, summary = facts.costs, facts.summary
    if not costs.get("costs"):
        return None
    named = {
        "Time planned": costs.show("costs", "seconds", form=format_time),
        "Time of the whole command": summary.show("seconds", form=format_time),
        "Memory predicted": costs.show("costs", "memory_bytes", form=_format_bytes),
        "Memory measured, at its peak": summary.show("peak_bytes", form=_format_bytes),
        "Disk of the cache": costs.show("costs", "disk_bytes", form=_format_bytes),
        "Weights of the network": costs.show("costs", "weights"),
        "Time of a training step": join([costs.show("costs", "step_s", digits=4), " s"]),
        "Devices": ", ".join(map(str, summary.get("devices") or ())),
        "Predicts with": " in ".join(filter(None, (summary.get("engine"), summary.get("computed_in")))),
    }
    return make_facts(named)


def show_repeat(facts: RunFacts) -> Html:
    """Shows the commands that repeat and check the run, and what it was made with."""
    path, record = shlex.quote(str(facts.run.path)), facts.record
    commands = [
        f"python train.py --config {shlex.quote(str(facts.run.record))} --name NEW    # train it again",
        f"python train.py --verify {path}    # check data, program and model, and train its first steps again",
        f"python predict.py IMAGE --model {path}    # predict a scan",
        f"python train.py --report {path}    # write this page again",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    named = {
        "Seed": facts.settings.seed,
        "Program": record.get("version"),
        "Backend": record.get("backend"),
        "Python": record.get("python"),
        "Packages": versions,
        "Precision of training": record.get("precision"),
        "Git commit": record.get("git_commit"),
        **{f"SHA-256 of the {name}": record.get(f"{name}_sha256") for name in ("data", "code")},
        "SHA-256 of the weights": facts.summary.get("bundle_weights_sha256"),
    }
    return join([element("pre", element("code", "\n".join(commands))), make_facts(named)])


def show_card(facts: RunFacts) -> Html:
    """Shows the model card (Mitchell et al., FAT* 2019): intended use, data, limits and provenance."""
    origin: Mapping[str, Any] = facts.bundle.get("provenance") or {}
    named = {
        "Intended use": facts.bundle.get("intended_use") or INTENDED_USE,
        "Input": ", ".join(facts.bundle.get("channels") or ()),
        "Classes": ", ".join((facts.bundle.get("class_names") or ())[1:]),
        "Trained on": facts.about.get("title") or facts.settings.dataset,
        "Licence of the data": facts.about.get("licence"),
        "Terms of the data": facts.about.get("terms"),
        "Network": origin.get("network"),
        "Began from": facts.settings.init or "random weights",
    }
    return join([make_facts(named), element("h3", "Limits"), make_list(_list_limits(facts)), _show_subgroups(facts)])


def _show_subgroups(facts: RunFacts) -> Html | None:
    """Shows the mean Dice of groups of people, a table for each column of the table that somebody gave."""
    if not facts.subgroups.content or not facts.levels:
        return None
    level, tables = facts.levels[-1], []
    for column, groups in facts.subgroups.content.items():
        rows = [
            [group, facts.subgroups.show(column, group, "subjects"), facts.subgroups.show_interval(column, group, level, "mean", "dice")]
            for group in groups
        ]
        tables.append(make_table([column, "test subjects", "mean Dice"], rows, caption=f"By {column}, by {level}s, with 95 % intervals"))
    note = "Groups of few people differ by chance: with five, such an interval holds the true mean in about 83 of 100 studies."
    return join([element("h3", "Scores by subgroup"), element("p", note), *tables])


def _list_limits(facts: RunFacts) -> list[str]:
    """Lists in sentences what the scores do not say."""
    limits = ["The scores are of the test cases above. Other scanners, protocols, ages and diseases may give worse label maps."]
    trained = facts.bundle.get("trained") or {}
    for name, text in (("spacing_mm", "Voxel sizes"), ("extent_mm", "Sizes of the scans")):
        if ranges := trained.get(name):
            axes = ", ".join(f"{axis} {low:g} to {high:g}" for axis, (low, high) in zip(_AXES, ranges, strict=False))
            limits.append(
                f"{text} in training, in {'mm' if trained.get('in_mm') else 'pixels'}: {axes}. predict.py warns of scans far from these."
            )
    for level in facts.levels:
        classes = facts.summary.get(facts.intervals, level) or {}
        for name in classes:
            if not facts.summary.get(facts.intervals, level, name, "dice", "subjects"):
                limits.append(f"No test case holds {name}, by {level}s. Nothing is known about it.")
    if not facts.subgroups.content:
        limits.append("No scores by age, sex or scanner: nobody gave a table of these. train.py --report RUN --people TABLE takes one.")
    return limits


def _format_bytes(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"
