"""From notebooks to pages: order, signatures, links, cells"""

import ast, functools, re, tempfile, tokenize, yaml
from base64 import b64encode
from io import StringIO
from pathlib import Path
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import FilterDefaults
from rm_nbdev.core.errors import UsageError
from rm_nbdev.core.files import write_text

FIRST  = ['index', 'tutorial']                                                            # Before all parts
GUIDES = ['guide_scripts', 'guide_data', 'guide_base_model', 'guide_run', 'guide_loss']
PARTS  = {0:'Settings', 1:'Data', 5:'Losses and packing', 6:'Models and rewards', 8:'Checkpoints', 10:'Pictures and the Hub', 11:'Training', 14:'Runs and commands',
          16:'Proofs', 18:'Token search', 19:'Values and ranks', 21:'Docs and batches', 23:'The paper in miniature'}   # First number -> name
RUNNABLE = ['train', 'values']                                                            # Executed by papermill

def sections(
    names:list[str], # Notebooks, without `.ipynb`
)->dict:             # name of the part -> notebooks in order; '' for those before all parts
    "Notebooks by part, in reading order; every one once, empty parts left out"
    number = lambda o: int(m[0]) if (m := re.match(r'\d+', o)) else None
    free = [o for o in names if number(o) is None and o not in [*FIRST, *RUNNABLE]]
    demos = sorted(o for o in free if o.startswith('demo_'))
    free = sorted(set(free) - set(demos), key=lambda o: (GUIDES.index(o) if o in GUIDES else len(GUIDES), o))
    parts = {'': [o for o in FIRST if o in names], 'Guides': free, 'Executed demos': demos, 'Notebooks to run': [o for o in RUNNABLE if o in names]}
    for o in sorted(o for o in names if number(o) is not None): parts.setdefault(PARTS[max(k for k in PARTS if k <= number(o))], []).append(o)
    return {k:v for k,v in parts.items() if v}

def notebook_names(
    folder, # The folder with the notebooks
)->list[str]: # Names without `.ipynb`, sorted; what begins with `_` or `.` is not a page
    "The notebooks of a folder"
    return sorted(p.stem for p in Path(folder).glob('*.ipynb') if p.name[0] not in '_.')

def sidebar_text(
    folder, # The folder with the notebooks
)->str:     # YAML
    "`sidebar.yml` for Quarto: the same order as the site's"
    contents = []
    for part,names in sections(notebook_names(folder)).items():
        files = [f'{o}.ipynb' for o in names]
        contents += files if not part else [dict(section=part, contents=files)]
    return '# Written by `make export` from the names of the notebooks\n' + yaml.safe_dump(dict(website=dict(sidebar=dict(contents=contents))), sort_keys=False)

_defs = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

def definitions(
    src:str, # Source of a cell
)->list:     # Nodes of `ast`
    "Public functions and classes at the top of a cell"
    return [n for n in ast.parse(src).body if isinstance(n, _defs) and not n.name.startswith('_')]

def _comment(line): # The comment that ends a line of code
    try: return next((t.string for t in tokenize.generate_tokens(StringIO(line).readline) if t.type == tokenize.COMMENT), '')
    except (tokenize.TokenError, IndentationError): return ''

def header(
    src:str, # Source of the cell
    node,    # A function or class in it
)->str:      # Its lines from the first decorator to the colon, comments kept
    "The header of a definition as it is written"
    lines,body = src.splitlines(),node.body[0]
    start,last = min([node.lineno, *(d.lineno for d in node.decorator_list)])-1,min([body.lineno, *(d.lineno for d in getattr(body, 'decorator_list', []))])-1
    if last > 0 and (text := lines[start:last]) and last > node.lineno-1 and not lines[last].encode()[:body.col_offset].strip(): return '\n'.join(text).rstrip()
    end = lines[last].encode()[:body.col_offset].decode().rstrip()                       # the body begins where the header ends
    return '\n'.join([*lines[start:last], f'{end}  {_comment(lines[last])}'.rstrip()])

def _shown(node): return isinstance(node, _defs) and (not node.name.startswith('_') or node.name in ('__init__', '__call__', 'forward'))

def signature(
    src:str, # Source of the cell
    node,    # A public function or class in it
)->str:      # Python, as far as a reader needs it
    "The header of a function; of a class also its fields and the headers of its public methods"
    if not isinstance(node, ast.ClassDef): return header(src, node)
    out = [header(src, node)]
    for n in node.body:
        if isinstance(n, ast.AnnAssign): out += src.splitlines()[n.lineno-1:n.end_lineno]
        elif _shown(n): out += [header(src, n), *([f'        "{doc}"'] if (doc := ast.get_docstring(n)) else [])]
    return '\n'.join(out)

_exports = re.compile(r'^#\|\s*exports?\s*$', re.M)

def symbols(
    folder, # The folder with the notebooks
)->dict:    # name -> (notebook, module) where it is defined; a name that several modules define is left out
    "Public functions and classes of all notebooks"
    found = {}
    for name in notebook_names(folder):
        srcs = [''.join(c.source) for c in read_nb(Path(folder)/f'{name}.ipynb').cells if c.cell_type == 'code']
        mod = next((m[1] for s in srcs if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M))), None)
        for s in srcs:
            if mod and _exports.search(s):
                for n in definitions(s): found.setdefault(n.name, set()).add((name, mod))
    return {k:next(iter(v)) for k,v in found.items() if len(v) == 1}

@functools.cache
def _symbols(folder, stamp): return symbols(folder)

def _known(folder): # Read once for an unchanged folder
    return _symbols(str(folder), max((p.stat().st_mtime_ns for p in Path(folder).glob('*.ipynb')), default=0))

_config = functools.cache(get_config)                                                     # it reads files at every call

_code   = r'^ {0,3}(?P<ticks>`{3,}|~{3,}).*?^ {0,3}(?P=ticks)[`~]* *$'
_pieces = re.compile(rf'{_code}|^#[^\n]*|(?P<image>!\[(?P<alt>[^\]]*)\]\((?P<src>[^)\s]+)(?P<more>[^)]*)\))|(?P<label>(?:\[[^\[\]\n]*)?\])\((?P<to>[^)\s]+)|`(?P<name>[A-Za-z_]\w*)(?:\(\))?`|`+[^`]+`+', re.M|re.S)

def _elsewhere(to, folder): # A link of a page as it must be on the site
    path,_,anchor = to.partition('#')
    if not path or re.match(r'[A-Za-z][A-Za-z0-9+.-]*:|/', path): return to
    top,file = Path(folder).resolve().parent,(Path(folder)/path).resolve()
    if file == top/'README.md': return 'index.ipynb' + ('#' + anchor if anchor else '')
    if file.suffix == '.ipynb' and file.parent == Path(folder).resolve(): return to
    if not file.exists() or not file.is_relative_to(top): return to
    rel = file.relative_to(top).as_posix()
    page = {v:k for k,v in DEMOS.items()}.get(rel)
    if page: return f'{page}.ipynb' + ('#' + anchor if anchor else '')
    cfg = _config()
    return f"{cfg.git_url}/{'tree' if file.is_dir() else 'blob'}/{cfg.branch}/{rel}" + ('#' + anchor if anchor else '')

def linked(
    text:str,      # Markdown of a cell
    folder='.',    # The folder with the notebooks
    names=None,    # `symbols(folder)`, read if None
)->str:            # Markdown
    "Links for names in backticks and for files of the repository; code and headings stay as they are"
    names = _known(folder) if names is None else names
    def sub(m):
        if m['image']:
            file = Path(folder)/m['src']
            if not m['src'].startswith('../') or not file.is_file(): return m[0]
            kind = 'svg+xml' if file.suffix == '.svg' else file.suffix[1:]
            return f"![{m['alt']}](data:image/{kind};base64,{b64encode(file.read_bytes()).decode()}{m['more']})"
        if m['to']: return f"{m['label']}({_elsewhere(m['to'], folder)}"
        if m['name'] in names: return f"[{m[0]}]({names[m['name']][0]}.ipynb#{m['name'].lower()})"
        return m[0]
    return _pieces.sub(sub, text)

DEMOS = dict(demo_bt='runs/demo-example/train.ipynb', demo_grm='runs/grm-demo-example/train.ipynb')  # Page -> the executed notebook that it shows

@functools.lru_cache(8)
def _lines(path, stamp): # name -> line of what a module defines
    try: return {n.name:n.lineno for n in ast.parse(path.read_text(encoding='utf-8')).body if isinstance(n, _defs)}
    except SyntaxError: return {}

def _line(path, name): return _lines(path, path.stat().st_mtime_ns).get(name) if path.is_file() else None # Where a module defines a name

def definition_text(
    src:str,    # Source of the cell
    node,       # A public function or class in it
    mod:str,    # Module that the notebook exports
)->str:         # Markdown
    "Heading, source link, docstring and signature of a definition"
    cfg = _config()
    file = cfg.lib_path/f'{mod.replace(".", "/")}.py'
    at = f'#L{line}' if (line := _line(file, node.name)) else ''
    url = f'{cfg.git_url}/blob/{cfg.branch}/{cfg.lib_path.name}/{file.relative_to(cfg.lib_path).as_posix()}{at}'
    doc = ast.get_docstring(node) or ''
    return '\n\n'.join(o for o in (f'### {node.name} {{#{node.name.lower()}}}', f'[source]({url}){{.source}}', doc, f'```python\n{signature(src, node)}\n```') if o)

class document(Processor):
    "Exported cells as documentation, links resolved"
    def begin(self):
        self.folder = Path(self.nb.path_).parent
        mod = next((c.directives_['default_exp'] for c in self.nb.cells if 'default_exp' in c.directives_), None)
        self.nb.cells = [o for c in self.nb.cells for o in self._cells(c, mod)]
        for i,c in enumerate(self.nb.cells): c.idx_ = i
        if (c := self.nb.cells[0]).cell_type == 'raw': c.source = re.sub(r'^output-file:.*$', f'output-file: {Path(self.nb.path_).stem}.html', c.source, flags=re.M)

    def _cells(self, c, mod):
        if 'default_exp' in c.directives_ or not getattr(c, 'source', None): return []
        if c.cell_type == 'markdown': c.source = linked(c.source, self.folder)
        if c.cell_type != 'code' or not {'export', 'exports', 'exporti'} & set(c.directives_): return [c]
        body = re.sub(r'^#\| *(export\w*|hide)\b.*\n', '', c.source, flags=re.M).strip()
        docs = [definition_text(body, n, mod) for n in definitions(body) if mod and 'exporti' not in c.directives_]
        new = [*(mk_cell(linked(t, self.folder), 'markdown') for t in docs), mk_cell(f'#| code-fold: true\n#| code-summary: "Source"\n{body}')]
        for o in new: o.directives_ = o.directives
        return new

def processed(
    path, # A notebook
):        # The notebook as both builders take it, `frontmatter_` in it
    "A notebook after nbdev's pipeline"
    path = Path(path)
    try: nb = read_nb(path)
    except (ValueError, AttributeError): raise UsageError(f'{path}: not a notebook; take it from git again') from None
    FilterDefaults()(nb)
    return nb

_demo_titles = dict(demo_bt=('Demo: Bradley–Terry', 'The notebook of `rm-run demo`, as it was executed'), demo_grm=('Demo: GRM', 'The notebook of `rm-run grm-demo grm`, as it was executed'))

def demo_page(
    name:str, # Key of `DEMOS`
    top,      # The checkout
)->str:       # The text of a notebook
    "An executed run as a page: its title, and what it was"
    from nbdev.clean import clean_nb
    nb = read_nb(Path(top)/DEMOS[name])
    title,said = _demo_titles[name]
    first = next(c for c in nb.cells if c.cell_type == 'markdown' and ''.join(c.source).startswith('# '))
    first.source = f'# {title}\n\n> {said}'
    if all('skip_exec' not in ''.join(c.source) for c in nb.cells[:1]): nb.cells.insert(0, mk_cell('---\nskip_exec: true\n---', 'raw'))
    for i,c in enumerate(nb.cells): c.id = f'{name.replace("_", "-")}-{i}'
    clean_nb(nb)
    with tempfile.TemporaryDirectory() as d:
        write_nb(nb, Path(d)/'x.ipynb')
        return (Path(d)/'x.ipynb').read_text(encoding='utf-8')

def derived(
    top='.', # The checkout
)->dict:     # Path -> text
    "Files of `nbs` that follow from other files"
    top = Path(top)
    return {f'nbs/{k}.ipynb': demo_page(k, top) for k in DEMOS if (top/DEMOS[k]).is_file()}

def write_derived(top='.'):
    "Writes the demos' pages, then the sidebar, where they are not what they should be"
    for k,v in derived(top).items():
        if not (Path(top)/k).is_file() or (Path(top)/k).read_text(encoding='utf-8') != v: write_text(Path(top)/k, v)
    write_text(Path(top)/'nbs/sidebar.yml', sidebar_text(Path(top)/'nbs'))
