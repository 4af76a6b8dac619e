"""Tests of the site's parts: order, signatures, links, formulas, and a small site with planted faults

`python -m scripts.dev.test_site`, at the top of a checkout"""

import os, re, shutil, subprocess, sys, tempfile
from pathlib import Path
import yaml
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb
from fastcore.test import test_eq, test_fail
from nbdev.config import get_config
from scripts.dev.house import FLOORS, room_numbers
from scripts.dev.pages import (definitions, documented, fence, header, linked, notebook_names, page_markdown,
                               quarto_text, sections, sidebar, signature, symbols)
from scripts.dev.site import derived, mathml, paragraphs, readme_text, top

nbs = top/'nbs'


def check_order():
    test_eq(sections(['data/02_x', 'train', 'core/01_y', 'guides/zeta', 'guides/data', 'guides/run', 'index', 'new/1', 'demos/demo_bt']),
            {'': ['index'], 'Guides': ['guides/data', 'guides/run', 'guides/zeta'], 'Executed demos': ['demos/demo_bt'],
             'Notebooks to run': ['train'], 'Rooms: core': ['core/01_y'], 'Rooms: data': ['data/02_x'], 'new': ['new/1']})
    listed = sidebar(nbs)
    flat = [o for e in listed for o in ([e] if isinstance(e, str) else e['contents'])]
    test_eq(sorted(flat), sorted(f'{o}.ipynb' for o in notebook_names(nbs)))                  # each once
    test_eq(flat[0], 'index.ipynb')
    kept = sorted(p.name for p in nbs.iterdir() if p.suffix != '.yml')           # .yml: made for Quarto, not kept
    assert len(kept) <= 24, kept                                                    # one screen
    for district in sum(FLOORS, []):
        numbers = sorted(n for room, n in room_numbers(nbs).items() if room.district == district and room.name)
        assert numbers[:1] == [1] and numbers[-1] <= len(numbers)+1, (district, numbers)


SOURCE = '''@register('x')
def f(
    a:int=2*3, # How many
    *, b=None, # "#" in a comment
)->int:        # The sum
    """What it does"""
    return a

class C(Base):
    "A class"
    size: int = 3                       # Field
    def __init__(self, x=1): self.x = x # One line, and a comment
    @property
    def y(self)->int:                   # Twice
        "Double"
        return 2*self.x
    def _hidden(self): pass
'''


def check_signatures():
    f, c = definitions(SOURCE)
    test_eq(header(SOURCE, f), SOURCE[:SOURCE.index('    """')].rstrip())
    test_eq(header(SOURCE, c), 'class C(Base):')
    test_eq(header(SOURCE, c.body[2]), '    def __init__(self, x=1):  # One line, and a comment')
    test_eq(header(SOURCE, c.body[3]), '    @property\n    def y(self)->int:                   # Twice')
    one = "def g(é='ü', s='#'): return s"
    test_eq(header(one, definitions(one)[0]), "def g(é='ü', s='#'):")
    two = 'def g(a,\n      b): return a'
    test_eq(header(two, definitions(two)[0]), 'def g(a,\n      b):')
    test_eq(signature(SOURCE, c), '''class C(Base):
    size: int = 3                       # Field
    def __init__(self, x=1):  # One line, and a comment
    @property
    def y(self)->int:                   # Twice
        "Double"''')
    source = "def bt_loss(a): # Of a\n    'x'"
    line = next(i for i, l in enumerate((top/'rm_nbdev/training/losses.py').read_text().splitlines(), 1) if l.startswith('def bt_loss'))
    said = documented(source, 'training.losses')
    assert '### bt_loss {#bt_loss}' in said and f'rm_nbdev/training/losses.py#L{line}){{.source}}' in said or f'losses.py#L{line-1})' in said, said
    assert '```python\ndef bt_loss(a): # Of a\n```' in said and '??? quote "Source"' in said, said
    test_eq(fence('a ``` b'), '````\na ``` b\n````')


def check_links():
    known, files, page = symbols(nbs), {}, 'guides/run'
    assert 'main' not in known and len(known) > 300
    home = known['bt_loss']
    test_eq(home, 'training/02_losses')
    def at(text): return linked(text, page, top, files, known)
    test_eq(at('# `bt_loss`\nSee `bt_loss`, `bt_loss()`, `not_ours`, ``bt_loss``.\n```\n`bt_loss`\n```'),
            f'# `bt_loss`\nSee [`bt_loss`](../{home}.md#bt_loss), [`bt_loss()`](../{home}.md#bt_loss), `not_ours`, ``bt_loss``.\n```\n`bt_loss`\n```')
    git = get_config().git_url
    test_eq(at('[a](../../LICENSE) [b](../../benchmarks) [c](https://x.y) [d](#e) [f](../core/03_settings.ipynb#g) [h](../nothing.md)'),
            f'[a]({git}/blob/main/LICENSE) [b]({git}/tree/main/benchmarks) [c](https://x.y) [d](#e) [f](../core/03_settings.md#g) [h](../nothing.md)')
    test_eq(at('[the run](../../runs/demo-example/train.ipynb#rewards)'), '[the run](../demos/demo_bt.md#rewards)')
    picture = 'runs/demo-example/plots/training.png'
    test_eq(at(f'![loss](../../{picture} "x")'), f'![loss](../{picture} "x")')
    assert files[picture][:4] == b'\x89PNG'
    for same in '`x[0](y)`', '[a](mailto:b@c.d)': test_eq(at(same), same)
    test_fail(lambda: at(f'[a]({git}/blob/main/NOTHING)'), contains='names no file of the repository')


def check_page():
    files = {}
    text = page_markdown(nbs/'training/02_losses.ipynb', 'training/02_losses', top, files)
    assert text.startswith('# Losses\n') and files and all(v[:4] == b'\x89PNG' for v in files.values())
    assert '### bt_loss {#bt_loss}' in text and '??? quote "Source"' in text and '.ipynb)' not in text
    for name, home in symbols(nbs).items():
        if home == 'training/02_losses': assert f'### {name} ' in text, name
    test_eq(paragraphs('so that\n$$x$$\nholds, `$$` aside\n```\n$$y$$\n```'), 'so that\n\n$$x$$\n\nholds, `$$` aside\n```\n$$y$$\n```')


def check_formulas():
    said = mathml(r'x_1 < \frac{1}{2}', 'inline')
    assert '<msub>' in said and '<mfrac>' in said and said.count('<math') == 1
    for bad in r'\frac{1}', r'\nothing{x}', 'x^', r'\left( x', r'\nothing':
        try: mathml(bad, 'inline')
        except Exception: continue
        raise AssertionError(f'{bad} was taken')


printed = [dict(output_type='stream', name='stdout', text='hi\n')]


def put(folder, name, *cells):
    made = [mk_cell(s, kind) if isinstance(kind, str) else mk_cell(s, outputs=kind) for s, kind in cells]
    (folder/name).parent.mkdir(parents=True, exist_ok=True)
    write_nb(new_nb(made), folder/f'{name}.ipynb')


def check_readme():
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        put(d, 'index', ('# Kit\n\n> What it is', 'markdown'), ('#| hide\nimport os', []), ("print('hi')", printed),
            ("#| output: false\n1", printed), ('#| echo: false\n2', printed), ('#| include: false\n3', printed),
            ('4', [dict(output_type='display_data', data={'image/png': 'iVBORw0KGgo=', 'text/plain': '<Figure>'}, metadata={})]),
            ('By [settings](core/03_settings.ipynb), [a](#b), [licence](../LICENSE), `x[0](y)`\n```\nf[0](y)\n```', 'markdown'))
        text = readme_text(d/'index.ipynb')
        for part in ('# Kit\n\n> What it is\n', "```python\nprint('hi')\n```\n\n    hi\n", '```python\n1\n```\n', '[settings](nbs/core/03_settings.ipynb)',
                     '[a](#b)', '[licence](LICENSE)', '`x[0](y)`', '\nf[0](y)\n'): assert part in text, (part, text)
        for part in 'import os', '\n2\n', '\n3\n', '.png': assert part not in text, (part, text)
        test_eq(text.count('    hi\n'), 2)
        test_fail(lambda: readme_text(d/'none.ipynb'), contains='no such notebook')
        (d/'broken.ipynb').write_text('{"cells": [')
        test_fail(lambda: readme_text(d/'broken.ipynb'), contains='not a notebook')


def check_derived():
    for path, text in derived().items(): assert path.read_text(encoding='utf-8') == text, f'{path.name} is not what the notebooks give: make export'


def small_checkout(to):
    "A checkout with two pages, of the real tools"
    for f in 'settings.ini', 'pyproject.toml', 'LICENSE', 'rm_nbdev/__init__.py', 'rm_nbdev/core/__init__.py', 'rm_nbdev/core/errors.py', 'rm_nbdev/core/files.py', 'rm_nbdev/core/flags.py', 'rm_nbdev/core/settings.py', 'rm_nbdev/core/stock_settings.py':
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(top/f, to/f)
    shutil.copytree(top/'scripts/dev', to/'scripts/dev')
    put(to/'nbs', 'index', ('# Kit\n\n> What it is', 'markdown'),
        ('See [one](core/01_one.ipynb#a-heading), `$5` and $x^2$.\n\n$$\\sum_i x_i$$', 'markdown'))
    good(to)


def good(to):
    put(to/'nbs', 'core/01_one', ('# One', 'markdown'), ('## A heading', 'markdown'), ('| a | b |\n|---|---|\n| `x|y` | 2 |', 'markdown'),
        ('1', [dict(output_type='display_data', data={'image/png': 'iVBORw0KGgo='}, metadata={})]))


def build(to):
    "Exit code and output of the build"
    p = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '-f', 'scripts/dev/mkdocs.yml'], cwd=to, text=True,
                       env={**os.environ, 'NO_MKDOCS_2_WARNING': '1', 'PYTHONPATH': str(to)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return p.returncode, p.stdout


def check_small_site():
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        small_checkout(d)
        code, said = build(d)
        assert code == 0, said
        index, one = ((d/'_docs'/o).read_text() for o in ('index.html', 'core/01_one.html'))
        assert '<msup>' in index and '<code>$5</code>' in index and 'href="core/01_one.html#a-heading"' in index
        assert '<code>x|y</code>' in one and list((d/'_docs/core').glob('01_one_files/*.png'))
        nav = list(dict.fromkeys(re.findall(r'<a href="([\w./]+\.html)" class="md-nav__link', index)))
        listed = sidebar(d/'nbs')
        test_eq([o.replace('.html', '.ipynb') for o in nav], [o for e in listed for o in ([e] if isinstance(e, str) else e['contents'])])
        error = [dict(output_type='error', ename='KeyError', evalue='x', traceback=[])]
        for cells, says in (((('[a](#nowhere)', 'markdown'),), "'#nowhere'"), ((('[b](02_two.ipynb)', 'markdown'),), "'02_two.ipynb'"),
                            ((('[b](../index.ipynb#gone)', 'markdown'),), "anchor '#gone'"), ((('[c](../gone.md)', 'markdown'),), "'../gone.md'"),
                            ((('![c](gone.png)', 'markdown'),), "'gone.png'"), ((('$\\frac{1}$', 'markdown'),), 'formula'),
                            ((('1', error),), 'nbs/core/01_one.ipynb: the notebook holds an error')):
            put(d/'nbs', 'core/01_one', ('# One', 'markdown'), *cells)
            code, said = build(d)
            assert code and says in said and 'core/01_one' in said, (says, code, said)
        put(d/'nbs', 'core/01_one', ('No title', 'markdown'))
        code, said = build(d)
        assert code and 'core/01_one.ipynb: has no title' in said, said


def check_nbdev_pipeline():
    "nbdev's own pipeline, which feeds Quarto, takes the notebooks and leaves our sidebar"
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for f in ('pyproject.toml', 'settings.ini', 'nbs/index.ipynb', 'nbs/core/01_errors.ipynb', 'nbs/train.ipynb',
                  'rm_nbdev/__init__.py', 'rm_nbdev/_modidx.py', 'rm_nbdev/core/__init__.py', 'rm_nbdev/core/errors.py'):
            (d/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(top/f, d/f)
        (d/'nbs/_quarto.yml').write_text(quarto_text(d/'nbs'))
        code = "import nbdev.quarto as q; q._ensure_quarto = lambda: None; q._pre_docs(n_workers=0)"
        p = subprocess.run([sys.executable, '-c', code], cwd=d, env={**os.environ, 'PYTHONPATH': str(d)}, capture_output=True, text=True)
        assert p.returncode == 0, p.stderr
        test_eq((d/'nbs/_quarto.yml').read_text(), quarto_text(d/'nbs'))
        assert not (d/'nbs/sidebar.yml').exists()
        assert any('UsageError' in c.source for c in read_nb(d/'_proc/core/01_errors.ipynb').cells)
        settings = yaml.safe_load((d/'nbs/_quarto.yml').read_text())
        test_eq((settings['metadata-files'], settings['website']['sidebar']['contents']), (['nbdev.yml'], sidebar(d/'nbs')))


if __name__ == '__main__':
    only = sys.argv[1:]
    checks = [f for name, f in list(globals().items()) if name.startswith("check_") and (not only or name in only)]
    for f in checks: f(); print(f'{f.__name__} passed', flush=True)
