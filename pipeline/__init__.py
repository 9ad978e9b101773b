"""Turns one clip into TSF samples, and samples into shards. Knows nothing of Prefect, Ray or `model/`."""
