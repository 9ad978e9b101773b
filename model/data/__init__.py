"""From curated shards to training samples.

index     which referents are committed, and where their bytes are                    model.data.index
order     the sequence of an epoch, from (seed, epoch) alone                          model.data.order
read      one range read per sample; the same through plain webdataset                model.data.read
record    bytes -> frames, masks, boxes, crops, words                                 model.data.record
loader    batches of records, resumable at any step                                   model.data.loader
collate   a record -> `model.sparrow.Sample` for a host                               model.data.collate
"""
