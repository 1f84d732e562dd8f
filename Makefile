PYTHON ?= python3
# Pinned for development and CI; users may bring any torch >= 2.8 (pyproject.toml).
TORCH ?= torch==2.13.0
BIN := .venv/bin
BUILD ?= build
# The scan of `make demo`; the default is the MNI152 template that comes with nilearn.
SCAN ?= $(BUILD)/demo/mni152_T1w.nii.gz
FROM ?=
AGE ?= +30

.PHONY: venv demo test browser check bench default-bundle

venv: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q $(TORCH) -e '.[dev,sd]'
	touch $@

demo: venv $(SCAN)
	$(BIN)/cfgen counterfactual --in $(SCAN) $(if $(FROM),--from $(FROM)) --age $(AGE) \
		--out $(BUILD)/demo --diff --overwrite
	@echo "Pictures and images are in $(BUILD)/demo"

$(BUILD)/demo/mni152_T1w.nii.gz: | venv
	$(BIN)/python benchmarks/demo_scan.py $@

# A process a core with one thread each: small networks gain little from more.
test: venv browser check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# The report's controls are tested in a browser. Where it cannot be installed those tests skip.
browser:
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends chromium > /dev/null; } || \
		echo "chromium is not here and cannot be installed: its tests skip"

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# DATA is a folder with participants.csv: subject, age, sex, split, image, labels (brain labels).
bench: venv
	$(BIN)/python benchmarks/speed.py --bundle cfgen/bundles/default
	$(BIN)/python benchmarks/validate.py --data $(DATA) --bundle cfgen/bundles/default \
		--out $(BUILD)/validate

# Every step goes on where it stopped when the same command is run again. LABEL_MAPS is a folder of
# whole-head label maps in FreeSurfer's codes; the shipped segmenter saw training_seg_01 to 16 of
# BBillot/SynthSeg. VOLUMES is a table of DLMUSE volumes of IXI's original scans with their sites.
default-bundle: venv
	$(BIN)/cfgen preprocess --manifest $(DATA)/participants.csv --out $(BUILD)/prepared
	$(BIN)/cfgen train-ae --manifest $(BUILD)/prepared/manifest.csv --out $(BUILD)/1-ae \
		--about data_manifests/ixi_about.json
	$(BIN)/cfgen train-predictor --manifest $(BUILD)/prepared/manifest.csv \
		--bundle $(BUILD)/1-ae --out $(BUILD)/2-predictor
	$(BIN)/cfgen train-ldm --manifest $(BUILD)/prepared/manifest.csv \
		--bundle $(BUILD)/2-predictor --out $(BUILD)/3-ldm
	$(BIN)/cfgen train-segmenter --manifest $(DATA)/participants.csv \
		--label-maps $(LABEL_MAPS) --bundle $(BUILD)/3-ldm --out $(BUILD)/4-segmenter
	$(BIN)/cfgen train-segmenter --manifest $(DATA)/participants.csv \
		--label-maps $(LABEL_MAPS) --bundle $(BUILD)/4-segmenter --init $(BUILD)/4-segmenter \
		--steps 4500 --learning-rate 6e-4 --out $(BUILD)/5-segmenter
	$(BIN)/cfgen train-predictor --manifest $(BUILD)/prepared/manifest.csv \
		--target age --target sex --target volumes \
		--bundle $(BUILD)/5-segmenter --out $(BUILD)/6-judge
	$(BIN)/python benchmarks/ixi_volumes.py --data $(DATA) --table $(VOLUMES) \
		--out $(BUILD)/ixi_volumes.csv
	$(BIN)/cfgen fit-scm --table $(BUILD)/ixi_volumes.csv --missing site --prior none \
		--bundle $(BUILD)/6-judge --out $(BUILD)/7-scm --overwrite
	$(BIN)/cfgen train-ae --manifest $(BUILD)/prepared/manifest.csv --decoder diffusion \
		--init $(BUILD)/7-scm --out $(BUILD)/default
	mkdir -p cfgen/bundles/default
	cp $(BUILD)/default/bundle.json $(BUILD)/default/*.safetensors cfgen/bundles/default
