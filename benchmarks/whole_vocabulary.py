"""Tables of a whole vocabulary: seconds and memory of rm-ranks, its report and the study of one run

    python benchmarks/whole_vocabulary.py                    # 1/36 and 1/9 of the full size
    python benchmarks/whole_vocabulary.py --shares 36        # only a trial, well under a minute
    python benchmarks/whole_vocabulary.py --shares 1         # the full size: 345.6 million rewards, 1.2 GB on the disk

The full size is 256,000 tokens x 54 prompts x 25 checkpoints. A share of 1/k has 1/sqrt(k) of the tokens and of the
prompts, and all checkpoints. The rewards are synthetic: they drift from one order to another, and some tokens tie. They
are stored as rm-values stores them; each command runs in a process of its own, one after the other. Written to
`results/whole_vocabulary.csv` and `.md`, with the growth from the smallest share to the largest.
"""
import argparse, json, math, os, subprocess, sys, tempfile, time
from pathlib import Path

TOKENS, PROMPTS, STEPS = 256_000, 54, [0, *(2**k for k in range(23)), 2**22 + 2**21]
WORDS = 700  # Of the lexicon, in two categories; each is two tokens, as love and ' love' are


def words(n, rng):
    "Different made-up words"
    starts, vowels, ends = 'b c d f g h l m n p r s t v st tr pl'.split(), 'a e i o u ea ou'.split(), ['', *'nrslt']
    syllables, found = [a+b+c for a in starts for b in vowels for c in ends], {}
    while len(found) < n:
        found |= dict.fromkeys(''.join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(n-len(found)))
    return list(found)


def candidates(n, rng):
    "A vocabulary: words alone and after a space, and 256 tokens that decode to the same mark, as parts of letters do"
    import pandas as pd
    own = words(n//2, rng)
    texts = [t for w in own for t in (w, f' {w}')][:n-256] + ['\ufffd']*256
    ids = pd.array(range(n), dtype='Int64')
    return own, pd.DataFrame(dict(token_id=ids, token_name=[f'token-{i}' for i in range(n)], token_decoded=texts))


def rewards(n, key, seed=0):
    "From one order to another over the steps, float32 (steps, n); a tenth of the tokens tie"
    import numpy as np
    rng = np.random.default_rng([seed, *key.encode()])
    first, last, out = rng.normal(size=n), rng.normal(size=n), np.empty((len(STEPS), n), np.float32)
    for i in range(len(STEPS)):
        share = i/(len(STEPS)-1)
        out[i] = (1-share)*first + share*last + .1*rng.normal(size=n)
    out[:, ::10] = np.round(out[:, ::10], 2)
    return out


def make(folder, share):
    "A run with the values of this share of the full size, and a lexicon"
    import numpy as np
    from rm_nbdev.values.store import write_store
    from rm_nbdev.values.stimuli import PROMPTS as QUESTIONS
    rng, n = np.random.default_rng(0), round(TOKENS/math.sqrt(share))
    own, table = candidates(n, rng)
    keys = list(QUESTIONS)[::round(math.sqrt(share))]
    (folder/'values').mkdir(parents=True)
    write_store(folder/'values', table, {k:QUESTIONS[k] for k in keys}, STEPS, lambda key: rewards(n, key))
    rows = [f"{('Agency', 'Communion')[i % 2]},{w}\n" for i, w in enumerate(own[:WORDS])]
    (folder/'lexicon.csv').write_text('category,word\n' + ''.join(rows))
    return n*len(keys)*len(STEPS)


STUDY = """
import sys
from rm_nbdev.analysis.study import Study
from rm_nbdev.analysis.study_data import study_settings
run, lexicon, output = sys.argv[1:]
study = Study(study_settings(dict(runs=[run], lexicon=[lexicon], output=output)))
for name in ('medians', 'gaps', 'by_family', 'base_gaps', 'movers', 'agreement', 'ties', 'extremes', 'mwlr'): getattr(study, name)()
"""


def commands(run, out):
    "Name -> the words of a command"
    ranks = [sys.executable, '-c', 'from rm_nbdev.analysis.report import main; main()', run, '--lexicon', f'{run}/lexicon.csv',
             '--output', f'{out}/ranks.csv']
    return {'rm-ranks': ranks, 'rm-ranks --report': [*ranks, '--report', f'{out}/report'],
            'study': [sys.executable, '-c', STUDY, run, f'{run}/lexicon.csv', f'{out}/study']}


def measured(words):
    "Seconds, seconds of all cores, and peak memory in MB, of a command"
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=os.environ | dict(MPLBACKEND='agg', HF_HUB_OFFLINE='1'))
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status: raise SystemExit(f"{' '.join(words[:8])} failed:\n{said[-2000:]}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss/1024


def size(folder): return sum(p.stat().st_size for p in Path(folder).rglob('*') if p.is_file())/2**20


def growth(table):
    "Sentences: how seconds and memory grow from the smallest share to the largest"
    for name, own in table.groupby('command', sort=False):
        small, large = own.iloc[0], own.iloc[-1]
        if small.rewards == large.rewards: continue
        yield (f'{name}: {large.rewards/small.rewards:.1f} times the rewards take {large.seconds/small.seconds:.1f} times the seconds, '
               f'{large.core_seconds/small.core_seconds:.1f} times the seconds of all cores and {large.peak_mb/small.peak_mb:.1f} times the memory')


def save(rows, folder):
    "whole_vocabulary.csv and .md; returns the text of the second"
    import pandas as pd
    table = pd.DataFrame(rows)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder/'whole_vocabulary.csv', index=False)
    head = f'{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}'
    cells = [[*table], ['---']*len(table.columns), *table.astype(str).values.tolist()]
    lines = [head, '', *(f"| {' | '.join(row)} |" for row in cells), '', *growth(table)]
    (folder/'whole_vocabulary.md').write_text('\n'.join(lines) + '\n')
    return '\n'.join(growth(table))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shares', type=int, nargs='+', default=[36, 9], help='one over the share of the full size, from small to large')
    p.add_argument('--only', nargs='+', metavar='COMMAND', help='some of: rm-ranks, "rm-ranks --report", study')
    p.add_argument('--output', type=Path, default=Path(__file__).parent/'results', help='folder of whole_vocabulary.csv and .md')
    p.add_argument('--keep', type=Path, help='folder in which the runs are made, and stay; one that is there is used again')
    a, rows = p.parse_args(), []
    with tempfile.TemporaryDirectory() as temporary:
        for share in a.shares:
            run = (a.keep or Path(temporary))/f'share-{share}'
            if not (run/'size.json').exists(): (run/'size.json').write_text(str(make(run, share)))
            n = json.loads((run/'size.json').read_text())
            with tempfile.TemporaryDirectory() as out:
                for name, cmd in commands(str(run), out).items():
                    if a.only and name not in a.only: continue
                    seconds, cores, memory = measured(cmd)
                    rows.append(dict(share=f'1/{share}', rewards=n, command=name, seconds=round(seconds, 1), core_seconds=round(cores, 1),
                                     peak_mb=round(memory), stored_mb=round(size(run/'values'))))
                    print('  '.join(f'{k} {v:,}' if isinstance(v, (int, float)) else f'{v}' for k, v in rows[-1].items()), flush=True)
    print(save(rows, a.output))


if __name__ == '__main__': main()
