"""Weights on disk: published ones into our modules and back, and our own.

    report = load_official("glus", "weights/GLUS-A", dtype=torch.bfloat16)   # recognised by the names of its tensors
    load_official(report.model, "weights/clip-vit-large-patch14")            # the tower that GLUS files leave out
    require_filled(report.model)

`docs/checkpoints.md` says which files there are. Nothing in a file is executed.
"""

from model.checkpoints.layouts import LAYOUTS as LAYOUTS
from model.checkpoints.official import Report as Report
from model.checkpoints.official import export_official as export_official
from model.checkpoints.official import load_official as load_official
from model.checkpoints.official import require_filled as require_filled
from model.checkpoints.official import save_official as save_official
from model.checkpoints.own import describe as describe
from model.checkpoints.own import is_ours as is_ours
from model.checkpoints.own import load as load
from model.checkpoints.own import save as save
from trackers.checkpoints import CheckpointError as CheckpointError
