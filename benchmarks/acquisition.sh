#!/bin/bash
# cDDGM's questions 1 to 3 on simulated people, from nothing: half a day of two cores.
#
#     bash benchmarks/acquisition.sh OUT
#
# Q1 and Q2 (Tables 1, 3 and 4) for scanners at random and scanners that age decides, Q3 (Table 2) for
# two vendors. Tables are OUT/tables-COHORT.txt and OUT/segmentation/table.txt. Interrupted, the same
# command goes on.
set -eu
mkdir -p "$1"
out=$1 here=$(dirname "$0") python=${PYTHON:-python}
export OMP_NUM_THREADS=1
run() { $python "$here/acquisition_$1.py" --out "$out" "${@:2}"; }

run people --cohorts randomised --people 600
run people --cohorts confounded --people 210
run autoencoder
run depth
for cohort in randomised confounded; do
    [ -d "$out/shifted-$cohort" ] || run diffusion train --cohort $cohort --model shifted \
        --bundle "$out/folded" --seconds 900 --channels 32 64 --batch 8 --rate 1e-3
    run diffusion edit --cohort $cohort --model shifted
    [ -d "$out/edits/beside-$cohort" ] || run beside --cohort $cohort
    run measure --cohort $cohort
    run tables --cohort $cohort > "$out/tables-$cohort.txt"
    run axioms --cohort $cohort --model shifted
done

vendors=$out/segmentation
mkdir -p "$vendors"
study() { $python "$here/acquisition_segmentation.py" --out "$vendors" "$@"; }
study --seeds
made() { cfgen augment-iap --manifest "$vendors/$1/train.csv" --from-manifest "$vendors/$2/train.csv" \
    --sample 1 --out "$vendors/$3"; }
made A B a-like-b
made B A b-like-a
study --seeds 0 1 2 3 4 --made "physics=$vendors/a-like-b,$vendors/b-like-a" > "$vendors/table.txt"
