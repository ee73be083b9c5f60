from __future__ import annotations

import argparse
import sys

import pytest

from neonext_ms.benchmarks import train_step
from neonext_ms.benchmarks.official_torch import official_options
from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.models.registry import model_config


def test_the_interpreter_and_the_repository_go_together(capsys):
    assert train_step.run(train_step._main, ["--torch", sys.executable]) == 2
    assert "needs both" in capsys.readouterr().err


def test_options_of_the_official_code():
    options = official_options(model_config("neonext_t.released_224").architecture)
    assert options["kernel_spec"] == "4+7" and options["linear_bias"] and options["dims"] == (96, 192, 384, 768)
    for name in ("neonext_t.paper", "neonext_t.relu"):
        with pytest.raises(InputError, match="official code cannot build"):
            official_options(model_config(name).architecture)


@pytest.mark.parametrize("python", [sys.executable, "/no/such/python"])
def test_an_environment_that_cannot_run_it_is_an_error(python, tmp_path):
    args = argparse.Namespace(torch=python, official=str(tmp_path), threads=1)
    with pytest.raises(ToolchainError, match=r"did not run|cannot be started"):
        train_step._official(args, {}, 32, 1)
