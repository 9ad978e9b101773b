"""The seven datasets of the TSF corpus (paper, Appendix A), one file each. `base` says what a source is."""

from pipeline.sources.a2d import A2D
from pipeline.sources.base import Source
from pipeline.sources.got10k import GOT10k
from pipeline.sources.hcstvg import HCSTVG
from pipeline.sources.lasot import LaSOT
from pipeline.sources.mevis import MeViS
from pipeline.sources.refsav import RefSAV
from pipeline.sources.vid_sentence import VIDSentence

SOURCES: dict[str, type] = {
    source.name: source for source in (HCSTVG, VIDSentence, A2D, LaSOT, MeViS, GOT10k, RefSAV)
}
"""Name on the command line -> source, in the order of the paper."""

__all__ = ["SOURCES", "Source"]
