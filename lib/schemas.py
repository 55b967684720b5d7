"""`jsonschema` without the two seconds that importing it takes: `from lib.schemas import jsonschema`.

By itself it has rfc3987_syntax, which JupyterLab brings, build a parser of international addresses, a format that no schema of the
workbook asks for. nbformat, papermill and nbconvert import jsonschema: where this comes first they are spared, too.
"""
from lib.imports import without

with without("rfc3987_syntax"):
    import jsonschema

__all__ = ["jsonschema"]
