"""Makes small wrong changes of the source, one at a time, and says which tests fail for each.

`python benchmarks/mutations.py [--only NAME ...] [--list]`. A change that no test notices is a gap in the tests. The changes stand in
`mutations.toml`. Each names a file, the old text, the new text and the tests that must fail. It also says what would go wrong for a user.
The script copies the files that git tracks to a temporary folder and works there. First each set of tests must pass on the unchanged copy.
A change counts as killed if a named test fails by itself. An error of import, of collection or of a fixture does not count. The exit status
is 1 if any change survives, and 2 if the table does not fit the source.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "mutations.toml"
# Python tells a compiled file from a stale one by size and second. A change of one digit within a second would not be seen.
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1", "COLUMNS": "250"}
SECONDS = 300
# Such errors say that a change is no program, not that a test noticed it.
_BROKEN = ("ImportError", "IndentationError", "ModuleNotFoundError", "NameError", "SyntaxError", "UnboundLocalError")
_FAILED = re.compile(r"^FAILED (.+?)(?: - (.*))?$", re.MULTILINE)


class Mutation(NamedTuple):
    """A wrong change.

    Attributes:
        name: Its name, for `--only`.
        file: The file that is changed, from the root.
        old: The text that is replaced; it occurs once in the file.
        new: The text in its place.
        tests: Arguments of pytest: files, tests, and perhaps `-k`.
        wrong: What goes wrong for a user.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    wrong: str


def read_table(path: Path = TABLE, root: Path = ROOT) -> list[Mutation]:
    """Reads the table and checks that it fits the source.

    Raises:
        ValueError: If a name comes twice, or an old text does not occur exactly once; the change is named.
    """
    mutations = [Mutation(name, **fields) for name, fields in tomllib.loads(path.read_text(encoding="utf-8")).items()]
    for mutation in mutations:
        count = (root / mutation.file).read_text(encoding="utf-8").count(mutation.old)
        if count != 1:
            raise ValueError(
                f"Expected the old text of '{mutation.name}' once in {mutation.file}. Received: {count} times. Correct {path.name}."
            )
        if mutation.old == mutation.new:
            raise ValueError(f"Expected a change by '{mutation.name}' in {path.name}. Received: the old text again. Correct it.")
    return mutations


def choose(mutations: Sequence[Mutation], names: Sequence[str]) -> list[Mutation]:
    """Returns the changes of these names, or all without names; raises ValueError for an unknown one."""
    known = {mutation.name: mutation for mutation in mutations}
    for name in names:
        if name not in known:
            raise ValueError(f"Expected names of --list. Received: {name!r}. See --list.")
    return [known[name] for name in names] if names else list(mutations)


def copy_tracked(root: Path, folder: Path) -> None:
    """Copies the files that git tracks, or would track, as they lie in the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    for name in filter(None, listed.split(b"\0")):
        source, target = root / os.fsdecode(name), folder / os.fsdecode(name)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def preload() -> None:
    """Imports what takes long and is no part of the copy. Each run of tests is a fork of this process, which spares these seconds."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        # TensorFlow writes to standard error whatever its settings say.
        os.dup2(null, 2)
        import cv2  # noqa: F401
        import nibabel  # noqa: F401
        import pytest  # noqa: F401
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def run_tests(folder: Path, tests: str) -> tuple[int, str]:
    """Runs pytest in the copy; returns its exit status, or -1 if it takes too long, and its output."""
    with tempfile.TemporaryFile() as output:
        process = os.fork()
        if not process:
            _carry_out_tests(folder, tests, output.fileno())
        status = _wait(process)
        output.seek(0)
        return status, output.read().decode(errors="replace")


def _wait(process: int) -> int:
    """Waits for the end of a process; kills it and what it started after `SECONDS`, and at Ctrl-C."""
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            done, code = os.waitpid(process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(code)
            time.sleep(0.02)
    except BaseException:
        os.killpg(process, signal.SIGKILL)
        raise
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -1


def _carry_out_tests(folder: Path, tests: str, output: int) -> NoReturn:
    """Runs pytest in a forked process and ends it."""
    status = 3
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(folder)
        # The folder of this script is the first; python -m pytest would have the current one there.
        sys.path[0] = str(folder)
        import pytest

        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]))
        sys.stdout.flush()
    finally:
        os._exit(status)


def find_killer(status: int, output: str) -> str:
    """Returns the test that failed by itself, from pytest's exit status and output; "" where none did."""
    # 0 is a pass. From 2 on, and without a line FAILED, no test was carried out to its end.
    found = _FAILED.search(output)
    if status != 1 or found is None:
        return ""
    reason = found[2] or ""
    return "" if reason.startswith(_BROKEN) else found[1]


def try_mutation(folder: Path, mutation: Mutation) -> str:
    """Applies a change to the copy, runs its tests, and puts the file back.

    Returns:
        "killed by" and the test, or "SURVIVED" and why.
    """
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status, output = run_tests(folder, mutation.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    if killer := find_killer(status, output):
        return f"killed by {killer}"
    reason = {0: f"{mutation.tests} passed", -1: f"no end within {SECONDS} s"}.get(status, f"no test failed by itself, status {status}")
    return f"SURVIVED: {reason}. {mutation.wrong}"


def check_unchanged(folder: Path, mutations: Sequence[Mutation]) -> None:
    """Raises ValueError if any set of tests fails without a change, or holds no test."""
    for tests in dict.fromkeys(mutation.tests for mutation in mutations):
        status, output = run_tests(folder, tests)
        if status:
            raise ValueError(f"Expected {tests} to pass unchanged. Received: exit status {status}. Mend the tests first.\n{output[-2000:]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of changes to try (default all)")
    parser.add_argument("--list", action="store_true", help="print names and what would go wrong, and try nothing")
    options = parser.parse_args(argv)
    try:
        mutations = choose(read_table(), options.only)
        if options.list:
            for mutation in mutations:
                print(f"{mutation.name:<28} {mutation.file}: {mutation.wrong}")
            return 0
        # As Ctrl-C, so that no tests are left behind.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        began, killed = time.monotonic(), 0
        os.environ.update(ENVIRONMENT)
        sys.dont_write_bytecode = True
        preload()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy_tracked(ROOT, folder)
            check_unchanged(folder, mutations)
            print(f"unchanged: all tests pass, {time.monotonic() - began:.0f} s", flush=True)
            for mutation in mutations:
                result = try_mutation(folder, mutation)
                killed += result.startswith("killed")
                print(f"{mutation.name:<28} {result}", flush=True)
    except ValueError as error:
        print(f"mutations.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mutations.py: interrupted", file=sys.stderr)
        return 130
    print(f"{killed} of {len(mutations)} wrong changes are noticed, {time.monotonic() - began:.0f} s")
    return int(killed < len(mutations))


if __name__ == "__main__":
    sys.exit(main())
