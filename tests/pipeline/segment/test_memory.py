"""SAM2 on long clips: memory beyond the frames does not grow with their number, in either mode."""

import json
import subprocess
import sys

import pytest

MEASURE = """
import gc, json, sys
import numpy as np
from pipeline.segment.sam2 import SAM2Config, SAM2Segmenter

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

segmenter = SAM2Segmenter(SAM2Config.tiny().model_copy(update={"mode": sys.argv[1]}))
beyond = []
for count in (24, 200, 400):  # the first loads the model
    frames = np.random.default_rng(0).integers(0, 255, (count, 180, 320, 3), np.uint8)
    boxes = np.tile(np.float32([40, 40, 200, 150]), (count, 1))
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    masks = segmenter.segment(frames, boxes)
    assert sum(mask is not None for mask in masks) == count
    beyond.append(peak() - frames.nbytes / 2**20)
    del frames, masks
print(json.dumps(beyond[1:]))
"""


@pytest.mark.parametrize("mode", ["image", "video"])
def test_a_mask_on_every_frame_takes_no_more_memory_for_more_frames(mode):
    """One mask as bytes is 0.055 MiB, one frame as the model sees it 0.75 MiB: 200 more of either would show."""
    words = [sys.executable, "-c", MEASURE, mode]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    short, long = json.loads(done.stdout)
    assert long - short < 8, f"{short:.0f} MiB beyond 200 frames, {long:.0f} beyond 400"
