"""neonext-ops with stand-ins for CANN: a toolkit whose build is a script, and packages that are shell scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neonext_ms.commands import ops
from neonext_ms.common.errors import ToolchainError
from neonext_ms.ops import device_check, package_build
from neonext_ms.ops.package import FAMILIES, OPERATORS, PROJECT, VENDOR

BUILD = """\
set -e
[ -f op_host/neo_cell.cpp ] && [ -f op_host/neo_cell_host.h ] && [ -f op_kernel/neo_cell.cpp ]
[ -f framework/onnx_plugin/neo_cell_plugin.cc ] && [ -f cmake/util/tool.py ] && [ -f cmake/util/shared.py ]
[ ! -e op_host/sample.cpp ] && [ ! -e framework/tf_plugin ]
grep -q npu_op op_host/CMakeLists.txt && exit 9
[ -z "${ASCEND_CUSTOM_OPP_PATH:-}" ]
mkdir build_out
cp CMakePresets.json build_out/custom_opp_linux_x86_64.run
"""
# What the real install.sh does: it puts the package below vendors/ of the place that was named.
INSTALLER = """\
place=$ASCEND_OPP_PATH
for argument in "$@"; do case $argument in --install-path=*) place=${argument#*=} ;; esac; done
mkdir -p "$place/vendors/neonext/op_api/include" && touch "$place/vendors/neonext/op_api/include/aclnn_neo_cell.h"
echo SUCCESS
"""


@pytest.fixture(autouse=True)
def no_cann(monkeypatch):
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH", "ASCEND_CUSTOM_OPP_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH with stand-ins for the compilers, whether or not this host has them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cmake", "make", "g++"):
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def _cann(folder: Path, build: str = BUILD, version: str = "8.1.RC1") -> Path:
    template = folder / "tools" / "op_project_templates" / "ascendc"
    project = template / "customize"
    files = {
        project / "build.sh": build,
        project / "cmake" / "util" / "tool.py": "",
        project / "op_host" / "CMakeLists.txt": "add_library(cust_optiling)",
        project / "op_host" / "sample.cpp": "",
        project / "op_kernel" / "CMakeLists.txt": "add_kernels_compile()",
        project / "op_kernel" / "sample.cpp": "",
        project / "framework" / "CMakeLists.txt": "",
        project / "framework" / "tf_plugin" / "sample.cc": "",
        template / "common" / "util" / "shared.py": "",
        folder / "compiler" / "version.info": f"Version={version}\nother=1\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def _run(capsys, *argv):
    code = ops.main(list(map(str, argv)))
    out, err = capsys.readouterr()
    return code, out, err


def test_build_lays_the_sources_into_the_toolkits_template(tmp_path, tools, monkeypatch, capsys):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(_cann(tmp_path / "cann")))
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", "/elsewhere")
    output = tmp_path / "out"
    code, out, err = _run(capsys, "build", "--soc", "Ascend310P3,Ascend310P1,Ascend910B3", "--output", output, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["soc"] == ["ascend310p", "ascend910b"] and facts["cann"] == "8.1.RC1"
    package = output / "custom_opp_linux_x86_64.run"
    assert sorted(path.name for path in output.iterdir()) == ["custom_opp_linux_x86_64.run", package_build.LOG]
    variables = json.loads(package.read_text())["configurePresets"][0]["cacheVariables"]
    assert variables["ASCEND_COMPUTE_UNIT"]["value"] == "ascend310p;ascend910b"
    assert variables["ASCEND_CANN_PACKAGE_PATH"]["value"] == str(tmp_path / "cann")
    assert variables["vendor_name"]["value"] == VENDOR
    assert variables["ENABLE_SOURCE_PACKAGE"]["value"] == "True"
    assert not (PROJECT / "build").exists(), "the sources may be read-only"


def test_build_takes_the_newer_functions_where_there_is_no_template(tmp_path, tools, monkeypatch, capsys):
    cann = _cann(tmp_path / "cann", version="9.1.0")
    shutil.rmtree(cann / "tools")
    (cann / "compiler" / "tikcpp" / "ascendc_kernel_cmake" / "fwk_modules").mkdir(parents=True)
    (tools / "cmake").write_text(
        '#!/bin/sh\ncase " $* " in *" --preset=default "*) mkdir build_out ;; *" package "*) '
        "grep -q npu_op_library op_host/CMakeLists.txt && echo x > build_out/custom_opp_a_b.run ;; esac\n"
    )
    code, _, err = _run(capsys, "build", "--cann", cann, "--output", tmp_path / "out")
    assert code == 0, err
    assert (tmp_path / "out" / "custom_opp_a_b.run").is_file()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("echo 'CMake Error: opbuild run failed!'; exit 1", "CMake Error: opbuild run failed!"),
        ("mkdir build_out", "made no custom_opp_"),
        ("mkdir build_out; : > build_out/custom_opp_a.run", "wrote an empty"),
        ("kill -9 $$", "CANN's build failed"),
    ],
    ids=["fails", "makes nothing", "makes an empty file", "is killed"],
)
def test_a_failed_build_leaves_its_log_alone(build, message, tmp_path, tools, capsys):
    output = tmp_path / "out"
    code, _, err = _run(capsys, "build", "--cann", _cann(tmp_path / "cann", build), "--output", output)
    assert code == 1
    assert message in err + (output / package_build.LOG).read_text()
    assert err.startswith("CANN 8.1.RC1") and "error: " in err and package_build.LOG in err
    assert [path.name for path in output.iterdir()] == [package_build.LOG]


def test_a_build_that_hangs_is_stopped(tmp_path, tools, capsys):
    cann = _cann(tmp_path / "cann", "sleep 60")
    code, _, err = _run(capsys, "build", "--cann", cann, "--output", tmp_path / "out", "--timeout", "1")
    assert code == 1 and "did not finish within 1 s" in err


def test_what_is_missing_is_named(tmp_path, tools, monkeypatch, capsys):
    monkeypatch.setattr(package_build, "USUAL_PLACES", ())
    code, _, err = _run(capsys, "build", "--output", tmp_path / "out")
    assert code == 3 and "no CANN toolkit" in err and "ASCEND_HOME_PATH (not set)" in err
    (tmp_path / "runtime").mkdir()
    code, _, err = _run(capsys, "build", "--cann", tmp_path / "runtime")
    assert code == 3 and "install the toolkit" in err
    code, _, err = _run(capsys, "build", "--cann", _cann(tmp_path / "old", version="7.0.0"))
    assert code == 3 and "CANN 7.0.0" in err and "too old" in err
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = _run(capsys, "build", "--cann", _cann(tmp_path / "cann"))
    assert code == 3 and "cmake" in err and "g++" in err
    assert not (tmp_path / "out").exists()


def test_build_script_says_what_is_missing_by_itself(tmp_path, tools):
    def script(*arguments, path=os.environ["PATH"]):
        command = [shutil.which("bash"), str(PROJECT / "build.sh"), *map(str, arguments)]
        environ = {"PATH": f"{tools}:{path}"}
        return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path)

    assert script("--wrong").returncode == 2
    gone = script("--cann", tmp_path / "gone")
    assert gone.returncode == 3 and "no such folder" in gone.stderr
    old = script("--cann", _cann(tmp_path / "old", version="7.0.0"))
    assert old.returncode == 3 and "too old" in old.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    kept = script("--cann", _cann(tmp_path / "cann"), "--work", tmp_path / "mine")
    assert kept.returncode == 2 and (tmp_path / "mine" / "thesis.txt").exists()
    for _ in range(2):
        made = script("--cann", tmp_path / "cann", "--work", tmp_path / "work", "--output", tmp_path / "out")
        assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == str(tmp_path / "out" / "custom_opp_linux_x86_64.run")


@pytest.mark.parametrize(
    ("soc", "code", "message"),
    [
        ("Ascend310P33", 2, "did you mean Ascend310P3"),
        ("Ascend910A", 2, "not ascend910"),
        ("Ascend310P3,", 2, "separated by commas"),
    ],
)
def test_devices_are_validated(soc, code, message, capsys):
    got, _, err = _run(capsys, "build", "--soc", soc)
    assert got == code and message in err


def test_dry_run_prints_the_command(capsys):
    code, out, _ = _run(capsys, "build", "--dry-run", "--soc", "Ascend910_9391", "--cann", "/opt/cann")
    assert code == 0 and "build.sh --soc ascend910_93 --cann /opt/cann" in out
    code, out, _ = _run(capsys, "build", "--dry-run", "--with", "mindspore", "--json")
    words = json.loads(out)["command"]
    assert words[1] == "setup.py" and "ascend310p;ascend310b;ascend910b;ascend910_93" in words and VENDOR in words


def test_mindspores_compiler_runs_in_a_copy(tmp_path, tools, monkeypatch, capsys):
    compiler = tmp_path / "site" / "custom_compiler"
    compiler.mkdir(parents=True)
    (compiler / "setup.py").write_text(
        "import pathlib, sys\n"
        "host = sys.argv[sys.argv.index('--op_host_path') + 1]\n"
        "assert (pathlib.Path(host) / 'neo_cell.cpp').is_file()\n"
        "folder = pathlib.Path(__file__).parent / 'CustomProject' / 'build_out'\n"
        "folder.mkdir(parents=True)\n"
        "(folder / 'custom_opp_x.run').write_text('x')\n"
    )
    monkeypatch.setattr(package_build, "mindspore_compiler", lambda: compiler)
    output = tmp_path / "out"
    code, _, err = _run(capsys, "build", "--with", "mindspore", "--cann", _cann(tmp_path / "cann"), "--output", output)
    assert code == 0, err
    assert "ONNX plugin" in err and (output / "custom_opp_x.run").is_file()
    assert [path.name for path in compiler.iterdir()] == ["setup.py"]


def test_mindspore_has_a_compiler():
    assert (package_build.mindspore_compiler() / "start.sh").is_file()


def test_install_runs_the_package_and_looks_for_the_operator(tmp_path, monkeypatch, capsys):
    package = tmp_path / "custom_opp_a_b.run"
    package.write_text(INSTALLER)
    code, _, err = _run(capsys, "install", package)
    assert code == 3 and "--install-path" in err
    code, out, err = _run(capsys, "install", package, "--install-path", tmp_path / "own")
    assert code == 0, err
    assert f"source {tmp_path}/own/vendors/neonext/bin/set_env.bash" in out
    monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path / "opp"))
    code, out, _ = _run(capsys, "install", package, "--json")
    assert code == 0 and json.loads(out) == {"package": f"{tmp_path}/opp/vendors/neonext", "activate": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["custom_opp_a_b.run", "opp", "own"]


@pytest.mark.parametrize(
    ("script", "message"), [("echo 'no room'; exit 4", "no room"), ("echo done", "no operator is where")]
)
def test_a_failed_installation_is_not_called_one(script, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path / "opp"))
    (tmp_path / "a.run").write_text(script)
    code, _, err = _run(capsys, "install", tmp_path / "a.run")
    assert code == 1 and message in err


def test_install_rejects_what_it_cannot_do(tmp_path, capsys):
    assert _run(capsys, "install", tmp_path / "none.run")[0] == 1
    (tmp_path / "a.run").write_text("")
    code, _, err = _run(capsys, "install", tmp_path / "a.run", "--install-path", "relative")
    assert code == 2 and "absolute" in err
    code, out, _ = _run(capsys, "install", tmp_path / "a.run", "--install-path", "/opt/x", "--dry-run")
    assert code == 0 and out.strip().endswith("a.run --install-path=/opt/x")


def _package(folder: Path, families=("ascend310p",)) -> Path:
    """Write a package with every file of a real build (as in the one inside MindSpore's wheel)."""
    tbe = "op_impl/ai_core/tbe"
    texts = {f"op_api/include/aclnn_{name}.h": "x" for name in OPERATORS}
    texts |= {
        "op_api/lib/libcust_opapi.so": "x",
        "op_proto/lib/linux/x86_64/libcust_opsproto_rt2.0.so": "x",
        f"{tbe}/op_tiling/lib/linux/x86_64/libcust_opmaster_rt2.0.so": "x",
        "framework/onnx/libcust_onnx_parsers.so": "x",
    }
    for family in families:
        texts[f"{tbe}/config/{family}/aic-{family}-ops-info.json"] = json.dumps({t: {} for t in OPERATORS.values()})
        texts |= {f"{tbe}/kernel/{family}/{name}/{name}_0.o": "x" for name in OPERATORS}
    for name in OPERATORS:
        texts[f"{tbe}/{VENDOR}_impl/dynamic/{name}.py"] = "x"
    for source in (PROJECT / "op_kernel").glob("*.[ch]*"):
        texts[f"{tbe}/{VENDOR}_impl/dynamic/{source.name}"] = source.read_text()
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def no_device(monkeypatch):
    def none():
        raise ToolchainError("the files are good; no device")

    monkeypatch.setattr(device_check, "run_on_device", none)


def test_check_without_a_device_says_that_the_files_are_good(tmp_path, no_device, monkeypatch, capsys):
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", str(_package(tmp_path / "neonext", ("ascend310p", "ascend910b"))))
    code, out, err = _run(capsys, "check")
    assert code == 3 and "the files are good" in err
    assert "ascend910b: compiled kernel" in out and "missing" not in out
    code, out, _ = _run(capsys, "check", "--json")
    assert code == 3 and json.loads(out)["device"] is None


@pytest.mark.parametrize(
    "part", ["op_api/lib", "framework/onnx", "op_impl/ai_core/tbe/kernel/ascend310p/neo_cell_grad"]
)
def test_check_names_a_missing_part(part, tmp_path, no_device, capsys):
    package = _package(tmp_path / "neonext")
    shutil.rmtree(package / part)
    code, _, err = _run(capsys, "check", "--package", package)
    assert code == 1 and part in err and "missing" in err


def test_check_finds_a_family_an_operator_and_sources_that_are_not_there(tmp_path, no_device, capsys):
    package = _package(tmp_path / "neonext")
    code, _, err = _run(capsys, "check", "--package", package, "--soc", "Ascend910B3")
    assert code == 1 and "ascend910b" in err
    source = next(package.rglob("neo_cell.cpp"))
    source.write_text(source.read_text() + "\n")
    info = next(package.rglob("aic-*.json"))
    info.write_text(json.dumps({"NeoCell": {}}))
    code, _, err = _run(capsys, "check", "--package", package)
    assert code == 1 and "another version" in err and "without NeoCellGrad" in err
    for text in ("5", "[" * 3000, "\xff"):
        info.write_text(text, encoding="latin-1")
        assert "not JSON: install the package again" in _run(capsys, "check", "--package", package)[2]
    next(package.rglob("libcust_opapi.so")).write_text("")
    assert "op_api/lib/libcust_opapi.so" in _run(capsys, "check", "--package", package)[2]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("load_priority=neonext\n", None),
        ("load_priority = customize , neonext", None),
        ("load_priority=customize\n", "does not name neonext: write load_priority=neonext,customize"),
        ("\nload_priority=neonext\n", "its first line is not load_priority=..."),
        ("load_priority=neonext=1\n", "its first line is not load_priority=..."),
        ("load_priority=\n", "does not name neonext: write load_priority=neonext\n"),
        (None, "missing or not text: write load_priority=neonext into"),
        (b"\xff", "missing or not text"),
    ],
)
def test_check_looks_whether_cann_loads_the_package(config, problem, tmp_path, no_device, monkeypatch, capsys):
    """CANN's parser reads the first line of vendors/config.ini, and loads nothing that it does not name."""
    package = _package(tmp_path / "opp" / "vendors" / "neonext")
    monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path / "opp"))
    if config is not None:
        content = config if isinstance(config, bytes) else config.encode()
        (package.parent / "config.ini").write_bytes(content)
    code, out, err = _run(capsys, "check")
    assert code == (3 if problem is None else 1) and "loaded by CANN" in out
    assert (
        "the files are good" in err if problem is None else f"../config.ini (loaded by CANN): {problem}" in f"{err}\n"
    )
    # The variable of the same package comes first.
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", f"/nowhere:{package}")
    assert _run(capsys, "check")[0] == 3


def test_check_says_that_the_variable_is_too_high(tmp_path, no_device, monkeypatch, capsys):
    package = _package(tmp_path / "own" / "vendors" / "neonext")
    for folder in (package.parent, package.parents[1]):
        monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", str(folder))
        code, _, err = _run(capsys, "check")
        assert code == 3 and f"is too high (got {folder}, expected {package})" in err
        code, _, err = _run(capsys, "check", "--package", package)
        assert code == 1 and f"too high: it names {folder}, but has to name {package} itself" in err
    monkeypatch.delenv("ASCEND_CUSTOM_OPP_PATH")
    code, _, err = _run(capsys, "check", "--package", package)
    assert code == 3 and "CANN does not load it" in err


def test_check_on_a_device_compares_with_the_reference(tmp_path, monkeypatch, capsys):
    package = _package(tmp_path / "neonext")
    entry = {"case": "ragged", "dtype": "float32", "of": "y", "difference": 1e-6, "tolerance": 1e-4}
    monkeypatch.setattr(device_check, "run_on_device", lambda: [entry])
    assert _run(capsys, "check", "--package", package)[0] == 0
    for wrong in (0.1, float("nan")):
        monkeypatch.setattr(device_check, "run_on_device", lambda wrong=wrong: [{**entry, "difference": wrong}])
        code, _, err = _run(capsys, "check", "--package", package)
        assert code == 4 and "ragged, float32, y" in err


def test_check_without_a_package(capsys, tmp_path):
    code, _, err = _run(capsys, "check")
    assert code == 3 and "neonext-ops install" in err
    assert _run(capsys, "check", "--package", tmp_path / "none")[0] == 1


def test_families_are_those_of_the_device_table():
    from neonext_ms.ops.soc import SOCS

    assert set(FAMILIES) <= {soc.family for soc in SOCS.values()}
    assert package_build.parse_families(",".join(SOCS[name].name for name in ("Ascend310B1", "Ascend910B4-1"))) == [
        "ascend310b",
        "ascend910b",
    ]


def test_help_imports_neither_numpy_nor_mindspore():
    code = (
        "import sys\nfrom neonext_ms.commands.ops import main\n"
        "for words in (['--help'], ['simulate', '--help']):\n"
        "    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "assert not {'numpy', 'mindspore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_former_name_of_simulate_still_works(capsys):
    with pytest.raises(SystemExit) as caught:
        ops.main(["twin", "--help"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0
    assert out.startswith("usage: neonext-ops simulate ")
    assert err == "note: neonext-ops twin is now neonext-ops simulate\n"
