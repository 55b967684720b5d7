"""Train without a notebook: `python -m lib.training --family retrieval [--config config.json] [name=value ...]`."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lib import distributed, training
from lib.glossary import ParameterError, load_yaml


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, train, print where the checkpoint is. Returns 2 for a bad parameter."""
    parser = argparse.ArgumentParser(prog="python -m lib.training", description=__doc__)
    parser.add_argument("--family", required=True, choices=sorted(training.FAMILIES))
    parser.add_argument("--config", type=Path, help="JSON or YAML file of parameters; a run's config.json works too")
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="one parameter each, values in YAML")
    options = parser.parse_args(arguments)
    try:
        values = load_yaml(options.config.read_text(), str(options.config)) if options.config else {}
        values = values.get("config", values)
        for text in options.parameters:
            name, separator, value = text.partition("=")
            if not separator:
                raise ParameterError(f"{text!r} is no parameter; write name=value")
            values[name] = load_yaml(value, text)
        config = training.family_class(options.family).Config.from_dict(values)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run = training.launch(options.family, config)
    print(json.dumps({"checkpoint": str(run.checkpoint), "steps": run.steps, "cpu_seconds": round(run.cpu_seconds, 1)}))
    distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
