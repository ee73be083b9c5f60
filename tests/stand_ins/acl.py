"""`import acl` for programs that run on the stand-in: put this folder into PYTHONPATH."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from acl_stand_in import StandIn

sys.modules[__name__] = StandIn()
