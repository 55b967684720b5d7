"""Windows of long files, read in process against an ffmpeg process a window, in turns: stereo 44.1 kHz to 32 kHz mono."""
import pytest

from lib.performance import windows


@pytest.mark.slow
def test_windows_are_faster_than_a_process_each(tmp_path):
    found = windows.compared(tmp_path, repetitions=24)
    print("", *found, sep="\n")
    assert {one.asked for one in found} == {1.2, 1.5, 2.0, 3.0, 6.0} and len(found) == 6
    slow = [str(one) for one in found if not one.met]
    assert not slow, "\n".join(slow)
