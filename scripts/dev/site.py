"""A site from the notebooks without Quarto and without a network"""

import base64, html, json, logging, os, re, shutil, sys, tempfile, time, yaml
from argparse import ArgumentParser
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree
from nbdev.config import get_config
from rm_nbdev.core.errors import UsageError
from rm_nbdev.core.files import write_text
from scripts.dev.readme import fence
from scripts.dev.pages import notebook_names, processed, sections, sidebar_text, write_derived

_kinds = dict(note='note', tip='tip', warning='warning', important='danger', caution='warning')
_fence_line = re.compile(r'^ {0,3}(`{3,}|~{3,})')

def _opened(line, title): # First line of an admonition for an opening `::: {...}`; '' for another block
    kind = re.search(r'\.callout-(\w+)', line)
    if not kind or kind[1] not in _kinds: return ''
    given = re.search(r'title="([^"]*)"', line)
    mark = '???' if re.search(r'collapse="?true', line) else '???+' if 'collapse' in line else '!!!'
    return f'{mark} {_kinds[kind[1]]} "{given[1] if given else title or kind[1].capitalize()}"'

def callouts(
    text:str, # Markdown with Quarto's fenced blocks
)->str:       # Markdown with admonitions
    "Callouts as admonitions; a block that is not closed is a `UsageError`"
    out,stack,code = [],[],None
    lines = text.split('\n')
    for i,line in enumerate(lines):
        if (m := _fence_line.match(line)) and (code is None or line.strip().startswith(code)): code = m[1] if code is None else None
        bare = line.strip()
        if code is None and (m := re.match(r':{3,}\s*([^:\s].*)$', bare)):
            after = next((o for o in lines[i+1:] if o.strip()), '')
            head = re.match(r'#+\s+(.*?)\s*$', after) if 'callout' in m[1] else None
            opened = _opened(m[1], head and head[1])
            if opened: out += ['', '    '*len([s for s in stack if s]) + opened, '']
            stack.append(opened and ('title' if head and 'title=' not in m[1] else 'open'))
        elif code is None and re.fullmatch(r':{3,}', bare):
            if not stack: raise UsageError(f'line {i+1}: ::: closes nothing')
            stack.pop(); out.append('')
        elif stack and stack[-1] == 'title' and bare: stack[-1] = 'open'                  # the heading has become the title
        else: out.append('    '*len([s for s in stack if s]) + line if bare else line)
    if stack: raise UsageError('a block that begins with ::: is not closed')
    return '\n'.join(out)

_image = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg', 'image/gif': 'gif'}

def _joined(o): return ''.join(o) if isinstance(o, list) else o

def output_markdown(
    out,        # One output of a cell, as nbformat has it
    name:str,   # Name for a picture's file, without its ending
    files:dict, # Takes the picture: file name -> bytes
    alt:str='', # What the picture shows, in words
)->str:         # Markdown, '' if there is nothing to show
    "An output as Markdown; a stored error is a `UsageError`"
    if out['output_type'] == 'error': raise UsageError(f"the notebook holds an error: {out['ename']}: {out['evalue']}")
    if out['output_type'] == 'stream': return fence(_joined(out['text']), 'text') if _joined(out['text']).strip() else ''
    data = {k:_joined(v) for k,v in out['data'].items() if not isinstance(v, dict)}
    kind = next((k for k in _image if k in data), None)
    if kind:
        files[f'{name}.{_image[kind]}'] = data[kind].encode() if kind == 'image/svg+xml' else base64.b64decode(data[kind])
        return f'![{re.sub(r"[^ -Z^-~]", " ", alt)}](files/{name}.{_image[kind]})'
    if 'text/markdown' in data: return data['text/markdown'].strip()
    if 'text/html' in data: return f'<div class="output">\n{data["text/html"].strip()}\n</div>'
    return fence(data['text/plain'], 'text') if 'text/plain' in data else ''

def _directives(c): # Quarto's, as pairs
    return dict(re.findall(r'^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$', c.source, re.M)) if c.cell_type == 'code' else {}

def cell_markdown(
    c,          # A cell after `processed`
    name:str,   # Name for its pictures' files
    files:dict, # Takes the pictures
    alt:str='', # What pictures show, in words
)->str:         # Markdown
    "A cell by its directives"
    if c.cell_type == 'markdown': return c.source.strip()
    if c.cell_type == 'raw': return ''
    d = _directives(c)
    off = lambda k: d.get(k, '').lower() == 'false'
    if off('include'): return ''
    src = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip('\n')
    code = '' if off('echo') or not src.strip() else fence(src, 'python')
    if code and 'code-fold' in d and d['code-fold'] != 'false':
        title = d.get('code-summary', 'Code').strip('"\'')
        code = f'??? quote "{title}"\n\n' + '\n'.join('    '+l if l else l for l in code.split('\n'))
    outs = [] if off('output') else [output_markdown(o, f'{name}-{i}', files, d.get('fig-alt', d.get('fig-cap', alt)).strip('"')) for i,o in enumerate(c.get('outputs', []))]
    return '\n\n'.join(o for o in (code, *outs) if o)

_code    = r'^ {0,7}(?P<ticks>`{3,}|~{3,}).*?^ {0,7}(?P=ticks)[`~]* *$|`+[^`\n]+`+'
_to_page = re.compile(rf'{_code}|\]\((?P<page>[\w.-]+)\.ipynb(?P<anchor>#[^)\s]*)?(?P<more>[^)]*)\)|\((?P<data>data:image/(?P<kind>[\w+]+);base64,(?P<bytes>[\w+/=]+))', re.M|re.S)

_display = re.compile(rf'{_code}|^(?P<math>[ \t]*\$\$.+?\$\$)[ \t]*$', re.M|re.S)

def _deeper(text): # Nested list items by four spaces instead of two or three; a formula on lines of its own is a paragraph of its own
    text = re.sub(r'^( {2,3})(?=(?:[-*+]|\d+\.) )', '    ', text, flags=re.M)
    return _display.sub(lambda m: f"\n{m['math']}\n" if m['math'] else m[0], text)

def page_markdown(
    path,       # A notebook
    files:dict, # Takes the pictures: file name -> bytes
)->str:         # Markdown with the title first
    "A notebook as a page"
    path = Path(path)
    try:
        nb = processed(path)
        fm,alt,parts = nb.frontmatter_,'',[]
        for i,c in enumerate(nb.cells):
            if c.cell_type == 'markdown' and c.source.strip().startswith('<!-- WARNING'): continue
            parts.append(cell_markdown(c, f'{path.stem}-{i}', files, alt or fm.get('title', '')))
            if c.cell_type == 'markdown': alt = c.source.strip().splitlines()[-1].rstrip(':')
        text = callouts('\n\n'.join(o for o in parts if o))
    except (UsageError, SyntaxError) as e: raise UsageError(f'{path}: {e}') from None
    if 'title' not in fm: raise UsageError(f'{path}: has no title; its first cell begins with # Title')
    head = f"# {fm['title']}\n" + (f"\n{fm['description']}\n{{.lead}}\n" if fm.get('description') else '')
    def sub(m):
        if m['page']: return f"]({m['page']}.md{m['anchor'] or ''}{m['more']})"
        if not m['data']: return m[0]
        name = f"{path.stem}-inline-{len(files)}.{m['kind'].replace('svg+xml', 'svg')}"
        files[name] = base64.b64decode(m['bytes'])
        return f'(files/{name}'
    return _to_page.sub(sub, head + '\n' + _deeper(text)) + '\n'

_math = re.compile(r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>', re.S)

_parts = dict(mfrac=2, msub=2, msup=2, msubsup=3, munder=2, mover=2, munderover=3, mroot=2)  # What an element must hold

def _formula(tex, display): # MathML; ValueError where the converter let something pass
    from latex2mathml.converter import convert
    out = convert(tex, display=display)
    for e in ElementTree.fromstring(out).iter():
        if (e.text or '').startswith('\\'): raise ValueError(f'{e.text} is not known')
        kind = e.tag.rpartition('}')[2]
        if kind in _parts and len(e) != _parts[kind]: raise ValueError(f'something lacks a part ({kind})')
    return out

def mathml(
    text:str, # A page's HTML
)->str:       # The same with MathML
    "Formulas as MathML; one that cannot be read is a `UsageError`"
    def sub(m):
        tex = html.unescape(m['inline'] if m['inline'] is not None else m['block']).strip()
        try: out = _formula(tex, 'inline' if m['inline'] is not None else 'block')
        except Exception as e: raise UsageError(f'formula {tex!r}: cannot be read: {str(e) or type(e).__name__}') from None
        return f'<{m["tag"]} class="math{"" if m["inline"] is not None else " block"}">' + out.replace('<math ', f'<math alttext="{html.escape(tex, quote=True)}" ', 1) + f'</{m["tag"]}>'
    return _math.sub(sub, text)

class _Read(HTMLParser): # What a page holds and where it leads
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.ids,self.leads,self.loads = set(),[],[]
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        for k in ('id', 'name'):
            if a.get(k) and (k == 'id' or tag == 'a'): self.ids.add(a[k])
        if tag == 'a' and a.get('href') is not None: self.leads.append(a['href'])
        if tag in ('img', 'script', 'source', 'iframe', 'video', 'audio') and a.get('src'): self.loads.append(a['src'])
        if tag == 'link' and a.get('rel') not in ('canonical', 'next', 'prev', 'alternate', 'edit') and a.get('href'): self.loads.append(a['href'])

def _outside(to, top, cfg): # Trouble with an address on another host, '' if none
    m = re.match(rf'{re.escape(cfg.git_url)}/(?:blob|tree)/{cfg.branch}/([^#]+)(?:#L(\d+))?$', to)
    if not m: return ''
    file = Path(top)/unquote(m[1])
    if not file.exists(): return 'names no file of the repository'
    if m[2] and int(m[2]) > len(file.read_text(encoding='utf-8').splitlines()): return 'names a line that the file does not have'
    return ''

def dead_links(
    site,         # Folder with the finished site
    top,          # The checkout, for links to the code host
)->list[str]:     # A line for each: page, address, what is wrong
    "Links that lead nowhere, and what a page would load from elsewhere"
    site = Path(site).resolve()
    pages = {p: _Read(re.sub(r'</?span\b[^>]*>', '', p.read_text(encoding='utf-8'))) for p in sorted(site.rglob('*.html'))}   # coloured code is spans, by the ten thousand
    out,cfg = [],get_config()
    for p,page in pages.items():
        for to,loads in [*((o, False) for o in page.leads), *((o, True) for o in page.loads)]:
            u = urlsplit(to)
            if u.scheme == 'data': continue
            if u.scheme or u.netloc: why = 'is loaded from elsewhere' if loads else _outside(to, top, cfg) if u.scheme in ('http', 'https') else '' if to == 'javascript:void(0)' or u.scheme == 'mailto' else 'has an unknown scheme'
            else:
                file = (site/u.path.lstrip('/') if u.path.startswith('/') else p.parent/unquote(u.path)).resolve() if u.path else p
                if file.is_dir(): file = file/'index.html'
                why = 'no such page' if not file.is_file() or not file.is_relative_to(site) else 'no such heading there' if u.fragment and file in pages and unquote(u.fragment) not in pages[file].ids | {'top'} else ''
            if why: out.append(f'{p.relative_to(site).as_posix()}: {to}: {why}')
    return list(dict.fromkeys(out))

def slug(
    text:str,    # A heading
    sep:str='-', # Between words
)->str:          # Its anchor
    "Anchor of a heading by pandoc's rule: letters, digits and `_-.`, lower case, from the first letter on"
    text = re.sub(r'<[^>]+>', '', html.unescape(text))
    text = re.sub(r'\s+', sep, re.sub(r'[^\w\s.-]', '', text.strip()).lower())
    return re.sub(r'^[^a-z\u00aa-\uffff]+', '', text) or 'section'

def site_config(
    names:list[str], # Notebooks
    docs,            # Folder with the Markdown
    to,              # Folder for the site
)->dict:             # Settings of mkdocs
    "Settings of the site"
    cfg = get_config()
    nav = []
    for part,ns in sections(names).items(): nav += [f'{o}.md' for o in ns] if not part else [{part: [f'{o}.md' for o in ns]}]
    scheme = lambda media,name,icon,other: dict(media=f'(prefers-color-scheme{media})', scheme=name, primary='indigo', toggle=dict(icon=f'material/{icon}', name=other))
    return dict(site_name=cfg.lib_name, site_description=cfg.description, extra=dict(social=[dict(icon='fontawesome/brands/github', link=cfg.git_url, name='The repository')]), docs_dir=str(docs), site_dir=str(to), use_directory_urls=False, nav=nav, strict=True, extra_css=['extra.css'],
        theme=dict(name='material', font=False, features=['navigation.sections', 'navigation.top', 'navigation.footer', 'toc.follow', 'search.suggest', 'search.highlight', 'search.share', 'content.code.copy'],
            palette=[dict(media='(prefers-color-scheme)', primary='indigo', toggle=dict(icon='material/brightness-auto', name='light')),       # as the system has it, until the reader chooses
                     scheme(': light', 'default', 'weather-sunny', 'dark'), scheme(': dark', 'slate', 'weather-night', 'as the system has it')]),
        plugins=[dict(search=dict(separator=r'[\s\-,:!=\[\]()"`/<>{}_.]+'))],
        validation=dict(nav=dict(omitted_files='warn', not_found='warn'), links=dict(not_found='ignore', anchors='ignore', absolute_links='ignore', unrecognized_links='ignore')),  # `dead_links` follows them
        markdown_extensions=['attr_list', 'md_in_html', 'tables', 'admonition', 'footnotes', 'pymdownx.details', 'pymdownx.superfences', dict(toc=dict(permalink=True, toc_depth='2-3', slugify=slug)),
            {'pymdownx.highlight': dict(use_pygments=True)}, {'pymdownx.arithmatex': dict(generic=True)}])

STYLE = """.lead { font-size: 1.05em; opacity: .8 }
.md-typeset .source { float: right; font-size: .7rem }
.md-typeset .output { overflow-x: auto; font-size: .7rem }
.md-typeset .output table { border-collapse: collapse }
.md-typeset .output td, .md-typeset .output th { padding: .2em .8em; text-align: right; border-bottom: 1px solid var(--md-default-fg-color--lightest) }
.md-typeset .math.block { display: block; overflow-x: auto; overflow-y: hidden; margin: 1em 0; font-size: 1.1em }
@media (max-width: 45em) { .md-typeset .math:not(.block) { display: inline-block; max-width: 100%; overflow-x: auto; overflow-y: hidden; vertical-align: bottom } }
.md-typeset img { background: white; border-radius: 2px }
.md-typeset code, .md-typeset a { overflow-wrap: anywhere }
"""

class _Warned(logging.Handler): # What mkdocs warns of
    def __init__(self): super().__init__(logging.WARNING); self.said = []
    def emit(self, record): self.said.append(record.getMessage())

def _mkdocs(config, at): # Run it; what it warned of
    os.environ.setdefault('NO_MKDOCS_2_WARNING', '1')                                     # the theme's advice on the next mkdocs is not the reader's concern
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort, BuildError, ConfigurationError
    log,warned = logging.getLogger('mkdocs'),_Warned()
    log.addHandler(warned); log.propagate = False
    try:
        path = Path(at)/'mkdocs.yml'
        path.write_text(yaml.dump({k:v for k,v in config.items() if k != 'markdown_extensions'}), encoding='utf-8')
        c = load_config(str(path), markdown_extensions=config['markdown_extensions'])
        c.plugins.on_startup(command='build', dirty=False)
        build(c)
    except (Abort, BuildError, ConfigurationError) as e: warned.said.append(str(e))
    finally: log.removeHandler(warned)
    return warned.said

def build_site(
    top='.',   # The checkout
    to=None,   # Folder for the site, `_docs` in the checkout if None
)->Path:       # The site
    "Builds the site; `UsageError` with every dead link, formula or cell that cannot be shown"
    top = Path(top).resolve()
    nbs,to = top/get_config().nbs_path.name,Path(to) if to else top/'_docs'
    if not (nbs/'index.ipynb').is_file(): raise UsageError(f'{nbs}: no notebooks; run this at the top of a checkout')
    names = notebook_names(nbs)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix='.docs-') as work:
        docs,site = Path(work)/'docs',Path(work)/'site'
        (docs/'files').mkdir(parents=True)
        bad = [*_write_pages(nbs, names, docs), *([] if (nbs/'sidebar.yml').is_file() and (nbs/'sidebar.yml').read_text(encoding='utf-8') == sidebar_text(nbs) else [f'{nbs}/sidebar.yml: is not what the notebooks give: run make export'])]
        if not bad: bad = _mkdocs(site_config(names, docs, site), work)
        if not bad: bad = [*_finish(site), *dead_links(site, top)]
        if bad: raise UsageError('\n'.join([f'the site was not built, {len(bad)} in the way:', *(re.sub(r'^(\w+)\.html\b', rf'{nbs.name}/\1.ipynb', re.sub(r'\b(\w+)\.md\b(?=.*no such page)', r'\1.ipynb', o)) for o in bad)]))
        if to.exists(): os.replace(to, Path(work)/'old')
        os.replace(site, to)
    return to

def _write_pages(nbs, names, docs): # Markdown and pictures; what could not be made
    bad = []
    for o in names:
        files = {}
        try: write_text(docs/f'{o}.md', page_markdown(nbs/f'{o}.ipynb', files))
        except UsageError as e: bad.append(str(e))
        for k,v in files.items(): (docs/'files'/k).write_bytes(v)
    for f in (p for p in (nbs/'images').glob('*') if p.is_file()):
        (docs/'images').mkdir(exist_ok=True)
        shutil.copyfile(f, docs/'images'/f.name)
    write_text(docs/'extra.css', STYLE)
    return bad

def _finish(site): # Formulas; what could not be read
    bad = []
    for p in sorted(site.glob('*.html')):
        try: text = mathml(p.read_text(encoding='utf-8'))
        except UsageError as e: bad.append(f'{p.name}: {e}')
        else: write_text(p, text)
    return bad

def serve(
    site,           # The site
    port:int=8000,  # Port on this machine alone
):
    "Shows a site until ctrl-C"
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    try: server = ThreadingHTTPServer(('127.0.0.1', port), partial(Quiet, directory=str(site)))
    except OSError as e: raise UsageError(f'port {port}: {e.strerror}; choose another: PORT=8001 make docs-serve') from None
    print(f'http://127.0.0.1:{server.server_address[1]}/ until ctrl-C', flush=True)
    with server:
        try: server.serve_forever()
        except KeyboardInterrupt: print()

def main(
    argv=None, # Words of the command line
):
    "`python -m scripts.dev.site build|serve|derive`"
    p = ArgumentParser('python -m scripts.dev.site', description='The docs site from the notebooks of a checkout.')
    p.add_argument('what', choices=('build', 'serve', 'derive'), help='build the site, build and show it, or write the files of nbs that follow from others')
    p.add_argument('--port', type=int, default=8000, help='port for serve (default: 8000)')
    a,start = p.parse_args(argv),time.time()
    try:
        if a.what == 'derive': return write_derived()
        site = build_site()
        print(f'{len(list(site.glob("*.html")))} pages in {time.time()-start:.0f} s, no dead link: {site}/index.html', flush=True)
        if a.what == 'serve': serve(site, a.port)
    except UsageError as e:
        print(f'scripts.dev.site: {e}', file=sys.stderr)
        raise SystemExit(1) from None

if __name__ == '__main__' and 'ipykernel' not in sys.modules and not os.environ.get('IN_TEST'): main()
