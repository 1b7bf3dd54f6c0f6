"""The colours of classes, in pictures and in the files of other programs."""

# Okabe and Ito's order (https://jfly.uni-koeln.de/color/), without black, which is lost on MRI. Green, blue, vermilion and purple are
# lighter or purer than theirs. They stand out from grey and, for the colour-blind, from each other.
PALETTE: tuple[str, ...] = ("#E69F00", "#56B4E9", "#00A878", "#F0E442", "#2A62F0", "#E0480A", "#DC8CB8")


def list_colours(num_classes: int) -> list[str]:
    """Lists the colours of the classes 1 to `num_classes` - 1. Beyond the palette they repeat."""
    return [PALETTE[i % len(PALETTE)] for i in range(num_classes - 1)]
