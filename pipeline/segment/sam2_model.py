"""SAM2 asked in two ways: about pictures, and along clips. The network itself is `trackers.sam2`'s.

`boxes_to_masks` answers a batch of pictures with one box each. `Stream` follows one target through a clip with the
package's video predictor, but makes each frame's input when it is its turn, and forgets what no later frame reads.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from schemas.geometry import Boxes
from trackers import sam2 as network
from trackers.checkpoints import load_strict, read_state_dict
from trackers.runtime import is_seeded, locate, settle
from trackers.seeded import seed_module

if TYPE_CHECKING:
    from pipeline.segment.sam2 import SAM2Config

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_POINTS_OF_A_BOX = (2, 3)
"""Labels of the two corners, as the prompt encoder numbers them."""


# --- building and loading ------------------------------------------------------------------------------------------


def build(architecture: str, *, video: bool = False, postprocess: bool = True) -> nn.Module:
    """`trackers.sam2.build` on the CPU: a `SAM2Base`, or with `video` the package's `SAM2VideoPredictor`."""
    if not video:
        return network.build(architecture, postprocess=postprocess)
    import sam2.sam2_video_predictor as module

    module.tqdm = _without_bar  # a bar per clip and direction, from many threads at once
    target = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    return network.build(architecture, target, postprocess=postprocess, fill_hole_area=0)


def make_sam2(config: "SAM2Config", device: torch.device, video: bool) -> nn.Module:
    """The model that a config names, with its weights, on `device`. CheckpointError names every misfit."""
    model = build(config.architecture, video=video)
    if is_seeded(config.weights):
        seed_module(model, config.weights.removeprefix("seeded:"))
    else:
        path = locate(config.weights, "SAM2")
        load_strict(model, read_state_dict(path), str(path))
    model.to(device)
    settle(device)
    return model


def _without_bar(frames: Sequence[int], **_: Any) -> Sequence[int]:
    return frames


# --- pictures ------------------------------------------------------------------------------------------------------


def prepare(frame: NDArray[np.uint8], side: int, device: torch.device) -> Tensor:
    """[H, W, 3] RGB -> [3, side, side] float32: aspect ratio given up (as SAM2 was trained), ImageNet statistics.

    The same resampling as the package's image predictor (bilinear with antialias).
    """
    image = torch.from_numpy(np.array(frame)).to(device).permute(2, 0, 1)[None].float() / 255
    image = interpolate(image, (side, side), mode="bilinear", antialias=True)[0]
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    return (image - mean) / std


def boxes_to_masks(
    model: nn.Module, images_b3ss: Tensor, boxes_b4: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One box per picture -> mask logits [B, 1, S/4, S/4], predicted IoU [B], object score [B] (a logit); float32.

    images: prepared. boxes: xyxy in pixels of the S x S picture. One mask per box, as the authors advise for prompts
    that are not ambiguous, and as the video predictor answers a box on its first frame.
    """
    net: Any = model
    _, features, _, sizes = net._prepare_backbone_features(net.forward_image(images_b3ss))
    features[-1] = (
        features[-1] + net.no_mem_embed
    )  # directly_add_no_mem_embed: on in every official config
    maps = [
        f.permute(1, 2, 0).reshape(f.shape[1], f.shape[2], *s)
        for f, s in zip(features, sizes, strict=True)
    ]
    labels = torch.tensor(_POINTS_OF_A_BOX, dtype=torch.int32, device=boxes_b4.device).expand(
        len(boxes_b4), 2
    )
    sparse, dense = net.sam_prompt_encoder(
        points=(boxes_b4.reshape(-1, 2, 2), labels), boxes=None, masks=None
    )
    logits, iou, _, score = net.sam_mask_decoder(
        image_embeddings=maps[-1],
        image_pe=net.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        repeat_image=False,
        high_res_features=maps[:-1],
    )
    return logits.float(), iou[:, 0].float(), score[:, 0].float()


def to_frame(logits_hw: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """Mask logits [h, w] on the device -> 0/1 mask [height, width] on the CPU, column-major as an RLE wants it.

    Only thresholded pixels leave the device: a byte each, where logits would be four.
    """
    if logits_hw.shape != (height, width):
        logits_hw = interpolate(
            logits_hw[None, None], (height, width), mode="bilinear", align_corners=False
        )[0, 0]
    return (logits_hw > 0).T.contiguous().to(torch.uint8).cpu().numpy().T


# --- clips ---------------------------------------------------------------------------------------------------------


class LazyFrames(Sequence[Tensor]):
    """A clip as the video predictor wants it, one frame at a time: a prepared frame of SAM2 is 12.6 MB, and the
    package's own loader keeps all of them."""

    def __init__(self, frames: NDArray[np.uint8], side: int, device: torch.device):
        self.frames, self.side, self.device = frames, side, device

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> Any:
        return prepare(self.frames[index], self.side, self.device)


class Stream:
    """One target through one clip with the package's `SAM2VideoPredictor` (`build(video=True)`).

    The package keeps 0.8 MB per frame for ever. A later frame reads the memory of the last `num_maskmem - 1` frames,
    the pointers of the last `max_obj_ptrs_in_encoder - 1`, and all of the prompted ones; the rest is dropped here.
    """

    def __init__(self, predictor: nn.Module, images: Sequence[Tensor], height: int, width: int):
        """images: prepared frames. height, width: of the original frames, in whose pixels boxes and masks are."""
        self.predictor: Any = predictor
        self.state = _new_state(images, height, width, next(predictor.parameters()).device)
        self.prompted: dict[int, float] = {}

    def prompt(self, frame: int, box: Boxes) -> None:
        """box: [4] xyxy in pixels of the original frame. All prompts come before `follow`."""
        with self._predicted_iou() as iou:
            self.predictor.add_new_points_or_box(
                self.state, frame_idx=frame, obj_id=0, box=np.asarray(box)
            )
        self.prompted[frame] = iou[-1]

    def follow(
        self, start: int, first: int, last: int
    ) -> Iterator[tuple[int, Tensor, float, float]]:
        """From `start`, a prompted frame, on to `last`, then back from `start` to `first`; each frame once:
        (frame, logits [height, width] on the device, predicted IoU, object score)."""
        if not first <= start <= last or start not in self.prompted:
            raise ValueError(
                f"frames {first} to {last} cannot be followed from {start}: prompted {list(self.prompted)}"
            )
        for reverse, count in ((False, last - start), (True, start - first)):
            if reverse and count == 0:
                return
            with self._predicted_iou() as iou:
                for t, _, logits in self.predictor.propagate_in_video(
                    self.state, start, count, reverse
                ):
                    score = float(self._entry(t)["object_score_logits"])
                    if not (reverse and t == start):
                        yield (
                            t,
                            logits[0, 0],
                            self.prompted[t] if t in self.prompted else iou[-1],
                            score,
                        )
                    self._forget(
                        [t - 1] if reverse else [t + 1, start - 1] if start > first else [t + 1]
                    )

    @property
    def kept(self) -> dict[str, int]:
        """How many frames' things the state holds."""
        entries = [*self._entries("cond").values(), *self._entries("non_cond").values()]
        return {
            "pointers": len(entries),
            "memories": sum(entry["maskmem_features"] is not None for entry in entries),
            "masks": sum(entry["pred_masks"] is not None for entry in entries),
            "notes": len(self.state["frames_tracked_per_obj"][0]),
            "pictures": len(self.state["cached_features"]),
        }

    def _entries(self, kind: str) -> dict[int, dict]:
        return self.state["output_dict_per_obj"][0][f"{kind}_frame_outputs"]

    def _entry(self, frame: int) -> dict:
        return self._entries("cond" if frame in self.prompted else "non_cond")[frame]

    def _forget(self, heads: list[int]) -> None:
        """Drop what none of the frames that come next, one per direction still to go, will read."""
        entries = self._entries("non_cond")
        for t in list(entries):
            distance = min(abs(t - head) for head in heads)
            entries[t]["pred_masks"] = None
            if distance >= self.predictor.num_maskmem:
                entries[t]["maskmem_features"] = entries[t]["maskmem_pos_enc"] = None
            if distance >= self.predictor.max_obj_ptrs_in_encoder:
                del entries[t]
        self.state["frames_tracked_per_obj"][0].clear()

    @contextmanager
    def _predicted_iou(self) -> Iterator[deque[float]]:
        """The predicted IoU of the mask that the decoder chose last, which the package throws away."""
        last: deque[float] = deque(maxlen=1)
        decoder = self.predictor.sam_mask_decoder
        hook = decoder.register_forward_hook(
            lambda _module, _inputs, output: last.append(float(output[1].max()))
        )
        try:
            yield last
        finally:
            hook.remove()


def _new_state(images: Sequence[Tensor], height: int, width: int, device: torch.device) -> dict:
    """What the package's `init_state` makes, for frames that are not in a file."""
    per_object = (
        "point_inputs",
        "mask_inputs",
        "output_dict",
        "temp_output_dict",
        "frames_tracked",
    )
    return {
        "images": images,
        "num_frames": len(images),
        "offload_video_to_cpu": False,
        "offload_state_to_cpu": False,
        "video_height": height,
        "video_width": width,
        "device": device,
        "storage_device": device,
        "cached_features": {},
        "constants": {},
        "obj_id_to_idx": OrderedDict(),
        "obj_idx_to_id": OrderedDict(),
        "obj_ids": [],
        **{f"{name}_per_obj": {} for name in per_object},
    }
