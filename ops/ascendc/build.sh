#!/bin/bash
# Build the operator package custom_opp_<system>_<machine>.run with an installed CANN toolkit, 8.0 or newer.
#
#   bash build.sh [--soc ascend310p,ascend910b] [--cann DIR] [--work DIR] [--output DIR]
#
# --soc     device families to compile the kernels for (default: all families in CMakePresets.json)
# --cann    folder of the toolkit (default: ASCEND_HOME_PATH, ASCEND_TOOLKIT_HOME, or CANN's default location)
# --work    build folder, empty or from an earlier build (default: build beside this script)
# --output  folder for the package (default: the current folder)
#
# CANN 8.x has no CMake functions that an outside project could call. Its own tools start every project as a copy of
# tools/op_project_templates/ascendc/customize, and so does this script. Where that template is missing, it uses the
# CMake functions npu_op_* of newer toolkits.
#
# Exit codes: 1 the build failed, 2 wrong arguments, 3 something is missing.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
soc="" cann="" work="$here/build" output=$PWD

fail() { # exit code, message
    echo "error: $2" >&2
    exit "$1"
}

while [ $# -gt 0 ]; do
    case $1 in
        --soc | --cann | --work | --output)
            [ $# -ge 2 ] || fail 2 "$1 needs a value"
            case $1 in
                --soc) soc=$2 ;;
                --cann) cann=$2 ;;
                --work) work=$2 ;;
                --output) output=$2 ;;
            esac
            shift 2
            ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) fail 2 "unknown argument $1; known: --soc, --cann, --work, --output" ;;
    esac
done

for place in "$cann" "${ASCEND_HOME_PATH:-}" "${ASCEND_TOOLKIT_HOME:-}" \
    /usr/local/Ascend/ascend-toolkit/latest /usr/local/Ascend/cann; do
    if [ -n "$place" ] && [ -d "$place" ]; then
        found=$place
        break
    fi
    [ -n "$cann" ] && fail 3 "$cann: no such folder; name the CANN toolkit"
done
[ -n "${found:-}" ] || fail 3 "no CANN toolkit: install it and source its set_env.sh, or name it with --cann"
cann=$(cd "$found" && pwd -P)
for tool in cmake make g++ python3; do
    command -v $tool >/dev/null 2>&1 || fail 3 "$tool was not found in PATH; install it"
done
version=$(sed -n 's/^[Vv]ersion=//p' "$cann/compiler/version.info" 2>/dev/null | head -1)
case $version in
    "" | [89].* | [1-9][0-9]*.*) ;;
    *) fail 3 "CANN $version at $cann is too old; this project needs 8.0 or newer" ;;
esac

if [ -n "$(ls -A "$work" 2>/dev/null)" ] && [ ! -f "$work/.neonext-build" ]; then
    fail 2 "$work is not empty and no build of this script; name another folder with --work"
fi
rm -rf "$work"
mkdir -p "$work" "$output" && touch "$work/.neonext-build" || fail 1 "$work or $output cannot be made"
work=$(cd "$work" && pwd) output=$(cd "$output" && pwd)
template="$cann/tools/op_project_templates/ascendc"
if [ -d "$template/customize/cmake" ]; then
    way=template
    cp -RL "$template/customize/." "$work" || fail 1 "$template/customize cannot be copied"
    chmod -R u+w "$work"
    if [ -d "$template/common/util" ]; then
        cp -RLn "$template/common/util/." "$work/cmake/util" # tools that older templates only link to
    fi
    for folder in op_host op_kernel; do
        find "$work/$folder" -maxdepth 1 -type f \( -name '*.cpp' -o -name '*.h' \) -delete
        cp "$here/$folder"/*.cpp "$here/$folder"/*.h "$work/$folder/"
    done
    rm -rf "$work/framework/tf_plugin" "$work/framework/caffe_plugin" "$work/framework/onnx_plugin"
    cp -R "$here/framework/onnx_plugin" "$work/framework/"
elif [ -d "$cann/compiler/tikcpp/ascendc_kernel_cmake/fwk_modules" ]; then
    way=functions
    cp -R "$here/CMakeLists.txt" "$here/op_host" "$here/op_kernel" "$here/framework" "$work/"
else
    fail 3 "$cann has neither $template/customize nor compiler/tikcpp/ascendc_kernel_cmake; install the CANN toolkit (not the runtime alone)"
fi

python3 - "$here/CMakePresets.json" "$work/CMakePresets.json" "$cann" "$soc" <<'PYTHON' || fail 1 "CMakePresets.json cannot be written"
import json
import sys

source, target, cann, soc = sys.argv[1:]
with open(source, encoding="utf-8") as file:
    presets = json.load(file)
variables = presets["configurePresets"][0]["cacheVariables"]
variables["ASCEND_CANN_PACKAGE_PATH"]["value"] = cann
if soc:
    variables["ASCEND_COMPUTE_UNIT"]["value"] = ";".join(soc.split(","))
with open(target, "w", encoding="utf-8") as file:
    json.dump(presets, file, indent=4)
PYTHON

for script in "$cann/bin/setenv.bash" "$cann/set_env.sh" "$cann/../set_env.sh"; do
    if [ -f "$script" ]; then
        set +u
        # shellcheck disable=SC1090
        source "$script" >/dev/null 2>&1
        set -u
        break
    fi
done
export ASCEND_HOME_PATH=$cann
# An operator of the same name that is installed already would be compiled instead.
unset ASCEND_CUSTOM_OPP_PATH

echo "CANN ${version:-of unknown version} at $cann, by its $way"
cd "$work" || exit 1
if [ $way = template ]; then
    bash build.sh || fail 1 "CANN's build failed"
else
    cmake -S . -B build_out --preset=default || fail 1 "CMake failed"
    cmake --build build_out --target binary package -j "$(nproc)" || fail 1 "CANN's build failed"
fi
package=$(find "$work/build_out" -maxdepth 1 -name 'custom_opp_*.run' | head -1)
[ -n "$package" ] || fail 1 "the build ended without an error, but made no custom_opp_*.run"
cp "$package" "$output/" || fail 1 "$output: the package cannot be copied there"
echo "$output/$(basename "$package")"
