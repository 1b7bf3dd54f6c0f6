"""The process that measures plans: it answers, it refuses in one line, and it may die."""

import sys
from dataclasses import replace

import pytest
from helpers import make_fingerprint

from dataset import DATASETS
from modules.data.patches import Window
from modules.hardware import count_cores, find_memory
from modules.run.plan import make_plan
from modules.run.prepared import build_network
from modules.run.probe import Probe
from modules.run.probe_worker import _time
from modules.run.settings import Settings

SPEC = DATASETS["oasis"]
TINY = Settings(
    "oasis", epochs=1, shape=(16, 16), batch_size=2, augment="light", resident="yes", network_options={"base_filters": 2, "levels": 1}
)
# On the device the training cases take three bytes a voxel: more than all else that the tiny plan takes.
VOXELS = 200_000_000


def test_a_process_measures_plans_until_it_dies(tmp_path, monkeypatch):
    # A module of the user's folder is not ours.
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    plan = make_plan(TINY, SPEC, make_fingerprint([(16, 16)] * 4))
    settings = plan.resolve(TINY)
    with Probe(TINY) as probe:
        assert (probe.hardware.cores, probe.hardware.memory_bytes) == (count_cores(), find_memory())
        timing = probe.measure(plan, settings, SPEC, 0.01, VOXELS)
        assert timing.weights == build_network(settings, SPEC, plan).count_params()
        assert 0 < timing.step_s < timing.first_s
        assert timing.validation_s > 0
        # A process with these libraries takes more than 100 MB. A first plan finds no memory of others.
        assert 100e6 < timing.base_bytes <= timing.held_bytes < timing.peak_bytes
        assert timing.device_bytes + timing.peak_bytes - timing.held_bytes > 3 * VOXELS
        assert (timing.device_bytes > 0) == (probe.hardware.kind == "gpu")
        # What a training would refuse is refused, and the process goes on.
        with pytest.raises(
            ValueError, match="^Expected a shape whose sizes are multiples of 2 for network 'unet2d'. Received: .15, 15.. [^\n]*$"
        ):
            probe.measure(replace(plan, window=Window((15, 15))), settings, SPEC, 0.01, VOXELS)
        # It trains on as many devices as the run.
        probe._max_devices = 999
        with pytest.raises(ValueError, match="^Expected --devices from 1 to .*Received: 999."):
            probe.measure(plan, settings, SPEC, 0.01, VOXELS)
        probe._process.kill()
        with pytest.raises(ValueError, match="Received: a process killed by signal 9, as where memory runs out. Free some memory, or "):
            probe.measure(plan, settings, SPEC, 0.01, VOXELS)
    assert probe._process.returncode == -9


def test_another_program_disturbs_no_measurement():
    # The first step of 0.1 s leaves time for ten, which are five rounds of two. Two of these rounds take ten times as long.
    now, rounds = [0.0], iter([0.1, 0.1, 1.0, 0.1, 1.0, 0.1])

    def run(steps):
        now[0] += steps * next(rounds)

    assert _time(run, 1.0, lambda: now[0]) == pytest.approx(0.1)
    assert next(rounds, None) is None


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("echo warning >&2; echo 'ImportError: no such library' >&2; exit 1", "ImportError: no such library"),
        ("exit 3", "exit status 3"),
        ("""echo '{"error": "Expected a machine. Received: none."}'""", None),
    ],
)
def test_a_process_that_cannot_begin_is_one_line(tmp_path, monkeypatch, lines, reason):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    expected = f"Expected a measurement of the training's steps. Received: {reason}. Give --epochs in place of a time."
    with Probe(TINY) as probe, pytest.raises(ValueError, match=r"\.$") as raised:
        _ = probe.hardware
    assert str(raised.value) == (expected if reason else "Expected a machine. Received: none.")


def test_an_answer_without_memory_is_none(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("""#!/bin/sh\necho '{"kind": "cpu"}'\nread request\necho '{"out_of_memory": true}'\n""")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    plan = make_plan(TINY, SPEC, make_fingerprint([(16, 16)] * 4))
    with Probe(TINY) as probe:
        assert probe.measure(plan, plan.resolve(TINY), SPEC, 0.01, VOXELS) is None
