"""Does this checkout train as another commit did? `python -m scripts.dev.same_as COMMIT`, at the top of a checkout

Trains Bradley-Terry and GRM on the embedded default by both commits, in turn and with one thread, and compares every file
of the run directories byte by byte, times aside. Then the other commit's run is interrupted, this checkout resumes it, and
the result is compared with the run that was not interrupted. It ends with 1 if anything differs; a few minutes."""

import hashlib, json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
WORDS = '--base_model miniature --num_train_epochs 3 --save_steps 16 --eval_steps 16 --disable_tqdm True'.split()
TIMES = ('time', 'runtime', 'per_second', 'seconds', 'elapsed')  # Parts of the names of values that differ from run to run
# These name the commit, the machine, the times, or the folder
SKIPPED = {'manifest.json', 'training_args.bin', 'run_state.json', 'files.json', 'config.yaml'}


def environment(code, cache):
    "Variables for the code in a folder: one thread, no device, its own cache of the embedded default"
    return {**os.environ, 'PYTHONPATH': str(code), 'XDG_CACHE_HOME': str(cache/'cache'), 'HF_HOME': str(cache/'hf'),
            'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'TOKENIZERS_PARALLELISM': 'false'}


def start(code, cache, folder, method):
    "A training by the code in `code`, started in `folder`, where it writes `METHOD/`"
    folder.mkdir(exist_ok=True)
    call = [sys.executable, '-m', 'rm_nbdev.train', method, *WORDS, '--output_dir', method]
    return subprocess.Popen(call, cwd=folder, env=environment(code, cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    out = process.communicate()[0]
    if process.returncode: raise SystemExit(f'a training ended with {process.returncode}:\n{out[-2000:]}')


def interrupt(process, metrics, step):
    "SIGTERM once the record of a run has reached a step"
    def reached():
        lines = metrics.read_text().splitlines()[:-1] if metrics.is_file() else []
        return any(json.loads(l)['step'] >= step for l in lines)
    while process.poll() is None and not reached(): time.sleep(.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    if process.returncode != 143: raise SystemExit(f'the interrupted training ended with {process.returncode} instead of 143')


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not any(t in k for t in TIMES)}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def content(path):
    "What two files must have in common"
    if path.name == 'metrics.jsonl': return [without_times(json.loads(l)) for l in path.read_text().splitlines()]
    if path.name == 'trainer_state.json': return without_times(json.loads(path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(one, two):
    "Files compared, and a line for each that differs or is in one folder alone"
    def names(run):
        files = (p for p in run.rglob('*') if p.is_file() and p.name not in SKIPPED and p.suffix not in ('.png', '.svg'))
        return {p.relative_to(run).as_posix() for p in files}
    a, b = names(one), names(two)
    bad = [f'{n}: in one run alone' for n in sorted(a ^ b)]
    bad += [f'{n}: differs' for n in sorted(a & b) if content(one/n) != content(two/n)]
    return len(a & b), bad


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith('-'): raise SystemExit('usage: python -m scripts.dev.same_as COMMIT')
    failed = False
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        other = d/'code'
        made = subprocess.run(['git', 'worktree', 'add', '--detach', str(other), sys.argv[1]], cwd=HERE, capture_output=True, text=True)
        if made.returncode: raise SystemExit(made.stderr.strip())
        try:
            for method in 'bt', 'grm':
                for name, code in ('other', other), ('this', HERE): finish(start(code, d, d/name, method))
                n, bad = compare(d/'other'/method, d/'this'/method)
                print(f'{method}: {n} files compared, {len(bad)} differ', *bad, sep='\n  ', flush=True)
                cut = start(other, d, d/'resumed', method)
                interrupt(cut, d/'resumed'/method/'metrics.jsonl', 20)
                finish(start(HERE, d, d/'resumed', method))
                m, worse = compare(d/'other'/method, d/'resumed'/method)
                print(f'{method}, interrupted there, resumed here: {m} files compared, {len(worse)} differ', *worse, sep='\n  ', flush=True)
                failed |= bool(bad or worse)
        finally: subprocess.run(['git', 'worktree', 'remove', '--force', str(other)], cwd=HERE, capture_output=True)
    raise SystemExit(failed)


if __name__ == '__main__': main()
