# Inference with two release modes. `make` lists the targets; variables are in capitals.

# The first Python that is new enough; PYTHON=… chooses another.
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

STORE = models
DATASET = iris
VERSION = 1
NAME =
ALIAS =
PURPOSE =
OWNER =
DATA =
TARGET =
TASK =
ONNX =
SAMPLE =
LABELS =
STATE =
BATCHING =
UPGRADE =

URLS =
FORMAT =
LOCK =
KEEP = 3
YES =
TO = docs
NAMESPACE = inference
SOURCE =
MEMORY =
CLUSTER = inference
LOAD_IMAGE = kind load docker-image --name '$(subst ','\'',$(CLUSTER))'
EVICT_IMAGE =
SHORT =
WEIGHT = 25
AUTO =
STEPS = 10,25,50,100
BAKE = 60
MIN_REQUESTS = 500
AGREEMENT = 0.8
SYSTEMS =
SCENARIOS =
SECONDS = 1
ROUNDS = 9
CHECK =
IMAGE_TAG =
REGISTRY =
# For the tools and the tests.
export DOCKER ?= docker

MODE = model_in_image
MODEL = $(STORE)/iris/1
PORT = 8000
IMAGE_PORT = 8000
LOAD_PORT = 8001

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run test check format train contract serve predict build build-model sbom cluster deploy canary promote abort rollback destroy e2e inventory compatibility prune audit conformance bench lock

# A value from the command line (or the environment, with `make -e`) is text: make must not expand
# a `$` in it. `override` ends the export that make gives such variables, so export them again.
user_variables := $(foreach name,$(filter-out MAKE%,$(.VARIABLES)),\
	$(if $(filter command override,$(origin $(name))),$(name)))
$(foreach name,$(user_variables),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

# make splits a recipe at newlines: the shell reads those of a value from this variable.
define newline


endef
export newline
# A value, quoted for the shell, and an option: --name='value' for a variable that is set.
quoted = '$(subst $(newline),'"$$newline"',$(subst ','\'',$(1)))'
option = $(if $($(1)),--$(2)=$(call quoted,$($(1))))

##@ Start here
run: setup ## Train MODEL=models/iris/1 if it is not there, start both servers, show a prediction from each
	@.venv/bin/python -m release run $(call option,MODEL,model) \
		$(call option,IMAGE_PORT,image-port) $(call option,LOAD_PORT,load-port)

test: setup-dev tests/node_modules/.package-lock.json ## Run the whole test suite
	@.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Models
train: setup ## Train DATASET=iris|digits|diabetes (or DATA=file.csv TARGET=column NAME=…) as VERSION=1 into STORE=models, with ALIAS=…
	@.venv/bin/python -m training train $(if $(DATA),,$(call option,DATASET,dataset)) \
		$(call option,DATA,data) $(call option,TARGET,target) $(call option,TASK,task) \
		$(call option,NAME,name) $(call option,VERSION,version) $(call option,STORE,store) \
		$(call option,ALIAS,alias) $(call option,PURPOSE,purpose) $(call option,OWNER,owner)

contract: setup ## Make an artifact from any ONNX=file.onnx: NAME=… VERSION=… PURPOSE=… SAMPLE=rows.npz LABELS=a,b,c STATE=h,c BATCHING=false
	@.venv/bin/python -m training contract $(call option,ONNX,onnx) $(call option,SAMPLE,sample) \
		$(call option,LABELS,labels) $(call option,STATE,state) $(call option,BATCHING,batching) \
		$(call option,NAME,name) $(call option,VERSION,version) $(call option,STORE,store) \
		$(call option,ALIAS,alias) $(call option,PURPOSE,purpose) $(call option,OWNER,owner)

##@ Servers
serve: setup ## Start one server: MODE=model_in_image|model_load MODEL=models/iris/1 PORT=8000
	@$(if $(findstring <$(MODE)>,<model_in_image> <model_load>),,$(error MODE: expected model_in_image or model_load, got $(MODE)))
	@$(if $(filter model_load,$(MODE)),MODEL_URI,MODEL_DIR)=$(call quoted,$(MODEL)) PORT=$(call quoted,$(PORT)) \
		exec .venv/bin/python -m $(MODE)

predict: setup ## Ask the server on PORT=8000 for a prediction of its own sample
	@.venv/bin/python -m release predict --url http://127.0.0.1:$(call quoted,$(PORT))

##@ Images
build: setup ## Build both images with MODEL=models/iris/1, which STORE=models must hold; IMAGE_TAG=… REGISTRY=… DOCKER=docker
	@.venv/bin/python -m release build $(call option,MODEL,model) \
		$(call option,STORE,store) $(call option,IMAGE_TAG,image-tag) $(call option,REGISTRY,registry)

build-model: setup ## Build an image of MODEL=models/iris/1 alone, which Kubernetes can mount
	@.venv/bin/python -m release build-model $(call option,MODEL,model) \
		$(call option,STORE,store) $(call option,REGISTRY,registry)

sbom: setup-dev ## Write what is in the images that were built, as CycloneDX, into sbom/
	@.venv/bin/python -m release sbom --to=sbom $(call option,MODEL,model) \
		$(call option,STORE,store) $(call option,IMAGE_TAG,image-tag) $(call option,REGISTRY,registry)

##@ Kubernetes: the cluster of kubectl's current context
cluster: ## Make a cluster with kind, which has this folder's models/ at /models
	@kind get clusters | grep -qxFe $(call quoted,$(CLUSTER)) || kind create cluster --name $(call quoted,$(CLUSTER)) --config k8s/kind.yaml

deploy: setup ## Roll out MODE=… MODEL=models/iris/1 and wait until it predicts: SOURCE=volume|bucket|image_volume LOAD_IMAGE="kind load …"
	@.venv/bin/python -m release deploy $(options_of_pair)

canary: setup ## Try a release beside the running one: WEIGHT=25, or AUTO=1 STEPS=10,25,50,100 BAKE=60 MIN_REQUESTS=500 AGREEMENT=0.8
	@.venv/bin/python -m release canary $(options_of_pair) $(call option,WEIGHT,weight) \
		$(if $(filter 1,$(AUTO)),--auto) $(call option,STEPS,steps) $(call option,BAKE,bake) \
		$(call option,MIN_REQUESTS,min-requests) $(call option,AGREEMENT,agreement)

promote: setup ## Make the canary's release the stable one
	@.venv/bin/python -m release promote $(options_of_release) $(call option,STORE,store)

abort: setup ## End the canary; the stable release serves on
	@.venv/bin/python -m release abort $(options_of_release) $(call option,STORE,store)

rollback: setup ## Bring back the release before, image and model in one step
	@.venv/bin/python -m release rollback $(options_of_release) $(call option,STORE,store)

destroy: setup ## Remove the release of MODE=… MODEL=… from the cluster
	@.venv/bin/python -m release destroy $(options_of_release)

e2e: setup-dev ## Prove the cluster: every kind of release under steady load, then start-up and scale-out measured; some 30 minutes; SHORT=1 takes 10
	@REGISTRY=$(call quoted,$(REGISTRY)) LOAD_IMAGE=$(call quoted,$(LOAD_IMAGE)) \
		EVICT_IMAGE=$(call quoted,$(EVICT_IMAGE)) SHORT=$(call quoted,$(SHORT)) \
		.venv/bin/python -m pytest tests/e2e -x --capture=no $(if $(filter 1,$(SHORT)),-m short)

options_of_release = $(call option,MODE,mode) $(call option,MODEL,model) $(call option,NAMESPACE,namespace)
options_of_pair = $(options_of_release) $(call option,STORE,store) $(call option,SOURCE,source) $(call option,MEMORY,memory) \
	$(call option,IMAGE_TAG,image-tag) $(call option,REGISTRY,registry) \
	--load-image=$(call quoted,$(LOAD_IMAGE)) --record=$(call quoted,$(TO)/compatibility.json)

##@ The record
inventory: setup ## Ask the cluster, or the servers at URLS="http://…", what they are: FORMAT=table|json|markdown|html; fails when anything does not agree
	@.venv/bin/python -m release inventory $(call option,URLS,urls) $(call option,STORE,store) \
		$(call option,FORMAT,format)

compatibility: setup ## Find which server image (and LOCK=requirements.txt) serves which model of STORE=models, into TO=docs
	@.venv/bin/python -m release compatibility $(call option,STORE,store) \
		$(call option,TO,to) $(call option,REGISTRY,registry) \
		$(foreach file,$(LOCK),--lock=$(call quoted,$(file)))

prune: setup ## Show the images that nothing runs and no rollback needs, and what they cost; YES=1 removes them; KEEP=3 REGISTRY=…
	@.venv/bin/python -m release prune $(call option,STORE,store) \
		$(call option,KEEP,keep) $(call option,REGISTRY,registry) $(if $(filter 1,$(YES)),--yes)

audit: setup ## Check locks, base images and SBOMs for known vulnerabilities and ends of life: FORMAT=json LOCK=file
	@.venv/bin/python -m release audit $(foreach file,$(LOCK),--lock=$(call quoted,$(file))) \
		$(call option,FORMAT,format)

##@ Development
check: setup-dev ## Lint, format, types; locks and README in step with the code
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo --no-cache
	@.venv/bin/python -m pytest -q tests/test_lock.py tests/test_docs.py tests/test_wording.py

bench: setup ## Measure this server, its peers and the limit side by side, with wrk: SYSTEMS=a,b SCENARIOS=a,b SECONDS=1 ROUNDS=9 CHECK=1
	@.venv/bin/python -m benchmarks $(call option,SYSTEMS,systems) $(call option,SCENARIOS,scenarios) \
		$(call option,SECONDS,seconds) $(call option,ROUNDS,rounds) $(if $(filter 1,$(CHECK)),--check)

conformance: setup-dev ## Serve ONNX's own test cases, some 2,000; say which are refused, and why; two minutes
	@.venv/bin/python -m tests.conformance

format: setup-dev ## Format the code and mend what the linter can
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

lock: setup-dev ## Write the locks again from pyproject.toml; UPGRADE=1 takes the newest versions
	@$(lock) requirements-dev.txt --group training --group test --group release --group dev
	@$(lock) requirements.txt --constraints requirements-dev.txt --group training --group test --group release
	@$(lock) serving/requirements.txt --constraints requirements-dev.txt

# One resolution for every Python; the smaller locks are slices of the first.
lock = .venv/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --custom-compile-command "make lock" \
	$(if $(UPGRADE),--upgrade) --output-file

##@ Set-up (every other target does it by itself)
setup: .venv/installed ## Install requirements.txt into .venv
setup-dev: .venv/installed-dev

install = .venv/bin/python -m pip install --disable-pip-version-check --no-input --quiet --require-hashes

.venv/installed: requirements.txt
	@test -n $(call quoted,$(PYTHON)) || { echo "Python 3.11 or newer is needed; found: $$(python3 --version 2>&1)" >&2; exit 1; }
	@echo "Installing requirements.txt into .venv, once: about a minute"
	@$(call quoted,$(PYTHON)) -m venv .venv
	@$(install) -r requirements.txt
	@touch $@

# Azure's stand-in is an npm package; without npm its tests are skipped, and say so.
tests/node_modules/.package-lock.json: tests/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix tests --ignore-scripts --no-audit --no-fund --silent; fi

.venv/installed-dev: requirements-dev.txt .venv/installed
	@$(install) -r requirements-dev.txt
	@touch $@
