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

# how_to_start RUN: sets `more` to the flags that resume a run where possible; fails if it is finished
how_to_start() {
  more=()
  if finished "$1"; then echo "$1: already finished; for other settings choose another NAME"; return 1; fi
  if compgen -G "$1/checkpoint-*" >/dev/null; then more=(--resume_from_checkpoint True)
  elif [ -e "$1" ]; then more=(--overwrite_output_dir True); fi
}

# wait_for RUN ASK COMMAND...: the command, in the background. On SLURM's SIGUSR1 (--signal=B:USR1@SECONDS) and on SIGTERM
# the shell function ASK is called with the signal's name, the run saves, and after USR1 the job is requeued.
wait_for() {
  local run="$1" ask="$2" asked='' code=0
  "${@:3}" & pid=$!
  trap 'asked=1; "$ask" USR1' USR1
  trap '"$ask" TERM' TERM
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || :; done                          # a signal ends `wait`, not the run
  wait "$pid" || code=$?
  trap - USR1 TERM
  # 138: the signal came before the run could handle it; 143: the run was asked by SIGTERM, which is how srun passes it on
  if [ -n "$asked" ] && ! finished "$run" && [[ " 0 138 $requeued_too " == *" $code "* ]]; then
    echo "$run: saved; the job is requeued"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60                                       # meanwhile SLURM ends this shell
  fi
  return "$code"
}
requeued_too=''

# train NAME METHOD FLAGS...: `rm-run`, resumed where possible. A finished run is skipped, one that was stopped or killed
# resumes from its last checkpoint, one that failed before its first checkpoint starts again: the same job can be submitted
# any number of times. The exit code is that of rm-run.
train() {
  local run="${RUNS:-runs}/$1" more where=()
  how_to_start "$run" || return 0
  [ "${RUNS:-runs}" = runs ] || where=(--log_dir "$RUNS")
  wait_for "$run" ask_run rm-run "$@" "${where[@]}" "${more[@]}"
}
ask_run() { kill "-$1" "$pid" 2>/dev/null || :; }

# train_on_nodes NAME METHOD FLAGS...: the same on all machines of the job; srun starts torchrun once on each
train_on_nodes() {
  local run="${RUNS:-runs}/$1" more first
  how_to_start "$run" || return 0
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
  # torchrun ends its processes by SIGTERM, on which they save: it must give them the time
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}
  requeued_too='1 15 143'
  wait_for "$run" ask_nodes srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$GPUS" --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_backend c10d --rdzv_endpoint "$first:$PORT" -m rm_nbdev.train "${@:2}" --output_dir "$run" "${more[@]}"
}
ask_nodes() { scancel --signal=TERM "$SLURM_JOB_ID"; }                                # reaches the steps, not this shell
