"""The words everyone uses: geometry, records, table schemas, config base. Imports nothing else of this project."""

SCHEMA_VERSION = 6
"""Version of everything on disk: Parquet metadata and the `.json` member both carry it."""
