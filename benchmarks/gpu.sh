#!/bin/bash
# What a GPU machine should answer, in under 9 minutes: steps and samples a second, beside PyTorch,
# and where the time of a step goes. Needs jax, flax, optax and orbax there, a PyTorch to compare
# with, and what `wheels` fetches; no network and no data set.
#
#   benchmarks/gpu.sh wheels             where there is a network: makes .whl/, 17 MB, to be carried
#   benchmarks/gpu.sh run FOLDER         there, in the repository's root; PYTHON= names another python3
#   SMALL=1 benchmarks/gpu.sh run FOLDER on any machine: everything once, narrow, in small batches
#
# The parts stand in the order of what one wants to know first: the last may find no time left.
# Each part has a time limit of its own, and after each of them FOLDER/all.json and FOLDER/log.txt
# hold all that there is. Traces of the profiles, to be opened by Perfetto, come as .json.gz.
set -u
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
VERSION=${VERSION:-3.12} # of the Python there

wheels() {
  local platforms=() folder=.whl
  for name in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
  done
  "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version "$VERSION" \
    --implementation cp "${platforms[@]}" -d $folder \
    ml_collections==1.1.0 grain==0.2.18 array_record==0.8.6 tensorflow-datasets==4.9.10 \
    tensorflow-metadata==1.21.0 tensorboardX==2.6.5 immutabledict==4.3.1 toml==0.10.2 \
    portpicker==1.6.0 googleapis-common-protos==1.76.0 six==1.17.0 diffusers==0.42.1
  "$PYTHON" -m pip wheel -q --no-deps -w $folder promise==2.3 # which has no wheel of its own
  du -sh $folder
}

collect() { # what there is so far
  "$PYTHON" - "$WORK" "$OUT" "$1" "$2" "$3" <<'PY'
import json, pathlib, shutil, sys
work, out, part, code, seconds = sys.argv[1:]
work, out = pathlib.Path(work), pathlib.Path(out)
path = out / "all.json"
all_ = json.loads(path.read_text()) if path.exists() else {"parts": {}}
all_["parts"][part] = {"exit_code": int(code), "seconds": int(seconds)}
for name in sorted(work.glob("*.json")):
    all_[name.stem] = json.loads(name.read_text())
for name in sorted(work.glob("profile-*/**/table.json")):
    all_[name.relative_to(work).parts[0]] = json.loads(name.read_text())
path.write_text(json.dumps(all_, indent=1))
for name in work.glob("profile-*/**/perfetto_trace.json.gz"):
    shutil.copyfile(name, out / f"{name.relative_to(work).parts[0]}.json.gz")
PY
}

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS left=$((TOTAL - SECONDS))
  shift 2
  if [ $left -lt 15 ]; then
    echo "== $name: no time left" | tee -a "$OUT/log.txt"
    return
  fi
  echo "== $name: $*" | tee -a "$OUT/log.txt"
  timeout -k 5 $((limit < left ? limit : left)) "$@" >"$WORK/$name.log" 2>&1
  local code=$?
  tail -n 60 "$WORK/$name.log" | tee -a "$OUT/log.txt"
  echo "== $name: exit code $code after $((SECONDS - began)) s" | tee -a "$OUT/log.txt"
  collect "$name" $code $((SECONDS - began))
}

run() {
  OUT=$1 WORK=$(mktemp -d) TOTAL=${TOTAL:-525} # seconds
  mkdir -p "$OUT"
  trap 'rm -rf "$WORK"' EXIT
  export PYTHONPATH=.:$WORK/site PYTHONUNBUFFERED=1
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$WORK/compiled}
  if [ -d .whl ]; then # only what this Python lacks
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
      --target "$WORK/site" .whl/*.whl || exit
  fi
  local cifar=ddpm_cifar:bf16@ small=() often=(--rounds=3 --seconds=1) batch=512 large=1024
  local start=2000 loop=() compiled=,compiled
  if [ -n "${SMALL:-}" ]; then
    small=(--set=network.width=16 --set=network.groups=8 "--set=network.multipliers=(1,)"
      --set=network.blocks=1 --set=network.generator.width=8 --set=network.discriminator.width=8
      "--set=network.generator.widths=(16,16,16,16)" "--set=network.discriminator.widths=(16,16,16,16)"
      --set=train.batch_size=8)
    loop=(--config.network.width=16)
    often=(--rounds=2 --seconds=0.2) batch=4 large=8 start=20
    cifar=ddpm_cifar@ compiled="" # which take minutes on a CPU
  fi
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | tee "$OUT/log.txt"
  local speed=("$PYTHON" benchmarks/train_speed.py "${often[@]}" "${small[@]}")
  part cifar-$batch 210 "${speed[@]}" --configs=$cifar$batch --sides=ours,eager$compiled \
    --json="$WORK/cifar-$batch.json" --profile="$WORK/profile-cifar-$batch"
  part small-models 170 "${speed[@]}" --configs=vae_mnist,ddpm_digits,gan_digits \
    --sides=ours,auto,eager$compiled --json="$WORK/small-models.json"
  part sampling 80 "$PYTHON" benchmarks/sampling_speed.py --config=$cifar$batch "${small[@]}" \
    --json="$WORK/sampling.json"
  part loop 60 "$PYTHON" launch.py --config=configs/ddpm_digits.py --workdir="$WORK/profile-loop" \
    --profile=$start:20 --config.train.steps=$((start + 20)) --config.optimizer.schedule=constant \
    --config.log.every=$((start / 4)) --config.log.sample_every=0 --config.log.eval_every=0 \
    --config.log.first_sample=0 --config.checkpoint.best= --config.evaluation.at_end=False \
    --config.optimizer.warmup=0 "${loop[@]}"
  part cifar-$large 80 "${speed[@]}" --configs=$cifar$large --sides=ours \
    --json="$WORK/cifar-$large.json"
  part other-models 80 "${speed[@]}" --sides=ours,eager \
    --configs=dcgan_celeba64:bf16,vae_mnist:conv,gan_mnist:non_saturating,r3gan_cifar \
    --json="$WORK/other-models.json"
}

case ${1:-} in
  wheels) wheels ;;
  run) run "${2:?a folder for the results}" ;;
  *) sed -n '2,15p' "$0" ;;
esac
