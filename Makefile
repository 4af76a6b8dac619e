.PHONY: help demo miniature nudged real-bases test bench docs docs-serve readme quarto export clean venv
unexport PYTHONPATH PYTHONHOME

help:                 ## show this list
	@echo 'PYTHON=python3.12 make ... chooses the interpreter. Targets:'
	@sed -n 's/^\([a-z-]*\):[^#]*##/  make \1\t/p' Makefile

demo: venv            ## train the embedded default into runs/demo/ and print a summary
	@.venv/bin/rm-run demo --overwrite_output_dir True

miniature: venv       ## the paper in miniature: plant a value bias, train reward models, find it; ARGS='dose size' runs other parts
	@.venv/bin/rm-miniature $(ARGS)

nudged: venv          ## set a value by hand in the miniature, train reward models, try remedies: ten seeds, 20 minutes on an idle core
	@.venv/bin/python -c 'from rm_nbdev.paper.nudged import main; main()' $(ARGS)

real-bases: venv      ## two real language models on a laptop: fetch, train reward models, test; resumable, ARGS=short is a smaller trial
	@.venv/bin/rm-real-bases $(ARGS)

test: venv            ## the whole check; ARGS='--only data' runs a part, ARGS=--slow adds the slow cells
	@.venv/bin/python .ci/check.py $(ARGS)

bench: venv          ## speed and memory compared with trl and the plain computation, about 15 minutes; ARGS='--only bt' runs a part
	@.venv/bin/python benchmarks/bench.py $(ARGS)

docs: venv           ## the site from the notebooks into _docs/, without Quarto and without a network
	@.venv/bin/python -m scripts.dev.site && NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict -f scripts/dev/mkdocs.yml

docs-serve: venv     ## the same, served at http://127.0.0.1:8000/ until ctrl-C; PORT=9000 uses another port
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs serve -f scripts/dev/mkdocs.yml -a 127.0.0.1:$(or $(PORT),8000)

readme: venv         ## README.md, from the notebooks
	@.venv/bin/python -m scripts.dev.site

quarto: venv         ## nbs/_quarto.yml, the same navigation for Quarto, before nbdev-docs
	@.venv/bin/python -m scripts.dev.site --quarto

export: venv          ## write rm_nbdev/ and README.md from the notebooks, and clean the notebooks
	@. .venv/bin/activate && nbdev-export && python -m scripts.dev.site && nbdev-clean

clean:                ## remove the files that builds and tools wrote; .venv and runs/ stay
	rm -rf build dist *.egg-info _proc _docs nbs/wandb wandb
	find rm_nbdev nbs scripts \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

venv:
	@.ci/venv
