from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from neonext_ms.common import external_tools
from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.common.files import publish, staging
from neonext_ms.export.om import cann_log, target
from neonext_ms.export.om.aipp import aipp_config
from neonext_ms.export.om.job import Job
from neonext_ms.export.om.options import OmOptions
from neonext_ms.images.preprocessing import Preprocessing
from neonext_ms.ops.soc import SOCS
from om_stand_in import INOUT, MODEL_DEF, TASKS, WEIGHTS, inout_info, model_def, om_bytes, partition, small_om

ATC = target.COMPILERS["atc"]
TESTS = str(Path(__file__).parents[1])


def make_job(stem="net", size=(64, 48), batch=(1,), soc="Ascend310P3", data=(), **options) -> Job:
    return Job(stem, size, batch, OmOptions(soc, **options), ATC, data=data)


JOB = make_job()
# What that job's file would be.
IMAGES = ("input", "float32", (1, 3, 64, 48))
SAMPLE = small_om(inputs=[IMAGES])

# Takes what hicann/ge's api/atc/atc_flags.cc takes, rejects the rest, and checks what ATC checks.
STRICT = r"""
import json, os, re, sys
sys.path.insert(0, TESTS)
import om_stand_in

ATC_OPTIONS = set('''framework model output soc_version input_format input_shape dynamic_batch_size precision_mode_v2
precision_mode insert_op_conf keep_dtype fusion_switch_file op_select_implmode optypelist_for_implmode log
'''.split())
PLAIN = r'[A-Za-z0-9._\-/\u4e00-\u9fa5]+'


def fail(code, text):
    print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
    print(f'[PID: 7] 2026-01-02-03:04:05.678.901 Invalid_Argument({code}): {text}')
    print('        Solution: Please input correct parameter value.')
    sys.exit(1)


print('ATC start working now, please wait for a moment.')
given = {}
for argument in sys.argv[1:]:
    match = re.fullmatch(r'--([a-z0-9_]+)=(.*)', argument, re.S)
    if not match or match[1] not in ATC_OPTIONS:
        fail('E10001', f'Value {argument} for parameter unknown is invalid. Reason: unknown option.')
    if not match[2]:
        fail('E10004', f'Value for --{match[1]} is empty.')
    given[match[1]] = match[2]
for name in ('framework', 'model', 'output', 'soc_version'):
    if name not in given:
        fail('E10054', f'The required parameter --{name} for ATC is empty.')
if given['framework'] != '5':
    fail('E10007', '--framework is required. The value must be 0(Caffe) or 1(MindSpore) or 3(TensorFlow) or 5(Onnx).')
if given['soc_version'] not in SOCS:
    fail('E10001', f"Value {given['soc_version']} for parameter soc_version is invalid. Reason: not supported.")
if not re.fullmatch(PLAIN, given['output']):
    fail('E10001', f"Value {given['output']} for parameter --output is invalid. Reason: The path can only contain.")
for name in ('model', 'insert_op_conf', 'keep_dtype', 'fusion_switch_file'):
    path = given.get(name)
    if path and not os.path.isfile(path):
        fail('E10410', f'File {path} does not exist.')
    if path and not re.fullmatch(PLAIN, os.path.realpath(path)):
        fail('E10001', f'Value {path} for parameter --{name} is invalid. Reason: The path can only contain.')
model = open(given['model'], 'rb').read()
name, _, shape = given.get('input_shape', '').rpartition(':')
try:
    dims = [int(dim) for dim in shape.split(',')]
except ValueError:
    fail('E10002', f'Value {shape} for parameter --input_shape is invalid. Reason: It is not a digit.')
if name.encode() not in model:
    fail('E10016', f'Op name {name} specified in --input_shape is not found in the model.')
if given.get('input_format') != 'NCHW' or len(dims) != 4 or dims[1] != 3:
    fail('E10014', f'Value {shape} for parameter --input_shape is invalid.')
batches = given.get('dynamic_batch_size', '').split(',')
if batches != ['']:
    if dims[0] != -1 or -1 in dims[1:]:
        fail('E10018', 'Value -1 for shape 1 is invalid.')
    if len(batches) < 2:
        fail('E10035', '--dynamic_batch_size, has 1 profiles, which is less than the minimum 2.')
    if len(set(batches)) < len(batches):
        fail('E10039', 'The --dynamic_batch_size argument has duplicate profiles.')
elif min(dims) < 1:
    fail('E10014', f'Value {shape} for parameter --input_shape is invalid.')
if given.get('precision_mode_v2') not in ('fp16', 'origin', 'cube_fp16in_fp32out', 'mixed_float16', 'mixed_bfloat16'):
    fail('E10001', 'Value for parameter --precision_mode_v2 is invalid. Reason: not within the valid range.')
if 'precision_mode' in given:
    fail('E10056', 'Cannot configure both parameters --precision_mode and --precision_mode_v2 simultaneously.')
seen = {'argv': sys.argv[1:], 'stdin': sys.stdin.read(), 'files': {}}
for key in ('insert_op_conf', 'keep_dtype', 'fusion_switch_file'):
    if key in given:
        seen['files'][key] = open(given[key]).read()
os.mkdir('kernel_meta')
open('fusion_result.json', 'w').write('{}')
suffix = os.environ.get('STAND_IN_SUFFIX', '')
content = om_stand_in.compiled(given, json.dumps(seen).encode())
open(given['output'] + suffix + '.om', 'wb').write(content)
print('...')
print('ATC run success, welcome to the next use.')
print('W11001: Op [x] does not hit the high-priority operator information library. (E10001) is not meant.')
"""

# Each of these is what an ATC does wrong; $out is the name that it was asked to write.
BROKEN = {
    "exits 0 without a file": "echo 'ATC run success, welcome'",
    "exits non-zero with a file": "cp $om $out.om; echo 'E19999: Inner Error!'; echo '  E19999 [PID: 3] x'; exit 4",
    "says success and exits non-zero": "cp $om $out.om; echo 'ATC run success, welcome'; exit 5",
    "writes an empty file": ": > $out.om; echo 'ATC run success, welcome'",
    "writes something else": "echo OM > $out.om; echo 'ATC run success, welcome'",
    "writes the first half": "head -c 500 $om > $out.om; echo 'ATC run success, welcome'",
    "never says success": "cp $om $out.om; echo 'All done'",
    "says success inside another line": "cp $om $out.om; echo 'The line ATC run success was not printed'",
    "says both": "cp $om $out.om; echo 'ATC run success, w'; echo 'ATC run failed, Please check'",
    "writes outside": "cp $om \"$OUTSIDE/x.om\"; echo 'ATC run success, welcome'",
    "writes another name": "cp $om other.om; echo 'ATC run success, welcome'",
    "writes two": "cp $om $out.om; cp $om ${out}_linux_x86_64.om; echo 'ATC run success, welcome'",
    "is killed": "kill -9 $$",
    "says nothing": "exit 1",
    "has no library": "echo 'atc.bin: error while loading shared libraries: libge.so: cannot open' >&2; exit 127",
    "has no Python module": "echo 'E19999: Inner Error!'; echo \"ImportError: No module named 'decorator'\"; exit 1",
    "fills the disk": "echo 'write: No space left on device'; exit 1",
}
EXPECTED = {
    "exits 0 without a file": (InputError, ["reported success, but wrote no net.om"]),
    "exits non-zero with a file": (
        InputError,
        ["failed (exit code 4)", "is not used", "E19999: Inner Error! E19999 [PID: 3] x: an internal error of CANN"],
    ),
    "says success and exits non-zero": (InputError, ["failed (exit code 5), although it printed 'ATC run success'"]),
    "writes an empty file": (InputError, ["the net.om that it wrote is empty"]),
    "writes something else": (
        InputError,
        ["wrote is not an OM file (it starts with b'OM\\n', expected b'IMOD'). Everything"],
    ),
    "writes the first half": (
        InputError,
        ["wrote is not a complete OM file (500 bytes, ", " by its header). Everything"],
    ),
    "never says success": (InputError, ["exit code 0, but without its line 'ATC run success'; the net.om"]),
    "says success inside another line": (InputError, ["exit code 0, but without its line 'ATC run success'"]),
    "says both": (InputError, ["printed 'ATC run failed', although its exit code is 0"]),
    "writes outside": (InputError, ["reported success, but wrote no net.om"]),
    "writes another name": (InputError, ["wrote no net.om (only other.om)"]),
    "writes two": (InputError, ["wrote 2 files (net.om, net_linux_x86_64.om)"]),
    "is killed": (InputError, ["killed by SIGKILL", "memory"]),
    "says nothing": (InputError, ["failed (exit code 1)", "it printed nothing"]),
    "has no library": (ToolchainError, ["libge.so", "source set_env.sh"]),
    "has no Python module": (ToolchainError, ["No module named 'decorator'", "install it for the Python in PATH"]),
    "fills the disk": (InputError, ["the disk is full", "free some space"]),
}


def write_tool(folder: Path, name: str, text: str) -> Path:
    """An executable; Python unless it starts as a shell script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not text.startswith("#!"):
        text = f"#!{sys.executable} -IS\n{text}"
    path.write_text(text)
    path.chmod(0o755)
    return path


def write_atc(folder: Path, text: str | None = None) -> Path:
    """A stand-in: the strict one, or a shell script that knows `$out`."""
    if text is None:
        return write_tool(folder, "atc", STRICT.replace("SOCS", repr(sorted(SOCS)), 1).replace("TESTS", repr(TESTS), 1))
    head = '#!/bin/sh\nfor a in "$@"; do case $a in --output=*) out=${a#--output=};; esac; done\n'
    head += f"om={shlex.quote(str(folder / 'sample'))}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sample").write_bytes(SAMPLE)
    return write_tool(folder, "atc", head + text + "\n")


def seen_by(om: Path) -> dict:
    """The arguments and files of the strict stand-in, which it leaves in its output."""
    return json.loads(partition(om.read_bytes(), TASKS))


def write_onnx(path: Path, external: str | None = None, name: str = "input") -> Path:
    """A tiny model with one input."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    value = [helper.make_tensor_value_info(of, TensorProto.FLOAT, ["N", 3, 64, 48]) for of in (name, "features")]
    bias = numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), "bias")
    node = helper.make_node("Add", [name, "bias"], ["features"])
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:], [bias]))
    path.parent.mkdir(parents=True, exist_ok=True)
    save = {"save_as_external_data": True, "location": external, "size_threshold": 0} if external else {}
    onnx.save(model, str(path), **save)
    return path


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail("waited too long")
        time.sleep(0.02)


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    """An environment with a tools folder first in PATH and no CANN."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("ASCEND")}
    return {**keep, "PATH": f"{tmp_path}/tools:{os.defpath}", "OUTSIDE": str(tmp_path)}


def compile_om(tmp_path, environ, job=JOB, folder="out", **model):
    """Compile and publish as a command does; returns the final path."""
    output = tmp_path / folder
    with staging(output) as stage:
        write_onnx(stage / job.onnx, **model)
        target.write_companions([job], stage)
        staged = target.compile_job(job, stage, output, environ)
        assert staged.parent == stage
        return publish(staged, output / staged.name)


def test_the_command_is_exact():
    assert JOB.invocation().command == [
        "atc",
        "--framework=5",
        "--model=net.onnx",
        "--output=net",
        "--soc_version=Ascend310P3",
        "--input_format=NCHW",
        "--input_shape=input:1,3,64,48",
        "--precision_mode_v2=fp16",
    ]
    job = make_job(
        "m",
        (256, 320),
        (1, 8, 16),
        "Ascend910B4-1",
        precision_mode="mixed_bfloat16",
        aipp=True,
        keep_dtype=("Conv_1", "OpType::Relu"),
        extra=("--op_select_implmode=high_performance", "--log=error"),
    )
    assert job.invocation().command == [
        "atc",
        "--framework=5",
        "--model=m.onnx",
        "--output=m",
        "--soc_version=Ascend910B4-1",
        "--input_format=NCHW",
        "--input_shape=input:-1,3,256,320",
        "--dynamic_batch_size=1,8,16",
        "--precision_mode_v2=mixed_bfloat16",
        "--insert_op_conf=m.aipp.cfg",
        "--keep_dtype=m.keep_dtype.cfg",
        "--op_select_implmode=high_performance",
        "--log=error",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": ()}, "--batch: 0 sizes, expected"),
        ({"batch": (0,)}, "at least 1"),
        ({"batch": (1, 1)}, "every size once"),
        ({"batch": (1, 2049)}, "at most 2048"),
        ({"batch": tuple(range(1, 102))}, "expected 1 to 100"),
        ({"precision_mode": "fp61"}, "did you mean fp16?"),
        ({"precision_mode": "mixed_bfloat16"}, "Ascend310P3 does not compute in bfloat16"),
        ({"size": (0, 4)}, "--image-size 0x4"),
        ({"keep_dtype": ("Conv_1",), "precision_mode": "origin"}, "no effect with --precision origin"),
        ({"keep_dtype": ("a\nb",)}, "expected a node name"),
        ({"keep_dtype": ("OpType::relu",)}, "OpType::Relu"),
        ({"extra": ("log",)}, "expected --name=value"),
        ({"extra": ("--soc-version=Ascend910A",)}, "contradicts"),
        ({"extra": ("--precision_mode=force_fp16",)}, "contradicts"),
        ({"extra": ("--dynamic_dims=1",)}, "contradicts"),
    ],
)
def test_options_that_atc_rejects_are_rejected_before(changes, message):
    with pytest.raises(UsageError, match=message):
        make_job(**changes).invocation()


@pytest.mark.parametrize("device", SOCS)
def test_every_device_has_a_command(device):
    assert f"--soc_version={device}" in make_job(soc=device).invocation().command


def test_an_om_is_built_in_a_folder_of_its_own(tmp_path, environ):
    write_atc(tmp_path / "tools")
    job = make_job(batch=(1, 8), aipp=True, keep_dtype=("Add_0", "OpType::Relu"))
    made = compile_om(tmp_path, environ, job)
    seen = seen_by(made)
    assert leftovers(tmp_path / "out") == ["net.atc.log", "net.om"]
    assert seen["argv"] == job.invocation().command[1:] and seen["stdin"] == ""
    aipp = aipp_config(Preprocessing(), (64, 48))
    assert seen["files"] == {"insert_op_conf": aipp, "keep_dtype": "Add_0\nOpType::Relu\n"}
    log = (tmp_path / "out" / "net.atc.log").read_text()
    assert log.startswith("$ atc --framework=5 --model=net.onnx --output=net ") and "ATC run success" in log


def test_names_and_folders_that_atc_rejects_work_all_the_same(tmp_path, environ):
    write_atc(tmp_path / "tools")
    job = make_job("a naïve net's; $(x)", data=("weights of it.data",))
    made = compile_om(tmp_path, environ, job, "an 'out' + folder", external="weights of it.data")
    assert made.name == "a naïve net's; $(x).om"
    assert leftovers(made.parent) == ["a naïve net's; $(x).atc.log", "a naïve net's; $(x).om"]
    assert "--output=a_na_ve_net_s____x_" in seen_by(made)["argv"]


def test_weights_beside_the_model_are_there_for_atc(tmp_path, environ):
    text = "cat net.data >/dev/null && [ -f net.onnx ] && cp $om $out.om && echo 'ATC run success, w'"
    write_atc(tmp_path / "tools", text)
    made = compile_om(tmp_path, environ, make_job(data=("net.data",)), external="net.data")
    assert made.read_bytes() == SAMPLE


@pytest.mark.parametrize("name", ["v1.omega", "-x", "net"])
def test_names_that_would_confuse_atc(name, tmp_path, environ):
    write_atc(tmp_path / "tools")
    made = compile_om(tmp_path, {**environ, "STAND_IN_SUFFIX": "_linux_x86_64"}, make_job(name))
    assert made.name == f"{name}_linux_x86_64.om"
    output = next(part for part in seen_by(made)["argv"] if part.startswith("--output="))
    assert ".om" not in output and not output.startswith("--output=-")


@pytest.mark.parametrize("suffix", ["_linux_x86_64", "_linux_aarch64"])
def test_the_systems_name_in_the_file_name_is_kept(suffix, tmp_path, environ):
    write_atc(tmp_path / "tools")
    made = compile_om(tmp_path, {**environ, "STAND_IN_SUFFIX": suffix})
    assert made.name == f"net{suffix}.om"
    assert leftovers(tmp_path / "out") == ["net.atc.log", made.name]


def test_the_strict_stand_in_rejects_what_the_options_would_not(tmp_path, environ):
    write_atc(tmp_path / "tools")
    for options, model, code, advice in (
        ({"extra": ("--unknown=1",)}, {}, "E10001", "ATC rejects the value of an option"),
        ({}, {"name": "pixels"}, "E10016", "use a name of the ONNX graph"),
    ):
        with pytest.raises(InputError) as error:
            compile_om(tmp_path, environ, make_job(**options), **model)
        message = str(error.value)
        assert "atc failed (exit code 1)" in message and f"{code}: " in message and advice in message
        assert str(tmp_path / "out" / "net.atc.log") in message and "\n" not in message
        assert leftovers(tmp_path / "out") == ["net.atc.log"]


@pytest.mark.parametrize("case", BROKEN)
def test_what_goes_wrong_has_its_message_and_leaves_the_log_only(case, tmp_path, environ):
    write_atc(tmp_path / "tools", BROKEN[case])
    kind, parts = EXPECTED[case]
    with pytest.raises((InputError, ToolchainError)) as error:
        compile_om(tmp_path, environ)
    assert type(error.value) is kind
    for part in (*parts, str(tmp_path / "out" / "net.atc.log")):
        assert part in str(error.value)
    assert leftovers(tmp_path / "out") == ["net.atc.log"]
    assert (tmp_path / "out" / "net.atc.log").read_text().startswith("$ atc ")


@pytest.mark.parametrize("recorded", ["Ascend310P", "ascend310p3", ""])
def test_some_releases_record_the_family_or_nothing(recorded, tmp_path, environ):
    write_atc(tmp_path / "tools", "cp $om $out.om; echo 'ATC run success, w'")
    (tmp_path / "tools" / "sample").write_bytes(small_om(recorded, inputs=[IMAGES]))
    assert compile_om(tmp_path, environ).exists()
    script = _script(tmp_path)
    write_onnx(script.parent / "net_cann.onnx")
    assert _run_script(script, environ).returncode == 0


UINT8 = [("input", "uint8", (1, 73, 55, 3))]
SEVERAL = [("input", "float32", (-1, 3, 64, 48)), ("ascend_mbatch_shape_data", "int32", (1,))]
# Jobs, the files that a compiler reports as its success, and what is said about them here and by the script.
OTHERS = {
    "encrypted": ({}, om_bytes([[(MODEL_DEF, model_def())]], encrypted=1), "is encrypted", "encrypted"),
    "no model": ({}, om_bytes([[(INOUT, inout_info([IMAGES]))]]), "has no MODEL_DEF", "no MODEL_DEF"),
    "empty": ({}, om_bytes([[(MODEL_DEF, b"")]]), "has an empty MODEL_DEF", "no MODEL_DEF"),
    "no input": ({}, small_om(inputs=[]), "(got none, expected input float32 1x3x64x48)", "input is not input"),
    "size": ({}, small_om(), "(got input float32 1x3x8x8, expected input float32 1x3x64x48)", "input is not input"),
    "name": ({}, small_om(inputs=[("x", *IMAGES[1:])]), "(got x float32 1x3x64x48,", "input is not input"),
    "batch": ({"batch": (8,)}, SAMPLE, "expected input float32 8x3x64x48)", "not input float32 8x3x64x48"),
    "two": ({}, small_om(inputs=[IMAGES, UINT8[0]]), "64x48, input uint8 1x73x55x3, exp", None),
    "no AIPP": ({"aipp": True}, SAMPLE, "expected input uint8 1x73x55x3)", "input is not input uint8 1x73x55x3"),
    "AIPP": ({}, small_om(inputs=UINT8), "(got input uint8 1x73x55x3,", "input is not input"),
    "open": ({}, small_om(inputs=SEVERAL, batches=(1, 8)), "(got input float32 Nx3x64x48,", "input is not input"),
    "batches": (
        {"batch": (1, 8)},
        small_om(inputs=SEVERAL, batches=(1, 4)),
        "has other batch sizes than were asked for (got 1, 4, expected 1, 8)",
        "batch sizes are not 1, 8",
    ),
    "no batches": ({"batch": (1, 8)}, small_om(inputs=SEVERAL), "(got none, expected 1, 8)", "sizes are not 1, 8"),
    "older": (
        {"batch": (1, 8)},
        om_bytes([[(MODEL_DEF, model_def(inputs=SEVERAL, batches=(1, 4)))]], wide=False),
        "(got 1, 4, expected 1, 8)",
        None,
    ),
    "device": ({"soc": "Ascend310B1"}, SAMPLE, "is for Ascend310P3, not for Ascend310B1", "not for Ascend310B1"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_an_om_that_is_not_what_was_asked_for_is_not_published(case, tmp_path, environ):
    options, content, problem, in_script = OTHERS[case]
    job = make_job(**options)
    write_atc(tmp_path / "tools", "cp $om $out.om; echo 'ATC run success, w'")
    (tmp_path / "tools" / "sample").write_bytes(content)
    with pytest.raises(InputError) as error:
        compile_om(tmp_path, environ, job)
    assert "atc reported success, but the net.om that it wrote " in str(error.value) and problem in str(error.value)
    assert ".." not in str(error.value) and leftovers(tmp_path / "out") == ["net.atc.log"]
    script = _script(tmp_path, job)
    write_onnx(script.parent / "net_cann.onnx")
    if job.aipp:
        (script.parent / job.aipp).write_text("aipp")
    done = _run_script(script, environ)
    assert done.returncode == (0 if in_script is None else 1), done.stderr
    assert in_script is None or (in_script in done.stderr and not (script.parent / "net.om").exists()), done.stderr


@pytest.mark.parametrize("wide", [True, False])
def test_an_om_of_an_older_release_is_what_was_asked_for(wide, tmp_path, environ):
    job = make_job(batch=(1, 8))
    write_atc(tmp_path / "tools", "cp $om $out.om; echo 'ATC run success, w'")
    parts = [(WEIGHTS, bytes(9)), (MODEL_DEF, model_def(inputs=SEVERAL, batches=(1, 8)))]
    (tmp_path / "tools" / "sample").write_bytes(om_bytes([parts], wide=wide))
    assert compile_om(tmp_path, environ, job).name == "net.om"
    script = _script(tmp_path, job)
    write_onnx(script.parent / "net_cann.onnx")
    assert _run_script(script, environ).returncode == 0


def test_an_earlier_om_survives_a_failure(tmp_path, environ):
    write_atc(tmp_path / "tools", BROKEN["exits non-zero with a file"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "net.om").write_text("earlier")
    with pytest.raises(InputError):
        compile_om(tmp_path, environ)
    assert (tmp_path / "out" / "net.om").read_text() == "earlier"


def test_ten_megabytes_of_output_go_to_the_log(tmp_path, environ):
    import tracemalloc

    write_atc(tmp_path / "tools", "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo 'E10016: Op name y'; exit 1")
    tracemalloc.start()
    with pytest.raises(InputError, match="E10016: Op name y"):
        compile_om(tmp_path, environ)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out" / "net.atc.log").stat().st_size > 10_000_000
    assert peak < 5_000_000


HANGS = """
echo $$ > "$OUTSIDE/pids"
sleep 60 & echo $! >> "$OUTSIDE/pids"
sh -c 'sleep 60 & echo $! >> "$OUTSIDE/pids"; wait' &
echo partial > $out.om
echo hanging
wait
"""
IGNORES = "trap '' TERM\n" + HANGS


def _pids(tmp_path):
    path = tmp_path / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("text", [HANGS, IGNORES], ids=["hangs", "ignores TERM"])
def test_the_time_limit_ends_the_tool_and_its_children(text, tmp_path, environ, monkeypatch):
    monkeypatch.setattr(external_tools, "GRACE", 0.3)
    write_atc(tmp_path / "tools", text)
    with pytest.raises(InputError) as error:
        compile_om(tmp_path, environ, make_job(timeout=0.7))
    assert "did not finish within 0.7 s" in str(error.value) and "net.atc.log" in str(error.value)
    assert len(_pids(tmp_path)) == 3
    wait_until(lambda: not any(map(alive, _pids(tmp_path))))
    assert leftovers(tmp_path / "out") == ["net.atc.log"]
    assert "hanging" in (tmp_path / "out" / "net.atc.log").read_text()


def test_children_that_outlive_the_tool_are_ended(tmp_path, environ):
    text = "sleep 60 & echo $! > \"$OUTSIDE/pids\"; cp $om $out.om; echo 'ATC run success, w'"
    write_atc(tmp_path / "tools", text)
    assert compile_om(tmp_path, environ).exists()
    wait_until(lambda: not any(map(alive, _pids(tmp_path))))


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_time_limit_is_above_zero(timeout, tmp_path, environ):
    with pytest.raises(UsageError, match="time limit"):
        compile_om(tmp_path, environ, make_job(timeout=timeout))


DRIVER = """
import sys
from pathlib import Path
from neonext_ms.common import cli
from neonext_ms.export.om import target
from neonext_ms.export.om.options import OmOptions
from neonext_ms.common.files import staging

def body(argv=None):
    output = Path(sys.argv[1])
    with staging(output) as stage:
        job = target.Job("net", (64, 48), (1,), OmOptions("Ascend310P3"), target.COMPILERS["atc"])
        (stage / job.onnx).write_bytes(b"input")
        target.compile_job(job, stage, output)

sys.exit(cli.run(body) if sys.argv[2] == "command" else body())
"""


@pytest.mark.parametrize(
    ("sent", "how", "code"),
    [(signal.SIGINT, "command", 130), (signal.SIGTERM, "command", 130), (signal.SIGTERM, "library", 143)],
)
def test_a_signal_ends_the_tool_and_its_children(sent, how, code, tmp_path, environ):
    write_atc(tmp_path / "tools", HANGS)
    argv = [sys.executable, "-c", DRIVER, str(tmp_path / "out"), how]
    # A runner may have started this with SIGINT ignored, which a child would inherit.
    process = subprocess.Popen(
        argv,
        env=environ,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: len(_pids(tmp_path)) == 3 or process.poll() is not None)
    process.send_signal(sent)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    wait_until(lambda: not any(map(alive, _pids(tmp_path))))
    assert leftovers(tmp_path / "out") == ["net.atc.log"]


def test_without_atc_the_message_says_where_it_was_looked_for(tmp_path, environ):
    environ = {**environ, "ASCEND_TOOLKIT_HOME": str(tmp_path / "cann")}
    with pytest.raises(ToolchainError) as error:
        compile_om(tmp_path, environ)
    message = str(error.value)
    assert error.value.exit_code == 3
    for part in ("PATH", f"ASCEND_TOOLKIT_HOME ({tmp_path}/cann)", "ASCEND_HOME_PATH (not set)", "set_env.sh"):
        assert part in message
    assert "build_om.sh" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["bin", "compiler/bin"])
def test_atc_is_found_in_the_toolkit(folder, tmp_path, environ):
    write_atc(tmp_path / "cann" / folder)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "atc").write_text("not executable")
    made = compile_om(tmp_path, {**environ, "ASCEND_TOOLKIT_HOME": str(tmp_path / "cann")})
    assert made.exists()


def test_an_atc_that_cannot_start_says_so(tmp_path, environ):
    write_tool(tmp_path / "tools", "atc", "#!/nowhere/sh\n")
    with pytest.raises(ToolchainError, match="cannot be started"):
        compile_om(tmp_path, environ)


def test_a_model_that_is_not_there(tmp_path, environ):
    write_atc(tmp_path / "tools")
    with staging(tmp_path / "out") as stage, pytest.raises(InputError, match=r"net_cann\.onnx: no such file"):
        target.compile_job(JOB, stage, tmp_path / "out", environ)
    assert not (tmp_path / "out").exists()


def explain(text):
    return cann_log.read_log(text.splitlines(), ATC.success, ATC.failure).explanation


def test_a_long_line_is_read_in_no_time():
    # Cubic time would take hours.
    assert explain("atc" * 100_000) is None


def test_first_code_wins_with_its_own_line():
    text = textwrap.dedent("""\
        ATC start working now, please wait for a moment.
        W11001: Op x does not hit the high-priority library. See /opt/E10014/readme
        ATC run failed, Please check the detail log, Try 'atc --help' for more information
        [PID: 5] 2026-01-01 Invalid_Argument_ONNX_Model_Data(E16002): No ONNX parser is registered for optype NeoCell.
                Solution: Check the version. E10001: not this one
        """)
    found = explain(text)
    assert found.startswith("E16002: No ONNX parser is registered for optype NeoCell: CANN's ONNX parser")
    assert "E10001" not in found and "--opset 13" in found
    assert explain("all is well\nATC run success") is None
    assert explain("") is None
    assert "does not know" in explain("E98765: what is this")


@pytest.mark.parametrize("code", cann_log.CODES)
def test_every_code_is_explained_in_old_and_new_spelling(code):
    advice = cann_log.CODES[code]
    for line in (f"{code}: something was wrong with it", f"[PID: 1] 2026 T({code}): something was wrong with it"):
        found = explain(f"ATC run failed\n{line}\n")
        assert advice.meaning in found and advice.remedy in found and "something was wrong with it" in found


def test_the_page_has_the_printed_table_and_every_option_and_device():
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    argv = [sys.executable, "-m", "neonext_ms.export.om.cann_log"]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert printed in text and printed.count("\n") > 30
    job = make_job(batch=(1, 8), aipp=True, keep_dtype=("b",))
    named = [part.split("=")[0] for part in job.invocation().command[1:]]
    assert [option for option in named if f"`{option}" not in text] == []
    assert [name for name in SOCS if name.removeprefix("Ascend") not in text] == []


NO_PLUGIN = "E13010: [PID: 9] 2026-08-22 No operator plugin is registered for Op: {op}, optype: {type}."
INNER = "E19999: Inner Error!\nE19999: [PID: 9] Model parse to graph failed, graph name:net.[FUNC:x][FILE:y.cc]"
NO_KERNEL = "No supported Ops kernel and engine are found for [{op}], optype [{type}]."
# What real parts print, and what is said about it; the first two are of the graph engine's own parser.
LOGS = {
    "no NeoCell": (NO_PLUGIN.format(op="stage_1.0.neocell", type="ai.onnx::13::NeoCell"), 3, "load_priority"),
    "no plugins": (
        NO_PLUGIN.format(op="stem.conv", type="ai.onnx::13::Conv"),
        3,
        "but did not load it; source set_env",
    ),
    "later": (
        NO_PLUGIN.format(op="stem.conv", type="ai.onnx::20::Conv"),
        1,
        "end before this opset; export with a lower",
    ),
    "NeoCell later": (NO_PLUGIN.format(op="n", type="ai.onnx::20::NeoCell"), 1, "end before this opset"),
    "earlier": (NO_PLUGIN.format(op="ln", type="ai.onnx::13::LayerNormalization"), 1, "starts at a later opset"),
    "unknown": (NO_PLUGIN.format(op="u", type="ai.onnx::13::Foo"), 1, "no plugin for this operator at any opset"),
    "Gelu": (
        NO_PLUGIN.format(op="act", type="ai.onnx::20::Gelu"),
        1,
        "one node; export for --target om without `--gelu`",
    ),
    "Gelu, 13": (NO_PLUGIN.format(op="act", type="ai.onnx::13::Gelu"), 1, "one node; export for --target om without"),
    "quantized": (NO_PLUGIN.format(op="q", type="ai.onnx::20::AscendQuant"), 1, "end before this opset"),
    "strange name": (NO_PLUGIN.format(op="a::13::Conv", type="ai.onnx::13::Foo"), 1, "at any opset"),
    "domain": (NO_PLUGIN.format(op="act", type="npu::1::NPUGeluV2"), 1, "one node; export for --target om without"),
    "other domain": (NO_PLUGIN.format(op="act", type="com.microsoft::1::FastGelu"), 1, "at any opset"),
    "old code": ("E16002: No ONNX parser is registered for optype ai.onnx::13::NeoCell.", 3, "load_priority"),
    "older code": (
        "E19010: No parser is registered for Op [a, optype [ai.onnx::20::Conv]].",
        1,
        "end before this opset",
    ),
    "after an internal code": (
        f"{INNER}\n{NO_PLUGIN.format(op='a', type='ai.onnx::20::Conv')}",
        1,
        "before this opset",
    ),
    "our plugin": (f"{INNER}\n[ERROR] ONNX node NeoCell: it needs the attribute h_in", 1, "plugin of NeoCell refuses"),
    "our plugin, first": (
        f"[ERROR] ONNX node NeoCell: it has no attributes\nE11010: x\n{INNER}",
        1,
        "plugin of NeoCell",
    ),
    "our host code": (
        f"[ERROR] stage_1.0.ops.content.neocell: x must have 4 axes\n{INNER}",
        1,
        "package refuses a node",
    ),
    "not our host code": (f"[ERROR] GE(12,atc):2026-01-01 x.cc: no: yes\n{INNER}", 1, "an internal error of CANN"),
    "not loaded": (
        f"[ERROR] Failed to load cust library `/opt/a b/x.so` via dlopen.\n{INNER}",
        3,
        "could not load the lib",
    ),
    "no kernels": (f"EZ3003: {NO_KERNEL.format(op='stem.conv', type='Conv2D')}", 3, "Ascend-cann-kernels-<soc>"),
    "no kernels, no code": (
        f"{INNER}\n{NO_KERNEL.format(op='stem.conv', type='Conv2D')}",
        3,
        "Ascend-cann-kernels-<soc>",
    ),
    "no kernel of ours": (NO_KERNEL.format(op="n", type="NeoCell"), 3, "build the operator package with this --soc"),
    "twice": ("E13009: Operator a already exists in the graph.", 1, "give every node a name of its own"),
    "cut off": ("E13005: Failed to parse file net.onnx.", 1, "whole"),
    "empty": ("E13015: File net.onnx has a size of 0, which is out of valid range (0, 2147483647].", 1, "is empty"),
    "no graph": ("E16004: ONNX model has no graph.", 1, "not a whole model"),
    "old Python": ("E40002: Python 2.7 is not supported", 3, "too old"),
}


@pytest.mark.parametrize("case", LOGS)
def test_real_messages_are_explained_here_and_in_the_script(case, tmp_path, environ):
    log, code, advice = LOGS[case]
    write_atc(tmp_path / "tools", f"cat <<'END'\n{log}\nATC run failed, Please check\nEND\nexit 1")
    with pytest.raises(ToolchainError if code == 3 else InputError) as error:
        compile_om(tmp_path, environ)
    assert advice in str(error.value) and "): " not in str(error.value).split(". ", 1)[1][:20]
    script = _script(tmp_path)
    write_onnx(script.parent / "net_cann.onnx")
    done = _run_script(script, environ)
    assert done.returncode == code and advice in done.stderr, done.stderr


@pytest.mark.parametrize("compiler", target.COMPILERS.values(), ids=target.COMPILERS)
def test_grep_takes_every_text(compiler):
    for pattern, _ in (*cann_log.TEXTS, *compiler.texts):
        done = subprocess.run(["grep", "-E", "-e", pattern], input="", capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, ""), pattern


def test_long_lines_are_cut():
    assert len(explain("E10014: " + "x" * 5000)) < 500


def _script(tmp_path, *jobs):
    folder = tmp_path / "b"
    folder.mkdir(exist_ok=True)
    return folder / target.write_script(jobs or [JOB], folder)


def _run_script(path, environ, cwd="/", shell="sh"):
    return subprocess.run([shell, str(path)], env=environ, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("stem", ["net_64", 'it\'s a "net" $x `y` * \\ ü'])
def test_the_script_builds_every_size(stem, tmp_path, environ):
    write_atc(tmp_path / "tools")
    sizes = (64, 48), (32, 32)
    jobs = [make_job(f"{stem}_{size[0]}", size, (1, 4), aipp=True, keep_dtype=("Add's", "B")) for size in sizes]
    script = _script(tmp_path, *jobs)
    for job in jobs:
        write_onnx(script.parent / job.onnx)
        (script.parent / job.aipp).write_text(aipp_config(Preprocessing(), job.image_size))
    assert subprocess.run(["sh", "-n", str(script)]).returncode == 0
    done = _run_script(script, environ)
    assert done.returncode == 0, done.stderr
    for job in jobs:
        seen = seen_by(script.parent / f"{job.stem}.om")
        assert seen["argv"] == job.invocation().command[1:]
        aipp = aipp_config(Preprocessing(), job.image_size)
        assert seen["files"] == {"insert_op_conf": aipp, "keep_dtype": "Add's\nB\n"}
        assert f"built    {job.stem}.om" in done.stdout
    # ATC wrote kernel_meta and fusion_result.json, too, into its working folder.
    beside = {f"{job.stem}{end}" for job in jobs for end in ("_cann.onnx", ".aipp.cfg", ".om", ".atc.log")}
    assert set(leftovers(script.parent)) == beside | {"build_om.sh"}


@pytest.mark.parametrize("case", [case for case in BROKEN if case != "fills the disk"])
def test_the_script_is_as_strict(case, tmp_path, environ):
    write_atc(tmp_path / "tools", BROKEN[case])
    script = _script(tmp_path)
    write_onnx(script.parent / "net_cann.onnx")
    done = _run_script(script, environ)
    assert done.returncode == (3 if EXPECTED[case][0] is ToolchainError else 1) and "error: atc " in done.stderr, (
        done.stderr
    )
    assert str(script.parent / "net.atc.log") in done.stderr
    assert leftovers(script.parent) == ["build_om.sh", "net.atc.log", "net_cann.onnx"]
    if case == "exits non-zero with a file":
        assert "E19999: an internal error of CANN" in done.stderr


def test_the_script_explains_and_asks_for_missing_files(tmp_path, environ):
    write_atc(tmp_path / "tools")
    script = _script(tmp_path)
    done = _run_script(script, environ)
    assert done.returncode == 1 and "net_cann.onnx is missing; copy it into" in done.stderr
    write_onnx(script.parent / "net_cann.onnx", name="pixels")
    done = _run_script(script, environ)
    assert done.returncode == 1 and "E10016: an option names an operator that" in done.stderr


def test_the_script_sources_set_env(tmp_path, environ):
    write_atc(tmp_path / "cann" / "bin")
    script = _script(tmp_path)
    write_onnx(script.parent / "net_cann.onnx")
    done = _run_script(script, {**environ, "HOME": str(tmp_path)})
    assert done.returncode == 3 and "set_env.sh" in done.stderr
    (tmp_path / "cann" / "set_env.sh").write_text(f'export PATH="{tmp_path}/cann/bin:$UNSET$PATH"\n')
    done = _run_script(script, {**environ, "ASCEND_TOOLKIT_HOME": str(tmp_path / "cann")})
    assert done.returncode == 0, done.stderr
    (script.parent / "net.om").unlink()
    done = subprocess.run(
        ["sh", "build_om.sh"], cwd=script.parent, env={**environ, "ASCEND_HOME_PATH": str(tmp_path / "cann")}
    )
    assert done.returncode == 0 and (script.parent / "net.om").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_script_leaves_the_log_only(sent, tmp_path, environ):
    write_atc(tmp_path / "tools", 'echo $$ > "$OUTSIDE/pids"; cp $om $out.om; exec sleep 60')
    script = _script(tmp_path)
    write_onnx(script.parent / "net_cann.onnx")
    process = subprocess.Popen(
        ["sh", str(script)],
        env=environ,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: _pids(tmp_path) or process.poll() is not None)
    os.killpg(process.pid, sent)
    assert process.wait(20) != 0
    wait_until(lambda: not any(map(alive, _pids(tmp_path))))
    assert leftovers(script.parent) == ["build_om.sh", "net.atc.log", "net_cann.onnx"]


def test_the_script_keeps_the_systems_name(tmp_path, environ):
    write_atc(tmp_path / "tools")
    script = _script(tmp_path)
    write_onnx(script.parent / "net_cann.onnx")
    assert _run_script(script, {**environ, "STAND_IN_SUFFIX": "_linux_aarch64"}).returncode == 0
    assert (script.parent / "net_linux_aarch64.om").exists() and not (script.parent / "net.om").exists()


def test_a_script_needs_a_place(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        target.write_script([JOB], tmp_path / "no")


@pytest.mark.skipif(shutil.which("dash") is None, reason="dash is not installed")
def test_dash_takes_the_script(tmp_path):
    script = _script(tmp_path)
    assert subprocess.run(["dash", "-n", str(script)]).returncode == 0
