"""Run an OM file of `atc_stand_in` for the stand-in of libascendcl: raw bytes in, raw logits out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from acl_stand_in import open_om, run_onnx

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--describe", action="store_true")
for option in ("--input", "--output"):
    parser.add_argument(option)
args = parser.parse_args()
model = open_om(args.model)
(image,), (logits,) = model["inputs"], model["outputs"]
batch = max(model["batches"] or image["dims"][:1])
shape = [batch, *image["dims"][1:]]
if args.describe:
    sizes = [int(np.prod([batch, *t["dims"][1:]])) * np.dtype(t["dtype"]).itemsize for t in (image, logits)]
    print(*sizes, 4 if model["batches"] else 0, batch, logits["dims"][1])
else:
    images = np.fromfile(args.input, image["dtype"]).reshape(shape)
    run_onnx(model, images)[0].astype("<f4").tofile(args.output)
    print("done")
