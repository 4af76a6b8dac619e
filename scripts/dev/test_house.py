"""Tests of the reader of imports, on a small house with planted faults: `python -m scripts.dev.test_house`"""

import json, tempfile
from pathlib import Path
from fastcore.test import test_eq
from scripts.dev.house import breaches, counts, sizes, table


def house(top, modules, tests=()):
    "A checkout with the given modules (`district/NN_name` -> source), each with its notebook; `tests` are cells of notebooks"
    for path, source in modules.items():
        district, numbered = path.split('/')
        file = top/'rm_nbdev'/district/f"{numbered.split('_', 1)[1]}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        (file.parent/'__init__.py').touch()
        cells = [dict(cell_type='code', source=['#| export\n', source])]
        cells += [dict(cell_type='code', source=[text]) for room, text in tests if room == path]
        notebook = top/'nbs'/f'{path}.ipynb'
        notebook.parent.mkdir(parents=True, exist_ok=True)
        notebook.write_text(json.dumps(dict(cells=cells)))
    return top


GOOD = {'core/01_errors': 'x = 1\n', 'core/02_files': 'from .errors import x\n', 'data/01_pairs': 'from ..core.files import x\n',
        'models/01_bases': 'from ..data.pairs import x\nimport rm_nbdev.core.errors\n', 'hub/01_client': 'from ..core.errors import x\n'}


def found(changes=(), tests=()):
    with tempfile.TemporaryDirectory() as d: return breaches(house(Path(d), GOOD | dict(changes), tests))


def check_good(): test_eq(found(), [])


def check_breaches():
    "Up, sideways, a larger number, inside a function, absolute, in a test: each is one line that names file and place"
    for changes, says in (
            ({'core/02_files': 'from ..data.pairs import x\n'}, 'rm_nbdev/core/files.py, line 1: core.files (floor 1) imports data.pairs (floor 2)'),
            ({'models/01_bases': 'y = 1\nfrom ..hub.client import x\n'}, 'line 2: models.bases (floor 3) imports hub.client (floor 3)'),
            ({'core/01_errors': 'from .files import x\n'}, 'core.errors imports core.files, whose number is not smaller'),
            ({'data/01_pairs': 'def f():\n    from rm_nbdev.models.bases import x\n'}, 'line 2: data.pairs (floor 2) imports models.bases (floor 3)'),
            ({'data/01_pairs': 'import rm_nbdev.models.bases as m\n'}, 'imports models.bases'),
            ({'attic/01_box': 'from ..core.files import x\n'}, 'attic is in no floor')):
        lines = found(changes)
        assert len(lines) == 1 and says in lines[0], (says, lines)
    lines = found(tests=[('core/02_files', 'from rm_nbdev.models.bases import x')])
    assert len(lines) == 1 and 'nbs/core/02_files.ipynb, cell 1: core.files (floor 1) imports models.bases' in lines[0], lines
    test_eq(found(tests=[('models/01_bases', 'from rm_nbdev.core.files import x')]), [])


def check_sizes():
    with tempfile.TemporaryDirectory() as d:
        top = house(Path(d), {'core/01_errors': '\n'*99 + 'x = 1\n'})
        test_eq(sizes(top), [])
        test_eq(counts(top), {'core': (1, 100, 0)})
        house(top, {'core/02_small': 'x = 1\n', 'core/03_large': 'x = 1\n'*401, 'core/04_wide': 'x = 1\n'*98 + f"x = '{'a'*170}'\n"})
        said = ' | '.join(sizes(top))
        for o in 'small.py: 1 lines, at least 60', 'large.py: 401 lines, at most 400', 'wide.py, line 99: 176 characters, at most 160': assert o in said, said
        house(top, {f'core/{i:02}_more': '\n'*60 for i in range(10, 80)} | {f'core/{i:02}_m{i}': '\n'*60 for i in range(10, 80)})
        assert any('core: ' in o and 'modules, at most 14' in o for o in sizes(top))


def check_table():
    with tempfile.TemporaryDirectory() as d: text = table(house(Path(d), GOOD))
    assert '| 3 | `models` | bases, heads, packing, attention | bases | core, data |' in text, text
    assert text.index('`models`') < text.index('`data`') < text.index('`core`')


if __name__ == '__main__':
    for name, f in list(globals().items()):
        if name.startswith('check_'): f(); print(f'{name} passed', flush=True)
