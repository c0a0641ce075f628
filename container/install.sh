#!/bin/sh
# Install a server of exported files, without torch, into a new environment: sh container/install.sh FOLDER
# The Dockerfile runs this; container/try.sh tries it where there is no container engine.
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv "$1"
"$1/bin/python" container/requirements.py > "$1/requirements.txt"
pip() { "$python" -m pip install --quiet --no-cache-dir --disable-pip-version-check --constraint constraints.txt "$@"; }
python="$1/bin/python"
pip --requirement "$1/requirements.txt"
pip "./packages/runtime[all]"
pip --no-deps . # its metadata ask for torch, which a server of exported files does not import
