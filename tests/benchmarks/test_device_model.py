from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neonext_ms.benchmarks import device_model, device_tables
from neonext_ms.benchmarks.device_blocks import (
    FUSIONS,
    block_budget,
    block_predictions,
    block_steps,
    task_time,
    weights_held,
)
from neonext_ms.benchmarks.device_counts import BEST, BUILT, Schedule, analytic_counts, counts_of, twin_counts
from neonext_ms.benchmarks.device_figures import Costs, bank_ways, elementwise_cycles, gelu_cycles
from neonext_ms.benchmarks.device_model import kernel_time, memory_bound
from neonext_ms.errors import InputError, ToolchainError
from neonext_ms.ops.lanes import lane_multiply_adds
from neonext_ms.ops.soc import soc
from neonext_ms.ops.spec import NeoCellSpec
from neonext_ms.registry import model_config

P3, B3 = soc("Ascend310P3"), soc("Ascend910B3")
DOCUMENT = Path(__file__).parents[2] / "docs" / "davinci.md"
T = model_config("neonext_t.released_224").architecture


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
    assert far.predicted_pipes_us["memory"] == pytest.approx((1140 + 228000) / (8 * 17) / 1060)
    assert far.predicted_us == pytest.approx((20 + 1 + 228000 / 17) / 1060)


def test_what_does_not_fit_the_level_2_cache_comes_from_memory():
    counts = _counts({"V": {"instructions": 1, "repeats": 1}, "MTE3": {"instructions": 1, "bytes": 9 << 20}})
    assert "memory" not in kernel_time(counts, P3).predicted_pipes_us
    assert "memory" in kernel_time(counts, P3, costs=Costs(l2_share=0.5)).predicted_pipes_us


def test_the_costs_order_as_their_names_say():
    counts = analytic_counts(T.stage_spec(0), 56, 56, 1, P3)
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


@pytest.mark.parametrize("device", [P3, B3], ids=lambda d: d.name)
@pytest.mark.parametrize("schedule", [BUILT, Schedule(balance=True)])
def test_the_counted_elements_are_the_multiply_adds_of_full_lanes(device, schedule):
    """A map whose sides are multiples of 8 periods fills every repeat, so that nothing but the lanes is wasted."""
    spec = NeoCellSpec([{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 4, "channels": 12, "shift": 0}])
    counts = analytic_counts(spec, 64, 64, 5, device, schedule)
    assert len(counts["cores"]) == device.vector_units
    least = 5 * lane_multiply_adds(spec, 64, 64)
    repeats = {name: each["repeats"] for name, each in counts["by_instruction"].items()}
    assert sum(repeats.values()) == counts["totals"]["V"]["repeats"]
    done = 128 * (repeats["Mul"] + repeats["MulAddDst"])
    # Cores that share the work evenly meet at rows that are no multiples of 8.
    assert least <= done <= (1.2 if schedule.balance else 1.05) * least
    assert sum(core["pipes"]["V"]["repeats"] for core in counts["cores"]) == counts["totals"]["V"]["repeats"]
    written = sum(core["pipes"]["MTE3"]["bytes"] for core in counts["cores"])
    assert written == 5 * 32 * 64 * 64 * 2


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("stage", range(4))
def test_a_better_schedule_takes_fewer_cycles(stage, batch):
    spec, (height, width) = T.stage_spec(stage), T.maps((224, 224))[stage]
    built, balanced, best = (
        kernel_time(analytic_counts(spec, height, width, batch, P3, schedule), P3).predicted_us
        for schedule in (BUILT, Schedule(balance=True), BEST)
    )
    assert best <= min(built, balanced)
    assert stage == 3 or best < balanced < built


def test_balanced_cores_differ_little():
    spec = T.stage_spec(0)
    cores = [
        [core["pipes"]["V"]["repeats"] for core in analytic_counts(spec, 56, 56, 8, P3, schedule)["cores"]]
        for schedule in (BUILT, Schedule(balance=True))
    ]
    # The blocks with 7 x 7 matrices take 1.8 times what those with 4 x 4 take.
    assert max(cores[0]) > 1.25 * np.mean(cores[0])
    assert max(cores[1]) < 1.03 * np.mean(cores[1])


def test_the_memory_bound_counts_everything_once():
    spec = NeoCellSpec({"kernel": 7, "channels": 16})
    numbers = 2 * 16 * 14 * 14 * 3 + 2 * 49 * 16
    assert memory_bound(spec, 14, 14, 3, P3) == pytest.approx(numbers * 2 / (8 * 17 * 1060))


def test_alternatives_by_hand():
    spec = NeoCellSpec({"kernel": 7, "channels": 32})
    made = device_model.block_diagonal_matmuls(spec, 20, 20, 4, P3)
    # Two products of 32 x 32 x 32 for each of 128 maps: 8 tiles and a start each, on 8 cores.
    assert made.predicted_pipes_us["cube"] == pytest.approx(2 * 128 * (8 + 14) / 8 / 1060)
    assert made.launches == 2
    assert device_model.block_diagonal_matmuls(spec, 20, 20, 4, P3, transposed=True).launches == 4
    cube = device_model.depthwise_cube(spec, 20, 20, 4, P3)
    assert cube.predicted_pipes_us["cube"] == pytest.approx(4 * 2 * 25 * 49 / 8 / 1060)
    vector = device_model.depthwise_vector(spec, 20, 20, 4, P3)
    assert vector.predicted_pipes_us["V"] == pytest.approx(4 * 2 * 50 * (1 + 48 * 2) / 8 / 1060)


def test_weights_stay_in_a_large_cache():
    assert not weights_held(T, P3, Costs()) and weights_held(T, B3, Costs())


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


def test_every_time_is_called_predicted(capsys):
    choice = device_tables.Choice.parse("Ascend310P3", "t", "224", "1", "analytic")
    for table in ("kernels", "schedules", "blocks", "ideal"):
        rows = getattr(device_tables, f"{table}_rows")(choice)
        text = getattr(device_tables, f"{table}_text")(rows)
        tables = text.count("| ---") and sum(line.startswith("| ---") for line in text.splitlines())
        assert sum("predicted" in line for line in text.splitlines() if not line.startswith("|")) == tables
        for row in rows:
            for key, value in row.items():
                if isinstance(value, float) or (isinstance(value, dict) and any(map(_is_float, value.values()))):
                    assert key.startswith("predicted"), key
    device_model._main(
        ["--soc", "Ascend310P3", "--models", "t", "--image-size", "224", "--counts", "analytic", "--json"]
    )
    rows = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in rows] == 2 * [1, 2, 3, 4, "all"]
    assert rows[0]["counts"] == "analytic" and rows[0]["predicted_us"]["NeoCell"] > 0


def _is_float(value):
    return isinstance(value, float)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--soc", "Ascend310P9"], "unknown device"),
        (["--models", "t,q"], "model 'q'"),
        (["--image-size", "256"], "image size '256'"),
        (["--batch", "1,0"], "batch '0'"),
        (["--batch", "x"], "batch 'x'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        device_model._main(arguments)


TABLES = device_model.tables_of(DOCUMENT.read_text(encoding="utf-8"))


def test_the_document_has_its_tables():
    options = " ".join(arguments for arguments, _ in TABLES)
    for table in ("blocks", "ideal", "budgets", "schedules", "lanes"):
        assert f"--{table}" in options


@pytest.mark.parametrize(("arguments", "printed"), TABLES, ids=[arguments for arguments, _ in TABLES])
def test_a_table_of_the_document_is_what_the_command_prints(arguments, printed, capsys):
    try:
        device_model._main(arguments.split())
    except ToolchainError as error:
        pytest.skip(f"no twin here: {error}")
    assert capsys.readouterr().out.strip() == printed, "run: python -m neonext_ms.benchmarks.device_model --update FILE"


def test_a_document_is_updated_in_place(tmp_path):
    command = "    python -m neonext_ms.benchmarks.device_model --budgets --models t --image-size 224 --soc Ascend310P3"
    page = tmp_path / "page.md"
    page.write_text(f"# One\n\n{command}\n\nold\n\n<!-- end of the table -->\n\nold\n", encoding="utf-8")
    assert device_model.updated(page).endswith("1 of 1 tables changed")
    assert device_model.updated(page).endswith("0 of 1 tables changed")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# One\n\n{command}\n\nAscend310P3") and text.endswith("<!-- end of the table -->\n\nold\n")
    with pytest.raises(InputError, match=r"none\.md"):
        device_model.updated(tmp_path / "none.md")


@pytest.mark.parametrize(("stage", "device", "batch"), [(3, P3, 1), (3, P3, 8), (2, B3, 1), (2, P3, 8), (1, P3, 1)])
def test_the_arithmetic_counts_what_the_twin_counts(stage, device, batch):
    spec, (height, width) = T.stage_spec(stage), T.maps((224, 224))[stage]
    try:
        twin = twin_counts(spec, height, width, batch, device)
    except (ImportError, ToolchainError) as error:
        pytest.skip(f"no twin here: {error}")
    made = analytic_counts(spec, height, width, batch, device)
    assert len(made["cores"]) == len(twin["cores"])
    for pipe in ("MTE2", "MTE3"):
        assert made["totals"][pipe]["bytes"] == twin["totals"][pipe]["bytes"]
    # The kernel may find ways to do the same repeats with fewer instructions.
    repeats, instructions = (
        [sum(each["by_instruction"][name][what] for name in ("Mul", "MulAddDst")) for each in (made, twin)]
        for what in ("repeats", "instructions")
    )
    assert repeats[0] == repeats[1]
    assert instructions[1] <= 1.1 * instructions[0]
    assert counts_of(spec, height, width, batch, device)[1] == "twin"
