"""`python -m benchmarks NAME...`: for machines that have torch and little else. `sparrow bench` calls the same."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

NAMES = (
    "tracker",
    "models",
    "pipeline",
    "memory",
    "decode",
    "model",
    "loader",
    "training",
    "eval",
    "browse",
    "scale",
)


def run(
    names: list[str],
    *,
    device: str = "",
    quick: bool = False,
    out: Path | None = None,
    show: Callable[[str], None] = print,
) -> dict:
    """Run benchmarks and print a row as soon as it is measured. Returns (and writes to `out`) what was measured."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(
            f"no benchmark is called {', '.join(unknown)}: there are {', '.join(NAMES)}"
        )
    import torch

    from benchmarks.measure import Setting
    from trackers.runtime import device as default_device

    place = torch.device(device) if device else default_device()
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    setting = Setting(place, dtype, quick)
    show(f"{setting.words}{'; QUICK: small models, these figures mean nothing' if quick else ''}\n")
    show(
        f"{'what':44} {'value':>10} {'unit':18} {'ratio':>7} {'TFLOP/s':>8} {'of ceiling':>10}  note"
    )
    rows = []
    for name in names or NAMES:
        for row in importlib.import_module(f"benchmarks.{name}").run(setting):
            rows.append({"benchmark": name, **row.as_dict()})
            ratio = f"{row.ratio:6.2f}x" if row.ratio is not None else ""
            tflops = f"{row.tflops:8.2f}" if row.tflops is not None else ""
            share = f"{row.of_ceiling:9.0%}" if row.of_ceiling is not None else ""
            note = "; ".join(
                filter(None, (row.note, f"ratio to: {row.baseline}" if row.baseline else ""))
            )
            show(
                f"{row.what:44} {row.value:10.3f} {row.unit:18} {ratio:>7} {tflops:>8} {share:>10}  {note}"
            )
    result = {"machine": setting.words, "quick": quick, "rows": rows}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")
        show(f"\nwritten: {out}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all"
    )
    parser.add_argument(
        "--device", default="", help="cuda, cuda:1, cpu; default: cuda if there is one"
    )
    parser.add_argument("--quick", action="store_true", help="small models, to see that it runs")
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON")
    args = parser.parse_args()
    try:
        run(
            args.names,
            device=args.device,
            quick=args.quick,
            out=args.out,
            show=lambda line: print(line, flush=True),
        )
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
