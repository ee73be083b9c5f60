"""Training steps of the official PyTorch code, one for each line of input, started by `train_step`.

    python step.py REPOSITORY THREADS BATCH IMAGE_SIZE OPTIONS_AS_JSON

It answers with a line of JSON each time: its versions at the start, then the seconds of a step.
"""

from __future__ import annotations

import json
import sys
import time

from model import load_official  # type: ignore[import-not-found]


def _main(repository: str, threads: str, batch: str, size: str, options: str) -> None:
    import torch

    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model = load_official(repository, json.loads(options))
    model.train()
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.05},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
    images = torch.randn(int(batch), 3, int(size), int(size))
    classes = torch.arange(int(batch)) % 10
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), classes)
        loss.backward()
        optimizer.step()
        value = loss.item()
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": value}), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
