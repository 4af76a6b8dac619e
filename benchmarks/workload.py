"What is measured on: random pairs with the lengths of preference data, and small random Llamas"
import random
from pathlib import Path
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD,EOS = 0,2
HIDDEN = 256

# Lengths in tokens, lognormal: median, and standard deviation of the logarithm. With these, 16 sequences padded to the
# longest hold about 1.9 times their tokens, and a prompt counted once per pair leaves 0.79 of them.
PROMPT,RESPONSE = (200, .3), (230, .8)
MAX_LENGTH = 1024
SEED = 15               # of the first batch: from here also the first two to six come within 0.1 of those figures

def make_pairs(
    n:int,         # How many
    vocab:int,     # Token ids lie below it
    scale:float=1, # Factor on all lengths
    seed:int=0,    # Same seed, same pairs
)->list[dict]:     # Rows as a tokenized data set has them
    "Random preference pairs: a prompt and two responses"
    # two generators, so that lengths do not depend on the vocabulary
    lengths,words,top = random.Random(SEED+seed),random.Random(seed),int(MAX_LENGTH*scale)
    def length(median, sd, most): return max(2, min(int(median*scale*lengths.lognormvariate(0, sd)), most))
    def ids(k): return [words.randrange(3, vocab) for _ in range(k)]
    def pair():
        p = ids(length(*PROMPT, top//2))
        c,r = (ids(length(*RESPONSE, top-len(p))) for _ in range(2))
        return dict(chosen_ids=p+c, rejected_ids=p+r, chosen_spans=[len(p), len(p+c)],
                    rejected_spans=[len(p), len(p+r)], margin=None)
    return [pair() for _ in range(n)]

def token_counts(
    rows:list[dict], # Pairs of one batch
)->tuple:            # Tokens of the padded batch; real tokens; tokens with each prompt counted once
    "How many tokens a batch costs in the three ways of laying it out"
    seqs = [o[k] for o in rows for k in ('chosen_ids', 'rejected_ids')]
    real = sum(map(len, seqs))
    return len(seqs)*max(map(len, seqs)), real, real - sum(o['chosen_spans'][0] for o in rows)

def make_base(
    folder,         # Where it is written
    vocab:int,      # Size of the vocabulary
    layers:int,     # Number of layers
    tied:bool=False,# Output layer shares the embedding's weights, as small models with large vocabularies do
)->str:             # The folder
    "A random Llama: 4 query heads of 64 on 2 key-value heads, intermediate 688 (Llama 2's ratio 11008/4096)"
    config = LlamaConfig(vocab_size=vocab, hidden_size=HIDDEN, intermediate_size=688, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2*MAX_LENGTH,
                         pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS, tie_word_embeddings=tied)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(Path(folder))

def bare_tokenizer(): # trl asks for one, though the pairs are tokenized already
    words = models.WordLevel({'<pad>':PAD, '<unk>':1, '</s>':EOS}, unk_token='<unk>')
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token='<pad>', unk_token='<unk>',
                                   eos_token='</s>')
