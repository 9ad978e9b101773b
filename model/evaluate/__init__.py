"""The six benchmarks: what they ask, how a model is asked, what it scores, and archives for the servers."""
