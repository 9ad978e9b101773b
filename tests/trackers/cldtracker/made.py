"""What several tests of the tracker need."""

import numpy as np
import torch

from trackers.cldtracker import CLDTrackerNet


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=tolerance)


def ostrack(net: CLDTrackerNet) -> CLDTrackerNet:
    """The same weights without fusion, not copied."""
    with torch.device("meta"):
        plain = CLDTrackerNet(net.config.model_copy(update={"text": "none"}))
    plain.load_state_dict(net.state_dict(), assign=True)
    return plain.eval()
