"""The text of `--loss`: one loss by its name, or a weighted sum such as `dice:1+focal:0.5`. Needs no Keras."""

import math
from collections.abc import Sequence


def parse_loss(text: str, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Reads a loss: terms joined by `+`, each `name` or `name:weight`; a term without a weight counts once.

    Args:
        text: For instance `dice_ce`, `dice+ce` or `dice:1+focal:0.5`; spaces around names and weights do not matter.
        names: The known losses.

    Returns:
        Name and weight of each term, in the order of the text.

    Raises:
        ValueError: If a name is not in `names` or comes twice, or a weight is not a finite number above 0.
    """
    terms: dict[str, float] = {}
    for term in text.split("+"):
        name, colon, number = (part.strip() for part in term.partition(":"))
        if name not in names:
            raise ValueError(f"Expected `loss` as a name in {tuple(names)} or a sum such as dice:1+focal:0.5. Received: {text!r}.")
        if name in terms:
            raise ValueError(f"Expected each name once in `loss`. Received: {text!r}. Add up the weights of {name!r}.")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"Expected a finite weight above 0 for {name!r} in `loss`, as in {name}:0.5. Received: {text!r}.")
        terms[name] = weight
    return tuple(terms.items())
