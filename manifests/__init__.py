"""Reads what a run wrote: the DuckDB catalogue, verification, contact sheets. Needs no models, and no torch."""
