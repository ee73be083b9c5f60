"""Compare the integers of both 8-bit forms of NeoNeXt-T with random weights at 224 pixels: `make integers`.

Run it as `python -m tests.integers_t`: as a script, it would import `tests/neonext_ms`. `neonext-export` compares two
inputs. Each of these takes 2 to 4 seconds of processor time.
"""

from __future__ import annotations

import argparse
import sys
import time

from neonext_ms.export.compare import parity
from neonext_ms.export.fold import fold
from neonext_ms.export.graph import original_graph
from neonext_ms.export.lower import lower
from neonext_ms.export.onnx import emitter
from neonext_ms.export.onnx.format import CANN, Format
from neonext_ms.export.quantize.apply import quantizable, quantize
from neonext_ms.export.quantize.calibrate import calibrate
from neonext_ms.export.quantize.forms import host_graph
from neonext_ms.export.quantize.images import ArrayImages
from neonext_ms.export.quantize.integers import compare_integers, evaluator
from neonext_ms.export.source import Source

SIZE = (224, 224)


def main() -> int:
    """Return 0 if all integers are equal, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=16, help="number of noise inputs (default 16)")
    parser.add_argument("--model", default="neonext_t.released_224", help="registered model")
    args = parser.parse_args()
    source = Source.from_name(args.model)
    graph, _ = fold(original_graph(source.architecture, source.arrays, SIZE))
    quantized = quantize(graph, calibrate(graph, ArrayImages("noise", parity.noise(4, SIZE, 0)), "percentile", ""))
    forms = ((host_graph(quantized), Format()), (quantized, CANN))
    host, device = (evaluator(emitter.emit(lower(form, format), None, format)) for form, format in forms)
    failed = 0
    for i, image in enumerate(parity.noise(args.inputs, SIZE, 1)):
        start = time.monotonic()
        host.run(image[None])
        device.run(image[None])
        apart = {name: count for name, count in compare_integers(host, device).items() if count}
        count = sum(part.codes.size + part.accumulated.size for part in host.integers.values())
        print(f"input {i}: {count:,} integers in {len(host.integers)} layers, ", end="")
        print(f"different: {apart}" if apart else f"all equal ({time.monotonic() - start:.0f} s)", flush=True)
        failed += bool(apart) or len(host.integers) != len(quantizable(graph))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
