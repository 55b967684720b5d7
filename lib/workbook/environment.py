"""The lock and the conda file, made from what pyproject.toml declares and what is installed.

    python -m lib.workbook.environment write     # after a change of pyproject.toml or an upgrade in .venv
    python -m lib.workbook.environment check     # do the three files agree, and is what they say installed?
"""
from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.settings import ROOT
from lib.files import write_text

# Packages that exist for Linux only, and the one that the others need on macOS only.
_LINUX_ONLY = re.compile(r"^(nvidia-.*|cuda-.*|triton)$")
_DARWIN_ONLY = {"appnope": "0.1.4"}
_HEADER = "# Exact versions of everything, made by `python -m lib.workbook.environment write` from pyproject.toml. Do not edit.\n"


def declared(root: Path = ROOT) -> list[Requirement]:
    """The requirements that pyproject.toml declares, those for tests included, in its order."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["test"])]


def closure(requirements: list[Requirement]) -> dict[str, metadata.Distribution]:
    """Canonical name -> installed distribution, for the requirements and all that they need on this machine.

    RuntimeError naming a package that is missing or does not fit.
    """
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset]] = set()
    waiting = [(requirement, "pyproject.toml") for requirement in requirements]
    while waiting:
        requirement, needed_by = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise RuntimeError(f"{name} is not installed, and {needed_by} needs it; pip install it, then write again") from error
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise RuntimeError(f"{needed_by} needs {requirement}, and {distribution.version} is installed")
        found[name] = distribution
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in distribution.requires or []:
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((further, name))
    return found


def lock_text(requirements: list[Requirement]) -> str:
    """Contents of requirements.txt: every package of the closure at its installed version."""
    pins = {name: f'{name}=={d.version.partition("+")[0]}' + ('; platform_system == "Linux"' if _LINUX_ONLY.match(name) else "")
            for name, d in closure(requirements).items()}
    pins |= {name: f'{name}=={version}; platform_system == "Darwin"' for name, version in _DARWIN_ONLY.items()}
    return _HEADER + "\n".join(pins[name] for name in sorted(pins)) + "\n"


def conda_text(requirements: list[Requirement], lock: str) -> str:
    """Contents of environment.yml: Python from conda, every declared package at its locked version from pip."""
    pinned = pins(lock)
    lines = [f"      - {canonicalize_name(r.name)}=={pinned[canonicalize_name(r.name)]}" for r in requirements]
    return ("# Made by `python -m lib.workbook.environment write` from pyproject.toml. Do not edit.\n"
            "name: audio-workbook\nchannels:\n  - conda-forge\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n" + "\n".join(lines) + "\n")


def pins(lock: str) -> dict[str, str]:
    """Canonical name -> version of each line of a lock."""
    found = [Requirement(line) for line in lock.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in found}


def disagreements(root: Path = ROOT) -> list[str]:
    """What is wrong between pyproject.toml, requirements.txt, environment.yml and the installed packages; empty: nothing."""
    requirements, lock = declared(root), (root / "requirements.txt").read_text(encoding="utf-8")
    pinned = pins(lock)
    try:
        needed = closure(requirements)
    except RuntimeError as error:
        return [str(error)]
    problems = [f"requirements.txt pins {name} {pinned.get(name)}, installed is {d.version}"
                for name, d in needed.items() if pinned.get(name) != d.version.partition("+")[0]]
    elsewhere = {n for n in pinned if n in _DARWIN_ONLY or _LINUX_ONLY.match(n) and sys.platform != "linux"}
    problems += [f"requirements.txt pins {name}, which nothing needs" for name in sorted(pinned.keys() - needed.keys() - elsewhere)]
    if not problems and (root / "environment.yml").read_text(encoding="utf-8") != conda_text(requirements, lock):
        problems.append("environment.yml is not what pyproject.toml and requirements.txt give")
    return problems


def check(root: Path = ROOT) -> list[dict[str, str]]:
    """The declared packages, one dict each: package, tested (locked version), found (installed, or "missing") and fix ("" or a command)."""
    pinned, rows = pins((root / "requirements.txt").read_text(encoding="utf-8")), []
    for name in (canonicalize_name(requirement.name) for requirement in declared(root)):
        try:
            found = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found = "missing"
        rows.append({"package": name, "tested": pinned[name], "found": found, "fix": "" if found == pinned[name] else f"pip install {name}=={pinned[name]}"})
    return rows


def main(arguments: list[str]) -> int:
    """`write` or `check`; 1 when check finds a disagreement."""
    if arguments == ["write"]:
        requirements = declared()
        lock = lock_text(requirements)
        write_text(ROOT / "requirements.txt", lock)
        write_text(ROOT / "environment.yml", conda_text(requirements, lock))
        print(f"requirements.txt ({len(pins(lock))} packages) and environment.yml written")
        return 0
    if arguments == ["check"]:
        problems = disagreements()
        print("\n".join(problems) or "pyproject.toml, requirements.txt, environment.yml and the installed packages agree")
        if problems:
            print("fix: python -m lib.workbook.environment write, or install what requirements.txt says")
        return 1 if problems else 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
