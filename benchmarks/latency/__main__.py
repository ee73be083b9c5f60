"""`python -m neonext_ms.benchmarks.latency`: the same as `neonext-bench predict`."""

import sys

from .command import main

sys.exit(main())
