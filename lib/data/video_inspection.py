"""One video's pictures decoded as training reads them, and whether that worked; see `lib.data.video_health`.

A module of its own, because only the processes that decode need torch.
"""
from __future__ import annotations

from lib.data import workers
from lib.media import video

STUCK = 120  # seconds for one file: 16 pictures of a long film, each led up to from its keyframe, take most of a minute
COUNT, SIZE = 16, 16  # pictures, spread from the first to the last; a small size, as scaling is no part of the question


def inspect_file(file: str) -> str:
    """"" for a video whose packets are whole and whose pictures decode, otherwise "no pictures"."""
    try:
        video.read_frames(file, count=COUNT, size=SIZE)
    except video.VideoError:
        return "no pictures"
    return ""


def _answer(file: str) -> str:
    workers.still_working(STUCK)
    return inspect_file(file)


if __name__ == "__main__":
    workers.serve(_answer, libraries=True)
