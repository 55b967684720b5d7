"""`python -m lib.starters collect | score`: make the starter folders, their scores and their model cards."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lib.files import STARTERS, user_path, write_json, write_text
from lib.starters import FAMILIES, NAMES
from lib.starters.card import card
from lib.starters.collect import collect


def main(arguments: list[str] | None = None) -> int:
    """Run one tool; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.tool == "collect":
            names = [name for family in options.family for name in FAMILIES[family]]
            for folder in collect(user_path(options.report), tuple(name for name in NAMES if name in names)):
                print(f"{folder.relative_to(STARTERS)}: {(folder / 'model.safetensors').stat().st_size:,} bytes")
            return 0
        from lib.starters.score import score      # here: it loads every family
        for family, scores in score(user_path(options.report), user_path(options.trained), user_path(options.data_root),
                                     tuple(options.family)).items():
            write_json(STARTERS / family / "scores.json", scores)
            print(f"written: {write_text(STARTERS / family / 'README.md', card(family))}")
    except (ValueError, OSError) as error:    # messages of ours say what to do; a traceback would hide them
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.starters")
    tools = parser.add_subparsers(dest="tool", required=True)
    collect_tool = tools.add_parser("collect", help="starter folders from a report of profile starter")
    score_tool = tools.add_parser("score", help="scores.json and README.md of the starters")
    score_tool.add_argument("--trained", type=Path, default=Path("reports/starter"),
                            help="report of the trainings (default reports/starter)")
    score_tool.add_argument("--data-root", type=Path, required=True, help="ESC-10 or ESC-50 in the published layout")
    for tool, report in ((collect_tool, "starter"), (score_tool, "starter_scores")):
        tool.add_argument("--report", type=Path, default=Path("reports") / report, help=f"folder of the report (default reports/{report})")
        tool.add_argument("--family", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES), help="which (default all)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
