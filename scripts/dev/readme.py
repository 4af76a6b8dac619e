"""README.md from the index notebook"""

import os, re
from pathlib import Path
from fastcore.nbio import read_nb
from rm_nbdev.core.errors import UsageError
from rm_nbdev.core.cli import command
from rm_nbdev.core.cli import readme_flags

_fenced = r'^ {0,3}(?P<ticks>`{3,}|~{3,}).*?^ {0,3}(?P=ticks)[`~]* *$'
_piece = re.compile(rf'{_fenced}|`[^`\n]+`|\]\((?P<target>[^)\s]+)', re.M|re.S)  # code, or the path of a link

def relink(
    text:str,         # Markdown whose paths start at `folder`
    folder:str='nbs', # Where it comes from, relative to where it goes
)->str:               # The same text with paths that start one folder up
    "Rewrites the relative links of `text`, those in code apart"
    def move(m):
        target = m['target']
        if target is None or re.match(r'#|/|[A-Za-z][A-Za-z0-9+.-]*:', target): return m[0]
        return '](' + os.path.normpath(f'{folder}/{target}').replace(os.sep, '/')
    return _piece.sub(move, text)

def fence(
    text:str,    # What goes inside, as it is
    lang:str='', # Language for the colours
)->str:          # A fenced code block
    "Markdown code block that holds `text`"
    ticks = '`' * max([3, *(len(t)+1 for t in re.findall('`+', text))])
    return f'{ticks}{lang}\n{text.rstrip()}\n{ticks}'

def output_text(
    out, # One output of a cell, as nbformat has it
)->str:  # Markdown, '' if there is nothing to show
    "Output `out` as Markdown; `ValueError` if it is an error"
    kind = out['output_type']
    if kind == 'error': raise ValueError(f"the notebook holds an error: {out['ename']}: {out['evalue']}")
    if kind == 'stream': return fence(out['text']) if out['name']=='stdout' and out['text'].strip() else ''
    data = out['data']
    if 'text/markdown' in data: return relink(data['text/markdown'].strip())
    if any(k.startswith('image/') for k in data): return ''
    return fence(data['text/plain']) if 'text/plain' in data else ''

def cell_text(
    cell, # A cell, as `fastcore.nbio.read_nb` gives it
)->str:   # Markdown, '' if there is nothing to show
    "Cell `cell` as Markdown, by its directives"
    off = lambda name: cell.directives.get(name, '').lower() == 'false'
    if cell.cell_type == 'raw' or 'hide' in cell.directives or off('include'): return ''
    src = ''.join(cell._partition()[1]).strip() if cell.directives else cell.source.strip()
    if cell.cell_type == 'markdown': return relink(src)
    code = '' if off('echo') or not src else fence(src, 'python')
    outs = [] if off('output') else [output_text(o) for o in cell.outputs]
    return '\n\n'.join(t for t in (code, *outs) if t)

def readme_text(
    nb_path, # Path of the notebook
)->str:      # Markdown, paths starting one folder above the notebook
    "The notebook at `nb_path` as a README; `UsageError` if it is not there or is no notebook"
    try: cells = read_nb(nb_path).cells
    except FileNotFoundError: raise UsageError(f"{nb_path}: no such notebook; run rm-readme at the top of a checkout") from None
    except (ValueError, AttributeError): raise UsageError(f"{nb_path}: not a notebook; take it from git again") from None
    note = f'<!-- Made from nbs/{Path(nb_path).name} by rm-readme: edit that. -->'
    return '\n\n'.join([note, *filter(None, map(cell_text, cells))]) + '\n'

def write_readme(
    top='.', # Top folder of the checkout
)->Path:     # README.md, written
    "Makes README.md in `top` from `nbs/index.ipynb`"
    text,to = readme_text(Path(top)/'nbs/index.ipynb'), Path(top)/'README.md'
    part = to.with_name('.README.md.part')
    part.write_text(text, encoding='utf-8')
    os.replace(part, to)
    return to

@command('rm-readme', readme_flags)
def main(
    a, # Flags
):     # Exit code 0; 2 for bad input
    "`rm-readme`: README.md from nbs/index.ipynb"
    print(write_readme(a.top))
