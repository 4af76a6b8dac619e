"""How fast the kit trains and scores against trl and the plain computation, and in how much memory

    python benchmarks/bench.py                    # everything, about 15 minutes on 2 cores
    python benchmarks/bench.py --only bt,scoring  # some tables
    python benchmarks/bench.py --quick            # only a trial: small sizes, about a minute

Variants of a table take turns on the same batches, one step each per round, so a busy machine slows all of them. A
ratio is computed within a round; the table gives its median, lowest and highest. Above 1 is faster than the table's
first variant. Where trl is one, a second ratio compares with trl without its checkpointing.
"""
import argparse, csv, gc, itertools, math, os, platform, random, statistics, tempfile, time
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
import torch
import whole_commands
from contestants import Kit, KitScore, PlainGRM, PlainScore, Trl
from memory import peak_mb
from workload import HIDDEN, make_base, make_pairs, token_counts

HERE = Path(__file__).resolve().parent
RATIO,SECOND = ('ratio', 'ratio_low', 'ratio_high'), ('second_ratio', 'second_low', 'second_high')
COLUMNS = ['table', 'size', 'variant', 'unit', 'median', 'low', 'high', *RATIO, *SECOND, 'peak_mb']
TABLES = dict(
    bt=f'Bradley-Terry: one optimizer step, LoRA r=32 with dropout 0.05, float32, hidden {HIDDEN}',
    commands='Whole commands: `rm-train bt` and a script with `trl.RewardTrainer`, same data, base, LoRA and pairs, '
             'in micro-batches of 4; from the first step to the last; memory of the whole process',
    grm='GRM: one optimizer step on 4 pairs, otherwise as in the first table',
    preparing='Preparing: from texts to token ids',
    scoring='Scoring: rewards of several responses to one prompt of 200 tokens')
HEADLINE = dict(bt='kit fast', commands='kit', grm='kit fast', preparing='here', scoring='kit: score')  # What the last line names
WITH,WITHOUT = dict(checkpointing=True), dict(checkpointing=False)
BUSY = 1.2             # load per core from which threads wait for other programs more than they work
TOLERANCE = 1e-4       # largest difference of losses between variants, without dropout

@dataclass
class Case:
    "Variants that are compared on the same inputs"
    table:str; size:str
    variants:dict      # name -> what makes a step; the first one is what the others are compared with
    inputs:list        # One for each round
    warm:list          # A short input
    seconds:float      # For all rounds together; at least two rounds run, so that there is a range
    items:int|None=None# Responses in an input: the unit is responses/s; None: s/step

ROUNDS = 6             # at most, where the time allows

def bt_case(base, layers, pairs, scale, seconds):
    warm = make_pairs(2, 8192, scale/8, seed=99)
    packed,padded = dict(batching='packed'), dict(batching='padded')
    variants = {'trl, checkpointing (default)': partial(Trl, base, warm),
                'trl, no checkpointing': partial(Trl, base, warm, **WITHOUT)}
    if layers < 16: variants |= {
        'kit padded': partial(Kit, base, **padded),
        # trl switches dropout off by default; the others here have it, so trl gets it, too. What that costs:
        'trl, dropout off': partial(Trl, base, warm, dropout=False),
        'kit fast, prompt twice': partial(Kit, base, share_prompt=False, **packed)}
    variants |= {'kit fast, checkpointing': partial(Kit, base, **packed, **WITH),
                 'kit fast': partial(Kit, base, **packed)}
    batches = [make_pairs(pairs, 8192, scale, seed=i) for i in range(ROUNDS)]
    return Case('bt', f'{layers} layers, {pairs} pairs', variants, batches, warm, seconds)

def grm_case(base, vocab, mode, scale, seconds):
    # A quarter of the lengths: at 152k entries the plain step holds four tensors of rows x length x vocabulary, and
    # these take 5 GB even so
    kw = dict(sft_only=mode == 'sft', **dict(reference_free=False) if mode == 'reference' else {})
    kit = partial(Kit, base, method='grm', **kw)
    variants = {'plain, checkpointing': partial(PlainGRM, base, **kw, **WITH)}
    if mode == 'sft' and vocab < 100_000: variants['plain'] = partial(PlainGRM, base, **kw, **WITHOUT)
    if mode == 'sft': variants['kit padded'] = partial(kit, batching='padded')
    if mode == 'sft' and vocab < 100_000:
        variants['kit fast, checkpointing'] = partial(kit, batching='packed', **WITH)
    variants['kit fast'] = partial(kit, batching='packed')
    what = dict(sft='SFT', dpo='DPO', reference='DPO with reference')[mode]
    batches,warm = [make_pairs(4, vocab, scale, seed=i) for i in range(ROUNDS)],make_pairs(1, vocab, scale/4, seed=99)
    return Case('grm', f'vocabulary {vocab/1000:.0f}k, {what}', variants, batches, warm, seconds)

def scoring_case(base, n, low, high, seconds):
    def one(seed, prompt, n, low, high):
        g = random.Random(seed)
        def ids(k): return [g.randrange(3, 8192) for _ in range(k)]
        return [(ids(prompt), [ids(g.randint(low, high)) for _ in range(n)])]
    variants = {'plain: score_ids (padded)': partial(PlainScore, base),
                'kit: score': partial(KitScore, base, batching='packed')}
    inputs,warm = [one(i, 200, n, low, high) for i in range(ROUNDS)],one(99, 20, 2, low, low)
    return Case('scoring', f'{n} responses of {low}-{high} tokens', variants, inputs, warm, seconds, n)

BT_CASES = [(4, 8, 1, 35), (16, 4, 1, 35)]          # layers, pairs, scale, seconds
GRM_CASES = [(50_000, 'sft', 15), (50_000, 'dpo', 10), (50_000, 'reference', 12), (152_000, 'sft', 25)]
SCORING_CASES = [(64, 1, 8, 8), (8, 50, 150, 4)]    # responses, shortest, longest, seconds

def cases(tables, quick, folder):
    "The comparisons, one after the other; bases are created when they are needed"
    def base(vocab, layers=4, tied=False): return make_base(f'{folder}/{vocab}-{layers}', vocab, layers, tied)
    if 'bt' in tables:
        for layers,*how in [(2, 4, .25, 3)] if quick else BT_CASES:
            yield bt_case(base(8192, layers), layers, *how)
    if 'grm' in tables:
        for vocab,mode,seconds in [(8192, 'sft', 2), (8192, 'reference', 2)] if quick else GRM_CASES:
            yield grm_case(base(vocab, 2 if quick else 4, tied=True), vocab, mode, .125 if quick else .25, seconds)
    if 'scoring' in tables:
        for case in [(8, 1, 8, 1)] if quick else SCORING_CASES:
            yield scoring_case(base(8192, 2 if quick else 4), *case)

def check_equal(steps, rows):
    "Without dropout all variants must give the same loss and gradient, or they would not compute the same thing"
    got = {k: s.result(rows) for k,s in steps.items()}
    (loss0,x0),*rest = got.values()
    loss = max([abs(l-loss0) for l,_ in rest], default=0.)
    x = max([((x-x0).abs().max()/x0.abs().max()).item() for _,x in rest], default=0.)
    if loss > TOLERANCE:
        each = ', '.join(f'{k} {l:.6f}' for k,(l,_) in got.items())
        raise SystemExit(f'losses (for scoring: sums of rewards) differ by {loss:.1e}: {each}')
    return loss, x

TRL = ('bt', 'commands')   # tables whose first two variants are trl with and without its checkpointing

def ratios(table, times):
    "name -> ratios with the first variant and, where trl is one, with trl without its checkpointing"
    against = [times[k] for k in [*times][:2 if table in TRL else 1]]
    def one(base, ts, names): return dict(zip(names, spread([a/b for a,b in zip(base, ts)])))
    return {k: dict(p for base,names in zip(against, (RATIO, SECOND)) for p in one(base, ts, names).items())
            for k,ts in times.items()}

def spread(xs): return statistics.median(xs), min(xs), max(xs)

def equality_note(case, steps):
    "How close the variants are, after checking that they compute the same"
    loss,x = check_equal(steps, case.warm)
    far = f'{x:.0e} of the largest reward' if case.items else f'loss {loss:.0e}, gradient {x:.0e} of its largest entry'
    note = f'Largest difference between variants, without dropout: {far}.'
    name = next((s.optimizer_name for s in steps.values() if hasattr(s, 'optimizer_name')), '')
    return note + (f" trl's optimizer: {name}; the others': AdamW(fused=True)." if name else '')

def time_rounds(case, steps):
    "Seconds of every variant in every round; the order rotates"
    for s in steps.values(): s(case.warm)
    times,names = {k:[] for k in steps}, list(steps)
    # those that need most memory: on a virtual machine, memory touched for the first time is slow
    for k in names[:2]: steps[k](case.inputs[-1])
    start = time.perf_counter()
    for i,rows in enumerate(case.inputs):
        if i >= 2 and (time.perf_counter() - start)*(i+1)/i > case.seconds: break
        for k in names[i%len(names):] + names[:i%len(names)]:
            t = time.perf_counter()
            steps[k](rows)
            times[k].append(time.perf_counter() - t)
    return times

def tokens_note(done):
    "How padding and shared prompts change the number of tokens in the batches"
    padded,real,shared = map(sum, zip(*map(token_counts, done)))
    return (f'A batch has {real/len(done):.0f} tokens; padding makes them {padded/real:.2f} times as many, '
            f'the prompt counted once leaves {shared/real:.2f}. ')

def measure(case):
    "Time and memory of every variant of a case, as rows of the result"
    print(f'\n{case.size}', flush=True)
    steps = {k:f() for k,f in case.variants.items()}
    note = equality_note(case, steps)
    times = time_rounds(case, steps)
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0      # of the last minute
    steps.clear(); gc.collect()
    first = next(iter(times.values()))
    done = case.inputs[:len(first)]
    if not case.items: note = tokens_note(done) + note
    note = f'{len(done)} rounds. {note}'
    if load > BUSY*os.cpu_count():
        note += (f' Other programs were running (load {load:.1f} on {os.cpu_count()} cores): '
                 'measure again on an idle machine, or with OMP_NUM_THREADS=1.')
    print('  ' + note, flush=True)
    widest = done[0] if case.items else max(done, key=lambda o: token_counts(o)[0])
    out,unit,compared = [],'s/step' if case.items is None else 'responses/s',ratios(case.table, times)
    for k,ts in times.items():
        value = ts if case.items is None else [case.items/t for t in ts]
        row = case.table, case.size, k, unit, *spread(value)
        peak = peak_mb(case.variants[k], case.warm, widest, torch.get_num_threads())
        out.append(dict(note=note, peak_mb=peak) | dict(zip(COLUMNS, row)) | compared[k])
        print('  ' + as_text(out[-1]), flush=True)
    return out

def number(x):
    if x is None or math.isnan(x): return ''
    return f'{x:.0f}' if abs(x) >= 100 else f'{x:.3g}'
def with_range(r, k, low, high): # 1.9 (1.8–2.1); the first variant's ratio, which is 1 in every round, alone
    v,a,b = (number(r.get(c)) for c in (k, low, high))
    return v if a == v == b or not a else f'{v} ({a}–{b})'
def value_of(r): return with_range(r, 'median', 'low', 'high')
def ratio_of(r): return with_range(r, *RATIO)
def second_of(r): return with_range(r, *SECOND) if r.get(SECOND[0]) else ''
def as_text(r):
    peak = '' if r.get('peak_mb') is None else f" {number(r['peak_mb']):>6} MB"
    return f"{r['variant']:32} {value_of(r):20} {r['unit']:12} x {ratio_of(r):18} {second_of(r):18}{peak}"

def machine():
    "What the measurements ran on"
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((l.split(':')[1].strip() for l in lines if l.startswith('model name')), '')
    name = cpu or platform.processor() or platform.machine()
    versions = ', '.join(f'{p} {version(p)}' for p in ('torch', 'transformers', 'trl', 'peft'))
    return f'{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {versions}; {date.today()}'

def report(rows):
    "The tables as Markdown"
    out = [f'Measured on {machine()}.', '', 'Median (low–high) of the rounds; × against the first line, computed '
           'round by round; peak memory of one step above the loaded model.']
    for t,title in TABLES.items():
        mine = [r for r in rows if r['table'] == t]
        if not mine: continue
        head = ['', '', '', '×', *['× trl without checkpointing']*(t in TRL), 'peak, MB']
        out += ['', f'## {title}', '', f"| {' | '.join(head)} |", '|---'*len(head) + '|']
        for r in mine:
            value,peak = f"{value_of(r)} {r['unit']}",number(r.get('peak_mb'))
            cells = [r['size'], r['variant'], value, ratio_of(r), *[second_of(r)]*(t in TRL), peak]
            out.append(f"| {' | '.join(cells)} |")
        out += [''] + [f'{k}: {v}  ' for k,v in {r['size']: r['note'] for r in mine if r.get('note')}.items()]
        if t == 'scoring': out += ['', 'trl has no scoring of several responses to one prompt to compare with.']
    return '\n'.join(out) + '\n'

def picture(rows, path):
    "Ratios with their ranges, one panel a comparison"
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    panels = [(k, list(rs)) for k,rs in itertools.groupby(rows, lambda r: (r['table'], r['size']))]
    height = .6*len(panels) + .27*sum(len(d) for _,d in panels) + .8
    fig,axs = plt.subplots(len(panels), 1, figsize=(8, height), squeeze=False, layout='constrained',
                           height_ratios=[len(d)+1 for _,d in panels])
    def colour(v): # Okabe and Ito's, safe for colour-blind readers
        if v == 'kit' or v.startswith(('kit fast', 'kit: score', 'here')): return '#009e73'
        return '#56b4e9' if v.startswith('kit') else '#999999'
    for ax,((table,size),d) in zip(axs[:,0], panels):
        names,mid = [r['variant'] for r in d],[r['ratio'] for r in d]
        low,high = ([r[k] or r['ratio'] for r in d] for k in ('ratio_low', 'ratio_high'))
        reach = [[m-l for m,l in zip(mid, low)], [h-m for m,h in zip(mid, high)]]
        ax.barh(names, mid, color=list(map(colour, names)), xerr=reach, ecolor='#333333', capsize=2)
        for y,(m,h) in enumerate(zip(mid, high)): ax.text(h, y, f'  {m:.2f}', va='center', fontsize=8)
        ax.axvline(1, color='#333333', lw=.8)
        ax.invert_yaxis()
        ax.margins(x=.12)
        ax.set_title(f'{table}: {size}', fontsize=9, loc='left')
        ax.tick_params(labelsize=8)
        ax.spines[['top', 'right']].set_visible(False)
    axs[-1,0].set_xlabel('times as fast as the first variant of its panel (median; lowest to highest round)')
    fig.suptitle(machine(), fontsize=7)
    fig.savefig(path, dpi=130)
    plt.close(fig)

def preparing(quick):
    "Rows of the table that `preparing.py` measures; its variants are compared by their medians"
    from preparing import measure
    rows = [dict.fromkeys(COLUMNS) | dict(size='pairs of texts') | r for r in measure(quick=quick)]
    for r in rows:
        r['ratio'] = r['median']/rows[0]['median']
        print('  ' + as_text(r))
    return rows

def commands(quick):
    "Rows of the table that `whole_commands.py` measures"
    out = []
    for size,steps,found in whole_commands.measure(quick):
        n = len(next(iter(found.values())))
        note = f'{n} round{"s"*(n > 1)} of {steps} steps; every command is a process of its own.'
        times = {k: [step for step,_,_ in runs] for k,runs in found.items()}
        compared = ratios('commands', times)
        for k,ts in times.items():
            row = 'commands', size, k, 's/step', *spread(ts)
            peak = statistics.median(peak for *_,peak in found[k])
            out.append(dict(note=note, peak_mb=peak) | dict(zip(COLUMNS, row)) | compared[k])
            print('  ' + as_text(out[-1]), flush=True)
    return out

def save(rows, folder):
    folder.mkdir(parents=True, exist_ok=True)
    table,png,md = (folder/f'results.{e}' for e in ('csv', 'png', 'md'))
    with table.open('w', newline='', encoding='utf-8') as f:
        w = csv.DictWriter(f, COLUMNS, extrasaction='ignore', lineterminator='\n')
        w.writeheader()
        w.writerows({k: f'{v:.4g}' if isinstance(v, float) else v for k,v in r.items()} for r in rows)
    md.write_text(report(rows), encoding='utf-8')
    picture(rows, png)
    return table, png, md

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default=','.join(TABLES),
                   help=f"tables to measure, separated by commas: {', '.join(TABLES)}")
    p.add_argument('--quick', action='store_true', help='small sizes and few rounds, only to try it; '
                   'the numbers are not reliable')
    p.add_argument('--output', type=Path, help='folder of results.csv, .png and .md, which are overwritten; without '
                   'it `results/` beside this file, or a new temporary one with --quick')
    a = p.parse_args()
    tables = [t for t in a.only.replace(' ', '').split(',') if t]
    if wrong := [t for t in tables if t not in TABLES]:
        p.error(f"--only {','.join(wrong)}: no such table; there are {', '.join(TABLES)}")
    out = a.output or (Path(tempfile.mkdtemp(prefix='bench-')) if a.quick else HERE/'results')
    start,rows = time.perf_counter(), []
    print(machine())
    last = None
    with tempfile.TemporaryDirectory() as folder:
        for c in cases(tables, a.quick, folder):
            if c.table != last: print(f'\n{TABLES[c.table]}')
            last = c.table
            rows += measure(c)
    for table,f in dict(commands=commands, preparing=preparing).items():
        if table in tables:
            print(f'\n{TABLES[table]}')
            rows += f(a.quick)
    rows.sort(key=lambda r: list(TABLES).index(r['table']))
    files = save(rows, out)
    print('\n' + report(rows))
    best = [max((r for r in rows if r['table'] == t and r['variant'] == HEADLINE[t]), key=lambda r: r['ratio'])
            for t in tables]
    said = '; '.join(f"{b['table']}: {HEADLINE[b['table']]} up to {b['ratio']:.1f}x ({b['size']})" for b in best)
    print(f'{said}; {time.perf_counter()-start:.0f} s -> {" ".join(map(str, files))}')

if __name__ == '__main__': main()
