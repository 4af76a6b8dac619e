"""Tests of the page runner: `python -m scripts.dev.test_snippets`, at the top of a checkout"""

import os, sys, tempfile
from pathlib import Path
from fastcore.nbio import mk_cell, new_nb, write_nb
from fastcore.test import ExceptionExpected, test_eq, test_fail
from scripts.dev.snippets import (Block, blocks, check_inline, check_parses, commands, environment, main, run_block, run_page,
                                  run_shell, sandbox)

tmp = tempfile.TemporaryDirectory()
d = Path(tmp.name)


def page(*cells, name='p.ipynb'):
    "A notebook of Markdown cells, or of code cells given as tuples"
    write_nb(new_nb([mk_cell(*c) if isinstance(c, tuple) else mk_cell(c, 'markdown') for c in cells]), d/name)
    return d/name


def check_blocks():
    p = page('# P\n\n```sh\necho a  # say\n```\n\ntext\n\n```python\nx = 1\n```', ('#| eval: false\ny = 2', 'code'), ('z = 3', 'code'),
             '```yaml\na: 1\n```\n\n```\nruns/x\n  train.ipynb\n```\n\n```sh\n# needs a GPU\nrm-train bt\n```')
    test_eq([(b.cell, b.lang, b.mark) for b in blocks(p)],
            [(0, 'sh', ''), (0, 'python', ''), (1, 'python', ''), (3, 'sh', 'needs a GPU')])
    test_eq(blocks(page('````sh\ncat <<X\n```\nX\n````'))[0].text, 'cat <<X\n```\nX\n')
    for bad, why in {'```sh\n# needs a gpu\nx\n```': "'needs a gpu' is not a mark", '```\nrm-train bt\n```': 'mark the fence with sh',
                     '```sh\nls': 'not closed', '```\n$ ls\n```': 'looks like a command'}.items():
        test_fail(lambda: blocks(page(bad)), contains=why)
    test_fail(lambda: blocks(d/'gone.ipynb'), contains='gone.ipynb: no such notebook')


def B(text, lang='sh'): return Block('p', 0, lang, text, 'needs a GPU')


def check_commands():
    text = 'rm-train bt \\\n  --seed 1  # a comment\nX=1 rm-run a && rm-plot runs/a | cat\ncat f | rm-score runs/a > out 2>&1\nls rm-x'
    test_eq(commands(text), [['rm-train', 'bt', '--seed', '1'], ['rm-run', 'a'], ['rm-plot', 'runs/a'], ['rm-score', 'runs/a']])
    check_parses(B('rm-train bt --base_model a/b --seed 3\nrm-upload --model x --repo-prefix o'))
    check_parses(B('x = [1]', 'python'))
    for bad, why in {'rm-train bt --sead 3': '--sead: not a flag', 'rm-train bt --seed x': '--seed', 'rm-nothing': 'not a command',
                     'if true; then': 'syntax error', 'rm-train bt --learning_rate -1': 'must be over 0'}.items():
        test_fail(lambda: check_parses(B(bad)), contains=why)
    test_fail(lambda: check_parses(B('x = (', 'python')), contains='p, cell 0')


def check_sentences():
    good = '`rm-plot runs/A` and `make docs`, not `rm` or ``rm-x``\n```sh\nrm-nothing\n```\n`rm-train bt --seed 2 ...` `rm-run NAME --resume`'
    test_eq(check_inline(page(good), '.'), 4)
    for bad, why in {'`rm-trian bt`': 'no rm-trian', '`rm-train bt --sead 2`': 'no --sead', '`make dogs`': 'no dogs'}.items():
        test_fail(lambda: check_inline(page(bad), '.'), contains=why)


def check_running():
    box = sandbox('.', d/'box')
    for f in 'nbs/training/02_losses.ipynb', 'rm_nbdev/training/losses.py', 'Makefile', 'README.md', '.git', '.venv/bin/python':
        assert (box/f).exists(), f
    assert not list((box/'runs').glob('demo')) and environment(box)['PYTHONPATH'] == str(box)
    os.environ['MAKEFLAGS'] = ' -- ARGS=--slow'                       # as of `make test ARGS=--slow`, from which this may run
    (box/'m').write_text('all:\n\t@echo $(ARGS)\n')
    try: test_eq(run_shell('make -f m', box), (0, '--only metadata\n'))
    finally: del os.environ['MAKEFLAGS']
    test_eq(run_shell('echo a; pwd', box), (0, f'a\n{box}\n'))
    test_eq(run_shell('false; echo b', box), (1, ''))
    test_eq(run_shell('echo $NOT_SET', box)[0], 1)
    test_eq(run_shell('echo c; sleep 60', box, limit=1), (None, 'c\n'))
    (box/'rm_nbdev/__init__.py').write_text('__version__ = "of the copy"\n')
    assert run_block(B('import rm_nbdev\nassert rm_nbdev.__version__ == "of the copy"', 'python'), box) > 0
    test_fail(lambda: run_block(B('print("before")\n1/0', 'python'), box), contains='ZeroDivisionError')
    test_fail(lambda: run_block(B('# a comment\nls nothing'), box), contains='p, cell 0: ls nothing: ended with')


def check_page():
    good = page('```sh\necho hi > a.txt\n```', '```python\nassert open("a.txt").read() == "hi\\n"\n```',
                '```sh\n# needs the Hub\nrm-upload --model demo --repo-prefix ORG\n```', name='good.ipynb')
    test_eq(run_page(good, '.'), (2, 1))
    with ExceptionExpected(SystemExit, '1'): main([str(d/'gone.ipynb')])


if __name__ == '__main__':
    only = sys.argv[1:]
    for name, f in list(globals().items()):
        if name in ('check_inline', 'check_parses') or not name.startswith('check_') or only and name not in only: continue
        f(); print(f'{name} passed', flush=True)
    tmp.cleanup()
