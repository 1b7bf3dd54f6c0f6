"""Names and sums of losses, as the flag `--loss` takes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from modules.model.loss_spec import parse_loss
from modules.model.losses import LOSSES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("dice", (("dice", 1.0),)),
        ("dice:0.25", (("dice", 0.25),)),
        ("dice+ce", (("dice", 1.0), ("ce", 1.0))),
        (" focal : 2 + dice:5e-1 ", (("focal", 2.0), ("dice", 0.5))),
    ],
)
def test_parse_loss(text, terms):
    assert parse_loss(text, tuple(LOSSES)) == terms


@pytest.mark.parametrize("text", ["hinge", "", "dice+", "+dice", "dice+hinge:2", "dice,ce", "Dice"])
def test_an_unknown_loss_lists_the_names(text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        parse_loss(text, ("dice", "ce"))
    assert str(caught.value) == f"Expected `loss` as a name in ('dice', 'ce') or a sum such as dice:1+focal:0.5. Received: {text!r}."


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "x", "", "1:2"])
def test_wrong_weights_of_a_sum(weight):
    with pytest.raises(ValueError, match="Expected a finite weight above 0 for 'ce' in `loss`, as in ce:0.5. Received: 'dice[+]ce:"):
        parse_loss(f"dice+ce:{weight}", ("dice", "ce"))


def test_a_name_comes_once():
    with pytest.raises(ValueError, match="Expected each name once in `loss`. Received: 'ce[+]dice[+]ce:2'. Add up the weights of 'ce'"):
        parse_loss("ce+dice+ce:2", ("dice", "ce"))


def test_reading_a_loss_needs_no_keras():
    code = "import sys, modules.model.loss_spec; sys.exit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
