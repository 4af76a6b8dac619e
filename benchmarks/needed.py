"""What a step needs at least, in floating-point operations, and what a device could do

T: tokens, with each prompt counted once. N: weights of the layers' linear maps, R: of their adapters. Forward 2NT,
backward through frozen weights 2NT, adapters 6RT, attention 4 x heads x size for each query and each key that it sees,
three times in training (forward, and twice as much backward), an output layer 2 x hidden x vocabulary for each learned
token, twice in training. Recomputing, padding and a prompt's second copy do not count as work.
"""
import time
from collections import Counter
import torch
from rm_nbdev.core.config import Config
from rm_nbdev.models.attention import decoder_layers
from workload import OnDevice

# Dense bfloat16 peaks in FLOP/s, by a part of the device's name; the first that fits counts
PEAKS = {'B200': 2250e12, 'H100 PCIe': 756e12, 'GH200': 989e12, 'H200': 989e12, 'H100': 989e12, 'A100': 312e12,
         'L40S': 362e12, 'L4': 121e12, 'A10': 125e12, 'RTX 4090': 165e12, 'RTX 3090': 71e12}

def groups_of(rows): # Of pairs: (tokens of the prompt, tokens of each response)
    def one(prompt, row): return prompt, [len(row[k]) - prompt for k in ('chosen_ids', 'rejected_ids')]
    return [one(row['chosen_spans'][0], row) for row in rows]

def count_tokens(groups): return sum(p + sum(branches) for p,branches in groups) # Each prompt once

def count_seen(groups, window=None):
    "Queries times the keys that each sees, each prompt counted once"
    def seen(a, b): return sum(min(i+1, window or i+1) for i in range(a, b))
    return sum(seen(0, p) + sum(seen(p, p+n) for n in branches) for p,branches in groups)

def layer_windows(config): # How many layers have which window, None without one
    kinds = getattr(config, 'layer_types', None) or ['full_attention']*config.num_hidden_layers
    return Counter(config.sliding_window if k == 'sliding_attention' else None for k in kinds)

def needed_flops(
    config,         # Of a stock model
    groups,         # As `groups_of` gives them
    learned=0,      # Tokens whose logits are needed
    training=True,  # With adapters and a backward pass; else with merged adapters, forward alone
):
    "Floating-point operations that these tokens need"
    layers = decoder_layers(OnDevice(config, 'meta').model(Config('bt', base_model='random')).backbone)
    linear = [p for p in layers.parameters() if p.ndim == 2]
    frozen,adapters = (sum(p.numel() for p in linear if p.requires_grad == trains) for trains in (False, True))
    wide,tokens = 4*config.num_attention_heads*config.head_dim,count_tokens(groups)
    attention = sum(n*wide*count_seen(groups, window) for window,n in layer_windows(config).items())
    output = 2*config.hidden_size*config.vocab_size*learned
    if not training: return 2*frozen*tokens + attention + output
    return (4*frozen + 6*adapters)*tokens + 3*attention + 2*output

def sync(device):
    if device == 'cuda': torch.cuda.synchronize()

def measured_peak(device):
    "FLOP/s of a large matrix product in bfloat16"
    n = 8192 if device == 'cuda' else 512
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    def product():
        sync(device)
        began = time.perf_counter()
        a @ a
        sync(device)
        return 2*n**3/(time.perf_counter() - began)
    return max(product() for _ in range(6))

def published_peak(name): # Of a device by its name; None: not known
    return next((v for k,v in PEAKS.items() if k in name), None)

def peak_of(device):
    "The device's bfloat16 peak in FLOP/s, and where the number comes from"
    known = published_peak(torch.cuda.get_device_name()) if device == 'cuda' else None
    return (known, 'as published') if known else (measured_peak(device), 'measured by a matrix product')
