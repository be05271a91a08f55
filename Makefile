# Inference with two release modes. `make` lists the targets, `make help-TARGET` its variables.

# The line `#: …` above a variable is its documentation: release/make_help.py reads it.

#: Python 3.11 or newer that creates .venv; default: the first of python3, python3.13, …
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

#: model store: a directory, file://, s3://, gs://, az://, or https:// (read only)
STORE = models
#: artifact directory below models/; `run` trains a missing artifact of a known data set
MODEL = $(STORE)/iris/1
#: release mode: model_in_image or model_load
MODE = model_in_image

#: data set to train on: iris, digits, or diabetes
DATASET = iris
#: CSV file to train on instead of DATASET
DATA =
#: column of DATA that the model predicts
TARGET =
#: classification or regression; empty: chosen from the values of TARGET
TASK =
#: model name; empty: the data set, or the name of the file
NAME =
#: model version; an existing version is never overwritten
VERSION = 1
#: alias that points to the new version, for example stable
ALIAS =
#: purpose of the model, written into the contract
PURPOSE =
#: owner of the model, written into the contract
OWNER =
#: ONNX file to publish
ONNX =
#: .npz file with sample rows for each input, which become the golden rows
SAMPLE =
#: class names of the output, separated by commas
LABELS =
#: inputs that take values which the previous run returned, separated by commas
STATE =
#: false: never run several requests in one batch; empty: decided with the golden rows
BATCHING =

#: port of the server
PORT = 8000
#: port of the server of mode model_in_image
IMAGE_PORT = 8000
#: port of the server of mode model_load
LOAD_PORT = 8001

#: tag of the server image; empty: the git revision
IMAGE_TAG =
#: prefix of the image names, for example registry.example/team
REGISTRY =
#: docker program; used by: test, build, build-model, sbom, deploy, canary, e2e, inventory, compatibility, prune
export DOCKER ?= docker

#: name of the kind cluster
CLUSTER = inference
#: Kubernetes namespace
NAMESPACE = inference
#: model_load gets the model from: volume, bucket, or image_volume; empty: depends on STORE
SOURCE =
#: memory of a server, for example 1Gi; empty: from k8s/, or computed from the model's size
MEMORY =
#: command that makes an image available in the cluster; the image is its last argument
LOAD_IMAGE = kind load docker-image --name '$(subst ','\'',$(CLUSTER))'
#: command that removes an image from the nodes, to measure a start without it
EVICT_IMAGE =
#: percentage of the replicas that are the canary's
WEIGHT = 25
#: 1: raise the share by STEPS, compare the tracks, then promote or abort
AUTO =
#: percentages of the replicas for AUTO=1; 100 promotes
STEPS = 10,25,50,100
#: seconds of each step
BAKE = 60
#: requests that each track needs for a decision in a step
MIN_REQUESTS = 500
#: minimum share of golden rows on which the canary predicts as the stable release does
AGREEMENT = 0.8
#: 1: only the short tests, 10 instead of 30 minutes
SHORT =

#: URLs of servers, separated by spaces; empty: all pods, or without a cluster `make run`
URLS =
#: table or json; for inventory also markdown or html
FORMAT =
#: lock files, separated by spaces
LOCK =
#: number of newest images to keep for each mode and model
KEEP = 3
#: 1: remove the images instead of listing them
YES =
#: directory of compatibility.json and compatibility.md
TO = docs

#: systems to measure, separated by commas; empty: all
SYSTEMS =
#: scenarios to measure, separated by commas; empty: all
SCENARIOS =
#: seconds of each measurement
SECONDS = 1
#: measurements of each system
ROUNDS = 9
#: 1: fail if this server misses a goal
CHECK =
#: 1: upgrade every package to its newest version
UPGRADE =

.DEFAULT_GOAL := help
.PHONY: help help-all setup setup-dev run test check format train contract serve predict build build-model sbom cluster deploy canary promote abort rollback destroy e2e inventory compatibility prune audit conformance bench lock

# Values from the command line (or from the environment, with `make -e`) are plain text: make must
# not expand `$` in them. `override` stops make from exporting such variables, so export them again.
user_variables := $(foreach name,$(filter-out MAKE%,$(.VARIABLES)),\
	$(if $(filter command override,$(origin $(name))),$(name)))
$(foreach name,$(user_variables),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

# make splits recipes at newlines, so the shell gets the newlines of a value from this variable.
define newline


endef
export newline
# $(call quoted,VALUE): the value as one word of the shell.
# $(call option,NAME,name): --name='value' if the variable NAME is not empty.
quoted = '$(subst $(newline),'"$$newline"',$(subst ','\'',$(1)))'
option = $(if $($(1)),--$(2)=$(call quoted,$($(1))))

##@ Start here
run: setup ## Train a model, start one server of each mode, and print their predictions
	@.venv/bin/python -m release run $(call option,MODEL,model) \
		$(call option,IMAGE_PORT,image-port) $(call option,LOAD_PORT,load-port)

test: setup-dev tests/node_modules/.package-lock.json ## Run the test suite
	@.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

# `## text` describes a target in `make help`, `##+ text` only in `make help-all`.
help: ## List the most important targets
	@$(call list_targets,## )
	@echo; echo "make help-all lists all targets, make help-deploy the variables of deploy."

help-all: ## List all targets
	@$(call list_targets,##[+]? )

help-%:
	@$(call quoted,$(PYTHON)) release/make_help.py $(call quoted,$*)

list_targets = awk 'BEGIN { FS = ":.*$(1)" } /^\#\#@ / { title = substr($$0, 5) } \
	/^[a-z0-9-]+:.*$(1)/ { if (title) print "\n" title; title = ""; printf "  make %-13s %s\n", $$1, $$2 }' Makefile

##@ Models
train: setup ## Train a model on DATASET or on a CSV file, and publish it to STORE
	@.venv/bin/python -m training train $(if $(DATA),,$(call option,DATASET,dataset)) \
		$(call option,DATA,data) $(call option,TARGET,target) $(call option,TASK,task) \
		$(call option,NAME,name) $(call option,VERSION,version) $(call option,STORE,store) \
		$(call option,ALIAS,alias) $(call option,PURPOSE,purpose) $(call option,OWNER,owner)

contract: setup ## Publish an ONNX file to STORE, with a contract
	@.venv/bin/python -m training contract $(call option,ONNX,onnx) $(call option,SAMPLE,sample) \
		$(call option,LABELS,labels) $(call option,STATE,state) $(call option,BATCHING,batching) \
		$(call option,NAME,name) $(call option,VERSION,version) $(call option,STORE,store) \
		$(call option,ALIAS,alias) $(call option,PURPOSE,purpose) $(call option,OWNER,owner)

##@ Servers
serve: setup ## Start one server of MODE with MODEL
	@$(if $(findstring <$(MODE)>,<model_in_image> <model_load>),,$(error MODE: expected model_in_image or model_load, got $(MODE)))
	@$(if $(filter model_load,$(MODE)),MODEL_URI,MODEL_DIR)=$(call quoted,$(MODEL)) PORT=$(call quoted,$(PORT)) \
		exec .venv/bin/python -m $(MODE)

predict: setup ## Print a prediction of the server on PORT, for a sample of its model
	@.venv/bin/python -m release predict --url http://127.0.0.1:$(call quoted,$(PORT))

##@ Images
build: setup ## Build the image of each mode with MODEL, which STORE must hold
	@.venv/bin/python -m release build $(call option,MODEL,model) \
		$(call option,STORE,store) $(call option,IMAGE_TAG,image-tag) $(call option,REGISTRY,registry)

build-model: setup ##+ Build an image that contains only MODEL, for a Kubernetes image volume
	@.venv/bin/python -m release build-model $(call option,MODEL,model) \
		$(call option,STORE,store) $(call option,REGISTRY,registry)

sbom: setup-dev ##+ Write a software bill of materials (CycloneDX) of each image into sbom/
	@.venv/bin/python -m release sbom --to=sbom $(call option,MODEL,model) \
		$(call option,STORE,store) $(call option,IMAGE_TAG,image-tag) $(call option,REGISTRY,registry)

##@ Kubernetes: the cluster of kubectl's current context
cluster: ## Create a local cluster with kind; its nodes mount models/ at /models
	@kind get clusters | grep -qxFe $(call quoted,$(CLUSTER)) || kind create cluster --name $(call quoted,$(CLUSTER)) --config k8s/kind.yaml

deploy: setup ## Deploy MODEL in MODE and wait until it predicts
	@.venv/bin/python -m release deploy $(release_options)

canary: setup ## Deploy MODEL beside the stable release, with WEIGHT percent of the replicas
	@.venv/bin/python -m release canary $(release_options) $(call option,WEIGHT,weight) \
		$(if $(filter 1,$(AUTO)),--auto) $(call option,STEPS,steps) $(call option,BAKE,bake) \
		$(call option,MIN_REQUESTS,min-requests) $(call option,AGREEMENT,agreement)

promote: setup ## Make the canary's release the stable release
	@.venv/bin/python -m release promote $(deployment_options) $(call option,STORE,store)

abort: setup ## End the canary; the stable release keeps serving
	@.venv/bin/python -m release abort $(deployment_options) $(call option,STORE,store)

rollback: setup ## Deploy the previous release again, image and model in one step
	@.venv/bin/python -m release rollback $(deployment_options) $(call option,STORE,store)

destroy: setup ## Remove the deployment of MODE and MODEL from the cluster
	@.venv/bin/python -m release destroy $(deployment_options)

e2e: setup-dev ##+ Test every kind of release on the cluster under load; 30 minutes
	@REGISTRY=$(call quoted,$(REGISTRY)) LOAD_IMAGE=$(call quoted,$(LOAD_IMAGE)) \
		EVICT_IMAGE=$(call quoted,$(EVICT_IMAGE)) SHORT=$(call quoted,$(SHORT)) \
		.venv/bin/python -m pytest tests/e2e -x --capture=no $(if $(filter 1,$(SHORT)),-m short)

# The options of commands that change a deployment, and of those that also need an image.
deployment_options = $(call option,MODE,mode) $(call option,MODEL,model) $(call option,NAMESPACE,namespace)
release_options = $(deployment_options) $(call option,STORE,store) $(call option,SOURCE,source) $(call option,MEMORY,memory) \
	$(call option,IMAGE_TAG,image-tag) $(call option,REGISTRY,registry) \
	--load-image=$(call quoted,$(LOAD_IMAGE)) --record=$(call quoted,$(TO)/compatibility.json)

##@ Inspect and clean up
inventory: setup ## List what each running replica serves; fails if anything disagrees
	@.venv/bin/python -m release inventory $(call option,URLS,urls) $(call option,STORE,store) \
		$(call option,FORMAT,format)

compatibility: setup ##+ Load every model of STORE in every server image, and record the results
	@.venv/bin/python -m release compatibility $(call option,STORE,store) \
		$(call option,TO,to) $(call option,REGISTRY,registry) \
		$(foreach file,$(LOCK),--lock=$(call quoted,$(file)))

prune: setup ##+ List images that nothing needs, with their sizes; YES=1 removes them
	@.venv/bin/python -m release prune $(call option,STORE,store) \
		$(call option,KEEP,keep) $(call option,REGISTRY,registry) $(if $(filter 1,$(YES)),--yes)

audit: setup ##+ Check locked packages and images for vulnerabilities and end-of-life dates
	@.venv/bin/python -m release audit $(foreach file,$(LOCK),--lock=$(call quoted,$(file))) \
		$(call option,FORMAT,format)

##@ Development
check: setup-dev ## Check formatting, lint, types, imports, wording, lock files, and docs
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo --no-cache
	@.venv/bin/python -m pytest -q tests/test_lock.py tests/test_docs.py tests/test_wording.py

bench: setup ##+ Measure this server and comparable servers side by side, with wrk
	@.venv/bin/python -m benchmarks $(call option,SYSTEMS,systems) $(call option,SCENARIOS,scenarios) \
		$(call option,SECONDS,seconds) $(call option,ROUNDS,rounds) $(if $(filter 1,$(CHECK)),--check)

conformance: setup-dev ##+ Serve the 2,000 test cases of ONNX and list the rejected ones; two minutes
	@.venv/bin/python -m tests.conformance

format: setup-dev ##+ Format the code and apply the fixes of the linter
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

lock: setup-dev ##+ Resolve the dependencies of pyproject.toml and write the lock files
	@$(lock) requirements-dev.txt --group training --group test --group release --group dev
	@$(lock) requirements.txt --constraints requirements-dev.txt --group training --group test --group release
	@$(lock) serving/requirements.txt --constraints requirements-dev.txt

# One resolution for every supported Python: the other lock files are slices of the first.
lock = .venv/bin/uv pip compile -q pyproject.toml --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --custom-compile-command "make lock" \
	$(if $(UPGRADE),--upgrade) --output-file

##@ Set-up (every other target runs it first)
setup: .venv/installed ## Install requirements.txt into .venv
setup-dev: .venv/installed-dev ##+ Install requirements-dev.txt into .venv

install = .venv/bin/python -m pip install --disable-pip-version-check --no-input --quiet --require-hashes

.venv/installed: requirements.txt
	@test -n $(call quoted,$(PYTHON)) || { echo "PYTHON: expected Python 3.11 or newer, got $$(python3 --version 2>&1)" >&2; exit 1; }
	@echo "Installing requirements.txt into .venv, once: about a minute"
	@$(call quoted,$(PYTHON)) -m venv .venv
	@$(install) -r requirements.txt
	@touch $@

# azurite, the local Azure store of the tests, is an npm package. Without npm its tests are skipped.
tests/node_modules/.package-lock.json: tests/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix tests --ignore-scripts --no-audit --no-fund --silent; fi

.venv/installed-dev: requirements-dev.txt .venv/installed
	@$(install) -r requirements-dev.txt
	@touch $@
