"""Forward passes of the official PyTorch model, one for each line of input, started by `OfficialTorch`.

    python forward.py REPOSITORY THREADS WEIGHTS.pt OPTIONS_AS_JSON

Input lines are `images FILE.npy`, `run` and `logits FILE.npy`. It answers each with a line of JSON, and the start too.
"""

from __future__ import annotations

import json
import sys
import time

from model import load_official  # type: ignore[import-not-found]

# A thread pool spins for a while after its work, which must not overlap the turn of another subject.
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
            word, _, path = line.rstrip("\n").partition(" ")
            start = time.perf_counter()
            if word == "images":
                images = torch.from_numpy(np.load(path))
            elif word == "run":
                model(images)
            elif word == "logits":
                np.save(path, model(images).numpy())
            seconds = time.perf_counter() - start
            time.sleep(_REST_SECONDS)
            _answer(seconds=seconds)


def _answer(**values) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
