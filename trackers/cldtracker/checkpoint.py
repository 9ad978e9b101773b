"""CLDTracker weights: which files there are, what they become, and whether their text branch was ever trained.

Three layouts are known: the official file (a dict whose `net` has 549 tensors), the official OSTrack-384 file (the same
backbone and head, 242 tensors, no text branch) and what `convert_checkpoint` makes of either.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trackers.checkpoints import CheckpointError, load_strict, read_state_dict
from trackers.cldtracker.network import CLDTrackerConfig, CLDTrackerNet
from trackers.runtime import is_seeded, locate, sha256
from trackers.seeded import seed_module

_TEXT = "category_embedding."
_ORIGIN = "origin"  # the metadata key in files of `convert_checkpoint`
_LINEARS = (
    "convert_vector.weight",
    "convert_vector.bias",
    "adapter.fc.0.weight",
    "adapter.fc.2.weight",
)


def make_net(weights: str, config: CLDTrackerConfig | None = None) -> CLDTrackerNet:
    """The network in eval mode, on the CPU. weights: a file under the weights root, or "seeded:<salt>"."""
    config = config or CLDTrackerConfig()
    if not is_seeded(weights):
        return load_cldtracker(locate(weights, "CLDTracker"), config)
    net = _blank(config)
    seed_module(net, weights.removeprefix("seeded:"), extra=False)
    net.origin = weights
    return net.eval()


def load_cldtracker(path: str | Path, config: CLDTrackerConfig | None = None) -> CLDTrackerNet:
    """A checkpoint file of any of the three layouts -> the network in eval mode, on the CPU, float32.

    The file must fit the config exactly; CheckpointError lists what does not. One part may be left over: the text
    branch, unless config.text is "parity". `origin` of the network says what the file is: "cldtracker" or "ostrack".
    A file without a text branch that `convert_checkpoint` did not make is OSTrack's; its head was trained without the channel
    mean, so that the network becomes one with text="none" (and the config must not ask for "parity").
    """
    config = config or CLDTrackerConfig()
    state = read_state_dict(path)
    with_text = any(name.startswith(_TEXT) for name in state)
    origin = "cldtracker" if with_text else _metadata(path).get(_ORIGIN, "ostrack")
    if config.text == "parity" and not with_text:
        raise CheckpointError(
            f'{path}: has no text branch ({len(state)} tensors, {origin}), but the config says text="parity": use the '
            'official CLDTracker file, or text="uniform"'
        )
    if origin == "ostrack":
        config = config.model_copy(update={"text": "none"})
    net = _blank(config)
    load_strict(net, state, str(path), ignore=() if config.text == "parity" else (_TEXT,))
    net.origin = origin
    return net.eval()


def _blank(config: CLDTrackerConfig) -> CLDTrackerNet:
    """A network whose values are about to be overwritten, all of them: none are made up before."""
    if config.text == "parity":  # CLIP has a buffer that is not in the state dict
        return CLDTrackerNet(config)
    with torch.device("meta"):
        net = CLDTrackerNet(config)
    return net.to_empty(device="cpu")


def _metadata(path: str | Path) -> dict[str, str]:
    if Path(path).suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def convert_checkpoint(
    path: str | Path, out: str | Path, subset: bool = True, config: CLDTrackerConfig | None = None
) -> dict:
    """Write the weights of a checkpoint file as float32 .safetensors -> a summary of what was written.

    subset: without the text branch (tracks in "uniform" mode from a third of the size); otherwise all 549 tensors.
    """
    from safetensors.torch import save_file

    path, out = Path(path), Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: the converted file must be called *.safetensors")
    config = config or CLDTrackerConfig()
    net = load_cldtracker(
        path, config.model_copy(update={"text": "uniform" if subset else "parity"})
    )
    # clone: the logit scale is one tensor under two names, which the format does not allow
    state = {
        name: tensor.detach().clone().contiguous() for name, tensor in net.state_dict().items()
    }
    metadata = {
        _ORIGIN: net.origin,
        "source": path.name,
        "source_sha256": sha256(path),
        "config": config.digest(),
    }
    partial = out.with_name(out.name + ".partial")
    save_file(state, partial, metadata)
    os.replace(partial, out)
    elements = sum(tensor.numel() for tensor in state.values())
    return {
        "path": str(out),
        "tensors": len(state),
        "elements": elements,
        "bytes": out.stat().st_size,
        **metadata,
    }


def text_branch_report(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Was the text branch ever trained? (tracking spec, section 0: in the released code it gets no gradient.)

    state: as of `read_state_dict`. A linear layer of torch starts uniform within +-1 / sqrt(fan_in), deviation bound /
    sqrt(3). -> {"verdict": words, "untrained": bool or None without a text branch, "tensors": {name: {"bound", "max",
    "std", "expected_std", "initial"}}}.
    """
    rows: dict[str, dict[str, float | bool]] = {}
    for name in _LINEARS:
        tensor = state.get(_TEXT + name)
        if tensor is None:
            continue
        values = tensor.double()
        fan_in = state[_TEXT + name.replace("bias", "weight")].shape[1]
        bound, largest, deviation = (
            1 / math.sqrt(fan_in),
            values.abs().max().item(),
            values.std().item(),
        )
        # 5 standard errors of the deviation of that many uniform values, and the rounding of float16
        slack = 5 * math.sqrt(0.2 / values.numel()) + 1e-3
        initial = largest <= bound * 1.001 and abs(deviation * math.sqrt(3) / bound - 1) <= slack
        expected = bound / math.sqrt(3)
        rows[name] = {
            "bound": bound,
            "max": largest,
            "std": deviation,
            "expected_std": expected,
            "initial": initial,
        }
    if not rows:
        return {"verdict": "no text branch in this file", "untrained": None, "tensors": {}}
    trained = [name for name, row in rows.items() if not row["initial"]]
    if trained:
        verdict = (
            f"{', '.join(trained)} differ from torch's initial distribution: this text branch may have been trained, "
            'and "uniform" mode may lose something: compare it with text="parity"'
        )
    else:
        verdict = 'all at their initial distribution: the text branch was never trained, "uniform" mode loses nothing'
    return {"verdict": verdict, "untrained": not trained, "tensors": rows}
