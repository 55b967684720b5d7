"""Tools for data sets: `python -m lib.data prepare|check|download|transcode|vggsound`."""
from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

from lib import data
from lib.data import vggsound_cli
from lib.settings import data_dir

PUBLISHED = ("esc50", "clotho", "audiocaps", "wavcaps", "audioset", "librispeech", "digits")  # data sets whose modules have `download`


def main(arguments: list[str] | None = None) -> int:
    """Run one tool; returns the exit status (1: refused, or `check` found bad clips, or `transcode` left files out)."""
    options = _parser().parse_args(arguments)
    try:
        return {"prepare": _prepare, "check": _check, "download": _download, "transcode": _transcode,
                "vggsound": vggsound_cli.run}[options.tool](options)
    except (ValueError, OSError, RuntimeError) as error:  # messages of ours say what to do; a traceback would hide them
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.data", description="Prepare, check, download and transcode data sets.")
    tools = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    prepare = tools.add_parser("prepare", help="build the manifest of a data set and write it as parquet")
    prepare.add_argument("dataset", help=f"one of {', '.join(data.DATASETS)}; or several, joined by +")
    prepare.add_argument("--data-root", type=Path, help="folder of the data set (default: under the data folder)")
    prepare.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default 0)")
    prepare.add_argument("--num-samples", type=int, help="at most this many clips (default: all)")
    prepare.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                         help="option of the data set, e.g. test_fold=1")
    prepare.add_argument("--out", type=Path, help="parquet file to write (default: under manifests/ in the data folder)")
    check = tools.add_parser("check", help="decode every clip of a manifest, or of a folder of audio, and count the bad ones")
    check.add_argument("path", type=Path, help="manifest (.parquet) or folder")
    check.add_argument("--min-seconds", type=float, default=0.1, help="shorter clips count as bad (default 0.1)")
    for tool in (prepare, check):
        tool.add_argument("--workers", type=int, default=0, help="processes that decode (default 0: this one)")
    download = tools.add_parser("download", help="fetch a published data set into the data folder (resumable)")
    download.add_argument("dataset", choices=PUBLISHED, help="which data set")
    download.add_argument("--part", action="append", default=[], metavar="NAME",
                          help="only this part of it, e.g. dev-clean of librispeech (may be given several times; default: all)")
    transcode = tools.add_parser("transcode", help="make small mp3 files of a folder of large audio files (resumable)")
    transcode.add_argument("source", type=Path, help="folder of the large files; a name that starts with - goes after --")
    transcode.add_argument("target", type=Path, help="folder for the mp3 files, which keep their places")
    transcode.add_argument("--workers", type=int, default=0, help="processes (default 0: one for every core)")
    transcode.add_argument("--bitrate", type=int, default=48_000, help="bits a second (default 48000)")
    transcode.add_argument("--sample-rate", type=int, default=32_000, help="Hz (default 32000)")
    transcode.add_argument("--suffix", default=".flac", help="which files, by the end of their names (default .flac)")
    vggsound_cli.add_arguments(tools.add_parser("vggsound", help="make, copy, clean and check subsets of VGGSound"))
    return parser


def _prepare(options) -> int:
    manifest = data.prepare(options.dataset, data_root=options.data_root, seed=options.seed, num_samples=options.num_samples,
                            workers=options.workers, **dict(_option(text) for text in options.option))
    out = options.out or data_dir() / "manifests" / f"{manifest.name}-{manifest.fingerprint}.parquet"
    manifest.save(out)
    print(f"{manifest.name}: {len(manifest)} clips {manifest.splits}, {len(manifest.classes)} classes, "
          f"fingerprint {manifest.fingerprint}")
    for part, published in manifest.info.get("expected", {}).items():
        print(f"  {part}: {manifest.info['found'][part]:,} clips in the tables, {published:,} published")
    for part, counts in manifest.info.get("videos", {}).items():
        print(f"  {part}: {counts['found']:,} of {counts['expected']:,} videos of the table are there")
    for reason, count in manifest.info.get("left_out", {}).items():
        print(f"  left out: {count:,} {reason}")
    for label, count in manifest.info.get("unmatched", {}).items():
        print(f"no class of the table: {label!r}, {count} time(s)")
    _print_health(manifest.info["health"])
    print(f"written: {out}")
    return 0


def _check(options) -> int:
    from lib.data import health
    from lib.data.manifest import Manifest

    if options.path.is_dir():
        manifest = data.prepare("folder", data_root=options.path, workers=options.workers)
    else:
        manifest = Manifest.load(options.path)
    result = health.check(manifest, options.workers, options.min_seconds)
    _print_health(result.info["health"])
    return int(len(result) < result.info["health"]["checked"])


def _download(options) -> int:
    module = import_module(data.DATASETS[options.dataset])
    if options.part and "parts" not in signature(module.download).parameters:
        raise ValueError(f"--part: {options.dataset} comes in one piece; leave it out")
    print(f"ready: {module.download(parts=tuple(options.part)) if options.part else module.download()}")
    return 0


def _transcode(options) -> int:
    from lib.data.transcode import transcode

    report = transcode(options.source, options.target, bitrate=options.bitrate, sample_rate=options.sample_rate,
                       workers=options.workers, suffix=options.suffix)
    print(f"transcoded {report.transcoded} of {report.found} files, {report.skipped} were finished, {len(report.failed)} failed; "
          f"see {report.path}")
    for name in list(report.failed)[:5]:
        print(f"  {name!r}: {report.failed[name]}")
    return int(bool(report.failed))


def _option(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--option {text!r} must have the form NAME=VALUE")
    try:
        return name, json.loads(value.lower() if value in ("True", "False") else value)
    except json.JSONDecodeError:
        return name, value


def _print_health(health: dict) -> None:
    from lib.data.video_health import REASONS

    print(f"health: {health['kept']} of {health['checked']} clips can be used")
    for reason, count in health["reasons"].items():
        print(f"  {count} {reason} ({REASONS[reason]}), e.g. {', '.join(map(repr, health['examples'][reason]))}")


if __name__ == "__main__":
    sys.exit(main())
