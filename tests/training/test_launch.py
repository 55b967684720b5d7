"""Patience, locks and the process that waits: what surrounds the loop."""
import threading
import warnings

import pytest

from lib import training
from lib.families.retrieval import Retrieval, RetrievalConfig
from lib.files import alone
from lib.glossary import ParameterError
from lib.training import devices, loop

SCORES = [0.1, 0.3, 0.2, 0.25, 0.9, 1.0]


class Scripted(Retrieval):
    """Validation scores by the number of the epoch, read from the optimiser's steps so that a resumed run agrees."""

    stop_after = None

    def batches(self, epoch, first_batch, skipped=()):
        if epoch == self.stop_after:
            raise KeyboardInterrupt
        self.number = epoch
        return super().batches(epoch, first_batch, skipped)

    def validate(self):
        return {self.monitor: SCORES[self.number]}


@pytest.mark.parametrize("patience, epochs, best", [(None, 6, 6), (1, 3, 2), (2, 4, 2), (3, 6, 6)])
def test_patience_stops_at_the_same_epoch_after_a_resume(settings, tmp_path, patience, epochs, best):
    config = RetrievalConfig(**settings | {"epochs": 6, "patience": patience, "num_samples": 24})
    whole = loop.fit(Scripted(config), tmp_path / "whole")
    assert whole.steps == epochs * (whole.steps // epochs) and whole.history[-1]["epoch"] == epochs
    assert whole.checkpoint.name == f"step_{best * whole.steps // epochs:08d}"
    for stop in range(1, epochs):
        learner, folder = Scripted(config), tmp_path / f"stopped_{stop}"
        learner.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            loop.fit(learner, folder)
        resumed = loop.fit(Scripted(config), folder)
        assert resumed.history == whole.history and resumed.checkpoint.name == whole.checkpoint.name
    again = loop.fit(Scripted(config), tmp_path / "whole")
    assert again.history == whole.history, "a run that was stopped by patience is not continued"


def test_a_run_has_one_trainer_at_a_time(settings, tmp_path, monkeypatch, capsys):
    """Two reports that need the same run: the second waits, then reads what the first has trained."""
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path))
    config, results = RetrievalConfig(**settings | {"epochs": 1, "num_samples": 24}), []
    manifest = config.prepare()
    folder = training.run_folder("retrieval", config, manifest)
    with alone(folder / ".lock", "the run"):
        threads = [threading.Thread(target=lambda: results.append(training.launch("retrieval", config, manifest))) for _ in range(2)]
        for thread in threads:
            thread.start()
        threads[0].join(0.5)
        assert not results
    for thread in threads:
        thread.join(60)
    assert len(results) == 2 and results[0].checkpoint == results[1].checkpoint
    said = capsys.readouterr().out
    assert said.count("is in the hands of process") >= 2 and said.count("epoch 1:") == 1, "trained once"


def test_parameters_that_contradict_each_other(settings):
    for changes, words in (({"patience": 3, "selection": "last"}, "patience waits for"), ({"devices": 2, "device": "cuda:1"}, "is one device"),
                           ({"bad_media_budget": 1.5}, "bad_media_budget"), ({"loggers": ["wandb", "mlflow"]}, "wandb, swanlab")):
        with pytest.raises(ParameterError, match=words):
            RetrievalConfig(**settings | changes)


def test_where_and_what_it_is_logged_to_is_not_another_run(settings):
    one = RetrievalConfig(**settings)
    other = RetrievalConfig(**settings | {"devices": 4, "loggers": ["wandb"], "bad_media_budget": 0.5, "workers": 3, "device": "auto"})
    assert one.digest() == other.digest() != RetrievalConfig(**settings | {"patience": 3}).digest()


def test_devices_resolve_and_refuse(monkeypatch):
    assert devices.resolve("cpu").type == "cpu"
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    assert devices.resolve("auto").type == "cpu"
    with pytest.warns(UserWarning, match="'cuda:3': found 0 CUDA devices"):
        assert devices.resolve("cuda:3").type == "cpu"
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.resolve("auto") == devices.resolve("cuda:0")
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="devices=2: this machine has 1 CUDA devices"):
        devices.fabric("auto")
