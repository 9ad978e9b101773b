"""The synthetic corpus with small pictures and few frames, for tests that need every source."""

from pipeline.demo.corpus import CorpusConfig

SIZE = (96, 160)
FRAMES = {
    "hcstvg": 24,
    "vid_sentence": 24,
    "a2d": 24,
    "lasot": 48,
    "mevis": 20,
    "got10k": 20,
    "refsav": 22,
    "petcam": 20,
    "broken": 6,
}
"""LaSOT and Ref-SAV need the most: their annotations are of every tenth or fourth frame."""
SMALL = CorpusConfig(size=SIZE, a2d_size=SIZE, lasot_size=SIZE, frames=FRAMES)
