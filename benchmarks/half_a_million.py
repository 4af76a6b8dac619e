"""From a file of pairs to the first step: seconds and memory, cold and from the cache. `python benchmarks/half_a_million.py`

Makes a tokenizer of 32,000 entries, a tiny base and files of N and 2N pairs of about 400 tokens, then starts trainings in
processes of their own, each of which ends when its first step would begin: one of 200 pairs, whose start is subtracted, and one
of each file with an empty cache and one with a full one. Some three minutes on 2 idle cores for N = 100,000."""

import argparse, json, os, shutil, subprocess, sys, tempfile, threading, time
from pathlib import Path

TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
# What is timed on its own: where it is looked up, its name, what it does
PASSES = [('data.pairs', 'find_sources', 'hash the file'), ('data.pairs', 'pair_table', 'read the rows'),
          ('data.pairs', 'held_out_groups', 'hold out rows'), ('data.pairs', 'found_in', 'repeats, contradictions'),
          ('data.pairs', '_fingerprint', 'fingerprint of the rows'),
          ('training.prepare', 'tokenize_pairs', 'tokenize'), ('data.token_store', 'read_shards', 'of it: check the cache'),
          ('data.token_store', 'token_facts', 'of it: ids used, lengths, digest'),
          ('runs.train', 'build', 'model and trainer'), ('runs.train', 'write_pairs', 'write pairs.parquet')]


def vocabulary(rng):
    "60,000 made-up words; the n-th is drawn with a probability of 1/n"
    import numpy as np
    starts, vowels, ends = 'b c d f g h l m n p r s t v st tr pl'.split(), 'a e i o u ea ou'.split(), ['', *'nrslt']
    syllables = [a+b+c for a in starts for b in vowels for c in ends]
    words = {''.join(rng.choice(syllables, rng.integers(1, 4))): None for _ in range(60_000)}
    shares = 1/np.arange(1, len(words)+1)
    return np.array(list(words), dtype=object), np.cumsum(shares/shares.sum())


def text(rng, words, n):
    import numpy as np
    names, shares = words
    return ' '.join(names[np.searchsorted(shares, rng.random(n)).clip(max=len(names)-1)]) + '.'


def make_base(folder, words, rng):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
    trainer = trainers.BpeTrainer(vocab_size=32_000, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator((text(rng, words, 300) for _ in range(3000)), trainer)
    tok = PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=TEMPLATE, eos_token='<|im_end|>', pad_token='<|endoftext|>')
    tok.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=2, max_position_embeddings=2048)).save_pretrained(folder)


def make_pairs(path, n, words, rng):
    "About 400 tokens a pair: prompt and two answers, some 270 words"
    with open(path, 'w') as f:
        for _ in range(n):
            sizes = rng.lognormal(4.55, .5, 3).clip(5, 500).astype(int)
            f.write(json.dumps(dict(zip(('prompt', 'chosen', 'rejected'), (text(rng, words, k) for k in sizes)))) + '\n')


def own_memory():
    "MB of this process that are not pages of files"
    for line in open('/proc/self/status'):
        if line.startswith('RssAnon'): return int(line.split()[1])/1024
    return 0.


class FirstStep(Exception): "Raised in its place"


def child(data, base, run):
    "A training up to its first step; prints what it took as JSON"
    import importlib
    peak, passes = [0.], {}

    def watch():
        while True:
            peak[0] = max(peak[0], own_memory())
            time.sleep(.02)

    def timed(f, name):
        def g(*args, **kw):
            began = time.perf_counter()
            try: return f(*args, **kw)
            finally: passes[name] = passes.get(name, 0) + time.perf_counter()-began
        return g
    from rm_nbdev.core.config import Config
    from rm_nbdev.runs.train import train
    from rm_nbdev.training.trainer import PairTrainer
    for module, name, what in PASSES:
        module = importlib.import_module(f'rm_nbdev.{module}')
        setattr(module, name, timed(getattr(module, name), what))

    def stop(*args, **kw): raise FirstStep()
    PairTrainer.training_step = stop
    threading.Thread(target=watch, daemon=True).start()
    began, cpu = time.perf_counter(), time.process_time()
    config = Config('bt', base_model=base, dataset=data, output_dir=run, overwrite_output_dir=True, eval_strategy='no',
                    save_strategy='no', load_best_model_at_end=False, gradient_checkpointing=False, disable_tqdm=True)
    try: train(config)
    except FirstStep: pass
    print('RESULT', json.dumps(dict(seconds=time.perf_counter()-began, cpu=time.process_time()-cpu, memory=peak[0], passes=passes)))


def start(data, base, folder, show=False):
    "What `child` found in a process of its own"
    env = {**os.environ, 'HF_DATASETS_CACHE': str(folder/'cache'), 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': ''}
    call = [sys.executable, __file__, '--child', str(data), str(base), str(folder/'run')]
    out = subprocess.run(call, env=env, capture_output=True, text=True)
    found = [l for l in out.stdout.splitlines() if l.startswith('RESULT ')]
    if not found: raise SystemExit(f'a training failed:\n{out.stdout[-2000:]}{out.stderr[-2000:]}')
    return json.loads(found[-1].removeprefix('RESULT '))


def measure(n, folder):
    "Name of the start -> what it took; n and 2n pairs, cold and warm, and a small start"
    import numpy as np
    rng = np.random.default_rng(0)
    words = vocabulary(rng)
    make_base(folder/'base', words, rng)
    found = {}
    for name, size in (('small', 200), ('n', n), ('2n', 2*n)):
        make_pairs(folder/'pairs.jsonl', size, words, np.random.default_rng(size))
        for cache in ('cold', 'warm'):
            found[name, cache] = start(folder/'pairs.jsonl', folder/'base', folder)
            took = found[name, cache]
            print(f"{size:>8,} pairs, {cache}: {took['seconds']:6.1f} s ({took['cpu']:.0f} s of CPU), "
                  f"own memory at most {took['memory']:.0f} MB", flush=True)
        shutil.rmtree(folder/'cache')
    return found


def report(found, n):
    "Lines of the outcome"
    def beyond(name, cache): return found[name, cache]['seconds'] - found['small', 'warm']['seconds']
    yield f"from the file to the first step, beyond the start of 200 pairs ({found['small', 'warm']['seconds']:.1f} s):"
    for name, size in (('n', n), ('2n', 2*n)):
        yield f"  {size:,} pairs: {beyond(name, 'cold'):.1f} s cold, {beyond(name, 'warm'):.1f} s from the cache"
    for cache in ('cold', 'warm'):
        a, b = (found[name, cache]['memory'] for name in ('n', '2n'))
        yield f'  own memory, {cache}: {a:.0f} MB with {n:,} pairs, {b:.0f} MB with {2*n:,} ({b-a:+.0f} MB)'
    yield f'{"seconds of a pass":34}{"cold":>8}{"warm":>8}'
    for *_, what in PASSES:
        cold, warm = (found['n', cache]['passes'].get(what, 0) for cache in ('cold', 'warm'))
        yield f'{what:34}{cold:8.2f}{warm:8.2f}'


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pairs', type=int, default=100_000, help='N')
    parser.add_argument('--quick', action='store_true', help='only a trial: 1000 pairs')
    parser.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.child: return child(*flags.child)
    n = 1000 if flags.quick else flags.pairs
    with tempfile.TemporaryDirectory() as d: found = measure(n, Path(d))
    print(*report(found, n), sep='\n')
    return found


if __name__ == '__main__': main()
