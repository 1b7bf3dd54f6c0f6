"""Trains a network on a data set and scores it on the test split: `python train.py --dataset hipmri`.

Without arguments it lists the data sets, says which of them are on this machine, and what to type next.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import utils
from dataset import DATASETS
from modules import devices
from modules.compiled import keep_compiled
from modules.data.cache import prepare_splits
from modules.data.case import Case
from modules.data.fingerprint import measure
from modules.data.spec import DatasetSpec, choose_target
from modules.hardware import look_up_hardware
from modules.run import proof, report, tracking
from modules.run.budget import Share, draft_share, fit_to_time, start_clock, start_probe
from modules.run.compare import compare
from modules.run.costs import estimate_costs
from modules.run.crossvalidation import Program, cross_validate, plan_folds
from modules.run.division import divide, find_labelled
from modules.run.evaluate import evaluate
from modules.run.fit import find_table, fit
from modules.run.flags import TrainingRequest, describe_choices, parse_training
from modules.run.folder import RunFolder
from modules.run.init import begin, keep_intensities
from modules.run.listing import list_runs
from modules.run.plan import Plan, draft_plan
from modules.run.plan_table import describe_prepared
from modules.run.prepared import PreparedRun, build_network
from modules.run.search import search
from modules.run.settings import Settings
from modules.run.verify import check_backend, check_resumable, describe_run, hash_data, verify
from utils import log, log_lines

ROOT = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return utils.run_command("train.py", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    utils.start_log()
    request = parse_training(argv, DATASETS)
    if request.comparison:
        compare(request.comparison)
    elif request.settings is None:
        return report.write_reports(request.report, DATASETS, request.people) if request.report else log_lines(describe_choices(DATASETS))
    else:
        carry_request(request, request.settings)


def carry_request(request: TrainingRequest, settings: Settings, *, quiet: bool = False) -> RunFolder | None:
    """Does what was asked for, and returns the run that was trained, if any. If `quiet`, the console gets warnings alone."""
    all_folds = bool(settings.folds) and settings.fold is None
    start_clock()
    devices.start_hosts(*request.joined)
    utils.start_log(quiet=quiet or not devices.is_main())
    if devices.find_host()[1] > 1 and (request.verify or all_folds):
        raise ValueError("Expected a single training for several hosts. Received: --verify, or --folds. Give --hosts 1, or one --fold.")
    if request.verify:
        return verify_runs(request)
    if request.search or all_folds:
        carry_parts = search if request.search else plan_folds if request.plan_only else cross_validate
        return carry_parts(settings, request, Program(load, prepare, train, resume, Path(__file__)))
    if request.plan_only:
        return log_lines(describe_prepared(prepare(settings, request.devices)))
    begun, most, scored = request.resume, request.devices, not request.train_only
    return resume(RunFolder(begun), settings, most, scored=scored) if begun else train(settings, None, most, scored=scored)


def train(
    settings: Settings, run: RunFolder | None = None, max_devices: int | None = None, share: Share | None = None, *, scored: bool = True
) -> RunFolder:
    """Trains a new run on at most `max_devices` devices a host, scores it and draws its pictures; of several it gets its `share`."""
    if devices.is_main():
        (run or RunFolder.name(settings)).check_new()
        tracking.check_tracker(settings.track)
    prepared = prepare(settings, max_devices, run=run, share=share)
    run = run or RunFolder.name(settings, prepared.plan.network)
    environment = describe_run(prepared, ROOT)
    measured = prepared.fingerprint.to_json(prepared.spec.class_names)
    devices.on_main(lambda: run.create(settings, prepared.plan, prepared.manifest, measured, **environment, **prepared.record_data()))
    with run:
        return carry_out(prepared, run, environment, scored=scored)


def resume(run: RunFolder, settings: Settings, max_devices: int | None = None, *, scored: bool = True) -> RunFolder:
    """Goes on with an interrupted run; raises ValueError for a run that is finished, in training, or made of other data."""
    devices.on_main(run.claim)
    with run:
        check_backend(run)
        tracking.check_tracker(settings.track if devices.is_main() else "none", run)
        prepared = prepare(settings, max_devices, run.read_plan(), run)
        environment = describe_run(prepared, ROOT, run)
        check_resumable(run, environment, prepared.manifest, prepared.spec)
        devices.on_main(run.sweep)
        return carry_out(prepared, run, environment, scored=scored)


def load(settings: Settings) -> tuple[DatasetSpec, list[Case]]:
    """Finds the data set and all its cases. A demo draws its data set first."""
    spec, root = DATASETS[settings.dataset], settings.data_folder()
    if settings.demo:
        devices.on_main(lambda: log.info("phantom: %s", spec.write_phantom(root, seed=settings.seed)))
    return find_labelled(settings, spec)


def prepare(
    settings: Settings, max_devices: int | None = None, plan: Plan | None = None, run: RunFolder | None = None, share: Share | None = None
) -> PreparedRun:
    """Prepares everything before the first step. It reads every file, so that a broken one shows now and not after hours.

    Args:
        settings: The user's settings.
        max_devices: The most devices of a host to use.
        plan: The plan of a run that goes on; without it we make one.
        run: The run, where it has a folder or a name already.
        share: The part of the time that this training gets, where the command makes several.
    """
    keep_compiled(Path(settings.cache))
    spec, cases = load(settings)
    log_lines(spec.found)
    splits, remarks = divide(cases, settings)
    spec = choose_target(spec, settings.target) if plan else keep_intensities(choose_target(spec, settings.target), settings, run)
    draft_plan(settings, spec)
    with start_probe(settings, plan, share, max_devices) as probe:
        fingerprint = measure(splits["train"], spec, Path(settings.cache))
        draft = plan or draft_share(settings, spec, fingerprint, share, look_up_hardware(ask=probe is None))
        prepared = prepare_splits(splits, spec, draft.preprocessing, settings.cache)
        plan = fit_to_time(settings, spec, fingerprint, prepared, probe, share) if probe else draft
    prepared = prepared if plan.preprocessing == draft.preprocessing else prepare_splits(splits, spec, plan.preprocessing, settings.cache)
    settings = plan.resolve(settings)
    devices.start_backend(settings.seed, settings.deterministic)
    precision = devices.choose_precision(settings.precision)
    devices.distribute(names := devices.choose_devices(max_devices, plan.batch_size))
    network = build_network(settings, spec, plan)
    begun = begin(network, settings, spec, plan, run)
    plan = replace(plan, costs=estimate_costs(plan, network, precision, prepared, fingerprint, find_table(settings, spec, prepared, names)))
    hashes = [digest for members in prepared.values() for case in members for digest in case.sources_sha256]
    manifest = proof.make_manifest(splits, settings.data_folder(), hashes, spec.tables)
    return PreparedRun(settings, spec, plan, splits, remarks, prepared, network, precision, names, manifest, fingerprint, begun)


def carry_out(prepared: PreparedRun, run: RunFolder, environment: dict, *, scored: bool = True) -> RunFolder:
    """Fits the network from the run's last checkpoint. If `scored`, it scores the best model on the test cases and draws pictures."""
    settings = prepared.settings
    log.info("run: %s  (%s, %s, %s)", run.path, environment["backend"], ", ".join(prepared.devices), prepared.precision)
    log_lines(describe_prepared(prepared))
    bundle = prepared.make_bundle({"dataset": settings.dataset, "run": run.path.name, "seed": settings.seed, **environment})
    kind = settings.track if devices.is_main() else "none"
    with tracking.open_tracker(kind, run, experiment=settings.dataset, parameters=settings.to_json(), tags=environment) as tracker:
        try:
            best_epoch = fit(prepared, bundle, run, tracker)
            summary = {"best_epoch": best_epoch, "weights_sha256": proof.hash_weights(prepared.network), **environment}
            devices.distribute([])
            if scored:
                devices.on_main(lambda: evaluate(prepared.splits, run, summary, tracker, settings))
        except KeyboardInterrupt:
            log.info("stopped; go on with: python train.py --resume %s", run.whole)
            raise
    return run


def verify_runs(request: TrainingRequest) -> None:
    """Verifies a run, or every fold of a cross-validation; raises ValueError if something is not the same."""
    for run in map(RunFolder, list_runs([request.verify] if request.verify else [])):
        settings, plan = replace(run.read_settings(), **request.places), run.read_plan()
        verify(run, partial(hash_data, load, settings), partial(prepare, settings, request.devices, plan, run), ROOT)


if __name__ == "__main__":
    sys.exit(main())
