"""The steps that are compared: each takes pairs, collates them and makes one optimizer step

All have the same weights, adapters and heads.
Gradient clipping, logging and the schedule are left out of all of them.
"""
import contextlib, os, tempfile, warnings
os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')          # nothing is downloaded: bases are created locally
import torch, torch.nn.functional as F
from torch import nn
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback
from transformers.utils import logging as hf_logging
from trl import RewardConfig, RewardTrainer
from rm_nbdev.core.config import Config
from rm_nbdev.models.packing import pad_sequences
from rm_nbdev.models.make import make_model
from rm_nbdev.scoring.rewards import score, score_ids
from rm_nbdev.training.batches import to_device
from rm_nbdev.training.collate import make_collator, span_mask
from rm_nbdev.training.objectives import make_objective
from workload import PAD, OnDevice, bare_tokenizer, with_moved_adapters

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()
disable_progress_bars()
warnings.filterwarnings('ignore')

LR = 1e-5

def make(method, base, checkpointing=False, **settings):
    "The kit's config, and its model on a base: a folder, or a `OnDevice`"
    created = isinstance(base, OnDevice)
    config = Config(method, base_model='random' if created else base, gradient_checkpointing=checkpointing,
                    bf16=created and base.dtype == torch.bfloat16,
                    use_cpu=not created or base.device == 'cpu', **settings)
    model = base.model(config) if created else make_model(config, PAD)
    return config, with_moved_adapters(model).train()

def arithmetic_of(model):
    "The autocast that a model trains under: bfloat16 for a base in bfloat16"
    base = next(p for p in model.parameters() if not p.requires_grad)
    return torch.autocast(base.device.type, torch.bfloat16, enabled=base.dtype == torch.bfloat16)

class Step:
    "One optimizer step of a model; a subclass says what the loss of some pairs is"
    def __init__(self, model):
        self.model = model
        self.device,self.autocast = next(model.parameters()).device,arithmetic_of(model)
        self.opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, fused=True)
    def backward(self, rows):
        with self.autocast: loss = self.loss(rows)
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
        config,model = make(method, base, **settings)
        super().__init__(model)
        if config.batching == 'packed' and not model.packs:
            raise SystemExit(f'packing is not in use: {model.packing_note}')
        self.collate,self.objective = make_collator(config, PAD, model.packs),make_objective(config)
        if config.batching == 'packed': self._prepare_rows()
    def _prepare_rows(self): # As the trainer does it: attention is chosen once, the collator makes what it needs
        with self.autocast: self.collate.needs = self.model.choose_attention().needs
        self.collate.reference = getattr(self.objective, 'needs_reference', False)
        self.collate.chosen_only = not getattr(self.objective, 'needs_rejected', False)
    def loss(self, rows):
        values = self.objective.values(self.model, to_device(self.collate(rows), self.device))
        return self.objective.terms(values)['loss']

class Trl(Step):
    "`trl.RewardTrainer` with its own collator, loss, training step and optimizer"
    def __init__(self, base, warm, checkpointing=True, dropout=True):
        pairs = Dataset.from_list([self._bare(o) for o in warm])
        config,model = make('bt', base, batching='padded')
        with tempfile.TemporaryDirectory() as d, contextlib.redirect_stdout(None):
            args = RewardConfig(
                output_dir=d, bf16=config.bf16, use_cpu=config.use_cpu, gradient_checkpointing=checkpointing,
                disable_dropout=not dropout, learning_rate=0., max_steps=1, per_device_train_batch_size=len(warm),
                save_strategy='no', report_to='none', disable_tqdm=True)
            self.trainer = RewardTrainer(model.model, args, train_dataset=pairs, processing_class=bare_tokenizer())
            self.trainer.remove_callback(PrinterCallback)
            self.trainer.train()          # one short step at learning rate 0, which sets up what its loop needs
        self.model,self.opt = self.trainer.model_wrapped,self.trainer.optimizer
        for g in self.opt.param_groups: g['lr'] = LR
    @staticmethod
    def _bare(row): return {k:row[k] for k in ('chosen_ids', 'rejected_ids')}
    def backward(self, rows):
        batch = self.trainer.data_collator([self._bare(o) for o in rows])
        return self.trainer.training_step(self.model, batch)
    @property
    def optimizer_name(self):
        o = getattr(self.opt, 'optimizer', self.opt)  # accelerate wraps it
        settings = ', '.join(f'{k}={o.defaults[k]}' for k in ('fused', 'weight_decay', 'betas'))
        return f'{type(o).__name__}({settings})'

def logps_of_labels(logits, labels): # Log-probability of each row's labels; -100 does not count
    labels = labels[:,1:]
    each = logits[:,:-1].log_softmax(-1).gather(2, labels.clamp(min=0)[...,None]).squeeze(2)
    return (each*(labels != -100)).sum(-1)

class PlainGRM(Step):
    """The step as the original computes it: logits in float32 and their log-softmax at every position of every row,
    all hidden states kept"""
    def __init__(self, base, sft_only=True, reference_free=True, checkpointing=True):
        self.config,model = make('grm', base, checkpointing, sft_only=sft_only, reference_free=reference_free,
                                 batching='padded')
        super().__init__(model)
    @staticmethod
    def collate(rows):
        seqs,spans = ([o[f'{k}_{what}'] for k in ('chosen', 'rejected') for o in rows] for what in ('ids', 'spans'))
        batch = pad_sequences(seqs, PAD)
        answer = span_mask(spans, seqs, batch['input_ids'].shape[1])
        return batch | dict(labels=batch['input_ids'].masked_fill(~answer, -100))
    def loss(self, rows):
        batch,config,lm = to_device(self.collate(rows), self.device),self.config,self.model.model
        kw = dict(input_ids=batch['input_ids'], attention_mask=batch['attention_mask'], use_cache=False)
        out = lm(**kw, output_hidden_states=True)
        logits,ref = out.logits.float(),None
        if not (config.sft_only or config.reference_free):
            with torch.no_grad(), lm.disable_adapter(): ref = lm(**kw).logits.float()
        last = batch['attention_mask'].sum(-1) - 1
        rewards = self.model.v_head(out.hidden_states[-1]).squeeze(-1)       # shape (rows, length)
        chosen,rejected = rewards[torch.arange(len(last), device=last.device),last].float().chunk(2)
        pi_c,pi_r = logps_of_labels(logits, batch['labels']).chunk(2)
        if config.sft_only: text = pi_c
        else:
            text = pi_c - pi_r
            if ref is not None:
                ref_c,ref_r = logps_of_labels(ref, batch['labels']).chunk(2)
                text = text - (ref_c - ref_r)
        text_loss,pair_loss = -F.logsigmoid(config.beta*text).mean(),-F.logsigmoid(chosen - rejected).mean()
        return config.weight_ratio*text_loss + (1-config.weight_ratio)*pair_loss

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
