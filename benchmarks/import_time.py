"""What `sf.attach` adds to `import torch`, and how soon `stripefold --help` answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.common import parse, publish, settings_from
from stripefold_lab.bench.processes import Statement, measure_processes

TASKS = {
    "import torch": Statement(statement="import torch"),
    "import stripefold": Statement(statement="import stripefold"),
    "sf.attach after import torch": Statement(setup="import torch", statement="import stripefold as sf; sf.attach"),
    "stripefold --help": [sys.executable, "-m", "stripefold", "--help"],
}
LIMITS = {"sf.attach after import torch": {"seconds": 0.06}, "stripefold --help": {"seconds": 0.5}}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, arguments)
    rounds = settings_from(options).rounds
    report = measure_processes("Import and start", TASKS, rounds=rounds, date=options.date)
    publish(report.with_limits(LIMITS), "import_time", options)


if __name__ == "__main__":
    main()
