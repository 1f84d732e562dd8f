#!/bin/bash
# What takes masks, and two decoders, trained on the same people on one GPU and sixteen cores:
#
#     bash benchmarks/control_gpu.sh PEOPLE OUT SECONDS      # of training of each
#
# PEOPLE is a folder of benchmarks/cycle_ixi.py without --simulated, or of cycle_people.py with a
# bundle BUNDLE. Beside concatenation: with the contrastive term, and as a control network. Each is
# told of in OUT/figures-KIND.csv; decoders are measured by decoders.py. Interrupted, the same
# command goes on.
set -u
people=$1 out=$2 seconds=$3 here=$(dirname "$0")
bundle=${BUNDLE:-default} n=${N:-120} val=${VAL:-31} batch=${BATCH:-8} workers=${WORKERS:-12}
kinds=${KINDS:-concatenate concatenate-contrastive masks} device=${DEVICE:-cuda} python=${PYTHON:-python}
export OMP_NUM_THREADS=2
mkdir -p "$out"
run() { local log=$1; shift; $python "$here/$@" > "$out/$log.log" 2>&1 || echo "$log failed"; }
decoders() { run $1 decoders.py $1 --people "$people" --out "$out" --n $n --device "$device" --threads 2 --seconds $(($2 * seconds / 10)); }
control() { run $1 control.py --people "$people" --bundle "$bundle" --out "$out" --n $n --val $val --batch $batch --rate 5e-4 --ema 0.998 --device "$device" --threads 2 --workers 0 --kinds $1 --seconds $seconds; }

run latents-0 cycle_latents.py --out "$people" --device "$device" --part 0/2 & latents=($!)
run latents-1 cycle_latents.py --out "$people" --device "$device" --part 1/2 & latents+=($!)
wait ${latents[0]} ${latents[1]}
run reading control.py --people "$people" --bundle "$bundle" --out "$out" --n $n --val $val --workers $workers --masks-only & reading=$!
# In the time that reading takes they are ahead.
for stage in ${DECODERS:-decoder causal}; do decoders $stage 11 & done
wait $reading
for kind in $kinds; do control $kind & done
wait
tail -n 3 "$out"/*.log
