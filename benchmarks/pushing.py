"""What pushing to a Hub costs the training that runs beside it

    python benchmarks/pushing.py                 # three rounds, about five minutes on 2 cores
    python benchmarks/pushing.py --rounds 1 --steps 100

Whole trainings take turns: without a Hub, with one that works, with one that hangs at every commit. The time of the
loop is measured, from the checkpoint of step 0 to that of the last step, as `metrics.jsonl` has it. The small Hub runs
in a process of its own, on the same cores; with OMP_NUM_THREADS=1 one core of two is free for it and for the uploads,
as on a GPU machine.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]         # the small Hub is not part of the package
HUB = '''
import os, sys
sys.path.insert(0, sys.argv[2])
from scripts.dev.small_hub import SmallHub
os.nice(19)                        # it represents another machine
with SmallHub(orgs=dict(team='write')) as hub:
    if sys.argv[1] == 'hangs': hub.fault('POST .*/commit/', 'hang', 10**9)
    print(hub.url, hub.token, flush=True)
    sys.stdin.read()
'''

def loop_seconds(run): # From the first checkpoint to the last, and how many there were
    at = [e['time'] for e in map(json.loads, (run/'metrics.jsonl').read_text().splitlines()) if e['kind'] == 'save']
    return at[-1]-at[0], len(at)

def train(tmp, name, how, steps):
    settings = dict(base_model='miniature', output_dir=tmp/name, max_steps=steps, num_train_epochs=99,
                    eval_strategy='no', load_best_model_at_end=False, save_steps=steps//10, disable_tqdm=True,
                    lora_r=32, hub_final_timeout=0)
    flags = [w for k,v in settings.items() for w in (f'--{k}', str(v))]
    cmd = [sys.executable, '-m', 'rm_nbdev.train', 'bt', *flags]
    if how == 'none': return subprocess.run(cmd, check=True, capture_output=True)
    hub = subprocess.Popen([sys.executable, '-c', HUB, how, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           text=True)
    try:
        url,token = hub.stdout.readline().split()
        env = os.environ | dict(HF_ENDPOINT=url, HF_TOKEN=token, HF_HOME=str(tmp/'home'), HF_HUB_DISABLE_XET='1',
                                HF_HUB_OFFLINE='0')
        subprocess.run([*cmd, '--push_to_hub', 'True', '--hub_model_id', f'team/{name}'], env=env, check=True,
                       capture_output=True)
    finally: hub.kill(); hub.wait()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--steps', type=int, default=400)
    a = p.parse_args()
    times = dict(none=[], works=[], hangs=[])
    with tempfile.TemporaryDirectory() as d:
        for i in range(a.rounds):
            for how in [*times][i % 3:] + [*times][:i % 3]:
                train(Path(d), f'{how}-{i}', how, a.steps)
                s,n = loop_seconds(Path(d)/f'{how}-{i}')
                times[how].append(s)
                print(f'round {i+1}, Hub {how}: {s:.1f} s for {a.steps} steps and {n} checkpoints', flush=True)
    base = statistics.median(times['none'])
    for how in ('works', 'hangs'):
        ratios = [b/a for a,b in zip(times['none'], times[how])]
        extra = statistics.median(times[how])-base
        print(f'Hub {how}: {statistics.median(ratios):.3f} of the time without one '
              f'({min(ratios):.3f} to {max(ratios):.3f}), {extra/(n-1):+.3f} s per checkpoint')

if __name__ == '__main__': main()
