"""The command line of `lib.data.vggsound_tools`: `python -m lib.data vggsound VERB`, with the options of the published scripts.

Names that begin with "-", as some ids do, are written --video_dir=-NAME, and after -- where no option is named.
"""
from __future__ import annotations

import argparse
from pathlib import Path

PRESETS = {"select-subset": ("subset_10", "subset_40"), "select-classes": ("10_classes",)}  # of lib.data.vggsound_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser the verbs as subparsers. Nothing heavy is imported for that."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    subset = verbs.add_parser("select-subset", help="a table of a few clips of each class")
    classes = verbs.add_parser("select-classes", help="a table of all clips of a few classes")
    cleaning = verbs.add_parser("clean", help="a table of the rows that there is a video of")
    copying = verbs.add_parser("copy-subset", help="copy the videos of a table into a folder (resumable)")
    checking = verbs.add_parser("check", help="decode a few clips and tell what they hold")
    for verb, name in ((subset, "select-subset"), (classes, "select-classes")):
        verb.add_argument("--input_csv", default="~/vggsound.csv", help="table of VGGSound (default ~/vggsound.csv)")
        verb.add_argument("--output_csv", help="table to write (default vggsound_<preset>.csv, or vggsound_subset_custom.csv)")
        verb.add_argument("--preset", choices=PRESETS[name], help="the published sizes; options given beside it win")
        verb.add_argument("--num_classes", type=int, help="classes that are drawn; more than there are: all (default 10)")
        verb.add_argument("--seed", type=int, help="of what is drawn (default 42, as published)")
    subset.add_argument("--num_train", type=int, help="training clips of a class (default 5)")
    subset.add_argument("--num_test", type=int, help="test clips of a class (default 2)")
    for verb in (cleaning, checking):
        verb.add_argument("--input_csv", required=True, help="table of VGGSound")
    cleaning.add_argument("--output_csv", required=True, help="table to write")
    for verb in (subset, classes, cleaning, checking):
        verb.add_argument("--video_dir", "--audio_dir", required=True, help="folder of the videos")
    for verb in (subset, classes, cleaning):
        verb.add_argument("--check_decode", action="store_true", help="leave out clips whose file does not decode")
        verb.add_argument("--workers", type=int, help="processes that decode (default: one)")
    copying.add_argument("--subset_csv", required=True, help="table of the videos")
    copying.add_argument("--source_video_dir", required=True, help="folder that holds them")
    copying.add_argument("--destination_video_dir", default="./video", help="folder that they go to (default ./video)")
    checking.add_argument("clips", nargs="*", metavar="CLIP", help="<id>_<start in six digits>; none: drawn ones")
    checking.add_argument("--num_clips", type=int, help="clips that are drawn (default 10)")
    checking.add_argument("--seed", type=int, help="of the draw (default 42)")
    for verb in (copying, checking):
        verb.add_argument("--summary_json", help="file for the summary (default: none)")
    for verb in (subset, classes, cleaning, copying, checking):
        verb.add_argument("--file_extension", help="end of the videos' names (default .mp4)")


def run(options: argparse.Namespace) -> int:
    """Run a verb and print its summary in words. Returns the exit status: 1 where a file could not be copied or decoded."""
    from lib.data import vggsound_table, vggsound_tools  # here, because they load pandas
    from lib.files import write_json

    about = ("tool", "verb", "preset", "summary_json")
    given = {name: value for name, value in vars(options).items() if value is not None and name not in about}
    if options.verb in PRESETS:
        sizes = vggsound_table.PRESETS.get(options.preset, {})
        given = sizes | {"output_csv": f"vggsound_{options.preset or 'subset_custom'}.csv"} | given
    summary = getattr(vggsound_tools, options.verb.replace("-", "_"))(**given)
    if getattr(options, "summary_json", None):
        write_json(Path(options.summary_json).expanduser(), summary)
    {"copy-subset": _say_copied, "check": _say_checked}.get(options.verb, _say_written)(summary)
    return int(bool(summary.get("failed")))


def _say_written(summary: dict) -> None:
    classes, rows = summary["classes"], summary["rows"]
    print(f"classes: {classes['found']} of {classes['asked']} asked for; clips: {rows['found']:,} of {rows['asked']:,} asked "
          f"for, {summary['splits']}")
    print(f"of all clips of these classes {summary['missing']:,} have no file, {summary['undecodable']:,} do not decode")
    short = {label: counts for label, counts in summary["per_class"].items() if counts["written"] < counts["asked"]}
    for label, counts in list(short.items())[:5]:
        print(f"  {label}: {counts['written']} of {counts['asked']}")
    print(f"written: {summary['output_csv']} and {summary['output_csv']}.json")


def _say_copied(summary: dict) -> None:
    print(f"copied {summary['copied']}, {summary['identical']} were there; {summary['missing']} of {summary['asked']} videos are "
          f"missing, {len(summary['failed'])} failed")
    for name, reason in list(summary["failed"].items())[:5]:
        print(f"  {name}: {reason}")


def _say_checked(summary: dict) -> None:
    print(f"{summary['found']:,} of {summary['asked']:,} videos of the table are there")
    for look in summary["clips"]:
        name = f"{look['clip_id']}  {look['label']} ({look['split']})"
        if look["problem"]:
            print(f"  bad   {name}: {look['problem']}")
        else:
            print(f"  good  {name}: {look['frames']} frames of {look['width']} x {look['height']} in "
                  f"{look['video_seconds']:.1f} s, sound {look['sound_seconds']:.1f} s, peak {look['peak']:.2f}, "
                  f"decoded in {look['decoding_seconds']:.2f} s")
    print(f"{summary['checked'] - summary['failed']} of {summary['checked']} clips are good")
