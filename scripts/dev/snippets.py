"""Every shell command and Python block that a page shows, run"""

import contextlib, functools, io, os, re, shlex, shutil, signal, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path
from fastcore.nbio import read_nb
from rm_nbdev.core.errors import UsageError, first_line

MARKS = ('needs a GPU', 'needs the Hub', 'needs the Hub and a GPU', 'needs SLURM', 'runs until ctrl-C', 'goes into a notebook')   # What keeps a block from being run here

@dataclass
class Block:
    "A block of a page"
    page:str      # Name of the notebook
    cell:int      # Its cell, from 0
    lang:str      # sh or python
    text:str      # What is to be run
    mark:str=''   # Of `MARKS`; such a block is only parsed
    def __str__(self): return f'{self.page}, cell {self.cell}: {next((l for l in self.text.splitlines() if l.strip() and not l.startswith("#")), "")[:80]}'

_fenced = re.compile(r'^(?P<in> {0,3})(?P<ticks>`{3,}|~{3,}) *(?P<lang>[\w{}.+-]*)[^\n]*\n(?P<text>.*?)(?:^ {0,3}(?P=ticks)[`~]* *$|\Z(?P<open>))', re.M|re.S)
_command = re.compile(r'\s*(\$ |(rm-\w+|make|python3?|pip|papermill|sbatch|torchrun|nbdev-\w+|git|hf|export) )')

def _block(page, i, lang, text):
    m = re.match(r'#\s*((?:needs|runs until|goes into)\b.*?)\s*$', text.lstrip().split('\n', 1)[0])
    if m and m[1] not in MARKS: raise UsageError(f"{page}, cell {i}: {m[1]!r} is not a mark; there is: {', '.join(MARKS)}")
    return Block(page, i, lang, text, m[1] if m else '')

def blocks(
    path, # A notebook
)->list[Block]: # In the order of the page
    "The blocks of a page; what is not clear is a `UsageError`"
    try: cells = read_nb(path).cells
    except FileNotFoundError: raise UsageError(f'{path}: no such notebook') from None
    page,out = Path(path).name,[]
    for i,c in enumerate(cells):
        if c.cell_type == 'code' and c.directives.get('eval:', c.directives.get('eval', '')) == 'false': out.append(_block(page, i, 'python', re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)))
        if c.cell_type != 'markdown': continue
        for m in _fenced.finditer(c.source):
            if m['open'] is not None: raise UsageError(f'{page}, cell {i}: a fence is not closed')
            lang,text = dict(bash='sh', shell='sh', console='sh', py='python').get(m['lang'], m['lang']),m['text']
            if lang in ('sh', 'python'): out.append(_block(page, i, lang, text))
            elif not lang and _command.match(text): raise UsageError(f'{page}, cell {i}: {text.strip().splitlines()[0]!r} looks like a command: mark the fence with sh')
    return out

def commands(
    text:str, # A shell block
)->list:      # Words of each `rm-…` command in it
    "The kit's commands in a shell block, lines joined, comments and redirections left out"
    out = []
    for line in re.sub(r'\\\n', ' ', text).splitlines():
        for part in re.split(r'\s*(?:&&|\|\||;|\||&)\s*', line) if '#' not in line else re.split(r'\s*(?:&&|\|\||;|\|)\s*', line.split(' #')[0]):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r'[A-Za-z_]\w*=.*', words[0]): words = words[1:]
            if words and words[0].startswith('rm-'):
                cut = next((i for i,w in enumerate(words) if re.match(r'\d*[<>]', w)), len(words))
                out.append(words[:cut])
    return out

def check_parses(
    b:Block, # A block
):
    "Raise `UsageError` if bash, Python or a parser of the kit does not take it"
    if b.lang == 'python':
        try: return compile(b.text, b.page, 'exec') and None
        except SyntaxError as e: raise UsageError(f'{b}: {e}') from None
    from rm_nbdev.core.cli import PARSERS
    p = subprocess.run(['bash', '-n'], input=b.text, text=True, capture_output=True)
    if p.returncode: raise UsageError(f'{b}: {first_line(ValueError(p.stderr))}')
    for prog,*words in commands(b.text):
        if prog not in PARSERS: raise UsageError(f"{b}: {prog}: not a command; there is {', '.join(PARSERS)}")
        try: PARSERS[prog](words)
        except SystemExit as e:
            if e.code: raise UsageError(f'{b}: {prog} refuses its words') from None
        except UsageError as e: raise UsageError(f'{b}: {e}') from None

@functools.cache
def _help(prog): # What `prog --help` says
    from rm_nbdev.core.cli import PARSERS
    if prog not in PARSERS: return ''
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit): PARSERS[prog](['--help'])
    return out.getvalue()

def check_inline(
    path,     # A notebook
    top='.',  # The checkout, for its Makefile
)->int:       # Commands found
    "Commands of the kit within sentences: `UsageError` for one, or a flag, that does not exist"
    found,targets = 0,set(re.findall(r'^([a-z-]+):', (Path(top)/'Makefile').read_text(encoding='utf-8'), re.M))
    for i,c in enumerate(read_nb(path).cells):
        if c.cell_type != 'markdown': continue
        for span in re.findall(r'(?<!`)`((?:rm-[a-z]+|make)(?: [^`]*)?)`(?!`)', _fenced.sub('', c.source)):
            prog,*words = span.split()
            bad = [w for w in words if w not in targets and re.fullmatch(r'[a-z-]+', w)] if prog == 'make' else [f for f in re.findall(r'(?<=\s)--[\w-]+', span) if f.replace('-', '_') not in _help(prog).replace('-', '_')] if _help(prog) else [prog]
            if bad: raise UsageError(f'{Path(path).name}, cell {i}: `{span}`: there is no {bad[0]}')
            found += 1
    return found

def sandbox(
    top, # The checkout
    to,  # A folder, made
)->Path: # The copy
    "A copy of the checkout's files, with its environment linked"
    top,to = Path(top).resolve(),Path(to)
    names = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=top, capture_output=True, text=True, check=True).stdout
    for n in filter(None, names.split('\0')):
        if not (top/n).is_file(): continue
        (to/n).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(top/n, to/n)
    (to/'.venv').symlink_to(Path(sys.executable).parent.parent)
    if (to/'.ci/venv').exists(): (to/'.ci/venv').write_text('#!/bin/sh\n')                # it is there, and belongs to the checkout
    subprocess.run(['git', 'init', '-q'], cwd=to, check=True)
    return to

def environment(
    to,     # The copy
)->dict:    # Variables for what runs in it
    "Offline, one thread, the copy's modules first"
    drop = ('HF_TOKEN', 'WANDB_API_KEY', 'NAME', 'IN_TEST')
    return {k:v for k,v in os.environ.items() if k not in drop and not k.startswith('SLURM_')} | dict(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=str(to),
        HF_HUB_OFFLINE='1', WANDB_MODE='offline', OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', MPLBACKEND='Agg', PYTHONUNBUFFERED='1', ARGS='--only metadata')

LIMIT = 900  # Seconds that one block may take

def _end(p): # The process and all that it started
    with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)

def run_shell(
    text:str,        # A shell block
    to,              # The folder to run it in
    limit:int=LIMIT, # Most seconds
)->tuple:            # Exit code (None past the limit), output
    "Run a shell block"
    p = subprocess.Popen(['bash', '-euo', 'pipefail', '-c', text], cwd=to, env=environment(to), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True)
    try: out = p.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        _end(p)
        return None, p.communicate()[0]
    finally: _end(p)
    return p.returncode, out

def run_block(
    b:Block,         # A block without a mark
    to,              # The copy
    limit:int=LIMIT, # Most seconds
)->float:            # Seconds that it took
    "Run a block; a failure is a `UsageError` with the end of what it wrote"
    start,text = time.time(),b.text
    if b.lang == 'python':
        (Path(to)/'.block.py').write_text(b.text, encoding='utf-8')
        text = 'python .block.py'
    code,out = run_shell(text, to, limit)
    if code: raise UsageError(f'{b}: ended with {code}:\n' + '\n'.join(out.splitlines()[-30:]))
    if code is None: raise UsageError(f'{b}: ran past {limit} s:\n' + '\n'.join(out.splitlines()[-30:]))
    return time.time() - start

def run_page(
    path,     # A notebook
    top='.',  # The checkout
)->tuple:     # Blocks run, blocks parsed
    "Run or parse every block of a page, in a copy of the checkout"
    found = blocks(path)
    check_inline(path, top)
    with tempfile.TemporaryDirectory() as d:
        to = sandbox(top, d)
        for b in found:
            if b.mark: check_parses(b)
            took = f'parsed, {b.mark}' if b.mark else f'{run_block(b, to):.0f} s'
            print(f'{b}: {took}', flush=True)
    return sum(not b.mark for b in found), sum(bool(b.mark) for b in found)

def main(
    argv=None, # Notebooks, those of the command line if None
):
    "`python -m scripts.dev.snippets NOTEBOOK...`, at the top of a checkout"
    try:
        for path in sys.argv[1:] if argv is None else argv:
            ran,parsed = run_page(path)
            print(f'{Path(path).name}: {ran} ran, {parsed} parsed', flush=True)
    except UsageError as e:
        print(f'scripts.dev.snippets: {e}', file=sys.stderr)
        raise SystemExit(1) from None

if __name__ == '__main__' and 'ipykernel' not in sys.modules and not os.environ.get('IN_TEST'): main()
