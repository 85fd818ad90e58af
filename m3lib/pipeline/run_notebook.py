"""Run a notebook as a pipeline stage: `python -m m3lib.pipeline.run_notebook 02_train m3`.

A stage passes a notebook at most one value, the name of a row; the notebook reads everything else from params.yaml.
"""

import sys

from m3lib.pipeline import warm


def main(arguments: list[str]) -> int:
    """Run one notebook; return 0, or 1 after printing what failed, or 2 for a wrong command."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m m3lib.pipeline.run_notebook NOTEBOOK [ROW]", file=sys.stderr)
        return 2
    try:
        status = warm.run(arguments)
        if status is None:
            from m3lib.pipeline import execute  # only here: its import takes seconds

            status = execute.main(arguments)
        return status
    except KeyboardInterrupt:
        print(f"\n{'-'.join(arguments)} was interrupted before it started", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
