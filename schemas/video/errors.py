"""Why a video or a picture cannot be read."""


class VideoError(ValueError):
    """Why a file cannot be read picture by picture. The message does not hold the file's name: the caller adds it."""


class TooLargeError(VideoError):
    """A picture has more than MAX_PIXELS."""
