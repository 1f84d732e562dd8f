#!/bin/bash
# All of benchmarks/cycle.py on one GPU and sixteen cores, in a quarter of an hour and more:
#
#     bash benchmarks/cycle_gpu.sh OUT SECONDS      # of training of each of the two models
#
# OUT has autoencoder-folded-32 and judge (cycle_autoencoder.py, cycle_judge.py). The models take as
# many steps as they have time for, told by a short run of both at once. Files OUT/people.done,
# latents.done and full.done say how far it is. Interrupted, the same command goes on.
set -u
out=$1 seconds=$2 here=$(dirname "$0")
n=${N:-1000} val=${VAL:-40} test=${TEST:-200} fine=${FINE:-800} judged=${JUDGED:-30} probe=${PROBE:-100}
device=${DEVICE:-cuda} python=${PYTHON:-python}
export OMP_NUM_THREADS=1
run() { local log=$1; shift; $python "$here/$@" > "$out/$log.log" 2>&1 || echo "$log failed"; }
cycle() { [ -f "$out/$2/unet.safetensors" ] || run "$2" cycle.py "$1" --name "$2" --out "$out" --device "$device" "${@:3}"; }

run people cycle_people.py --out "$out" --n $n --val $val --test $test --workers 16
touch "$out/people.done"
for k in 0 1 2 3 4 5; do run latents-$k cycle_latents.py --out "$out" --device "$device" --part $k/6 & done
run truths cycle_compare.py truths --out "$out" --names - --people $judged --workers 8 &
wait
touch "$out/latents.done"
run mean cycle_mean.py --out "$out" --people $judged &

model="--channels ${CHANNELS:-64 128} --shift 8 --latent-scale voxel --rate 1e-3 --batch ${BATCH:-32} --ema 0.998"
pace() { grep -oE '[0-9.]+ s/step' "$out/$1.log" | tail -1 | cut -d' ' -f1; }
probe() { cycle ldm probe$1 $model --steps $probe --report-every $probe ${@:2}; }
if [ ! -f "$out/steps" ]; then
    probe 1 & first=$!; probe 2 --latent-mean & second=$!; wait $first $second
    awk -v s="$seconds" -v p="$(pace probe1)" 'BEGIN { printf "%d", s / (p * 1.05) }' > "$out/steps"
fi
steps=$(cat "$out/steps")
echo "$steps steps"
train() { cycle ldm $1 $model --steps $steps --report-every $((steps / 6 + 1)) ${@:2}; }
train fullmean --latent-mean & second=$!; train full; touch "$out/full.done"; wait $second

fit="--steps $fine --batch 8 --rate 1e-4 --ema 0.99 --report-every $fine"
tuned=()
for source in full fullmean; do for seed in 1 2 3; do
    cycle more ${source}plain-$seed --source $source --seed $seed $fit & tuned+=($!)
    cycle cycle ${source}cycle-$seed --source $source --seed $seed $fit & tuned+=($!)
done; done
wait "${tuned[@]}"

compare() { run compare-$1-$2 cycle_compare.py make --out "$out" --guidance $1 --names ${@:2} --people $judged --device "$device" --sampling 25 --inversion 12; }
judging=()
compare 1 real decoded copy ridge & judging+=($!)
for source in full fullmean; do
    compare 1 $source & judging+=($!); compare 2 $source & judging+=($!)
    for seed in 1 2 3; do
        compare 1 ${source}plain-$seed ${source}cycle-$seed & judging+=($!)
    done
done
wait "${judging[@]}"
for seed in 1 2 3; do compare 2 fullplain-$seed fullcycle-$seed & done
wait
for g in 1 2; do
    run table-$g cycle_compare.py table --out "$out" --guidance $g --control fullplain --names full fullcycle copy ridge decoded real
    run table-mean-$g cycle_compare.py table --out "$out" --guidance $g --control fullmeanplain --names fullmean fullmeancycle
done
cat "$out"/table-*.log
