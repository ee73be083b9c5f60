"""The former name of `neonext_ms.common.errors`, for programs that catch its exceptions."""

import sys

from neonext_ms.common import errors

sys.modules[__name__] = errors
