"""The process that runs the SQL of the WHERE box: limited by the kernel, and killed when it takes too long.

Started by `flows.browse.where` as a file, so that nothing of ours is imported. Standard input has a question a line,
standard output an answer a line, both JSON. It ends with its input.
"""

import json
import os
import resource
import sys
from typing import Any

import duckdb

DATABASE, MEMORY, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
THREADS = min(4, os.cpu_count() or 1)
"""Each thread has an address space of its own for small blocks, which counts against the limit."""


def open_database() -> duckdb.DuckDBPyConnection:
    """Read-only, without files, extensions or a folder to spill to."""
    return duckdb.connect(
        DATABASE,
        read_only=True,
        config={
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "memory_limit": f"{MEMORY * 3 // 4}B",
            "temp_directory": "",
            "threads": str(THREADS),
            "lock_configuration": "true",
        },
    )


def limit_memory() -> None:
    """The kernel refuses what goes beyond MEMORY bytes, whoever asks for it; no file is written, no core dumped."""
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            address_space, resident = (int(word) for word in file.read().split()[:2])
        # Address space that is reserved and not used is not memory: the limit is on what is added to it.
        unused = (address_space - resident) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (unused + MEMORY, unused + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_another_query() -> None:
    """Processor time for one query more. A server that was killed cannot stop its child: this does."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + SECONDS * THREADS) + 2, most))


def answer(connection: duckdb.DuckDBPyConnection, question: dict) -> dict[str, Any]:
    """`rows`, or the `error` of a query. MemoryError and duckdb.OutOfMemoryException are for the caller."""
    try:
        duckdb.SQLExpression(question["where"])  # one expression, nothing behind it
        result = connection.execute(question["sql"], question["parameters"])
        names = [column[0] for column in result.description or []]
        return {"rows": [dict(zip(names, row, strict=True)) for row in result.fetchall()]}
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        return {"error": str(error)}


def main() -> None:
    connection = open_database()
    connection.execute("SELECT count(*) FROM samples").fetchall()  # starts the threads
    limit_memory()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        allow_another_query()
        try:
            found = json.dumps(answer(connection, json.loads(line)))
        except (MemoryError, duckdb.OutOfMemoryException):
            # What it took is not given back: a new process takes over.
            os._exit(OUT_OF_MEMORY)
        print(found, flush=True)


OUT_OF_MEMORY = 9
"""Exit status."""

if __name__ == "__main__":
    main()
