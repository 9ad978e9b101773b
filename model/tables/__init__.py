"""The paper's tables, each row defined once: name, whole config, the paper's numbers, how a run is recognised.

headline    Tables 1, 2, 3 and 15, Figure 5: hosts with and without SPARROW
ablations   Tables 4, 5, 9, 10, 11 and 12
costs       Tables 13 and 14: what curation and training cost
registry    all of them, and the questions that others ask
recognise   which rows a run belongs to

`model.config.ABLATIONS`, `sparrow study`, `sparrow eval table`, `sparrow eval cost`, `sparrow model describe` and
docs/tables.md read them here. Nothing of this imports torch.

Tables 6 to 8 have no rows here, because none of theirs is a model or a run. Table 6 is lost: the text that we have
neither prints nor mentions it. Table 7 is a latency model of TSF at inference by component, which `sparrow ground
--timing` prints beside its own measurement (`model.tsf_latency`). Table 8 is advice on when to switch TSF on at
inference, which `sparrow ground --tsf auto` follows (`model.tsf_rule`).
"""
