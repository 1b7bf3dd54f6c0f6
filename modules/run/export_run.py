"""Exports the model of a run: finds the scans that it is checked and judged on, where they are still there."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.data.case import Case, read_case
from modules.data.documents import to_line
from modules.data.spec import DatasetSpec
from modules.predict import engines
from modules.predict.bundle import ModelBundle, find_bundle
from modules.predict.cases import cut_sample, cut_samples
from modules.predict.export import Variant, check_exportable, export_model
from modules.predict.export_check import Samples, draw_samples
from modules.predict.quantise import check_quantiser, quantise
from modules.run.division import divide, find_labelled
from modules.run.folder import RunFolder
from modules.run.proof import check_data, make_manifest
from modules.run.validated import judge_variant
from modules.run.verify import read_data

log = logging.getLogger("mri")


def export_run(run: Path, kind: str, precision: str, folder: Path, datasets: Mapping[str, DatasetSpec]) -> Path:
    """Exports the model of a run, and checks it on the run's validation scans where they are still there.

    Args:
        run: The run, or a bundle.
        kind: One of `modules.predict.export.FORMATS`.
        precision: "auto" and "float32" export the model as it is. "bfloat16" and "int8" export a variant for OpenVINO.
        folder: The folder to write to.
        datasets: The catalogue.

    Returns:
        The path of the exported model.

    Raises:
        FileNotFoundError: If there is no bundle.
        ValueError: If the model cannot be exported, computes something else, or loses too much.
    """
    find_bundle(run)
    check_exportable(kind)
    is_variant = precision in ("bfloat16", "int8")
    if precision == "int8":
        check_quantiser()
    elif is_variant:
        # It raises where this CPU cannot show what bfloat16 does.
        engines.choose_precision(precision, precision, "openvino")
    bundle = ModelBundle.load(run, "keras")
    splits, lack = find_scans(RunFolder(run), datasets)
    if is_variant and lack:
        raise ValueError(f"Expected scans of {run} to judge {precision} on. Received: {lack} Restore them, or give --precision float32.")
    if lack:
        log.info("no scans of the run to check on: %s", lack)
        samples = draw_samples(bundle)
    else:
        samples = Samples(cut_samples(bundle, splits["validate"]), "two windows of validation scans")
    variant = _make_variant(bundle, precision, splits) if is_variant else None
    return export_model(bundle, kind, folder, samples, variant)


def _make_variant(bundle: ModelBundle, precision: str, splits: Mapping[str, Sequence[Case]]) -> Variant:
    """Makes a variant that is judged on the validation cases. 8-bit integers learn their ranges from training cases."""

    def quantise_on_scans(source: Path, target: Path) -> None:
        quantise(source, target, splits["train"], lambda case: cut_sample(bundle, read_case(case, bundle)[0]))

    return Variant(
        precision,
        quantise_on_scans if precision == "int8" else None,
        lambda plain, other: judge_variant(plain, other, splits["validate"]),
    )


def find_scans(run: RunFolder, datasets: Mapping[str, DatasetSpec]) -> tuple[dict[str, list[Case]], str]:
    """Finds the cases of a run by split, if its data lie where they lay and its validation files are unaltered.

    Returns:
        The cases by split, and ""; or nothing, and a sentence that says why.
    """
    if not run.record.is_file():
        return {}, f"no {run.record.name} in {run.path}, a model without its run."
    try:
        settings = run.read_settings()
        if settings.dataset not in datasets or not settings.data_folder().is_dir():
            return {}, f"no data set '{settings.dataset}' in {settings.data_folder()}."
        _, cases = find_labelled(settings, datasets[settings.dataset])
        splits, _ = divide(cases, settings)
        begun = {name: known for name, known in read_data(run).items() if known[0] == "validate"}
        check_data(begun, make_manifest({"validate": splits["validate"]}, settings.data_folder()), run.path)
    except (ValueError, OSError) as error:
        return {}, to_line(error)
    return splits, ""
