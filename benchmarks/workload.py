"What is measured on: random pairs with the lengths of preference data, and small random Llamas"
import copy, random
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn
from tokenizers import Tokenizer, models
from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM,
                          PretrainedConfig, PreTrainedTokenizerFast)
from rm_nbdev.models.adapters import add_lora
from rm_nbdev.models.bases import seeded
from rm_nbdev.models.heads import ValueHead
from rm_nbdev.models.make import recompute_activations
from rm_nbdev.models.reward_model import GRM, RewardModel

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

@dataclass(frozen=True)
class OnDevice:
    "A base that is created on a device from its config, with random weights, instead of being loaded from a folder"
    config:PretrainedConfig
    device:str='cpu'
    dtype:torch.dtype=torch.float32  # Of the base; adapters and heads are float32

    def model(self,
        config,      # The kit's `Config`: method, adapters, seed, gradient checkpointing
    )->RewardModel:  # As `make_model` would load it
        "A reward model with adapters"
        kind = AutoModelForSequenceClassification if config.method == 'bt' else AutoModelForCausalLM
        stock = copy.deepcopy(self.config)
        if config.method == 'bt': stock.num_labels = 1
        with seeded(0), torch.device(self.device): m = self._stock(kind, stock)
        m.get_input_embeddings().padding_idx = None
        if config.method == 'bt': m.score.float()
        if config.gradient_checkpointing: recompute_activations(m)
        m = add_lora(m, None, config.lora_target_modules, config.lora_r, config.lora_alpha, config.lora_dropout,
                     config.seed)
        if config.method == 'bt': return RewardModel(m)
        head = ValueHead(stock.hidden_size, config.layer_type, config.num_layers, config.num_neurons, config.seed)
        return GRM(m, head.to(self.device))

    def _stock(self, kind, config): # Rounded to bfloat16 in any case: every dtype computes with the same weights
        try: model = kind.from_config(config, attn_implementation='sdpa')
        except ValueError: model = kind.from_config(config, attn_implementation='eager')  # Gemma 2 has no sdpa
        for p in model.parameters(): p.data = p.data.to(torch.bfloat16).to(self.dtype)
        return model

def with_moved_adapters(model:nn.Module)->nn.Module:
    "The model, its adapters moved off zero so that their gradients and a reference tell something"
    with seeded(1):
        for n,p in model.named_parameters():
            if 'lora_B' in n: nn.init.normal_(p, std=.02)
    return model

def bare_tokenizer(): # trl asks for one, though the pairs are tokenized already
    words = models.WordLevel({'<pad>':PAD, '<unk>':1, '</s>':EOS}, unk_token='<unk>')
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token='<pad>', unk_token='<unk>',
                                   eos_token='</s>')
