"""How fast the responses of a benchmark are scored, against a stock loop over padded batches

    python benchmarks/suites.py            # about two minutes on 2 cores; writes results/suites.csv and .md
    python benchmarks/suites.py --quick    # only a trial

An item is a prompt of 200 tokens with 4 responses of 100 tokens; once all lengths are equal, once they vary as in real
suites. The stock loop is transformers and peft as they come: whole conversations in the order of the items, 8 in a batch,
padded to the longest of the batch, with an attention mask. Variants take turns; a ratio is computed within a round.
Rewards are compared first.
"""
import argparse, contextlib, csv, os, random, tempfile, time
from pathlib import Path
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch
from transformers import LlamaConfig
from rm_nbdev.models.packing import pad_sequences
from rm_nbdev.scoring.rewards import group_rewards
from rm_nbdev.values.search import merged
import contestants
from bench import HERE, machine, number, spread, with_range
from workload import OnDevice

VOCAB,BATCH = 8192,8
PLAIN = f'stock loop, batches of {BATCH}'
NUMBERS = ('median', 'low', 'high', 'ratio', 'ratio_low', 'ratio_high')

def make(hidden=256, layers=4):
    "A reward model with adapters, as trained"
    stock = LlamaConfig(vocab_size=VOCAB, hidden_size=hidden, intermediate_size=8*hidden//3, num_hidden_layers=layers,
                        num_attention_heads=hidden//32, max_position_embeddings=2048, pad_token_id=0)
    return contestants.make('bt', OnDevice(stock))[1].eval()

def items(n, varied, seed=0):
    "Token ids of n items, a group for each"
    rnd = random.Random(seed)
    def ids(mean): return [rnd.randrange(3, VOCAB) for _ in range(rnd.randint(mean//2, mean*3//2) if varied else mean)]
    out = []
    for _ in range(n):
        prompt = ids(200)
        out.append([prompt + ids(100) for _ in range(4)])
    return out

@torch.no_grad()
def plain(model, groups):
    "Stock: whole conversations, a padded batch at a time"
    seqs,out = [s for g in groups for s in g],[]
    for i in range(0, len(seqs), BATCH):
        out.append(model.model(**pad_sequences(seqs[i:i+BATCH], 0)).logits[:,0])
    return torch.cat(out).float()

def kit(model, groups):
    "As rm-eval scores a suite"
    with merged(model): return torch.cat(group_rewards(model, groups, 8192))

def apart(model, groups):
    "The same with the adapters beside the base, as below float32"
    with contextlib.nullcontext(): return torch.cat(group_rewards(model, groups, 8192))

VARIANTS = {PLAIN:plain, 'kit: adapters apart':apart, 'kit: rm-eval':kit}

def measure(name, model, groups, rounds):
    found = {k:f(model, groups) for k,f in VARIANTS.items()}
    worst = max((r-found[PLAIN]).abs().max().item() for r in found.values())
    if worst > 1e-4: raise SystemExit(f'{name}: rewards differ by {worst:.1e}')
    speed,n = {k:[] for k in VARIANTS},sum(map(len, groups))
    for i in range(rounds):
        for k in [*VARIANTS][i%3:] + [*VARIANTS][:i%3]:
            began = time.perf_counter()
            VARIANTS[k](model, groups)
            speed[k].append(n/(time.perf_counter()-began))
    rows = []
    for k,v in speed.items():
        ratios = [b/a for a,b in zip(speed[PLAIN], v)]
        rows.append(dict(variant=k) | dict(zip(NUMBERS, (*spread(v), *spread(ratios)))))
    for r in rows: print(as_row(name, r), flush=True)
    return rows,worst

def as_row(name, r):
    speed,ratio = with_range(r, 'median', 'low', 'high'),with_range(r, 'ratio', 'ratio_low', 'ratio_high')
    return f"| {name} | {r['variant']} | {speed} | {ratio} |"

def save(head, out, worst, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder/'suites.csv').open('w', newline='', encoding='utf-8') as f:
        w = csv.writer(f, lineterminator='\n')
        w.writerow(['size', 'variant', *NUMBERS])
        for name,rows in out.items():
            w.writerows([name, r['variant'], *(f'{r[k]:.4g}' for k in NUMBERS)] for r in rows)
    note = ('Responses per second, median (low–high) of the rounds; × against the first line, '
            f'computed round by round. Rewards of all variants within {worst:.0e}.')
    text = [head, '', note, '', '| | | responses/s | × |', '|---|---|---|---|']
    text += [as_row(n, r) for n,rows in out.items() for r in rows]
    (folder/'suites.md').write_text('\n'.join(text) + '\n', encoding='utf-8')
    return folder/'suites.csv'

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='fewer items and rounds, only to try it; the numbers are not reliable')
    p.add_argument('--output', type=Path, help='folder of suites.csv and .md; without it `results/` beside this file, '
                   'or a new temporary one with --quick')
    a = p.parse_args()
    head,worst,out,began = f'{machine()}; load {os.getloadavg()[0]:.1f}',0.,{},time.perf_counter()
    print(f'{head}\n\n| | | responses/s | × |\n|---|---|---|---|')
    model = make()
    for name,varied in (('prompts of 200 tokens, 4 responses of 100', False), ('the same on average, lengths vary', True)):
        out[name],w = measure(name, model, items(8 if a.quick else 32, varied), 2 if a.quick else 7)
        worst = max(worst, w)
    folder = a.output or (Path(tempfile.mkdtemp(prefix='bench-')) if a.quick else HERE/'results')
    file = save(head, out, worst, folder)
    ratios = ' and '.join(f"{number(rows[-1]['ratio'])}x" for rows in out.values())
    print(f'\nrewards of all variants within {worst:.0e}; rm-eval {ratios} as fast as the stock loop; '
          f'{time.perf_counter()-began:.0f} s -> {file}')

if __name__ == '__main__': main()
