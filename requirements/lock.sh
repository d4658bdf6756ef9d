#!/usr/bin/env bash
# Remakes cpu.txt and cuda.txt: every package pinned, for the oldest Python that wp1 supports, so that newer ones find
# wheels as well. Installed without their dependencies, so what the overrides leave out stays out.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=.venv/bin/uv
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
compile() {
  local extra=$1; shift
  echo "lock: requirements/$extra.txt"
  "$uv" pip compile --quiet --upgrade --python-version 3.11 --no-header --no-annotate --extra "$extra" --extra dev \
    --overrides "requirements/overrides-$extra.txt" --output-file "requirements/$extra.txt" "$@" \
    pyproject.toml requirements/bundled.in
}
if [ -n "$links" ]; then
  UV_FIND_LINKS=$links compile cpu
else
  compile cpu --torch-backend cpu
fi
# Never from a folder of wheels: what lies there is for CPUs.
UV_FIND_LINKS='' compile cuda
