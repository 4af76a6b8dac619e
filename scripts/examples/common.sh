# What the templates share; they read it with `.`. SLURM runs a copy of a template elsewhere, so paths begin in the
# folder from which it was submitted: the top of the checkout.
set -euo pipefail

# The environment: conda's CONDA_ENV, or the virtual environment VENV, the checkout's .venv without either.
activate() {
  if [ -n "${CONDA_ENV:-}" ]; then
    set +u; eval "$(conda shell.bash hook)"; conda activate "$CONDA_ENV"; set -u
  elif [ -f "${VENV:-.venv}/bin/activate" ]; then
    set +u; . "${VENV:-.venv}/bin/activate"; set -u
  else
    echo "$PWD/${VENV:-.venv}: no environment; run make venv at the top of the checkout and submit from there, or set VENV=FOLDER or CONDA_ENV=NAME" >&2
    exit 2
  fi
  command -v rm-run >/dev/null || { echo "the environment has no rm-run: pip install -e . in the checkout" >&2; exit 2; }
  export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 RM_RUN_ERRORS=notebook   # nobody watches: errors belong in the notebook
  # HF_TOKEN and WANDB_API_KEY come with the environment that sbatch hands on, or from `hf auth login` and `wandb login`.
}

# finished RUN: has it been trained to its last step?
finished() { grep -q '"status": "done"' "$1/manifest.json" 2>/dev/null; }

# train NAME METHOD FLAGS...: `rm-run`, or what is left of it. A run that is done is left alone, one that was stopped or
# killed goes on from its last checkpoint, one that failed before it had one begins again: the same job can be submitted as
# often as need be. With SLURM's SIGUSR1 (--signal=B:USR1@SECONDS) the run saves and the job goes back into the queue, with
# SIGTERM it saves. The exit code is rm-run's.
train() {
  local run="${RUNS:-runs}/$1" more=() asked='' code=0 pid
  [ "${RUNS:-runs}" = runs ] || more=(--log_dir "$RUNS")
  if finished "$run"; then echo "$run: is done already; for other settings choose another NAME"; return 0; fi
  if compgen -G "$run/checkpoint-*" >/dev/null; then more+=(--resume_from_checkpoint True)
  elif [ -e "$run" ]; then more+=(--overwrite_output_dir True); fi
  rm-run "$@" "${more[@]}" & pid=$!
  trap 'asked=1; kill -USR1 "$pid" 2>/dev/null || :' USR1
  trap 'kill -TERM "$pid" 2>/dev/null || :' TERM
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || :; done                          # a signal ends `wait`, not the run
  wait "$pid" || code=$?
  trap - USR1 TERM
  # 138: the signal came before the run could note it
  if [ -n "$asked" ] && ! finished "$run" && { [ "$code" = 0 ] || [ "$code" = 138 ]; }; then
    echo "$run: saved; the job goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60                                       # SLURM ends this shell meanwhile
  fi
  return "$code"
}
