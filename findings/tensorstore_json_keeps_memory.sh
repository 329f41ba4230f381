#!/usr/bin/env bash
# tensorstore 0.1.86 (Python 3.11, Linux): what its specs and metrics return as JSON is never given
# back. Each `KvStore.Spec.to_json()` of a spec of two keys keeps about 0.25 KiB, though the result
# is dropped at once and Python's garbage collector is run.
#
# Where two meet: Orbax 0.12.8 asks for such JSON several times for every array that it saves, so
# that a training's memory grows with its checkpoints: about 25 KiB a save of ten small arrays. A
# loop that saves often ("after every epoch of a tiny run") grows for ever, and a check for leaks in
# one's own code finds nothing, since the objects belong to no container.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "tensorstore==0.1.86" "orbax-checkpoint==0.12.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$folder/memory.py" <<'P'
import gc
import pathlib
import re
import sys


def held():
    gc.collect()
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1])  # KiB


def growth(work, warm, count):
    for _ in range(warm):
        work()
    before = held()
    for _ in range(count):
        work()
    return (held() - before) / count


if sys.argv[1] == "json":
    import tensorstore as ts

    spec = ts.KvStore.Spec({"driver": "file", "path": "/somewhere/"})
    found = growth(spec.to_json, 2000, 40000)
    assert spec.to_json() == {"driver": "file", "path": "/somewhere/"}
else:
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(sys.argv[2], options=ocp.CheckpointManagerOptions(max_to_keep=1))
    state = {f"w{i}": jnp.ones((8, 8)) for i in range(10)}
    steps = iter(range(10**6))

    def save():
        manager.save(next(steps), args=ocp.args.StandardSave(state))
        manager.wait_until_finished()

    found = growth(save, 60, 200)
    manager.close()
print(f"{sys.argv[1]}: {found:.2f} KiB kept a call")
assert found > float(sys.argv[3])
P
export JAX_PLATFORMS=cpu
"$folder/venv/bin/python" "$folder/memory.py" json - 0.1
"$folder/venv/bin/python" "$folder/memory.py" save "$folder/checkpoints" 10
