"""Frames and sound in one decode pass against the usual way: a seek for every frame and an ffmpeg process for the sound."""
import os
from pathlib import Path

import pytest

from lib.performance import video

ROOT = Path(__file__).resolve().parents[2]
MEDIA = Path(os.environ.get("WORKBOOK_SHARED", ROOT / "../shared/data")) / "media"
FILES = ["00W1lcxW-WU_40.000.mp4", "KlsG1EnBEjc_000361.mp4"]


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason="the real media files are not here")
@pytest.mark.parametrize("name", FILES)
def test_one_pass_is_three_times_faster(name):
    found, = video.one_pass(MEDIA / name, repetitions=9, name=name)
    print(f"\n{found}")
    assert found.asked == 3.0 and found.judged == ("wall", "CPU")
    found.require()
