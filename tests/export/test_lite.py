from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neonext_ms.common.errors import InputError, ToolchainError, UsageError
from neonext_ms.common.files import publish, staging
from neonext_ms.export.om import cann_log, lite, target
from neonext_ms.export.om.aipp import aipp_config
from neonext_ms.export.om.job import Job
from neonext_ms.export.om.options import OmOptions
from neonext_ms.images.preprocessing import Preprocessing

LITE = target.COMPILERS["lite"]


def make_job(stem="net", size=(64, 48), batch=(1,), soc="Ascend310P3", **options) -> Job:
    return Job(stem, size, batch, OmOptions(soc, via="lite", **options), LITE)


JOB = make_job()

# Takes what converter_flags.cc and config_file_parser.cc of mindspore-ai/mindspore-lite take.
STRICT = r"""
import json, os, re, sys

FLAGS = 'fmk modelFile outputFile inputShape saveType optimize configFile inputDataFormat'.split()
KEYS = '''input_format input_shape dynamic_dims precision_mode op_select_impl_mode output_type plugin_custom_ops
fusion_switch_config_file_path insert_op_config_file_path device_id'''.split()
MODES = ('enforce_fp32', 'preferred_fp32', 'enforce_fp16', 'enforce_origin', 'preferred_optimal')


def fail(text):
    print(text, file=sys.stderr)
    print('Convert failed. Ret: Common error code.')
    sys.exit(7)


given = {}
for argument in sys.argv[1:]:
    match = re.fullmatch(r'--(\w+)=(.+)', argument)
    if not match or match[1] not in FLAGS:
        fail(f'Invalid flag: {argument}')
    given[match[1]] = match[2]
for name in ('fmk', 'modelFile', 'outputFile'):
    if name not in given:
        fail('INPUT MISSING: ' + name)
if given['fmk'] not in ('ONNX', 'MINDIR') or not given['modelFile'].endswith('.' + given['fmk'].lower()):
    fail('INPUT ILLEGAL: fmk must be TF|TFLITE|CAFFE|MINDIR|ONNX')
if given.get('optimize') != 'ascend_oriented' or given.get('saveType') != 'MINDIR':
    fail('INPUT ILLEGAL: optimize must be none|general|gpu_oriented|ascend_oriented')
sections, section = {}, None
for line in open(given['configFile']):
    line = line.strip()
    if not line or line.startswith('#'):
        continue
    if line.startswith('['):
        section = sections.setdefault(line[1:-1], {})
        continue
    parts = line.split('=')
    if len(parts) != 2:
        fail('split vector size != 2, ' + line + ' is illegal.')
    section[parts[0]] = parts[1]
context = sections['ascend_context']
if set(context) - set(KEYS) or context['precision_mode'] not in MODES:
    fail('INPUT ILLEGAL: ascend_context')
fixed = given.get('inputShape')
if (fixed is None) == ('dynamic_dims' not in context):
    fail('INPUT ILLEGAL: shape')
name, _, shape = (fixed or context['input_shape']).rpartition(':')
if fixed is None:
    if not re.fullmatch(r'\[-1,3,\d+,\d+\]', shape) or not re.fullmatch(r'\[\d+\](,\[\d+\])+', context['dynamic_dims']):
        fail('Invalid input shape dims')
elif not re.fullmatch(r'\d+,3,\d+,\d+', shape):
    fail('INPUT ILLEGAL: inputShape')
data = open(given['modelFile'], 'rb').read()
if name.encode() not in data:
    fail('Failed to find input ' + name + ' in input_shape')
seen = {'argv': sys.argv[1:], 'config': sections, 'library': os.environ.get('LD_LIBRARY_PATH', '')}
if 'insert_op_config_file_path' in context:
    seen['aipp'] = open(context['insert_op_config_file_path']).read()
open(given['outputFile'] + '.mindir', 'w').write(json.dumps(seen))
print('CONVERT RESULT SUCCESS:0')
"""

GOOD = "echo 'CONVERT RESULT SUCCESS:0'"
BROKEN = {
    "exits 0 without a file": (GOOD, ["reported success, but wrote no net_ascend.mindir"]),
    "exits non-zero with a file": ("echo M > $out.mindir; exit 3", ["failed (exit code 3)", "is not used"]),
    "says success and exits non-zero": (
        f"echo M > $out.mindir; {GOOD}; exit 3",
        ["although it printed 'CONVERT RESULT SUCCESS:0'"],
    ),
    "writes an empty file": (f": > $out.mindir; {GOOD}", ["net_ascend.mindir that it wrote is empty"]),
    "never says success": ("echo M > $out.mindir", ["without its line 'CONVERT RESULT SUCCESS:0'"]),
    "says both": (f"echo M > $out.mindir; {GOOD}; echo 'Convert failed. Ret: 1'", ["although its exit code is 0"]),
    "says another code": ("echo M > $out.mindir; echo 'CONVERT RESULT SUCCESS:01'", ["without its line"]),
    "splits the weights off": (f"echo M > ${{out}}_graph.mindir; {GOOD}", ["above 2 GB"]),
    "is killed": ("kill -9 $$", ["killed by SIGKILL"]),
    "crashes": ("echo 'encounter an unknown error, please verify'; exit 1", ["the converter crashed"]),
    "reports CANN's error": (
        "echo 'EZ3003: [PID: 1] No supported Ops kernel'; exit 1",
        ["EZ3003", "no kernel of this"],
    ),
    "finds no CANN": ("echo 'Get soc version failed.'; exit 1", ["source CANN's set_env.sh"]),
    # What release 2.0.0 printed on a host, shortened.
    "finds no CANN, as the real one says it": (
        """cat <<'END'
[WARNING] ME(433,7f55,converter_lite):2026-11-28-12:00:16.351.060 [mindspore/lite/src/extendrt/cxx_api/dlutils.h:101] \
DLSoOpen] dlopen lib/libascend_pass_plugin.so failed, error: libgraph.so: cannot open shared object file
[ERROR] LITE(433,7f55,converter_lite):2026-11-28-12:00:16.351.142 [mindspore/lite/tools/converter/anf_transform.cc] \
RunConvertPass] Failed to create acl pass
[ERROR] LITE(433,7f55,converter_lite):2026-11-28-12:00:16.351.204 [mindspore/lite/tools/converter/converter.cc:1108] \
RunConverter] Convert model failed
END
exit 254""",
        ["libgraph.so", "did not find CANN", "set_env.sh"],
    ),
    "has no CANN": (
        "echo '[ERROR] LITE(1,2,c):3 [anf_transform.cc:451] RunConvertPass] Failed to create acl pass'; exit 254",
        ["Failed to create acl pass", "did not find CANN"],
    ),
    "knows no operator": (
        "echo '[ERROR] LITE(1,2,c):3 [onnx_op_parser.cc] ConvertNodes] not support onnx data type NeoCell'; exit 7",
        ["NeoCell", "does not know an operator"],
    ),
    "is too old for a MindIR": (
        "echo 'This software can only support the maximum mind ir version: 1, please install the latest version to "
        "support the mind ir version: 3'; exit 134",
        ["older than the MindIR file"],
    ),
    "lacks a library": (
        "echo 'converter_lite: error while loading shared libraries: libglog.so.0: cannot open'; exit 127",
        ["libglog.so.0", "source set_env.sh"],
    ),
}

# Cases in which the installation is at fault.
NOT_INSTALLED = (
    "reports CANN's error",
    "finds no CANN",
    "finds no CANN, as the real one says it",
    "has no CANN",
    "lacks a library",
)


def write_converter(folder: Path, text: str | None = None) -> Path:
    """A stand-in: the strict one, or a shell script that knows `$out`."""
    head = '#!/bin/sh\nfor a in "$@"; do case $a in --outputFile=*) out=${a#--outputFile=};; esac; done\n'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "converter_lite"
    path.write_text(f"#!{sys.executable} -IS\n{STRICT}" if text is None else head + text + "\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    keep = {key: value for key, value in os.environ.items() if key not in ("LITE_HOME", "LD_LIBRARY_PATH")}
    return {**keep, "PATH": f"{tmp_path}/tools:{os.defpath}"}


def compile_lite(tmp_path, environ, job=JOB, content=b"onnx with input"):
    output = tmp_path / "out"
    with staging(output) as stage:
        (stage / job.onnx).write_bytes(content)
        target.write_companions([job], stage)
        staged = target.compile_job(job, stage, output, environ)
        assert (stage / job.onnx).read_bytes() == content
        return publish(staged, output / staged.name)


def leftovers(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_the_command_and_the_configuration_are_exact():
    invocation = JOB.invocation()
    assert invocation.command == [
        "converter_lite",
        "--fmk=ONNX",
        "--modelFile=./net_ascend.onnx",
        "--outputFile=./net_ascend",
        "--saveType=MINDIR",
        "--optimize=ascend_oriented",
        "--configFile=./net_ascend.lite.cfg",
        "--inputShape=input:1,3,64,48",
    ]
    assert invocation.inputs == {"net_ascend.onnx": "net_cann.onnx"}
    invocation = make_job(batch=(1, 8), aipp=True).invocation()
    assert "--inputShape" not in " ".join(invocation.command)
    assert invocation.configs == {
        "net_ascend.lite.cfg": (
            "[ascend_context]\ninput_format=NCHW\ninput_shape=input:[-1,3,64,48]\ndynamic_dims=[1],[8]\n"
            "precision_mode=enforce_fp16\ninsert_op_config_file_path=./net_ascend.aipp.cfg\n\n"
            "[acl_init_options]\nge.socVersion=Ascend310P3\n"
        )
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"precision_mode": "mixed_bfloat16", "soc": "Ascend910B2"},
            "--precision mixed_bfloat16: converter_lite has no such mode",
        ),
        ({"precision_mode": "mixed_bfloat16"}, "does not compute in bfloat16"),
        ({"precision_mode": "x"}, "--precision: unknown mode"),
        ({"batch": (1, 1)}, "every size once"),
        ({"size": (1, -1)}, "--image-size 1x-1: height"),
        ({"keep_dtype": ("a",)}, "options of atc"),
        ({"extra": ("--log=error",)}, "options of atc"),
    ],
)
def test_options_that_the_converter_rejects(changes, message):
    with pytest.raises(UsageError, match=message):
        make_job(**changes).invocation()


@pytest.mark.parametrize("mode", lite.PRECISION_MODES)
@pytest.mark.parametrize("batch", [(1,), (1, 8, 16)])
def test_the_strict_stand_in_takes_it(mode, batch, tmp_path, environ):
    write_converter(tmp_path / "tools")
    job = make_job(precision_mode=mode, batch=batch, aipp=True)
    seen = json.loads(compile_lite(tmp_path, environ, job).read_text())
    assert seen["argv"] == job.invocation().command[1:]
    assert seen["aipp"] == aipp_config(Preprocessing(), (64, 48))
    assert seen["config"]["acl_init_options"] == {"ge.socVersion": "Ascend310P3"}
    assert leftovers(tmp_path) == ["net.converter_lite.log", "net_ascend.mindir"]


@pytest.mark.parametrize("case", BROKEN)
def test_what_goes_wrong_has_its_message_and_leaves_the_log_only(case, tmp_path, environ):
    text, parts = BROKEN[case]
    write_converter(tmp_path / "tools", text)
    with pytest.raises((InputError, ToolchainError)) as error:
        compile_lite(tmp_path, environ)
    assert type(error.value) is (ToolchainError if case in NOT_INSTALLED else InputError)
    for part in (*parts, str(tmp_path / "out" / "net.converter_lite.log")):
        assert part in str(error.value)
    assert leftovers(tmp_path) == ["net.converter_lite.log"]


def test_the_strict_stand_in_rejects_a_wrong_input(tmp_path, environ):
    write_converter(tmp_path / "tools")
    with pytest.raises(InputError, match=r"failed .exit code 7.*Failed to find input"):
        compile_lite(tmp_path, environ, content=b"onnx with pixels")


def test_the_time_limit_holds(tmp_path, environ):
    write_converter(tmp_path / "tools", "sleep 60")
    with pytest.raises(InputError, match=r"did not finish within 0\.3 s"):
        compile_lite(tmp_path, environ, make_job(timeout=0.3))
    assert leftovers(tmp_path) == ["net.converter_lite.log"]


def test_it_is_found_in_lite_home_with_its_libraries(tmp_path, environ):
    home = tmp_path / "lite"
    write_converter(home / "tools" / "converter" / "converter")
    (home / "tools" / "converter" / "lib").mkdir()
    environ = {**environ, "LITE_HOME": str(home), "LD_LIBRARY_PATH": "/before"}
    seen = json.loads(compile_lite(tmp_path, environ).read_text())
    assert seen["library"] == f"{home}/tools/converter/lib:/before"


def test_without_it_the_message_says_where_it_was_looked_for(tmp_path, environ):
    with pytest.raises(ToolchainError) as error:
        compile_lite(tmp_path, environ)
    assert error.value.exit_code == 3
    assert "LITE_HOME (not set)" in str(error.value) and "--via atc" in str(error.value)


def _script(tmp_path, job=JOB):
    folder = tmp_path / "b"
    folder.mkdir(exist_ok=True)
    return folder / target.write_script([job], folder)


def _run_script(path, environ):
    return subprocess.run(["sh", str(path)], env=environ, cwd="/", capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("batch", [(1,), (1, 8)])
def test_the_script_builds_it(batch, tmp_path, environ):
    home = tmp_path / "lite"
    write_converter(home / "tools" / "converter" / "converter")
    job = make_job("it's", batch=batch, aipp=True)
    script = _script(tmp_path, job)
    (script.parent / job.onnx).write_bytes(b"onnx with input")
    (script.parent / job.aipp).write_text("aipp")
    assert subprocess.run(["sh", "-n", str(script)]).returncode == 0
    assert _run_script(script, environ).returncode == 3
    done = _run_script(script, {**environ, "LITE_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    seen = json.loads((script.parent / "it's_ascend.mindir").read_text())
    assert seen["argv"] == job.invocation().command[1:] and seen["aipp"] == "aipp"
    assert seen["library"] == f"{home}/tools/converter/lib:{home}/runtime/lib"
    names = sorted(path.name for path in script.parent.iterdir())
    made = ["it's_ascend.converter_lite.log", "it's_ascend.mindir"]
    assert names == ["build_lite.sh", "it's.aipp.cfg", *made, "it's_cann.onnx"]


@pytest.mark.parametrize("case", BROKEN)
def test_the_script_is_as_strict(case, tmp_path, environ):
    write_converter(tmp_path / "tools", BROKEN[case][0])
    script = _script(tmp_path)
    (script.parent / "net_cann.onnx").write_bytes(b"input")
    done = _run_script(script, environ)
    assert done.returncode == (3 if case in NOT_INSTALLED else 1), done.stderr
    assert "error: converter_lite " in done.stderr
    assert sorted(path.name for path in script.parent.iterdir()) == [
        "build_lite.sh",
        "net_ascend.converter_lite.log",
        "net_cann.onnx",
    ]


def test_errors_of_the_converter_and_of_cann():
    def explain(line):
        return cann_log.read_log([line], LITE.success, LITE.failure, LITE.texts).explanation

    assert "rejects an option" in explain("INPUT ILLEGAL: fmk must be")
    assert explain("E10001: x y z").startswith("E10001: x y z")
    assert explain("CONVERT RESULT SUCCESS:0") is None
