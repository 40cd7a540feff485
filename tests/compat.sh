#!/usr/bin/env bash
# Runs the tests marked `compat` on the oldest supported JAX and, where a Python 3.12 is found, the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

check() { # name, python, requirements...
  local venv=".venv-$1" python="$2"
  shift 2
  if [ ! -e "$venv/.done" ] || [ pyproject.toml -nt "$venv/.done" ]; then
    echo "Installing $* into $venv ..."
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[compat]' "$@"
    touch "$venv/.done"
  fi
  "$venv/bin/python" -c 'import jax, sys; print("JAX", jax.__version__, "Python", sys.version.split()[0])'
  "$venv/bin/python" -m pytest -m "compat and not full" -n "${WORKERS:-2}" tests
}

find_python() { # the first 3.12 that starts
  local candidate
  for candidate in python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

check oldest "${PYTHON:-python3}" 'jax==0.7.2' 'jaxlib==0.7.2'
newest=$(find_python)
if [ -n "$newest" ]; then
  check newest "$newest" --upgrade jax jaxlib
else
  echo "No Python 3.12 here: the newest JAX is not tested."
fi
