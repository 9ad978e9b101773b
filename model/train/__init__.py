"""Training: one loop (`trainer`), what it trains (`task`), where it stopped (`state`), what comes out (`export`)."""
