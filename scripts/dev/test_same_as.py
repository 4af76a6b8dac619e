"""Tests of the comparison of two runs: `python -m scripts.dev.test_same_as`"""

import json, shutil, tempfile
from pathlib import Path
from fastcore.test import test_eq
from scripts.dev.same_as import compare, without_times


def check_compare():
    with tempfile.TemporaryDirectory() as d:
        one, two = Path(d)/'one', Path(d)/'two'
        (one/'checkpoint-1').mkdir(parents=True)
        (one/'checkpoint-1/model.safetensors').write_bytes(b'weights')
        (one/'checkpoint-1/trainer_state.json').write_text('{"log_history": [{"loss": 1.0, "eval_runtime": 2.0}]}')
        (one/'metrics.jsonl').write_text('{"step": 1, "time": 5, "values": {"loss": 1.0}}\n')
        (one/'manifest.json').write_text('{"git_commit": "a"}')
        shutil.copytree(one, two)
        (two/'metrics.jsonl').write_text('{"step": 1, "time": 6, "values": {"loss": 1.0}}\n')
        (two/'checkpoint-1/trainer_state.json').write_text('{"log_history": [{"loss": 1.0, "eval_runtime": 9.0}]}')
        (two/'manifest.json').write_text('{"git_commit": "b"}')
        test_eq(compare(one, two), (3, []))
        (two/'metrics.jsonl').write_text('{"step": 1, "time": 6, "values": {"loss": 1.0000001}}\n')
        test_eq(compare(one, two)[1], ['metrics.jsonl: differs'])
        (two/'checkpoint-1/model.safetensors').write_bytes(b'Weights')
        (two/'more.txt').touch()
        test_eq(compare(one, two), (3, ['more.txt: in one run alone', 'checkpoint-1/model.safetensors: differs', 'metrics.jsonl: differs']))


def check_times():
    test_eq(without_times({'a': [{'eval_samples_per_second': 1, 'loss': 2}], 'time': 3}), {'a': [{'loss': 2}]})
    test_eq(json.loads('[1]'), without_times([1]))


if __name__ == '__main__':
    for name, f in list(globals().items()):
        if name.startswith('check_'): f(); print(f'{name} passed', flush=True)
