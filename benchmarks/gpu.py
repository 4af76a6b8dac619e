"""What the kit computes on a GPU, and how fast: one command under four minutes

    python benchmarks/gpu.py                                  # checks and tables; writes results/gpu.csv and .md
    python benchmarks/gpu.py --output benchmarks/published    # the same, for the docs
    python benchmarks/gpu.py --only checks,bt                 # some parts: checks, bt, grm, search
    python benchmarks/gpu.py --tiny                           # the same code with small shapes, under a minute on a CPU

First it checks: packed against padded batches in float32 and bfloat16, the attention that was chosen, a run with
gradient checkpointing that is stopped and resumed. Then it measures. Nothing is downloaded: models are created on the
device from configs, with random weights. A contestant that runs out of memory is listed as such. When the time is used
up, what is left is skipped, and said.

The share of the peak is that of the operations which the pairs need at least: see `needed.py`.
"""
import argparse, contextlib, csv, gc, io, os, signal, statistics, tempfile, time
from functools import partial
from pathlib import Path
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')        # with several, trl's trainer would split its batches
import torch
from transformers import Gemma2Config, LlamaConfig, TrainerCallback
from rm_nbdev.core.config import Config
from rm_nbdev.models.reward_model import RewardModel
from rm_nbdev.values.candidates import AnswerSet, group_suffixes
from rm_nbdev.values.search import merged, shared_prefix_rewards
import token_search, whole_commands
from bench import HERE, machine, number, spread, with_range
from contestants import Kit, PlainGRM, Trl, arithmetic_of, make
from needed import groups_of, needed_flops, peak_of, sync
from workload import PAD, OnDevice, make_pairs

BUDGET = 180                 # seconds, without imports; the case that is running then is finished
SECONDS,ROUNDS = 12, 8       # of a table's case, at most; at least two rounds run
COLUMNS = ['table', 'size', 'variant', 'unit', 'median', 'low', 'high', 'ratio', 'ratio_low', 'ratio_high',
           'second_ratio', 'peak_gb', 'share', 'note']

# --- shapes -----------------------------------------------------------------------------------------------------

def shapes(tiny):
    "The bases: the shapes of Llama 3.2 1B and Gemma 2 2B, or small ones of the same kinds"
    common = dict(pad_token_id=PAD, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)
    llama = dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                 num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=8192)
    gemma = dict(vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
                 num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256,
                 sliding_window=4096, max_position_embeddings=8192)
    if tiny:
        small = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=16)
        llama,gemma = llama | small | dict(vocab_size=2000), gemma | small | dict(vocab_size=4000, sliding_window=32)
    return {'Llama': LlamaConfig(**llama, **common), 'Gemma 2': Gemma2Config(**gemma, **common)}

def size_of(name, config, pairs):
    layers,hidden = config.num_hidden_layers,config.hidden_size
    return f'{name}, {layers} layers of {hidden}, vocabulary {config.vocab_size/1000:.0f}k, {pairs}'

# --- the device -------------------------------------------------------------------------------------------------

def peak_memory(device, f):
    "Most memory beyond what is allocated before, in GiB, while `f` runs; None on a CPU"
    if device != 'cuda':
        f()
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    f()
    sync(device)
    return (torch.cuda.max_memory_allocated() - before)/2**30

def share_frozen(model, known):
    "Let a model's frozen weights be those of the first one that has the same: all start from one base"
    stock = model.model if isinstance(model, RewardModel) else model
    for name,p in stock.named_parameters():
        if p.requires_grad: continue
        name = name.removeprefix('module.')
        first = known.setdefault(name, p.data)
        if first.shape == p.shape and first.dtype == p.dtype: p.data = first

class Clock:
    "The time that is left; what does not fit any more is skipped and noted"
    def __init__(self, seconds): self.began,self.seconds,self.skipped = time.perf_counter(),seconds,[]
    def left(self): return self.seconds - (time.perf_counter() - self.began)
    def allows(self, what, seconds):
        if self.left() >= seconds: return True
        self.skipped.append(what)
        print(f'{what}: skipped, {self.left():.0f} s of {self.seconds} s are left', flush=True)

# --- checks -----------------------------------------------------------------------------------------------------

def distance(a, b): return ((a-b).norm()/b.norm()).item()

def check_packing(name, config, device):
    """Losses and gradients of packed against padded batches. In float32 they agree to 1e-4; in bfloat16 the packed
    ones are at most twice as far from float32 as the padded ones are, and 1 % more"""
    rows,found = make_pairs(4, config.vocab_size, .25, seed=3),{}
    for dtype in (torch.float32, torch.bfloat16):
        base = OnDevice(config, device, dtype)
        for batching in ('padded', 'packed'):
            step = Kit(base, batching=batching)
            found[batching,dtype] = step.result(rows)
    loss,grad = found['padded',torch.float32]
    far = {k: (abs(l-loss)/abs(loss), distance(g, grad)) for k,(l,g) in found.items()}
    exact,half,padded = far['packed',torch.float32],far['packed',torch.bfloat16],far['padded',torch.bfloat16]
    fine = max(exact) <= 1e-4 and all(h <= 2*p + .01 for h,p in zip(half, padded))
    said = (f'packed against padded in float32: loss {exact[0]:.0e}, gradient {exact[1]:.0e}; in bfloat16 from '
            f'float32: packed {half[0]:.0e} and {half[1]:.0e}, padded {padded[0]:.0e} and {padded[1]:.0e}')
    return f'{name}: {said}', fine

class StopAt(TrainerCallback):
    "Asks the process to stop after a step, as a batch system does"
    def __init__(self, step): self.step = step
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step: os.kill(os.getpid(), signal.SIGUSR1)

def session(config, stop_at=None):
    "Train, possibly up to a step; the losses by step that its record holds"
    from rm_nbdev.runs.train import Preemption, build, check_settings, fit, outcome, read_pairs, tokenize
    from rm_nbdev.training.metrics import curve, read_metrics
    with Preemption(0) as stop, contextlib.redirect_stdout(io.StringIO()):
        built = build(config, tokenize(read_pairs(check_settings(config))))
        if stop_at: built.trainer.add_callback(StopAt(stop_at))
        run = outcome(fit(built, stop)).dir
    losses = curve(read_metrics(run), 'train', 'loss')
    return dict(zip(losses.step, losses.value))

def check_resume(device, steps=6, stop_at=3):
    """A run with gradient checkpointing, stopped after a step and resumed, against one that was not: losses agree to
    1e-3, on a CPU to the last bit"""
    with tempfile.TemporaryDirectory() as d:
        base,data = whole_commands.materials(Path(d), 2, steps, quick=True)
        def settings(name, **kw):
            own = dict(bf16=device == 'cuda', use_cpu=device == 'cpu', gradient_checkpointing=True,
                       save_strategy='epoch')
            return Config('bt', **whole_commands.kit_settings(base, data, Path(d)/name) | own | kw)
        whole = session(settings('whole'))
        session(settings('parts'), stop_at)
        parts = session(settings('parts', resume_from_checkpoint='True'))
    most = max(abs(parts[s]-whole[s]) for s in whole)
    fine = sorted(parts) == sorted(whole) == [*range(1, steps+1)] and most <= (1e-3 if device == 'cuda' else 0)
    return f'stopped half-way and resumed, with gradient checkpointing: losses differ by {most:.0e}', fine

def attention_of(name, config, device):
    "The attention that was chosen for training in bfloat16"
    model = make('bt', OnDevice(config, device, torch.bfloat16))[1]
    with arithmetic_of(model): return f'{name}: {model.choose_attention()}', True

def checks(clock, device, bases):
    "Prints the checks; a line and whether it holds, of each"
    todo = [partial(check_packing, k, c, device) for k,c in shapes(tiny=True).items()]
    todo += [partial(attention_of, k, c, device) for k,c in bases.items()]
    todo += [partial(check_resume, device)]
    out = []
    for check in todo:
        out.append(check())
        print(('passed  ' if out[-1][1] else 'FAILED  ') + out[-1][0], flush=True)
    return out

# --- tables -----------------------------------------------------------------------------------------------------

def attempt(f):
    "The result of `f`, or None where the device has not enough memory"
    try: return f()
    except torch.OutOfMemoryError: pass
    gc.collect()                                       # outside of the handler, which holds the frames
    if torch.cuda.is_available(): torch.cuda.empty_cache()

def timed(device, f):
    sync(device)
    began = time.perf_counter()
    f()
    sync(device)
    return time.perf_counter() - began

def get_ready(device, makers, warm, widest):
    """The contestants that fit into memory, their losses without dropout on the short input, and their peaks on the
    widest one. Nothing is timed before the allocator has seen that size."""
    steps,losses,peaks,known = {},{},{},{}
    for k,make_step in makers.items():
        def ready():
            step = make_step()
            share_frozen(step.model, known)
            loss = step.result(warm)[0]
            step(warm)
            return step, loss, peak_memory(device, lambda: step(widest))
        if found := attempt(ready): steps[k],losses[k],peaks[k] = found
    return steps, losses, peaks

def race(device, steps, inputs, seconds):
    "Times of every contestant in every round; the order rotates. One that runs out of memory drops out"
    steps,times,began = dict(steps),{k: [] for k in steps},time.perf_counter()
    for i,rows in enumerate(inputs):
        if i >= 2 and (time.perf_counter() - began)*(i+1)/i > seconds: break
        first = i % max(1, len(steps))
        for k in [*steps][first:] + [*steps][:first]:
            took = attempt(lambda: timed(device, lambda: steps[k](rows)))
            if took is None: del steps[k], times[k]
            else: times[k].append(took)
    return times

RATIO = 'ratio', 'ratio_low', 'ratio_high'

def rows_of(table, size, names, times, peaks, n, flops, peak):
    "Rows of the result: `n` things a second, compared with the first contestant and, for bt, with the second"
    unit,out = 'tokens/s' if table == 'search' else 'pairs/s',[]
    first,second = (times.get(k) for k in names[:2])
    def ratios(base, ts): return [a/b for a,b in zip(base, ts)]
    for k in names:
        row,ts = dict.fromkeys(COLUMNS) | dict(table=table, size=size, variant=k, unit=unit),times.get(k)
        if ts is None: row['note'] = 'out of memory'
        else:
            row |= dict(zip(('median', 'low', 'high'), spread([n/t for t in ts]))) | dict(peak_gb=peaks.get(k))
            row['share'] = statistics.median(f/t for f,t in zip(flops, ts))/peak
            if first: row |= dict(zip(RATIO, spread(ratios(first, ts))))
            if table == 'bt' and second: row['second_ratio'] = statistics.median(ratios(second, ts))
        out.append(row)
        print('  ' + as_text(row), flush=True)
    return out

def as_text(r):
    if r['median'] is None: return f"{r['variant']:34} {r['note']}"
    memory = '' if r['peak_gb'] is None else f", {number(r['peak_gb'])} GiB"
    speed = f"{with_range(r, 'median', 'low', 'high'):22} {r['unit']}"
    return f"{r['variant']:34} {speed} x {number(r['ratio'])}{memory}, {r['share']:.1%} of the peak"

def compared(table, size, device, makers, batches, warm, flops, peak):
    "Rows of contestants that make the same steps"
    print(f'\n{size}', flush=True)
    def longest(rows): return max(len(o[k]) for o in rows for k in ('chosen_ids', 'rejected_ids'))
    steps,losses,peaks = get_ready(device, makers, warm, max(batches, key=longest))
    apart = max(losses.values(), default=0) - min(losses.values(), default=0)
    said = f'losses without dropout, in bfloat16, within {apart:.0e}'
    print(f'  {said}', flush=True)
    times,check = race(device, steps, batches, SECONDS),(f'{size}: {said}', apart <= .05)
    return rows_of(table, size, [*makers], times, peaks, len(batches[0]), flops, peak), check

def bt_table(device, name, config, pairs, scale, peak):
    base,warm = OnDevice(config, device, torch.bfloat16),make_pairs(2, config.vocab_size, scale/4, seed=99)
    trl,kit = partial(Trl, base, warm),partial(Kit, base, batching='packed')
    makers = {'trl, checkpointing (default)': trl, 'trl, no checkpointing': partial(trl, checkpointing=False),
              'kit, checkpointing': partial(kit, checkpointing=True), 'kit': kit}
    batches = [make_pairs(pairs, config.vocab_size, scale, seed=i) for i in range(ROUNDS)]
    flops = [needed_flops(config, groups_of(rows)) for rows in batches]
    return compared('bt', size_of(name, config, f'{pairs} pairs'), device, makers, batches, warm, flops, peak)

def grm_table(device, name, config, pairs, scale, peak):
    base,warm = OnDevice(config, device, torch.bfloat16),make_pairs(1, config.vocab_size, scale/4, seed=99)
    kit = partial(Kit, base, method='grm', batching='packed')
    makers = {'plain, checkpointing': partial(PlainGRM, base), 'plain': partial(PlainGRM, base, checkpointing=False),
              'kit, checkpointing': partial(kit, checkpointing=True), 'kit': kit}
    batches = [make_pairs(pairs, config.vocab_size, scale, seed=i) for i in range(ROUNDS)]
    def learned(rows): return sum(branches[0] for _,branches in groups_of(rows))    # SFT: of the chosen responses
    flops = [needed_flops(config, groups_of(rows), learned(rows)) for rows in batches]
    return compared('grm', size_of(name, config, f'SFT, {pairs} pairs'), device, makers, batches, warm, flops, peak)

def search_table(device, name, config, prompt, sample, batch, peak):
    "Every token of the vocabulary as an answer, closed by one more; stock batches score a sample"
    def create(dtype): return make('bt', OnDevice(config, device, dtype))[1].eval()
    model,generator = create(torch.bfloat16),torch.Generator().manual_seed(1)
    prefix = [1, *torch.randint(3, config.vocab_size, (prompt-1,), generator=generator).tolist()]
    tails = [[t, 5] for t in range(3, config.vocab_size)]
    answers = AnswerSet(prefix, group_suffixes(tails))
    def plain(model, n): return token_search.plain(model, [prefix+t for t in tails[:n]], batch)
    def kit():
        with merged(model): return shared_prefix_rewards(model, answers)
    ways = {f'plain: stock, batches of {batch}': (lambda: plain(model, sample), sample),
            'kit: token search': (kit, len(tails))}
    size = size_of(name, config, f'prompt of {prompt} tokens, 2 per answer')
    print(f'\n{size}', flush=True)
    found,peaks,times = {},{},{}
    for k,(score,n) in ways.items():
        def measure():
            score()
            took = timed(device, lambda: found.update({k: score()}))
            return took/n, peak_memory(device, score)
        if got := attempt(measure): times[k],peaks[k] = [got[0]],got[1]
    exact = attempt(lambda: plain(create(torch.float32), sample//4))
    check = check_rewards(size, exact, *(found.get(k) for k in ways))
    each = [needed_flops(config, [(prompt, [2]*len(tails))], training=False)/len(tails)]
    return rows_of('search', size, [*ways], times, peaks, 1, each, peak), check

def check_rewards(size, exact, plain, kit):
    "Rewards in bfloat16: the kit's are at most twice as far from those in float32 as the stock ones, and 1 %"
    if any(r is None for r in (exact, plain, kit)): return f'{size}: rewards not compared, out of memory', True
    far = [distance(r[:len(exact)] - exact.mean(), exact - exact.mean()) for r in (plain, kit)]
    said = f'rewards in bfloat16 from float32, in standard deviations: {far[1]:.0e}, stock {far[0]:.0e}'
    print(f'  {said}', flush=True)
    return f'{size}: {said}', far[1] <= 2*far[0] + .01

def tables(clock, device, bases, tiny, only, peak):
    "Rows of all tables that there is time for, and a check of each"
    pairs,scale = (4, .05) if tiny else (16, .8)
    llama = dict(list(bases.items())[:1])
    todo = [('bt', k, bt_table, (pairs, scale)) for k in bases]
    todo += [('grm', k, grm_table, (max(2, pairs//2), scale)) for k in llama]
    todo += [('search', k, search_table, (20, 32, 16) if tiny else (200, 512, 64)) for k in llama]
    for table,name,measure,how in todo:
        if table in only and clock.allows(f'{table}, {name}', 1 if tiny else 25):
            yield measure(device, name, bases[name], *how, peak)
            gc.collect()
            if device == 'cuda': torch.cuda.empty_cache()

# --- the report -------------------------------------------------------------------------------------------------

TITLES = dict(bt='Bradley-Terry: one optimizer step, LoRA r=32 with dropout 0.05, bfloat16',
              grm='GRM: one optimizer step, otherwise as above',
              search='Token search: every token of the vocabulary as an answer, adapters merged, bfloat16')

def where(device, peak, source):
    "The device and what runs on it"
    device_name = ''
    if device == 'cuda':
        memory = torch.cuda.get_device_properties(0).total_memory/2**30
        device_name = f'{torch.cuda.get_device_name()}, {memory:.0f} GiB, CUDA {torch.version.cuda}; '
    return f'{device_name}{machine()}; bfloat16 peak {peak/1e12:.3g} TFLOP/s, {source}'

def cells_of(r, has_second):
    if r['median'] is None: return [r['size'], r['variant'], r['note'], '', *['']*has_second, '', '']
    value,ratio = f"{with_range(r, 'median', 'low', 'high')} {r['unit']}",with_range(r, *RATIO)
    second = [number(r['second_ratio'])]*has_second
    return [r['size'], r['variant'], value, ratio, *second, number(r['peak_gb']), f"{r['share']:.1%}"]

def report(head, lines, rows, skipped):
    "Checks and tables as Markdown"
    out = [f'Measured on {head}.', '', '## Checks', '']
    out += [f"- {'passed' if fine else '**failed**'}: {said}" for said,fine in lines]
    for table,title in TITLES.items():
        mine,has_second = [r for r in rows if r['table'] == table],table == 'bt'
        if not mine: continue
        head = ['', '', '', '×', *['× trl without checkpointing']*has_second, 'peak memory, GiB', 'share of the peak']
        table = [head, ['---']*len(head), *(cells_of(r, has_second) for r in mine)]
        out += ['', f'## {title}', ''] + [f"| {' | '.join(cells)} |" for cells in table]
    if skipped: out += ['', f"Skipped, since the time was used up: {', '.join(skipped)}."]
    note = ('Median (low–high) of the rounds; × against the first line, round by round; peak memory of a step above the '
            'loaded models. The share of the peak counts what the pairs need at least: see `benchmarks/needed.py`.')
    out += ['', note]
    return '\n'.join(out) + '\n'

def save(rows, text, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder/'gpu.csv').open('w', newline='', encoding='utf-8') as f:
        w = csv.DictWriter(f, COLUMNS, lineterminator='\n')
        w.writeheader()
        w.writerows({k: f'{v:.4g}' if isinstance(v, float) else v for k,v in r.items()} for r in rows)
    (folder/'gpu.md').write_text(text, encoding='utf-8')
    return folder/'gpu.csv'

PARTS = ('checks', *TITLES)

def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default=','.join(PARTS), help=f"parts, separated by commas: {', '.join(PARTS)}")
    p.add_argument('--tiny', action='store_true', help='small shapes, only to try it; the numbers mean nothing')
    p.add_argument('--seconds', type=int, default=BUDGET, help='time after which no further part begins')
    p.add_argument('--output', type=Path, help='folder of gpu.csv and gpu.md; without it `results/` beside this file, '
                   'or a new temporary one with --tiny')
    a = p.parse_args()
    a.device,a.only = 'cuda' if torch.cuda.is_available() else 'cpu',a.only.replace(' ', '').split(',')
    if wrong := [o for o in a.only if o not in PARTS]:
        p.error(f"--only {','.join(wrong)}: no such part; there are {', '.join(PARTS)}")
    if a.device == 'cpu' and not a.tiny: p.error('there is no CUDA device; --tiny tries the same code on the CPU')
    if a.tiny and a.output and a.output.resolve() == HERE/'published':
        p.error(f'--output {a.output}: what --tiny measures is not published; leave --tiny out, on a GPU')
    a.output = a.output or (Path(tempfile.mkdtemp(prefix='gpu-')) if a.tiny else HERE/'results')
    return a

def main():
    a = options()
    clock,bases,rows,lines = Clock(a.seconds),shapes(a.tiny),[],[]
    peak,source = peak_of(a.device)
    head = where(a.device, peak, source)
    print(head + (' (tiny shapes: only a trial)' if a.tiny else ''), flush=True)
    if 'checks' in a.only: lines += checks(clock, a.device, bases)
    for some,check in tables(clock, a.device, bases, a.tiny, a.only, peak):
        rows += some
        lines.append(check)
    text = report(head, lines, rows, clock.skipped)
    file = save(rows, text, a.output)
    print('\n' + text)
    failed = [said for said,fine in lines if not fine]
    print(f"{len(lines)-len(failed)} checks passed, {len(failed)} failed; {a.seconds-clock.left():.0f} s -> {file}")
    if failed: raise SystemExit(1)

if __name__ == '__main__': main()
