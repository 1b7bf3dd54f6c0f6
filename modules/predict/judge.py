"""Judges predicted cases by what their models learnt of their own errors."""

from collections.abc import Sequence

from modules.data.case import Predicted
from modules.predict.bundle import ModelBundle
from modules.predict.quality import Judgement, judge_together
from modules.predict.traits import measure_traits


def judge_case(item: Predicted, bundles: Sequence[ModelBundle], least_dice: float | None = None) -> Judgement | None:
    """Judges a case that was predicted with `PredictionOptions.doubt`.

    Args:
        item: The predicted case.
        bundles: The models that predicted it.
        least_dice: The Dice below which somebody should look; None for what each model learnt.

    Returns:
        None where no model learnt to judge, or nobody asked for the doubt.
    """
    if item.doubt is None or not can_judge(bundles):
        return None
    first = bundles[0]
    traits = measure_traits(item.image, item.prediction, item.doubt.expect_dice(), first.class_names, first.regions)
    qualities = [bundle.quality for bundle in bundles if bundle.quality]
    return judge_together([quality.judge(traits, item.doubt, first.class_names, least_dice) for quality in qualities])


def check_limit(bundles: Sequence[ModelBundle], least_dice: float | None) -> None:
    """Raises ValueError for a limit of the predicted Dice where no model predicts one: nobody would be told to look."""
    if least_dice is not None and not can_judge(bundles):
        raise ValueError(
            "Expected a model that judges its predictions for --check-below. Received: one that learnt no judgement, as with "
            "--predict-quality none, in too little time, or by an older program. Leave --check-below out, or train again."
        )


def can_judge(bundles: Sequence[ModelBundle]) -> bool:
    """Returns whether any of the models learnt to judge."""
    return any(bundle.quality for bundle in bundles)
