"""How long whole commands train: `rm-train bt` against a script with trl's `RewardTrainer`

    python benchmarks/whole_commands.py                  # 4 and 16 layers, about seven minutes on 2 cores
    python benchmarks/whole_commands.py --layers 4       # one size
    python benchmarks/whole_commands.py --only kit       # only the commands with this in their name
    python benchmarks/whole_commands.py --quick          # only a trial

All commands read the same file of texts, the same random base and tokenizer, add the same LoRA (r=32, dropout 0.05),
and make the same number of steps, 8 pairs each in two micro-batches of 4, in float32, without evaluations or
checkpoints. From one seed all draw the same pairs for each step. Seconds per step are the time from the log line of
the first step to that of the last, as each command writes it: imports, loading and tokenizing do not count, and
everything that a step costs does. Memory is the most that the whole process had resident.

Commands take turns; a ratio is computed within a round. `bench.py` has the table `commands` from here.
"""
import argparse, json, statistics, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
BATCH,MICRO,MAX_LENGTH = 8,4,1024
LORA = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
SIZES = {4: (7, 2), 16: (3, 1)}    # layers -> steps, rounds
TRL = '''
import json, sys, time
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer
base, data, out, settings, targets = json.loads(sys.argv[1])

class Times(TrainerCallback):
    def __init__(self): self.file = open(out + '/metrics.jsonl', 'w', buffering=1)
    def on_log(self, args, state, control, logs, **kwargs):
        event = dict(kind='train', step=state.global_step, time=time.time())
        if 'loss' in logs: print(json.dumps(event), file=self.file)

args = RewardConfig(output_dir=out, model_init_kwargs=dict(dtype='float32'), **settings)
lora = LoraConfig(r=32, lora_alpha=64, lora_dropout=.05, target_modules=targets, modules_to_save=['score'],
                  task_type='SEQ_CLS')
RewardTrainer(base, args, train_dataset=load_dataset('json', data_files=data + '/train.jsonl', split='train'),
              processing_class=AutoTokenizer.from_pretrained(base), peft_config=lora, callbacks=[Times()]).train()
'''

def materials(folder, layers, steps, quick=False):
    "A base with its tokenizer, and a folder of pairs: as many as the steps need, and a few for a validation split"
    from preparing import llama_like, some_pairs
    from workload import make_base
    base,data = folder/f'base-{layers}',folder/f'data-{layers}'
    data.mkdir()
    tokenizer = llama_like(2000 if quick else 8192)
    make_base(base, len(tokenizer), layers)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    def fits(row): # trl would drop what is longer, the kit would cut it
        texts = [tokenizer.apply_chat_template(row[k], tokenize=False) for k in ('chosen', 'rejected')]
        return max(map(len, tokenizer(texts, add_special_tokens=False)['input_ids'])) <= MAX_LENGTH
    rows = filter(fits, some_pairs(100 + 2*BATCH*(steps+1)))
    for name,n in (('train', BATCH*steps), ('val', BATCH)):
        lines = [json.dumps({k: row[k] for k in ('chosen', 'rejected')}) for row,_ in zip(rows, range(n))]
        (data/f'{name}.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return base, data

COMMON = dict(per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH//MICRO, num_train_epochs=1,
              learning_rate=1e-5, lr_scheduler_type='cosine', max_grad_norm=5., max_length=MAX_LENGTH, logging_steps=1,
              eval_strategy='no', save_strategy='no', report_to='none', bf16=False, use_cpu=True, disable_tqdm=True,
              seed=1)

def trl_command(base, data, out, **settings):
    out.mkdir()
    settings = COMMON | dict(disable_dropout=False) | settings
    return [sys.executable, '-c', TRL, json.dumps([str(base), str(data), str(out), settings, LORA])]

def kit_settings(base, data, out): # As `Config` takes them
    return COMMON | dict(load_best_model_at_end=False, base_model=str(base), dataset=str(data), output_dir=str(out))

def kit_command(base, data, out, **settings):
    flags = [word for k,v in (kit_settings(base, data, out) | settings).items() for word in (f'--{k}', str(v))]
    return [sys.executable, '-m', 'rm_nbdev.train', 'bt', *flags]

COMMANDS = {'trl, checkpointing (default)': (trl_command, dict(gradient_checkpointing=True)),
            'trl, no checkpointing': (trl_command, dict(gradient_checkpointing=False)),
            'kit, checkpointing': (kit_command, dict(gradient_checkpointing=True)),
            'kit': (kit_command, dict(gradient_checkpointing=False))}

def peak_memory(pid):
    """The most that a process had resident until now, in MB; NaN where the system does not tell. What `wait4` reports would
    be at least the memory of the process that started it"""
    try: lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError: return float('nan')
    return next((int(l.split()[1])/1024 for l in lines if l.startswith('VmHWM')), float('nan'))

def run(command, out):
    "Runs a command; seconds per step, seconds of the whole command, its largest resident memory in MB"
    began = time.perf_counter()
    log = out.with_suffix('.log')
    with log.open('w') as f:
        child,peak = subprocess.Popen(command, stdout=f, stderr=f),float('nan')
        while child.poll() is None:
            now = peak_memory(child.pid)
            if now == now: peak = now                                    # a process that has ended has none
            time.sleep(.1)
    whole = time.perf_counter() - began
    if child.returncode: raise SystemExit(f'{" ".join(map(str, command[1:4]))} failed:\n{log.read_text()[-3000:]}')
    lines = map(json.loads, (out/'metrics.jsonl').read_text().splitlines())
    at = [o['time'] for o in lines if o['kind'] == 'train']
    return (at[-1]-at[0])/(len(at)-1), whole, peak

def race(layers, steps, rounds, only='', quick=False):
    "name -> (seconds per step, of the whole command, memory in MB) of every round"
    found = {k: [] for k in COMMANDS if only in k}
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        base,data = materials(folder, layers, steps, quick)
        for i in range(rounds):
            names = [*found][i%len(found):] + [*found][:i%len(found)]
            for k in names:
                make,settings = COMMANDS[k]
                out = folder/f'{i}-{names.index(k)}'
                found[k].append(run(make(base, data, out, **settings), out))
                step,whole,peak = found[k][-1]
                print(f'  round {i+1}, {k:30} {step:.3f} s/step, {whole:.1f} s in all, {peak:.0f} MB', flush=True)
    return found

def measure(quick=False):
    "For each size: its name, the number of steps, and what `race` gives"
    for layers,(steps,rounds) in ({2: (2, 1)} if quick else SIZES).items():
        yield f'{layers} layers, {BATCH} pairs', steps, race(layers, steps, rounds, quick=quick)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--layers', type=int, nargs='+', default=list(SIZES), help='sizes of the base (default: 4 16)')
    p.add_argument('--steps', type=int); p.add_argument('--rounds', type=int)
    p.add_argument('--only', default='', help='only commands with this in their name')
    p.add_argument('--quick', action='store_true')
    a = p.parse_args()
    for layers in a.layers:
        steps,rounds = (3, 1) if a.quick else SIZES.get(layers, (5, 1))
        print(f'{layers} layers', flush=True)
        found = race(layers, a.steps or steps, a.rounds or rounds, a.only, a.quick)
        for against in [k for k in found if k.startswith('trl')]:
            for k in [k for k in found if k.startswith('kit')]:
                ratios = [x[0]/y[0] for x,y in zip(found[against], found[k])]
                print(f'  {k}: {statistics.median(ratios):.2f} times as fast as {against}', flush=True)

if __name__ == '__main__': main()
