"""Patches a second of a real training on hippocampi, as train.py trains; a child of gpu.py.

    python benchmarks/hippocampus.py --step draw --folder FOLDER
    python benchmarks/hippocampus.py --step ours --folder FOLDER                # on the drawn volumes
    python benchmarks/hippocampus.py --step ours --folder FOLDER --data DATA    # on Task04_Hippocampus; FOLDER gets the cache

The network is nnU-Net's for patches of 40x56x40, of eight patches a batch, with strong augmentation, deep supervision and an average of
the weights. Plan, trainer and data come from the functions that train.py calls.
"""

import argparse
import json
from pathlib import Path

import harness
from training import count_flops, measure_late

PATCH = (40, 56, 40)


def draw(options: argparse.Namespace) -> dict:
    """Draws volumes of about the size of real ones, in the layout of the Medical Segmentation Decathlon."""
    from modules.phantom import write_msd

    write_msd(options.folder / "msd", subjects=options.cases, shape=(36, 50, 36))
    return {}


def measure_ours(options: argparse.Namespace) -> dict:
    """Measures patches a second, seconds of the first step, and FLOPs a patch; see `training.measure_late`."""
    import train
    from modules.run.fit import feed_training, make_trainer, name_failures
    from modules.run.proof import hash_weights
    from modules.run.settings import Settings

    settings = Settings(
        dataset="msd",
        data=str(options.data or options.folder / "msd"),
        mode="patch",
        shape=PATCH,
        network="plain_unet",
        batch_size=options.batch,
        epochs=1000,
        augment="strong",
        deep_supervision=True,
        ema=0.99,
        resident=options.resident,
        precision=options.precision,
        deterministic=bool(options.deterministic),
        cache=str(options.folder / "cache_msd"),
        network_options={"base_filters": options.base_filters},
    )
    prepared = train.prepare(settings)
    trainer = make_trainer(prepared)
    with name_failures() as failures, feed_training(prepared) as make_data:
        fit = harness.make_fit(trainer, make_data(0, failures))
        harness.take_turn()
        found = measure_late(fit, options, lambda: hash_weights(prepared.network))
    return found | {"flops": count_flops(prepared.network), "window": list(prepared.plan.window.sizes)}


STEPS = {"draw": draw, "ours": measure_ours}


def main() -> None:
    """Measures what `--step` says and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--step", choices=tuple(STEPS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="a folder in MSD's layout (default: what was drawn)")
    parser.add_argument("--cases", type=int, default=208, help="volumes to draw")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--base-filters", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--resident", default="auto", help="as train.py has it")
    parser.add_argument("--deterministic", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(STEPS[options.step](options)), flush=True)


if __name__ == "__main__":
    main()
