"""Measures the steps of a plan before it is carried out, in a process of its own.

The other process ends before the training begins. The measurement therefore costs the training neither memory nor its random numbers,
and the peak of its memory can be read off. `modules.run.probe_worker` is its program.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from modules.data.documents import to_line
from modules.data.spec import DatasetSpec
from modules.hardware import Hardware
from modules.run.plan import Plan
from modules.run.settings import Settings


@dataclass(frozen=True)
class Timing:
    """The measured costs of a plan.

    Attributes:
        first_s: Seconds to build and compile the network, with the first step of training and of validation.
        step_s: Seconds of a training step.
        validation_s: Seconds of a validation batch.
        base_bytes: The process's memory before it measured any plan.
        held_bytes: Its memory before it measured this one. It holds on to what plans before took.
        peak_bytes: Peak of its memory.
        device_bytes: Peak of the GPU's memory; 0 without. The training cases lie there, or in the memory before, if they shall.
        weights: Number of weights.
    """

    first_s: float
    step_s: float
    validation_s: float
    base_bytes: int
    held_bytes: int
    peak_bytes: int
    device_bytes: int
    weights: int


class Probe:
    """A process that measures plans. Used as a context manager, it ends with the block."""

    def __init__(self, settings: Settings, max_devices: int | None = None) -> None:
        """Starts the process, which loads its libraries while this one reads the scans. It trains on at most `max_devices` devices."""
        self._max_devices = max_devices
        root = Path(__file__).parents[2]
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        # Without `-P` a module of the user's folder could take the place of ours.
        command = [sys.executable, "-P", "-m", f"{__package__}.probe_worker", str(settings.seed), str(int(settings.deterministic))]
        # A pipe would fill up with the libraries' warnings, and then stop the process.
        self._errors = tempfile.TemporaryFile("w+", errors="backslashreplace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        # These are None only without a pipe.
        self._requests, self._answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        self._hardware: Hardware | None = None

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.communicate()
        self._errors.close()

    @property
    def hardware(self) -> Hardware:
        """The machine, as the process sees it; raises ValueError if the process ended."""
        if self._hardware is None:
            self._hardware = Hardware(**self._receive())
        return self._hardware

    def measure(self, plan: Plan, settings: Settings, spec: DatasetSpec, seconds: float, voxels: int) -> Timing | None:
        """Measures the steps of a plan.

        Args:
            plan: The plan.
            settings: The settings, filled by the plan.
            spec: The data set.
            seconds: The most time for the measured steps, without the compilation.
            voxels: The voxels of all training cases.

        Returns:
            The costs; None where the machine's memory does not suffice.

        Raises:
            ValueError: If the process ended.
        """
        # The first line that the process writes describes the machine.
        _ = self.hardware
        request = {
            "plan": plan.to_json(),
            "settings": settings.to_json(),
            "channels": spec.channels,
            "class_names": spec.class_names,
            "mirrored_labels": spec.mirrored_labels,
            "regions": spec.regions,
            "ignores": spec.label_rule.ignores,
            "devices": self._max_devices,
            "seconds": seconds,
            "voxels": voxels,
        }
        answer = self._ask(request)
        return None if answer.get("out_of_memory") else Timing(**answer)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            self._process.communicate()
            self._errors.seek(0)
            lines, status = self._errors.read().strip().splitlines(), self._process.returncode
            # The system kills a process for lack of memory, which has no time to say so.
            ended = f"a process killed by signal {-status}" if status < 0 else f"exit status {status}"
            reason = to_line(lines[-1]) if lines and status > 0 else ended
            remedy = "Give --epochs in place of a time."
            if status == -signal.SIGKILL:
                reason += ", as where memory runs out"
                remedy = "Free some memory, or choose a smaller --shape, --batch-size or --base-filters."
            raise ValueError(f"Expected a measurement of the training's steps. Received: {reason}. {remedy}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer
