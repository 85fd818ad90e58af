"""Run a notebook as a stage; check inputs before anything slow starts."""

import sys

# nbformat imports jsonschema, which spends a second on a grammar of web addresses where this package is installed.
sys.modules.setdefault("rfc3987_syntax", None)
