"""The top layer: notebooks as jobs. In a notebook: `workbook.start(name)` first, `workbook.results.write(...)` last."""
from lib.workbook import results
from lib.workbook.provenance import start

__all__ = ["results", "start"]
