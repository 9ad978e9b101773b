"""The synthetic corpus: videos rendered from photographs that installed packages bring along, with exact truth.

    sprites   cut-outs, backgrounds and occluders from scikit-image's and scikit-learn's bundled photographs
    motion    where each thing is in each frame
    render    frames, exact masks and boxes
    describe  referring expressions that are true of their target and of nothing else in the picture
    layouts   the seven official dataset layouts, written from rendered scenes
    corpus    the whole corpus: which scenes, which faults, the truth files
    score     curated output against the exact truth

Nothing here is real data: accuracy on it is accuracy on it.
"""
