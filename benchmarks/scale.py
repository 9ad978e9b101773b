"""Scale: plan, commit and resume with stub stages, the engine on two Ray workers, and queries over many track rows.

Each section runs in a process of its own that loads no torch, so that its memory is that of the pipeline alone. By
environment: SCALE_ONLY names sections (`plan,run,resume,queries,ray,workers`), and SCALE_PLAN, SCALE_REFERENTS (of
`run`), SCALE_RESUME, SCALE_ROWS, SCALE_CLIPS (of `ray`) and SCALE_BURNS (clips of `workers`) their sizes.
`benchmarks/scaling.py` has the sections.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.measure import Row, Setting

SECTIONS = {
    "plan": ("SCALE_PLAN", 1_000_000, 2_000),
    "run": ("SCALE_REFERENTS", 100_000, 640),
    "resume": ("SCALE_RESUME", 1_000_000, 1_100),
    "queries": ("SCALE_ROWS", 10_000_000, 20_000),
    "ray": ("SCALE_CLIPS", 4_000, 64),
    "workers": ("SCALE_BURNS", 400, 12),
}
"""Section -> variable with its size, the size without it, and the size of a quick run."""
LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run(setting: Setting) -> Iterator[Row]:
    only = os.environ.get("SCALE_ONLY", ",".join(SECTIONS)).split(",")
    if unknown := set(only) - SECTIONS.keys():
        raise ValueError(
            f"SCALE_ONLY: no section is called {', '.join(sorted(unknown))}: {', '.join(SECTIONS)}"
        )
    for name in only:
        variable, full, small = SECTIONS[name]
        yield from section(name, int(os.environ.get(variable, small if setting.quick else full)))


def section(name: str, size: int) -> Iterator[Row]:
    """The rows of one section, as its process measures them. RuntimeError if it fails."""
    code = "import sys; from benchmarks.scaling import main; main(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, name, str(size)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | dict.fromkeys(LIBRARIES, "1")
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"what"'):
                yield Row(**json.loads(line))
    if process.returncode:
        raise RuntimeError(
            f"the section {name!r} of the scale benchmark ended with code {process.returncode}"
        )
