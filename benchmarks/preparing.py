"""How fast pairs become token ids: `python benchmarks/preparing.py [--quick]`

English text (Python's own help pages), prompts of about 200 tokens, lognormal responses of about 275, a byte-level BPE
with Llama 3's rules for words and its chat template. All variants take the same pairs from disk in turn, repeatedly;
only `raw encode_batch_fast` gets its texts ready made and writes nothing.
"""
import random, re, sys, tempfile, threading, time
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from types import SimpleNamespace
import datasets, numpy as np
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from rm_nbdev.data.pairs import Origin
from rm_nbdev.data.token_store import tokenize_pairs

TEMPLATE = ("{{- bos_token }}{%- for message in messages %}"
            "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim "
            "+ '<|eot_id|>' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}")
WORD = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>',
           *(f'<|reserved_special_token_{i}|>' for i in range(250))]
TEXT = '\n'.join(topics.values())

def llama_like(vocab=16000):
    "A tokenizer like that of Llama 3, trained here"
    t = Tokenizer(models.BPE(ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORD), 'isolated'), byte_level])
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(TEXT.splitlines(True), trainer)
    t.post_processor = processors.TemplateProcessing(single=f'{SPECIAL[0]} $A', special_tokens=[(SPECIAL[0], 0)])
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token=SPECIAL[0], eos_token='<|eot_id|>',
                                   chat_template=TEMPLATE)

def some_pairs(n, seed=0):
    "Pairs of whole conversations that share a prompt"
    rng,words = random.Random(seed),re.findall(r'\S+\s*', TEXT)
    def words_of(k):
        i = rng.randrange(len(words)-k)
        return ''.join(words[i:i+k]).strip()
    for i in range(n):
        prompt = dict(role='user', content=words_of(max(5, int(rng.gauss(118, 35)))))
        def response(): return words_of(min(2500, max(3, int(rng.lognormvariate(4.85, .7)))))
        chosen,rejected = ([prompt, dict(role='assistant', content=f'{a} {response()}')] for a in 'AB')
        yield dict(chosen=chosen, rejected=rejected, margin=None, row=i, file='pairs', id=None)

def original_map(ds, tok):
    "One row at a time, each side rendered and encoded by itself"
    def one(row):
        out = {}
        for side in ('chosen', 'rejected'):
            o = tok(tok.apply_chat_template(row[side], tokenize=False), max_length=1024, truncation=True)
            out |= {f'input_ids_{side}':o['input_ids'], f'attention_mask_{side}':o['attention_mask']}
        return out
    return ds.map(one)

def trl_way():
    "What trl's reward trainer does to its data, or None"
    try: from trl.trainer.reward_trainer import RewardTrainer
    except ImportError: return None
    args = SimpleNamespace(dataset_num_proc=None, max_length=1024)
    def prepare(ds, tok):
        return RewardTrainer._prepare_dataset(None, ds.select_columns(['chosen', 'rejected']), tok, args, 'train')
    return prepare

def own_memory():
    "Memory of this process that no file backs, in MB; None where the system does not say"
    try: return int(re.search(r'RssAnon:\s+(\d+)', Path('/proc/self/status').read_text())[1])/1024
    except (OSError, TypeError): return None

def timed(f):
    "Seconds, and the most memory above what was there before, in MB"
    start,done,peak = own_memory(),threading.Event(),[0.]
    def watch():
        while not done.wait(.02): peak[0] = max(peak[0], own_memory()-start)
    if start is not None: (thread := threading.Thread(target=watch)).start()
    began = time.perf_counter()
    try: f()
    finally:
        took = time.perf_counter()-began
        done.set()
        if start is not None: thread.join()
    return took, None if start is None else peak[0]

def measure(quick=False):
    "Rows for the table `preparing`"
    n,times = (200, 1) if quick else (1500, 3)
    tok = llama_like(2000 if quick else 16000)
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars(); datasets.disable_caching()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
            ds = Dataset.from_generator(some_pairs, gen_kwargs=dict(n=n), cache_dir=tmp)
            texts = [tok.apply_chat_template(c, tokenize=False) for k in ('chosen', 'rejected') for c in ds[k]]
            def here(i): return tokenize_pairs(ds, tok, origin=Origin(f'benchmark {i}', np.arange(n)), cache_dir=tmp)
            def raw(i): return tok.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            trl = trl_way()
            ways = {"original's map, fast tokenizer": lambda i: original_map(ds, tok)}
            if trl: ways['trl'] = lambda i: trl(ds, tok)
            ways |= {'here': here, 'here, from the cache': here, 'raw encode_batch_fast': raw}
            raw(0)                                       # the first call starts its threads
            found = {k:[] for k in ways}
            for i in range(times):
                for k,f in ways.items():
                    tok('a')                             # resets the truncation that the original's way sets
                    found[k].append(timed(lambda: f(i)))
    finally:
        datasets.enable_caching()
        if bars: datasets.enable_progress_bars()
    def row(k, runs):
        speed,memory = [n/t for t,_ in runs],[m for _,m in runs if m is not None]
        return dict(table='preparing', variant=k, unit='pairs/s', median=median(speed), low=min(speed),
                    high=max(speed), peak_mb=max(memory) if memory else None)
    return [row(k, runs) for k,runs in found.items()]

if __name__ == '__main__':
    for o in measure('--quick' in sys.argv):
        memory = '' if o['peak_mb'] is None else f", {o['peak_mb']:.0f} MB"
        print(f"{o['variant']:32}{o['median']:8.0f} {o['unit']} ({o['low']:.0f} to {o['high']:.0f}){memory}")
