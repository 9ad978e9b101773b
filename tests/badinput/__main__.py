"""`python -m tests.badinput`: the outcome of every case as outcomes.txt has it, to be read before it is kept.

With ids of cases as arguments: their outcomes, in this process, which may take no more than MEMORY beside what it
holds already.
"""

import resource
import sys

from tests.badinput.table import CASES, judge, spelt

MEMORY = 1 << 30
"""Bytes of address space: a frame of the largest size allowed, 192 MiB, fits several times; 10^9 pixels do not."""

if __name__ == "__main__":
    wanted = sys.argv[1:]
    if wanted:
        judge(
            next(case for case in CASES.values() if case.source == "hcstvg")
        )  # all libraries are loaded
        judge(next(case for case in CASES.values() if case.source == "got10k"))
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        for name in wanted:
            print(f"{name}\t{judge(CASES[name])}", flush=True)
    else:
        print(spelt({name: judge(case) for name, case in CASES.items()}), end="")
