"""Tests of the benchmarks: `python -m scripts.dev.test_benchmarks`

They run, on small shapes, and the pages show the published numbers. Nothing here depends on how fast a machine is.
"""

import contextlib, csv, io, re, subprocess, sys, tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
import torch
from fastcore.test import test_eq
from transformers import LlamaConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT/'benchmarks'))
import bench, gpu, needed

def run(name, *args): # Exit code and output of a benchmark
    command = [sys.executable, ROOT/'benchmarks'/name, *map(str, args)]
    r = subprocess.run(command, text=True, capture_output=True, timeout=900)
    return r.returncode, r.stdout + r.stderr

def check_needed():
    shape = dict(vocab_size=10, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                 num_key_value_heads=1, head_dim=4, pad_token_id=0)
    groups = needed.groups_of([dict(chosen_ids=[1]*3, rejected_ids=[1]*4, chosen_spans=[2, 3])])
    test_eq(groups, [(2, [1, 2])])
    test_eq(needed.count_tokens(groups), 5)
    test_eq(needed.count_seen(groups), 1+2 + 3 + 3+4)
    test_eq(needed.count_seen(groups, window=2), 1+2 + 2 + 2+2)
    frozen,adapters = 64+32+32+64 + 3*8*16, 4*32*8 + 32*(8+4+4+8)         # query, key, value, output, the rest
    test_eq(needed.needed_flops(LlamaConfig(**shape), groups), (4*frozen + 6*adapters)*5 + 3*(4*8*13))
    test_eq(needed.needed_flops(LlamaConfig(**shape), groups, learned=1),
            needed.needed_flops(LlamaConfig(**shape), groups) + 2*(2*8*10))
    test_eq(needed.needed_flops(LlamaConfig(**shape), groups, training=False), 2*frozen*5 + 4*8*13)
    windowed = gpu.shapes(tiny=False)['Gemma 2']
    test_eq(needed.layer_windows(windowed), {4096: 13, None: 13})

def check_peak():
    peaks = {'H200': 989e12, 'H100 80GB HBM3': 989e12, 'H100 PCIe': 756e12, 'A100-SXM4-80GB': 312e12, 'L4': 121e12,
             'L40S': 362e12, 'another': None}
    for name,peak in peaks.items(): test_eq(needed.published_peak(f'NVIDIA {name}'), peak)

def check_cuda():
    "What is asked of a GPU, on a made-up one"
    calls = dict(reset_peak_memory_stats=lambda: None, memory_allocated=lambda: 2**30, synchronize=lambda: None,
                 max_memory_allocated=lambda: 3*2**30, get_device_name=lambda: 'NVIDIA H200',
                 get_device_properties=lambda i: SimpleNamespace(total_memory=140*2**30))
    with patch.multiple(torch.cuda, **calls):
        done = []
        test_eq(gpu.peak_memory('cuda', lambda: done.append(1)), 2.)
        test_eq([done, gpu.timed('cuda', lambda: done.append(1)) > 0, done], [[1, 1], True, [1, 1]])
        test_eq(needed.peak_of('cuda'), (989e12, 'as published'))
        assert gpu.where('cuda', 989e12, 'as published').startswith('NVIDIA H200, 140 GiB, CUDA '), gpu.where('cuda', 1, '')

def failing(at): # Makes a contestant that runs out of memory at its `at`-th step, or when it is made (0)
    class Step:
        def __init__(self):
            self.n,self.model = 0,torch.nn.Linear(1, 1)
            if not at: raise torch.OutOfMemoryError
        def result(self, rows): return .5, None
        def __call__(self, rows):
            self.n += 1
            if self.n == at: raise torch.OutOfMemoryError
    return Step

def check_out_of_memory():
    names = dict(good=failing(99), big=failing(0), bigger=failing(2), later=failing(4))
    with contextlib.redirect_stdout(io.StringIO()):
        pairs = [gpu.make_pairs(2, 100, .05, seed=i) for i in range(4)]
        rows,check = gpu.compared('bt', 'small', 'cpu', names, pairs, pairs[0], [1e6]*4, 1e9)
    test_eq([r['note'] for r in rows], [None, 'out of memory', 'out of memory', 'out of memory'])
    assert rows[0]['median'] > 0 and check[1]
    test_eq([r['median'] for r in rows[1:]], [None]*3)
    text = gpu.report('a machine', [check], rows, ['search, Llama'])
    assert '| small | big | out of memory |  |  |  |  |' in text, text
    assert 'Skipped, since the time was used up: search, Llama.' in text, text
    with tempfile.TemporaryDirectory() as d:
        with gpu.save(rows, text, Path(d)).open() as f: back = list(csv.DictReader(f))
    test_eq([r['note'] for r in back], ['']+['out of memory']*3)

def check_time_is_up():
    with contextlib.redirect_stdout(io.StringIO()):
        clock = gpu.Clock(0)
        test_eq(list(gpu.tables(clock, 'cpu', gpu.shapes(True), False, ['bt'], 1e9)), [])
    test_eq(clock.skipped, ['bt, Llama', 'bt, Gemma 2'])

def check_rewards():
    exact = torch.arange(5.)
    with contextlib.redirect_stdout(io.StringIO()):
        test_eq(gpu.check_rewards('', exact, exact+.1*exact, exact+.1*exact)[1], True)
        test_eq(gpu.check_rewards('', exact, exact, exact+exact.flip(0))[1], False)
        test_eq(gpu.check_rewards('', exact, None, exact)[1], True)

def check_tiny():
    "The path of a GPU, on what is here"
    with tempfile.TemporaryDirectory() as d:
        code,out = run('gpu.py', '--tiny', '--output', d)
        assert not code, out
        with open(f'{d}/gpu.csv') as f: rows = list(csv.DictReader(f))
        text = Path(d, 'gpu.md').read_text()
    test_eq([r['table'] for r in rows], ['bt']*8 + ['grm']*4 + ['search']*2)
    for r in rows: assert float(r['median']) > 0 and 0 < float(r['share']) and not r['note'], r
    test_eq({r['variant'] for r in rows[:8]},
            {'trl, checkpointing (default)', 'trl, no checkpointing', 'kit, checkpointing', 'kit'})
    test_eq([float(r['second_ratio']) for r in rows if r['variant'] == 'trl, no checkpointing'], [1., 1.])
    assert text.count('- passed: ') == 9 and 'failed' not in text, text
    assert 'stopped' in text and 'losses differ by 0e+00' in text, text

def check_refused():
    published = ROOT/'benchmarks'/'published'
    code,out = run('gpu.py', '--tiny', '--output', published)
    assert code == 2 and 'is not published' in out, out
    code,out = run('gpu.py', '--only', 'bt,speed')
    assert code == 2 and 'no such part; there are checks, bt, grm, search' in out, out
    if torch.cuda.is_available(): return
    code,out = run('gpu.py')
    assert code == 2 and 'there is no CUDA device' in out, out

def check_ratios():
    times = {'trl, checkpointing (default)': [4., 6.], 'trl, no checkpointing': [2., 6.], 'kit': [1., 2.]}
    found = bench.ratios('commands', times)
    test_eq(found['kit'], dict(ratio=3.5, ratio_low=3., ratio_high=4., second_ratio=2.5, second_low=2., second_high=3.))
    test_eq(found['trl, no checkpointing']['second_ratio'], 1.)
    test_eq(bench.ratios('grm', times)['kit'], dict(ratio=3.5, ratio_low=3., ratio_high=4.))

def check_whole_commands():
    code,out = run('whole_commands.py', '--quick', '--layers', 2)
    assert not code, out
    lines = re.findall(r'round 1, (.*?) +([\d.]+) s/step', out)
    commands = ['trl, checkpointing (default)', 'trl, no checkpointing', 'kit, checkpointing', 'kit']
    test_eq([k for k,_ in lines], commands)
    test_eq(out.count('times as fast as trl'), 4)

def check_half_a_million():
    "What it finds grows with the pairs no faster than they do, and a second start tokenizes nothing"
    import half_a_million
    with contextlib.redirect_stdout(io.StringIO()): found = half_a_million.main(['--quick'])
    assert found['2n', 'warm']['memory'] - found['n', 'warm']['memory'] < 30, found
    assert found['n', 'warm']['passes']['tokenize'] < found['n', 'cold']['passes']['tokenize'], found

def published():
    with (ROOT/'benchmarks/published/results.csv').open() as f: return list(csv.DictReader(f))

def speed_of(rows): # As the front page has it: ranges of the ratios with trl as it is, and without checkpointing
    by_size = {}
    for r in rows:
        if r['table'] == 'bt': by_size.setdefault(r['size'], {})[r['variant']] = r
    def second(d):
        if d['kit fast'].get('second_ratio'): return float(d['kit fast']['second_ratio'])
        return float(d['trl, no checkpointing']['median'])/float(d['kit fast']['median'])
    first = [float(d['kit fast']['ratio']) for d in by_size.values()]
    def words(x): return f'{min(x):.1f} to {max(x):.1f}'
    return words(first), words([second(d) for d in by_size.values()])

def check_readme():
    "The numbers of the front page are the published ones"
    first,second = speed_of(published())
    for name in ('README.md', 'nbs/index.ipynb'):
        text = (ROOT/name).read_text()
        row = re.search(r'\| speed of a `bt` step.*', text)
        assert row, f'{name}: no row about the speed of a step'
        test_eq(re.findall(r'[\d.]+ to [\d.]+', row[0]), [first, second])
    readme = (ROOT/'README.md').read_text()
    ours = [r for r in published() if r['variant'] in ('kit fast', 'kit', 'here', 'kit: score')]
    for r in ours:
        other = f"{float(r['second_ratio']):.1f}" if r.get('second_ratio') else ''
        cells = f"| {float(r['ratio']):.1f} | {other} |"
        assert any(r['size'] in l and cells in l for l in readme.splitlines()), f"README.md: {r['size']}: {cells}"

if __name__ == '__main__':
    for name, f in list(globals().items()):
        if name.startswith('check_') and f.__module__ == '__main__': f(); print(f'{name} passed', flush=True)
