"""Where weights come from: paths, the hubs' caches, and what is said when there is nothing."""
import pytest

from lib.encoders.weights import resolve


def snapshot(folder, *names):
    folder.mkdir(parents=True)
    for name in names or ("config.json", "model.safetensors"):
        (folder / name).touch()
    return folder


def test_local_paths_come_as_they_are(tmp_path, monkeypatch):
    folder = snapshot(tmp_path / "-a 'model'")
    assert resolve(folder) == resolve(str(folder)) == folder
    assert resolve(folder / "config.json") == folder / "config.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/-a 'model'") == folder


def test_a_folder_of_a_cache_is_its_one_snapshot(tmp_path):
    one = snapshot(tmp_path / "laion--clap" / "snapshots" / "master")
    assert resolve(tmp_path / "laion--clap") == one
    two = snapshot(one.parent / "v2")
    with pytest.raises(ValueError, match=f"holds 2 snapshots; give one of them: {one}, {two}"):
        resolve(tmp_path / "laion--clap")


@pytest.mark.parametrize("layout", ["models/owner--clap.v1/snapshots/master", "hub/models/owner/clap___v1", "models/owner/clap___v1"])
def test_modelscope_finds_what_is_in_its_cache_without_a_network(tmp_path, monkeypatch, layout):
    """The client itself, on the layouts that its versions wrote."""
    folder = snapshot(tmp_path / layout)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")        # nothing may be asked for; if it were, nobody would answer
    monkeypatch.setattr("modelscope_hub.config._default_config", None)     # which remembers where the cache was
    assert resolve("modelscope:owner/clap.v1") == folder


@pytest.mark.parametrize("cached", [(), ("config.json",)])
def test_modelscope_downloads_what_is_missing_or_was_cut_off(tmp_path, monkeypatch, cached):
    calls = []

    def snapshot_download(name, local_files_only=False):
        calls.append((name, local_files_only))
        if local_files_only and not cached:
            raise ValueError("not in the cache")
        return str(tmp_path / ("cached" if local_files_only else "downloaded"))
    if cached:
        snapshot(tmp_path / "cached", *cached)
    monkeypatch.setattr("modelscope.snapshot_download", snapshot_download)
    assert resolve("modelscope:owner/clap") == tmp_path / "downloaded"
    assert calls == [("owner/clap", True), ("owner/clap", False)]


def test_weights_that_are_not_there(monkeypatch):
    for text in ("./no/such/folder", "/no/such/folder", "runs/no/such", "passt.pt"):
        with pytest.raises(FileNotFoundError, match=f"'{text}' do not exist"):
            resolve(text)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing.*without a network"):
        resolve("nobody/nothing")

    def unreachable(name, local_files_only=False):
        raise OSError("nobody there")
    monkeypatch.setattr("modelscope.snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match="modelscope:nobody/nothing.*nobody there.*without a network"):
        resolve("modelscope:nobody/nothing")
