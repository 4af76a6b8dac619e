"""Whole rankings of several models side by side: seconds and memory of their agreement, of a map and of regressions

    python benchmarks/side_by_side.py                    # 1/36 and 1/9 of the full size
    python benchmarks/side_by_side.py --shares 36        # only a trial, a few seconds
    python benchmarks/side_by_side.py --shares 1         # the full size: 138 million rewards, 0.3 GB on the disk

The full size is 256,000 tokens x 54 prompts x 10 models, each model a parquet file with a column per prompt. A share of
1/k has 1/sqrt(k) of the tokens and of the prompts, and all models. The rewards are synthetic: half of what a model prefers
is its family's taste. Each part runs in a process of its own, one after the other. Written to `results/side_by_side.csv`.
"""
import argparse, csv, math, os, subprocess, sys, tempfile, time
from pathlib import Path

TOKENS, PROMPTS, MODELS = 256_000, 54, 10


def make(folder, share):
    "The tables of ten models in three families, a table of words; returns how many rewards there are"
    import numpy as np, pandas as pd
    from rm_nbdev.values.stimuli import PROMPTS as QUESTIONS
    rng, n = np.random.default_rng(0), round(TOKENS/math.sqrt(share))
    keys = list(QUESTIONS)[::round(math.sqrt(share))]
    texts = [f'{"Ġ "[i % 2]}word{i//2}' for i in range(n)]                 # most words are two tokens
    tastes = rng.normal(size=(3, n))
    (folder/'tables').mkdir(parents=True)
    for m in range(MODELS):
        own = tastes[m % 3] + rng.normal(size=n)
        columns = {k: (own + .7*rng.normal(size=n)).astype(np.float32).round(3) for k in keys}
        frame = pd.DataFrame(dict(token_id=range(n), token_decoded=texts) | columns)
        frame.to_parquet(folder/'tables'/f'{("gemma", "llama", "qwen")[m % 3]}-{m}.parquet', index=False)
    words = dict(word=[f'word{i}' for i in range(n//2)], frequency=rng.integers(1, 10**6, n//2),
                 sentiment=rng.normal(size=n//2).round(2))
    pd.DataFrame(words).to_csv(folder/'words.csv', index=False)
    return n*len(keys)*MODELS


START = """
import sys
from rm_nbdev.analysis.table_files import find_tables, table_names
from rm_nbdev.analysis.agreement import model_agreement
from rm_nbdev.analysis.model_map import model_map, read_word_table, word_regressions
tables = find_tables(sys.argv[1] + '/tables')
names = table_names([t.path for t in tables])
"""
PARTS = {'agreement and map': 'model_map(model_agreement(tables, names))',
         'regressions': "word_regressions(tables, names, read_word_table(sys.argv[1] + '/words.csv'))"}


def measured(code, folder):
    "Seconds, seconds of processor time, and peak memory in MB of a process"
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, '-c', START + code, str(folder)], stderr=subprocess.PIPE, text=True)
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status: raise SystemExit(f'{code} failed:\n{said[-2000:]}')
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss/1024


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shares', type=int, nargs='+', default=[36, 9], help='one over the share of the full size')
    p.add_argument('--output', type=Path, default=Path(__file__).parent/'results', help='folder of side_by_side.csv')
    a = p.parse_args()
    rows = []
    for share in a.shares:
        with tempfile.TemporaryDirectory() as folder:
            n = make(Path(folder), share)
            for name, code in PARTS.items():
                seconds, busy, memory = measured(code, folder)
                rows.append(dict(share=f'1/{share}', rewards=n, part=name, seconds=round(seconds, 1),
                                 processor_s=round(busy, 1), peak_mb=round(memory)))
                print('  '.join(f'{k} {v:,}' if isinstance(v, (int, float)) else v for k, v in rows[-1].items()), flush=True)
    a.output.mkdir(parents=True, exist_ok=True)
    with (a.output/'side_by_side.csv').open('w', newline='') as f:
        table = csv.DictWriter(f, rows[0])
        table.writeheader()
        table.writerows(rows)


if __name__ == '__main__': main()
