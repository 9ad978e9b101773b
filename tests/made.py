"""Small made things that several tests share."""

import numpy as np


def moving_square(
    seed: int, n_frames: int, height: int = 96, width: int = 160
) -> tuple[np.ndarray, list[list[int]]]:
    """Frames with a textured square that moves over a textured ground, and its exact xywh boxes."""
    rng = np.random.default_rng(seed)
    ground = np.repeat(
        np.repeat(rng.integers(60, 120, (height // 8, width // 8, 3)), 8, 0), 8, 1
    ).astype(np.uint8)
    square = np.repeat(np.repeat(rng.integers(0, 255, (4, 4, 3)), 8, 0), 8, 1).astype(np.uint8)
    frames, boxes = [], []
    for t in range(n_frames):
        x, y = 12 + 3 * t, 20 + t
        frame = ground.copy()
        frame[y : y + 32, x : x + 32] = square
        frames.append(frame)
        boxes.append([x, y, 32, 32])
    return np.stack(frames), boxes
