"""The plan as a table for people: a line for each decision, with its reason."""

from modules.data.splits import describe_splits
from modules.run.budget import find_shortage
from modules.run.conflicts import describe_conflicts
from modules.run.costs import find_limit, find_scan, find_warning, format_time
from modules.run.plan import Plan
from modules.run.prepared import PreparedRun
from modules.run.settings import Settings


def describe_prepared(prepared: PreparedRun) -> list[str]:
    """Describes data, splits and plan of a run in lines for people, and warns of memory or time that will not do."""
    outliers = prepared.fingerprint.find_outliers(prepared.spec.class_names)
    if outliers:
        outliers.append(f"python dataset.py check --dataset {prepared.spec.name}, with the flags of the data, draws such cases")
    lines = [*prepared.describe(), *outliers, *describe_conflicts(prepared), *describe_splits(prepared.splits)]
    costs, scan = prepared.plan.costs, find_scan(prepared.plan, prepared.network, prepared.fingerprint)
    warnings = find_warning(costs, find_limit(costs), scan), find_shortage(prepared.plan)
    return [*lines, *describe_plan(prepared.plan, prepared.settings), *(f"warning: {warning}" for warning in warnings if warning)]


def describe_plan(plan: Plan, settings: Settings) -> list[str]:
    """Describes each decision with its reason in a line; arguments are those of `list_decisions`."""
    decisions = list_decisions(plan, settings)
    width = max(len(value) for _, value, _ in decisions)
    return [f"plan  {name:<10}{value:<{width}}  {reason}".rstrip() for name, value, reason in decisions]


def list_decisions(plan: Plan, settings: Settings) -> list[tuple[str, str, str]]:
    """Lists name, value and reason of each decision, at most 15. A reason may be "".

    Args:
        plan: The plan.
        settings: The settings, filled by the plan.
    """
    prepared, costs, sampler = plan.preprocessing, plan.costs, plan.sampler
    options = ", ".join(f"{name} {value}" for name, value in sorted(settings.network_options.items()) if value is not None)
    regular = [
        f"{name} {value:g}"
        for name, value in (("EMA", settings.ema), ("decay", settings.weight_decay), ("clip", settings.clip_norm))
        if value
    ]
    regular += ["deep supervision"] if settings.deep_supervision else []
    regular += ["last epoch kept"] if settings.keep == "last" else []
    lines = {
        "mode": plan.mode + (f", {plan.plane}" if plan.mode == "slice" and prepared.spatial_dims == 3 else ""),
        "network": plan.network + (f", {options}" if options else ""),
        "spacing": "x".join(f"{size:g}" for size in prepared.spacing_mm) + " mm" if prepared.spacing_mm else "own",
        "intensity": prepared.intensity,
        "window": f"{plan.window}, {plan.fit}",
        "batch": f"{plan.batch_size}" + (f", {settings.precision}" if settings.precision != "auto" else ""),
        "sampling": sampler.sampling if sampler else "every window",
        "steps": f"{plan.epochs} x {plan.steps_per_epoch}",
        "loss": str(settings.loss) + (", batch Dice" if settings.batch_dice else ""),
        "optimiser": f"{settings.optimizer} {settings.learning_rate:g}, {settings.schedule}",
        "augment": str(settings.augment),
        "regular": ", ".join(regular) or "nothing",
    }
    if costs:
        lines["memory"] = f"{costs['memory_bytes'] / 2**30:.1f} GiB"
        lines["time"] = format_time(costs["seconds"])
        lines["disk"] = f"{costs['disk_bytes'] / 2**30:.2f} GiB"
    reasons = dict(plan.reasons)
    if costs:
        reasons["memory"] = f"{costs['weights']:,} weights, {'measured' if 'peak_bytes' in costs else 'estimated'}"
        reasons["time"] = f"{costs['step_s']:.2g} s a step, {'measured' if 'first_s' in costs else 'estimated'}"
        reasons["disk"] = "of the cache"
    return [(name, value, reasons.get(name, "")) for name, value in lines.items()]
