"""How fast the kit trains and scores against trl and the plain computation, and in how much memory

    python benchmarks/bench.py                    # everything, under 10 minutes on 2 cores
    python benchmarks/bench.py --only bt,scoring  # some tables
    python benchmarks/bench.py --quick            # small sizes, about a minute: does it run?

Variants of a table take turns on the same batches, one step each per round, so that a busy machine slows all alike. A ratio
is computed within a round; the table gives its median, lowest and highest. Above 1 is faster than the table's first variant.
"""
import argparse, csv, gc, itertools, math, os, platform, random, statistics, tempfile, time
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
import torch
from contestants import Kit, KitScore, PlainGRM, PlainScore, Trl
from memory import peak_mb
from workload import HIDDEN, make_base, make_pairs, token_counts

HERE = Path(__file__).resolve().parent
COLUMNS = ['table', 'size', 'variant', 'unit', 'median', 'low', 'high', 'ratio', 'ratio_low', 'ratio_high', 'peak_mb']
TABLES = dict(
    bt=f'Bradley-Terry: one optimizer step, LoRA r=32 with dropout 0.05, float32, hidden {HIDDEN}',
    grm='GRM: one optimizer step on 4 pairs, otherwise as above',
    preparing='Preparing: from texts to token ids',
    scoring='Scoring: rewards of several responses to one prompt of 200 tokens')
HEADLINE = dict(bt='kit fast', grm='kit fast', preparing='here', scoring='kit: score')  # What the last line names
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
    seconds:float      # For all rounds together; at least two are made, so that there is a range
    items:int|None=None# Responses in an input: the unit is responses/s; None: s/step

ROUNDS = 6             # at most, where the time allows

def bt_case(base, layers, pairs, scale, seconds):
    warm = make_pairs(2, 8192, scale/8, seed=99)
    packed,padded = dict(batching='packed'), dict(batching='padded')
    v = {'trl, checkpointing (default)': partial(Trl, base, warm),
         'trl, no checkpointing': partial(Trl, base, warm, **WITHOUT)}
    if layers < 16: v |= {
         'kit padded': partial(Kit, base, **padded),
         # trl switches dropout off by default; the others here have it, so that trl does the same work. What that is worth:
         'trl, dropout off': partial(Trl, base, warm, dropout=False),
         'kit fast, prompt twice': partial(Kit, base, share_prompt=False, **packed)}
    v |= {'kit fast, checkpointing': partial(Kit, base, **packed, **WITH),
          'kit fast': partial(Kit, base, **packed)}
    return Case('bt', f'{layers} layers, {pairs} pairs', v, [make_pairs(pairs, 8192, scale, seed=i) for i in range(ROUNDS)], warm, seconds)

def grm_case(base, vocab, mode, scale, seconds):
    # A quarter of the lengths: at 152k entries the plain step holds four tensors of rows x length x vocabulary, 5 GB already so
    kw = dict(sft=dict(sft_only=True), dpo=dict(sft_only=False), reference=dict(sft_only=False, reference_free=False))[mode]
    kit = partial(Kit, base, method='grm', **kw)
    v = {'plain, checkpointing': partial(PlainGRM, base, **kw, **WITH)}
    if mode == 'sft' and vocab < 100_000: v['plain'] = partial(PlainGRM, base, **kw, **WITHOUT)
    if mode == 'sft': v['kit padded'] = partial(kit, batching='padded')
    if mode == 'sft' and vocab < 100_000: v['kit fast, checkpointing'] = partial(kit, batching='packed', **WITH)
    v['kit fast'] = partial(kit, batching='packed')
    what = dict(sft='SFT', dpo='DPO', reference='DPO with reference')[mode]
    return Case('grm', f'vocabulary {vocab/1000:.0f}k, {what}', v, [make_pairs(4, vocab, scale, seed=i) for i in range(ROUNDS)], make_pairs(1, vocab, scale/4, seed=99), seconds)

def scoring_case(base, n, low, high, seconds):
    def one(seed, prompt, n, low, high):
        g = random.Random(seed)
        def ids(k): return [g.randrange(3, 8192) for _ in range(k)]
        return [(ids(prompt), [ids(g.randint(low, high)) for _ in range(n)])]
    v = {'plain: score_ids (padded)': partial(PlainScore, base), 'kit: score': partial(KitScore, base, batching='packed')}
    return Case('scoring', f'{n} responses of {low}-{high} tokens', v, [one(i, 200, n, low, high) for i in range(ROUNDS)], one(99, 20, 2, low, low), seconds, n)

def cases(tables, quick, folder):
    "The comparisons, one after the other; bases are made when they are needed"
    def base(vocab, layers=4, tied=False): return make_base(f'{folder}/{vocab}-{layers}', vocab, layers, tied)
    if 'bt' in tables:
        for layers,*how in [(2, 4, .25, 3)] if quick else [(4, 8, 1, 35), (16, 4, 1, 35)]: yield bt_case(base(8192, layers), layers, *how)
    if 'grm' in tables:
        for vocab,mode,seconds in [(8192, 'sft', 2), (8192, 'reference', 2)] if quick else [(50_000, 'sft', 15), (50_000, 'dpo', 10), (50_000, 'reference', 12), (152_000, 'sft', 25)]:
            yield grm_case(base(vocab, 2 if quick else 4, tied=True), vocab, mode, .125 if quick else .25, seconds)
    if 'scoring' in tables:
        for *what,seconds in [(8, 1, 8, 1)] if quick else [(64, 1, 8, 8), (8, 50, 150, 4)]: yield scoring_case(base(8192, 2 if quick else 4), *what, seconds)

def check_equal(steps, rows):
    "Without dropout all variants give one loss and one gradient: else the comparison would be of different things"
    got = {k: s.result(rows) for k,s in steps.items()}
    (loss0,x0),*rest = got.values()
    loss = max([abs(l-loss0) for l,_ in rest], default=0.)
    x = max([((x-x0).abs().max()/x0.abs().max()).item() for _,x in rest], default=0.)
    if loss > TOLERANCE: raise SystemExit(f'losses (of scoring: sums of rewards) differ by {loss:.1e}: ' + ', '.join(f'{k} {l:.6f}' for k,(l,_) in got.items()))
    return loss, x

def spread(xs): return statistics.median(xs), min(xs), max(xs)

def measure(case):
    "Time and memory of every variant of a case, as rows of the result"
    print(f'\n{case.size}', flush=True)
    steps = {k:f() for k,f in case.variants.items()}
    loss,x = check_equal(steps, case.warm)
    note = 'Largest difference between variants, without dropout: ' + (f'{x:.0e} of the largest reward.' if case.items else f'loss {loss:.0e}, gradient {x:.0e} of its largest entry.')
    if name := next((s.optimizer_name for s in steps.values() if hasattr(s, 'optimizer_name')), ''): note += f" trl's optimizer: {name}; the others': AdamW(fused=True)."
    for s in steps.values(): s(case.warm)
    times,names = {k:[] for k in steps}, list(steps)
    for k in names[:2]: steps[k](case.inputs[-1])   # the hungry ones: on a virtual machine, memory touched for the first time is slow
    start = time.perf_counter()
    for i,rows in enumerate(case.inputs):
        if i >= 2 and (time.perf_counter() - start)*(i+1)/i > case.seconds: break
        for k in names[i%len(names):] + names[:i%len(names)]:       # nobody always goes first
            t = time.perf_counter()
            steps[k](rows)
            times[k].append(time.perf_counter() - t)
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0      # of the last minute
    steps.clear(); gc.collect()
    done = case.inputs[:len(times[names[0]])]
    if not case.items:
        padded,real,shared = map(sum, zip(*map(token_counts, done)))
        note = f'A batch has {real/len(done):.0f} tokens; padding makes them {padded/real:.2f} times as many, the prompt counted once leaves {shared/real:.2f}. ' + note
    note = f'{len(done)} rounds. {note}'
    if load > BUSY*os.cpu_count(): note += f' Other programs were running (load {load:.1f} on {os.cpu_count()} cores): measure again on an idle machine, or with OMP_NUM_THREADS=1.'
    print('  ' + note, flush=True)
    first = times[names[0]]
    widest = done[0] if case.items else max(done, key=lambda o: token_counts(o)[0])
    out = []
    for k,ts in times.items():
        value = ts if case.items is None else [case.items/t for t in ts]
        peak = peak_mb(case.variants[k], case.warm, widest, torch.get_num_threads())
        out.append(dict(note=note) | dict(zip(COLUMNS, (case.table, case.size, k, 's/step' if case.items is None else 'responses/s', *spread(value), *spread([a/b for a,b in zip(first, ts)]), peak))))
        print('  ' + as_text(out[-1]), flush=True)
    return out

def number(x): return '' if x is None or math.isnan(x) else f'{x:.0f}' if abs(x) >= 100 else f'{x:.3g}'
def with_range(r, k, low, high): # 1.9 (1.8–2.1); the first variant's ratio, which is 1 in every round, alone
    v,a,b = (number(r.get(c)) for c in (k, low, high))
    return v if a == v == b or not a else f'{v} ({a}–{b})'
def as_text(r): return f"{r['variant']:32} {with_range(r, 'median', 'low', 'high'):20} {r['unit']:12} x {with_range(r, 'ratio', 'ratio_low', 'ratio_high'):20} {number(r.get('peak_mb')):>6}{' MB'*(r.get('peak_mb') is not None)}"

def machine():
    "What it was measured on"
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), '') if Path('/proc/cpuinfo').is_file() else ''
    return f"{cpu or platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; " + ', '.join(f'{p} {version(p)}' for p in ('torch', 'transformers', 'trl', 'peft')) + f'; {date.today()}'

def report(rows):
    "The tables as Markdown"
    out = [f'Measured on {machine()}.', '', 'Median (low–high) of the rounds; × against the first line, computed round by round; peak memory of one step above the loaded model.']
    for t,title in TABLES.items():
        mine = [r for r in rows if r['table'] == t]
        if not mine: continue
        out += ['', f'## {title}', '', '| | | | × | peak, MB |', '|---|---|---|---|---|']
        out += [f"| {r['size']} | {r['variant']} | {with_range(r, 'median', 'low', 'high')} {r['unit']} | {with_range(r, 'ratio', 'ratio_low', 'ratio_high')} | {number(r.get('peak_mb'))} |" for r in mine]
        out += [''] + [f'{k}: {v}  ' for k,v in {r['size']: r['note'] for r in mine if r.get('note')}.items()]
        if t == 'scoring': out += ['', 'trl has no scoring of several responses to one prompt to compare with.']
    return '\n'.join(out) + '\n'

def picture(rows, path):
    "Ratios with their ranges, one panel a comparison"
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    panels = [(k, list(rs)) for k,rs in itertools.groupby(rows, lambda r: (r['table'], r['size']))]
    fig,axs = plt.subplots(len(panels), 1, figsize=(8, .6*len(panels) + .27*sum(len(d) for _,d in panels) + .8), squeeze=False, layout='constrained',
                           height_ratios=[len(d)+1 for _,d in panels])
    def colour(v): return '#009e73' if v.startswith(('kit fast', 'kit: score', 'here')) else '#56b4e9' if v.startswith('kit') else '#999999'  # Okabe and Ito's, safe for colour-blind readers
    for ax,((table,size),d) in zip(axs[:,0], panels):
        names,mid = [r['variant'] for r in d],[r['ratio'] for r in d]
        low,high = ([r[k] or r['ratio'] for r in d] for k in ('ratio_low', 'ratio_high'))
        ax.barh(names, mid, color=list(map(colour, names)), xerr=[[m-l for m,l in zip(mid, low)], [h-m for m,h in zip(mid, high)]], ecolor='#333333', capsize=2)
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
    p.add_argument('--only', default=','.join(TABLES), help=f"tables to measure, separated by commas: {', '.join(TABLES)}")
    p.add_argument('--quick', action='store_true', help='small sizes and few rounds; figures mean little')
    p.add_argument('--output', type=Path, help='folder of results.csv, .png and .md, which are overwritten; without it `results/` beside this file, or a fresh temporary one with --quick')
    a = p.parse_args()
    tables = [t for t in a.only.replace(' ', '').split(',') if t]
    if wrong := [t for t in tables if t not in TABLES]: p.error(f"--only {','.join(wrong)}: no such table; there are {', '.join(TABLES)}")
    out,start,rows = a.output or (Path(tempfile.mkdtemp(prefix='bench-')) if a.quick else HERE/'results'), time.perf_counter(), []
    print(machine())
    last = None
    with tempfile.TemporaryDirectory() as folder:
        for c in cases(tables, a.quick, folder):
            if c.table != last: print(f'\n{TABLES[c.table]}')
            last = c.table
            rows += measure(c)
    if 'preparing' in tables:
        print(f"\n{TABLES['preparing']}")
        rows += preparing(a.quick)
    files = save(rows, out)
    print('\n' + report(rows))
    best = [max((r for r in rows if r['table'] == t and r['variant'] == HEADLINE[t]), key=lambda r: r['ratio']) for t in tables]
    print('; '.join(f"{b['table']}: {HEADLINE[b['table']]} up to {b['ratio']:.1f}x ({b['size']})" for b in best) + f'; {time.perf_counter()-start:.0f} s -> ' + ' '.join(map(str, files)))

if __name__ == '__main__': main()
