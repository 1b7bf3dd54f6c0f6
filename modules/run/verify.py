"""Checks a run against its data, its program and its own first steps, before a resume and for `--verify`."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modules import devices
from modules.data import documents
from modules.data.case import Case
from modules.data.spec import DatasetSpec
from modules.predict.bundle import ModelBundle
from modules.run import proof
from modules.run.division import divide
from modules.run.fit import feed_training, make_trainer, name_failures
from modules.run.folder import REMEDY, RunFolder
from modules.run.prepared import PreparedRun
from modules.run.settings import Settings

log = logging.getLogger("mri")


def describe_run(prepared: PreparedRun, root: Path, run: RunFolder | None = None) -> dict[str, Any]:
    """Describes the origin of a run: versions, devices, precision, and the hashes of its data and program.

    Args:
        prepared: The run.
        root: The program's folder.
        run: The run that goes on. It says itself what it began from, because the scans that tell may have gone.
    """
    init = prepared.record_init()
    if run is not None and init:
        init["init"] |= {"seen_subjects": read_init(run).get("seen_subjects")}
    return {
        **devices.describe_environment(),
        "data_sha256": proof.hash_manifest(prepared.manifest),
        "code_sha256": proof.hash_code(root),
        "precision": prepared.precision,
        "devices": list(prepared.devices),
        **init,
    }


def read_origin(run: RunFolder) -> dict[str, Any]:
    """Reads from `run.json` on which machine, program and data a run began; raises ValueError for another content."""
    record, words = run.read_record(), documents.text()
    rules = {
        **dict.fromkeys(("backend", "precision", "python", "data_sha256", "code_sha256"), words),
        "devices": documents.many(words, 1, 4096),
        "versions": documents.mapping(words, words),
    }
    documents.check_fields(record, rules, run.record, REMEDY, others=True)
    return record


def read_data(run: RunFolder) -> proof.Manifest:
    """Reads the data files of a run with their splits and hashes; raises ValueError for another content."""
    content = documents.read_json(run.data, REMEDY)
    rule = documents.mapping(documents.Rule("a file", lambda name: True), documents.many(documents.text(), 2, 2))
    if not rule.holds(content):
        raise ValueError(f"Expected files with split and SHA-256 in {run.data}. Received: {documents.shorten(content)}. {REMEDY}")
    return content


def read_proof(run: RunFolder) -> tuple[int, str]:
    """Reads how many first steps a run proves, and the hash of the weights after them; raises ValueError naming the file."""
    if not run.proof.is_file():
        raise ValueError(f"Expected the first steps of a run in {run.proof}. Received: none yet. Let it train, then verify it.")
    content = documents.read_json(run.proof, REMEDY)
    rules = {"steps": documents.whole(1, 1 << 40), "weights_sha256": documents.text(64, 64)}
    documents.check_fields(content, rules, run.proof, REMEDY, others=True)
    return content["steps"], content["weights_sha256"]


def read_scored_weights(run: RunFolder) -> str:
    """Reads from `summary.json` the hash of the weights that were scored; raises ValueError for another content."""
    content = documents.read_json(run.summary, REMEDY)
    documents.check_fields(content, {"bundle_weights_sha256": documents.text(64, 64)}, run.summary, REMEDY, others=True)
    return content["bundle_weights_sha256"]


def hash_data(load: Callable[[Settings], tuple[DatasetSpec, list[Case]]], settings: Settings) -> proof.Manifest:
    """Hashes every file of the data set as it lies on disk now; `load` finds the data set and its cases."""
    spec, cases = load(settings)
    return proof.make_manifest(divide(cases, settings)[0], settings.data_folder(), tables=spec.tables)


def check_resumable(run: RunFolder, environment: Mapping[str, Any], manifest: proof.Manifest, spec: DatasetSpec | None = None) -> None:
    """Checks that data, splits, classes, backend and precision are those that a run began with; the log warns of other differences.

    Raises:
        ValueError: If one of them differs, naming it.
    """
    begun = read_origin(run)
    _check_init(run, environment)
    proof.check_data(read_data(run), manifest, run.path)
    if spec is not None:
        _check_spec(run, spec)
    for name in ("backend", "precision"):
        proof.check_equal(name, begun[name], environment[name], run.path)
    for name in ("devices", "versions", "code_sha256"):
        if begun[name] != environment[name]:
            log.warning("%s differs from what %s began with: the weights may not be those of an uninterrupted run", name, run.path)


def read_init(run: RunFolder) -> Mapping[str, Any]:
    """Reads from `run.json` what a run began from; empty for random weights."""
    init = run.read_record().get("init")
    return init if isinstance(init, dict) else {}


def _check_init(run: RunFolder, now: Mapping[str, Any]) -> None:
    """Checks that a run's copy of the model that it began from is still that model; raises ValueError otherwise."""
    identities = (init.get("bundle_sha256") for init in (read_init(run), now.get("init", {})))
    proof.check_equal("initial model", *identities, run.path)


def _check_spec(run: RunFolder, spec: DatasetSpec) -> None:
    """Checks that channels and classes are still those of the run; raises ValueError naming the first that differs."""
    begun: Any = run.read_record().get("data_set")
    # A run of an earlier version did not write them down.
    for name, value in spec.to_json().items() if isinstance(begun, dict) else ():
        if begun.get(name) != value:
            raise ValueError(
                f"Expected the {name} of {run.path}, {documents.shorten(begun.get(name))}. Received: {documents.shorten(value)}. "
                "Restore the data set and its tables, or start a new run."
            )


def check_backend(run: RunFolder) -> None:
    """Checks before any data is read that the backend is the run's own; raises ValueError otherwise."""
    proof.check_equal("backend", read_origin(run)["backend"], devices.name_backend(), run.path, remedy="Name the run's by `--backend`")


def verify(run: RunFolder, hash_data: Callable[[], proof.Manifest], prepare: Callable[[], PreparedRun], root: Path) -> None:
    """Checks that a run's data and model are unaltered, and that its first steps give the same weights; warns of another program.

    Args:
        run: The run.
        hash_data: A function that hashes the data as they lie on disk now. The cache trusts sizes and times, which a proof must not.
        prepare: A function that prepares the run anew.
        root: The program's folder.

    Raises:
        ValueError: If something is not the same, naming it.
    """
    record, (steps, expected), begun = read_origin(run), read_proof(run), read_data(run)
    manifest = hash_data()
    proof.check_data(begun, manifest, run.path)
    log.info("data: %d files are those of %s, SHA-256 %.16s...", len(manifest), run.path, record["data_sha256"])
    prepared = prepare()
    # The cache must have been made from these very bytes.
    proof.check_data(manifest, prepared.manifest, run.path)
    now = describe_run(prepared, root)
    _check_init(run, now)
    _check_spec(run, prepared.spec)
    for name in ("backend", "devices", "python", "versions", "code_sha256"):
        if now[name] != record[name]:
            log.warning("%s differs: %s had %s, here it is %s", name, run.path, record[name], now[name])
    trainer = make_trainer(prepared)
    with feed_training(prepared) as make_data, name_failures() as failures:
        trainer.fit(make_data(0, failures), epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
    weights = proof.hash_weights(prepared.network)
    proof.check_equal(f"weights after {steps} steps", expected, weights, run.path)
    log.info("training: the first %d steps give the same weights, SHA-256 %.16s...", steps, weights)
    if run.finished:
        weights = proof.hash_weights(ModelBundle.load(run.path, "keras").model)
        proof.check_equal("weights of the bundle", read_scored_weights(run), weights, run.path)
        log.info("bundle: weights are those that were scored, SHA-256 %.16s...", weights)
