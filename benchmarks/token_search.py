"""How fast every token of a vocabulary is scored as an answer, against batches of whole conversations

    python benchmarks/token_search.py            # about ten minutes on 2 cores; writes results/token_search.csv and .md
    python benchmarks/token_search.py --quick    # only a trial: fewer tokens and rounds

The plain way is stock: peft and transformers as they come, whole conversations in padded batches with their attention
mask. It scores a sample of the tokens, the others score all. Variants take turns; a ratio is computed within a round,
and the table gives its median, lowest and highest. Rewards are compared first.
"""
import argparse, os, tempfile, time
from pathlib import Path
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch
from transformers import LlamaConfig
from rm_nbdev.models.bases import seeded
from rm_nbdev.scoring.rewards import score_groups
from rm_nbdev.values.candidates import AnswerSet, group_suffixes
from rm_nbdev.values.search import merged, shared_prefix_rewards
import contestants
from bench import HERE, machine, number
from variants import compare, head_of, save
from contestants import arithmetic_of
from workload import OnDevice

VOCAB,BATCH = 8192,32
PLAIN = f'plain: stock, batches of {BATCH}'

def make(method, hidden=256, layers=4):
    "A reward model with adapters, as trained"
    stock = LlamaConfig(vocab_size=VOCAB, hidden_size=hidden, intermediate_size=8*hidden//3, num_hidden_layers=layers,
                        num_attention_heads=hidden//32, max_position_embeddings=2048, pad_token_id=0)
    model = contestants.make(method, OnDevice(stock))[1].eval()
    model.packs
    return model

@torch.no_grad()
def plain(model, seqs, batch=BATCH):
    "Stock: whole conversations, a batch at a time"
    out,device = [],next(model.parameters()).device
    for i in range(0, len(seqs), batch):
        ids = torch.tensor(seqs[i:i+batch], device=device)
        mask = torch.ones_like(ids)
        with arithmetic_of(model):
            if model.method == 'bt': rewards = model.model(input_ids=ids, attention_mask=mask).logits
            else:                                   # without the output layer, which no reward needs
                states = model.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                rewards = model.v_head(states[:,-1])
        out.append(rewards[:,0])
    return torch.cat(out).float().cpu()

def variants(model, prefix, tails, sample):
    seqs,answers = [prefix+t for t in tails],AnswerSet(prefix, group_suffixes(tails))
    def inside():
        with merged(model): return shared_prefix_rewards(model, answers)
    return {PLAIN: (lambda: plain(model, seqs[:sample]), sample),
            'kit: score (any responses)': (lambda: score_groups(model, [seqs])[0], len(seqs)),
            'kit: token search, adapters apart': (lambda: shared_prefix_rewards(model, answers), len(seqs)),
            'kit: token search': (inside, len(seqs))}

def measure(name, model, prompt, closing, rounds, tokens):
    with seeded(1): prefix = [1, *torch.randint(3, VOCAB, (prompt-1,)).tolist()]
    todo = variants(model, prefix, [[t, *range(5, 5+closing)] for t in range(3, 3+tokens)], 64)
    return compare(name, todo, rounds, close=1e-5)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='fewer tokens and rounds, only to try it; the numbers are not reliable')
    p.add_argument('--output', type=Path, help='folder of token_search.csv and .md; without it `results/` beside this '
                   'file, or a new temporary one with --quick')
    a = p.parse_args()
    head,worst,out,began = f'{machine()}; load {os.getloadavg()[0]:.1f}',0.,{},time.perf_counter()
    print(f'{head}\n\n{head_of("tokens")}')
    for method in ('bt', 'grm'):
        model = make(method)
        for prompt,closing in ((200, 0), (200, 1), (200, 2), (30, 2)):
            name = f"`{method}`, prompt of {prompt} tokens, {1+closing} token{'s' if closing else ''} per answer"
            out[name],w = measure(name, model, prompt, closing, 2 if a.quick else 5, 500 if a.quick else 8000)
            worst = max(worst, w)
    folder = a.output or (Path(tempfile.mkdtemp(prefix='bench-')) if a.quick else HERE/'results')
    file = save(head, out, worst, folder, 'token_search', 'tokens')
    ratios = ', '.join(f"{number(rows[-1]['ratio'])}x" for rows in out.values())
    seconds = time.perf_counter() - began
    print(f'\nrewards of all variants within {worst:.0e}; '
          f'token search {ratios} as fast as the plain computation; {seconds:.0f} s -> {file}')

if __name__ == '__main__': main()
