#!/usr/bin/env bash
# Runs the experiments of conf/experiment one after the other on this machine and makes their packet: one folder with one
# page.
#
#   launch/packet.sh FOLDER [scale=smoke|gpu] [--partial] [--print] [key=value ...]
#
# scale=smoke (default without a GPU): the bundled model, every experiment small; under 45 minutes on two cores.
# scale=gpu (default with one): an 8B model's shape (random weights) for E1, E2, E3, E5; the bundled model for E0, E4, E6.
# key=value is passed to every experiment. --print shows the commands and runs nothing.
# Called again with the same FOLDER, it continues: completed experiments are not run again.
# If a run fails, the others still run, but there is no packet unless --partial is given, and the exit code is 1.
set -uo pipefail
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"; }
refuse() { echo "error: $*" >&2; exit 2; }
for argument in "$@"; do
  case $argument in -h | --help) usage; exit 0 ;; esac
done
[ $# -ge 1 ] || { usage; exit 2; }
case $1 in
  "" | -* | *=*) refuse "${1:-an empty word} is not a folder: put the folder first, as in launch/packet.sh FOLDER --print" ;;
esac
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(realpath -m -- "$1")
shift
python=$here/.venv/bin/python
scale=smoke partial=() overrides=() print=
command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1 && scale=gpu
for argument in "$@"; do
  case $argument in
    scale=smoke | scale=gpu) scale=${argument#scale=} ;;
    scale=*) refuse "$argument is not known: set scale to smoke or gpu" ;;
    --partial) partial=(--partial) ;;
    --print) print=yes ;;
    -*) refuse "$argument is not known: key=value, --partial or --print" ;;
    root=* | experiment=* | resume=* | hydra.*)
      refuse "$argument cannot be set: the packet runs every experiment, each in FOLDER" ;;
    *=*) overrides+=("$argument") ;;
    *) refuse "$argument is not known: key=value, --partial or --print" ;;
  esac
done
[ -x "$python" ] || refuse "$here/.venv is missing: run make setup"

# The overrides of each experiment at each scale.
smoke() {
  case $1 in
    e1) echo experiment=e1 experiment.repeats=2 ;;
    e2) echo experiment=e2 experiment.repeats=2 ;;
    e3) echo experiment=e3 experiment.repeats=2 ;;
    *) echo "experiment=$1" ;;
  esac
}
gpu() {
  case $1 in
    e1) echo experiment=e1_gpu model=llama31_8b_shape ;;
    e2) echo experiment=e2_gpu model=llama31_8b_shape ;;
    e3) echo experiment=e3 model=llama31_8b_shape model.max_len=36864 \
          'experiment.prompt_lens=[1024,8192,32768]' 'experiment.request_rates=[0,2]' ;;
    e5) echo experiment=e5 model=llama31_8b_shape ;;
    *) echo "experiment=$1" ;;
  esac
}

cd "$here" || exit 2
# Compose all of them first, so that a mistake shows before the first runs for minutes.
todo=$("$python" -m wp1.packet --missing "$folder/outputs") || exit
while read -r experiment _; do
  [ -n "$experiment" ] || continue
  read -ra words < <("$scale" "$experiment")
  "$python" -m wp1 "${words[@]}" root="$folder" "${overrides[@]}" --cfg job < /dev/null > /dev/null || exit 2
done <<< "$todo"
[ -n "$print" ] || mkdir -p "$folder" || exit 2
begin=$SECONDS
while read -r experiment unfinished <&3; do
  [ -n "$experiment" ] || continue
  read -ra words < <("$scale" "$experiment")
  # Resume a run that was interrupted or failed.
  [ -z "$unfinished" ] || words=("resume=$unfinished")
  echo "== $experiment: python -m wp1 ${words[*]} ${overrides[*]-}"
  [ -n "$print" ] && continue
  "$python" -m wp1 "${words[@]}" root="$folder" "${overrides[@]}" < /dev/null
  code=$?
  # Ctrl-C stops the whole script. What was measured is kept.
  [ $code -eq 130 ] && exit 130
  echo "== $experiment ended with $code, $((SECONDS - begin)) s in all"
done 3<<< "$todo"
[ -n "$print" ] && exit 0
exec "$python" -m wp1.packet "$folder/outputs" --out "$folder/packet" "${partial[@]}"
