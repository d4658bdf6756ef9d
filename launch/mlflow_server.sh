#!/usr/bin/env bash
# An MLflow server for several people, with its store in FOLDER. Runs publish to it with tracking.uri=http://HOST:PORT.
#
#   launch/mlflow_server.sh FOLDER [HOST] [PORT]
#
# It listens on this machine only unless HOST says otherwise. It has no passwords: put it behind a proxy that does.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$(mkdir -p "$1" && cd "$1" && pwd)
host=${2:-127.0.0.1}
port=${3:-5000}
[ -n "$("$(dirname "$0")/port_is_free.sh" "$host" "$port")" ] || {
  echo "error: port $port of $host is in use or is not a port: name another, as in launch/mlflow_server.sh FOLDER $host 5001" >&2
  exit 2
}
python=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/python
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
exec "$python" -m mlflow server --backend-store-uri "sqlite:///$folder/mlflow.db" \
  --artifacts-destination "$folder/mlartifacts" --host "$host" --port "$port" --workers 1
