"""Training: one loop (`trainer`), what it trains (`task`), when and where it is saved (`saving`, `state`), what it resumes
from (`resume`, `record`), what comes out (`export`)."""
