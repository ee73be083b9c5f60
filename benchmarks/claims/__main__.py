"""python -m neonext_ms.benchmarks.claims"""

import sys

from .command import main

sys.exit(main())
