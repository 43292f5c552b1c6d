# The menu; every target says what it does. `make demo` and `make test` work from nothing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
INVENTORY ?= inventory/lab.yml
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# A lab inventory is reached from inside the lab's network, any other one directly.
INSIDE := $(if $(findstring inventory/lab.yml,$(INVENTORY)),bin/lab run,)

.PHONY: help setup demo test lint unit console integration molecule conformance bench site monitoring down locks clean

help: ## this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## system packages and .venv, from the hashed lock
	@bin/setup

demo: ## the whole site in a lab on this machine, and a question to each model
	@bin/demo

test: ## all checks and tests, from nothing (uses the lab; its hosts are reset)
	@bin/setup && .venv/bin/python bin/test

lint: setup ## ruff, mypy, yamllint, ansible-lint
	@.venv/bin/python bin/test lint

unit: setup ## the package's own tests, without a lab
	@.venv/bin/python bin/test unit

console: setup ## the console in a real Chromium, without a lab
	@.venv/bin/python bin/test console

integration: setup ## the gateway and real vLLM in the running lab, through the official client
	@bin/lab run pytest tests/integration

molecule: setup ## one scenario a role: make molecule SCENARIO=gateway
	@.venv/bin/python bin/test $(if $(SCENARIO),molecule-$(SCENARIO),molecule)

conformance: setup ## is every host what the requirements promise? INVENTORY=inventory/production.yml
	@$(INSIDE) pytest roles --ansible-inventory=$(INVENTORY) --hosts=ansible://llm_servers

bench: setup ## the gateway beside its peers, on one core each: make bench BENCH=--quick
	@.venv/bin/python bin/bench $(BENCH)

site: setup ## play the site again on the running lab: make site TAGS=gateway
	@$(INSIDE) ansible-playbook playbooks/site.yml -i $(INVENTORY) $(if $(TAGS),--tags $(TAGS),)

monitoring: setup ## write files/dashboards, files/rules and docs/runbooks.md anew, from code and citadel_models
	@python -m citadel_monitoring

down: ## stop the lab; leaves no process, mount, namespace or interface
	@bin/lab down

locks: setup ## resolve files/requirements/*.in anew
	@bin/locks

clean: down ## the lab's state and the build folder too
	@rm -rf .lab build
