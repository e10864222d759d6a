"""`python -m stripefold.cli` is the command `stripefold`."""

from __future__ import annotations

import sys

from stripefold.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
