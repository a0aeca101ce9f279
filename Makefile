# Each target calls something that can also be called by hand.
.PHONY: help demo test test-long check lint types unit infra venv venv-dev lock bench bench-drawn bench-artifacts bench-sync bench-results bench-record bench-growth dist down clean docs site
.DEFAULT_GOAL := help
VENV := .venv/bin
# uv installs sources alone: where Python may not keep what it compiles, each ansible-playbook compiles Ansible, and each
# training MLflow, anew (8 s instead of 2).
unexport PYTHONDONTWRITEBYTECODE

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 18

demo: venv ## a rehearsal cloud, a deployed server, a training run: from nothing
	@$(VENV)/python scripts/dev/demo.py

test: venv-dev ## everything that this machine can test
	@scripts/dev/test.sh

test-long: venv-dev ## the long series: deployments that are killed forty times
	@scripts/dev/test.sh -m long

check: venv-dev ## lint, types, unit tests and terraform's: no machines
	@scripts/dev/check.sh

lint types unit infra: venv-dev
	@scripts/dev/check.sh $@

bench: venv-dev ## the kit's server against the usual `mlflow server`, on the rehearsal
	@$(VENV)/python scripts/dev/bench.py

bench-drawn: venv-dev ## how long a person waits for the page of an experiment, in Chromium, on the rehearsal
	@$(VENV)/python scripts/dev/bench_drawn.py

bench-artifacts: venv-dev ## artifacts by keys of the store against artifacts through the server, on the rehearsal
	@$(VENV)/python scripts/dev/bench_artifacts.py

bench-sync: venv-dev ## labtrack sync against its peers, on a server of its own
	@$(VENV)/python scripts/dev/bench_sync.py

bench-results: venv-dev ## leaderboard, compare, search and export beside MLflow's own, on recordings
	@$(VENV)/python scripts/dev/bench_results.py

bench-record: venv-dev ## what log_metric costs a training, by the recorder and by MLflow's own
	@$(VENV)/python scripts/dev/bench_record.py

bench-growth: venv-dev ## how what a lab waits for grows with what it has recorded, on servers of its own
	@$(VENV)/python scripts/dev/bench_growth.py

dist: venv-dev ## dist/: wheels to install without network, and labtrack.pyz, one file to run
	@$(VENV)/python scripts/dev/dist.py

down: ## stop and remove the rehearsal, put the host back
	@scripts/dev/down.sh

clean: down ## down, and remove caches and .venv
	@scripts/dev/clean.sh

docs: venv-dev ## write the generated pages of docs/reference
	@$(VENV)/python scripts/dev/docs.py

site: venv-dev ## the documentation as pages with a search, in site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs build --strict

venv: .venv/.complete ## .venv with what an admin's machine runs
.venv/.complete: scripts/dev/venv.sh requirements/admin.txt pyproject.toml
	@scripts/dev/venv.sh

venv-dev: .venv/.dev
.venv/.dev: scripts/dev/venv.sh requirements/dev.txt pyproject.toml
	@scripts/dev/venv.sh dev

lock: ## resolve requirements/*.in again
	@scripts/dev/lock.sh
