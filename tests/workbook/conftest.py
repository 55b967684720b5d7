"""Small notebooks to run."""
import json

import pytest


@pytest.fixture(scope="session")
def write_notebook():
    """write(folder, name, body="", parameters="seed = 0  # seed", result=True, **metadata) -> path of a small notebook."""

    def write(folder, name, body="pass", parameters="seed = 0  # the seed", result=True, **metadata):
        cells = [("markdown", f"# About {name}\n\nThe mean is $\\frac{{1}}{{n}}\\sum_i x_i < 1$.", []),
                 ("code", "from lib.workbook import results", []),
                 ("code", parameters, ["parameters"]),
                 ("code", body, [])]
        if result:
            cells.append(("code", f"results.write({name!r}, [results.metric('score', 0.5 + seed / 10, n=10, split='test', chance=0.1,"
                                  " interval=(0.4, 0.9), headline=True)], parameters={'seed': seed})", []))
        document = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"workbook": metadata}, "cells": [
            {"cell_type": kind, "id": f"cell{i}", "metadata": {"tags": tags}, "source": source,
             **({"outputs": [], "execution_count": None} if kind == "code" else {})} for i, (kind, source, tags) in enumerate(cells)]}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.ipynb"
        path.write_text(json.dumps(document))
        return path

    return write
