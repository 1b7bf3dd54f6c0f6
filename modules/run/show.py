"""The command `dataset.py show`: some cases of a data set with their labels, or what an augmentation does to one."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from modules.data.case import read_case, require_label
from modules.data.draws import AUGMENTATIONS
from modules.data.folder_set import Wishes
from modules.data.inventory import describe_ignored
from modules.data.regions import name_shown, to_shown
from modules.data.spec import DatasetSpec, find_cases, load_spec
from modules.run.flags import check_takes
from modules.run.samples import choose_case, choose_scans, make_sample
from modules.run.settings import Settings

log = logging.getLogger("mri")

_SHOWN = 6  # scans on a sheet


def show(options: argparse.Namespace, datasets: Mapping[str, DatasetSpec]) -> None:
    """Draws a sheet.

    Args:
        options: The flags.
        datasets: The catalogue.

    Raises:
        FileNotFoundError, ValueError: For wrong flags, and for a case that cannot be read.
    """
    # This import brings matplotlib, for which `--help` need not wait.
    from modules import reports

    output = Path(options.output or f"show_{options.dataset}{'' if options.augment == 'none' else '_' + options.augment}.png")
    if output.suffix.lower() != ".png":
        raise ValueError(f"Expected `--output` ending in .png. Received: {output}.")
    check_takes(datasets[options.dataset], vars(options), datasets)
    root = Settings(options.dataset, data=options.data, cases=options.cases, demo=options.demo, seed=options.seed).data_folder()
    if options.demo:
        datasets[options.dataset].write_phantom(root, seed=options.seed)
    spec = load_spec(datasets[options.dataset], root, Wishes(options.cases, tuple(options.classes), options.modality))
    for line in spec.found:
        log.info("%s", line)
    found = find_cases(spec, root, ignore_geometry=options.ignore_geometry)
    scans = choose_scans(found, _SHOWN if options.augment == "none" else 1, options.seed)
    cases = [choose_case(scan, spec) for scan in scans]
    for line in describe_ignored(cases):
        log.warning("%s", line)
    ignored, names = spec.label_rule.ignores, name_shown(spec.class_names, spec.regions)
    names += ["ignore"] if ignored else []
    shown = {"plane": spec.defaults.get("plane", "axial"), "ignored": ignored}
    augmentation = AUGMENTATIONS[options.augment]
    if augmentation is None:
        drawn = {}
        for case in cases:
            image, label = read_case(case, spec)
            drawn[case.case_id] = (image, to_shown(require_label(case, label), spec.regions, spec.num_classes))
        reports.draw_cases(output, drawn, names, title=f"{spec.name}: {spec.title}", **shown)
    else:
        from modules.devices import import_keras

        import_keras()
        image, label = make_sample(cases[0], spec, options.seed)
        size = "x".join(map(str, label.shape))
        title = f"{spec.name}, {cases[0].case_id}, {size}: the augmentation '{options.augment}', each effect alone and all together"
        reports.draw_augmentation(
            output, image, to_shown(label, spec.regions, spec.num_classes), names, augmentation,
            title=title, seed=options.seed, left_right_swaps=spec.mirrored_indices(), **shown,
        )  # fmt: skip
    log.info("picture: %s", output)
