"""The plan of the house: which district stands on which floor, and who imports whom, read from the code

`python -m scripts.dev.house`, at the top of a checkout, names each import that runs against the plan, each module over
its size and each long line; it ends with 1 if there is any."""

import ast, base64, io, json, re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FLOORS = [['core'], ['data'], ['models', 'hub'], ['scoring'], ['training', 'values', 'serving'], ['plots'],
          ['evals'], ['runs', 'analysis', 'bases'], ['jobs'], ['comparison'], ['paper']]  # From the ground up; districts of one floor do not see each other

ABOUT = dict(
    core='errors, files, settings, configuration, the command line', data='pairs, chat templates, tokens',
    models='bases, heads, packing, attention', hub='the Hugging Face Hub', scoring='rewards of conversations', serving='reward models for other programs: exports, a server',
    training='losses, schedule, checkpoints, resuming', values='candidates, token search, log-probabilities',
    plots='pictures', evals='benchmarks of reward models', runs='one run from settings to outcome',
    analysis='ranks, gaps, tests, reports', bases='language models to start from: fetched, converted, nudged', jobs='what a machine has, what runs need, many runs',
    comparison='settings over seeds: curves, numbers, tests',
    paper='the paper: redone from its files, and in miniature')  # District -> what it owns

MOST_ROOMS, MOST_LINES, FEWEST_LINES = 14, 400, 60  # Modules of a district: a list to take in at a glance; lines of a module
LONG, TOO_LONG, LONG_SHARE = 120, 160, .01      # Characters of a line; share of all lines that may be long
SMALL = {'train': 'the short name that torchrun needs'}  # Modules under `FEWEST_LINES`, and why


def floor_of(district): return next((i for i, names in enumerate(FLOORS) if district in names), None)


@dataclass(frozen=True)
class Room:
    "A notebook in a district, or the module that it exports"
    district: str  # Name of the folder; '' for a module outside of all districts
    name: str      # Name of the module; '' for the district's own `__init__`
    def __str__(self): return '.'.join(o for o in (self.district, self.name) if o)


@dataclass(frozen=True)
class Arrow:
    "One import"
    start: Room      # Who imports
    end: Room        # What is imported
    where: str       # File, and line or cell
    test: bool=False # It stands in a test, not in the package


def room_numbers(nbs):
    "Room -> the number of its notebook; a district's commands have 0"
    found = {}
    for path in Path(nbs).glob('*/[0-9]*.ipynb'):
        number, name = re.match(r'(\d+)_(.*)', path.stem).groups()
        found[Room(path.parent.name, '' if name == 'commands' else name)] = int(number)
    return found


def modules(package):
    "Module file -> its room; what nbdev writes for itself is left out"
    package = Path(package)
    files = [p for p in sorted(package.rglob('*.py')) if p.name != '_modidx.py' and p != package/'__init__.py']
    return {p: Room(p.parent.name if p.parent != package else '', '' if p.stem == '__init__' else p.stem) for p in files}


def _imports(tree, district, package, rooms):
    "Pairs of line and room for every import of the package in a syntax tree"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [(node.lineno, a.name.split('.')[1:]) for a in node.names if a.name.split('.')[0] == package]
        elif isinstance(node, ast.ImportFrom) and node.level:
            inside = [district] if node.level == 1 and district else []
            base = inside + (node.module.split('.') if node.module else [])
            dotted = [(node.lineno, [*base, a.name]) for a in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == package:
            dotted = [(node.lineno, [*node.module.split('.')[1:], a.name]) for a in node.names]
        else: continue
        for line, parts in dotted:
            if not parts: continue
            room = Room(parts[0], parts[1] if len(parts) > 1 else '')
            if room not in rooms: room = Room(parts[0], '')  # a name that the district's `__init__` defines
            if floor_of(room.district) is not None: yield line, room


def arrows(top='.'):
    "Every import between rooms, of modules and of the tests in their notebooks"
    top, found = Path(top), []
    rooms = set(modules(top/'rm_nbdev').values())
    for path, room in modules(top/'rm_nbdev').items():
        tree = ast.parse(path.read_text(encoding='utf-8'))
        found += [Arrow(room, to, f'{path.relative_to(top)}, line {line}') for line, to in _imports(tree, room.district, 'rm_nbdev', rooms)]
    for path in sorted((top/'nbs').glob('*/[0-9]*.ipynb')):
        room = Room(path.parent.name, re.sub(r'^\d+_', '', path.stem))
        for i, cell in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']):
            source = ''.join(cell['source'])
            if cell['cell_type'] != 'code' or re.match(r'#\|\s*export', source): continue
            try: tree = ast.parse(re.sub(r'^\s*[%!].*$', '', source, flags=re.M))
            except SyntaxError: continue
            found += [Arrow(room, to, f'{path.relative_to(top)}, cell {i}', True) for _, to in _imports(tree, '', 'rm_nbdev', rooms)]
    return found


def breaches(top='.'):
    "A line for each import that goes up, sideways, or to a larger number of its own district"
    numbers, out = room_numbers(Path(top)/'nbs'), []
    for a in arrows(top):
        if not a.start.district: continue                            # the door for torchrun is outside
        here, there = floor_of(a.start.district), floor_of(a.end.district)
        if here is None: out.append(f'{a.where}: {a.start.district} is in no floor of scripts/dev/house.py')
        elif a.start.district != a.end.district and there >= here:
            out.append(f'{a.where}: {a.start} (floor {here+1}) imports {a.end} (floor {there+1}); only lower floors may be imported')
        elif a.start.district == a.end.district and not a.test and numbers.get(a.end, 0) >= numbers.get(a.start, 0) and a.start.name:
            out.append(f'{a.where}: {a.start} imports {a.end}, whose number is not smaller')
    return list(dict.fromkeys(out))


def sizes(top='.'):
    "A line for each module, or the package, that is over a limit"
    package, out, lines = Path(top)/'rm_nbdev', [], []
    found = modules(package)
    for district, n in Counter(r.district for r in found.values() if r.name).items():
        if n > MOST_ROOMS: out.append(f'{district}: {n} modules, at most {MOST_ROOMS}')
    for path, room in found.items():
        text = path.read_text(encoding='utf-8').splitlines()
        lines += text
        if len(text) > MOST_LINES: out.append(f'{path}: {len(text)} lines, at most {MOST_LINES}')
        if room.name and len(text) < FEWEST_LINES and str(room) not in SMALL: out.append(f'{path}: {len(text)} lines, at least {FEWEST_LINES} or a reason in SMALL')
        out += [f'{path}, line {i+1}: {len(l)} characters, at most {TOO_LONG}' for i, l in enumerate(text) if len(l) > TOO_LONG]
    if (share := sum(len(l) > LONG for l in lines)/max(len(lines), 1)) > LONG_SHARE: out.append(f'{share:.1%} of the lines are over {LONG} characters, at most {LONG_SHARE:.0%}')
    return out


def counts(top='.'):
    "District -> (modules, lines, functions and classes)"
    out = {}
    for path, room in modules(Path(top)/'rm_nbdev').items():
        text = path.read_text(encoding='utf-8')
        defined = sum(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in ast.parse(text).body)
        if room.district: out[room.district] = tuple(map(sum, zip(out.get(room.district, (0, 0, 0)), (bool(room.name), len(text.splitlines()), defined))))
    return out


def draw(top='.'):
    "The house as a picture: floors as rows, districts as boxes, imports between districts as arrows, thicker where there are more"
    from matplotlib.figure import Figure
    weight = Counter((a.start.district, a.end.district) for a in arrows(top) if not a.test and a.start.district)
    fig, place = Figure(figsize=(8, 8), layout='constrained'), {}
    ax = fig.subplots()
    for i, names in enumerate(FLOORS):
        for k, name in enumerate(names): place[name] = ((k+.5)/len(names)*10 + (.9 if i % 2 else -.9)*(len(names) == 1), i*1.5)
    for (start, end), n in weight.items():
        if start == end: continue
        (x0, y0), (x1, y1) = place[start], place[end]
        bend = 0 if y0-y1 <= 1.5 else .15 if x0 <= x1 else -.15          # a long arrow goes around the boxes between
        ax.annotate('', (x1, y1+.25), (x0, y0-.25), arrowprops=dict(
            arrowstyle='->', lw=.4+n**.5/4, color='#0072B2', alpha=.45, connectionstyle=f'arc3,rad={bend}'))
    for name, (x, y) in place.items():
        ax.text(x, y, name, ha='center', va='center', fontsize=11, bbox=dict(boxstyle='round,pad=.5', fc='white', ec='#555555'))
    ax.set(xlim=(-.5, 10.5), ylim=(-.8, len(FLOORS)*1.5-.7), yticks=[i*1.5 for i in range(len(FLOORS))],
           yticklabels=[f'floor {i+1}' for i in range(len(FLOORS))], xticks=[])
    for side in ax.spines.values(): side.set_visible(False)
    ax.tick_params(length=0)
    return fig


def table(top='.'):
    "The districts as Markdown, from the top floor down: what each owns, its rooms in order, what it imports from"
    used, rooms = {}, {}
    for a in arrows(top):
        if a.start.district != a.end.district and not a.test: used.setdefault(a.start.district, set()).add(a.end.district)
    for room, number in sorted(room_numbers(Path(top)/'nbs').items(), key=lambda o: o[1]):
        if room.name: rooms.setdefault(room.district, []).append(room.name)
    rows = ['| floor | district | owns | rooms, in order | imports from |', '|---|---|---|---|---|']
    for i, names in reversed(list(enumerate(FLOORS))):
        for name in names:
            below = ', '.join(sorted(used.get(name, ()), key=lambda o: (floor_of(o), o)))
            rows.append(f"| {i+1} | `{name}` | {ABOUT[name]} | {', '.join(rooms.get(name, []))} | {below} |")
    return '\n'.join(rows)


def architecture_text(top='.'):
    "The Architecture notebook with picture and table as the code gives them now; unchanged where the table is the same"
    path = Path(top)/'nbs/guides/architecture.ipynb'
    notebook = json.loads(path.read_text(encoding='utf-8'))
    outputs = {''.join(c['source']).splitlines()[-1]: c['outputs'] for c in notebook['cells'] if c['cell_type'] == 'code'}
    picture, words = outputs['display(draw(top))'], outputs['display(Markdown(table(top)))']
    if words and ''.join(words[0]['data']['text/markdown']) == table(top): return path.read_text(encoding='utf-8')
    with io.BytesIO() as f:
        draw(top).savefig(f, format='png', dpi=100)
        image = base64.b64encode(f.getvalue()).decode()
    def shown(data): return [dict(output_type='display_data', metadata={}, data=data)]
    picture[:] = shown({'image/png': image, 'text/plain': ['<Figure>']})
    words[:] = shown({'text/markdown': table(top).splitlines(keepends=True), 'text/plain': ['<Markdown>']})
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


def main():
    "`python -m scripts.dev.house`"
    bad = [*breaches(), *sizes()]
    for line in bad: print(line)
    print(f'{sum(n for n, *_ in counts().values())} modules, {sum(n for _, n, _ in counts().values())} lines, {len(bad)} against the plan')
    raise SystemExit(bool(bad))


if __name__ == '__main__': main()
