"""How long it takes, and how much memory, to list and compare hundreds of run directories

    python benchmarks/many_runs.py            # 500 runs: 50 settings with 10 seeds each; about two minutes
    python benchmarks/many_runs.py --quick    # 60 runs

The runs are made up; their files have the form and the size of those of real runs: all settings, a manifest, a line of
metrics every 10 of 10,000 steps and 65 evaluations. `rm-compare` runs in a process of its own, which reports its peak.
"""
import argparse, json, math, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
from rm_nbdev.core.config import Config, save_config

STEPS,EVERY = 10_000,10

def make_runs(top, settings=50, seeds=10):
    "Write run directories: settings x seeds, one in fifty failed, one in fifty interrupted"
    top,n = Path(top),0
    config = top/'config.yaml'
    top.mkdir(parents=True, exist_ok=True)
    save_config(Config('bt', base_model='miniature', seed=987, learning_rate=.25, max_steps=STEPS), config)
    text = config.read_text()
    config.unlink()
    for k in range(settings):
        for seed in range(seeds):
            rate = round(1e-5*1.2**k, 8)
            state = {7: 'diverged', 19: 'preempted'}.get(n % 50, 'done')
            one_run(top/f'lr{rate:g}-s{seed}', text, rate, seed, state)
            n += 1
    return n

def one_run(run, text, rate, seed, status):
    "One run directory"
    run.mkdir()
    own = text.replace('seed: 987', f'seed: {seed}').replace('learning_rate: 0.25', f'learning_rate: {rate}')
    (run/'config.yaml').write_text(own)
    last = STEPS if status == 'done' else STEPS//3
    about = dict(status=status, last_step=last, schedule=dict(steps=STEPS), seconds=100., seed=seed)
    (run/'manifest.json').write_text(json.dumps(about))
    rng = np.random.default_rng([seed, int(rate*1e8)])
    speed = (.5 + .1*math.log10(rate*1e5 + 1))*(1 + .05*rng.normal())
    evaluated = {2**i for i in range(14)} | {0} | set(range(0, STEPS+1, STEPS//50))
    lines = []
    for s in range(last+1):
        if s in evaluated: lines.append(event(s, 'eval', speed, 'eval_'))
        if s and not s % EVERY: lines.append(event(s, 'train', speed, ''))
    (run/'metrics.jsonl').write_text(''.join(lines))

def event(step, kind, speed, prefix):
    "A line of metrics.jsonl"
    level = speed*math.log1p(step/20)
    values = dict(loss=math.log1p(math.exp(-level)), accuracy=1-.5*math.exp(-level), margin=level,
                  reward_chosen_mean=level/2, reward_chosen_std=1.1, reward_rejected_mean=-level/2,
                  reward_rejected_std=1.2, mean_reward=.01, min_reward=-4.2, max_reward=4.4, runtime=.17)
    return json.dumps(dict(step=step, epoch=step/STEPS, kind=kind, time=1.7e9+step,
                           values={prefix+k:v for k,v in values.items()})) + '\n'

def measure(runs, output):
    "Seconds, those of them on a processor, and peak memory (MB) of rm-compare, in a process of its own"
    code = ('import resource, sys; from rm_nbdev.core.cli import rm_compare; sys.argv = ["rm-compare", *sys.argv[1:]]; '
            'rm_compare(); own = resource.getrusage(resource.RUSAGE_SELF); '
            'print(own.ru_utime + own.ru_stime, own.ru_maxrss//1024)')
    began = time.perf_counter()
    out = subprocess.run([sys.executable, '-c', code, str(runs), '--output', str(output)], capture_output=True, text=True)
    took = time.perf_counter() - began
    if out.returncode: raise SystemExit(out.stderr)
    busy,peak = out.stdout.split()[-2:]
    return took, float(busy), int(peak), out.stdout

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    settings,seeds = (12, 5) if parser.parse_args().quick else (50, 10)
    with tempfile.TemporaryDirectory() as top:
        n = make_runs(Path(top)/'runs', settings, seeds)
        size = sum(p.stat().st_size for p in Path(top).rglob('*') if p.is_file())/1e6
        print(f'{n} runs, {size:.0f} MB')
        took,busy,peak,said = measure(Path(top)/'runs', Path(top)/'out')
        print(*said.splitlines()[:4], sep='\n')
        print(f'rm-compare: {took:.1f} s, {busy:.1f} s of them on a processor; {peak} MB at most')
        if n >= 500: raise SystemExit(took > 15 or peak > 1000)

if __name__ == '__main__': main()
