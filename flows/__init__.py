"""The way in: command line, Prefect flows, executors. Imports everything, is imported by nothing."""
