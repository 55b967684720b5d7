"""`jsonschema` without the two seconds that importing it takes: `from lib.schemas import jsonschema`.

While it is imported it has rfc3987_syntax, where that is installed (JupyterLab brings it), build a parser of international addresses, a
format that no schema of the workbook asks for. nbformat, papermill and nbconvert import jsonschema: where this comes first they are spared, too.
"""
import sys

ADDRESSES = "rfc3987_syntax"
sys.modules.setdefault(ADDRESSES, None)             # None: importing it fails, which jsonschema allows for
import jsonschema  # noqa: E402
if sys.modules[ADDRESSES] is None:
    del sys.modules[ADDRESSES]                      # whoever else wants it may have it

__all__ = ["jsonschema"]
