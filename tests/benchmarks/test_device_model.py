from __future__ import annotations

import json
from pathlib import Path

import pytest

from neonext_ms.benchmarks.latency import block_model, block_tables
from neonext_ms.benchmarks.latency.block_counts import evened, full_strips, ideal_repeats, twin_counts
from neonext_ms.benchmarks.latency.block_model import kernel_time, memory_bound
from neonext_ms.benchmarks.latency.blocks import (
    FUSIONS,
    block_budget,
    block_predictions,
    block_steps,
    task_time,
    weights_held,
)
from neonext_ms.benchmarks.latency.unit_costs import Costs, bank_ways, elementwise_cycles, gelu_cycles
from neonext_ms.common.cli import run
from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.models.registry import model_config
from neonext_ms.ops.lanes import lane_multiply_adds
from neonext_ms.ops.soc import soc
from neonext_ms.ops.spec import NeoCellSpec
from neonext_ms.ops.twin.build import compiler

P3, B3 = soc("Ascend310P3"), soc("Ascend910B3")
DOCUMENT = Path(__file__).parents[2] / "docs" / "davinci.md"
T = model_config("neonext_t.released_224").architecture


def _compiler():
    try:
        compiler()
    except ToolchainError:
        return False
    return True


needs_twin = pytest.mark.skipif(not _compiler(), reason="no C++ compiler for the twin")


def _counts(*cores, by_instruction=None):
    return {
        "cores": [{"core": i, "pipes": pipes} for i, pipes in enumerate(cores)],
        "totals": {},
        "by_instruction": by_instruction or {},
    }


def test_a_kernel_takes_as_long_as_the_longest_pipe_of_its_slowest_core():
    counts = _counts(
        {"V": {"instructions": 10, "repeats": 1000}, "MTE2": {"instructions": 1, "bursts": 1, "bytes": 1140}},
        {"V": {"instructions": 5, "repeats": 10}, "MTE2": {"instructions": 1, "bursts": 1, "bytes": 228000}},
        by_instruction={"Mul": {"repeats": 505}, "MulAddDst": {"repeats": 505}},
    )
    made = kernel_time(counts, P3, launch_us=1.0)
    # 310P3: 1060 MHz, 114 bytes a cycle from the level-2 cache; half the repeats take one cycle, half two.
    assert made.predicted_pipes_us["V"] == pytest.approx((10 * 22 + 1000 * 1.5) / 1060)
    assert made.predicted_pipes_us["MTE2"] == pytest.approx((20 + 1 + 228000 / 114) / 1060)
    assert made.predicted_bound == "MTE2" and "memory" not in made.predicted_pipes_us
    assert made.predicted_us == pytest.approx(1.0 + made.predicted_pipes_us["MTE2"])
    assert kernel_time(counts, P3, launch_us=30.0).predicted_bound == "launch"
    far = kernel_time(counts, P3, launch_us=0.0, from_l2=False)
    # Of the core that moves most, both directions together.
    assert far.predicted_pipes_us["memory"] == pytest.approx(228000 / 17 / 1060)
    assert far.predicted_us == pytest.approx((20 + 1 + 228000 / 17) / 1060)


def test_what_does_not_fit_the_level_2_cache_comes_from_memory():
    counts = _counts({"V": {"instructions": 1, "repeats": 1}, "MTE3": {"instructions": 1, "bytes": 9 << 20}})
    assert "memory" not in kernel_time(counts, P3).predicted_pipes_us
    assert "memory" in kernel_time(counts, P3, costs=Costs(l2_share=0.5)).predicted_pipes_us


def test_the_costs_order_as_their_names_say():
    counts = _counts({"V": {"instructions": 100, "repeats": 1000}}, by_instruction={"MulAddDst": {"repeats": 1000}})
    counts["by_instruction"]["Div"] = {"repeats": 10}
    costs = Costs()
    times = [
        kernel_time(counts, P3, costs=each).predicted_us
        for each in (costs, costs.overlapping(), costs.hopeful(), costs.ideal())
    ]
    assert times == sorted(times, reverse=True) and len(set(times)) == 4
    assert gelu_cycles("short", costs.hopeful()) == 6 + 2 * 4 and gelu_cycles("cann", costs.ideal()) == 13
    assert elementwise_cycles(1, 0, costs) == pytest.approx(1 + 22 / 128)


def test_strides_that_meet_the_same_banks():
    assert [bank_ways(stride) for stride in (0, 1, 2, 7, 14, 57)] == [1] * 6
    assert [bank_ways(stride) for stride in (4, 12, 28, 8, 24, 56, 16, 48, 96)] == [2, 2, 2, 4, 4, 4, 8, 8, 8]


def test_counts_without_a_core_are_refused():
    with pytest.raises(InputError, match="the counts name no core"):
        kernel_time({"cores": []}, P3)


@needs_twin
@pytest.mark.parametrize("device", [P3, B3], ids=lambda d: d.name)
def test_the_kernel_does_the_multiply_adds_of_full_lanes(device):
    """No fewer than those of `lanes.py` and, where the map fills its repeats, hardly more."""
    spec = NeoCellSpec([{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 4, "channels": 12, "shift": 0}])
    counts = twin_counts(spec, 64, 64, 5, device)
    assert len(counts["cores"]) == device.vector_units
    repeats = {name: each["repeats"] for name, each in counts["by_instruction"].items()}
    least = 5 * lane_multiply_adds(spec, 64, 64)
    assert least <= 128 * (repeats["Mul"] + repeats["MulAddDst"]) <= 1.25 * least


def test_evened_cores_do_the_same_work():
    counts = _counts(
        {"V": {"instructions": 10, "repeats": 100}, "MTE2": {"bytes": 64}}, {"V": {"instructions": 2, "repeats": 20}}
    )
    cores = [core["pipes"] for core in evened(counts)["cores"]]
    assert cores[0] == cores[1]
    assert cores[0]["V"] == {"instructions": 6, "repeats": 60} and cores[0]["MTE2"] == {"bytes": 32}


def test_full_strips_by_hand():
    spec = NeoCellSpec({"kernel": 4, "channels": 32})
    built = {"totals": {"V": {"instructions": 10**9}}}
    made = full_strips(built, spec, 64, 64, 2, P3)
    # Two blocks of 16 channels with 2 x 4 x 4 taps; 8192 positions at 5 x 32 bytes fill 256 KiB five times.
    assert made["totals"]["V"] == {"instructions": 64 * 5, "repeats": 2 * 32 * 64 * 64 * 8 / 128}
    assert made["by_instruction"]["Mul"]["repeats"] == 2 * 2 * 2 * 64 * 64 / 8
    assert made["totals"]["MTE3"]["bytes"] == 2 * 32 * 64 * 64 * 2
    assert ideal_repeats(spec, 64, 64, 2) == made["totals"]["V"]["repeats"]
    # Eight cores have at least eight strips, and what takes fewer instructions stays.
    assert full_strips(built, spec, 8, 8, 1, P3)["totals"]["V"]["instructions"] == 64 * 4
    assert full_strips({"totals": {"V": {"instructions": 9}}}, spec, 8, 8, 1, P3)["totals"]["V"]["instructions"] == 9


@needs_twin
@pytest.mark.parametrize("batch", [1, 8])
def test_ideal_arrangements_are_no_slower_than_the_kernel(batch):
    choice = block_tables.Choice.parse("Ascend310P3,Ascend910B3", "t", "224", str(batch))
    for row in block_tables.schedules_rows(choice):
        us = row["predicted_us"]
        assert us["full strips"] <= us["cores even"] <= us["as built"]
        assert us["full strips, starts overlap"] <= us["cores even, starts overlap"] <= us["as built, starts overlap"]


@needs_twin
def test_repeats_of_released_t_stay_within_the_aim():
    rows = block_tables.aims_rows(block_tables.Choice.parse("Ascend310P3", "t", "224", "1,8"))
    assert [row["predicted_repeats_over_ideal"] <= 1.5 for row in rows if row["stage"] == "all"] == [True, True]


def test_the_memory_bound_counts_everything_once():
    spec = NeoCellSpec({"kernel": 7, "channels": 16})
    numbers = 2 * 16 * 14 * 14 * 3 + 2 * 49 * 16
    assert memory_bound(spec, 14, 14, 3, P3) == pytest.approx(numbers * 2 / (8 * 17 * 1060))


def test_alternatives_by_hand():
    spec = NeoCellSpec({"kernel": 7, "channels": 32})
    made = block_model.block_diagonal_matmuls(spec, 20, 20, 4, P3)
    # Two products of 32 x 32 x 32 for each of 128 maps: 8 tiles and a start each, on 8 cores.
    assert made.predicted_pipes_us["cube"] == pytest.approx(2 * 128 * (8 + 14) / 8 / 1060)
    assert made.launches == 2
    assert block_model.block_diagonal_matmuls(spec, 20, 20, 4, P3, transposed=True).launches == 4
    cube = block_model.depthwise_cube(spec, 20, 20, 4, P3)
    assert cube.predicted_pipes_us["cube"] == pytest.approx(4 * 2 * 25 * 49 / 8 / 1060)
    vector = block_model.depthwise_vector(spec, 20, 20, 4, P3)
    assert vector.predicted_pipes_us["V"] == pytest.approx(4 * 2 * 50 * (1 + 48 * 2) / 8 / 1060)


def test_weights_stay_in_a_large_cache():
    assert not weights_held(T, P3, Costs()) and weights_held(T, B3, Costs())


@needs_twin
@pytest.mark.parametrize("device", [P3, B3], ids=lambda d: d.name)
@pytest.mark.parametrize("batch", [1, 8])
def test_blocks(device, batch):
    for stage in block_predictions(T, (224, 224), batch, device):
        units, predicted = stage.predicted_units_us, stage.predicted
        assert list(predicted) == list(FUSIONS)
        assert predicted["unfused"].launches == 5
        # No fusion is faster than the busiest unit, and the fewest tasks never lose to the most.
        for made in predicted.values():
            assert made.predicted_us >= units["cube"]
        assert predicted["whole block"].predicted_us < predicted["unfused"].predicted_us
        assert predicted["GELU in fc_1"].predicted_us < predicted["unfused"].predicted_us


@needs_twin
def test_a_fused_tensor_stays_on_the_core():
    steps = {step.name: step for step in block_steps(T, 0, (56, 56), 8, P3, Costs())}
    hidden = steps["fc_1"].writes["hidden"]
    assert hidden == 8 * 56 * 56 * 384 * 2 > P3.l2_bytes
    apart = task_time([steps["fc_1"]], P3, Costs()).predicted_pipes_us["memory"]
    pair = task_time([steps["fc_1"], steps["gelu"], steps["fc_2"]], P3, Costs()).predicted_pipes_us["memory"]
    weights = steps["fc_1"].weights / P3.memory_bytes_per_second * 1e6
    assert apart == pytest.approx(weights + hidden / P3.memory_bytes_per_second * 1e6)
    assert pair == pytest.approx(2 * weights)
    # Cube and vector on cores of their own: through the level-2 cache.
    split = task_time([steps["fc_1"], steps["gelu"], steps["fc_2"]], B3, Costs(), True).predicted_pipes_us["L2"]
    assert split > 2 * hidden / B3.l2_read_bytes_per_second * 1e6


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
@pytest.mark.parametrize("device", [P3, B3], ids=lambda d: d.name)
def test_a_whole_block_fits_its_buffers(size, device):
    architecture = model_config(f"neonext_{size}.released_224").architecture
    for stage, at in enumerate(architecture.maps((224, 224))):
        made = block_budget(architecture, stage, at, device)
        assert made.l0a <= device.l0a_bytes and made.l0b <= device.l0b_bytes and made.l0c <= device.l0c_bytes
        assert made.ub_neocell + made.ub_gelu <= device.ub_bytes
        assert made.l1_tiles <= device.l1_bytes


def test_a_block_that_is_too_wide_for_its_buffers():
    with pytest.raises(InputError, match="2048 channels do not fit into the L0C of Ascend910B3"):
        block_budget(model_config("neonext_xl.released_224").architecture, 3, (7, 7), B3)


# What a row of JSON is about; all else that is a number is predicted.
ABOUT = {"soc", "model", "image_size", "batch", "stage", "blocks", "float", "buffer_bytes"}


@needs_twin
@pytest.mark.parametrize("table", block_tables.TABLES)
def test_every_figure_is_called_predicted(table):
    choice = block_tables.Choice.parse("Ascend310P3", "t", "224", "1")
    rows = getattr(block_tables, f"{table}_rows")(choice)
    assert rows and all(key in ABOUT or key.startswith("predicted") for row in rows for key in row)
    lines = getattr(block_tables, f"{table}_text")(rows).splitlines()
    titles = [line for line in lines if line and not line.startswith("|")]
    assert titles and sum(line.startswith("| ---") for line in lines) == len(titles)
    assert all("predicted" in line.lower() for line in titles)


@needs_twin
def test_totals(capsys):
    block_model._main(["--models", "t", "--image-size", "224", "--totals", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["soc"], row["batch"], row["stage"]) for row in rows] == [
        (name, batch, "all") for name in ("Ascend310P3", "Ascend910B3") for batch in (1, 8)
    ]


def test_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("sys.argv", ["device_model", "--batch", "3", "--models", "xl", "--image-size", "384"])
    assert run(block_model._main) == 3
    assert "no-such-compiler" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["device_model", "--budgets", "--models", "t"])
    assert run(block_model._main) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--soc", "Ascend310P9"], "unknown device"),
        (["--models", "t,q"], "model 'q'"),
        (["--image-size", "256"], "image size '256'"),
        (["--batch", "1,0"], "batch '0'"),
        (["--batch", "x"], "batch 'x'"),
        (["--batch", "65"], "from 1 to 64"),
        (["--image-size", "0"], "image size '0'"),
        (["--models", ""], "model ''"),
        (["--budgets", "--soc", "Ascend910B3", "--models", "xl"], "do not fit into the L0C"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        block_model._main(arguments)


def test_options_that_contradict_each_other():
    with pytest.raises(UsageError, match="--lanes has no sums"):
        block_model._main(["--lanes", "--totals"])
    with pytest.raises(SystemExit) as left:
        block_model._main(["--lanes", "--blocks"])
    assert left.value.code == 2


TABLES = block_model.tables_of(DOCUMENT.read_text(encoding="utf-8"))


def test_the_document_has_its_tables():
    options = " ".join(arguments for arguments, _ in TABLES)
    for table in block_tables.TABLES[1:]:
        assert f"--{table}" in options


@pytest.mark.parametrize(("arguments", "printed"), TABLES, ids=[arguments for arguments, _ in TABLES])
def test_a_table_of_the_document_is_what_the_command_prints(arguments, printed, capsys):
    try:
        block_model._main(arguments.split())
    except ToolchainError as error:
        pytest.skip(f"no twin here: {error}")
    assert capsys.readouterr().out.strip() == printed, (
        "run: python -m neonext_ms.benchmarks.latency.block_model --update FILE"
    )


def test_a_document_is_updated_in_place(tmp_path):
    command = "    python -m neonext_ms.benchmarks.latency.block_model --budgets --models t --image-size 224 --soc Ascend310P3"
    page = tmp_path / "page.md"
    page.write_text(f"# One\n\n{command}\n\nold\n\n<!-- end of the table -->\n\nold\n", encoding="utf-8")
    assert block_model.updated(page).endswith("1 of 1 tables changed")
    assert block_model.updated(page).endswith("0 of 1 tables changed")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# One\n\n{command}\n\nAscend310P3") and text.endswith("<!-- end of the table -->\n\nold\n")
    with pytest.raises(InputError, match=r"none\.md"):
        block_model.updated(tmp_path / "none.md")
    page.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        block_model.updated(page)
