#!/bin/sh
# The steps of the Dockerfile without a container engine: install into a fresh environment, begin the server as the image does,
# send a picture, and compare its mask with that of `ulna-runtime predict`. Takes one or two minutes: sh container/try.sh
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
server=""
trap 'test -z "$server" || kill "$server"; rm -rf "$folder"' EXIT
copy="$folder/copy"
mkdir -p "$copy/packages"
# what the Dockerfile copies, and nothing else
for part in pyproject.toml setup.py README.md LICENSE constraints.txt container src; do cp -r "$root/$part" "$copy/$part"; done
cp -r "$root/packages/runtime" "$copy/packages/runtime"
env -u PYTHONPATH sh "$copy/container/install.sh" "$folder/ulna"
bin="$folder/ulna/bin"
cd "$folder"
unset PYTHONPATH
if "$bin/python" -c "import torch" 2> /dev/null; then echo "torch is there"; exit 1; fi
"$bin/python" -c "
import numpy, PIL.Image
PIL.Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (70, 90, 3), numpy.uint8)).save('a.png')"
ULNA_TOKEN=0123456789abcdef "$bin/ulna" serve --host 0.0.0.0 --port 8399 --threads 1 zoo:nuclei &
server=$!
cat > ask.py << 'END'
import json, sys, time, urllib.request
def ask(path, data=None, headers={}):
    headers = {"Authorization": "Bearer 0123456789abcdef", **headers}
    return urllib.request.urlopen(urllib.request.Request("http://localhost:8399" + path, data, headers)).read()
for _ in range(300):
    try:
        ask("/health")
        break
    except OSError:
        time.sleep(0.2)
job = json.loads(ask("/jobs", open("a.png", "rb").read(), {"X-File-Name": "a.png", "Content-Type": "application/octet-stream"}))
while (now := json.loads(ask("/jobs/" + job["id"])))["state"] not in ("done", "failed"):
    time.sleep(0.1)
assert now["state"] == "done", now
open("mask.png", "wb").write(ask("/jobs/" + job["id"] + "/mask"))
END
"$bin/python" ask.py
"$bin/ulna-runtime" predict zoo:nuclei a.png --out masks --threads 1
"$bin/python" -c "
import numpy, PIL.Image
served, own = (numpy.asarray(PIL.Image.open(name)) for name in ('mask.png', 'masks/a.png'))
assert ((served != 0) == (own != 0)).all() and served.any()"
echo "installed, served, and answered as ulna-runtime does: $(du -sm ulna | cut -f1) MB"
