"""How fast the responses of a benchmark are scored, against a stock loop over padded batches

    python benchmarks/suites.py            # about four minutes on 2 cores; writes results/suites.csv and .md
    python benchmarks/suites.py --quick    # only a trial

An item is a prompt of 200 tokens with 4 responses of 100 tokens; once all lengths are equal, once they vary as in real
suites, on a tiny model (2 layers of 64, as the miniature's) and on a small one (4 layers of 256). The stock loop is transformers and peft as they come: whole conversations in the order of the items, 8 in a batch,
padded to the longest of the batch, with an attention mask. Variants take turns; a ratio is computed within a round.
Rewards are compared first. Where other programs compete for the cores, OMP_NUM_THREADS=1 gives steadier ratios.
"""
import argparse, os, random, tempfile, time
from pathlib import Path
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch
from transformers import LlamaConfig
from rm_nbdev.evals.score import rewards_of
from rm_nbdev.models.packing import pad_sequences
from rm_nbdev.scoring.rewards import RewardFunction
from rm_nbdev.values.search import merged
import contestants
from bench import HERE, machine, number
from variants import compare, head_of, save
from workload import OnDevice

VOCAB,BATCH = 8192,8
PLAIN = f'stock loop, batches of {BATCH}'

SIZES = {'tiny (2 layers of 64)':(64, 2, 64), 'small (4 layers of 256)':(256, 4, 24)} # hidden, layers, items

def make(hidden, layers):
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

def apart(model, groups):
    "The kit with the adapters beside the base, as below float32"
    return torch.from_numpy(rewards_of(RewardFunction(model, None), groups))

def kit(model, groups):
    "As rm-eval scores a suite"
    with merged(model): return apart(model, groups)

VARIANTS = {PLAIN:plain, 'kit: adapters apart':apart, 'kit: rm-eval':kit}

def measure(name, model, groups, rounds):
    n = sum(map(len, groups))
    todo = {k:((lambda f=f: f(model, groups)), n) for k,f in VARIANTS.items()}
    return compare(name, todo, rounds, close=1e-6)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='fewer items and rounds, only to try it; the numbers are not reliable')
    p.add_argument('--output', type=Path, help='folder of suites.csv and .md; without it `results/` beside this file, '
                   'or a new temporary one with --quick')
    a = p.parse_args()
    head,worst,out,began = f'{machine()}; load {os.getloadavg()[0]:.1f}',0.,{},time.perf_counter()
    print(f'{head}\n\n{head_of("responses")}')
    for size,(hidden,layers,n) in SIZES.items():
        model = make(hidden, layers)
        for lengths,varied in (('prompts of 200 tokens, 4 responses of 100', False), ('lengths vary', True)):
            name = f'{size}, {lengths}'
            out[name],w = measure(name, model, items(8 if a.quick else n, varied), 2 if a.quick else 5)
            worst = max(worst, w)
    folder = a.output or (Path(tempfile.mkdtemp(prefix='bench-')) if a.quick else HERE/'results')
    file = save(head, out, worst, folder, 'suites', 'responses')
    ratios = ', '.join(f"{number(rows[-1]['ratio'])}x" for rows in out.values())
    print(f'\nrewards of all variants within {worst:.0e}; rm-eval {ratios} as fast as the stock loop; '
          f'{time.perf_counter()-began:.0f} s -> {file}')

if __name__ == '__main__': main()
