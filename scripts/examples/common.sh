# What the templates share; they source it. SLURM runs a copy of a template in another folder, so paths are relative to the
# folder from which it was submitted: the top of the checkout.
set -euo pipefail

# The environment: conda's CONDA_ENV, or the virtual environment VENV; without either, the checkout's .venv.
activate() {
  if [ -n "${CONDA_ENV:-}" ]; then
    set +u; eval "$(conda shell.bash hook)"; conda activate "$CONDA_ENV"; set -u
  elif [ -f "${VENV:-.venv}/bin/activate" ]; then
    set +u; . "${VENV:-.venv}/bin/activate"; set -u
  else
    echo "$PWD/${VENV:-.venv}: no environment; run make venv at the top of the checkout and submit from there, or set VENV=FOLDER or CONDA_ENV=NAME" >&2
    exit 2
  fi
  command -v rm-run >/dev/null || { echo "the environment has no rm-run; run pip install -e . in the checkout" >&2; exit 2; }
  export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 RM_RUN_ERRORS=notebook   # nobody watches the terminal: errors go into the notebook
  # HF_TOKEN and WANDB_API_KEY come from the environment that sbatch passes on, or from `hf auth login` and `wandb login`.
}

# finished RUN: has it been trained to its last step?
finished() { grep -q '"status": "done"' "$1/manifest.json" 2>/dev/null; }

# train NAME METHOD FLAGS...: `rm-run`, resumed where possible. A finished run is skipped, one that was stopped or killed
# resumes from its last checkpoint, one that failed before its first checkpoint starts again: the same job can be submitted
# any number of times. On SLURM's SIGUSR1 (--signal=B:USR1@SECONDS) the run saves and the job is requeued; on SIGTERM it
# saves. The exit code is that of rm-run.
train() {
  local run="${RUNS:-runs}/$1" more=() asked='' code=0 pid
  [ "${RUNS:-runs}" = runs ] || more=(--log_dir "$RUNS")
  if finished "$run"; then echo "$run: already finished; for other settings choose another NAME"; return 0; fi
  if compgen -G "$run/checkpoint-*" >/dev/null; then more+=(--resume_from_checkpoint True)
  elif [ -e "$run" ]; then more+=(--overwrite_output_dir True); fi
  rm-run "$@" "${more[@]}" & pid=$!
  trap 'asked=1; kill -USR1 "$pid" 2>/dev/null || :' USR1
  trap 'kill -TERM "$pid" 2>/dev/null || :' TERM
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || :; done                          # a signal ends `wait`, not the run
  wait "$pid" || code=$?
  trap - USR1 TERM
  # 138: the signal came before the run could handle it
  if [ -n "$asked" ] && ! finished "$run" && { [ "$code" = 0 ] || [ "$code" = 138 ]; }; then
    echo "$run: saved; the job is requeued"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60                                       # meanwhile SLURM ends this shell
  fi
  return "$code"
}
