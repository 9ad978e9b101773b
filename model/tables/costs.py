"""Tables 13 and 14: what the paper's curation and training cost, on A100 GPUs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CostRow:
    """A row of Table 13. stage: what `sparrow eval cost` fills it with. hours: wall-clock, on so many GPUs."""

    name: str
    stage: str
    hours: float | None
    gpus: int | None
    gpu_hours: float
    gpu_days: float


TABLE_13 = (
    CostRow("Offline TSF precomputation (30,646 clips)", "curation", 51.9, 1, 51.9, 2.16),
    CostRow("Baseline fine-tuning (per backbone)", "baseline", 10, 8, 80, 3.33),
    CostRow("Stage 1: TSF injection", "stage1", 12, 8, 96, 4.00),
    CostRow("Stage 2: dual-prompt box learning", "stage2", 2, 8, 16, 0.67),
    CostRow("SPARROW training (S1 + S2)", "training", 14, 8, 112, 4.67),
    CostRow("Increment over baseline", "increment", None, None, 32, 1.34),
)
"""The pretraining of the proposer is not among them."""


@dataclass(frozen=True)
class ExecutedRow:
    """A row of Table 14: a component, when it runs, and what it costs in the paper's words. stage: as in `CostRow`,
    "" for what no run of curation or training says."""

    name: str
    stage: str
    phase: str
    when: str
    cost: str


TABLE_14 = (
    ExecutedRow(
        "GroundingDINO + CLDTracker",
        "curation",
        "TSF generation",
        "offline (one-time)",
        "6.1 s / clip",
    ),
    ExecutedRow(
        "Crop encoding + K-means",
        "",
        "TSF generation",
        "offline (one-time)",
        "included in total TSF cost",
    ),
    ExecutedRow("TSF injection (stage 1)", "stage1", "training", "per backbone", "4.0 GPU-days"),
    ExecutedRow(
        "Dual-prompt learning (stage 2)", "stage2", "training", "per backbone", "0.67 GPU-days"
    ),
    ExecutedRow(
        "SPARROW inference (default)",
        "",
        "inference",
        "per video",
        "no external detector/tracker",
    ),
    ExecutedRow(
        "TSF-enabled inference (optional)",
        "",
        "inference",
        "per frame",
        "20 ms / target / frame",
    ),
)
