"""One training epoch from the embedding store against one that runs the frozen model again, at CLAP's published size."""
import pytest

from lib import encoders
from lib.families.hyperbolic import Hyperbolic
from lib.performance import store_epoch
from lib.training import loop


@pytest.mark.slow
def test_an_epoch_from_the_store_is_50_times_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DATA", str(tmp_path / "data"))
    config, manifest, parameters = store_epoch.prepared(tmp_path, 64, 10)
    assert 190e6 < parameters < 200e6
    backbone = encoders.load(config.checkpoint)

    def refuse(*_, **__):
        raise AssertionError("the frozen model was called")
    monkeypatch.setattr(encoders, "load", refuse)                    # zero calls from here on, in a whole run
    loop.fit(Hyperbolic(config, manifest), tmp_path / "run")

    found = store_epoch.epoch(config, manifest, parameters, backbone)
    cpu, wall = (sum(run[clock] for run in found.theirs) / sum(run[clock] for run in found.ours) for clock in (1, 0))
    print(f"\n{found}\n  the whole epoch: {wall:.0f} times (CPU {cpu:.0f}); 0 calls of the frozen model in training")
    assert found.asked == 50 and cpu >= 50 and wall >= 50
    found.require()
