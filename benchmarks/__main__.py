"""`python -m neonext_ms.benchmarks` is neonext-bench."""

import sys

from .command import main

sys.exit(main())
