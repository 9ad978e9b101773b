"""What the proposer learns from: boxes of anything in still images, out of four detection datasets (paper, appendix E),
and out of frames of curated clips.

corpora     a dataset as a compact table of images and boxes, and what was left out of it
readers     the official files of COCO, Objects365, OpenImages and V3Det -> a corpus
shards      frames of curated clips and their targets' boxes, in the form of a corpus
transform   a random part of an image, and its boxes, from (seed, epoch, index)
batches     a resumable order of batches, each from one corpus
"""
