"""From a notebook to a page: Markdown with signatures, folded sources, pictures and links

nbconvert renders the cells and mkdocs-material the page; what is here is the order of the pages, the signatures with
their comments (docments), and where links lead."""

import ast, functools, json, os, re, tokenize
from io import StringIO
from pathlib import Path
import yaml
from fastcore.nbio import read_nb
from nbdev.config import get_config
from rm_nbdev.core.errors import UsageError
from scripts.dev.house import FLOORS

GUIDES = ['tutorial', 'python', 'scripts', 'flags', 'data', 'base_model', 'nudge', 'formats', 'suite', 'serve', 'run', 'loss', 'sweep', 'compare', 'slurm']  # In this order, others after them
DEMOS = {'demos/demo_bt': ('runs/demo-example/train.ipynb', 'Demo: Bradley–Terry'),
         'demos/demo_grm': ('runs/grm-demo-example/train.ipynb', 'Demo: GRM')}  # Page -> executed notebook, title
TITLES = dict(guides='Guides', studies='Studies', demos='Executed demos')      # Folder -> its section


def notebook_names(nbs):
    "Pages of a folder of notebooks, as `data/02_pairs`; what begins with `_` or `.` is no page"
    files = [p.relative_to(nbs) for p in Path(nbs).rglob('*.ipynb')]
    return sorted(p.with_suffix('').as_posix() for p in files if not any(part[0] in '_.' for part in p.parts))


def sections(names):
    "Section -> its pages, in reading order; '' for those before all sections"
    by_folder = {}
    for name in names: by_folder.setdefault(os.path.dirname(name), []).append(name)
    def order(name):
        stem = os.path.basename(name)
        return (GUIDES.index(stem) if stem in GUIDES else len(GUIDES), stem)
    top = by_folder.pop('', [])
    out = {'': [o for o in top if o == 'index'], 'Guides': sorted(by_folder.pop('guides', []), key=order)}
    for folder in 'studies', 'demos': out[TITLES[folder]] = sorted(by_folder.pop(folder, []))
    out['Notebooks to run'] = [o for o in top if o != 'index']
    for district in sum(FLOORS, []): out[f'Rooms: {district}'] = by_folder.pop(district, [])
    for folder, left in by_folder.items(): out[folder] = left
    return {k: v for k, v in out.items() if v}


def sidebar(nbs):
    "The navigation for Quarto: the same order as the site's"
    contents = []
    for section, names in sections(notebook_names(nbs)).items():
        files = [f'{o}.ipynb' for o in names]
        contents += files if not section else [dict(section=section, contents=files)]
    return contents


def quarto_text(nbs):
    "`_quarto.yml`, with the navigation in it"
    website = dict(navbar=dict(background='primary', search=True), sidebar=dict(style='floating', contents=sidebar(nbs)))
    html = dict(theme='cosmo', toc=True)
    settings = {'project': dict(type='website'), 'format': dict(html=html, commonmark='default'), 'website': website, 'metadata-files': ['nbdev.yml']}
    return '# Written by `make quarto` from the names of the notebooks\n' + yaml.safe_dump(settings, sort_keys=False)


# --- signatures -----------------------------------------------------------------------------------------------------

_defs = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def definitions(source):
    "Public functions and classes at the top of a cell, as nodes of `ast`"
    return [n for n in ast.parse(source).body if isinstance(n, _defs) and not n.name.startswith('_')]


def _comment(line):
    "The comment that ends a line of code"
    try: return next((t.string for t in tokenize.generate_tokens(StringIO(line).readline) if t.type == tokenize.COMMENT), '')
    except (tokenize.TokenError, IndentationError): return ''


def header(source, node):
    "The header of a definition as it is written: from its first decorator to the colon, comments kept"
    lines, body = source.splitlines(), node.body[0]
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    last = min([body.lineno, *(d.lineno for d in getattr(body, 'decorator_list', []))]) - 1
    before_body = lines[last].encode()[:body.col_offset].decode()
    if last > node.lineno-1 and not before_body.strip(): return '\n'.join(lines[start:last]).rstrip()
    return '\n'.join([*lines[start:last], f'{before_body.rstrip()}  {_comment(lines[last])}'.rstrip()])


def signature(source, node):
    "The header of a function; of a class also its fields and the headers of its public methods"
    if not isinstance(node, ast.ClassDef): return header(source, node)
    out = [header(source, node)]
    for n in node.body:
        if isinstance(n, ast.AnnAssign): out += source.splitlines()[n.lineno-1:n.end_lineno]
        elif isinstance(n, _defs) and (not n.name.startswith('_') or n.name in ('__init__', '__call__', 'forward')):
            doc = ast.get_docstring(n)
            out += [header(source, n), *([f'        "{doc}"'] if doc else [])]
    return '\n'.join(out)


def fence(text, language=''):
    "A Markdown code block that holds `text`"
    ticks = '`' * max([3, *(len(t)+1 for t in re.findall('`+', text))])
    return f'{ticks}{language}\n{text.rstrip()}\n{ticks}'


def documented(source, module):
    "An exported cell as Markdown: heading, link to the source, docstring and signature of each definition; the cell folded"
    config, out = get_config(), []
    file = config.lib_path/f"{module.removesuffix('.__init__').replace('.', '/')}.py"
    if not file.is_file(): file = file.with_suffix('')/'__init__.py'
    lines = {n.name: n.lineno for n in ast.parse(file.read_text(encoding='utf-8')).body if isinstance(n, _defs)}
    for node in definitions(source):
        at = f'#L{lines[node.name]}' if node.name in lines else ''
        url = f'{config.git_url}/blob/{config.branch}/{file.relative_to(config.lib_path.parent).as_posix()}{at}'
        out += [f'### {node.name} {{#{node.name.lower()}}}', f'[source]({url}){{.source}}',
                ast.get_docstring(node) or '', fence(signature(source, node), 'python')]
    folded = '\n'.join('    '+l if l else l for l in fence(source, 'python').split('\n'))
    return '\n\n'.join(filter(None, [*out, f'??? quote "Source"\n\n{folded}']))


@functools.cache
def symbols(nbs):
    "Public name -> page that defines it; a name that several pages define is left out"
    found = {}
    for name in notebook_names(nbs):
        for cell in read_nb(Path(nbs)/f'{name}.ipynb').cells:
            if cell.cell_type == 'code' and re.match(r'#\|\s*exports?\s*$', cell.source, re.M):
                for node in definitions(cell.source): found.setdefault(node.name, set()).add(name)
    return {k: next(iter(v)) for k, v in found.items() if len(v) == 1}


# --- links ----------------------------------------------------------------------------------------------------------

_code = r'^ {0,7}(?P<ticks>`{3,}|~{3,}).*?^ {0,7}(?P=ticks)[`~]* *$'
_links = re.compile(rf'{_code}|^#[^\n]*|(?P<label>!?\[[^\[\]\n]*\])\((?P<to>[^)\s]+)|`(?P<name>[A-Za-z_]\w*)(?:\(\))?`|`+[^`]+`+', re.M|re.S)


def link(to, page, top, files):
    "Where a link of a page leads on the site; pictures of the repository are added to `files`"
    config = get_config()
    path, _, anchor = to.partition('#')
    anchor = '#'+anchor if anchor else ''
    if not path or re.match(r'[A-Za-z][A-Za-z0-9+.-]*:|/', path):
        own = re.match(rf'{re.escape(config.git_url)}/(?:blob|tree)/{config.branch}/(.+)', path)
        if own and not (top/own[1]).exists(): raise UsageError(f'{to}: names no file of the repository')
        return to
    file = (top/'nbs'/os.path.dirname(page)/path).resolve()
    if not file.exists() or not file.is_relative_to(top): return to          # mkdocs names it
    rel, here = file.relative_to(top).as_posix(), os.path.dirname(page) or '.'
    target = next((p for p, (notebook, _) in DEMOS.items() if notebook == rel), None)
    if rel == 'README.md': target = 'index'
    if rel.startswith('nbs/') and file.suffix == '.ipynb': target = rel.removeprefix('nbs/').removesuffix('.ipynb')
    if target: return os.path.relpath(f'{target}.md', here) + anchor
    if file.suffix in ('.png', '.svg', '.jpg', '.gif'):
        files[rel] = file.read_bytes()
        return os.path.relpath(rel, here)
    return f"{config.git_url}/{'tree' if file.is_dir() else 'blob'}/{config.branch}/{rel}{anchor}"


def linked(text, page, top, files, names):
    "Markdown of a cell with links for names in backticks and for files; code and headings stay as they are"
    def sub(m):
        if m['to']: return f"{m['label']}({link(m['to'], page, top, files)}"
        if m['name'] in names and names[m['name']] != page:
            return f"[{m[0]}]({os.path.relpath(names[m['name']]+'.md', os.path.dirname(page) or '.')}#{m['name'].lower()})"
        return m[0]
    return _links.sub(sub, text)


# --- a page ---------------------------------------------------------------------------------------------------------

def _directives(cell):
    "Directives of a code cell: name -> value, '' where there is none"
    return dict(re.findall(r'^#\|\s*([\w-]+)\s*:?[ \t]*(.*?)\s*$', cell.source, re.M)) if cell.cell_type == 'code' else {}


def _prepare(cell, module, link_text):
    "A cell as nbconvert is to see it; None to leave it out"
    given = _directives(cell)
    if cell.cell_type == 'raw' or 'hide' in given or 'default_exp' in given or not cell.source.strip(): return None
    if given.get('include') == 'false': return None
    if errors := [o for o in cell.get('outputs', []) if o['output_type'] == 'error']:
        raise UsageError(f"the notebook holds an error: {errors[0]['ename']}: {errors[0]['evalue']}")
    if cell.cell_type == 'markdown':
        cell.source = link_text(cell.source)
        return cell
    source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip('\n')
    if {'export', 'exports', 'exporti'} & set(given):
        return dict(cell_type='markdown', metadata={}, source=link_text(documented(source, module)) if module else fence(source, 'python'))
    cell.source = source
    tags = [tag for tag, key in (('no-input', 'echo'), ('no-output', 'output')) if given.get(key) == 'false']
    cell.metadata = dict(tags=tags)
    cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
    return cell


def page_markdown(path, page, top, files, title=None, links=True):
    "A notebook as Markdown with its title first; `files` takes its pictures: name beside the page -> bytes"
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    try: notebook = read_nb(path)
    except FileNotFoundError: raise UsageError(f'{path}: no such notebook') from None
    except (ValueError, AttributeError): raise UsageError(f'{path}: not a notebook; take it from git again') from None
    names = symbols(top/'nbs') if links else {}
    module = next((m[1] for c in notebook.cells if (m := re.match(r'#\|\s*default_exp\s+(\S+)', c.source))), None)
    link_text = (lambda text: linked(text, page, top, files, names)) if links else (lambda text: text)
    try: cells = [c for c in (_prepare(c, module, link_text) for c in notebook.cells) if c]
    except (UsageError, SyntaxError) as e: raise UsageError(f'{path}: {e}') from None
    first = next((c for c in cells if c['cell_type'] == 'markdown'), dict(source=''))
    if not first['source'].startswith('# '): raise UsageError(f'{path}: has no title; its first cell begins with # Title')
    first['source'] = re.sub(r'\A# .*', lambda m: f'# {title}' if title else m[0], first['source'])
    first['source'] = re.sub(r'^> (.*)$', r'\1\n{.lead}', first['source'], count=1, flags=re.M) if links else first['source']
    settings = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags={'no-input'}, remove_all_outputs_tags={'no-output'}))
    exporter, stem = MarkdownExporter(config=settings), os.path.basename(page)
    python = dict(language_info=dict(name='python'))                 # the language of the fences
    plain = json.loads(json.dumps(dict(cells=[_plain(c) for c in cells], metadata=python, nbformat=4, nbformat_minor=4)))
    body, resources = exporter.from_notebook_node(nbformat.from_dict(plain), resources=dict(output_files_dir=f'{stem}_files'))
    files |= {f'{os.path.dirname(page)}/{k}'.lstrip('/'): v for k, v in resources.get('outputs', {}).items()}
    return re.sub(r'^[ \t]+$', '', _described(body, cells), flags=re.M)


def _plain(cell):
    "A cell as nbformat knows it"
    cell = {k: v for k, v in dict(cell).items() if k in ('cell_type', 'source', 'metadata', 'outputs')}
    if cell['cell_type'] == 'code': cell |= dict(execution_count=None, outputs=[_whole(o) for o in cell['outputs']])
    return cell


def _whole(output):
    "An output of a cell, with the text alone where nbformat keeps several forms of a table"
    output = dict(output)
    if 'data' in output and 'text/markdown' in output['data']: output['data'] = {'text/markdown': output['data']['text/markdown']}
    return output


def _described(body, cells):
    "Pictures get words: the last line of text before them"
    said = ['']
    for cell in cells:
        text = cell['source'].strip().splitlines()[-1] if cell['cell_type'] == 'markdown' and cell['source'].strip() else said[-1]
        said.append(re.sub(r'[^ -Z^-~]', ' ', text.rstrip(':')))
    return re.sub(r'!\[(?:png|svg|jpe?g)\]\((\S*?_(\d+)_\d+\.\w+)\)', lambda m: f'![{said[int(m[2])+1]}]({m[1]})', body)
