"""What all tests share: generated files go to a folder of their own, and no hub is asked for anything."""
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Test processes share the cores. Threads of several of them, each waiting for its own, take many times as long as one each;
    # read when torch is loaded, here and in what tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONGEST = ("tests/notebooks", "tests/slurm", "tests/workbook/test_kill.py", "tests/workbook/test_report.py")      # files that take minutes

# tests that need system packages: folder -> (what asks for them, why they are skipped)
SYSTEM = {"tests/browser/": ("WORKBOOK_BROWSER", "needs a browser: make test-browser"),
          "tests/slurm/": ("WORKBOOK_SLURM", "needs Debian's packages slurm-wlm and munge: make test-slurm")}


def pytest_collection_modifyitems(config, items):
    """Tests marked `slow` run with WORKBOOK_SLOW=1 (as .ci/run does), or when a marker expression asks for them.

    Files that take minutes come first: with several processes, one that is begun last would be waited for.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    for item in items:
        for folder, (variable, why) in SYSTEM.items():
            if item.nodeid.startswith(folder) and os.environ.get(variable) != "1":
                item.add_marker(pytest.mark.skip(reason=why))
    if os.environ.get("WORKBOOK_SLOW") == "1" or "slow" in config.getoption("markexpr"):
        return
    skip = pytest.mark.skip(reason="slow: runs in .ci/run, or with WORKBOOK_SLOW=1")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def generated_folders(tmp_path_factory):
    """WORKBOOK_DATA, WORKBOOK_RUNS and WORKBOOK_REPORTS in a temporary folder, so that no test touches the repository."""
    root = tmp_path_factory.mktemp("workbook")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "runs", "reports"):
            patch.setenv(f"WORKBOOK_{name.upper()}", str(root / name))
        for name in ("REPORT", "JOB", "EXECUTION", "SESSION", "NOTEBOOKS"):
            patch.delenv(f"WORKBOOK_{name}", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", os.path.abspath(os.path.join(os.path.dirname(__file__), "..")))
        yield root
