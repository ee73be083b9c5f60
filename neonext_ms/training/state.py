"""The former name of `neonext_ms.training.run_state`."""

import sys

from . import run_state

sys.modules[__name__] = run_state
