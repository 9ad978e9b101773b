"""Box trackers behind one protocol (`trackers.base.Tracker`)."""
