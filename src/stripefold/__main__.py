"""``python -m stripefold`` is the command ``stripefold``."""

from __future__ import annotations

import sys

from stripefold.cli import main

sys.exit(main())
