"""Programs and scripts that tests run, and files that one test process makes for all."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ns_easyrobust.cli import main as cli


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that the first test process makes and the others wait for."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root
    ready, path = root / f"{name}.ready", root / name
    try:
        os.close(os.open(root / f"{name}.lock", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert time.monotonic() < deadline, f"another test process did not make {name}"
            time.sleep(0.1)
        return path
    make(path)
    ready.touch()
    return path


def in_a_fork(
    command: list[str], where: Path, seconds: float = 200, memory: int | None = None
) -> subprocess.CompletedProcess[str]:
    """``ns-easyrobust command`` in a process of its own that need not import torch again; what it says in ``where``.

    Args:
        seconds: after which it counts as hanging.
        memory: bytes of address space that it may take beyond what this process has; None: any.
    """

    def child() -> None:
        for number, name in ((1, "stdout"), (2, "stderr")):
            stream = open(where / name, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
            os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)
        logging.getLogger().handlers.clear()  # pytest's
        if memory is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
        os._exit(cli.main(command))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"it hangs: {' '.join(command)[:500]}")
    said = [(where / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(command, process.exitcode, *said)


def torchrun(processes: int, where: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """``torchrun -m ns_easyrobust words``."""
    launcher = ["torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", "-m", "ns_easyrobust"]
    program = [sys.executable, "-m", *launcher, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(program, cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=200)


def load_script(name: str) -> ModuleType:
    """A script of ``benchmarks/`` as a module."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
