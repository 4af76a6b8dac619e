"""The steps that are compared. Each takes pairs, collates them and makes one optimizer step; all have the same weights, adapters and heads

Gradient clipping, logging and the schedule are left out of all of them.
"""
import contextlib, os, tempfile, warnings
os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')          # nothing is fetched: bases are made on the spot
import torch, torch.nn.functional as F
from torch import nn
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback
from transformers.utils import logging as hf_logging
from trl import RewardConfig, RewardTrainer
from rm_nbdev.bases import seeded
from rm_nbdev.batching import make_collator, pad_sequences, span_mask
from rm_nbdev.config import Config
from rm_nbdev.models import make_model
from rm_nbdev.objectives import make_objective
from rm_nbdev.scoring import score, score_ids
from workload import PAD, bare_tokenizer

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()
disable_progress_bars()
warnings.filterwarnings('ignore')

LR = 1e-5

def make(method, base, checkpointing=False, **settings):
    "The kit's config and model, adapters moved off zero so that their gradients and the reference tell something"
    c = Config(method, base_model=base, gradient_checkpointing=checkpointing, bf16=False, use_cpu=True, **settings)
    model = make_model(c, PAD).train()
    with seeded(1):
        for n,p in model.named_parameters():
            if 'lora_B' in n: nn.init.normal_(p, std=.02)
    return c, model

class Step:
    "One optimizer step of a model; a subclass says what the loss of some pairs is"
    def __init__(self, model):
        self.model = model
        self.opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, fused=True)
    def backward(self, rows):
        loss = self.loss(rows)
        loss.backward()
        return loss.detach()
    def __call__(self, rows):
        self.backward(rows)
        self.opt.step()
        self.opt.zero_grad()
    def result(self, rows):
        "Loss and gradient without dropout, as one vector; no weight moves"
        off = [m for m in self.model.modules() if isinstance(m, nn.Dropout)]
        was = [m.p for m in off]
        for m in off: m.p = 0.
        loss = self.backward(rows)
        for m,p in zip(off, was): m.p = p
        grad = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.requires_grad])
        self.opt.zero_grad()
        return loss.item(), grad

class Kit(Step):
    "The kit's own collator, model and objective"
    def __init__(self, base, method='bt', **settings):
        c,model = make(method, base, **settings)
        super().__init__(model)
        if c.batching == 'packed' and not model.packs: raise SystemExit(f'the fast path is not in use: {model.packing_note}')
        self.collate,self.obj = make_collator(c, PAD, model.packs),make_objective(c)
    def loss(self, rows): return self.obj.terms(self.obj.values(self.model, self.collate(rows)))['loss']

class Trl(Step):
    "`trl.RewardTrainer` with its own collator, loss, training step and optimizer"
    def __init__(self, base, warm, checkpointing=True, dropout=True):
        pairs = Dataset.from_list([self._bare(o) for o in warm])
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(None):
            args = RewardConfig(output_dir=d, bf16=False, use_cpu=True, gradient_checkpointing=checkpointing, disable_dropout=not dropout, learning_rate=0.,
                                max_steps=1, per_device_train_batch_size=len(warm), save_strategy='no', report_to='none', disable_tqdm=True)
            self.trainer = RewardTrainer(make('bt', base, batching='padded')[1].model, args, train_dataset=pairs, processing_class=bare_tokenizer())
            self.trainer.remove_callback(PrinterCallback)
            self.trainer.train()                      # one short step at learning rate 0: sets up all that belongs to its loop
        self.model,self.opt = self.trainer.model_wrapped,self.trainer.optimizer
        for g in self.opt.param_groups: g['lr'] = LR
    @staticmethod
    def _bare(row): return {k:row[k] for k in ('chosen_ids', 'rejected_ids')}
    def backward(self, rows): return self.trainer.training_step(self.model, self.trainer.data_collator([self._bare(o) for o in rows]))
    @property
    def optimizer_name(self):
        o = getattr(self.opt, 'optimizer', self.opt)  # accelerate wraps it
        return f"{type(o).__name__}({', '.join(f'{k}={o.defaults[k]}' for k in ('fused', 'weight_decay', 'betas'))})"

def logps_of_labels(logits, labels): # Log-probability of each row's labels; -100 does not count
    labels = labels[:,1:]
    each = logits[:,:-1].log_softmax(-1).gather(2, labels.clamp(min=0)[...,None]).squeeze(2)
    return (each*(labels != -100)).sum(-1)

class PlainGRM(Step):
    "The step as the original computes it: logits in float32 and their log-softmax at every position of every row, all hidden states kept"
    def __init__(self, base, sft_only=True, reference_free=True, checkpointing=True):
        self.c,model = make('grm', base, checkpointing, sft_only=sft_only, reference_free=reference_free, batching='padded')
        super().__init__(model)
    @staticmethod
    def collate(rows):
        seqs,spans = ([o[f'{k}_{what}'] for k in ('chosen', 'rejected') for o in rows] for what in ('ids', 'spans'))
        b = pad_sequences(seqs, PAD)
        return b | dict(labels=b['input_ids'].masked_fill(~span_mask(spans, seqs, b['input_ids'].shape[1]), -100))
    def loss(self, rows):
        b,c,lm = self.collate(rows),self.c,self.model.model
        kw = dict(input_ids=b['input_ids'], attention_mask=b['attention_mask'], use_cache=False)
        out = lm(**kw, output_hidden_states=True)
        logits,ref = out.logits.float(),None
        if not (c.sft_only or c.reference_free):
            with torch.no_grad(), lm.disable_adapter(): ref = lm(**kw).logits.float()
        last = b['attention_mask'].sum(-1) - 1
        chosen,rejected = self.model.v_head(out.hidden_states[-1]).squeeze(-1)[torch.arange(len(last)),last].chunk(2)
        pi_c,pi_r = logps_of_labels(logits, b['labels']).chunk(2)
        if c.sft_only: text = pi_c
        else:
            text = pi_c - pi_r
            if ref is not None:
                ref_c,ref_r = logps_of_labels(ref, b['labels']).chunk(2)
                text = text - (ref_c - ref_r)
        return c.weight_ratio*-F.logsigmoid(c.beta*text).mean() + (1-c.weight_ratio)*-F.logsigmoid(chosen - rejected).mean()

class PlainScore:
    "Whole conversations, padded, in batches"
    def __init__(self, base, batching='padded'): self.model = make('bt', base, batching=batching)[1].eval()
    def rewards(self, rows): # rows: one (prompt, responses) after another
        return torch.cat([score_ids(self.model, [p+r for r in rs], PAD) for p,rs in rows])
    def __call__(self, rows): self.rewards(rows)
    def result(self, rows):
        r = self.rewards(rows)
        return r.sum().item(), r

class KitScore(PlainScore):
    "`score`, which computes the prompt once"
    def rewards(self, rows): return torch.cat([r.float().cpu() for r in score(self.model, *map(list, zip(*rows)))])
