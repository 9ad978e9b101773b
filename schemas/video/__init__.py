"""Pictures of videos and picture files: the one decoder of the project."""
