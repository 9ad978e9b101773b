"""`sparrow browse`: look at an output in a web browser. Reads the data, never writes to it."""
