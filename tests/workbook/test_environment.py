import shutil

import pytest

from lib.settings import ROOT
from lib.workbook import environment

FILES = ("pyproject.toml", "requirements.txt", "environment.yml")


def test_pyproject_lock_conda_file_and_installed_packages_agree():
    assert environment.disagreements() == []


@pytest.mark.parametrize("name, old, new, words", [
    ("requirements.txt", "torchaudio==2.11.0", "torchaudio==2.10.0", "torchaudio 2.10.0"),
    ("requirements.txt", "tqdm==", "# tqdm==", "tqdm None"),
    ("requirements.txt", "tqdm==", "nothing-needs-this==1.0\ntqdm==", "nothing-needs-this"),
    ("environment.yml", "      - tqdm", "      - tqdn", "environment.yml"),
    ("pyproject.toml", '"torch==2.11.0"', '"torch==2.10.0"', "torch"),
    ("pyproject.toml", '"tqdm', '"not-a-package-here", "tqdm', "not-a-package-here is not installed"),
])
def test_each_disagreement_is_found(tmp_path, name, old, new, words):
    for file in FILES:
        shutil.copy(ROOT / file, tmp_path / file)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new))
    assert any(words in problem for problem in environment.disagreements(tmp_path))


def test_gpu_packages_are_for_linux_only_and_no_machine_is_named():
    lock = (ROOT / "requirements.txt").read_text()
    assert all('platform_system == "Linux"' in line for line in lock.splitlines() if line.startswith(("nvidia-", "triton", "cuda-")))
    assert not any(word in (ROOT / name).read_text() for name in FILES for word in ("://", "file:", "--index", "/opt", "/home", "/work"))


def test_check_names_the_fix(monkeypatch):
    rows = {row["package"]: row for row in environment.check()}
    assert rows["torch"]["tested"] == "2.11.0" and all(set(row) == {"package", "tested", "found", "fix"} for row in rows.values())
    installed = environment.metadata.version

    def other(name):
        if name == "av":
            raise environment.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "torch" else installed(name)
    monkeypatch.setattr(environment.metadata, "version", other)
    rows = {row["package"]: row for row in environment.check()}
    assert rows["torch"]["found"] == "0.0.1" and rows["torch"]["fix"] == "pip install torch==2.11.0"
    assert rows["av"]["found"] == "missing" and rows["av"]["fix"].startswith("pip install av==") and rows["numpy"]["fix"] == ""
