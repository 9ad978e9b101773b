"""One script per performance claim. Every figure stands beside a named baseline measured in the same run.

.venv/bin/sparrow bench                # all of them, for this machine's device
python -m benchmarks tracker --quick   # the same without Ray and Prefect installed
"""
