"""Forward passes of the official PyTorch model, one for each line of input; `OfficialTorch` starts it.

    python forward.py REPOSITORY THREADS WEIGHTS.pt OPTIONS_AS_JSON

Lines in: `images FILE.npy`, `run`, `logits FILE.npy`. One line of JSON comes back for each, and one at the start.
"""

from __future__ import annotations

import json
import sys
import time

from model import load_official

# A pool of threads spins for a while after its work; that must not fall into another's turn.
_REST_SECONDS = 0.02


def _main(repository: str, threads: str, weights: str, options: str) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(int(threads))
    model = load_official(repository, json.loads(options))
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    _answer(torch=torch.__version__, threads=torch.get_num_threads())
    images = None
    with torch.inference_mode():
        for line in sys.stdin:
            order, _, path = line.rstrip("\n").partition(" ")
            start = time.perf_counter()
            if order == "images":
                images = torch.from_numpy(np.load(path))
            elif order == "run":
                model(images)
            elif order == "logits":
                np.save(path, model(images).numpy())
            seconds = time.perf_counter() - start
            time.sleep(_REST_SECONDS)
            _answer(seconds=seconds)


def _answer(**values) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
